"""What is to be written when runs are over: many of them in one transaction.

Each is removed, counted in its job's history and kept there in place of an old one; pipelines go on; and a run that is
tried again is written with its next attempt. Nothing grows with the number of runs that were.
"""

from __future__ import annotations

from typing import Any

from frameworks.jobs import pipeline as pipelines
from frameworks.jobs.job import History, belongs
from frameworks.jobs.ledger import FINISHED_PREFIX, Change, Ledger
from frameworks.jobs.run import FINISHED, SUCCESS, Finished, Run, after
from frameworks.jobs.starts import Progress
from master.offers import TaskView
from master.store.base import Put


class Ends:
    def __init__(self, ledger: Ledger, now: float) -> None:
        self._ledger = ledger
        self._now = now
        self.finished: list[Finished] = []
        self.again: list[Run] = []
        self.acknowledged: list[TaskView] = []  # once all this is written
        self.progress = Progress(ledger, now)
        self._histories: dict[str, History] = {}
        self._slots: dict[str, Put] = {}

    def add(self, run: Run, view: TaskView | None, started: float | None) -> None:
        """`view` is the end of its task; None: it has none, and shall have none."""
        outcome = after(run, view, started, self._now)
        if view is not None:
            self.acknowledged.append(view)
        if isinstance(outcome, Run):
            self.again.append(outcome)
            return
        self.finished.append(outcome)
        self._remember(run, outcome)
        if (pipeline := self.progress.known(run.pipeline)) is not None:
            ended = pipelines.ended(pipeline, run.job, run.id, outcome.status, outcome.reason, self._now)
            self.progress.put(ended)

    def changes(self) -> list[Change[Any]]:
        """To be called once."""
        self.progress.advance()
        ledger = self._ledger
        return [
            *(Change(ledger.runs, f"{each.job}/{each.id}", None) for each in self.finished),
            *(Change(ledger.runs, run.key, run) for run in self.again),
            *(Change(ledger.history, name, history) for name, history in self._histories.items()),
            *self.progress.changes(),
        ]

    def kept(self) -> list[Put]:
        return list(self._slots.values())

    def _remember(self, run: Run, outcome: Finished) -> None:
        job = self._ledger.jobs.get(run.job)
        if job is None or not belongs(run, job):
            return
        history = self._histories.get(job.id) or self._ledger.history_of(job)
        slot = FINISHED_PREFIX + history.slot(outcome)
        self._slots[slot] = Put(slot, FINISHED.encode(outcome))
        self._histories[job.id] = history.with_run(outcome)
        if outcome.status == SUCCESS:
            self.progress.succeeded(job.id)
