"""Clients of a virtual address: a steady one that never waits for an answer before it asks again, and a plain one.

Each request is a new connection. The clock is CLOCK_MONOTONIC, which all processes of the machine share, so what a
client saw can be compared with when the test did something.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from lab.cluster import Lab

PYTHON = "/usr/bin/python3"
RATE = 50
STOP_DEADLINE_S = 10.0

# A line for each request: when it was sent, how long it took, who answered, or what went wrong. Ends when stdin does.
CLIENT = """
import asyncio, json, sys, time

async def ask(address, port):
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
        return (await reader.read()).partition(b"\\r\\n\\r\\n")[2].decode()
    finally:
        writer.close()

async def probe(address, port):
    sent, by, error = time.monotonic(), "", ""
    try:
        by = await asyncio.wait_for(ask(address, port), 3)
        error = "" if by else "empty answer"
    except asyncio.TimeoutError:
        error = "no answer in 3 s"
    except OSError as failure:
        error = repr(failure)
    print(json.dumps([sent, time.monotonic() - sent, by, error]), flush=True)

async def main(address, port, rate):
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, stop.set)
    begin, count, probes = time.monotonic(), 0, set()
    while not stop.is_set():
        probes = {each for each in probes if not each.done()} | {asyncio.create_task(probe(address, port))}
        count += 1
        await asyncio.sleep(max(0, begin + count / rate - time.monotonic()))
    await asyncio.gather(*probes)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
"""


@dataclass(frozen=True, slots=True)
class Answer:
    sent: float
    took_s: float
    by: str
    error: str


class Client:
    """`answers` may be asked while it runs."""

    def __init__(self, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
        self._process = process
        self._output = output

    def answers(self, since: float = 0.0) -> list[Answer]:
        """Of the requests sent at `since` or later."""
        self._output.seek(0)
        whole, _, _ = self._output.read().rpartition(b"\n")
        answers = [Answer(*json.loads(line)) for line in whole.splitlines()]
        return [answer for answer in answers if answer.sent >= since]

    def failures(self, since: float = 0.0) -> list[Answer]:
        return [answer for answer in self.answers(since) if answer.error]

    def served_by(self, since: float = 0.0) -> set[str]:
        return {answer.by for answer in self.answers(since) if answer.by}

    def stop(self) -> None:
        """Returns when every request has its answer."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(STOP_DEADLINE_S) == 0


@contextmanager
def steady(lab: Lab, node: str, address: str, port: int, rate: float = RATE) -> Iterator[Client]:
    """`rate` connections a second from `node`, until the block ends."""
    argv = lab.command(node, [PYTHON, "-I", "-S", "-c", CLIENT, address, str(port), str(rate)])
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=output, stderr=errors)
        client = Client(process, output)
        try:
            yield client
        finally:
            if process.poll() is None:
                client.stop()
