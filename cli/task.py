"""`tepui task`.

What reads a stream of a task is imported when it is needed: other commands should not wait for it.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated, Any

import typer

from cli.client import connect
from cli.exec_options import Command, Directory, Env, Stdin, Tty, User, request
from cli.log_options import Follow, Since, Stderr, Stdout, Tail, log_query
from cli.output import Json, print_json
from cli.task_show import Id, kill, show
from cli.task_table import print_tasks
from cli.task_usage import usage

app = typer.Typer(no_args_is_help=True)
app.command()(show)
app.command()(usage)
app.command()(kill)

Where = Annotated[str, typer.Argument(metavar="TASK:PATH")]


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
    task: Id,
    follow: Follow = False,
    tail: Tail = -1,
    since: Since = "",
    stdout: Stdout = False,
    stderr: Stderr = False,
    json: Json = False,
) -> None:
    """What a task wrote. One that has ended can be asked for by its whole id, until its node removes its log."""
    with connect().stream(f"/api/v1/tasks/{task}/log", **log_query(follow, tail, since, stdout, stderr)) as chunks:
        if json:
            print_json({"task": task, "output": b"".join(chunks).decode(errors="replace")})
            return
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


@app.command("exec", context_settings={"allow_interspersed_args": False})
def execute_command(
    task: Id,
    command: Command,
    stdin: Stdin = False,
    tty: Tty = False,
    env: Env = None,
    user: User = "",
    directory: Directory = "",
) -> None:
    """Run a command in a task's container. Exits as the command does."""
    from cli.execute import execute

    raise typer.Exit(execute(connect(), task, request(command, stdin or tty, env, user, directory), tty))


@app.command()
def attach(task: Id) -> None:
    """Show what a task writes from now on, until it ends. Ctrl-C or Ctrl-P Ctrl-Q leaves."""
    from cli.attach import attach as follow

    follow(connect(), task)


@app.command("port-forward")
def port_forward(
    task: Id,
    ports: Annotated[list[str], typer.Argument(metavar="LOCAL:REMOTE...", help="0 as LOCAL is any that is free.")],
    address: Annotated[str, typer.Option(help="Of this machine, to listen on.")] = "127.0.0.1",
) -> None:
    """Lead ports of this machine to a task's, until Ctrl-C."""
    import asyncio

    from cli.forward import forward, parse

    with suppress(KeyboardInterrupt):
        asyncio.run(forward(connect(), task, [parse(port) for port in ports], address))


@app.command("ls")
def list_files(where: Where, json: Json = False) -> None:
    """List a directory of a task."""
    from cli import files

    entries = files.list_entries(connect(), where)
    if json:
        print_json(entries)
    else:
        files.print_entries(entries)


@app.command()
def cat(where: Where) -> None:
    """Show a file of a task."""
    from cli import files

    files.show(connect(), where)


@app.command()
def cp(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="TASK:PATH, or a path here.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The other one: a directory, or the new name.")],
) -> None:
    """Copy a file or a directory out of a task, or into one."""
    from cli import files

    files.copy(connect(), source, target)


@app.command()
def update(
    task: Id,
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
def pause(task: Id, json: Json = False) -> None:
    """Stop all processes of a task where they are, and take it out of its VIPs. They can not notice."""
    _print_task(connect().post(f"/api/v1/tasks/{task}/pause"), json)


@app.command()
def resume(task: Id, json: Json = False) -> None:
    """Let a paused task go on."""
    _print_task(connect().post(f"/api/v1/tasks/{task}/resume"), json)


def _print_task(answer: dict[str, Any], json: bool) -> None:
    if json:
        print_json(answer["task"])
    else:
        print_tasks([answer["task"]])
