"""`tepui task show` and `tepui task kill`: one task, in the words of a person who asks how it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cli import completion
from cli.client import connect
from cli.duration import duration
from cli.output import Json, print_json, size

Task = dict[str, Any]
Id = Annotated[str, typer.Argument(help="An id, or the beginning of one.", autocompletion=completion.tasks)]


def show(task: Id, json: Json = False) -> None:
    """One task: what it does, how its checks find it, and how far its end has come."""
    answer = connect().get(f"/api/v1/tasks/{task}")["task"]
    if json:
        print_json(answer)
        return
    for name, value in describe(answer, time.time()):
        typer.echo(f"{name:<10} {value}")


def kill(task: Id, json: Json = False) -> None:
    """End a task: out of the VIPs, its signal, its grace, SIGKILL. Its service starts another one."""
    answer = connect().delete(f"/api/v1/tasks/{task}")["task"]
    if json:
        print_json(answer)
    else:
        typer.echo(f"{answer['id']}: ending, with {answer['kill_grace_s']:g} s of grace")


def describe(task: Task, now: float) -> Iterator[tuple[str, str]]:
    """Lines of a name and what is to be said. `now` is seconds since the epoch."""
    yield "task", task["id"]
    yield "of", f"{task['owner']} ({task['framework']})"
    yield "node", task["node"]
    yield "state", state(task, now)
    if task["reason"]:
        yield "reason", task["reason"]
    if task["addresses"]:
        yield "address", ", ".join(task["addresses"])
    if task["pid"]:
        yield "pid", str(task["pid"])
    if task["limits"]["mem_bytes"]:
        yield "memory", f"{size(task['usage']['mem_bytes'])} of {size(task['limits']['mem_bytes'])}"
    for health in task["health"]:
        yield "health", f"{health['check']}: {_health(health, now)}"
    for readiness in task["readiness"]:
        yield "readiness", f"{readiness['check']}: {_readiness(readiness)}"


def state(task: Task, now: float) -> str:
    """`KILLING for 3 s: signalled, 7 s left`."""
    since = f"{task['state']} for {duration(now - task['since'])}"
    if task["state"] == "KILLING" and task["message"]:
        left = task["kill_grace_s"] - (now - task["since"])
        return f"{since}: {task['message']}" + (f", {left:.0f} s left" if left > 0 else "")
    if task["killing"] and task["state"] != "KILLED":
        return f"{since}, leaving the VIPs"
    return f"{since}: {task['message']}" if task["message"] else since


def _health(health: Task, now: float) -> str:
    if health["alive"] is None:
        return f"no result that counts yet ({health['cause'] or 'not asked'})"
    if health["alive"]:
        return f"well for {duration(now - health['last_success'])}"
    most = f" of {health['max_failures']}" if health["max_failures"] else ""
    return f"ill, {health['failures']}{most} failures in a row, the last: {health['cause']}"


def _readiness(readiness: Task) -> str:
    return "ready" if readiness["ready"] else f"not ready ({readiness['cause'] or 'not asked'})"
