"""What a controller is to both versions: a few files in a container's cgroup, which get limits and tell of use.

Each controller has a file of its own here with its two versions side by side, and is tested against a temporary
directory. The files are described as cgroupspy's interfaces, whose names are the kernel's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cgroupspy.controllers import Controller as Files
from cgroupspy.interfaces import BaseFileInterface
from cgroupspy.nodes import Node

from isolators.cgroup.limits import Limits
from model.task import Usage

__all__ = ["Controller", "Files", "LimitFile", "Opener", "QuotaFile", "has_file", "open_files"]

Opener = Callable[[type[Files], Path], Any]


class LimitFile(BaseFileInterface):  # type: ignore[misc]
    """A number, or `max` for none: None here."""

    def sanitize_get(self, value: str) -> int | None:
        return None if value == "max" else int(value)

    def sanitize_set(self, value: int | None) -> str:
        return "max" if value is None else str(value)


class QuotaFile(BaseFileInterface):  # type: ignore[misc]
    """`QUOTA PERIOD` in microseconds, QUOTA may be `max`: (quota or None, period) here."""

    def sanitize_get(self, value: str) -> tuple[int | None, int]:
        quota, period = value.split()
        return None if quota == "max" else int(quota), int(period)

    def sanitize_set(self, value: tuple[int | None, int]) -> str:
        quota, period = value
        return f"{'max' if quota is None else quota} {period}"


class Controller:
    """Override what applies. Methods raise OSError; `directory` is the container's cgroup."""

    name = ""  # as the kernel lists it, and as it is mounted on version 1

    def enter(self, directory: Path, top: Path) -> None:
        """The cgroup was just made, below `top`, the root of its tree."""

    def limit(self, directory: Path, limits: Limits) -> None:
        """In place, also while processes run in it: what is not limited any more is set free."""

    def usage(self, directory: Path, usage: Usage, opened: Opener) -> Usage:
        """`usage` with what this controller counts. `opened` gives the files, as `open_files` does."""
        return usage


def open_files(kind: type[Files], directory: Path) -> Any:
    """The files of one cgroup as attributes. Opens nothing yet. cgroupspy's `Tree()` would read every cgroup of the
    node, and fails when one vanishes meanwhile."""
    return kind(Node(str(directory)))


def has_file(directory: Path, name: str) -> bool:
    """Which files there are depends on how the kernel was built."""
    return (directory / name).exists()
