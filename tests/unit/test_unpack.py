"""Archives from containers, friendly and hostile, and what they leave on the disk of who copies."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.problem import Problem
from cli.unpack import Blocks, unpack


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = kind, len(data), link, mode
    return info, data


Member = tuple[tarfile.TarInfo, bytes]


def directory(name: str) -> Member:
    return member(name, kind=tarfile.DIRTYPE, mode=0o755)


def link(name: str, target: str) -> Member:
    return member(name, kind=tarfile.SYMTYPE, link=target)


def archive(*members: Member) -> Blocks:
    """In parts of an odd size."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for info, data in members:
            made.addfile(info, io.BytesIO(data))
    text = file.getvalue()
    parts: Iterator[bytes] = (text[start : start + 777] for start in range(0, len(text), 777))
    return Blocks(parts)


TREE = (directory("data"), member("data/a", b"one" * 1000), directory("data/sub"), link("data/sub/up", "../a"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("untouched")
    made = tmp_path / "target"
    made.mkdir()
    return made


def test_a_tree_comes_below_a_directory_or_under_a_new_name(target: Path) -> None:
    assert unpack(archive(*TREE), target) == []
    assert (target / "data/a").read_text() == "one" * 1000
    assert (target / "data/sub/up").read_text() == "one" * 1000
    assert unpack(archive(*TREE), target / "other") == []
    assert (target / "other/a").read_text() == "one" * 1000
    assert unpack(archive(member("a", b"alone")), target / "file") == []
    assert (target / "file").read_text() == "alone"


def test_what_is_there_is_replaced(target: Path) -> None:
    for _ in range(2):
        assert unpack(archive(*TREE), target) == []
    assert sorted(path.name for path in target.rglob("*")) == ["a", "data", "sub", "up"]


@pytest.mark.parametrize("name", ["/etc/x", "../outside/file", "data/../../outside/file", "a/" * 300 + "a"])
def test_names_that_lead_out_are_refused(target: Path, name: str) -> None:
    with pytest.raises(Problem, match="refused"):
        unpack(archive(member(name, b"changed")), target)
    assert (target.parent / "outside" / "file").read_text() == "untouched"


@pytest.mark.parametrize("to", ["/etc", "../../outside", "..", "sub/..", "sub/../../outside", "../data/../../outside"])
def test_links_that_lead_out_are_left_out(target: Path, to: str) -> None:
    assert unpack(archive(directory("data"), link("data/way", to)), target) == ["data/way"]
    assert os.listdir(target / "data") == []


def test_nothing_is_written_through_a_link(target: Path) -> None:
    """One of the archive's own, and one that was there before."""
    inner = archive(
        directory("data"), directory("data/sub"), link("data/way", "sub"), member("data/way/file", b"changed")
    )
    with pytest.raises(Problem, match="copy to"):
        unpack(inner, target)
    (target / "old").symlink_to(target.parent / "outside")
    with pytest.raises(Problem, match="copy to"):
        unpack(archive(directory("old"), member("old/file", b"changed")), target)
    (target / "data" / "file").symlink_to(target.parent / "outside" / "file")
    unpack(archive(directory("data"), member("data/file", b"new")), target)
    assert (target / "data" / "file").read_text() == "new"
    assert (target.parent / "outside" / "file").read_text() == "untouched"


def test_devices_pipes_and_hard_links_are_left_out(target: Path) -> None:
    kinds = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE)
    members = [member(f"x{number}", kind=kind, link="../outside/file") for number, kind in enumerate(kinds)]
    assert unpack(archive(*members), target) == ["x0", "x1", "x2", "x3"]
    assert os.listdir(target) == []


def test_modes_have_no_special_bits(target: Path) -> None:
    unpack(archive(member("a", b"", mode=0o6755), member("b", b"", mode=0)), target)
    assert [stat.S_IMODE((target / name).stat().st_mode) & ~0o077 for name in "ab"] == [0o700, 0o600]


def test_an_archive_that_breaks_off_is_an_error(target: Path) -> None:
    whole = archive(*TREE).read(1 << 20)
    with pytest.raises(Problem, match="copy to"):
        unpack(Blocks(iter([whole[:2000]])), target)
    with pytest.raises(Problem, match="copy to"):
        unpack(Blocks(iter([b"no archive at all" * 100])), target)
