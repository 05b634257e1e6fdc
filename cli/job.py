"""`tepui job`: what is run and ends, when it is due, and what depends on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import job_run, pipeline, schedule
from cli.client import connect
from cli.definition import read_definition
from cli.duration import duration, epoch
from cli.job_run import Id, path_of, print_runs, view_of
from cli.output import Json, print_json, print_table, print_title

app = typer.Typer(no_args_is_help=True)

Definition = Annotated[Path, typer.Argument(metavar="FILE", help="A Metronome job definition (JSON).")]
Job = dict[str, Any]


@app.command()
def add(file: Definition, json: Json = False) -> None:
    """Add a job, with its schedules if the definition has some."""
    _told(connect().post("/v1/jobs", read_definition(file)), "is there", json)


@app.command()
def update(job: Id, file: Definition, json: Json = False) -> None:
    """Give a job another definition, all of it. Its schedules stay as they are, and runs that are under way."""
    _told(connect().put(path_of(job), read_definition(file)), "is changed", json)


@app.command()
def remove(
    job: Id,
    stop: Annotated[bool, typer.Option("--stop", help="Stop its runs first.")] = False,
    json: Json = False,
) -> None:
    """Remove a job, its schedules and its history."""
    removed = connect().delete(path_of(job), stopCurrentJobRuns=str(stop).lower())
    if json:
        print_json(removed)
    else:
        typer.echo(f"{job}: is removed")


@app.command("list")
def list_jobs(json: Json = False) -> None:
    """Every job: its runs, how they ended, when it is due next and what it depends on."""
    jobs = connect().get("/v1/jobs", embed=["activeRuns", "historySummary", "schedules"])
    if json:
        print_json(jobs)
        return
    now = time.time()
    columns = ("JOB", "#RUNS", "#SUCCEEDED", "#FAILED", "LAST", "NEXT", "AFTER")
    print_table(columns, [tuple(_row(job, now)) for job in jobs])


@app.command()
def show(job: Id, json: Json = False) -> None:
    """One job: its schedules, its runs, why it waits, and the graph of what depends on it with states."""
    found = connect().get(view_of(job))
    if json:
        print_json(found)
        return
    now = time.time()
    runs = found["runs"]
    print_title(found["job"]["id"], *filter(None, [_active(runs), found["job"].get("description", "")]))
    for sentence in describe(found, now):
        typer.echo(sentence)
    if runs:
        print_runs(runs)
    if found["pipeline"] is not None:
        typer.echo(pipeline.summary(found["pipeline"], now))
        pipeline.print_pipeline(found["pipeline"], now)


@app.command()
def queue(json: Json = False) -> None:
    """Runs that wait for resources."""
    found = connect().get("/v1/queue")
    if json:
        print_json(found)
        return
    print_table(("JOB", "RUN"), [(each["jobId"], run["runId"]) for each in found for run in each["runs"]])


@app.command()
def history(job: Id, json: Json = False) -> None:
    """A job's runs that are over, the latest first, as far back as they are kept."""
    found = connect().get(path_of(job), embed="history")["history"]
    if json:
        print_json(found)
        return
    now = time.time()
    ended = {"success": found["successfulFinishedRuns"], "failed": found["failedFinishedRuns"]}
    runs = [(run, word) for word, runs in ended.items() for run in runs]
    newest = sorted(runs, key=lambda each: epoch(each[0]["finishedAt"]), reverse=True)
    print_table(("RUN", "STATE", "#TOOK", "#AGO", "TASKS"), [_ended_row(run, word, now) for run, word in newest])


def describe(found: Job, now: float) -> Iterator[str]:
    """What is to be said before its runs are listed."""
    for each in found["schedules"]:
        due = schedule.next_due(each, now)
        yield f"schedule {each['id']}: {each['cron']} {each['timezone']}, {due if due == 'disabled' else 'next ' + due}"
        if each["skipped"]:
            yield f"schedule {each['id']}: was passed over last: {each['skipped']['reason']}"
    yield ended(found["job"]["historySummary"], now)
    if not found["schedules"] and not found["job"].get("dependencies") and not found["runs"]:
        yield f"has no schedule: tepui job run {found['job']['id']}"
    for sentence in found["waiting"]:
        yield f"waiting: {sentence}"


def ended(summary: Job, now: float) -> str:
    """`12 runs succeeded, the last 2 h ago; 3 did not, the last 5 d ago`."""
    if not summary["successCount"] and not summary["failureCount"]:
        return "no run has ended yet"
    well, badly = summary["successCount"], summary["failureCount"]
    words = [f"{well} run{'s' * (well != 1)} succeeded" + _last(summary["lastSuccessAt"], now)]
    if badly:
        words.append(f"{badly} did not" + _last(summary["lastFailureAt"], now))
    return "; ".join(words)


def _last(moment: str | None, now: float) -> str:
    return f", the last {duration(now - epoch(moment))} ago" if moment else ""


def _active(runs: list[Job]) -> str:
    return f"{len(runs)} run{'s' * (len(runs) != 1)} under way" if runs else "no run under way"


def _row(job: Job, now: float) -> Iterator[object]:
    summary = job["historySummary"]
    yield from (job["id"], len(job["activeRuns"]), summary["successCount"], summary["failureCount"])
    moments = {"success": summary["lastSuccessAt"], "failed": summary["lastFailureAt"]}
    known = [(epoch(moment), word) for word, moment in moments.items() if moment]
    yield f"{max(known)[1]} {duration(now - max(known)[0])} ago" if known else None
    due = [epoch(each["nextRunAt"]) for each in job["schedules"] if each["enabled"] and each.get("nextRunAt")]
    yield f"in {duration(min(due) - now)}" if due else "disabled" if job["schedules"] else None
    yield ", ".join(each["id"] for each in job.get("dependencies", ()))


def _ended_row(run: Job, word: str, now: float) -> tuple[object, ...]:
    finished = epoch(run["finishedAt"])
    took = duration(finished - epoch(run["createdAt"]))
    return run["id"], word, took, duration(now - finished), ", ".join(run.get("tasks", ()))


def _told(job: Job, what: str, json: bool) -> None:
    if json:
        print_json(job)
    else:
        typer.echo(f"{job['id']}: {what}")


for command in (job_run.run, job_run.runs, job_run.stop, job_run.rerun, job_run.log):
    app.command()(command)
app.command("logs", hidden=True)(job_run.log)
app.add_typer(schedule.app, name="schedule", help="When a job is run by itself.")
