"""A job as it is stored, and what is remembered of its runs that are over."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from frameworks.jobs.definition import Definition
from frameworks.jobs.run import SUCCESS, Finished, Run
from model.codec import Codec

RUNS_KEPT = 100  # that succeeded, and as many that did not


@dataclass(frozen=True, slots=True)
class Job:
    """`version` counts its changes. `life` tells it from an earlier one of its name."""

    definition: Definition
    version: int
    life: str

    @property
    def id(self) -> str:
        return self.definition.id


@dataclass(frozen=True, slots=True)
class History:
    """Of this life of a job. `started` is when its last run was made that is over."""

    job: str
    life: str
    successes: int = 0
    failures: int = 0
    last_success: float | None = None
    last_failure: float | None = None
    started: float = 0.0

    def slot(self, finished: Finished) -> str:
        """Where the run is kept: each takes the place of the one that is so many runs older."""
        if finished.status == SUCCESS:
            return f"{self.job}/success/{self.successes % RUNS_KEPT}"
        return f"{self.job}/failure/{self.failures % RUNS_KEPT}"

    def with_run(self, finished: Finished) -> History:
        started = max(self.started, finished.created)
        if finished.status == SUCCESS:
            last = finished.completed
            return replace(self, successes=self.successes + 1, last_success=last, started=started)
        return replace(self, failures=self.failures + 1, last_failure=finished.completed, started=started)


def new(definition: Definition) -> Job:
    return Job(definition, 1, secrets.token_hex(4))


CODEC = Codec(Job)
HISTORY = Codec(History)


def group_of(job: Job, run: str, overridden: bool) -> str:
    """Runs with the same definition have one group."""
    return f"{job.id}/{run}" if overridden else f"{job.id}@{job.life}.{job.version}"


def belongs(run: Run, job: Job | None) -> bool:
    return job is not None and run.life == job.life
