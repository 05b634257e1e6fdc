"""Runs that wait for resources, in groups that ask for the same, in the order in which they came.

Groups take turns: those that were looked at go to the end, so that a group for which there is no room, or one of ten
thousand runs, is in nobody's way. A run is entered, found and taken at no cost that grows with how many wait.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from frameworks.jobs.run import Run
from frameworks.jobs.task import Template, template
from frameworks.services.place import Demand
from frameworks.services.refusals import Refusal, explain

REFUSAL_VALID_S = 15.0  # a declined node is offered again after 5 s; not heard of since: it is gone
EXPLAINED_S = 0.1  # thousands of runs of a group wait for the same


@dataclass(slots=True, eq=False)
class Group:
    job: str
    template: Template
    runs: dict[str, None] = field(default_factory=dict)  # keys
    refusals: dict[str, tuple[float, Refusal]] = field(default_factory=dict)  # by node
    explained: tuple[float, list[str]] = (0.0, [])  # when, on the monotonic clock


class Queue:
    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}
        self._group_of: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    def __contains__(self, key: str) -> bool:
        return key in self._group_of

    def add(self, run: Run) -> None:
        if run.key in self._group_of:
            return
        if run.group not in self._groups:
            self._groups[run.group] = Group(run.job, template(run))
        self._groups[run.group].runs[run.key] = None
        self._group_of[run.key] = run.group

    def discard(self, key: str) -> None:
        name = self._group_of.pop(key, None)
        if name is None:
            return
        del self._groups[name].runs[key]
        if not self._groups[name].runs:
            del self._groups[name]

    def group(self, name: str) -> Group | None:
        return self._groups.get(name)

    def next_groups(self, most: int, skipped: Collection[str]) -> list[Demand]:
        """What is asked for by the groups whose turn it is, `most` runs of all together. They go to the end."""
        turn = list(islice((name for name in self._groups if name not in skipped), most))
        demands: list[Demand] = []
        for name in turn:
            group = self._groups.pop(name)
            self._groups[name] = group
            demands.append(replace(group.template.demand, count=min(len(group.runs), most)))
            most -= demands[-1].count
            if not most:
                break
        return demands

    def first(self, name: str) -> str | None:
        """The key of the run of the group that came first."""
        group = self._groups.get(name)
        return next(iter(group.runs), None) if group is not None else None

    def keys(self) -> Iterable[str]:
        return self._group_of.keys()

    def remember(self, demands: Iterable[Demand], nodes: Sequence[str], refusals: Iterable[Refusal]) -> None:
        """What the nodes' offers were found to lack."""
        now = time.monotonic()
        for demand in demands:
            if (group := self._groups.get(demand.app)) is not None:
                for node in nodes:
                    group.refusals.pop(node, None)
        for refusal in refusals:
            if (group := self._groups.get(refusal.app)) is not None:
                group.refusals[refusal.node] = (now, refusal)

    def waiting(self, key: str) -> list[str]:
        """Why the run waits, in sentences."""
        group = self._groups.get(self._group_of.get(key, ""))
        if group is None:
            return []
        now = time.monotonic()
        if group.explained[0] + EXPLAINED_S <= now:
            refusals = [refusal for at, refusal in group.refusals.values() if at >= now - REFUSAL_VALID_S]
            said = explain(group.template.demand.resources, refusals)
            group.explained = now, said or ["no node has offered resources yet"]
        return group.explained[1]
