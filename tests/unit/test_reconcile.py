"""The difference between what a node's links should be and what they are: least, ordered, and complete."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from model.network import Address, Block, Network, NetworkKind, Vtep
from netns.driver import NetworkSpec
from netns.overlay.vxlan import overlay_mtu, overlay_state, peers_state
from netns.reconcile import State, diff
from netns.vip_route import vip_routes

UNDERLAY = ip_address("192.0.2.1")
NETWORK = Network("prod", NetworkKind.OVERLAY, (ip_network("100.64.0.0/11"),), vni=1024)
OWN = Block("prod", "n1", ip_network("100.64.1.0/24"))


def peer(number: int, underlay: int | None = None) -> Vtep:
    block = Block("prod", f"n{number}", ip_network(f"100.64.{number}.0/24"))
    mac = f"02:00:00:00:00:{number:02x}"
    return Vtep(block.network, block.node, ip_address(f"192.0.2.{underlay or number}"), mac, (block,))


def state(*peers: Vtep, mtu: int = 1500) -> State:
    return overlay_state(NetworkSpec(NETWORK, (OWN,), peers), "n1", UNDERLAY, overlay_mtu(mtu, UNDERLAY))


def test_equal_is_nothing() -> None:
    assert diff(state(peer(2)), state(peer(2))).describe() == []


def test_from_nothing_routes_are_last_and_links_first() -> None:
    changes = diff(state(peer(2)), State())
    words = changes.describe()
    assert words[0].startswith("create bridge tg") and words[-1].startswith("add route 100.64.2.0/24 via 100.64.2.0")
    assert words.index("create vxlan tx1024") < words.index("set net/ipv4/conf/tx1024/forwarding to 1")
    assert words.index("set net/ipv4/conf/tx1024/forwarding to 1") < words.index("set tx1024 up")
    assert not changes.withdrawn


def test_peer_that_left_loses_its_route_first() -> None:
    assert diff(state(), state(peer(2))).describe() == [
        "remove route 100.64.2.0/24 via 100.64.2.0 dev tx1024",
        "remove neighbour 100.64.2.0 from tx1024",
        "remove forwarding entry 02:00:00:00:00:02 at 192.0.2.2 dev tx1024",
    ]


def test_moved_peer_is_replaced() -> None:
    assert diff(state(peer(2, underlay=9)), state(peer(2))).describe() == [
        "add forwarding entry 02:00:00:00:00:02 at 192.0.2.9 dev tx1024"
    ]


def test_mtu_is_changed_in_place() -> None:
    words = diff(state(mtu=1400), state(mtu=1500)).describe()
    assert len(words) == 2 and all(word.startswith("set t") and word.endswith("mtu 1350") for word in words)


def test_device_of_another_underlay_is_made_anew_with_all_its_entries() -> None:
    moved = overlay_state(NetworkSpec(NETWORK, (OWN,), (peer(2),)), "n1", ip_address("192.0.2.7"), 1450)
    anew = [word for word in diff(moved, State()).describe() if "tx1024" in word]
    assert diff(moved, state(peer(2))).describe() == ["remove link tx1024", *anew]


def test_down_link_is_set_up() -> None:
    actual = state()
    actual = replace(actual, links=frozenset(replace(link, up=False) for link in actual.links))
    assert len(diff(state(), actual).describe()) == 2


@given(st.sets(st.integers(2, 40)), st.sets(st.integers(2, 40)))
def test_costs_three_operations_a_peer_that_differs(before: set[int], after: set[int]) -> None:
    changes = diff(state(*map(peer, after)), state(*map(peer, before)))
    assert len(changes.describe()) == 3 * len(before ^ after)


SIX = Block("prod", "n1", ip_network("fd01:b:0:0:1::/80"))
SINGLES = (ip_address("100.64.99.1"), ip_address("fd01:b::99"))


def dual(number: int, *singles: Address) -> Vtep:
    own = peer(number)
    six = Block("prod", own.node, ip_network(f"fd01:b:0:0:{number:x}::/80"))
    return replace(own, blocks=(*own.blocks, six), singles=singles)


def test_of_a_peer_only_what_this_node_has_too() -> None:
    """Without a block of IPv6 here nobody could talk to those of another node."""
    four, both = (peers_state("tx1", [dual(2, *SINGLES)], own) for own in ((OWN,), (OWN, SIX)))
    assert {str(route.destination) for route in four.routes} == {"100.64.2.0/24", "100.64.99.1/32"}
    assert {str(route.destination): (str(route.via), str(route.source)) for route in both.routes} == {
        "100.64.2.0/24": ("100.64.2.0", "100.64.1.1"),
        "100.64.99.1/32": ("100.64.2.0", "100.64.1.1"),
        "fd01:b:0:0:2::/80": ("fd01:b:0:0:2::", "fd01:b::1:0:0:1"),
        "fd01:b::99/128": ("fd01:b:0:0:2::", "fd01:b::1:0:0:1"),
    }
    assert (len(four.neighbours), len(both.neighbours), len(both.fdb)) == (1, 2, 1)


@given(st.dictionaries(st.integers(2, 12), st.integers(2, 5)), st.dictionaries(st.integers(2, 12), st.integers(2, 5)))
def test_differing_peers_alone_give_the_same_as_all(before: dict[int, int], after: dict[int, int]) -> None:
    """A change is computed of the peers that differ, without what the kernel has."""
    old, new = ([peer(number, underlay) for number, underlay in each.items()] for each in (before, after))
    gone = peers_state("tx1024", [each for each in old if each not in new], (OWN,))
    came = peers_state("tx1024", [each for each in new if each not in old], (OWN,))
    assert diff(came, gone).describe() == diff(state(*new), state(*old)).describe()


def test_a_pool_has_one_route_by_an_overlay_with_a_block_of_its_version() -> None:
    pools = (ip_network("100.127.0.0/16"), ip_network("fd01:c::/112"))
    local = Network("a", NetworkKind.BRIDGE, (ip_network("10.0.0.0/8"),))
    bridge = NetworkSpec(local, (Block("a", "n1", ip_network("10.1.0.0/24")),))
    overlay = NetworkSpec(NETWORK, (OWN,))
    host = NetworkSpec(Network("host", NetworkKind.HOST), ())
    assert {route.source for route in vip_routes([host, bridge, overlay], pools)} == {OWN.gateway}
    both = vip_routes([bridge, replace(overlay, blocks=(OWN, SIX))], pools)
    assert {route.destination: route.source for route in both} == dict(
        zip(pools, (OWN.gateway, SIX.gateway), strict=True)
    )
    assert {route.source for route in vip_routes([host, bridge], pools)} == {ip_address("10.1.0.1")}
    assert vip_routes([host], pools) == frozenset()


def test_overhead() -> None:
    assert overlay_mtu(1500, UNDERLAY) == 1450
    assert overlay_mtu(1500, ip_address("fd00::1")) == 1430
