"""Stopping all processes of a container at once, in a way that they can neither see nor undo, and letting them go on.

On version 1 not even SIGKILL ends a process that is frozen: it must be let go before it is killed, or after.
"""

from __future__ import annotations

from pathlib import Path

from cgroupspy.interfaces import BaseFileInterface, DictFile, FlagFile

from isolators.cgroup.controller import Controller, Files, open_files


class FreezerFilesV1(Files):  # type: ignore[misc]
    """cgroup-v1/freezer-subsystem.rst. FREEZING is read until every process stands still."""

    state = BaseFileInterface("freezer.state")


class FreezerFilesV2(Files):  # type: ignore[misc]
    """cgroup-v2.rst, "Core Interface Files"."""

    freeze = FlagFile("cgroup.freeze")
    events = DictFile("cgroup.events", readonly=True)


class FreezerV1(Controller):
    name = "freezer"

    def freeze(self, directory: Path, wanted: bool) -> None:
        open_files(FreezerFilesV1, directory).state = "FROZEN" if wanted else "THAWED"

    def frozen(self, directory: Path) -> bool:
        return bool(open_files(FreezerFilesV1, directory).state == "FROZEN")


class FreezerV2(Controller):
    """A part of the core: no controller has to be switched on for it."""

    def freeze(self, directory: Path, wanted: bool) -> None:
        open_files(FreezerFilesV2, directory).freeze = wanted

    def frozen(self, directory: Path) -> bool:
        return bool(open_files(FreezerFilesV2, directory).events["frozen"])
