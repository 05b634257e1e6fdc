"""What can not be done with jobs, as answers in Metronome's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from frameworks.jobs.bodies import refused
from frameworks.jobs.catalog import Blocked, Invalid, Taken, UnknownJob, UnknownSchedule
from frameworks.jobs.framework import Jobs, NothingFailed, UnknownPipeline, UnknownRun
from frameworks.jobs.run import Finished, Run
from master.rest.errors import ApiError
from master.store.base import Conflict


@contextmanager
def told(job_id: str = "") -> Iterator[None]:
    try:
        yield
    except UnknownJob as error:
        raise ApiError(404, f"Job '{error}' does not exist") from error
    except UnknownSchedule as error:
        raise ApiError(404, f"Schedule '{error}' does not exist") from error
    except UnknownRun as error:
        raise ApiError(404, f"JobRun '{str(error).partition('/')[2]}' does not exist") from error
    except UnknownPipeline as error:
        raise ApiError(404, f"Pipeline '{error}' does not exist") from error
    except NothingFailed as error:
        raise ApiError(
            409, f"Changes blocked: nothing of pipeline {error} failed, so nothing can be run again"
        ) from error
    except (Taken, Blocked) as error:
        raise ApiError(409, str(error)) from error
    except Conflict as error:
        raise ApiError(409, f"Changes blocked: job {job_id} was changed at the same moment") from error
    except Invalid as error:
        raise ApiError(422, "Object is not valid", error.problems) from error
    except ValidationError as error:
        raise refused(error) from error


async def known_run(jobs: Jobs, job_id: str, run_id: str) -> Run | Finished:
    """Also one that is over, while it is kept. Raises ApiError."""
    if (run := jobs.ledger.runs.get(f"{job_id}/{run_id}")) is not None:
        return run
    with told(job_id):
        jobs.catalog.read(job_id)
    for finished in await jobs.ledger.finished(job_id):
        if finished.id == run_id:
            return finished
    raise ApiError(404, f"JobRun '{run_id}' does not exist")
