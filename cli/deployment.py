"""`tepui service deployment`: changes of services and pods that are under way, what they wait for, and waiting for
them.

One deployment is told of as `GET /api/v1/deployments/ID` has it: `state` (running, succeeded, failed, cancelled), how
many instances are `wanted` and `serving`, how many are `old`, what it is `waiting` for in sentences, and the `reason`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli import completion
from cli.client import Change, Client, connect
from cli.duration import duration, epoch
from cli.output import Json, print_json, print_table
from cli.problem import Problem, Refused
from cli.progress import Step
from cli.task_table import short
from cli.waiting import Patience, Timeout, Wait, await_end, begin

TERMINAL = {"FINISHED", "FAILED", "KILLED", "REJECTED", "LOST", "GONE"}
RUNNING, SUCCEEDED = "running", "succeeded"

app = typer.Typer(no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Its id.", autocompletion=completion.deployments)]
Deployment = dict[str, Any]


@app.command("list")
def list_deployments(json: Json = False) -> None:
    """Services and pods that are not yet as they were asked to be."""
    found = connect().get("/v2/deployments")
    if json:
        print_json(found)
        return
    now = time.time()
    rows = (
        (each["id"], ", ".join(each["affectedApps"] + each["affectedPods"]), duration(now - epoch(each["version"])))
        for each in found
    )
    print_table(("DEPLOYMENT", "OF", "#SINCE"), rows)


@app.command()
def show(deployment: Id, json: Json = False) -> None:
    """One deployment: how far it is, and what it waits for."""
    found = read(connect(), deployment)
    if json:
        print_json(found)
        return
    for name, value in describe(found, time.time()):
        typer.echo(f"{name:<10} {value}")


@app.command()
def cancel(deployment: Id, wait: Wait = False, timeout: Timeout = None, json: Json = False) -> None:
    """Go back from a deployment, also of a canary, to what was there before; a service that is new is removed."""
    client = connect()
    change = client.change("DELETE", f"/v2/deployments/{deployment}")
    settle(client, change, f"deployment {change.deployment}", Patience(wait, timeout, json), read_ended)


def read(client: Client, deployment: str) -> Deployment:
    found: Deployment = client.get(f"/api/v1/deployments/{deployment}")
    return found


def settle(
    client: Client,
    change: Change,
    told: str,
    patience: Patience,
    read: Callable[[Client, str], Deployment] = read,
) -> None:
    """What has begun is told; if somebody waits, then how it ended. Raises Problem when that is not well."""
    begin(told, change.answer, patience)
    if not patience.waits or not change.deployment:
        return
    last = await_end(
        lambda: read(client, change.deployment),
        over,
        lambda found: step(found, preparing(client, found)),
        patience.timeout,
        f"tepui service deployment show {change.deployment}",
    )
    if patience.json:
        print_json(last)
    if last["state"] not in (SUCCEEDED, RUNNING):
        raise Problem(failure(last))
    if not patience.json:
        typer.echo(conclusion(last))


def settle_removal(client: Client, owner: str, change: Change, patience: Patience) -> None:
    """As above: until no task is left."""

    def left() -> list[str]:
        tasks = client.get("/api/v1/tasks")["tasks"]
        return [task["id"] for task in tasks if task["owner"] == owner and task["state"] not in TERMINAL]

    def count(tasks: list[str]) -> Step:
        most.append(len(tasks))
        return Step(most[0] - len(tasks), most[0], f"{owner}: {len(tasks)} task{'s' * (len(tasks) > 1)} left")

    most: list[int] = []
    begin(f"{owner}: deployment {change.deployment}", change.answer, patience)
    if not patience.waits:
        return
    await_end(left, lambda tasks: not tasks, count, patience.timeout, "tepui task list")
    if patience.json:
        print_json(change.answer)
    else:
        typer.echo(f"{owner}: is gone")


def read_ended(client: Client, deployment: str) -> Deployment:
    """As `read`. One that removes what was new is not known any more when it is done."""
    try:
        return read(client, deployment)
    except Refused as refused:
        if refused.status == 404:
            return {"id": deployment, "state": SUCCEEDED, "wanted": 0}
        raise


def over(found: Deployment) -> bool:
    """A canary that serves in the place of others is what was asked for; it stays until somebody says what becomes of
    it."""
    if found["state"] != RUNNING:
        return True
    canary, beside = found["canary"], found["wanted"] - found["old"]
    return canary is not None and min(found["serving"], beside) >= canary


def failure(found: Deployment) -> str:
    reason = found["reason"] or "; ".join(found["waiting"])
    return ": ".join(filter(None, [f"deployment {found['id']} {found['state']}", reason]))


def preparing(client: Client, found: Deployment) -> list[str]:
    """Of its tasks, how far those are that wait for an image or files."""
    if found["serving"] >= found["wanted"]:
        return []
    tasks = [task for app in found["apps"] for task in _tasks_of(client, app) if task["state"] == "PREPARING"]
    return [f"{short(task['id'])} {task['message']}" for task in tasks if task["message"]]


def _tasks_of(client: Client, app: str) -> list[dict[str, Any]]:
    """Of a service or a pod; none of what is gone."""
    for kind in ("services", "pods"):
        with suppress(Refused):
            tasks: list[dict[str, Any]] = client.get(f"/api/v1/{kind}{quote(app)}")["tasks"]
            return tasks
    return []


def step(found: Deployment, preparing: Sequence[str]) -> Step:
    """Of what it waits for the first is told. How far an image is says more than that it is waited for."""
    sentences = [*preparing, *found["waiting"]]
    more = f" (and {len(sentences) - 1} more)" if len(sentences) > 1 else ""
    text = "; ".join([f"{', '.join(found['apps'])}: {far(found)}", *[sentence + more for sentence in sentences[:1]]])
    return Step(found["serving"], found["wanted"], text)


def far(found: Deployment) -> str:
    """`2 of 4 serve, 1 of the version before is there still`."""
    serving, old = found["serving"], found["old"]
    if found["canary"] is not None:
        return f"{serving} of {found['canary']} of the new version serve, beside {old} of the version before"
    said = f"{serving} of {found['wanted']} serve"
    return said + (f", {old} of the version before {'is' if old == 1 else 'are'} there still" if old else "")


def conclusion(found: Deployment) -> str:
    """Of one that is over, and well."""
    if not found["wanted"]:
        return "done"
    names = ", ".join(found["apps"])
    if found["state"] == RUNNING:
        then = f"tepui service promote {names}, or tepui service deployment cancel {found['id']}"
        return f"{names}: {far(found)}\nThen: {then}"
    return f"{names}: {found['wanted']} of {found['wanted']} serve"


def describe(found: Deployment, now: float) -> Iterator[tuple[str, str]]:
    """Lines of a name and what is to be said."""
    yield "deployment", found["id"]
    yield "of", ", ".join(found["apps"])
    state = f"{found['state']}: {found['reason']}" if found["reason"] else str(found["state"])
    yield "state", f"{state} (since {duration(now - epoch(found['since']))})"
    if found["state"] != RUNNING:
        return
    yield "serving", far(found)
    for sentence in found["waiting"]:
        yield "waiting", sentence
    if found["deadline"] is not None:
        left = epoch(found["deadline"]) - now
        yield "deadline", f"in {duration(left)}: then it is rolled back" if left > 0 else "over: it is rolled back"
