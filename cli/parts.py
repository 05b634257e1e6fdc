"""The commands of `tepui`, each in a module that is imported when its command is called.

Help and completion of the first word need no more than this table; what a daemon or a drawing takes to import costs
those alone that use it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

PARTS = {
    "service": "Long-running services: Marathon app definitions.",
    "pod": "Containers that run together: Marathon pod definitions.",
    "job": "What is run and ends: Metronome job definitions, their schedules and pipelines.",
    "task": "Runs of containers, and their output.",
    "explain": "Why a service, a pod or a job is not as it should be.",
    "top": "What nodes and tasks take.",
    "events": "What happens in the cluster.",
    "node": "The nodes of the cluster.",
    "image": "The images that nodes have.",
    "vip": "Virtual addresses.",
    "network": "Networks of containers.",
    "policy": "Who may connect to whom.",
    "volume": "Persistent volumes.",
    "token": "What a new node joins with.",
    "master": "The coordinator: make one, run it.",
    "agent": "The daemon of a node: join a cluster, run.",
    "lab": "A whole cluster on this machine, to try and to test.",
}


class Parts(TyperGroup):
    """Until one of them is called, it is there by its name and what its help says of it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: TyperCommand(name, callback=None, help=text) for name, text in PARTS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in PARTS:
            self.commands[args[0]] = load(args[0])
        return super().resolve_command(ctx, args)


def load(name: str) -> Any:
    """The group of this name, or the only command of its module."""
    group = get_group(import_module(f"cli.{name}").app)
    command = group.commands.get(name, group)
    command.name, command.help = name, PARTS[name] if command is group else command.help
    return command
