"""The log files of one stream as they are at one moment, open, with what their indexes say (`agent/launcher/pump.py`).

Files are renamed while they are looked at, so each is known by its inode. Names only grow: whoever opens them from the
newest to the oldest may meet a file twice, and misses none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from agent.launcher.pump import NOTE, Note, parse_index

READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
BLOCK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Segment:
    """An open file, whose bytes are those of the stream from `base` on."""

    file: int
    inode: int
    base: int

    @property
    def end(self) -> int:
        return self.base + os.fstat(self.file).st_size


@contextmanager
def opened(path: Path) -> Iterator[list[Segment]]:
    """The oldest first; none when there is no log. Raises OSError."""
    files = _open_all(path)
    try:
        inodes = [os.fstat(file).st_ino for file in files]
        yield [Segment(*fields) for fields in zip(files, inodes, _bases(path, files, inodes), strict=True)]
    finally:
        for file in files:
            os.close(file)


def read_notes(path: Path) -> list[Note]:
    """Of all files of the stream, by their offsets. Where there are two of one offset, the later one says more."""
    notes = {note for index in _indexes(path) for note in _read_notes(index)}
    return sorted(notes, key=lambda note: (note.offset, note.at))


def offset_since(path: Path, segments: list[Segment], since: float) -> int:
    """Of the first byte that may have been written at `since` (seconds since the epoch) or later."""
    inodes = {segment.inode for segment in segments}
    notes = [note for index in _indexes(path) for note in _read_notes(index) if note.inode in inodes]
    oldest, newest = segments[0], segments[-1]
    # The last byte so far was written when the file was.
    written_at = os.fstat(newest.file).st_mtime
    notes += [Note(0, 0, oldest.base, oldest.inode), Note(written_at, written_at, newest.end, newest.inode)]
    notes.sort(key=lambda note: note.offset)
    for note, following in pairwise(notes):
        if following.before >= since:
            return note.offset
    return notes[-1].offset


def offset_of_tail(segments: list[Segment], lines: int) -> int:
    """Of the beginning of the last `lines`. A newline at the very end does not begin another."""
    end = segments[-1].end
    if not lines:
        return end
    wanted = lines
    for offset, block in _backwards(segments):
        position = len(block) - (offset + len(block) == end and block.endswith(b"\n"))
        while (position := block.rfind(b"\n", 0, position)) >= 0:
            wanted -= 1
            if not wanted:
                return offset + position + 1
    return segments[0].base


def _open_all(path: Path) -> list[int]:
    """The oldest first."""
    numbered = re.compile(re.escape(path.name) + r"(?:\.(\d+))?")
    numbers = [int(match[1] or 0) for name in os.listdir(path.parent) if (match := numbered.fullmatch(name))]
    files: dict[int, int] = {}
    # One more than are listed: the oldest may have moved there since.
    for number in sorted({*numbers, max(numbers, default=-1) + 1}):
        try:
            file = os.open(f"{path}.{number}" if number else path, READ_FLAGS)
        except FileNotFoundError:
            continue
        if files.setdefault(os.fstat(file).st_ino, file) != file:
            os.close(file)
    return list(reversed(files.values()))


def _bases(path: Path, files: list[int], inodes: list[int]) -> list[int]:
    """By the indexes; of a file that has lost its own, by those next to it."""
    known = {notes[0].inode: notes[0].offset for index in _indexes(path) if (notes := _read_notes(index, NOTE.size))}
    sizes = [os.fstat(file).st_size for file in files]
    starts = list(accumulate(sizes, initial=0))
    shift = next((known[inode] - start for inode, start in zip(inodes, starts, strict=False) if inode in known), 0)
    bases = []
    for inode, start in zip(inodes, starts, strict=False):
        shift = known.get(inode, start + shift) - start
        bases.append(start + shift)
    return bases


def _indexes(path: Path) -> Iterator[Path]:
    numbered = re.compile(re.escape(path.name) + r"(?:\.\d+)?\.index")
    return (path.with_name(name) for name in os.listdir(path.parent) if numbered.fullmatch(name))


def _read_notes(index: Path, size: int = -1) -> list[Note]:
    try:
        with index.open("rb") as file:
            return parse_index(file.read(size))
    except FileNotFoundError:
        return []


def _backwards(segments: list[Segment]) -> Iterator[tuple[int, bytes]]:
    """Blocks of the stream, and where they begin, from its end."""
    for segment in reversed(segments):
        position = segment.end - segment.base
        while position:
            size = min(BLOCK_BYTES, position)
            position -= size
            yield segment.base + position, os.pread(segment.file, size, position)
