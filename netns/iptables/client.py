"""The event loop's side of the iptables worker: starts it, talks to it, and replaces it when it fails.

Every request is idempotent (it says what should be, not what to do), so one that failed or timed out is sent once more,
to a new worker. The worker makes its changes in the network namespace of the process that uses this client.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from netns.driver import NetworkError
from netns.iptables.rule import Rules, to_wire

# Filling 10,000 VIPs takes two seconds, more on a loaded machine, and the worker waits up to 10 s for the xtables lock.
REQUEST_DEADLINE_S = 60.0
EXIT_DEADLINE_S = 2.0
ATTEMPTS = 2
LENGTH = struct.Struct("!I")
PROJECT = Path(__file__).resolve().parents[2]


class WorkerFailed(Exception):
    """One attempt failed; the text is the worker's reason."""


class Worker:
    """At most one process and one request at a time."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def apply(self, operation: str, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """`wanted`: see `plan.Wanted`. The answer: {"missing": {table: [chain]}, "changed": [table]}."""
        result: dict[str, Any] = await self._request(operation, ["apply", wanted])
        return result

    async def read(self, operation: str, tables: tuple[str, ...]) -> dict[str, Any]:
        """{table: {"chains": count, "damaged": [chain], "anchors": {chain: target}, "hooks": {built-in: [target]}}}"""
        result: dict[str, Any] = await self._request(operation, ["read", tables])
        return result

    async def close(self) -> None:
        """For good: after the request under way, if there is one, the process ends and none is started again."""
        self._closed = True
        async with self._turn:
            process, self._process = self._process, None
            if process is not None:
                await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(EXIT_DEADLINE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            assert process.stdin is not None
            with suppress(OSError):  # what could not be written to it any more is no news
                await process.stdin.wait_closed()

    async def _request(self, operation: str, request: list[Any]) -> Any:
        async with self._turn:
            failures: list[str] = []
            while len(failures) < ATTEMPTS and not self._closed:
                try:
                    return await self._attempt(request)
                except TimeoutError:
                    failures.append(f"no answer from the iptables worker in {REQUEST_DEADLINE_S:g} s")
                except (WorkerFailed, OSError, asyncio.IncompleteReadError) as failure:
                    failures.append(f"iptables worker: {failure}")
            raise NetworkError(f"{operation}: {failures[-1] if failures else 'the iptables worker was closed'}")

    async def _attempt(self, request: list[Any]) -> Any:
        try:
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                answer = await self._exchange(json.dumps(request).encode())
        except BaseException:
            # Also when cancelled: an answer that nobody read would be taken for the next request's.
            await self._kill()
            raise
        if "error" in answer:
            await self._kill()
            raise WorkerFailed(answer["error"])
        return answer["result"]

    async def _exchange(self, body: bytes) -> dict[str, Any]:
        if self._process is None or self._process.returncode is not None:
            self._process = await _start()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(LENGTH.pack(len(body)) + body)
        await stdin.drain()
        (length,) = LENGTH.unpack(await stdout.readexactly(LENGTH.size))
        answer: dict[str, Any] = json.loads(await stdout.readexactly(length))
        return answer

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
            await process.wait()
        assert process.stdin is not None
        with suppress(OSError):  # that it could not read what was written is no news
            await process.stdin.wait_closed()


def wanted_body(
    chains: Iterable[str],
    rules: Mapping[str, Rules],
    anchors: Mapping[str, str],
    hooks: tuple[tuple[str, str], ...],
) -> dict[str, Any]:
    """`plan.Wanted` on the pipe. The names are one text: there are thousands, and JSON takes its time over each."""
    rows = {chain: [to_wire(rule) for rule in content] for chain, content in rules.items()}
    return {"chains": " ".join(chains), "rules": rows, "anchors": anchors, "hooks": hooks}


async def _start() -> asyncio.subprocess.Process:
    # -P: the module must be this project's, whatever the working directory holds.
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "netns.iptables.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
