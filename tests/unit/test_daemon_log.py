"""What the daemons log, line by line, as a program reads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio
import structlog
from cli.daemon import run

async def about(task):
    structlog.contextvars.bind_contextvars(task=task)
    structlog.get_logger().warning("something", size=3)

async def daemon():
    structlog.contextvars.bind_contextvars(daemon="agent", node="n1")
    await asyncio.gather(asyncio.create_task(about("web.1")), asyncio.create_task(about("web.2")))
    structlog.get_logger().info("end")

run(daemon())
"""


def test_every_line_says_whose_it_is() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second, last = map(json.loads, done.stderr.splitlines())
    assert (first["task"], first["size"], first["level"]) == ("web.1", 3, "warning")
    assert second["task"] == "web.2" and "task" not in last
    assert {line["node"] for line in (first, second, last)} == {"n1"}
