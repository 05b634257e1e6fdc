"""The process that changes iptables: requests come on stdin, answers go to what was stdout, and end of file ends it.

A process of its own, because python-iptables needs one: its extensions crash beside threads, a rejected value makes
libxtables `longjmp` over Python's frames, and a table stays in the network namespace where it was opened. For the same
reasons it serves one request at a time and exits after the first that fails; whoever started it starts another.

A message is its length in four bytes, then JSON. Requests: `["apply", {table: wanted}]`, `["read", [table]]`. Answers:
`{"result": ...}` or `{"error": text}`. It holds no state between requests: what is there is read from the kernel
under the xtables lock each time.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import iptc

from netns.iptables import tables
from netns.iptables.plan import Wanted, damaged, diff
from netns.iptables.rule import from_wire

XTABLES_LOCK = "/run/xtables.lock"
LOCK_DEADLINE_S = 10.0
LOCK_POLL_S = 0.01
LENGTH = struct.Struct("!I")
PR_SET_PDEATHSIG = 1


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    answers = os.fdopen(os.dup(1), "wb")
    # libxtables prints to stdout when it likes to.
    os.dup2(2, 1)
    while (request := _receive(sys.stdin.buffer)) is not None:
        try:
            _send(answers, {"result": _serve(*request)})
        except (iptc.IPTCError, iptc.XTablesError, OSError, ValueError) as error:
            _send(answers, {"error": str(error)})
            sys.exit(1)


def _serve(verb: str, argument: Any) -> Any:
    with _xtables_lock():
        if verb == "apply":
            return _apply({name: _wanted(body) for name, body in argument.items()})
        return {name: _read(name) for name in argument}


def _apply(wanted: dict[str, Wanted]) -> dict[str, Any]:
    """Changes nothing when there is a chain to fill whose rules were not sent, and says which."""
    opened = {name: tables.opened(name) for name in wanted}
    plans = {name: diff(wanted[name], tables.read(table)) for name, table in opened.items()}
    missing = {name: [chain for chain in plan.fill if chain not in wanted[name].rules] for name, plan in plans.items()}
    changed = [name for name, plan in plans.items() if plan]
    if not any(missing.values()):
        for name in changed:
            tables.apply(opened[name], plans[name], wanted[name])
    for table in opened.values():
        table.close()
    return {"missing": missing, "changed": changed}


def _read(name: str) -> dict[str, Any]:
    actual = tables.read(tables.opened(name))
    return {
        "chains": len(actual.sizes),
        "damaged": sorted(damaged(actual)),
        "anchors": dict(actual.anchors),
        "hooks": dict(actual.hooks),
    }


def _wanted(body: dict[str, Any]) -> Wanted:
    rules = {chain: tuple(from_wire(row) for row in rows) for chain, rows in body["rules"].items()}
    hooks = tuple((hook, anchor) for hook, anchor in body["hooks"])
    return Wanted(frozenset(body["chains"].split()), rules, body["anchors"], hooks)


@contextmanager
def _xtables_lock() -> Iterator[None]:
    """The lock that the iptables commands take; libiptc itself takes none."""
    descriptor = os.open(XTABLES_LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_DEADLINE_S
        while not _flocked(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{XTABLES_LOCK} is held by another process for more than {LOCK_DEADLINE_S:g} s")
            time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _flocked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _receive(stream: BinaryIO) -> Any:
    head = stream.read(LENGTH.size)
    return json.loads(stream.read(*LENGTH.unpack(head))) if len(head) == LENGTH.size else None


def _send(stream: BinaryIO, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    stream.write(LENGTH.pack(len(body)) + body)
    stream.flush()


if __name__ == "__main__":
    main()
