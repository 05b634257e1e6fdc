"""What is to be looked at when: one moment for each key, the first one known at no cost."""

from __future__ import annotations

import heapq

SPARE = 64


class Moments:
    """A heap. What has got another moment stays in it until it comes up, or until most of the heap is of that kind."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._at: dict[str, float] = {}

    def put(self, key: str, at: float | None) -> None:
        """In place of its former moment; None: it has none any more."""
        if at is None:
            self._at.pop(key, None)
        elif self._at.get(key) != at:
            self._at[key] = at
            heapq.heappush(self._heap, (at, key))
        if len(self._heap) > 2 * len(self._at) + SPARE:
            self._heap = [(moment, known) for known, moment in self._at.items()]
            heapq.heapify(self._heap)

    def first(self) -> float | None:
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: float, most: int) -> list[str]:
        """The keys of those that have come. They have no moment any more."""
        taken: list[str] = []
        while len(taken) < most and (at := self.first()) is not None and at <= now:
            _, key = heapq.heappop(self._heap)
            del self._at[key]
            taken.append(key)
        return taken
