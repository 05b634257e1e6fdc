"""Who reaches whom, found out with packets: between containers, networks, nodes, and who is outside of all of them."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from model.network import Address, Network, NetworkKind
from model.policy import Policy, PortRange, Source
from model.task import Port, Protocol
from netns.driver import NetworkError
from netns.firewall.nftables import NftFirewall
from netns.firewall.table import Guest, Zone
from netns.nft.netfilter import Netfilter
from netns.nft.own import NftSession
from tests.kernel.namespaces import NetnsProcess, network_of, run
from tests.kernel.site import OPEN, REFUSED, SILENT, Container, Node, Site, ask_tcp, ask_udp, ping, site, tcp, udp

pytestmark = pytest.mark.anyio

BOTH = (Protocol.TCP, Protocol.UDP)
PROBES = {Protocol.TCP: tcp, Protocol.UDP: udp}


@pytest.fixture
async def lan(spawn: Callable[[], NetnsProcess], tmp_path: Path) -> AsyncIterator[Site]:
    async with site(spawn, tmp_path) as made:
        yield made


def only(protocol: Protocol, port: int) -> tuple[PortRange, ...]:
    return (PortRange(protocol, port, port),)


def listing(node: Node, *more: str) -> str:
    return node.host.run("nft", *more, "list", "ruleset")


async def test_containers_reach_their_own_network_and_no_other(lan: Site) -> None:
    one = await lan.container(lan.one, "web.1", "prod")
    near = await lan.container(lan.one, "db.1", "prod")
    far = await lan.container(lan.two, "db.2", "prod")
    others = [
        await lan.container(lan.one, "x.1", "dev"),
        await lan.container(lan.one, "x.2", "local"),
        await lan.container(lan.two, "x.3", "dev"),
    ]
    for friend in (near, far):
        for client, server in ((one, friend), (friend, one)):
            assert ask_tcp(client.pid, server.address, 80) == f"{client.address} 80"
            assert udp(client.pid, server.address, 81) == OPEN
            assert ping(client.pid, server.address) == OPEN
    for stranger in others:
        for client, server in ((one, stranger), (stranger, one)):
            assert tcp(client.pid, server.address, 80) == REFUSED
            assert udp(client.pid, server.address, 81) == REFUSED
            assert ping(client.pid, server.address) == REFUSED


async def test_ipv6_is_judged_as_ipv4_is(lan: Site) -> None:
    one = await lan.container(lan.one, "web.1", "prod")
    near = await lan.container(lan.one, "db.1", "prod")
    stranger = await lan.container(lan.one, "x.1", "dev")
    assert ask_tcp(one.pid, near.address6, 80) == f"{one.address6} 80"
    assert (udp(one.pid, near.address6, 80), ping(one.pid, near.address6)) == (OPEN, OPEN)
    for client, server in ((one, stranger), (stranger, one)):
        assert tcp(client.pid, server.address6, 80) == REFUSED
        assert udp(client.pid, server.address6, 80) == REFUSED
        assert ping(client.pid, server.address6) == REFUSED


POLICIES = (
    Policy("open-web", app="services/web", sources=(Source(app="services/client"),), ports=only(Protocol.TCP, 80)),
    Policy("closed", app="services/vault"),
    Policy("dev-in", network="prod", sources=(Source(network="dev"),), ports=only(Protocol.UDP, 81)),
    Policy("all-in", network="local", sources=(Source(network="prod"), Source(app="services/client"))),
)


def expected(client: Container, to: str, network: str, protocol: Protocol, port: int) -> str:
    """The truth table: what POLICIES say of a connection to a container of the app `to` in `network`."""
    app, home = client.guest.app, client.guest.container.partition("@")[2]
    if to == "services/web":
        return OPEN if app == "services/client" and (protocol, port) == (Protocol.TCP, 80) else REFUSED
    if to == "services/vault":
        return REFUSED
    if home == network:
        return OPEN
    if network == "prod":
        return OPEN if home == "dev" and (protocol, port) == (Protocol.UDP, 81) else REFUSED
    return OPEN if network == "local" and (home == "prod" or app == "services/client") else REFUSED


async def test_policies_are_the_truth_table(lan: Site) -> None:
    """Every pair of containers, with both protocols, to two ports: on one node, and those of overlays across two."""
    names = (
        "web.1@prod",
        "client.1@prod",
        "other.1@prod",
        "vault.1@dev",
        "client.2@dev",
        "other.2@dev",
        "other.3@local",
    )
    here = [await lan.container(lan.one, name, name.partition("@")[2]) for name in names]
    away = [await lan.container(lan.two, name, name.partition("@")[2]) for name in ("client.9@dev", "other.9@prod")]
    clients = frozenset(
        address for each in (*here, *away) if each.guest.app == "services/client" for address in each.guest.addresses
    )
    await lan.guard(policies=POLICIES, members={"services/client": clients})
    wrong = []
    for client in (*here, *away):
        for server in here:
            overlaid = client in here or server.guest.container.partition("@")[2] != "local"
            if client is server or not overlaid:
                continue
            for protocol in BOTH:
                for port in (80, 81):
                    want = expected(client, server.guest.app, server.guest.container.partition("@")[2], protocol, port)
                    got = PROBES[protocol](client.pid, server.address, port)
                    # The kernel says no more than some refusals in a row: ip-sysctl.rst, icmp_msgs_per_sec.
                    said = REFUSED if (got, protocol) == (SILENT, Protocol.UDP) else got
                    if said != want:
                        wrong.append((client.guest.container, server.guest.container, protocol, port, got, want))
    assert wrong == []
    await lan.guard(policies=(), members={})
    assert tcp(here[2].pid, here[0].address, 81) == OPEN  # no policy any more: prod to prod


async def test_members_come_and_go(lan: Site) -> None:
    web = await lan.container(lan.one, "web.1", "prod")
    client = await lan.container(lan.two, "client.1", "prod")
    await lan.guard(policies=POLICIES[:1])
    assert tcp(client.pid, web.address, 80) == REFUSED
    await lan.guard(members={"services/client": frozenset({client.address})})
    assert tcp(client.pid, web.address, 80) == OPEN
    await lan.guard(members={"services/client": frozenset()})
    assert tcp(client.pid, web.address, 80) == REFUSED


async def test_a_connection_that_was_let_in_stays(lan: Site) -> None:
    web = await lan.container(lan.one, "web.1", "prod", serves=False)
    client = await lan.container(lan.one, "client.1", "prod", serves=False)
    with network_of(web.pid):
        listener = socket.create_server((str(web.address), 80))
    with network_of(client.pid):
        stream = socket.create_connection((str(web.address), 80), timeout=3)
    with listener, stream:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(3)
            await lan.guard(policies=(Policy("closed", app="services/web"),))
            assert tcp(client.pid, web.address, 80) == REFUSED
            stream.sendall(b"still here")
            assert connection.recv(100) == b"still here"


async def test_the_node_reaches_its_containers_whatever_policies_say(lan: Site) -> None:
    web = await lan.container(lan.one, "web.1", "prod")
    await lan.guard(policies=(Policy("closed", app="services/web"),))
    assert ask_tcp(lan.one.pid, web.address, 80) == "100.64.1.1 80"
    assert udp(lan.one.pid, web.address, 80) == OPEN
    assert tcp(lan.two.pid, web.address, 80) == REFUSED


async def test_containers_reach_nothing_of_the_node_but_names_and_echo(lan: Site) -> None:
    lan.serve(lan.one.pid, 22, 53)
    lan.serve(lan.two.pid, 22)
    client = await lan.container(lan.one, "web.1", "prod")
    far = await lan.container(lan.two, "web.2", "prod")
    gateway = lan.one.block("prod").gateway
    for asking in (client, far):
        assert (tcp(asking.pid, gateway, 53), udp(asking.pid, gateway, 53)) == (OPEN, OPEN)
        assert ping(asking.pid, gateway) == OPEN
        assert (tcp(asking.pid, gateway, 22), udp(asking.pid, gateway, 22)) == (REFUSED, REFUSED)
    for address in (lan.one.host.address, lan.one.host.address6):
        assert tcp(client.pid, address, 22) == REFUSED
        assert tcp(client.pid, address, 53) == REFUSED
        assert ping(client.pid, address) == REFUSED
    assert tcp(lan.outside.process.pid, lan.one.host.address, 22) == OPEN  # others' business


async def test_metadata_addresses_are_refused(lan: Site) -> None:
    """Also when the node has a way there, and when it has the address itself."""
    client = await lan.container(lan.one, "web.1", "prod")
    lan.serve(lan.outside.process.pid, 80)
    for host, dev in ((lan.outside, "card"), (lan.one.host, "lo")):
        host.run("ip", "addr", "add", "169.254.169.254/32", "dev", dev)
        host.run("ip", "addr", "add", "fd00:ec2::254/128", "dev", dev, "nodad")
        if host is lan.outside:
            lan.one.host.run("ip", "route", "add", "169.254.169.254", "via", str(host.address))
            lan.one.host.run("ip", "route", "add", "fd00:ec2::254", "via", str(host.address6))
            assert tcp(lan.one.pid, "169.254.169.254", 80) == OPEN
        assert tcp(client.pid, "169.254.169.254", 80) == REFUSED
        assert udp(client.pid, "fd00:ec2::254", 80) == REFUSED


async def test_nothing_leaves_an_internal_network(lan: Site) -> None:
    lan.serve(lan.outside.process.pid, 80)
    client = await lan.container(lan.one, "web.1", "prod")
    peer = await lan.container(lan.two, "web.2", "prod")
    free = await lan.container(lan.one, "web.3", "dev")
    await lan.guard(internal=("prod",))
    for address in (lan.outside.address, lan.outside.address6):
        assert tcp(client.pid, address, 80) == REFUSED
    assert tcp(client.pid, peer.address, 80) == OPEN
    assert ask_tcp(free.pid, lan.outside.address6, 80) == f"{lan.one.host.address6} 80"  # masqueraded


async def test_published_ports_lead_to_the_container(lan: Site) -> None:
    web = await lan.container(lan.one, "web.1", "prod", Port(80, host=8080, protocols=BOTH))
    stranger = await lan.container(lan.one, "x.1", "dev")
    for address, own, seen in (
        (lan.one.host.address, lan.outside.address, web.address),
        (lan.one.host.address6, lan.outside.address6, web.address6),
    ):
        assert ask_tcp(lan.outside.process.pid, address, 8080) == f"{own} 80"
        assert ask_udp(lan.outside.process.pid, address, 8080) == f"{own} 80"
        assert tcp(lan.one.pid, address, 8080) == OPEN  # from the node itself
        assert tcp(stranger.pid, address, 8080) == OPEN
        assert tcp(stranger.pid, seen, 80) == REFUSED  # but not past it
        assert ask_tcp(web.pid, address, 8080).endswith(" 80")  # to itself
        assert udp(web.pid, address, 8080) == OPEN
        assert tcp(lan.outside.process.pid, address, 8081) == REFUSED
    assert tcp(lan.one.pid, "127.0.0.1", 8080) == REFUSED
    assert tcp(lan.one.pid, "::1", 8080) == REFUSED
    await lan.one.dismiss(web)
    assert tcp(lan.outside.process.pid, lan.one.host.address, 8080) == REFUSED


async def test_one_port_may_be_ones_with_tcp_and_anothers_with_udp(lan: Site) -> None:
    await lan.container(lan.one, "web.1", "prod", Port(80, host=8080))
    await lan.container(lan.one, "dns.1", "dev", Port(81, host=8080, protocols=(Protocol.UDP,)))
    assert ask_tcp(lan.outside.process.pid, lan.one.host.address, 8080).endswith(" 80")
    assert ask_udp(lan.outside.process.pid, lan.one.host.address, 8080).endswith(" 81")


async def test_a_port_that_is_taken_is_refused_and_stays_where_it_was(lan: Site) -> None:
    await lan.container(lan.one, "web.1", "prod", Port(80, host=8080))
    other = await lan.container(lan.one, "api.1", "dev")
    with pytest.raises(NetworkError, match="admit api.1: port 8080/tcp of the node is published by web.1"):
        await lan.one.admit(other, Port(81, host=8080))
    assert ask_tcp(lan.outside.process.pid, lan.one.host.address, 8080).endswith(" 80")


async def test_an_apps_policy_says_also_who_reaches_its_published_port(lan: Site) -> None:
    web = await lan.container(lan.one, "web.1", "prod", Port(80, host=8080))
    client = await lan.container(lan.one, "client.1", "dev")
    closed = Policy("p", app="services/web", sources=(Source(subnet=ip_network("198.51.100.0/24")),))
    await lan.guard(policies=(closed,))
    for pid in (lan.outside.process.pid, client.pid):
        assert tcp(pid, lan.one.host.address, 8080) == REFUSED
    assert tcp(web.pid, lan.one.host.address, 8080) == OPEN  # itself
    await lan.guard(policies=(replace(closed, sources=(Source(subnet=ip_network("192.0.2.9/32")),)),))
    assert tcp(lan.outside.process.pid, lan.one.host.address, 8080) == OPEN
    assert tcp(client.pid, lan.one.host.address, 8080) == REFUSED
    await lan.guard(policies=(replace(closed, sources=(Source(network="dev"),)),))
    assert tcp(lan.outside.process.pid, lan.one.host.address, 8080) == REFUSED
    assert tcp(client.pid, lan.one.host.address, 8080) == OPEN


async def test_publishing_port_53_does_not_take_the_name_servers_place(lan: Site) -> None:
    lan.serve(lan.one.pid, 53)
    await lan.container(lan.one, "dns.1", "prod", Port(80, host=53, protocols=BOTH))
    client = await lan.container(lan.one, "web.1", "prod")
    assert ask_udp(client.pid, lan.one.block("prod").gateway, 53).endswith(" 53")
    assert ask_udp(lan.outside.process.pid, lan.one.host.address, 53).endswith(" 80")


async def test_connections_to_a_container_that_is_gone_are_forgotten(lan: Site) -> None:
    """A client that goes on sending from one port reaches whoever has the port now."""
    first = await lan.container(lan.one, "web.1", "prod", Port(80, host=8080, protocols=(Protocol.UDP,)))
    second = await lan.container(lan.one, "web.2", "prod")
    with lan.outside.inside():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.settimeout(3)
        sender.connect((str(lan.one.host.address), 8080))
        sender.send(b"?")
        assert sender.recv(100).endswith(b" 80")
        await lan.one.dismiss(first)
        await lan.one.admit(second, Port(81, host=8080, protocols=(Protocol.UDP,)))
        sender.send(b"?")
        assert sender.recv(100).endswith(b" 81")


async def test_the_node_reaches_vips_of_other_networks_on_other_nodes(lan: Site) -> None:
    """With the address of the first network to a container of the second: as one of the second."""
    far = await lan.container(lan.two, "web.1", "prod")
    with lan.one.host.inside():
        await lan.one.networks.configure_vip_route((ip_network("100.127.0.0/16"),))
    rule = f"OUTPUT -d 100.127.0.1 -p tcp -j DNAT --to-destination {far.address}"
    lan.one.host.run("iptables-legacy", "-t", "nat", "-A", *rule.split())
    assert lan.one.host.run("ip", "route", "get", "100.127.0.1").split("src ")[1].startswith("100.65.1.1")
    assert ask_tcp(lan.one.pid, "100.127.0.1", 80) == "100.64.1.0 80"


async def test_vips_are_judged_by_where_they_lead(lan: Site) -> None:
    web = await lan.container(lan.one, "web.1", "prod")
    friend = await lan.container(lan.one, "web.2", "prod")
    stranger = await lan.container(lan.one, "x.1", "dev")
    rule = f"PREROUTING -d 100.127.0.1 -p tcp -j DNAT --to-destination {web.address}"
    lan.one.host.run("iptables-legacy", "-t", "nat", "-A", *rule.split())
    assert ask_tcp(friend.pid, "100.127.0.1", 80) == f"{friend.address} 80"
    assert tcp(stranger.pid, "100.127.0.1", 80) == REFUSED


@pytest.mark.parametrize("harm", ["flush ruleset", "delete table inet tepui", "flush chain inet tepui forward"])
async def test_what_others_break_is_mended_and_said_once(lan: Site, harm: str) -> None:
    one = await lan.container(lan.one, "web.1", "prod", Port(80, host=8080))
    stranger = await lan.container(lan.one, "x.1", "dev")
    good = listing(lan.one)
    lan.one.host.run("nft", *harm.split())
    assert tcp(stranger.pid, one.address, 80) == OPEN  # or there would be nothing to mend
    assert len(await lan.one.mend()) == 1
    assert listing(lan.one) == good
    assert tcp(stranger.pid, one.address, 80) == REFUSED
    assert await lan.one.mend() == []


async def test_a_single_element_or_rule_that_others_change_is_found(lan: Site) -> None:
    one = await lan.container(lan.one, "web.1", "prod")
    good = listing(lan.one)
    for harm in (
        f"delete element inet tepui own4 {{ {one.address} . {one.address} }}",
        "add element inet tepui peers4 { 192.0.2.77 }",
        "insert rule inet tepui forward accept",
        "add chain inet tepui theirs",
        "delete element inet tepui zones4 { 100.64.1.0/24 }",
    ):
        lan.one.host.run("nft", harm)
        assert len(await lan.one.mend()) == 1, harm
        assert listing(lan.one) == good


async def test_others_tables_stay_and_their_changes_are_no_reason_to_write(lan: Site) -> None:
    lan.one.host.run("nft", "add table inet theirs; add chain inet theirs c; add rule inet theirs c counter")
    await lan.container(lan.one, "web.1", "prod")
    before = listing(lan.one, "-a")
    assert await lan.one.mend() == []
    assert listing(lan.one, "-a") == before  # handles too: nothing was written
    with lan.one.host.inside():
        await lan.one.firewall.remove()
    assert listing(lan.one).startswith("table inet theirs {") and "tepui" not in listing(lan.one)


async def test_a_table_that_vanished_is_there_again_with_the_next_change(lan: Site) -> None:
    one = await lan.container(lan.one, "web.1", "prod")
    lan.one.host.run("nft", "flush", "ruleset")
    stranger = await lan.container(lan.one, "x.1", "dev")
    assert tcp(stranger.pid, one.address, 80) == REFUSED
    assert await lan.one.mend() == []


async def test_to_configure_the_same_again_is_no_transaction(lan: Site) -> None:
    web = await lan.container(lan.one, "web.1", "prod", Port(80, host=8080))
    with lan.one.host.inside(), closing(Netfilter()) as netfilter:
        before = netfilter.generation()
        await lan.one.guard(lan.two)
        await lan.one.admit(web, Port(80, host=8080))
        assert netfilter.generation() == before
        await lan.one.dismiss(web)
        assert netfilter.generation() == before + 1


async def test_a_large_table_is_what_the_kernel_says_that_it_has(host_netns: None) -> None:
    """Blocks beside each other and single addresses too: nft must not say them in another way than we do."""
    zones = tuple(_many(number) for number in range(1, 51))
    peers = frozenset(ip_address("203.0.112.0") + number for number in range(1000))
    members = {"services/client": frozenset(ip_address("10.1.0.0") + number for number in range(5000))}
    firewall = NftFirewall()
    await firewall.configure(zones, POLICIES, members, peers)
    for number in range(100):
        addresses = (ip_address("10.1.1.0") + number, ip_address("fd01:b:1:0:1::") + number)
        await firewall.admit(Guest(f"web.{number}", "services/web", addresses, (Port(80, host=9000 + number),)))
    run("nft", "add table inet theirs")
    assert await firewall.mend() == []
    await firewall.configure(zones[1:], POLICIES[1:], {}, peers)
    run("nft", "delete table inet theirs")
    assert await firewall.mend() == []
    await firewall.remove()
    assert run("nft", "list", "ruleset") == ""


def _many(number: int) -> Zone:
    subnets = (ip_network(f"10.{number}.0.0/16"), ip_network(f"fd01:b:{number:x}::/64"))
    local = [f"10.{number}.{block}.0/24" for block in (1, 2, 3)] + [f"10.{number}.9.{one}" for one in (1, 2, 255)]
    local += [f"fd01:b:{number:x}:0:{block}::/80" for block in (1, 2)] + [f"fd01:b:{number:x}::7"]
    network = Network(f"net{number}", NetworkKind.OVERLAY, subnets, vni=2000 + number)
    return Zone(network, tuple(map(ip_network, local)), f"tx{2000 + number}")


async def test_after_a_restart_the_old_table_guards_until_the_new_is_known(lan: Site) -> None:
    one = await lan.container(lan.one, "web.1", "prod", Port(80, host=8080))
    stranger = await lan.container(lan.one, "x.1", "dev")
    good = listing(lan.one)
    lan.one.firewall = NftFirewall()
    with lan.one.host.inside():
        await lan.one.firewall.recover((one.guest, stranger.guest))
    assert listing(lan.one) == good
    assert await lan.one.mend() == []
    await lan.one.guard(lan.two)
    assert listing(lan.one) == good
    assert tcp(stranger.pid, one.address, 80) == REFUSED
    assert ask_tcp(lan.outside.process.pid, lan.one.host.address, 8080).endswith(" 80")


async def test_recover_forgets_who_is_not_named(lan: Site) -> None:
    one = await lan.container(lan.one, "web.1", "prod", Port(80, host=8080))
    other = await lan.container(lan.one, "web.2", "prod")
    with lan.one.host.inside():
        await lan.one.firewall.recover((other.guest,))
    assert tcp(lan.outside.process.pid, lan.one.host.address, 8080) == REFUSED
    assert str(one.address) + " . " not in listing(lan.one)


async def test_what_nft_refuses_changes_nothing_and_names_the_operation(lan: Site) -> None:
    one = await lan.container(lan.one, "web.1", "prod", Port(80, host=8080))
    before = listing(lan.one)
    overlapping = Guest("x.1", "services/x", (one.address,), (Port(99, host=70000),))
    with lan.one.host.inside(), pytest.raises(NetworkError, match="nftables: .*70000"):
        await lan.one.firewall.admit(overlapping)
    assert listing(lan.one) == before
    await lan.one.admit(one, Port(80, host=8081))
    assert ask_tcp(lan.outside.process.pid, lan.one.host.address, 8081).endswith(" 80")


async def test_who_has_many_files_open_opens_it_before(host_netns: None) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    session = NftSession()
    early, late = NftFirewall(session), NftFirewall()
    session.open()
    zone = Zone(Network("prod", NetworkKind.BRIDGE, (ip_network("10.9.0.0/16"),)), (ip_network("10.9.1.0/24"),))
    with ExitStack() as files:
        try:
            for _ in range(1100):
                files.enter_context(open(os.devnull))  # noqa: ASYNC230 - that it stays open is what matters
            await early.configure((zone,), (), {}, frozenset())
            await early.admit(Guest("web", "prod", (ip_address("10.9.1.2"),)))
            with pytest.raises(NetworkError, match="open nftables: the library can not use a descriptor above 1023"):
                await late.configure((zone,), (), {}, frozenset())
            await early.remove()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_removed_nothing_is_left(lan: Site) -> None:
    await lan.container(lan.one, "web.1", "prod", Port(80, host=8080))
    for _ in range(2):
        with lan.one.host.inside():
            await lan.one.firewall.remove()
        assert listing(lan.one) == ""
    fresh: Address = lan.one.host.address
    await lan.one.guard(lan.two)
    assert "table inet tepui" in listing(lan.one)
    assert tcp(lan.outside.process.pid, fresh, 8080) == REFUSED


async def test_what_neither_comes_from_nor_goes_to_containers_is_left_to_others(lan: Site) -> None:
    """A node that routes for others, by others' doing, goes on doing so."""
    behind = lan.spawn()
    lan.one.host.run("ip", "link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", str(behind.pid))
    lan.one.host.run("ip", "addr", "add", "198.51.100.1/24", "dev", "lan")
    lan.one.host.run("ip", "link", "set", "lan", "up")
    lan.one.host.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    behind.run("ip", "addr", "add", "198.51.100.2/24", "dev", "lan")
    behind.run("ip", "link", "set", "lan", "up")
    behind.run("ip", "route", "add", "default", "via", "198.51.100.1")
    lan.outside.run("ip", "route", "add", "198.51.100.0/24", "via", str(lan.one.host.address))
    lan.serve(behind.pid, 80)
    assert tcp(lan.outside.process.pid, "198.51.100.2", 80) == OPEN
