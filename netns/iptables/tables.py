"""The kernel's side of a plan: reads what is of ours in a table, and carries out a `Plan` in one commit.

Nothing else in the table is touched, and libiptc keeps the counters of what stays. Where python-iptables' `Table` has
no method, or one that makes an object for each chain, its binding of the libiptc function is called.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import iptc
from iptc.ip4tc import IPTCError

from netns.iptables.entry import entry
from netns.iptables.plan import Actual, Plan, Wanted
from netns.iptables.rule import CONTENT_PREFIX, Rules, is_ours, jump


def opened(name: str) -> iptc.Table:
    """The table as it is now. Only valid until the kernel's changes: hold the xtables lock."""
    table = iptc.Table(name, autocommit=False)
    table.refresh()
    return table


def read(table: iptc.Table) -> Actual:
    sizes: dict[str, int] = {}
    anchors: dict[str, str] = {}
    hooks: dict[str, tuple[str, ...]] = {}
    for chain in _chains(table):
        if chain.startswith(CONTENT_PREFIX):
            sizes[chain] = _size(table, chain)
        elif is_ours(chain):
            targets = _targets(table, chain)
            anchors[chain] = targets[0] if len(targets) == 1 else ""
        elif table.builtin_chain(chain):
            hooks[chain] = tuple(target if is_ours(target) else "" for target in _targets(table, chain))
    return Actual(sizes, anchors, hooks)


def apply(table: iptc.Table, plan: Plan, wanted: Wanted) -> None:
    """All of `plan` in one commit: until then the changes are in this process only."""
    for chain in plan.create:
        table.create_chain(chain)
    for chain in plan.fill:
        _fill(table, chain, wanted.rules[chain])
    for chain, root in plan.anchors.items():
        _fill(table, chain, (jump(root),))
    for hook, index in plan.unhook:
        _delete_rule(table, hook, index)
    for hook, anchor in plan.hooks:
        table.insert_entry(hook, _buffer(entry(jump(anchor))), 0)
    # A chain can go when nothing jumps to it, so all are emptied before the first is deleted.
    for chain in plan.delete:
        table.flush_entries(chain)
    for chain in plan.delete:
        table.delete_chain(chain)
    table.commit()


def _fill(table: iptc.Table, chain: str, rules: Rules) -> None:
    table.flush_entries(chain)
    for rule in rules:
        try:
            table.append_entry(chain, _buffer(entry(rule)))
        except (iptc.XTablesError, IPTCError, ValueError, AttributeError) as error:
            raise ValueError(f"rule {rule}: {error}") from error


def _chains(table: iptc.Table) -> Iterator[str]:
    name = table._iptc.iptc_first_chain(table._handle)
    while name:
        yield name.decode()
        name = table._iptc.iptc_next_chain(table._handle)


def _size(table: iptc.Table, chain: str) -> int:
    found, size = table._iptc.iptc_first_rule(chain.encode(), table._handle), 0
    while found:
        found, size = table._iptc.iptc_next_rule(found, table._handle), size + 1
    return size


def _entries(table: iptc.Table, chain: str) -> Iterator[ctypes.Structure]:
    found = table.first_rule(chain)
    while found:
        yield found
        found = table.next_rule(found)


def _targets(table: iptc.Table, chain: str) -> list[str]:
    return [(table.get_target(found) or b"").decode() for found in _entries(table, chain)]


def _delete_rule(table: iptc.Table, chain: str, index: int) -> None:
    if table._iptc.iptc_delete_num_entry(chain.encode(), index, table._handle) != 1:
        raise IPTCError(f"delete rule {index} of {chain}: {table.strerror()}")


def _buffer(raw: bytes) -> ctypes.Array[ctypes.c_ubyte]:
    return (ctypes.c_ubyte * len(raw)).from_buffer_copy(raw)
