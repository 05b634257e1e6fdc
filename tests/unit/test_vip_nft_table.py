"""The nftables table that a table of VIPs means, and the way from one to another, done as the kernel would."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.network import Address
from model.task import Protocol
from model.vip import Backend, Vip
from netns.vip.backend import Table
from netns.vip.nft_table import MOST_SLOTS, compile_table, desired, diff, load, slots

POOLS = (ip_network("100.127.0.0/16"), ip_network("fd01:c::/112"))
LOCAL = (ip_network("100.64.1.0/24"), ip_network("fd01:b:0:0:1::/80"))
CLUSTER = (ip_network("100.64.0.0/11"), ip_network("fd01:b::/64"))
COMMAND = re.compile(r"(add|delete|flush) (table|set|map|element|chain|rule) inet tepui-vips ?(\S*) ?(?:\{ (.*) \})?")
GOTO, SET_OF = re.compile(r"goto ((?:of|to|sticky)_\w+)"), re.compile(r"@(st_\w+)")

Kernel = dict[str, set[str]]


def table(*vips: Vip) -> Table:
    return Table({vip.key: vip for vip in vips}, POOLS, LOCAL, CLUSTER)


@st.composite
def rows(draw: st.DrawFn) -> Vip:
    address: Address
    version = draw(st.sampled_from((4, 6)))
    number = draw(st.integers(1, 3))
    outside = draw(st.booleans())
    if version == 4:
        address = IPv4Address("10.1.2.0" if outside else "100.127.0.0") + number
    else:
        address = IPv6Address("fd99::" if outside else "fd01:c::") + number
    near = IPv4Address("100.64.1.0") if version == 4 else IPv6Address("fd01:b:0:0:1::")
    chosen = draw(st.lists(st.tuples(st.integers(1, 4), st.sampled_from((0, 1, 1, 2, 7))), max_size=4, unique=True))
    backends = tuple(sorted(Backend(f"t{n}", "n1", near + n, 8080 + weight, weight) for n, weight in chosen))
    port, protocol, affinity_s = (draw(st.sampled_from(each)) for each in ((80, 443), Protocol, (0, 0, 60, 90)))
    return Vip(address, port, protocol, "/web", backends, affinity_s)


tables = st.lists(rows(), max_size=6).map(lambda found: table(*found))


def carry_out(kernel: Kernel, commands: str) -> Kernel:
    """As nft does: what is added twice, deleted without being there, or led to without being there, is refused."""
    kernel = {name: set(of) for name, of in kernel.items()}
    for command in commands.splitlines():
        found = COMMAND.match(command)
        assert found, command
        verb, kind, name, content = found.groups()
        assert all(target in kernel for pattern in (GOTO, SET_OF) for target in pattern.findall(command)), command
        match verb, kind:
            case ("add", "set" | "map" | "chain"):
                assert name not in kernel
                kernel[name] = set()
            case "add", "rule":
                kernel[name].add(command)
            case "add", "element":
                new = set(content.split(", "))
                assert not new & kernel[name]
                kernel[name] |= new
                assert len({each.partition(" : ")[0] for each in kernel[name]}) == len(kernel[name]), "two for one key"
            case "delete", "element":
                gone = {each for each in kernel[name] if each.partition(" : ")[0] in content.split(", ")}
                assert len(gone) == len(content.split(", "))
                kernel[name] -= gone
            case "flush", "chain":
                kernel[name] = set()
            case "delete", "chain" | "set":
                del kernel[name]
                left = "\n".join(each for of in kernel.values() for each in of)
                assert name not in GOTO.findall(left) and name not in SET_OF.findall(left)
    return kernel


@given(tables, tables)
def test_the_way_from_one_table_to_another_ends_there(one: Table, other: Table) -> None:
    before = compile_table(one)
    after = compile_table(other, before)
    assert after == compile_table(other)
    assert carry_out(carry_out({}, load(before)), diff(before, after)) == carry_out({}, load(after))
    assert diff(after, after) == ""


@given(tables)
def test_what_is_loaded_is_what_is_looked_for(wanted: Table) -> None:
    compiled = compile_table(wanted)
    kernel = carry_out({}, load(compiled))
    for name, of in desired(compiled).items():
        assert kernel[name] == of


@given(st.lists(st.integers(0, 1000), max_size=MOST_SLOTS + 20))
def test_backends_have_slots_by_weight(weights: list[int]) -> None:
    backends = tuple(Backend(f"t{n:04}", "n", ip_address("100.64.1.2") + n, 80, w) for n, w in enumerate(weights))
    counted = Counter(slots(Vip(ip_address("100.127.0.1"), 80, Protocol.TCP, "/web", backends)))
    asked = {backend: backend.weight for backend in backends if backend.weight}
    assert counted.keys() == asked.keys()
    assert counted.total() <= max(MOST_SLOTS, len(asked)) + len(asked)
    most = max(MOST_SLOTS, len(asked))
    for backend, weight in asked.items():  # within a slot of its share, of as many as there are at most
        share = weight / sum(asked.values())
        assert counted[backend] == max(1, int(share * most)) or abs(counted[backend] / counted.total() - share) < 1e-9


def test_one_vip_of_many_is_a_few_commands() -> None:
    def row(number: int, *backends: int) -> Vip:
        chosen = tuple(Backend(f"t{n}", "n1", ip_address("100.64.1.0") + n, 80) for n in backends)
        return Vip(ip_address("100.127.0.0") + number, 80, Protocol.TCP, f"/{number}", chosen)

    before = compile_table(table(*(row(number, 1, 2) for number in range(1, 50))))
    after = compile_table(table(row(1, 2), *(row(number, 1, 2) for number in range(2, 50))), before)
    assert diff(before, after).splitlines() == [
        "add chain inet tepui-vips of_1",
        "add rule inet tepui-vips of_1 dnat ip to ip daddr . tcp dport . numgen random mod 1 map @tcp4",
        "add rule inet tepui-vips of_1 dnat ip to ip daddr . udp dport . numgen random mod 1 map @udp4",
        "add rule inet tepui-vips of_1 dnat ip6 to ip6 daddr . tcp dport . numgen random mod 1 map @tcp6",
        "add rule inet tepui-vips of_1 dnat ip6 to ip6 daddr . udp dport . numgen random mod 1 map @udp6",
        "delete element inet tepui-vips tcp4 { 100.127.0.1 . 80 . 0, 100.127.0.1 . 80 . 1 }",
        "delete element inet tepui-vips vips4 { 100.127.0.1 . 6 . 80 }",
        "add element inet tepui-vips tcp4 { 100.127.0.1 . 80 . 0 : 100.64.1.2 . 80 }",
        "add element inet tepui-vips vips4 { 100.127.0.1 . 6 . 80 : goto of_1 }",
    ]


def test_backends_of_another_version_are_refused_by_the_vip() -> None:
    row = Vip(ip_address("100.127.0.1"), 80, Protocol.TCP, "/web", (Backend("t", "n", ip_address("fd01:b::2"), 80),))
    with pytest.raises(
        ValueError, match=r"VIP 100\.127\.0\.1:80/tcp \(/web\): backend fd01:b::2 is of another version"
    ):
        compile_table(table(replace(row)))
