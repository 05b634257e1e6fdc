"""Tasks as a table: where each is, how it is, and its limits as the kernel has them."""

from __future__ import annotations

import time
from typing import Any

from cli.duration import duration
from cli.output import print_table, size

NAME_LENGTH = 8  # of what tells tasks of a service from each other: the beginning of an id's last part


def print_tasks(tasks: list[dict[str, Any]]) -> None:
    columns = ("TASK", "NODE", "STATE", "ADDRESS", "#PID", "#CPUS", "#MEM", "#PIDS", "#SINCE", "REASON")
    print_table(columns, map(_row, tasks))


def _row(task: dict[str, Any]) -> tuple[object, ...]:
    limits = task["limits"]
    return (
        task["id"],
        task["node"],
        state(task),
        ", ".join(task["addresses"]),
        task["pid"],
        f"{limits['cpus']:g}" if limits["cpus"] is not None else None,
        size(limits["mem_bytes"]),
        limits["pids"],
        duration(time.time() - task["since"]),
        task["reason"] or task["message"],
    )


def state(task: dict[str, Any]) -> str:
    """`RUNNING (ill)`."""
    ill = task["healthy"] is False and task["state"] == "RUNNING"
    attributes = {"ending": task["killing"], "paused": task["paused"], "ill": ill}
    return " ".join([task["state"], *(f"({name})" for name, holds in attributes.items() if holds)])


def short(task: str) -> str:
    """`web.3f2a9c01` of `web.3f2a9c01-6b1e-4c0e-9d5a-2f1f9a7a8b3c`."""
    name, dot, unique = task.rpartition(".")
    return name + dot + unique[:NAME_LENGTH]
