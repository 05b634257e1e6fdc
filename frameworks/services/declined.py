"""Why offers were of no use to apps: the last refusal by each node. A node that is not heard of for a while is gone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from frameworks.services.refusals import Refusal
from master.offers import Offer

VALID_S = 15.0  # a declined node is offered again after 5 s


class Declined:
    def __init__(self) -> None:
        self._refusals: dict[str, dict[str, tuple[float, Refusal]]] = {}  # app -> node

    def remember(self, refusals: Sequence[Refusal], apps: Iterable[str], offers: Sequence[Offer]) -> None:
        """What came of these offers, for these apps."""
        now = time.monotonic()
        for app_id in set(apps):
            known = self._refusals.setdefault(app_id, {})
            for offer in offers:
                known.pop(offer.node.id, None)
        # Of two instances that one node refuses, the one that can go nowhere else is the one to tell of.
        for refusal in sorted(refusals, key=lambda refusal: refusal.elsewhere):
            self._refusals[refusal.app][refusal.node] = (now, refusal)

    def add(self, refusal: Refusal) -> None:
        self._refusals.setdefault(refusal.app, {})[refusal.node] = (time.monotonic(), refusal)

    def forget(self, app_id: str) -> None:
        self._refusals.pop(app_id, None)

    def of(self, app_id: str) -> list[Refusal]:
        oldest = time.monotonic() - VALID_S
        return [refusal for at, refusal in self._refusals.get(app_id, {}).values() if at >= oldest]
