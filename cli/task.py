"""`tepui task`."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import files
from cli.attach import attach as follow
from cli.client import connect
from cli.execute import execute
from cli.forward import forward, parse
from cli.output import Json, mebibytes, print_json, print_table
from cli.problem import Problem

app = typer.Typer(no_args_is_help=True)

Where = Annotated[str, typer.Argument(metavar="TASK:PATH")]
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


@app.command("exec", context_settings={"allow_interspersed_args": False})
def execute_command(
    task: str,
    command: Annotated[list[str], typer.Argument(help="What to run, and its arguments.")],
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Pass standard input on.")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal.")] = False,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="Can be repeated.")] = None,
    user: Annotated[str, typer.Option("--user", "-u", help="Not the task's own: NAME or ID, with :GROUP.")] = "",
    directory: Annotated[str, typer.Option("--workdir", "-w", help="Not the task's own.")] = "",
) -> None:
    """Run a command in a task's container. Exits as the command does."""
    argv = command[1:] if command[0] == "--" else command
    request = {"argv": argv, "env": _variables(env or []), "user": user, "cwd": directory, "stdin": stdin or tty}
    raise typer.Exit(execute(connect(), task, request, tty))


@app.command()
def attach(task: str) -> None:
    """Show what a task writes from now on, until it ends. Ctrl-C or Ctrl-P Ctrl-Q leaves."""
    follow(connect(), task)


@app.command("port-forward")
def port_forward(
    task: str,
    ports: Annotated[list[str], typer.Argument(metavar="LOCAL:REMOTE...", help="0 as LOCAL is any that is free.")],
    address: Annotated[str, typer.Option(help="Of this machine, to listen on.")] = "127.0.0.1",
) -> None:
    """Lead ports of this machine to a task's, until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        asyncio.run(forward(connect(), task, [parse(port) for port in ports], address))


@app.command("ls")
def list_files(where: Where, json: Json = False) -> None:
    """List a directory of a task."""
    entries = files.list_entries(connect(), where)
    if json:
        print_json(entries)
    else:
        files.print_entries(entries)


@app.command()
def cat(where: Where) -> None:
    """Show a file of a task."""
    files.show(connect(), where)


@app.command()
def cp(where: Where, target: Annotated[Path, typer.Argument(help="A directory, or the new name.")]) -> None:
    """Copy a file or a directory out of a task."""
    files.copy(connect(), where, target)


def _variables(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if not pair.partition("=")[1]:
            raise Problem(f"--env {pair}: must be NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


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
