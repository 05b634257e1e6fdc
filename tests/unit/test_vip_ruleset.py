"""The rules that a table of VIPs means, walked as the kernel would walk them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.task import Protocol
from model.vip import Backend, Vip
from netns.iptables.plan import Actual, Wanted, diff
from netns.iptables.rule import NAME_MAX, Rule, Rules, chain_name, from_wire, jump, to_wire
from netns.vip.backend import Table
from netns.vip.ruleset import HOOKS, POST_ANCHOR, REFUSE_ANCHOR, VIP_ANCHOR, RuleSet, compile_rules

POOL = IPv4Network("100.127.0.0/16")
LOCAL = IPv4Network("100.64.1.0/24")
CLUSTER = IPv4Network("100.64.0.0/11")


def backend(address: str, weight: int = 1) -> Backend:
    return Backend(f"task-{address}", "node", IPv4Address(address), 8080, weight)


def vip(address: str, *backends: Backend, port: int = 80, protocol: Protocol = Protocol.TCP) -> Vip:
    return Vip(IPv4Address(address), port, protocol, f"/{address}", tuple(sorted(backends)))


def table(*vips: Vip) -> Table:
    return Table({row.key: row for row in vips}, (POOL,), (LOCAL,), (CLUSTER,))


def many(count: int) -> Table:
    return table(*(vip(str(POOL[1 + number]), backend(str(CLUSTER[2 + number]))) for number in range(count)))


def walk(rules: RuleSet, name: str, chain: str, src: str, dst: str, protocol: str, port: int) -> tuple[list[Rule], int]:
    """Every rule with a target extension that such a packet can meet in this order, and how many were compared."""
    met: list[Rule] = []
    compared = 0
    for rule in rules.chains[name][chain]:
        compared += 1
        if not matches(rule, src, dst, protocol, port):
            continue
        if rule.target.name in rules.chains[name]:
            below, more = walk(rules, name, rule.target.name, src, dst, protocol, port)
            met, compared = met + below, compared + more
        else:
            met.append(rule)
        if rule.target.name == "RETURN":
            break
    return met, compared


def matches(rule: Rule, src: str, dst: str, protocol: str, port: int) -> bool:
    inside = all(IPv4Address(at) in IPv4Network(net) for at, net in ((src, rule.src), (dst, rule.dst)) if net)
    ports = [value for match in rule.matches for key, value in match.options if key == "dport"]
    return inside and rule.protocol in ("", protocol) and ports in ([], [str(port)])


def found(
    rules: RuleSet, anchor: str, dst: str, port: int = 80, src: str = "100.64.9.9", protocol: str = "tcp"
) -> list[Rule]:
    name = "filter" if anchor == REFUSE_ANCHOR else "nat"
    return walk(rules, name, rules.anchors[name][anchor], src, dst, protocol, port)[0]


def destinations(rules: Iterable[Rule]) -> list[str]:
    return [dict(rule.target.options)["to-destination"] for rule in rules]


def shares(rules: Iterable[Rule]) -> list[float]:
    """How much of the traffic each of these rules gets."""
    rest, result = 1.0, []
    for rule in rules:
        odds = float(next((dict(m.options)["probability"] for m in rule.matches if m.name == "statistic"), "1"))
        result.append(rest * odds)
        rest -= rest * odds
    return result


def test_a_vip_leads_to_its_backends_and_nothing_else_does() -> None:
    rules = compile_rules(table(vip("100.127.3.7", backend("100.64.1.5"), backend("100.64.2.5"))))
    assert destinations(found(rules, VIP_ANCHOR, "100.127.3.7")) == ["100.64.1.5:8080", "100.64.2.5:8080"]
    assert found(rules, VIP_ANCHOR, "100.127.3.7", port=81) == []
    assert found(rules, VIP_ANCHOR, "100.127.3.7", protocol="udp") == []
    assert found(rules, VIP_ANCHOR, "100.127.3.8") == []
    assert found(rules, VIP_ANCHOR, "192.0.2.1") == []


def test_ports_and_protocols_of_one_address_are_apart() -> None:
    rules = compile_rules(
        table(
            vip("100.127.0.1", backend("100.64.1.5")),
            vip("100.127.0.1", backend("100.64.1.6"), port=81),
            vip("100.127.0.1", backend("100.64.1.7"), protocol=Protocol.UDP),
        )
    )
    assert destinations(found(rules, VIP_ANCHOR, "100.127.0.1")) == ["100.64.1.5:8080"]
    assert destinations(found(rules, VIP_ANCHOR, "100.127.0.1", port=81)) == ["100.64.1.6:8080"]
    assert destinations(found(rules, VIP_ANCHOR, "100.127.0.1", protocol="udp")) == ["100.64.1.7:8080"]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_each_backend_gets_its_weight(weights: list[int]) -> None:
    backends = [backend(str(CLUSTER[2 + number]), weight) for number, weight in enumerate(weights)]
    rules = found(compile_rules(table(vip("100.127.0.1", *backends))), VIP_ANCHOR, "100.127.0.1")
    total = sum(weights)
    expected = {f"{one.address}:8080": one.weight / total for one in backends if one.weight}
    assert dict(zip(destinations(rules), shares(rules), strict=True)) == pytest.approx(expected, abs=1e-6)


@given(st.sets(st.integers(1, 65534), max_size=200))
def test_every_vip_is_found_wherever_it_lies(numbers: set[int]) -> None:
    rows = [vip(str(POOL[number]), backend(str(CLUSTER[number]))) for number in numbers]
    rules = compile_rules(table(*rows))
    for row in rows:
        assert destinations(found(rules, VIP_ANCHOR, str(row.address))) == [f"{row.backends[0].address}:8080"]


def test_the_path_to_a_vip_does_not_grow_with_the_table() -> None:
    rules = compile_rules(many(20_000))
    last = str(POOL[20_000])
    _, compared = walk(rules, "nat", rules.anchors["nat"][VIP_ANCHOR], "100.64.9.9", last, "tcp", 80)
    assert compared <= 1 + 16 + 64 + 64 + 1


def test_a_vip_outside_of_the_pool_is_found_and_the_rest_of_its_address_left_alone() -> None:
    rules = compile_rules(table(vip("10.1.2.3", backend("100.64.1.5")), vip("10.1.2.4")))
    assert destinations(found(rules, VIP_ANCHOR, "10.1.2.3")) == ["100.64.1.5:8080"]
    assert found(rules, REFUSE_ANCHOR, "10.1.2.3") == []
    assert len(found(rules, REFUSE_ANCHOR, "10.1.2.4")) == 1
    assert found(rules, REFUSE_ANCHOR, "10.1.2.4", port=22) == []


def test_what_is_left_for_the_pool_is_refused() -> None:
    rules = compile_rules(table(vip("100.127.0.1")))
    assert found(rules, VIP_ANCHOR, "100.127.0.1") == []
    assert dict(found(rules, REFUSE_ANCHOR, "100.127.0.1")[0].target.options) == {"reject-with": "tcp-reset"}
    udp = found(rules, REFUSE_ANCHOR, "100.127.77.1", protocol="udp")
    assert dict(udp[0].target.options) == {"reject-with": "icmp-port-unreachable"}
    assert found(rules, REFUSE_ANCHOR, "100.64.1.5") == []


def test_only_a_container_that_reached_itself_loses_its_address() -> None:
    rules = compile_rules(table(vip("100.127.0.1", backend("100.64.1.5"), backend("100.64.2.5"))))
    own = found(rules, POST_ANCHOR, "100.64.1.5", src="100.64.1.5")
    assert own[0].target.name == "MASQUERADE"
    for source in ("100.64.1.6", "100.64.2.5"):
        assert [rule.target.name for rule in found(rules, POST_ANCHOR, "100.64.1.5", src=source)] in ([], ["RETURN"])
    assert not any(rule.src == "100.64.2.5/32" for chain in rules.chains["nat"].values() for rule in chain)


def test_masquerade_is_for_local_addresses_that_leave_the_cluster() -> None:
    rules = compile_rules(table())
    assert [rule.target.name for rule in found(rules, POST_ANCHOR, "192.0.2.1", src="100.64.1.5")] == ["MASQUERADE"]
    assert [rule.target.name for rule in found(rules, POST_ANCHOR, "100.64.7.1", src="100.64.1.5")] == ["RETURN"]
    assert found(rules, POST_ANCHOR, "192.0.2.1", src="100.64.7.1") == []


def test_equal_tables_have_equal_digests_in_any_order() -> None:
    rows = list(many(300).vips.values())
    assert compile_rules(table(*rows)) == compile_rules(table(*reversed(rows)))
    assert compile_rules(table(*rows)).digest == compile_rules(table(*reversed(rows))).digest
    assert compile_rules(table(*rows)).digest != compile_rules(table(*rows[1:])).digest


def test_one_vip_of_thousands_changes_one_path() -> None:
    before = compile_rules(many(5_000))
    rows = dict(many(5_000).vips)
    key = f"{POOL[4_000]}:80/tcp"
    rows[key] = replace(rows[key], backends=(backend("192.0.2.77"),))
    after = compile_rules(replace(many(0), vips=rows), before)
    # Root, pool, /20, /26 and the address.
    assert len(after.chains["nat"].keys() - before.chains["nat"].keys()) == 5
    assert len(before.chains["nat"].keys() - after.chains["nat"].keys()) == 5
    assert after.chains["filter"] == before.chains["filter"]


@given(st.sets(st.integers(1, 400), max_size=30), st.sets(st.integers(1, 400), max_size=30))
def test_what_was_compiled_before_makes_no_difference(old: set[int], new: set[int]) -> None:
    tables = [table(*(vip(str(POOL[n]), backend(str(CLUSTER[n * len(of)]))) for n in of)) for of in (old, new)]
    assert compile_rules(tables[1], compile_rules(tables[0])) == compile_rules(tables[1])


def test_names_fit_and_every_jump_has_its_chain() -> None:
    rules = compile_rules(many(500))
    for chains in rules.chains.values():
        targets = {rule.target.name for content in chains.values() for rule in content}
        assert all(target in chains for target in targets if target.startswith("TPV-"))
        assert all(len(chain) == NAME_MAX for chain in chains)
        assert chains.keys() - targets == chains.keys() & roots(rules)


def roots(rules: RuleSet) -> set[str]:
    return {root for anchors in rules.anchors.values() for root in anchors.values()}


@pytest.mark.parametrize(
    "row",
    [
        Vip(IPv6Address("fd01:c::1"), 80, Protocol.TCP, "/six"),
        Vip(IPv4Address("100.127.0.1"), 80, Protocol.TCP, "/six", (Backend("t", "n", IPv6Address("fd01:b::1"), 80),)),
    ],
)
def test_ipv6_is_refused_by_name(row: Vip) -> None:
    with pytest.raises(ValueError, match="/six"):
        compile_rules(table(row))


def test_a_rule_survives_the_pipe() -> None:
    rules = compile_rules(
        table(vip("100.127.0.1", backend("100.64.1.5"), backend("100.64.1.6"), backend("100.64.2.6")))
    )
    for chains in rules.chains.values():
        for content in chains.values():
            assert tuple(from_wire(to_wire(rule)) for rule in content) == content


# The difference between what is wanted and what is there.

LEAF_RULES: Rules = (jump("a"), jump("b"))
LEAF = chain_name(LEAF_RULES)
ROOT = chain_name((jump(LEAF),))
RULES: dict[str, Rules] = {ROOT: (jump(LEAF),), LEAF: LEAF_RULES}
WANTED = Wanted(frozenset(RULES), RULES, {VIP_ANCHOR: ROOT}, (("PREROUTING", VIP_ANCHOR),))
THERE = Actual({ROOT: 1, LEAF: 2}, {VIP_ANCHOR: ROOT}, {"PREROUTING": (VIP_ANCHOR, ""), "OUTPUT": ("",)})


def test_nothing_to_do() -> None:
    assert not diff(WANTED, THERE)
    assert not diff(Wanted(), Actual({}, {}, {"PREROUTING": ("", "")}))


def test_from_nothing() -> None:
    plan = diff(WANTED, Actual({}, {}, {"PREROUTING": ("",), "OUTPUT": ()}))
    assert set(plan.create) == {ROOT, LEAF, VIP_ANCHOR}
    assert set(plan.fill) == {ROOT, LEAF}
    assert (plan.hooks, plan.unhook, plan.delete) == (WANTED.hooks, (), ())


def test_an_emptied_chain_is_filled_where_it_is() -> None:
    plan = diff(WANTED, replace(THERE, sizes={ROOT: 1, LEAF: 0}))
    assert (plan.create, plan.fill, plan.delete) == ((), (LEAF,), ())


def test_a_jump_that_is_not_first_is_put_first_and_not_twice() -> None:
    plan = diff(WANTED, replace(THERE, hooks={"PREROUTING": ("", VIP_ANCHOR, "", VIP_ANCHOR), "OUTPUT": ()}))
    assert plan.unhook == (("PREROUTING", 3), ("PREROUTING", 1))
    assert plan.hooks == (("PREROUTING", VIP_ANCHOR),)


def test_removal_takes_chains_anchors_and_jumps() -> None:
    plan = diff(Wanted(), THERE)
    assert set(plan.delete) == {ROOT, LEAF, VIP_ANCHOR}
    assert (plan.unhook, plan.hooks) == ((("PREROUTING", 0),), ())


def test_every_anchor_has_a_hook() -> None:
    rules = compile_rules(table())
    for name, hooks in HOOKS.items():
        assert {anchor for _, anchor in hooks} == rules.anchors[name].keys()
