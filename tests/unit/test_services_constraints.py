"""Where an app's instances may be: each operator on what nodes are called and have."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from frameworks.services.constraints import Constraint, constraints
from frameworks.services.definition import Definition
from frameworks.services.place import Demand, place
from master.offers import Offer
from model.node import Node
from model.resources import Resources
from tests.unit.cluster import node

LEAST = {"id": "/web", "cmd": "serve", "networks": [{"mode": "container", "name": "overlay"}]}


def machine(name: str, **attributes: str) -> Node:
    return replace(node(name), attributes=tuple(attributes.items()))


@pytest.mark.parametrize(
    ("constraint", "place", "others", "allowed"),
    [
        (("hostname", "UNIQUE"), "a", {}, True),
        (("hostname", "UNIQUE"), "a", {"a": 1}, False),
        (("rack", "CLUSTER", "r1"), "r1", {}, True),
        (("rack", "CLUSTER", "r1"), "r2", {}, False),
        (("rack", "CLUSTER"), "r2", {}, True),
        (("rack", "CLUSTER"), "r2", {"r1": 1}, False),
        (("rack", "CLUSTER"), "r1", {"r1": 1}, True),
        (("rack", "GROUP_BY"), "r1", {"r1": 1, "r2": 1}, True),
        (("rack", "GROUP_BY"), "r1", {"r1": 2, "r2": 1}, False),
        (("rack", "GROUP_BY"), "r3", {"r1": 2, "r2": 1}, True),
        (("rack", "GROUP_BY", "3"), "r1", {"r1": 1, "r2": 1}, False),
        (("rack", "GROUP_BY", "2"), "r1", {"r1": 1, "r2": 1}, True),
        (("rack", "MAX_PER", "2"), "r1", {"r1": 1}, True),
        (("rack", "MAX_PER", "2"), "r1", {"r1": 2}, False),
        (("rack", "LIKE", "r[1-3]"), "r2", {}, True),
        (("rack", "LIKE", "r"), "r2", {}, False),  # all of it
        (("rack", "UNLIKE", "r[1-3]"), "r2", {}, False),
        (("rack", "UNLIKE", "r[1-3]"), "r4", {}, True),
        (("rack", "UNLIKE", "r[1-3]"), None, {}, True),
        (("rack", "LIKE", ".*"), None, {}, False),
        (("rack", "UNIQUE"), None, {}, False),
        (("rack", "IS", "r1"), "r1", {}, True),
        (("rack", "is", "r1"), "r10", {}, False),
    ],
)
def test_an_operator(constraint: tuple[str, ...], place: str | None, others: dict[str, int], allowed: bool) -> None:
    (parsed,) = constraints([constraint])
    assert parsed.allows(place, Counter(others)) is allowed


def test_a_node_has_a_name_and_attributes() -> None:
    there = machine("n1", rack="r1", region="eu")
    fields = ("hostname", "@hostname", "rack", "@region", "zone")
    assert [Constraint(field, "UNIQUE").place_of(there) for field in fields] == ["n1", "n1", "r1", "eu", None]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (["hostname"], "at least 2"),
        (["hostname", "UNIQUE", "x"], "takes no value"),
        (["", "UNIQUE"], "names no field"),
        (["rack", "NEAR"], "must be one of"),
        (["rack", "LIKE"], "needs a value"),
        (["rack", "LIKE", "("], "no regular expression"),
        (["rack", "MAX_PER", "many"], "must be a number"),
        (["rack", "GROUP_BY", "0"], "must be a number"),
        (["rack", "LIKE", "x" * 501], "more than 500"),
        (["a", "b", "c", "d"], "at most 3"),
    ],
)
def test_a_bad_one_is_refused_by_its_place(bad: list[str], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint) as refused:
        Definition.model_validate({**LEAST, "constraints": [["hostname", "UNIQUE"], bad]})
    assert refused.value.errors()[0]["loc"][:2] == ("constraints", 1)


def demand(count: int, *given: tuple[str, ...]) -> Demand:
    return Demand("/web", Resources(100, 32), ("overlay",), count, constraints=constraints(given))


def offers(*nodes: Node) -> list[Offer]:
    return [Offer(f"o-{each.id}", each, Resources(4000, 4096, 10_000), frozenset({"overlay"})) for each in nodes]


def test_the_rest_waits_and_says_for_what() -> None:
    plan = place([demand(3, ("hostname", "UNIQUE"))], offers(machine("a"), machine("b")), {})
    assert {each.offer.node.id for each in plan.placements} == {"a", "b"} and len(plan.placements) == 2
    assert {refusal.causes[0] for refusal in plan.refusals} == {"constraint hostname UNIQUE"}


RACKS = st.lists(st.sampled_from(("r1", "r2", "r3")), min_size=1, max_size=6)


@given(RACKS, st.integers(1, 20))
def test_groups_differ_by_one_at_most(racks: list[str], count: int) -> None:
    nodes = [machine(f"n{number}", rack=rack) for number, rack in enumerate(racks)]
    plan = place([demand(count, ("rack", "GROUP_BY", str(len(set(racks)))))], offers(*nodes), {})
    groups = Counter(dict(each.offer.node.attributes)["rack"] for each in plan.placements)
    assert len(plan.placements) == count
    assert max(groups.values()) - min(groups[rack] for rack in racks) <= 1


@given(RACKS, st.integers(1, 20), st.integers(1, 4))
def test_no_place_has_more_than_it_may(racks: list[str], count: int, most: int) -> None:
    nodes = [machine(f"n{number}", rack=rack) for number, rack in enumerate(racks)]
    plan = place([demand(count, ("rack", "MAX_PER", str(most)))], offers(*nodes), {})
    groups = Counter(dict(each.offer.node.attributes)["rack"] for each in plan.placements)
    assert len(plan.placements) == min(count, most * len(set(racks))) and max(groups.values()) <= most
