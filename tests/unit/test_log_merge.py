"""Both streams of a task as one: in the order of their indexes, by whole lines, no line twice and none lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from agent.launcher.pump import LOG_FLAGS, NOTE, Limits, Note, Pump, index_name
from agent.log_merge import MergedLog, Piece, pieces


def write(path: Path, *written: tuple[float, str]) -> None:
    """Appends, with a note of each."""
    base = path.stat().st_size if path.exists() else 0
    with path.open("ab") as log, Path(index_name(str(path), 0)).open("ab") as index:
        for at, text in written:
            index.write(NOTE.pack(at, at, base, path.stat().st_ino))
            log.write(text.encode())
            base += len(text)


def logs(directory: Path, out: Sequence[tuple[float, str]], err: Sequence[tuple[float, str]]) -> list[Path]:
    paths = [directory / "stdout", directory / "stderr"]
    for path, written in zip(paths, (out, err), strict=True):
        path.touch()
        write(path, *written)
    return paths


def everything(merged: MergedLog) -> str:
    parts = []
    while data := merged.read():
        parts.append(data.decode())
    return "".join(parts)


def test_bytes_are_cut_where_their_time_changes() -> None:
    notes = [Note(1.0, 0, 0, 7), Note(2.0, 0, 4, 7), Note(3.0, 0, 8, 7)]
    assert pieces(b"abcdefgh", 2, notes) == [Piece(1.0, b"ab"), Piece(2.0, b"cdef"), Piece(3.0, b"gh")]
    assert pieces(b"ab", 4, notes) == [Piece(2.0, b"ab")]
    assert pieces(b"ab", 0, []) == [Piece(0.0, b"ab")]


def test_lines_come_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    paths = logs(tmp_path, [(1, "a1\n"), (3, "a2\na3\n"), (6, "a4\n")], [(2, "b1\n"), (4, "b2\n"), (5, "b3\n")])
    assert everything(MergedLog(paths)) == "a1\nb1\na2\na3\nb2\nb3\na4\n"
    assert everything(MergedLog(paths, lines=3)) == "b2\nb3\na4\n"
    assert everything(MergedLog(paths, lines=0)) == ""
    assert everything(MergedLog(paths, lines=100)) == "a1\nb1\na2\na3\nb2\nb3\na4\n"


def test_no_line_is_torn_by_the_other_stream(tmp_path: Path) -> None:
    paths = logs(tmp_path, [(1, "be"), (3, "gun\n"), (4, "prompt> ")], [(2, "whole\n")])
    assert everything(MergedLog(paths)) == "whole\nbegun\nprompt> "


def test_what_is_added_is_read_too(tmp_path: Path) -> None:
    paths = logs(tmp_path, [(1, "a1\n")], [])
    merged = MergedLog(paths)
    assert everything(merged) == "a1\n"
    write(paths[1], (2, "b1\n"))
    assert everything(merged) == "b1\n"
    write(paths[0], (3, "a2\n"))
    assert everything(merged) == "a2\n"
    merged.close()


def test_what_a_keeper_wrote_is_in_order(tmp_path: Path) -> None:
    """Alternating, with more than a note's interval between."""
    paths = logs(tmp_path, [], [])
    pumps = [pump(path) for path in paths]
    for number in range(4):
        which = number % 2
        pumps[which][0]._noted_at = 0.0  # as if the interval had passed
        os.write(pumps[which][1], f"line {number}\n".encode())
        assert pumps[which][0].move()
    for each, writer in pumps:
        os.close(writer)
        each.drain()
    assert everything(MergedLog(paths)).splitlines() == [f"line {number}" for number in range(4)]


def pump(path: Path) -> tuple[Pump, int]:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    return Pump(reader, os.open(path, LOG_FLAGS, 0o600), str(path), Limits()), writer


Writes = st.lists(st.tuples(st.booleans(), st.lists(st.text("ab", max_size=3), min_size=1, max_size=3)), max_size=12)


@given(Writes, st.integers(-1, 12))
def test_it_is_what_was_written_in_that_order_and_its_tail(writes: list[tuple[bool, list[str]]], lines: int) -> None:
    texts = [(out, "".join(f"{line}\n" for line in written)) for out, written in writes]
    with TemporaryDirectory() as name:
        timed = [(out, (float(at), text)) for at, (out, text) in enumerate(texts, 1)]
        paths = logs(Path(name), [each for out, each in timed if out], [each for out, each in timed if not out])
        merged = MergedLog(paths, lines)
        whole = "".join(text for _, text in texts).splitlines(keepends=True)
        assert everything(merged) == "".join(whole if lines < 0 else whole[len(whole) - min(lines, len(whole)) :])
        merged.close()
