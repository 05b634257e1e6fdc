"""What jobs tell Prometheus, and the same in the form of Metronome's `/v1/metrics`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from frameworks.jobs.framework import Jobs
from frameworks.jobs.run import FAILED, KILLED, SUCCESS
from model.metrics import Family, Kind, gauge

ENDS = (SUCCESS, FAILED, KILLED)


def families(jobs: Jobs) -> Iterator[Family]:
    yield gauge("tepui_jobs", "Jobs.", float(len(jobs.ledger.jobs)))
    yield gauge("tepui_job_runs_active", "Runs of jobs that are not over.", float(len(jobs.ledger.runs)))
    yield gauge("tepui_job_runs_queued", "Runs of jobs that wait for resources.", float(len(jobs.queue)))
    started = (((), float(jobs.counts["started"])),)
    yield Family("tepui_job_runs_started_total", Kind.COUNTER, "Runs of jobs that were begun.", started)
    ended = tuple(((("status", status),), float(jobs.counts[status])) for status in ENDS)
    yield Family("tepui_job_runs_ended_total", Kind.COUNTER, "Runs of jobs that are over, by how.", ended)


def metronome_json(jobs: Jobs) -> dict[str, Any]:
    gauges, counters = {}, {}
    for family in families(jobs):
        for labels, value in family.samples:
            name = ".".join([family.name, *(value for _, value in labels)])
            if family.kind is Kind.GAUGE:
                gauges[name] = {"value": value}
            else:
                counters[name] = {"count": int(value)}
    return {"version": "4.0.0", "gauges": gauges, "counters": counters, "histograms": {}, "meters": {}, "timers": {}}
