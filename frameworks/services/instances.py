"""Instances of an app that has persistent volumes: what is left of a task when it is over, and where it can go on.

An instance is named by its volumes, which are on one node. While none of its tasks runs it waits for one: first those
that are missing, then those that were left when the app shrank.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from master.offers import VolumeView


@dataclass(frozen=True, slots=True)
class Instance:
    id: str
    node: str
    volumes: frozenset[str]


def idle(app_id: str, views: Iterable[VolumeView], used: Collection[str], condemned: Collection[str]) -> list[Instance]:
    """Those of the app that have no task, and none of whose volumes is about to be destroyed."""
    groups: dict[str, list[VolumeView]] = {}
    for view in views:
        if view.volume.owner == app_id:
            groups.setdefault(view.volume.instance, []).append(view)
    return [
        Instance(name, group[0].node, frozenset(view.volume.id for view in group))
        for name, group in sorted(groups.items())
        if not any(view.task or view.volume.id in used or _going(view, condemned) for view in group)
    ]


def remains(views: Iterable[VolumeView], condemned: Collection[str]) -> set[str]:
    """What is to be destroyed: what is condemned, and what has lost a volume of its instance."""
    known = list(views)
    broken = {view.volume.instance for view in known if _going(view, condemned)}
    return {view.volume.id for view in known if view.volume.instance in broken and not view.destroying}


def _going(view: VolumeView, condemned: Collection[str]) -> bool:
    return view.destroying or view.volume.id in condemned


@dataclass(slots=True)
class Waiting:
    """Since when instances have been missing, and which ones are left over. In memory alone: after a restart of the
    master they wait anew."""

    left: set[str] = field(default_factory=set)  # volumes
    since: dict[str, float] = field(default_factory=dict)  # by instance

    def choose(self, instances: list[Instance], count: int, patience_s: float, now: float) -> list[Instance]:
        """Which are to go on, of so many that are missing. One that has waited in vain is not: another begins anew."""
        ranked = sorted(instances, key=lambda instance: (bool(instance.volumes & self.left), instance.id))
        chosen = ranked[:count]
        names = {instance.id for instance in chosen}
        for instance in instances:
            if instance.id in names:
                self.since.setdefault(instance.id, now)
            else:
                self.since.pop(instance.id, None)
        return [instance for instance in chosen if now - self.since[instance.id] < patience_s]

    def launched(self, instance: str, volumes: Collection[str]) -> None:
        self.left.difference_update(volumes)
        self.since.pop(instance, None)
