"""Who is connected to what on this node: asked by whoever waits for that to be nobody.

The kernel looks through all of the node's connections to answer, so one answer serves all who ask at about the same
time, however many containers come to their end together.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing

from model.network import Address
from netns.driver import NetworkError
from netns.nft.netfilter import Netfilter

FRESH_S = 0.1


class Connections:
    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._seen: Counter[tuple[Address, int]] = Counter()
        self._at = -FRESH_S

    async def open_to(self, ends: Iterable[tuple[Address, int]]) -> int:
        """How many of TCP. Raises NetworkError."""
        async with self._turn:
            if time.monotonic() - self._at >= FRESH_S:
                try:
                    self._seen = await asyncio.to_thread(_look)  # the kernel takes its time when there are many
                except OSError as error:
                    raise NetworkError(f"count connections: {error.strerror}") from error
                self._at = time.monotonic()
            return sum(self._seen[end] for end in set(ends))


def _look() -> Counter[tuple[Address, int]]:
    with closing(Netfilter()) as netfilter:
        return netfilter.connected()
