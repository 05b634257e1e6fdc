"""Which rules and elements a table means, and the least that makes one state of the kernel's table out of another."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from model.network import Network, NetworkKind
from model.policy import Policy, PortRange, Source
from model.task import Port, Protocol
from netns.driver import NetworkError
from netns.firewall.change import BASES, Ruleset, diff, exchange, load
from netns.firewall.listing import differences
from netns.firewall.nftables import NftFirewall
from netns.firewall.ruleset import app_chain, compile_rules, guest_elements, members_set, with_members, zone_chain
from netns.firewall.table import Entrance, Guest, Table, Zone
from netns.nft.listing import Listing, frame

PROD = Zone(
    Network("prod", NetworkKind.OVERLAY, (ip_network("100.64.0.0/16"), ip_network("fd01:b::/64")), vni=1024),
    (ip_network("100.64.1.0/24"), ip_network("100.64.9.7/32"), ip_network("fd01:b:0:0:1::/80")),
    "tx1024",
)
TEST = Zone(Network("test", NetworkKind.BRIDGE, (ip_network("10.9.0.0/16"),)), (ip_network("10.9.0.0/24"),))
WEB = Guest("web.1", "services/web", (ip_address("100.64.1.2"), ip_address("fd01:b:0:0:1::2")), (Port(80, host=8080),))
TABLE = Table((PROD, TEST), peers=frozenset({ip_address("192.0.2.2"), ip_address("2001:db8::2")}))
HTTP = (PortRange(Protocol.TCP, 80, 80), PortRange(Protocol.UDP, 5000, 5010))
EMPTY = Ruleset({}, {}, frozenset(), {})


def rules(*policies: Policy) -> Ruleset:
    return compile_rules(replace(TABLE, policies=policies))


def chain(ruleset: Ruleset, zone: Zone) -> tuple[str, ...]:
    return ruleset.chains[zone_chain(zone)]


def test_a_network_is_open_to_itself_and_closed_to_others() -> None:
    compiled = rules()
    assert chain(compiled, TEST)[0] == "ip saddr { 10.9.0.0/16 } accept"
    assert chain(compiled, TEST)[-1] == "goto refuse"
    assert [rule for rule in chain(compiled, TEST) if rule.endswith("accept") and "published" not in rule] == [
        "ip saddr { 10.9.0.0/16 } accept"
    ]
    assert "ip6 saddr { fd01:b::/64 } accept" in chain(compiled, PROD)


def test_a_networks_policy_adds_to_it() -> None:
    policy = Policy("p", network="prod", sources=(Source(network="test"),), ports=HTTP)
    compiled = rules(policy)
    assert "ip saddr { 10.9.0.0/16 } tcp dport 80 accept" in chain(compiled, PROD)
    assert "ip saddr { 10.9.0.0/16 } udp dport 5000-5010 accept" in chain(compiled, PROD)
    assert chain(compiled, TEST) == chain(rules(), TEST)


def test_an_apps_policies_are_all_that_lets_in() -> None:
    subnet = Source(subnet=ip_network("203.0.113.0/24"))
    compiled = rules(Policy("p", app="services/web", sources=(Source(app="jobs/x"), subnet), ports=HTTP[:1]))
    assert compiled.chains[app_chain("services/web")] == (
        f"ip saddr @{members_set('jobs/x', 4)} tcp dport 80 accept",
        f"ip6 saddr @{members_set('jobs/x', 6)} tcp dport 80 accept",
        "ip saddr { 203.0.113.0/24 } tcp dport 80 accept",
        "goto refuse",
    )
    assert compiled.guarded == {"services/web"}


@pytest.mark.parametrize("sources", [(), (Source(network="nobody"),)])
def test_who_is_not_there_is_let_in_by_nothing(sources: tuple[Source, ...]) -> None:
    assert rules(Policy("p", app="a/b", sources=sources)).chains[app_chain("a/b")] == ("goto refuse",)
    assert chain(rules(Policy("p", network="prod", sources=sources)), PROD) == chain(rules(), PROD)


def test_a_guest_is_elements_and_its_app_only_where_it_is_guarded() -> None:
    free = guest_elements(WEB, frozenset())
    assert ("publish4", "6 . 8080 : 100.64.1.2 . 80") in free
    assert ("publish6", "6 . 8080 : fd01:b::1:0:0:2 . 80") in free
    assert ("published_tcp4", "100.64.1.2 . 80 . 8080") in free
    guarded = guest_elements(WEB, frozenset({"services/web"}))
    assert {name for name, _ in guarded - free} == {"apps4", "apps6"}
    assert guest_elements(replace(WEB, ports=(Port(80),)), frozenset()) == {
        ("own4", "100.64.1.2 . 100.64.1.2"),
        ("own6", "fd01:b::1:0:0:2 . fd01:b::1:0:0:2"),
    }


def test_subnets_that_contain_each_other_are_one() -> None:
    local = (ip_network("10.9.0.0/24"), ip_network("10.9.0.7/32"), ip_network("10.9.1.0/24"))
    sets = compile_rules(Table((replace(TEST, local=local),))).sets
    assert sets["local4"].elements == {ip_network("10.9.0.0/23")}


def test_internal_networks_are_neither_masqueraded_nor_let_out() -> None:
    internal = replace(PROD, network=replace(PROD.network, internal=True))
    sets = compile_rules(Table((internal, TEST))).sets
    assert sets["internal6"].elements == {ip_network("fd01:b:0:0:1::/80")} and not sets["leaving6"].elements
    assert sets["leaving4"].elements == set(TEST.local)


def test_forged_overlay_packets_are_those_of_our_vnis_only() -> None:
    assert "udp dport 4789 @th,96,24 { 0x400 } goto outer" in rules().chains["forged"]
    assert not [rule for rule in compile_rules(Table((TEST,))).chains["forged"] if "4789" in rule]


def test_equal_tables_are_no_change() -> None:
    assert diff(rules(), rules()) == ""


def test_one_member_is_one_element() -> None:
    policies = (Policy("p", app="services/web", sources=(Source(app="jobs/x"),)),)
    first = replace(TABLE, policies=policies, members={"jobs/x": frozenset({ip_address("10.9.0.5")})})
    second = replace(first, members={"jobs/x": frozenset({ip_address("10.9.0.6")})})
    before = compile_rules(first)
    after = with_members(second, before)
    assert after == compile_rules(second)
    name = members_set("jobs/x", 4)
    assert diff(before, after).splitlines() == [
        f"delete element inet tepui {name} {{ 10.9.0.5 }}",
        f"add element inet tepui {name} {{ 10.9.0.6 }}",
    ]


def test_a_change_of_policy_touches_one_chain() -> None:
    before, after = rules(), rules(Policy("p", network="test", sources=(Source(network="prod"),)))
    commands = diff(before, after).splitlines()
    assert {command.split()[4] for command in commands} == {zone_chain(TEST)}
    assert commands[0] == f"flush chain inet tepui {zone_chain(TEST)}"


def test_a_policy_that_goes_takes_its_chain_after_who_referred_to_it() -> None:
    policy = Policy("p", app="services/web", sources=(Source(app="jobs/x"),))
    before, after = rules(policy), rules()
    gone = guest_elements(WEB, before.guarded) - guest_elements(WEB, after.guarded)
    commands = diff(before, after, gone=gone).splitlines()
    name = app_chain("services/web")
    assert commands.index("delete element inet tepui apps4 { 100.64.1.2 }") < commands.index(
        f"delete chain inet tepui {name}"
    )
    assert commands[-2:] == [f"delete set inet tepui {members_set('jobs/x', version)}" for version in (4, 6)]


def test_loading_replaces_whatever_is_there() -> None:
    text = load(rules(), guest_elements(WEB, frozenset()))
    assert text.startswith("add table inet tepui\n")
    assert all(f"add chain inet tepui {name} {{ {hook} }}" in text for name, hook in BASES.items())
    assert text.index("add map inet tepui zones4") < text.index("add element inet tepui zones4")


def test_guests_change_by_elements() -> None:
    moved = replace(WEB, ports=(Port(81, host=8080),))
    old, new = guest_elements(WEB, frozenset()), guest_elements(moved, frozenset())
    commands = exchange(old - new, new - old).splitlines()
    assert commands[0] == "delete element inet tepui publish4 { 6 . 8080 }"
    assert "add element inet tepui publish4 { 6 . 8080 : 100.64.1.2 . 81 }" in commands
    assert not any("own4" in command for command in commands)


def test_a_listing_is_compared_by_handles_and_elements() -> None:
    ruleset = Ruleset({}, {"s": compile_rules(TABLE).sets["peers4"]}, frozenset(), {})
    rule: dict[str, Any] = {"rule": {"chain": "c", "handle": 7, "expr": []}}
    good: Listing = [{"metainfo": {}}, {"set": {"name": "s", "elem": ["192.0.2.2"]}}, rule]
    assert differences(good, frame(good), ruleset, ()) == []
    remade: Listing = [*good[:2], {"rule": {"chain": "c", "handle": 9, "expr": []}}]
    assert differences(remade, frame(good), ruleset, ()) == ["chain c was changed"]
    other: Listing = [good[0], {"set": {"name": "s", "elem": [{"prefix": {"addr": "10.0.0.0", "len": 8}}]}}, rule]
    assert differences(other, frame(good), ruleset, ()) == [
        "s had 1 elements that are not ours",
        "s lacked 1 of 1 elements",
    ]


@pytest.mark.anyio
async def test_a_port_that_is_published_already_is_refused_by_name() -> None:
    firewall = NftFirewall()
    await firewall.admit(WEB)
    other = Guest("api.1", "services/api", (ip_address("10.9.0.9"),), (Port(1, host=8080),))
    with pytest.raises(NetworkError, match="admit api.1: port 8080/tcp of the node is published by web.1"):
        await firewall.admit(other)
    await firewall.admit(WEB)
    await firewall.admit(replace(other, ports=(Port(1, protocols=(Protocol.UDP,), host=8080),)))
    twice = replace(other, ports=(Port(1, host=9), Port(2, host=9)))
    with pytest.raises(NetworkError, match="port 9/tcp of the node is published by api.1"):
        await firewall.admit(twice)
    with pytest.raises(NetworkError, match="published by web.1"):
        await firewall.recover((WEB, replace(other, ports=WEB.ports)))


def test_nobody_comes_in_but_through_an_entrance() -> None:
    closed, opened = compile_rules(TABLE), compile_rules(replace(TABLE, entrances=frozenset()))
    assert not [name for name in closed.sets if name.startswith("external")]
    assert not any("external" in rule for rules in closed.chains.values() for rule in rules)
    assert {name for name in opened.sets if name.startswith("external")} == {
        f"external_{protocol}{version}" for protocol in ("tcp", "udp") for version in (4, 6)
    }
    forward = list(opened.chains["forward"])
    (refused,) = (place for place, rule in enumerate(forward) if "@remote4 goto refuse" in rule)
    assert all(forward.index(rule) < refused for rule in forward if "@external" in rule)
    entrances = frozenset({Entrance(ip_address("100.127.0.1"), 53, Protocol.UDP)})
    sets = compile_rules(replace(TABLE, entrances=entrances)).sets
    assert sets["external_udp4"].elements == {"100.127.0.1 . 53"} and not sets["external_tcp4"].elements
