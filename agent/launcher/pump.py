"""Carries what a container writes from its pipes into its log files, and keeps those within bounds.

Bytes go from the pipe to the file by splice(2), and never become Python's. Of one stream there are

    stdout, stdout.1, ...               no more than `files`, each of `size` bytes but the newest, which is `stdout`
    stdout.index, stdout.1.index, ...   when which byte of the file was written (`Note`)

A disk that takes no more must not stop a container: what it writes meanwhile is dropped and counted, and a line in the
log tells how much, once there is room. Everything that has to be known of a log is in its files, so that whoever takes
over from a pump that was killed goes on where it was.

Imports the standard library only: this runs in keepers.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from contextlib import suppress
from dataclasses import dataclass

LOG_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
CHUNK_BYTES = 1 << 20
RETRY_S = 1.0  # after the disk took no more
NOTE_INTERVAL_S = 1.0
# Once there are so many notes of a file: an index shall not outgrow the log of a stream that writes next to nothing.
NOTES_FREE, NOTE_BYTES, NOTE_RARELY_S = 128, 256, 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one stream: bytes of one file, and how many files there may be."""

    size: int = 10 << 20
    files: int = 3


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Note:
    """Bytes from `offset` on were written at `at` or later, those before it at `before` or earlier (seconds since the
    epoch). Offsets count from the beginning of the stream, whatever was rotated away since. `inode` is the file's:
    a log and its index do not change their names at the same instant."""

    at: float
    before: float
    offset: int
    inode: int


NOTE = struct.Struct("<ddQQ")


def name(path: str, number: int) -> str:
    return f"{path}.{number}" if number else path


def index_name(path: str, number: int) -> str:
    return name(path, number) + ".index"


def open_log(path: str) -> int:
    return os.open(path, LOG_FLAGS, 0o600)


def parse_index(data: bytes) -> list[Note]:
    """What a write left unfinished is not there yet."""
    whole = len(data) - len(data) % NOTE.size
    return [Note(*fields) for fields in NOTE.iter_unpack(data[:whole])]


class Pump:
    """One stream: `pipe`, which does not block, and its log, open as `file`; both are closed with it."""

    def __init__(self, pipe: int, file: int, path: str, limits: Limits) -> None:
        self.pipe = pipe
        self._file = file
        self._path = path
        self._limits = limits
        self._size = os.lseek(file, 0, os.SEEK_END)
        self._written_at = time.time()
        self._base, self._notes = self._read_index()
        self._noted_at, self._noted_offset = 0.0, 0
        self._dropped = 0
        self._reason = ""
        self._retry_at = 0.0
        if not self._notes:
            self._note(self._written_at)

    def move(self) -> bool:
        """Some of what is in the pipe; False when it is empty."""
        if time.monotonic() < self._retry_at:
            return self._drop()
        now = time.time()
        try:
            self._make_room(now)
            moved = os.splice(self.pipe, self._file, self._room(), flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return False
        except OSError as error:  # the disk is full, or fails: either way the container goes on
            self._reason, self._retry_at = error.strerror or str(error), time.monotonic() + RETRY_S
            return self._drop()
        if self._note_due(now):
            self._note(now)
        self._size += moved
        self._written_at = now
        return moved > 0

    def drain(self) -> None:
        """All that is in the pipe, to be called when nobody writes any more; then lets go of it."""
        while self.move():
            pass
        with suppress(OSError):  # there is no room, and nobody left to tell
            self._mark()
        os.close(self.pipe)
        os.close(self._file)

    def _room(self) -> int:
        return min(CHUNK_BYTES, max(1, self._limits.size - self._size))

    def _make_room(self, now: float) -> None:
        if self._size >= self._limits.size:
            self._rotate(now)
        self._mark()

    def _rotate(self, now: float) -> None:
        """The new file is made first: should the disk refuse it, nothing has changed."""
        fresh = os.open(self._path + ".new", LOG_FLAGS | os.O_TRUNC, 0o600)
        for number in range(self._limits.files - 1, 0, -1):
            _rename(index_name(self._path, number - 1), index_name(self._path, number))
            _rename(name(self._path, number - 1), name(self._path, number))
        _remove(index_name(self._path, 0))
        os.rename(self._path + ".new", self._path)
        os.close(self._file)
        self._file = fresh
        self._base += self._size
        self._size = self._notes = 0
        self._note(now)

    def _drop(self) -> bool:
        null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        try:
            dropped = os.splice(self.pipe, null, CHUNK_BYTES, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return False
        finally:
            os.close(null)
        self._dropped += dropped
        return dropped > 0

    def _mark(self) -> None:
        """Tells in the log of what was dropped, whole or not at all."""
        if not self._dropped:
            return
        line = f"\n[{self._dropped} bytes were dropped here: {self._reason}]\n".encode()
        if os.pwrite(self._file, line, self._size) < len(line):
            os.truncate(self._file, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        self._size = os.lseek(self._file, 0, os.SEEK_END)
        self._dropped = 0

    def _note_due(self, now: float) -> bool:
        since = now - self._noted_at
        if since < NOTE_INTERVAL_S:
            return since < 0  # the clock was set back
        frequent = self._notes < NOTES_FREE or self._base + self._size - self._noted_offset >= NOTE_BYTES
        return frequent or since >= NOTE_RARELY_S

    def _note(self, now: float) -> None:
        """Of the bytes that come next. An index that can not be written costs `--since` its precision, and no more."""
        offset = self._base + (self._size if self._notes else 0)  # the first is of the file's beginning
        record = NOTE.pack(now, self._written_at, offset, os.fstat(self._file).st_ino)
        try:
            # What another file's index left is none of this one's.
            file = os.open(index_name(self._path, 0), LOG_FLAGS | (0 if self._notes else os.O_TRUNC), 0o600)
            try:
                complete = os.pwrite(file, record, self._notes * NOTE.size) == NOTE.size
            finally:
                os.close(file)
        except OSError:
            return
        self._notes += complete
        self._noted_at, self._noted_offset = now, offset

    def _read_index(self) -> tuple[int, int]:
        """The offset at which the file begins, and how many notes there are of it."""
        inode = os.fstat(self._file).st_ino
        notes = _read_notes(self._path, 0)
        if not notes or notes[0].inode != inode:
            before = _read_notes(self._path, 1)
            if not before:
                return 0, 0
            if before[0].inode != inode:  # the file is new, or has lost its index
                return before[0].offset + os.stat(name(self._path, 1)).st_size, 0
            # Whoever pumped before was killed when it had renamed the index and not yet the file.
            os.rename(index_name(self._path, 1), index_name(self._path, 0))
            notes = before
        return notes[0].offset, len(notes)


def _read_notes(path: str, number: int) -> list[Note]:
    try:
        with open(index_name(path, number), "rb") as file:
            return parse_index(file.read())
    except FileNotFoundError:
        return []


def _rename(old: str, new: str) -> None:
    with suppress(FileNotFoundError):
        os.rename(old, new)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
