"""Runs a bench in network and mount namespaces of a process of its own, with which its links and mounts go, in a
directory that is removed after it. Its report comes by that process's standard output; the log goes elsewhere.

A module whose `measure` is run so calls `apart` with its own name, and `report` where it is that program.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path

import structlog

from bench.report import Report, from_json

ALONE = ("unshare", "--net", "--mount", "--propagation", "private")
ROOT = Path(__file__).resolve().parents[1]


def apart(module: str, deadline_s: float) -> Report:
    argv = [*ALONE, sys.executable, "-m", module]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=deadline_s)
    return from_json(json.loads(done.stdout))


def report(measure: Callable[[Path], Coroutine[None, None, Report]]) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    directory = Path(tempfile.mkdtemp(prefix="tepui-bench-", dir="/var/tmp"))
    try:
        made = asyncio.run(measure(directory))
    finally:
        shutil.rmtree(directory)
    print(json.dumps(made.to_json()))
