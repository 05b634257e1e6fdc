"""`tepui task`."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from cli.client import connect
from cli.output import Json, mebibytes, print_json, print_table

app = typer.Typer(no_args_is_help=True)

TAIL_BYTES = 64 * 1024


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
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task ends.")] = False,
    stderr: Annotated[bool, typer.Option("--stderr", help="Its stderr instead of its stdout.")] = False,
    everything: Annotated[bool, typer.Option("--all", help=f"Not only the last {TAIL_BYTES // 1024} KiB.")] = False,
    json: Json = False,
) -> None:
    """What a task wrote."""
    query = {"stream": "stderr" if stderr else "stdout", "follow": follow, "tail": -1 if everything else TAIL_BYTES}
    with connect().stream(f"/api/v1/tasks/{task}/log", **query) as chunks:
        if json:
            print_json({"task": task, "output": b"".join(chunks).decode(errors="replace")})
            return
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


@app.command()
def update(
    task: str,
    cpus: Annotated[float | None, typer.Option(help="CPUs, like 0.5.")] = None,
    mem: Annotated[int | None, typer.Option(help="Memory in MiB.")] = None,
    disk: Annotated[
        int | None, typer.Option(help="What it may write to its own layer, in MiB; 0: not bounded.")
    ] = None,
    pids: Annotated[int | None, typer.Option(help="Processes and threads.")] = None,
    swap: Annotated[int | None, typer.Option(help="Swap beyond the memory, in MiB.")] = None,
    mem_high: Annotated[int | None, typer.Option(help="MiB above which memory is reclaimed first; 0: never.")] = None,
    cpuset: Annotated[str | None, typer.Option(help='CPUs to run on, like 0-3,6; "": all.')] = None,
    cpu_burst_us: Annotated[
        int | None, typer.Option(help="Quota that may be saved for later, in microseconds.")
    ] = None,
    io_weight: Annotated[int | None, typer.Option(help="1 to 1000; 0: the default.")] = None,
    json: Json = False,
) -> None:
    """Change what a running task may use, without a restart. Its service still starts new tasks as it is defined."""
    given = {
        "cpus": cpus,
        "mem": mem,
        "disk": disk,
        "pids": pids,
        "swap": swap,
        "mem_high": mem_high,
        "cpuset": cpuset,
        "cpu_burst_us": cpu_burst_us,
        "io_weight": io_weight,
    }
    change = {name: value for name, value in given.items() if value is not None}
    _print_task(connect().patch(f"/api/v1/tasks/{task}", change), json)


@app.command()
def pause(task: str, json: Json = False) -> None:
    """Stop all processes of a task where they are, and take it out of its VIPs. They can not notice."""
    _print_task(connect().post(f"/api/v1/tasks/{task}/pause"), json)


@app.command()
def resume(task: str, json: Json = False) -> None:
    """Let a paused task go on."""
    _print_task(connect().post(f"/api/v1/tasks/{task}/resume"), json)


def _print_task(answer: dict[str, Any], json: bool) -> None:
    if json:
        print_json(answer["task"])
    else:
        print_tasks([answer["task"]])


def print_tasks(tasks: list[dict[str, Any]]) -> None:
    columns = ("TASK", "NODE", "STATE", "ADDRESS", "#PID", "#CPUS", "#MEM", "#PIDS", "#SINCE", "REASON")
    print_table(columns, map(_row, tasks))


def _row(task: dict[str, Any]) -> tuple[object, ...]:
    limits = task["limits"]
    return (
        task["id"],
        task["node"],
        task["state"] + (" (ending)" if task["killing"] else " (paused)" if task["paused"] else ""),
        ", ".join(task["addresses"]),
        task["pid"],
        f"{limits['cpus']:g}" if limits["cpus"] is not None else None,
        mebibytes(limits["mem_bytes"]),
        limits["pids"],
        duration(time.time() - task["since"]),
        task["reason"] or task["message"],
    )


def duration(seconds: float) -> str:
    """`42 s`, `3 min`, `5 h`, `12 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
