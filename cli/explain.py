"""`tepui explain`: why something waits, in sentences; or that it is fine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli import completion
from cli.client import Client, connect
from cli.duration import epoch
from cli.explanation import Explanation, of_job, of_pod, of_service
from cli.job_run import path_of, read_run, view_of
from cli.output import Json, print_json, print_title
from cli.problem import Problem, Refused

LOG_DEADLINE_S = 3.0
LONGEST = 200  # of a line of a log that is shown
INDENT = 13

app = typer.Typer()

Name = Annotated[str, typer.Argument(help="A service, a pod or a job.", autocompletion=completion.explained)]
Object = dict[str, Any]


@app.command()
def explain(name: Name, json: Json = False) -> None:
    """Why a service, a pod or a job is not as it should be: what it waits for, and what went wrong last."""
    found = list(_explanations(connect(), name))
    if not found:
        raise Problem(f"there is no service, pod or job {name}")
    if json:
        print_json([asdict(each) | {"fine": each.fine} for each in found])
        return
    for each in found:
        _print(each)


def _print(explanation: Explanation) -> None:
    print_title(explanation.id, explanation.kind, explanation.summary, *(["fine"] if explanation.fine else []))
    for word, sentence in (*explanation.wrong, *explanation.last):
        typer.echo(f"{word:<{INDENT}}{sentence}")


def _explanations(client: Client, name: str) -> Iterator[Explanation]:
    now = time.time()
    bare = quote(name.strip("/"))
    if (view := _known(client, f"/api/v1/services/{bare}")) is not None:
        app = client.get(f"/v2/apps/{bare}")["app"]
        words = last_words(client, app["lastTaskFailure"]["taskId"]) if "lastTaskFailure" in app else ""
        yield of_service(view, app, _changes(client, app["id"]), _queued(client, "app", app["id"]), words, now)
    if (view := _known(client, f"/api/v1/pods/{bare}")) is not None:
        pod, ended = view["status"]["id"], view["status"]["terminationHistory"][-1:]
        tasks = [container["containerId"] for each in ended for container in each["containers"]]
        words = last_words(client, tasks[0]) if tasks else ""
        yield of_pod(view, _changes(client, pod), _queued(client, "pod", pod), words, now)
    if "/" not in bare and (view := _known(client, view_of(bare))) is not None:
        failed = _last_failed(client, bare)
        words = last_words(client, failed["tasks"][-1]["id"]) if failed and failed["tasks"] else ""
        yield of_job(view, failed, words, now)


def last_words(client: Client, task: str) -> str:
    """The last line that it wrote, if that can be had at once."""
    with suppress(Problem):
        path = f"/api/v1/tasks/{quote(task)}/log"
        with client.stream(path, silence_s=LOG_DEADLINE_S, stream="both", tail=1) as chunks:
            lines = b"".join(chunks).decode(errors="replace").splitlines()
            return lines[-1][:LONGEST] if lines else ""
    return ""


def _known(client: Client, path: str) -> Object | None:
    """None of what is not there."""
    try:
        found: Object = client.get(path)
        return found
    except Refused as refused:
        if refused.status == 404:
            return None
        raise


def _changes(client: Client, owner: str) -> list[Object]:
    """Its deployments that are under way."""
    under_way = [
        each["id"] for each in client.get("/v2/deployments") if owner in (*each["affectedApps"], *each["affectedPods"])
    ]
    found = (_known(client, f"/api/v1/deployments/{each}") for each in under_way)
    return [each for each in found if each is not None and each["state"] == "running"]


def _queued(client: Client, kind: str, owner: str) -> Object | None:
    items = client.get("/v2/queue", embed="lastUnusedOffers")["queue"]
    return next((item for item in items if item.get(kind, {}).get("id") == owner), None)


def _last_failed(client: Client, job: str) -> Object | None:
    """The whole run, while it is kept."""
    failed = client.get(path_of(job), embed="history")["history"]["failedFinishedRuns"]
    if not failed:
        return None
    latest = max(failed, key=lambda run: epoch(run["finishedAt"]))
    with suppress(Refused):
        return read_run(client, job, latest["id"])
    return None
