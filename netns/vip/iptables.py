"""The VIP back end for iptables (legacy): brings the kernel to a `RuleSet` through the worker of `netns/iptables`.

It keeps the last rule set that was applied for speed only: to compile the next one faster and to send the worker only
chains that are new. What is really in the kernel is read each time; if it lost chains of ours, the worker says which.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from netns.driver import NetworkError
from netns.iptables.client import Worker, wanted_body
from netns.vip.backend import Table
from netns.vip.ruleset import HOOKS, RuleSet, compile_rules, digest

TABLES = tuple(HOOKS)


class IptablesVips:
    """Implements `netns.vip.backend.Backend`. One per network namespace."""

    def __init__(self) -> None:
        self._worker = Worker()
        self._applied: RuleSet | None = None
        self._turn = asyncio.Lock()

    @property
    def worker_pid(self) -> int | None:
        return self._worker.pid

    async def apply(self, table: Table) -> None:
        """Also repairs what was removed or emptied since. Raises NetworkError."""
        async with self._turn:
            try:
                wanted = compile_rules(table, self._applied)
            except ValueError as error:
                raise NetworkError(f"apply VIP table: {error}") from error
            await self._install(wanted)
            self._applied = wanted

    async def installed(self) -> str | None:
        """As `RuleSet.digest` when all chains and jumps are as `apply` leaves them, else another digest."""
        actual = await self._worker.read("read VIP rules", TABLES)
        if not any(actual[name]["anchors"] or actual[name]["chains"] for name in TABLES):
            return None
        return digest({name: actual[name]["anchors"] | _damage(name, actual[name]) for name in TABLES})

    async def mend(self) -> list[str]:
        async with self._turn:
            if self._applied is None:
                return []
            actual = await self._worker.read("read VIP rules", TABLES)
            wrong = [text for name in TABLES for text in _wrong(name, self._applied.anchors[name], actual[name])]
            if wrong:
                await self._install(self._applied)
            return wrong

    async def others(self) -> bool:
        """Whether another program translates addresses by iptables."""
        actual = await self._worker.read("read the rules of others", ("nat",))
        return any("" in targets for targets in actual["nat"]["hooks"].values())

    async def remove(self) -> None:
        async with self._turn:
            self._applied = None
            await self._worker.apply("remove VIP rules", {name: wanted_body({}, {}, {}, ()) for name in TABLES})

    async def close(self) -> None:
        """Ends the worker, for good. The rules stay."""
        await self._worker.close()

    async def _install(self, wanted: RuleSet) -> None:
        known = self._applied.chains if self._applied else wanted.chains
        send = {name: wanted.chains[name].keys() - known[name].keys() for name in TABLES}
        missing = await self._send(wanted, send)
        if any(missing.values()):
            missing = await self._send(wanted, {name: send[name] | set(missing[name]) for name in TABLES})
        if any(missing.values()):
            raise NetworkError("apply VIP table: another program changes the same chains")

    async def _send(self, wanted: RuleSet, send: Mapping[str, set[str]]) -> dict[str, list[str]]:
        """Returns the chains that the worker would have to fill and was not sent; then it changed nothing."""
        answer = await self._worker.apply("apply VIP table", request(wanted, send))
        missing: dict[str, list[str]] = answer["missing"]
        return missing


def request(wanted: RuleSet, send: Mapping[str, set[str]]) -> dict[str, Any]:
    """For `Worker.apply`: all names, and the rules of the chains in `send`."""
    return {name: _table_request(wanted, name, send[name]) for name in TABLES}


def _table_request(wanted: RuleSet, table: str, send: set[str]) -> dict[str, Any]:
    chains = wanted.chains[table]
    return wanted_body(chains, {chain: chains[chain] for chain in send}, wanted.anchors[table], HOOKS[table])


def _wrong(table: str, anchors: Mapping[str, str], actual: dict[str, Any]) -> list[str]:
    lost = sorted(anchors.items() - actual["anchors"].items())
    damaged = sorted(_damage(table, actual))
    return [
        *(f"{table}: {name} did not lead to {root}" for name, root in lost),
        *(f"{table}: {name} was damaged" for name in damaged),
    ]


def _damage(table: str, actual: dict[str, Any]) -> dict[str, str]:
    hooks = [hook for hook, anchor in HOOKS[table] if anchor not in actual["hooks"][hook][:1]]
    return dict.fromkeys([*actual["damaged"], *hooks], "damaged")
