"""How many processes and threads a container may have. Both versions have the same files (cgroup-v1/pids.rst)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cgroupspy.interfaces import IntegerFile

from isolators.cgroup.controller import Controller, Files, LimitFile, Opener, open_files
from isolators.cgroup.limits import Limits
from model.task import Usage


class PidsFiles(Files):  # type: ignore[misc]
    max = LimitFile("pids.max")
    current = IntegerFile("pids.current", readonly=True)


class Pids(Controller):
    name = "pids"

    def limit(self, directory: Path, limits: Limits) -> None:
        open_files(PidsFiles, directory).max = limits.pids

    def usage(self, directory: Path, usage: Usage, opened: Opener) -> Usage:
        files = opened(PidsFiles, directory)
        return replace(usage, pids=files.current, pids_limit=files.max)
