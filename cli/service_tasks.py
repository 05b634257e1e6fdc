"""The commands about a service's tasks: one to run something in, and what they all take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from cli.client import connect
from cli.exec_options import Command, Directory, Env, Stdin, Tty, User, request
from cli.output import Json
from cli.problem import Problem
from cli.service_change import Id, view_of
from cli.top import Once, watch

TaskId = Annotated[str, typer.Option("--task", help="This one of them: its id, or the beginning of it.")]


def execute_command(
    service: Id,
    command: Command,
    task: TaskId = "",
    stdin: Stdin = False,
    tty: Tty = False,
    env: Env = None,
    user: User = "",
    directory: Directory = "",
) -> None:
    """Run a command in one of a service's tasks. Exits as the command does."""
    from cli.execute import execute

    client = connect()
    chosen = choose(service, client.get(view_of(service))["tasks"], task)
    raise typer.Exit(execute(client, chosen, request(command, stdin or tty, env, user, directory), tty))


def choose(service: str, tasks: Sequence[dict[str, Any]], beginning: str) -> str:
    """The oldest that runs, of those whose id begins so. Raises Problem."""
    running = [task for task in tasks if task["state"] == "RUNNING" and not task["killing"]]
    fit = [task for task in running if task["id"].startswith(beginning)]
    if not fit:
        names = ", ".join(task["id"] for task in running) or "none"
        raise Problem(f"{service}: has no running task {beginning}".rstrip() + f"; running: {names}")
    return str(min(fit, key=lambda task: task["since"])["id"])


def top(service: Id, once: Once = False, json: Json = False) -> None:
    """What a service's tasks take, the busiest first."""
    watch(view_of(service), once, json)
