"""`/v2/queue`: apps that have fewer instances than they ask for, and why.

Programs of Marathon's tell of it by reasons that have names, as a sieve: each says how many of the last offers reached
it, and how many went no further. What our sentences say is beside them, with each offer that was of no use
(`?embed=lastUnusedOffers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from frameworks.services import schema
from frameworks.services.app import App, format_time
from frameworks.services.declined import DeclinedOffer
from frameworks.services.framework import Services
from frameworks.services.pods.definition import PodDefinition
from frameworks.services.refusals import Refusal, reason
from master.rest.errors import ApiError

Json = dict[str, Any]

# In the order in which Marathon looks at an offer (`queue.raml`).
REASONS = (
    "UnfulfilledRole",
    "UnfulfilledConstraint",
    "NoCorrespondingReservationFound",
    "AgentMaintenance",
    "InsufficientCpus",
    "InsufficientMemory",
    "InsufficientDisk",
    "InsufficientGpus",
    "InsufficientPorts",
    "DeclinedScarceResources",
)
LACKING = {"cpus": "InsufficientCpus", "mem": "InsufficientMemory", "disk": "InsufficientDisk"}


class QueueApi:
    def __init__(self, services: Services) -> None:
        self._services = services

    def router(self) -> APIRouter:
        router = APIRouter(tags=["services"])
        router.get("/v2/queue", response_model=schema.QueueJson)(self.show)
        router.delete("/v2/queue/{app_id:path}/delay", status_code=204, response_class=Response)(self.end_delay)
        return router

    async def show(self, embed: Annotated[list[str], Query()] = []) -> Json:  # noqa: B006 - FastAPI copies it
        offers = "lastUnusedOffers" in embed
        return {"queue": [self._item(app, count, delay_s, offers) for app, count, delay_s in self._services.queue()]}

    async def end_delay(self, app_id: str) -> None:
        """It is started again at once, however often that has failed."""
        if not self._services.end_delay("/" + app_id):
            raise ApiError(404, f"App '/{app_id}' does not wait for its next start")

    def _item(self, app: App, count: int, delay_s: float, offers: bool) -> Json:
        what = "pod" if isinstance(app.definition, PodDefinition) else "app"
        declined = self._services.declined(app.id)
        item: Json = {
            what: app.definition.model_dump(exclude_none=True) | {"version": app.version},
            "count": count,
            "delay": {"overdue": delay_s == 0, "timeLeftSeconds": int(delay_s)},
            "since": app.version,
            "processedOffersSummary": {
                "processedOffersCount": len(declined),
                "unusedOffersCount": len(declined),
                **({"lastUnusedOfferAt": _time(max(each.at for each in declined))} if declined else {}),
                "rejectSummaryLastOffers": sieve([each.refusal for each in declined]),
                "rejectSummaryLaunchAttempt": sieve([each.refusal for each in declined]),
            },
        }
        return item | ({"lastUnusedOffers": [_unused(each) for each in declined]} if offers else {})


def sieve(refusals: Sequence[Refusal]) -> list[Json]:
    """Each refusal counts where it went no further first."""
    stopped = [next(iter(names(refusal))) for refusal in refusals]
    left, found = len(refusals), []
    for name in REASONS:
        found.append({"reason": name, "declined": stopped.count(name), "processed": left})
        left -= stopped.count(name)
    return found


def names(refusal: Refusal) -> list[str]:
    """All of Marathon's reasons that apply, in their order."""
    lacks = {LACKING[kind] for kind in refusal.lacking}
    elsewhere = bool(refusal.unmet or refusal.no_network or refusal.forbidden or refusal.no_address)
    found = lacks | {
        name
        for name, applies in (
            ("UnfulfilledConstraint", elsewhere),
            ("NoCorrespondingReservationFound", bool(refusal.elsewhere)),
            ("InsufficientPorts", bool(refusal.taken) or refusal.no_port),
            ("DeclinedScarceResources", bool(refusal.said)),
        )
        if applies
    }
    return [name for name in REASONS if name in found]


def _unused(declined: DeclinedOffer) -> Json:
    refusal = declined.refusal
    amounts = {"cpus": refusal.free.cpus / 1000, "mem": float(refusal.free.mem), "disk": float(refusal.free.disk)}
    offer = {
        "id": f"{refusal.node}-{int(declined.at)}",
        "agentId": refusal.node,
        "hostname": refusal.node,
        "resources": [{"name": kind, "role": "*", "scalar": amount} for kind, amount in amounts.items()],
        "attributes": [],
    }
    return {"offer": offer, "timestamp": _time(declined.at), "reason": names(refusal), "message": reason([refusal])}


def _time(at: float) -> str:
    return format_time(datetime.fromtimestamp(at, UTC))
