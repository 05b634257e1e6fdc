"""Reads a stream's log files as one, also while they are written to and rotated.

A place in a stream is its offset from the stream's beginning, and an index tells where each file begins
(`log_files.py`). So a reader goes from one file to the next without a loss or a repetition, whatever they are called by
then. When rotation has overtaken it, what it gets is a line that says by how much.
"""

from __future__ import annotations

import os
from pathlib import Path

from agent.log_files import READ_FLAGS, Segment, offset_of_tail, offset_since, opened

CHUNK_BYTES = 64 * 1024


class LogReader:
    def __init__(self, path: Path, lines: int = -1, since: float = 0.0) -> None:
        """Begins with the last `lines` (negative: with all there is), and not with what was written before `since`
        (seconds since the epoch). Raises OSError when there is no log."""
        self._path = path
        with opened(path) as segments:
            if not segments:
                os.close(os.open(path, READ_FLAGS))  # raises what is the matter
            start = segments[0].base
            if lines >= 0:
                start = max(start, offset_of_tail(segments, lines))
            if since:
                start = max(start, offset_since(path, segments, since))
            self._enter(next(segment for segment in reversed(segments) if segment.base <= start), start)

    def read(self) -> bytes:
        """What comes next; empty when that was all, for now."""
        data = self._read()
        if data or not self._rotated():
            return data
        # First what was written between the look and the rotation.
        return self._read() or self._next_file()

    def close(self) -> None:
        os.close(self._file)

    def _read(self) -> bytes:
        data = os.read(self._file, CHUNK_BYTES)
        self._offset += len(data)
        return data

    def _rotated(self) -> bool:
        try:
            return os.stat(self._path).st_ino != self._inode
        except FileNotFoundError:  # it is being rotated just now, or was removed
            return False

    def _next_file(self) -> bytes:
        with opened(self._path) as segments:
            later = [each for each in segments if each.base >= self._offset and each.inode != self._inode]
            if not later:
                return b""
            missed = later[0].base - self._offset
            os.close(self._file)
            self._enter(later[0], later[0].base)
        return _notice(missed) if missed else self._read()

    def _enter(self, segment: Segment, offset: int) -> None:
        self._file, self._inode, self._offset = os.dup(segment.file), segment.inode, offset
        os.lseek(self._file, offset - segment.base, os.SEEK_SET)


def _notice(missed: int) -> bytes:
    return f"\n[{missed} bytes were dropped here: they were rotated away before they could be read]\n".encode()
