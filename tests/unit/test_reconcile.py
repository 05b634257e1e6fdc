"""The difference between what a node's links should be and what they are: least, ordered, and complete."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from model.network import Block, Network, NetworkKind, Vtep
from netns.driver import NetworkSpec
from netns.overlay.vxlan import overlay_mtu, overlay_state
from netns.reconcile import State, diff

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


def test_overhead() -> None:
    assert overlay_mtu(1500, UNDERLAY) == 1450
    assert overlay_mtu(1500, ip_address("fd00::1")) == 1430
