"""`tepui task`."""

from __future__ import annotations

import sys
import time
from typing import Any

import typer

from cli.client import connect
from cli.log_options import Follow, Since, Stderr, Tail, log_query
from cli.output import Json, mebibytes, print_json, print_table
from cli.task_show import show

app = typer.Typer(no_args_is_help=True)
app.command()(show)


@app.command("list")
def list_tasks(json: Json = False) -> None:
    """Every task: where it runs, since when, and its limits as the kernel has them."""
    tasks = connect().get("/api/v1/tasks")["tasks"]
    if json:
        print_json(tasks)
    else:
        print_tasks(tasks)


@app.command()
def log(
    task: str,
    follow: Follow = False,
    tail: Tail = -1,
    since: Since = "",
    stderr: Stderr = False,
    json: Json = False,
) -> None:
    """What a task wrote. One that has ended can be asked for by its whole id, until its node removes its log."""
    with connect().stream(f"/api/v1/tasks/{task}/log", **log_query(follow, tail, since, stderr)) as chunks:
        if json:
            print_json({"task": task, "output": b"".join(chunks).decode(errors="replace")})
            return
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


def print_tasks(tasks: list[dict[str, Any]]) -> None:
    columns = ("TASK", "NODE", "STATE", "ADDRESS", "#PID", "#CPUS", "#MEM", "#PIDS", "#SINCE", "REASON")
    print_table(columns, map(_row, tasks))


def _row(task: dict[str, Any]) -> tuple[object, ...]:
    limits = task["limits"]
    return (
        task["id"],
        task["node"],
        task["state"] + (" (ending)" if task["killing"] else ""),
        ", ".join(task["addresses"]),
        task["pid"],
        f"{limits['cpus']:g}" if limits["cpus"] is not None else None,
        mebibytes(limits["mem_bytes"]),
        limits["pids"],
        duration(time.time() - task["since"]),
        task["reason"],
    )


def duration(seconds: float) -> str:
    """`42 s`, `3 min`, `5 h`, `12 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
