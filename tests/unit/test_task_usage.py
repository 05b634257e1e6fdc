"""What `tepui task usage` makes of the API's answer."""

from __future__ import annotations

from cli.task_usage import rows
from master.rest.cluster import limits_json, usage_json
from model.task import Usage


def test_use_stands_beside_its_limit() -> None:
    usage = Usage(cpu_s=30, cpu_limit=0.5, cpu_throttled_s=2, mem_bytes=8 << 20, mem_limit_bytes=64 << 20, pids=3)
    task = {"since": 100.0, "usage": usage_json(usage), "limits": limits_json(usage)}
    shown = {what: (used, limit, note) for what, used, limit, note in rows(task, now=160.0)}
    assert shown["CPUs"] == ("0.50", "0.5", "30.0 s in all, held back for 2.0 s")
    assert shown["memory"] == ("8 MiB", "64 MiB", "at most 0 bytes")
    assert shown["processes"] == ("3", None, None)
    assert shown["received"] == ("0 bytes", None, "0 packets, 0 lost")
