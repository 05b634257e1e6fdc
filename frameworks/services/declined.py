"""Why offers were of no use to apps: the last refusal by each node. A node that is not heard of for a while is gone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from frameworks.services.refusals import Refusal
from master.offers import Offer

VALID_S = 15.0  # a declined node is offered again after 5 s


@dataclass(frozen=True, slots=True)
class DeclinedOffer:
    """`at` is in seconds since the epoch."""

    refusal: Refusal
    at: float


class Declined:
    def __init__(self) -> None:
        self._offers: dict[str, dict[str, DeclinedOffer]] = {}  # app -> node

    def remember(self, refusals: Sequence[Refusal], apps: Iterable[str], offers: Sequence[Offer]) -> None:
        """What came of these offers, for these apps."""
        for app_id in set(apps):
            known = self._offers.setdefault(app_id, {})
            for offer in offers:
                known.pop(offer.node.id, None)
        # Of two instances that one node refuses, the one that can go nowhere else is the one to tell of.
        for refusal in sorted(refusals, key=lambda refusal: refusal.elsewhere):
            self.add(refusal)

    def add(self, refusal: Refusal) -> None:
        self._offers.setdefault(refusal.app, {})[refusal.node] = DeclinedOffer(refusal, time.time())

    def forget(self, app_id: str) -> None:
        self._offers.pop(app_id, None)

    def of(self, app_id: str) -> list[DeclinedOffer]:
        oldest = time.time() - VALID_S
        return [offer for offer in self._offers.get(app_id, {}).values() if offer.at >= oldest]
