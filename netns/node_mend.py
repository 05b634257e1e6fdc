"""What of a node is watched, and who mends it."""

from __future__ import annotations

from netns.bandwidth import PREFIXES
from netns.firewall.table import Firewall
from netns.link import GATEWAY_PREFIX, VETH_PREFIX, VXLAN_PREFIX
from netns.mend import Mender
from netns.networks import Networks
from netns.route import NETWORK_PROTOCOL, VIP_PROTOCOL
from netns.watch import Touched, Watch

SHAPERS = tuple(PREFIXES.values())
FIREWALL_TABLES = ("tepui",)


def watch_of(networks: Networks) -> Watch:
    return Watch(
        (VETH_PREFIX, *SHAPERS),
        steady=(GATEWAY_PREFIX, VXLAN_PREFIX),
        protocols=(NETWORK_PROTOCOL, VIP_PROTOCOL),
        tables=FIREWALL_TABLES,
        own=lambda: (networks.port,),
    )


def menders(networks: Networks, firewall: Firewall | None) -> list[Mender]:
    """Networks first: what containers are connected to has to be there."""

    async def mend_networks(touched: Touched) -> list[str]:
        done = [operation for name in networks.names for operation in await networks.mend(name)]
        # A route goes with the address that is its source, and nobody is told: those to containers have the gateway's.
        return done + await networks.restore() if done else []

    async def mend_containers(touched: Touched) -> list[str]:
        # Whose the other links are can't be told from their names: then all containers are looked at.
        some = not touched.everything and not touched.link(*SHAPERS)
        return await networks.restore(touched.links if some else None)

    async def mend_firewall(touched: Touched) -> list[str]:
        return await firewall.mend() if firewall else []

    return [
        Mender("networks", lambda touched: touched.link(GATEWAY_PREFIX, VXLAN_PREFIX), mend_networks),
        Mender("links of containers", lambda touched: touched.link(VETH_PREFIX, *SHAPERS), mend_containers),
        Mender("firewall", lambda touched: touched.everything or bool(touched.tables), mend_firewall),
    ]
