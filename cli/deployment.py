"""`tepui service deployment`: changes of services and pods that are under way, what they wait for, and waiting for
them.

One deployment is told of as `GET /api/v1/deployments/ID` has it: `state` (running, succeeded, failed, cancelled), how
many instances are `wanted` and `serving`, how many are `old`, what it is `waiting` for in sentences, and the `reason`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from cli import completion
from cli.client import Change, Client, connect
from cli.duration import duration, epoch
from cli.output import Json, print_json, print_table
from cli.problem import Problem, Refused
from cli.progress import Step
from cli.waiting import Patience, Timeout, Wait, await_end

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
    settle(client, change, f"deployment {change.deployment}", Patience(wait, timeout, json), removal=True)


def read(client: Client, deployment: str) -> Deployment:
    found: Deployment = client.get(f"/api/v1/deployments/{deployment}")
    return found


def settle(client: Client, change: Change, told: str, patience: Patience, removal: bool = False) -> None:
    """What has begun is told; if somebody waits, then how it ended. Raises Problem when that is not well."""
    if not patience.json:
        typer.echo(told)
    elif not patience.waits:
        print_json(change.answer)
    if not patience.waits or not change.deployment:
        return
    last = ended(client, change.deployment, patience.timeout, removal)
    if patience.json:
        print_json(last)
    if last["state"] != SUCCEEDED:
        raise Problem(failure(last))
    if not patience.json:
        typer.echo(conclusion(last))


def ended(client: Client, deployment: str, timeout: float | None, removal: bool) -> Deployment:
    """Its last state. When what it was to remove is gone, nothing may be known of it any more."""

    def look() -> Deployment:
        try:
            return read(client, deployment)
        except Refused as refused:
            if refused.status == 404 and removal:
                return {"id": deployment, "state": SUCCEEDED, "wanted": 0}
            raise

    return await_end(
        look,
        lambda found: found["state"] != RUNNING,
        lambda found: step(found, preparing(client, found)),
        timeout,
        f"tepui service deployment show {deployment}",
    )


def failure(found: Deployment) -> str:
    reason = found["reason"] or "; ".join(found["waiting"])
    return ": ".join(filter(None, [f"deployment {found['id']} {found['state']}", reason]))


def preparing(client: Client, found: Deployment) -> list[str]:
    """Of its tasks, how far those are that wait for an image or files."""
    if found["serving"] >= found["wanted"]:
        return []
    for kind in ("services", "pods"):
        try:
            tasks = client.get(f"/api/v1/{kind}{found['app']}")["tasks"]
        except Refused:
            continue
        busy = [task for task in tasks if task["state"] == "PREPARING" and task["message"]]
        return [f"{task['id'].split('-')[0]} {task['message']}" for task in busy]
    return []


def step(found: Deployment, preparing: Sequence[str]) -> Step:
    """Of what it waits for the first is told. How far an image is says more than that it is waited for."""
    sentences = [*preparing, *found["waiting"]]
    more = f" (and {len(sentences) - 1} more)" if len(sentences) > 1 else ""
    text = "; ".join([f"{found['app']}: {far(found)}", *[sentence + more for sentence in sentences[:1]]])
    return Step(found["serving"], found["wanted"], text)


def far(found: Deployment) -> str:
    """`2 of 4 serve, 1 of the version before is there still`."""
    serving = f"{found['serving']} of {found['wanted']} serve"
    old = found["old"]
    if not old:
        return serving
    return f"{serving}, {old} of the version before {'is' if old == 1 else 'are'} there still"


def conclusion(found: Deployment) -> str:
    """Of one that has succeeded."""
    if not found["wanted"]:
        return "done"
    return f"{found['app']}: {found['serving']} of {found['wanted']} serve"


def describe(found: Deployment, now: float) -> Iterator[tuple[str, str]]:
    """Lines of a name and what is to be said."""
    yield "deployment", found["id"]
    yield "of", found["app"]
    state = f"{found['state']}: {found['reason']}" if found["reason"] else str(found["state"])
    yield "state", f"{state} (since {duration(now - epoch(found['since']))})"
    if found["canary"] is not None:
        yield "canary", f"{found['canary']} of the new version, until it is promoted or cancelled"
    yield "serving", far(found)
    if found["state"] != RUNNING:
        return
    for sentence in found["waiting"]:
        yield "waiting", sentence
    if found["deadline"] is not None:
        left = epoch(found["deadline"]) - now
        yield "deadline", f"in {duration(left)}: then it is rolled back" if left > 0 else "over: it is rolled back"
