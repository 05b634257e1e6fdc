"""`tepui events`: what happens to the cluster, to services and to jobs, in one order."""

from __future__ import annotations

import json as codec
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

import typer

from cli import completion
from cli.client import connect
from cli.event_streams import FIRST, NOTICE, Event, follow, kept
from cli.output import Json

app = typer.Typer()

Data = dict[str, Any]

ALWAYS = ("missed", NOTICE)
# They say once more what others say: only when asked for.
REPEATED = (
    "status_update_event",
    "health_status_changed_event",
    "instance_changed_event",
    "instance_health_changed_event",
    "deployment_step_success",
    "job_run_updated",
)


@app.command()
def events(
    follow_on: Annotated[bool, typer.Option("--follow", "-f", help="Go on until interrupted.")] = False,
    kinds: Annotated[
        list[str] | None, typer.Option("--type", "-t", help="Only these: task, node, deployment_success... Repeatable.")
    ] = None,
    owner: Annotated[
        str, typer.Option("--app", help="Only of this service, pod or job.", autocompletion=completion.explained)
    ] = "",
    json: Json = False,
) -> None:
    """What happened to tasks, nodes, services, jobs and networks, as far back as the master remembers."""
    client = connect()
    before = kept(client)
    known = sorted((event for found in before.values() for event in found), key=lambda event: event.at)
    _print([event for event in known if fits(event, kinds or (), owner)], json)
    if not follow_on:
        return
    last = {source: found[-1].id if found else FIRST for source, found in before.items()}
    with suppress(KeyboardInterrupt):
        for together in follow(connect, last):
            _print([event for event in together if fits(event, kinds or (), owner)], json)


def fits(event: Event, kinds: Collection[str], owner: str) -> bool:
    if event.kind in ALWAYS:
        return True
    wanted = event.kind in kinds if kinds else event.kind not in REPEATED
    return wanted and (not owner or owner.strip("/") in {each.strip("/") for each in owners(event.data)})


def owners(data: Data) -> Iterator[str]:
    """The services, pods and jobs that it is about."""
    yield from (str(data[key]) for key in ("owner", "appId", "runSpecId", "podId", "jobId") if key in data)
    yield from (str(data[key]["id"]) for key in ("appDefinition", "podDefinition") if key in data)
    if "jobRun" in data:
        yield str(data["jobRun"]["jobId"])
    if "job" in data:
        yield str(data["job"]["id"] if isinstance(data["job"], dict) else data["job"])
    yield from (str(node["job"]) for node in data.get("nodes", ()))
    yield from _affected(data)


def describe(kind: str, data: Data) -> str:
    if kind == "missed":
        return f"... {data['count']} events are no longer kept"
    if kind == NOTICE:
        return f"... {data['text']}"
    at = datetime.fromtimestamp(data["at"]).strftime("%Y-%m-%d %H:%M:%S")
    return f"{at}  {SENTENCES[kind](data) if kind in SENTENCES else _other(kind, data)}"


def _task(data: Data) -> str:
    words = [data["state"], "ending" * data["killing"], "unhealthy" * (data["healthy"] is False), data["reason"]]
    return f"task {data['task']} on {data['node']}: {'; '.join(filter(None, words))}"


def _node(data: Data) -> str:
    state = data["state"] if data["connected"] else f"{data['state']}, not connected"
    return f"node {data['node']}: {'; '.join([state, *data['errors']])}"


def _status(data: Data) -> str:
    return f"task {data['taskId']} on {data['host']}: {'; '.join(filter(None, [data['taskStatus'], data['message']]))}"


def _health(data: Data) -> str:
    return f"task {data['taskId']}: {'healthy' if data['alive'] else 'unhealthy'}"


def _asked(data: Data) -> str:
    return f"service {data['appDefinition']['id']}: asked for by {data['clientIp']}"


def _pod(word: str) -> Callable[[Data], str]:
    return lambda data: f"pod {next(owners(data))}: {word} by {data['clientIp']}"


def _deployment(word: str) -> Callable[[Data], str]:
    return lambda data: f"deployment {data['plan']['id']} of {', '.join(_affected(data))}: {word}"


def _job(word: str) -> Callable[[Data], str]:
    return lambda data: f"job {data['job']['id']}: {word}"


def _run(data: Data) -> str:
    run = data["jobRun"]
    words = [run["status"].lower(), data.get("reason", "")]
    return f"job {run['jobId']}: run {run['id']}: {'; '.join(filter(None, words))}"


def _pipeline(data: Data) -> str:
    nodes = ", ".join(f"{node['job']} {node['state'].lower()}" for node in data["nodes"])
    return f"pipeline {data['pipeline']} of {data['job']}: {data['state'].lower()} ({nodes})"


def _skipped(data: Data) -> str:
    return f"job {data['jobId']}: schedule {data['id']} is passed over: {data['reason']}"


def _other(kind: str, data: Data) -> str:
    about = ", ".join(dict.fromkeys(owners(data)))
    return f"{kind} {about}".rstrip()


def _affected(data: Data) -> Iterator[str]:
    for step in data.get("plan", {}).get("steps", ()):
        yield from (str(action.get("app") or action.get("pod")) for action in step["actions"])


SENTENCES: dict[str, Callable[[Data], str]] = {
    "task": _task,
    "node": _node,
    "network": lambda data: f"network {data['network']}: {data['state']}",
    "policy": lambda data: f"policy {data['policy']}: {data['state']}",
    "status_update_event": _status,
    "health_status_changed_event": _health,
    "api_post_event": _asked,
    "pod_created_event": _pod("asked for"),
    "pod_updated_event": _pod("changed"),
    "pod_deleted_event": _pod("removed"),
    "failed_health_check_event": lambda data: f"task {data['taskId']}: a check has failed",
    "unhealthy_task_kill_event": lambda data: f"task {data['taskId']} on {data['host']} is given up: {data['reason']}",
    "group_change_success": lambda data: f"group {data['groupId']}: changed",
    "app_terminated_event": lambda data: f"service {data['appId']}: removed",
    "deployment_info": _deployment("begins"),
    "deployment_success": _deployment("succeeded"),
    "deployment_failed": _deployment("failed"),
    "job_created": _job("created"),
    "job_updated": _job("changed"),
    "job_deleted": _job("removed"),
    **dict.fromkeys(("job_run_started", "job_run_updated", "job_run_finished", "job_run_failed"), _run),
    **dict.fromkeys(("pipeline_started", "pipeline_updated", "pipeline_finished", "pipeline_failed"), _pipeline),
    "schedule_skipped": _skipped,
}


def _print(found: Collection[Event], json: bool) -> None:
    """Notices are no events: they go to stderr."""
    for event in found:
        if event.kind == NOTICE:
            print(describe(event.kind, event.data), file=sys.stderr, flush=True)
        elif json:
            print(
                codec.dumps({"kind": event.kind, "source": event.source, "event_id": event.id, **event.data}),
                flush=True,
            )
        else:
            print(describe(event.kind, event.data), flush=True)
