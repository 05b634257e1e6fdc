"""The commands about runs of jobs: start one, and wait for it or for all of its pipeline.

Whoever waits has exit status 0 when all succeeded, and else 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli import completion, pipeline
from cli.client import Client, connect
from cli.duration import duration, epoch
from cli.exec_options import Env, variables
from cli.log_options import Follow, Since, Stderr, Stdout, Tail, log_query
from cli.output import Json, print_json, print_table
from cli.pipeline import Pipeline
from cli.problem import Problem
from cli.progress import Step
from cli.waiting import Patience, Timeout, Wait, await_end, begin

SUCCESS = "SUCCESS"
OVER = {SUCCESS, "FAILED", "KILLED"}

Id = Annotated[str, typer.Argument(metavar="JOB", help="Its id.", autocompletion=completion.jobs)]
RunId = Annotated[str, typer.Argument(metavar="[RUN]", help="Its id; without it the latest.")]
Run = dict[str, Any]


def run(
    job: Id,
    env: Env = None,
    cmd: Annotated[str | None, typer.Option(help="Not the job's own, this once.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs, this once.")] = None,
    mem: Annotated[int | None, typer.Option(help="Memory in MiB, this once.")] = None,
    disk: Annotated[int | None, typer.Option(help="Disk in MiB, this once.")] = None,
    wait: Wait = False,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Start a job, and with it those that depend on it, when it has succeeded."""
    given = {"cmd": cmd, "cpus": cpus, "mem": mem, "disk": disk, "env": variables(env) if env else None}
    client = connect()
    started = client.post(f"{path_of(job)}/runs", {name: value for name, value in given.items() if value is not None})
    settle(client, read_run(client, job, started["id"]), started, Patience(wait, timeout, json))


def runs(job: Id, json: Json = False) -> None:
    """A job's runs that are not over: their tasks, and why they wait."""
    found = connect().get(view_of(job))
    if json:
        print_json(found["runs"])
        return
    print_runs(found["runs"])
    for sentence in found["waiting"]:
        typer.echo(f"waiting: {sentence}")


def stop(
    job: Id,
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="Its id; without it all of the job.")] = "",
    whole: Annotated[bool, typer.Option("--pipeline", help="And all others of its pipeline.")] = False,
    json: Json = False,
) -> None:
    """Stop a run of a job."""
    client = connect()
    found = client.get(view_of(job))["runs"]
    chosen = [each for each in found if run in ("", each["id"])]
    if not chosen:
        raise Problem(f"{job}: run {run} is not under way" if run else f"{job}: no run is under way")
    stopped = []
    for each in chosen:
        if whole and each["pipeline"]:
            stopped.append(client.post(f"/api/v1/pipelines/{each['pipeline']}/actions/stop")["pipeline"])
        else:
            stopped.append(client.post(f"{path_of(job)}/runs/{each['id']}/actions/stop"))
    if json:
        print_json(stopped)
        return
    for each in chosen:
        typer.echo(f"{job}: run {each['id']} is stopped" + " with its pipeline" * bool(whole and each["pipeline"]))


def rerun(job: Id, run: RunId = "", wait: Wait = False, timeout: Timeout = None, json: Json = False) -> None:
    """Of a pipeline, run again what did not succeed and what depends on it. RUN is the one with which it began."""
    client = connect()
    if not run:
        last = client.get(view_of(job))["pipeline"]
        if last is None or last["id"] is None:
            raise Problem(f"{job}: has not been run as part of a pipeline")
        run = last["id"]
    again = client.post(f"/api/v1/pipelines/{quote(run)}/rerun")["pipeline"]
    settle_pipeline(client, again["id"], f"pipeline {again['id']}", again, Patience(wait, timeout, json))


def log(
    job: Id,
    run: RunId = "",
    follow: Follow = False,
    tail: Tail = -1,
    since: Since = "",
    stdout: Stdout = False,
    stderr: Stderr = False,
    json: Json = False,
) -> None:
    """What the latest task of a run wrote, also when it is over."""
    client = connect()
    task = latest_task(read_run(client, job, run or latest_run(client, job)))
    with client.stream(f"/api/v1/tasks/{quote(task)}/log", **log_query(follow, tail, since, stdout, stderr)) as chunks:
        if json:
            print_json({"task": task, "output": b"".join(chunks).decode(errors="replace")})
            return
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


def path_of(job: str) -> str:
    return f"/v1/jobs/{quote(job.strip('/'), safe='')}"


def view_of(job: str) -> str:
    return f"/api{path_of(job)}"


def read_run(client: Client, job: str, run: str) -> Run:
    found: Run = client.get(f"{view_of(job)}/runs/{quote(run)}")["run"]
    return found


def latest_run(client: Client, job: str) -> str:
    """Of those under way, or of those that are over. Raises Problem."""
    history = client.get(path_of(job), embed=["history", "activeRuns"])
    past = history["history"]
    known = [*history["activeRuns"], *past["successfulFinishedRuns"], *past["failedFinishedRuns"]]
    if not known:
        raise Problem(f"{job}: has never been run")
    return str(max(known, key=lambda each: (epoch(each["createdAt"]), each["id"]))["id"])


def latest_task(run: Run) -> str:
    """Raises Problem."""
    if not run["tasks"]:
        why = "; ".join([*run["waiting"], *filter(None, [run["reason"]])])
        raise Problem(f"{run['jobId']}: run {run['id']} has no task" + (f": {why}" if why else ""))
    return str(run["tasks"][-1]["id"])


def settle(client: Client, run: Run, answer: Any, patience: Patience) -> None:
    """Show what has begun, and if somebody waits, what it comes to. Raises Problem when that is not well."""
    told = f"{run['jobId']}: run {run['id']}"
    if run["pipeline"]:
        settle_pipeline(client, run["pipeline"], told, answer, patience)
        return
    begin(told, answer, patience)
    if not patience.waits:
        return
    see = f"tepui job runs {run['jobId']}"
    look = partial(read_run, client, run["jobId"], run["id"])
    last = await_end(look, lambda found: found["status"] in OVER, step, patience.timeout, see)
    if patience.json:
        print_json(last)
    if last["status"] != SUCCESS:
        raise Problem(failure(last))
    if not patience.json:
        took = epoch(last["completedAt"]) - epoch(last["createdAt"])
        typer.echo(f"{last['jobId']}: success after {duration(took)}")


def settle_pipeline(client: Client, run: str, told: str, answer: Any, patience: Patience) -> None:
    """As above."""

    def look() -> Pipeline:
        found: Pipeline = client.get(f"/api/v1/pipelines/{quote(run)}")["pipeline"]
        return found

    begin(told, answer, patience)
    last = look()
    if patience.waits:
        see = f"tepui job show {last['job']}"
        last = await_end(look, lambda found: found["state"] in OVER, _pipeline_step, patience.timeout, see)
    if patience.json and patience.waits:
        print_json(last)
    elif not patience.json:
        typer.echo(pipeline.summary(last, time.time()))
        pipeline.print_pipeline(last, time.time())
    if patience.waits and last["state"] != SUCCESS:
        raise Problem(pipeline.failure(last))


def _pipeline_step(found: Pipeline) -> Step:
    return pipeline.step(found, time.time(), pipeline.room())


def step(run: Run) -> Step:
    """`load: starting: needs 4 CPU: ...`."""
    sentences = run["waiting"] or [task["message"] for task in run["tasks"][-1:] if task["message"]]
    attempt = [f"attempt {run['attempt']}"] if run["attempt"] > 1 else []
    return Step(0, 1, ": ".join([f"{run['jobId']}: {', '.join([run['status'].lower(), *attempt])}", *sentences[:1]]))


def failure(run: Run) -> str:
    return f"{run['jobId']}: {how(run)}"


def how(run: Run) -> str:
    """`run 2026... failed: exited with 3`. What a task says of its end may begin with the word."""
    word = run["status"].lower()
    return ": ".join([f"run {run['id']} {word}", *(why.removeprefix(f"{word}: ") for why in causes(run))])


def causes(run: Run) -> Iterator[str]:
    """Why it did not succeed; of its tasks the last one knows best."""
    last = run["tasks"][-1] if run["tasks"] else {}
    said = run["reason"] or last.get("message") or ""
    if said:
        yield str(said)
    elif last.get("exitCode"):
        yield f"exit code {last['exitCode']}"


def print_runs(runs: Sequence[Run]) -> None:
    now = time.time()
    columns = ("RUN", "STATE", "#ATTEMPT", "TASK", "NODE", "#SINCE", "SCHEDULE", "REASON")
    print_table(columns, [_row(run, now) for run in runs])


def _row(run: Run, now: float) -> tuple[object, ...]:
    task = run["tasks"][-1] if run["tasks"] else {}
    why = [*causes(run)] or run["waiting"][:1]
    since = duration(now - epoch(run["createdAt"]))
    state = run["status"].lower()
    return run["id"], state, run["attempt"], task.get("id"), task.get("node"), since, run["schedule"], "; ".join(why)
