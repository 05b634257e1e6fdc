"""`tepui task show`: one task, what it may take and what it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from cli.client import connect
from cli.output import Json, console, mebibytes, print_json, print_table

Cell = str | None


def show(task: str, json: Json = False) -> None:
    """One task: where and how it runs, and what it takes of what it may have."""
    answer = connect().get(f"/api/v1/tasks/{task}")["task"]
    if json:
        print_json(answer)
        return
    console.print(f"[bold]{answer['id']}[/]  {answer['state']} on {answer['node']}  {', '.join(answer['addresses'])}")
    if answer["reason"]:
        console.print(f"reason: {answer['reason']}")
    print_table(("WHAT", "#USED", "#LIMIT", "NOTE"), rows(answer, time.time()))


def rows(task: dict[str, Any], now: float) -> Iterator[tuple[str, Cell, Cell, Cell]]:
    """`usage` is as of the last report of its node, some seconds ago."""
    usage, limits = task["usage"], task["limits"]
    average = usage["cpu_s"] / max(1.0, now - task["since"])
    cpus = f"{limits['cpus']:g}" if limits["cpus"] is not None else None
    throttled = f"{usage['cpu_s']:.1f} s in all, held back for {usage['cpu_throttled_s']:.1f} s"
    yield "CPUs", f"{average:.2f}", cpus, throttled
    peak = f"at most {mebibytes(usage['mem_peak_bytes'])}"
    yield "memory", mebibytes(usage["mem_bytes"]), mebibytes(limits["mem_bytes"]), peak
    yield "processes", str(usage["pids"]), str(limits["pids"]) if limits["pids"] is not None else None, None
    yield "disk", mebibytes(usage["disk_bytes"]), mebibytes(limits["disk_bytes"]), None
    yield "read", mebibytes(usage["io_read_bytes"]), None, "from disks"
    yield "written", mebibytes(usage["io_write_bytes"]), None, "to disks"
    for way in ("received", "sent"):
        packets = f"{usage[f'net_{way}_packets']} packets, {usage[f'net_{way}_dropped']} lost"
        yield way, mebibytes(usage[f"net_{way}_bytes"]), None, packets
