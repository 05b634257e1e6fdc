"""Gives runs that wait to offers, and keeps why there was no room for some.

As many runs as fit go to a node in one accept, and the accepts for all nodes go to the store together. Offers that are
left stay at hand while a group of runs is yet to be looked at, and are declined then: nobody else gets them meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from frameworks.jobs.ledger import Ledger
from frameworks.jobs.live import Live
from frameworks.jobs.queue import Queue
from frameworks.jobs.task import task_of
from frameworks.services.place import Demand, Placement, place
from frameworks.services.refusals import Refusal, reason
from master.offers import Offer, OfferGone, Offers, Rescinded, Subscription
from master.store.base import StoreError
from model.task import TaskSpec

GATHER_S = 0.05  # offers of several nodes arrive one by one; to spread, wait this long for the others
RETRY_S = 1.0  # after the master could not write a launch down
LAUNCHES = 256  # at once, so that many runs do not hold up the ends of others
NODE_LAUNCHES = 32  # on one node at once: where others are about to be offered, they get their part
REASONS = 5  # told of one offer
NOTHING_WAITS = "no run waits for resources"

log = structlog.get_logger()


class Launcher:
    """`sort` is called with the key of each run that has a task now, or has not got one after all."""

    def __init__(
        self, subscription: Subscription, ledger: Ledger, live: Live, queue: Queue, sort: Callable[[str], None]
    ) -> None:
        self._subscription = subscription
        self._ledger = ledger
        self._live = live
        self._queue = queue
        self._sort = sort
        self._offers: dict[str, Offer] = {}
        self._offers_since = 0.0
        self._refused: set[str] = set()  # groups for which there is no room in the offers at hand
        self._reasons: dict[str, list[Refusal]] = {}  # by node
        self._suppressed = False
        self._ask = True

    def offered(self, event: Offers | Rescinded) -> None:
        if isinstance(event, Rescinded):
            self._offers.pop(event.offer_id, None)
            return
        if not self._offers:
            self._offers_since = time.monotonic()
        self._offers.update({offer.id: offer for offer in event.offers})
        self._refused.clear()

    def ask(self) -> None:
        """There is something new to launch, or something was freed: nodes that were declined may be of use."""
        self._ask = True

    async def launch(self) -> float | None:
        """As much as can be done at once. Returns when to come back, in seconds, if nothing happens before."""
        if not self._queue:
            self._decline_all()
            if not self._suppressed:
                self._subscription.suppress()
                self._suppressed = True
            return None
        if self._ask or self._suppressed:
            self._ask = self._suppressed = False
            self._subscription.revive()
        if not self._offers:
            return None
        if (rest := self._offers_since + GATHER_S - time.monotonic()) > 0:
            return rest
        demands = self._queue.next_groups(LAUNCHES, self._refused)
        if not demands:
            self._decline_all()
            return None
        offers = list(self._offers.values())
        plan = place(demands, offers, {})
        self._remember(demands, offers, plan.refusals)
        chosen: dict[str, list[Placement]] = {}
        for placement in plan.placements:
            on_offer = chosen.setdefault(placement.offer.id, [])
            if len(on_offer) < NODE_LAUNCHES:
                on_offer.append(placement)
        pairs = [(self._offers.pop(offer_id), placements) for offer_id, placements in chosen.items()]
        failed = not all(await asyncio.gather(*(self._accept(offer, placements) for offer, placements in pairs)))
        return RETRY_S if failed else 0.0

    def _remember(self, demands: Sequence[Demand], offers: Sequence[Offer], refusals: Sequence[Refusal]) -> None:
        self._queue.remember(demands, [offer.node.id for offer in offers], refusals)
        for refusal in refusals:
            self._refused.add(refusal.app)
            told = self._reasons.setdefault(refusal.node, [])
            if len(told) < REASONS and (group := self._queue.group(refusal.app)) is not None:
                told.append(replace(refusal, app=group.job))

    def _decline_all(self) -> None:
        for offer in self._offers.values():
            refusals = self._reasons.get(offer.node.id, [])
            self._subscription.decline(offer.id, reason(refusals) if self._queue else NOTHING_WAITS)
        self._offers.clear()
        self._refused.clear()
        self._reasons.clear()

    async def _accept(self, offer: Offer, placements: Sequence[Placement]) -> bool:
        """Whether the master could be told."""
        specs = self._staged(offer, placements)
        if not specs:
            self._subscription.decline(offer.id, NOTHING_WAITS, filter_s=0.0)
            return True
        try:
            await self._subscription.accept(offer.id, list(specs.values()))
        except OfferGone:
            self._unstage(specs)
        except (StoreError, ValueError) as error:
            log.error("launch runs", node=offer.node.id, count=len(specs), error=str(error))
            self._subscription.decline(offer.id, str(error))
            # Whether it was written before it failed, only the master can tell.
            for view in await self._subscription.reconcile():
                if view.spec.id in {spec.id for spec in specs.values()}:
                    self._live.note(view)
            self._unstage(specs)
            said = [Refusal(p.app, offer.node.id, offer.resources, said=str(error)) for p in placements]
            self._queue.remember((), (), said)
            return False
        return True

    def _staged(self, offer: Offer, placements: Sequence[Placement]) -> dict[str, TaskSpec]:
        """A task for each placement, by the key of its run. Runs may have been stopped meanwhile."""
        specs: dict[str, TaskSpec] = {}
        for placement in placements:
            key, group = self._queue.first(placement.app), self._queue.group(placement.app)
            run = self._ledger.runs.get(key) if key is not None else None
            if key is None or group is None or run is None:
                continue
            specs[key] = task_of(run, group.template, str(offer.node.address))
            self._live.stage(specs[key], offer)
            self._sort(key)
        return specs

    def _unstage(self, specs: dict[str, TaskSpec]) -> None:
        for key, spec in specs.items():
            self._live.unstage(spec.id)
            self._sort(key)
