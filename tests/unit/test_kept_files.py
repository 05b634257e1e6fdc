"""Files that stay open: read anew each time, closed with their cgroup, and never too many of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cgroupspy.interfaces import IntegerFile

from isolators.cgroup.controller import Files
from isolators.cgroup.kept import KeptFiles


class Counts(Files):  # type: ignore[misc]
    current = IntegerFile("pids.current", readonly=True)
    peak = IntegerFile("pids.peak", readonly=True)


def open_below(directory: Path) -> list[str]:
    targets = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)]
    return sorted(target for target in targets if target.startswith(str(directory)))


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    for name in ("pids.current", "pids.peak"):
        (tmp_path / name).write_text("1\n")
    return tmp_path


def test_what_is_read_is_what_it_is_now(cgroup: Path) -> None:
    kept = KeptFiles()
    for number in (3, 12, 7):
        (cgroup / "pids.current").write_text(f"{number}\n")
        assert kept.files(Counts, cgroup).current == number
    assert open_below(cgroup) == [str(cgroup / "pids.current")]
    kept.forget(cgroup)
    kept.forget(cgroup)
    assert open_below(cgroup) == []


def test_beyond_the_bound_nothing_is_kept(cgroup: Path) -> None:
    kept = KeptFiles(most=0)
    assert kept.files(Counts, cgroup).current == kept.files(Counts, cgroup).peak == 1
    assert open_below(cgroup) == []


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _ = KeptFiles().files(Counts, tmp_path).current
