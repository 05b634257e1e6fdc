"""The nouns: sums of resources, the order of states, blocks and addresses, VIP labels, and their form on disk."""

from __future__ import annotations

import dataclasses
from functools import reduce
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import checkpoint
from master import tasks as master_tasks
from model.codec import Codec, Damaged
from model.network import Block, Network, Subnet, free_subnet, vtep_mac
from model.node import Node
from model.resources import KINDS, Resources, describe
from model.task import MESOS_STATES, TASK_ID, TaskState, TaskStatus, newer
from model.vip import is_vip_label, parse_drain, parse_label
from tests.unit import strategies


@given(strategies.resources, strategies.resources)
def test_resources_add_up_exactly(one: Resources, other: Resources) -> None:
    assert one + other - other == one
    assert (one + other).covers(other)
    missing = one.shortage(other)
    assert one.covers(other) == (not missing)
    assert (one + Resources(**missing)).covers(other) and all(amount > 0 for amount in missing.values())


def test_amounts_are_told_in_peoples_units() -> None:
    assert [describe(kind, 1500) for kind in KINDS] == ["1.5 CPU", "1500 MiB memory", "1500 MiB disk", "1500 GPU"]


def test_states_grow_and_all_have_a_mesos_name() -> None:
    assert set(MESOS_STATES) == set(TaskState)
    assert [state for state in TaskState if state.terminal] == [
        TaskState.FINISHED,
        TaskState.FAILED,
        TaskState.KILLED,
        TaskState.REJECTED,
        TaskState.LOST,
        TaskState.GONE,
    ]


def latest(current: TaskStatus | None, seen: TaskStatus) -> TaskStatus | None:
    return seen if newer(current, seen) else current


@given(st.lists(strategies.statuses, max_size=8))
def test_a_state_never_goes_back(seen: list[TaskStatus]) -> None:
    current: TaskStatus | None = None
    for status in seen:
        after = latest(current, status)
        assert after is not None
        if current is not None:
            assert (after.state, after.sequence) >= (current.state, current.sequence)
            assert not current.state.terminal or after is current
        current = after


living = st.builds(
    TaskStatus, st.just("t"), st.sampled_from([s for s in TaskState if not s.terminal]), st.integers(0, 9)
)


@given(st.data(), st.lists(living, min_size=1, max_size=6), living)
def test_the_order_of_arrival_does_not_matter(data: st.DataObject, seen: list[TaskStatus], last: TaskStatus) -> None:
    """As long as there is one end: what came before it may come late, twice or never."""
    seen.append(dataclasses.replace(last, state=TaskState.FAILED))
    shuffled = data.draw(st.permutations(seen))
    assert reduce(latest, shuffled, None) == reduce(latest, seen, None) == seen[-1]
    assert reduce(latest, shuffled + shuffled, None) == seen[-1]


@pytest.mark.parametrize("good", ["a", "web.3", "A-b_c.9", "x" * 200])
def test_task_ids(good: str) -> None:
    assert TASK_ID.fullmatch(good)


@pytest.mark.parametrize("bad", ["", ".", "..", ".a", "-a", "a/b", "a\n", "a b", "é", "x" * 201])
def test_ids_that_name_no_directory(bad: str) -> None:
    assert not TASK_ID.fullmatch(bad)


def test_a_block_keeps_its_first_addresses_for_the_node() -> None:
    block = Block("overlay", "n1", ip_network("100.64.3.0/24"))
    assert (block.vtep_address, block.gateway) == (ip_address("100.64.3.0"), ip_address("100.64.3.1"))
    leasable = [block.subnet.network_address + number for number in block.leasable()]
    assert (leasable[0], leasable[-1], len(leasable)) == (ip_address("100.64.3.2"), ip_address("100.64.3.254"), 253)


@given(strategies.names, st.integers(0, 2**24 - 1))
def test_a_vteps_mac_is_local_and_unicast(node: str, vni: int) -> None:
    mac = bytes.fromhex(vtep_mac(node, vni).replace(":", ""))
    assert len(mac) == 6 and mac[0] & 0x03 == 0x02
    assert vtep_mac(node, vni) == vtep_mac(node, vni) != vtep_mac(node + "x", vni)


@given(st.sets(st.integers(0, 15), max_size=16))
def test_the_lowest_free_block(taken_numbers: set[int]) -> None:
    blocks: list[Subnet] = list(ip_network("10.0.0.0/20").subnets(new_prefix=24))
    taken = {blocks[number] for number in taken_numbers}
    free = [block for block in blocks if block not in taken]
    assert free_subnet(ip_network("10.0.0.0/20"), 24, taken) == (free[0] if free else None)


@pytest.mark.parametrize(
    ("value", "port", "name", "address"),
    [
        ("/web:80", 80, "web", None),
        ("web:80", 80, "web", None),
        ("/group/web:65535", 65535, "groupweb", None),
        ("/My.Web:80", 80, "my.web", None),
        ("10.1.2.3:1", 1, "", "10.1.2.3"),
        ("[fd01:c::1]:80", 80, "", "fd01:c::1"),
    ],
)
def test_vip_labels(value: str, port: int, name: str, address: str | None) -> None:
    label = parse_label(value)
    assert (label.port, label.name) == (port, name)
    assert label.address == (ip_address(address) if address else None)


@pytest.mark.parametrize(
    "value",
    ["", "/web", "/web:", "/web:0", "/web:65536", "/web:8o", "/web:-1", "/web:²", ":80", "/:80", "we b:80", "\n:1"],
)
def test_vip_labels_that_mean_nothing(value: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_label(value)


@given(st.text(max_size=12))
def test_any_vip_label_is_read_or_refused(value: str) -> None:
    try:
        label = parse_label(value)
    except ValueError:
        return
    assert 1 <= label.port <= 65535 and bool(label.name) != (label.address is not None)


def test_keys_that_ask_for_vips() -> None:
    assert all(map(is_vip_label, ["VIP_0", "vip1", "Vip"])) and not is_vip_label("xVIP")


SAVED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (Node, strategies.nodes),
    (Network, strategies.networks),
    (Block, strategies.blocks),
    (
        master_tasks.TaskRecord,
        st.builds(master_tasks.TaskRecord, strategies.specs, strategies.names, strategies.statuses, st.booleans()),
    ),
    (
        checkpoint.TaskRecord,
        st.builds(
            checkpoint.TaskRecord,
            strategies.specs,
            strategies.statuses,
            strategies.texts,
            strategies.names,
            strategies.numbers,
            st.booleans(),
            end=st.none() | strategies.statuses,
        ),
    ),
]


@pytest.mark.parametrize(("kind", "values"), SAVED, ids=[f"{kind.__module__}.{kind.__name__}" for kind, _ in SAVED])
@given(data=st.data())
def test_what_is_written_to_disk_is_read_again(kind: Any, values: st.SearchStrategy[Any], data: st.DataObject) -> None:
    codec: Codec[Any] = Codec(kind)
    value = data.draw(values)
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize(
    ("damage", "where"), [(b"", "the whole"), (b"{", "the whole"), (b'{"id": 3}', "id"), (b"\0" * 64, "the whole")]
)
def test_damage_is_named(damage: bytes, where: str) -> None:
    with pytest.raises(Damaged, match=f"Node: {where}"):
        Codec(Node).decode(damage)


@pytest.mark.parametrize(("label", "seconds"), [(None, 5), ("0", 0), ("3600", 3600)])
def test_for_how_long_clients_are_waited_for(label: str | None, seconds: int) -> None:
    assert parse_drain({} if label is None else {"tepui/drain": label}) == seconds


@pytest.mark.parametrize("label", ["", "-1", "3601", "1.5", "\u00b2", "soon"])
def test_for_how_long_clients_can_not_be_waited_for(label: str) -> None:
    with pytest.raises(ValueError, match="label tepui/drain: .* must be seconds, from 0 to 3600"):
        parse_drain({"tepui/drain": label})
