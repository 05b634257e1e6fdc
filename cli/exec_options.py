"""The options of the commands that run something in a container, and what they mean to the API."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.problem import Problem

Command = Annotated[list[str], typer.Argument(help="What to run, and its arguments.")]
Stdin = Annotated[bool, typer.Option("--stdin", "-i", help="Pass standard input on.")]
Tty = Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal.")]
Env = Annotated[list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="Can be repeated.")]
User = Annotated[str, typer.Option("--user", "-u", help="Not the task's own: NAME or ID, with :GROUP.")]
Directory = Annotated[str, typer.Option("--workdir", "-w", help="Not the task's own.")]


def request(command: list[str], stdin: bool, env: list[str] | None, user: str, directory: str) -> dict[str, Any]:
    """As master/rest/streams.py has it. Raises Problem."""
    argv = command[1:] if command[0] == "--" else command
    return {"argv": argv, "env": variables(env or []), "user": user, "cwd": directory, "stdin": stdin}


def variables(pairs: list[str]) -> dict[str, str]:
    """Raises Problem."""
    for pair in pairs:
        if not pair.partition("=")[1]:
            raise Problem(f"--env {pair}: must be NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)
