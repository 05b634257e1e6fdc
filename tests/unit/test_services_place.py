"""Placement and back-off: pure functions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frameworks.services.backoff import STABLE_S, Backoff, Failure, delay, failed
from frameworks.services.constraints import Constraint
from frameworks.services.definition import Definition
from frameworks.services.place import Demand, Plan, place
from frameworks.services.refusals import explain, reason
from master.offers import Offer
from model.resources import Resources
from tests.unit.cluster import node

NETWORKS = frozenset({"overlay"})


def offer(name: str, cpus: int, mem: int = 1000) -> Offer:
    return Offer(f"offer-{name}", node(name), Resources(cpus, mem), NETWORKS)


def demand(app: str, count: int, cpus: int = 100, mem: int = 10, network: str = "overlay") -> Demand:
    return Demand(app, Resources(cpus, mem), (network,), count)


def nodes(plan: Plan, app: str) -> Counter[str]:
    return Counter(placement.offer.node.id for placement in plan.placements if placement.app == app)


def test_fewest_of_the_app_first() -> None:
    plan = place([demand("/a", 3)], [offer("n1", 4000), offer("n2", 400)], {("/a", "n1"): 2, ("/b", "n2"): 9})
    assert nodes(plan, "/a") == {"n2": 2, "n1": 1} and plan.refusals == ()


def test_then_the_most_free() -> None:
    plan = place([demand("/a", 1)], [offer("n1", 400), offer("n2", 800), offer("n3", 500)], {})
    assert nodes(plan, "/a") == {"n2": 1}


def test_apps_take_turns() -> None:
    plan = place([demand("/a", 10), demand("/b", 10)], [offer("n1", 400)], {})
    assert nodes(plan, "/a") == nodes(plan, "/b") == {"n1": 2}


def test_explanations() -> None:
    offers = [offer("n1", 500), offer("n2", 1500), offer("n3", 1000, mem=5)]
    big, lost = demand("/big", 1, cpus=4000), demand("/lost", 1, network="prod")
    plan = place([big, lost], offers, {})
    of_big = [refusal for refusal in plan.refusals if refusal.app == "/big"]
    of_lost = [refusal for refusal in plan.refusals if refusal.app == "/lost"]
    assert explain(big.resources, of_big) == [
        "needs 4 CPU: 3 of 3 nodes have too little (most free: 1.5 CPU)",
        "needs 10 MiB memory: 1 of 3 nodes have too little (most free: 5 MiB memory)",
    ]
    assert explain(lost.resources, of_lost)[0] == 'needs network "prod": 3 of 3 nodes do not have it'
    assert reason([of_big[2], of_lost[2]]) == "/big lacks CPU, MiB memory; /lost lacks MiB memory, the network"


def with_ports(app: str, count: int, *sockets: tuple[str, int], choose: int = 0) -> Demand:
    return replace(demand(app, count), sockets=sockets, chosen=(("tcp", "udp"),) * choose)


def test_a_port_of_a_node_is_given_once() -> None:
    free, taken = offer("n1", 4000), replace(offer("n2", 4000), published={("tcp", 80): "db.1a2b"})
    web, other = with_ports("/web", 2, ("tcp", 80)), with_ports("/other", 1, ("udp", 80), ("tcp", 81))
    plan = place([web, other], [free, taken], {})
    assert nodes(plan, "/web") == {"n1": 1} and sum(nodes(plan, "/other").values()) == 1
    assert explain(web.resources, plan.refusals) == ["needs host port 80/tcp: taken by /web on n1, db.1a2b on n2"]
    assert reason(plan.refusals) == "/web lacks port 80/tcp"


def test_ports_are_chosen_of_the_nodes_range_and_none_is_taken() -> None:
    few = replace(offer("n1", 4000), node=replace(node("n1"), ports=(500, 507)), published={("udp", 501): "x"})
    demands = [with_ports("/a", 2, ("tcp", 502), choose=2), with_ports("/b", 9, choose=2)]
    plan = place(demands, [few], {})
    chosen = [port for placement in plan.placements for port in placement.ports]
    assert nodes(plan, "/a") == {"n1": 1} and nodes(plan, "/b") == {"n1": 2}
    assert sorted(chosen) == [500, 503, 504, 505, 506, 507]
    of_b = [refusal for refusal in plan.refusals if refusal.app == "/b"]
    assert explain(demands[1].resources, of_b) == ["needs a host port: none is left to choose on 1 of 1 node"]


def test_apps_do_not_get_the_ports_that_others_just_had() -> None:
    alone = [place([with_ports(f"/app{n}", 1, choose=1)], [offer("n1", 400)], {}).placements[0].ports for n in range(9)]
    assert len(set(alone)) == 9 and all(31000 <= port <= 32000 for (port,) in alone)


def test_one_address_on_each_network() -> None:
    wanted = replace(demand("/a", 9), networks=("overlay", "prod"))
    both = NETWORKS | {"prod"}
    two, none = (
        replace(offer(name, 4000), networks=both, addresses={"prod": left}) for name, left in (("n1", 2), ("n2", 0))
    )
    plan = place([wanted], [two, none, offer("n3", 4000)], {})
    assert nodes(plan, "/a") == {"n1": 2}
    assert explain(wanted.resources, plan.refusals) == [
        'needs network "prod": 1 of 3 nodes do not have it',
        'needs an address of network "prod": none is left on 2 of 3 nodes',
    ]
    fixed = replace(wanted, count=3, static=frozenset({"prod"}))
    assert nodes(place([fixed], [none], {}), "/a") == {"n2": 3}  # what it asks for is none of the node's


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 900), st.integers(1, 90)), max_size=4),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 200)), max_size=4),
)
def test_never_more_than_offered_and_never_less_than_fits(wanted: list[Any], free: list[Any]) -> None:
    demands = [demand(f"/{number}", *each) for number, each in enumerate(wanted)]
    offers = [offer(f"n{number}", *each) for number, each in enumerate(free)]
    plan = place(demands, offers, {})
    left = {each.node.id: each.resources for each in offers}
    placed = Counter(placement.app for placement in plan.placements)
    by_app = {each.app: each for each in demands}
    for placement in plan.placements:
        left[placement.offer.node.id] -= by_app[placement.app].resources
    assert all(remaining.covers(Resources()) for remaining in left.values())
    for each in demands:
        refusing = {refusal.node for refusal in plan.refusals if refusal.app == each.app}
        if placed[each.app] < each.count:
            assert refusing == set(left) and not any(rest.covers(each.resources) for rest in left.values())
        else:
            assert placed[each.app] == each.count and not refusing


def test_packed_ones_fill_the_fullest_node_first() -> None:
    packed = replace(demand("/a", 6), packed=True)
    plan = place([packed], [offer("n1", 4000), offer("n2", 250), offer("n3", 400), offer("n4", 90)], {("/a", "n2"): 5})
    assert [placement.offer.node.id for placement in plan.placements] == ["n2"] * 2 + ["n3"] * 4
    plan = place([replace(packed, count=9)], [offer("n1", 500), offer("n2", 300)], {})
    assert nodes(plan, "/a") == {"n1": 5, "n2": 3} and len(plan.refusals) == 2


RACKED = {f"n{number}": replace(node(f"n{number}"), attributes=(("rack", str(number % 3)),)) for number in range(6)}
CONSTRAINTS = [("rack", "GROUP_BY", "3"), ("hostname", "UNIQUE"), ("rack", "IS", "1"), ("rack", "MAX_PER", "2")]


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Demand], list[Offer]]:
    amounts = st.builds(Resources, st.integers(1, 400), st.integers(1, 90))
    limits = st.lists(st.sampled_from([Constraint(*each) for each in CONSTRAINTS]), max_size=2, unique=True).map(tuple)
    demands = [
        replace(demand(app, draw(st.integers(0, 7))), resources=draw(amounts), constraints=draw(limits), packed=packed)
        for app, packed in draw(st.dictionaries(st.sampled_from(["/a", "/b", "/c"]), st.booleans())).items()
    ]
    free = draw(st.dictionaries(st.sampled_from(sorted(RACKED)), st.tuples(st.integers(0, 1500), st.integers(0, 300))))
    return demands, [replace(offer(name, *amount), node=RACKED[name]) for name, amount in free.items()]


@given(situations())
def test_each_instance_goes_to_the_best_offer_that_it_finds(situation: tuple[list[Demand], list[Offer]]) -> None:
    """As if there were but one instance to place at a time."""
    demands, offers = situation
    plan = place(demands, offers, {})
    by_app = {each.app: replace(each, count=1) for each in demands}
    running: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, Constraint], Counter[str]] = {}
    for placement in plan.placements:
        one, chosen = by_app[placement.app], placement.offer.node
        (alone,) = place([one], offers, running, places).placements
        assert alone.offer.node == chosen
        running[one.app, chosen.id] += 1
        for constraint in one.constraints:
            places.setdefault((one.app, constraint), Counter())[constraint.place_of(chosen) or ""] += 1
        offers = [
            replace(each, resources=each.resources - one.resources) if each.node == chosen else each for each in offers
        ]
    assert not any(place([by_app[refusal.app]], offers, running, places).placements for refusal in plan.refusals)


POLICY = Definition.model_validate(
    {"id": "/a", "cmd": "true", "networks": [{"mode": "container", "name": "overlay"}], "backoffFactor": 2.0}
)


def test_it_grows_by_failures_up_to_the_limit() -> None:
    assert [delay(POLICY, failures) for failures in (1, 2, 3, 9, 10, 10**6)] == [1, 2, 4, 256, 300, 300]
    backoff, now = Backoff(), 1000.0
    for expected in (1.0, 2.0, 4.0):
        backoff = failed(backoff, POLICY, Failure(now, 0.5, "exit code 1"), now + 1)
        now = backoff.until
        assert backoff.remaining(backoff.counted_at) == expected
    assert backoff.remaining(now) == 0.0 and backoff.reason == "exit code 1"


def test_tasks_started_together_fail_as_one() -> None:
    backoff = Backoff()
    for ended in range(10):
        backoff = failed(backoff, POLICY, Failure(1000.0, 1.0, ""), 1001.0 + ended / 10)
    assert backoff.failures == 1 and backoff.until == 1002.0


def test_a_stable_run_starts_the_count_again() -> None:
    backoff = Backoff(failures=7, counted_at=1000.0, until=1064.0)
    assert failed(backoff, POLICY, Failure(1064.0, STABLE_S, ""), 2000.0).until == 2001.0
    assert failed(backoff, POLICY, Failure(1064.0, STABLE_S - 1, ""), 2000.0).failures == 8


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_the_policy_is_the_apps(seconds: float) -> None:
    policy = POLICY.model_copy(update={"backoffSeconds": seconds, "maxLaunchDelaySeconds": 0.7})
    assert delay(policy, 1) == seconds and delay(policy, 5) == min(seconds * 16, 0.7)
