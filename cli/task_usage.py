"""`tepui task usage`: what one task takes, beside what it may take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from cli.client import connect
from cli.output import Json, print_json, print_table, size
from cli.task_show import Id

Cell = str | None


def usage(task: Id, json: Json = False) -> None:
    """What one task takes, of what it may have."""
    answer = connect().get(f"/api/v1/tasks/{task}")["task"]
    if json:
        print_json({"usage": answer["usage"], "limits": answer["limits"]})
        return
    print_table(("WHAT", "#USED", "#LIMIT", "NOTE"), rows(answer, time.time()))


def rows(task: dict[str, Any], now: float) -> Iterator[tuple[str, Cell, Cell, Cell]]:
    """`usage` is as of the last report of its node, some seconds ago."""
    used, limits = task["usage"], task["limits"]
    average = used["cpu_s"] / max(1.0, now - task["since"])
    cpus = f"{limits['cpus']:g}" if limits["cpus"] is not None else None
    throttled = f"{used['cpu_s']:.1f} s in all, held back for {used['cpu_throttled_s']:.1f} s"
    yield "CPUs", f"{average:.2f}", cpus, throttled
    peak = f"at most {size(used['mem_peak_bytes'])}"
    yield "memory", size(used["mem_bytes"]), size(limits["mem_bytes"]), peak
    yield "processes", str(used["pids"]), str(limits["pids"]) if limits["pids"] is not None else None, None
    yield "disk", size(used["disk_bytes"]), size(limits["disk_bytes"]), None
    yield "read", size(used["io_read_bytes"]), None, "from disks"
    yield "written", size(used["io_write_bytes"]), None, "to disks"
    for way in ("received", "sent"):
        packets = f"{used[f'net_{way}_packets']} packets, {used[f'net_{way}_dropped']} lost"
        yield way, size(used[f"net_{way}_bytes"]), None, packets
