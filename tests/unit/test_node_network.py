"""Network items of the desired state, put together and applied: nothing twice, nothing lost, also when it fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.node_network import NodeNetwork
from model.names import NamedTask
from model.network import Block, Network, NetworkKind, Share, Vtep, vtep_mac
from model.task import Protocol
from model.vip import Backend, Vip
from netns.dns.table import Scope
from netns.dns.zone import NamedVip
from netns.firewall.table import Entrance
from tests.unit.cluster import until
from tests.unit.control import POOL
from tests.unit.node import Driver, Firewall, Names, Vips

pytestmark = pytest.mark.anyio
OVERLAY = ip_network("100.64.0.0/11")


class Node:
    def __init__(self, *, external: bool = False) -> None:
        self.driver = Driver()
        self.vips = Vips(self.driver)
        self.firewall = Firewall(self.driver)
        self.names = Names(self.driver)
        self.network = NodeNetwork(
            "n1", self.driver, self.vips, self.firewall, self.names, (POOL,), self.vacate, external=external
        )

    async def vacate(self, network: str) -> None:
        await self.driver.work(f"vacate {network}")

    async def apply(self) -> list[str]:
        """What was done."""
        self.driver.log.clear()
        await self.network.apply()
        return list(self.driver.log)


def put_network(network: NodeNetwork, name: str, *subnets: str, retiring: str = "") -> None:
    blocks = tuple(Block(name, "n1", ip_network(subnet)) for subnet in subnets or ("100.64.0.0/24",))
    retired = tuple(block for block in blocks if str(block.subnet) == retiring)
    network.put_network(Share(Network(name, NetworkKind.OVERLAY, (OVERLAY,), vni=1024), blocks, retired))


def peer(network: str, node: str) -> Vtep:
    block = Block(network, node, ip_network("100.64.1.0/24"))
    return Vtep(network, node, ip_address("10.0.0.2"), vtep_mac(node, 1024), (block,))


def vip(number: int) -> Vip:
    return Vip(ip_address("100.127.0.1"), number, Protocol.TCP, "services/web")


def named(task: str, address: str = "100.64.0.2") -> NamedTask:
    return NamedTask(task, "services", "/web", (ip_address(address),), (ip_address("10.0.0.1"),))


async def test_a_change_is_applied_in_one_go() -> None:
    node = Node()
    put_network(node.network, "a")
    for name in ("n2", "n3"):
        node.network.put_peer(peer("a", name))
    for number in (80, 81):
        node.network.put_vip(vip(number))
    assert await node.apply() == ["configure firewall", "configure a", "vips", "names"]
    assert {p.node for p in node.driver.configured["a"].peers} == {"n2", "n3"}
    assert node.vips.table is not None and len(node.vips.table.vips) == 2
    assert (node.vips.table.cluster, node.vips.table.pools) == ((OVERLAY,), (POOL,))
    assert await node.apply() == []
    node.network.remove("peer/a/n2")
    assert await node.apply() == ["configure firewall", "configure a"]
    node.network.remove(f"vip/{vip(80).key}")
    assert await node.apply() == ["vips", "names"]


async def test_names_are_told_when_they_change_and_of_networks_by_their_gateways() -> None:
    node = Node()
    put_network(node.network, "a")
    node.network.put_vip(vip(80))
    node.network.put_name(named("web.1"))
    await node.apply()
    assert node.names.table is not None
    assert list(map(str, node.names.table.listen)) == ["127.0.0.84", "100.64.0.1"]
    assert node.names.table.scopes == (Scope((OVERLAY,), forwards=True),)
    assert node.names.table.things == {
        f"vip/{vip(80).key}": NamedVip("services/web", vip(80).address),
        "name/web.1": named("web.1"),
    }
    backend = Backend("web.1", "n1", ip_address("100.64.0.2"), 80)
    node.network.put_vip(replace(vip(80), backends=(backend,)))
    node.network.put_name(named("web.1"))
    assert await node.apply() == ["vips"]  # its name is what it was
    node.network.put_name(named("web.1", "100.64.0.3"))
    assert await node.apply() == ["names"]
    node.network.remove("name/web.1")
    assert await node.apply() == ["names"] and set(node.names.table.things) == {f"vip/{vip(80).key}"}


async def test_a_node_that_lets_clients_in_tells_its_firewall_to_which_vips() -> None:
    node, inside = Node(external=True), Node()
    for each in (node, inside):
        put_network(each.network, "a")
        each.network.put_vip(vip(80))
        await each.apply()
    assert (node.firewall.entrances, inside.firewall.entrances) == (frozenset(), None)
    for each in (node, inside):
        each.network.put_vip(replace(vip(80), external=True))
    assert await node.apply() == ["configure firewall", "vips"] and await inside.apply() == ["vips"]
    assert node.firewall.entrances == frozenset({Entrance(vip(80).address, 80, Protocol.TCP)})
    node.network.put_vip(replace(vip(80), external=True, affinity_s=1))
    assert await node.apply() == ["vips"]
    node.network.remove(f"vip/{vip(80).key}")
    assert await node.apply() == ["configure firewall", "vips", "names"]
    assert node.firewall.entrances == frozenset()


async def test_what_is_not_here_can_be_removed() -> None:
    node = Node()
    for key in ("network/x", "peer/x/n9", "vip/1.2.3.4:80/tcp", "moon/1"):
        node.network.remove(key)
    assert await node.apply() == []


async def test_a_peer_may_come_before_its_network() -> None:
    node = Node()
    node.network.put_peer(peer("a", "n2"))
    assert await node.apply() == ["configure firewall"]
    put_network(node.network, "a")
    await node.apply()
    assert len(node.driver.configured["a"].peers) == 1


@pytest.mark.parametrize("failing", ["validate a", "configure a", "vips", "names", "remove b"])
async def test_what_failed_is_tried_again_and_nothing_else(failing: str) -> None:
    node = Node()
    put_network(node.network, "a")
    put_network(node.network, "b")
    await node.apply()
    put_network(node.network, "a")
    node.network.remove("network/b")
    node.driver.failing = {failing}
    assert len(await node.network.apply()) == 1
    assert len(await node.network.apply()) == 1
    node.driver.failing = set()
    again = {"validate a": ["configure a"], "remove b": ["vacate b", "remove b"]}
    assert await node.apply() == again.get(failing, [failing])
    assert set(node.driver.configured) == {"a"} and await node.apply() == []


@pytest.mark.parametrize("held", ["remove old", "configure new", "vips"])
async def test_a_session_that_ends_in_the_middle_leaves_nothing_half_done(held: str) -> None:
    """What was under way when it was cancelled, and what had not begun, is done by the next session."""
    node = Node()
    put_network(node.network, "old")
    await node.apply()
    node.network.remove("network/old")
    put_network(node.network, "new")
    node.driver.held = held
    node.driver.gate.clear()
    applying = asyncio.create_task(node.network.apply())
    await until(lambda: node.driver.log[-1] == held)
    applying.cancel()
    await asyncio.gather(applying, return_exceptions=True)
    node.driver.gate.set()
    assert held in await node.apply()
    assert set(node.driver.configured) == {"new"}
    assert node.vips.table is not None and len(node.vips.table.local) == 1


async def test_a_network_that_comes_back_before_it_was_removed_stays() -> None:
    """Its containers are connected to it: it must not go away in between."""
    node = Node()
    put_network(node.network, "a")
    await node.apply()
    node.network.remove("network/a")
    put_network(node.network, "a")
    assert "remove a" not in await node.apply()


async def test_a_network_that_was_removed_while_no_agent_was_here_is_removed_at_its_start() -> None:
    node = Node()
    node.driver.earlier = frozenset({"a", "old"})
    node.network.keep_only({"network/a"})
    put_network(node.network, "a")
    assert await node.apply() == ["vacate old", "remove old", "configure firewall", "configure a", "vips", "names"]
    assert node.driver.known() == {"a"}


async def test_spares_are_dropped_before_the_blocks_that_they_are_in_change() -> None:
    node = Node()
    put_network(node.network, "a")
    put_network(node.network, "b")
    assert await node.apply() == ["configure firewall", "configure a", "configure b", "vips", "names"]
    put_network(node.network, "a")
    node.network.put_peer(peer("b", "n2"))
    assert await node.apply() == ["configure firewall", "configure a", "configure b", "vips", "names"]
    put_network(node.network, "a", "100.64.0.0/24", "100.64.1.0/24")
    assert await node.apply() == ["configure firewall", "configure a", "vips", "names"]  # they are where they were
    put_network(node.network, "a", "100.64.1.0/24")
    assert await node.apply() == ["configure firewall", "vacate a", "configure a", "vips", "names"]


async def test_spares_are_dropped_once_nothing_is_leased_of_their_block_any_more() -> None:
    node = Node()
    put_network(node.network, "a", "100.64.0.0/24", "100.64.1.0/24")
    await node.apply()
    for expected in (["configure a", "vacate a"], ["configure a"]):
        put_network(node.network, "a", "100.64.0.0/24", "100.64.1.0/24", retiring="100.64.0.0/24")
        node.driver.failing = {"configure a"}
        assert "vacate a" not in await node.apply()
        node.driver.failing = set()
        assert await node.apply() == expected
        assert await node.apply() == []
    assert node.driver.configured["a"].retiring[0].subnet == ip_network("100.64.0.0/24")
    put_network(node.network, "a", "100.64.1.0/24")
    assert await node.apply() == ["configure firewall", "configure a", "vips", "names"]


async def test_spares_are_dropped_before_their_network_goes() -> None:
    node = Node()
    put_network(node.network, "a")
    await node.apply()
    node.network.remove("network/a")
    assert await node.apply() == ["vacate a", "remove a", "configure firewall", "vips", "names"]
    put_network(node.network, "a", "100.64.1.0/24")
    assert await node.apply() == ["configure firewall", "configure a", "vips", "names"]


async def test_blocks_that_could_not_be_configured_are_vacated_all_the_same() -> None:
    """Part of it may be in the kernel, and spares with new addresses: the next blocks are others again."""
    node = Node()
    put_network(node.network, "a")
    await node.apply()
    put_network(node.network, "a", "100.64.1.0/24")
    node.driver.failing = {"configure a"}
    await node.apply()
    assert node.driver.log == ["configure firewall", "vacate a", "configure a", "vips", "names"]
    node.driver.failing = set()
    put_network(node.network, "a")
    assert await node.apply() == ["configure firewall", "vacate a", "configure a", "vips", "names"]


async def test_spares_that_can_not_be_dropped_hold_up_their_network() -> None:
    node = Node()
    put_network(node.network, "a")
    await node.apply()
    put_network(node.network, "a", "100.64.1.0/24")
    node.driver.failing = {"vacate a"}
    assert await node.network.apply() == ["vacate a: not possible"]
    assert node.driver.configured["a"].blocks[0].subnet == ip_network("100.64.0.0/24")
    node.driver.failing = set()
    assert await node.apply() == ["vacate a", "configure a"]


async def test_no_network_comes_up_that_the_firewall_does_not_guard() -> None:
    node = Node()
    put_network(node.network, "a")
    node.driver.failing = {"configure firewall"}
    assert await node.apply() == ["configure firewall", "vips", "names"]
    node.driver.failing = set()
    assert await node.apply() == ["configure firewall", "configure a"]


async def test_what_is_put_during_apply_is_for_the_next_time() -> None:
    node = Node()
    put_network(node.network, "a")
    node.driver.gate.clear()
    applying = asyncio.create_task(node.network.apply())
    await until(lambda: node.driver.log == ["configure firewall"])
    node.network.put_peer(peer("a", "n2"))
    node.driver.gate.set()
    await applying
    await node.apply()
    assert len(node.driver.configured["a"].peers) == 1


KEYS = ("network/a", "network/b", "peer/a/n2", "peer/b/n2", f"vip/{vip(80).key}", f"vip/{vip(81).key}", "name/web.1")
FAILING = ("configure a", "remove b", "vips", "names", "validate b")
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "remove"]), st.sampled_from(KEYS)),
        st.tuples(st.just("keep"), st.sets(st.sampled_from(KEYS))),
        st.tuples(st.just("fail"), st.sets(st.sampled_from(FAILING))),
        st.tuples(st.just("apply"), st.none()),
    ),
    max_size=25,
)


def put(network: NodeNetwork, key: str) -> None:
    kind, _, rest = key.partition("/")
    match kind:
        case "network":
            put_network(network, rest)
        case "peer":
            network.put_peer(peer(rest.split("/")[0], rest.split("/")[1]))
        case "vip":
            network.put_vip(vip(int(rest.split(":")[1].split("/")[0])))
        case "name":
            network.put_name(named(rest))


async def check(history: list[tuple[str, object]]) -> None:
    node = Node()
    wanted: set[str] = set()
    for step in history:
        match step:
            case ("put", str(key)):
                wanted.add(key)
                put(node.network, key)
            case ("remove", str(key)):
                wanted.discard(key)
                node.network.remove(key)
            case ("keep", set(keys)):
                wanted &= keys
                node.network.keep_only(keys)
            case ("fail", set(names)):
                node.driver.failing = names
            case _:
                await node.network.apply()
    node.driver.failing = set()
    node.network.keep_only(wanted)
    assert await node.network.apply() == []
    assert {f"network/{name}" for name in node.driver.configured} == {key for key in wanted if "network/" in key}
    for name, spec in node.driver.configured.items():
        assert {f"peer/{name}/{p.node}" for p in spec.peers} == {key for key in wanted if f"peer/{name}/" in key}
    assert node.vips.table is not None
    assert {f"vip/{key}" for key in node.vips.table.vips} == {key for key in wanted if "vip/" in key}
    assert node.names.table is not None
    assert node.names.table.things.keys() == {key for key in wanted if key.startswith(("vip/", "name/"))}


@given(steps)
def test_the_kernel_has_what_is_wanted_in_the_end(history: list[tuple[str, object]]) -> None:
    asyncio.run(check(history))
