"""Both streams of a task as one, line by line, in the order in which they were written.

When a byte was written is known from the indexes (`agent/launcher/pump.py`), which say so about ten times a second, of
a stream that writes next to nothing more rarely. Lines of one stream stay in their order, and are never torn by the
other's; what both wrote between two notes has no order that anybody knows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.launcher.pump import Note
from agent.log_files import read_notes
from agent.log_reader import CHUNK_BYTES, LogReader


@dataclass(frozen=True, slots=True)
class Piece:
    """`at`: when it was begun to be written, or soon before."""

    at: float
    data: bytes


class MergedLog:
    """As a `LogReader`."""

    def __init__(self, paths: Sequence[Path], lines: int = -1, since: float = 0.0) -> None:
        """Raises OSError when one of them has no log."""
        self._streams: list[_Timed] = []
        self._skip = max(0, sum(_lines(path, lines, since) for path in paths) - lines) if lines >= 0 else 0
        try:
            for path in paths:
                self._streams.append(_Timed(path, lines, since))
        except OSError:
            self.close()
            raise

    def read(self) -> bytes:
        """What comes next; empty when that was all, for now."""
        while ready := [stream for stream in self._streams if stream.ready()]:
            if data := self._kept(min(ready, key=lambda stream: stream.at).take()):
                return data
        # Nobody writes just now: whoever waits for an answer to an unfinished line should see it.
        return self._kept(b"".join(stream.rest() for stream in self._streams))

    def close(self) -> None:
        for stream in self._streams:
            stream.close()

    def _kept(self, data: bytes) -> bytes:
        """Each stream begins with as many lines as are wanted of both together."""
        while self._skip and data:
            _, newline, data = data.partition(b"\n")
            self._skip -= len(newline)
        return data


class _Timed:
    """One stream, in pieces whose time is known."""

    def __init__(self, path: Path, lines: int, since: float) -> None:
        self._path = path
        self._reader = LogReader(path, lines, since)
        self._pieces: deque[Piece] = deque()
        self._unfinished = b""

    @property
    def at(self) -> float:
        return self._pieces[0].at

    def ready(self) -> bool:
        if not self._pieces:
            start = self._reader.offset
            if data := self._reader.read():
                # The end is where it is; what was rotated away meanwhile was skipped.
                end = self._reader.offset
                self._pieces.extend(pieces(data, max(start, end - len(data)), read_notes(self._path)))
        return bool(self._pieces)

    def take(self) -> bytes:
        """The lines that end in the next piece."""
        data = self._unfinished + self._pieces.popleft().data
        end = data.rfind(b"\n") + 1 if len(data) < CHUNK_BYTES else len(data)
        self._unfinished = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        rest, self._unfinished = self._unfinished, b""
        return rest

    def close(self) -> None:
        self._reader.close()


def pieces(data: bytes, start: int, notes: Sequence[Note]) -> list[Piece]:
    """`data` begins at the offset `start`. `notes` are in the order of their offsets."""
    offsets = [note.offset for note in notes]
    first = bisect_right(offsets, start)
    bounds = [start, *(offset for offset in offsets[first:] if offset < start + len(data)), start + len(data)]
    times = [notes[first - 1].at if first else 0.0, *(note.at for note in notes[first:])]
    return [
        Piece(at, data[begin - start : end - start])
        for at, begin, end in zip(times, bounds, bounds[1:], strict=False)
        if begin < end
    ]


def _lines(path: Path, lines: int, since: float) -> int:
    """How many there are, of the last `lines`."""
    reader = LogReader(path, lines, since)
    try:
        count, last = 0, b"\n"
        while data := reader.read():
            count, last = count + data.count(b"\n"), data[-1:]
        return count + (last != b"\n")
    finally:
        reader.close()
