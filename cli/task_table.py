"""Tasks as a table: where each is, how it is, and its limits as the kernel has them."""

from __future__ import annotations

import time
from typing import Any

from cli.duration import duration
from cli.output import print_table, size


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
