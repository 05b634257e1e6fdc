"""What goes into a pipe comes out of the log files: through rotation, a full disk, and a pump that was killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.launcher import streams
from agent.launcher.pump import Limits, Pump, open_log
from agent.log_reader import LogReader

SMALL = Limits(size=4096, files=3)


class Log:
    """A pipe with a pump, and the log that it writes."""

    def __init__(self, directory: Path, limits: Limits = SMALL) -> None:
        self.path = directory / "stdout"
        self.limits = limits
        os.mkfifo(directory / "stdout.fifo", 0o600)
        self.fifo = streams.open_fifo(str(directory / "stdout.fifo"))
        self.pump = self.start()

    def start(self) -> Pump:
        """Another pump, as after the death of the one before."""
        pipe = streams.open_fifo(str(self.path.with_suffix(".fifo")), os.O_NONBLOCK)
        return Pump(pipe, open_log(str(self.path)), str(self.path), self.limits)

    def write(self, data: bytes) -> None:
        """As the container; and the pump takes it."""
        os.write(self.fifo, data)
        while self.pump.move():
            pass

    def files(self) -> dict[str, bytes]:
        """Without indexes."""
        found = self.path.parent.glob("stdout*")
        return {path.name: path.read_bytes() for path in found if path.suffix not in (".fifo", ".index")}

    def read(self, lines: int = -1, since: float = 0.0) -> bytes:
        with reading(self.path, lines, since) as reader:
            return all_of(reader)


@contextmanager
def reading(path: Path, lines: int = -1, since: float = 0.0) -> Iterator[LogReader]:
    reader = LogReader(path, lines, since)
    try:
        yield reader
    finally:
        reader.close()


def all_of(reader: LogReader) -> bytes:
    return b"".join(iter(reader.read, b""))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path)
    yield made
    made.pump.drain()
    os.close(made.fifo)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still until the test changes it."""
    now = [1_000_000.0]
    monkeypatch.setattr("agent.launcher.pump.time.time", lambda: now[0])
    monkeypatch.setattr("agent.launcher.pump.time.monotonic", lambda: now[0])
    return now


def test_what_is_written_is_in_the_log(log: Log) -> None:
    log.write(b"one\n")
    log.write(b"two\n")
    assert log.files() == {"stdout": b"one\ntwo\n"} and log.read() == b"one\ntwo\n"


def test_files_are_full_and_no_more_than_they_may_be(log: Log) -> None:
    sent = b"".join(b"%07d\n" % number for number in range(2000))
    for start in range(0, len(sent), 1000):
        log.write(sent[start : start + 1000])
    files = log.files()
    assert {name: len(data) for name, data in files.items()} == {"stdout": 3712, "stdout.1": 4096, "stdout.2": 4096}
    assert files["stdout.2"] + files["stdout.1"] + files["stdout"] == sent[-11904:] == log.read()
    assert sum(1 for _ in log.path.parent.glob("*.index")) == 3


def test_a_single_file_begins_again(tmp_path: Path) -> None:
    log = Log(tmp_path, Limits(size=4096, files=1))
    log.write(bytes(4096))
    log.write(b"x")
    assert log.files() == {"stdout": b"x"}
    with reading(log.path) as reader:
        assert reader.read() == b"x"
        log.write(bytes(4095) + b"y")
        assert all_of(reader) == bytes(4095) + b"y"


def test_a_reader_goes_from_file_to_file(log: Log) -> None:
    sent = read = b""
    with reading(log.path) as reader:
        for number in range(300):
            line = b"line %d of some length\n" % number
            sent += line
            log.write(line)
            if number % 7 == 0:
                read += all_of(reader)
        assert read + all_of(reader) == sent


def test_a_reader_that_was_overtaken_is_told_by_how_much(log: Log) -> None:
    log.write(b"begin\n")
    with reading(log.path) as reader:
        assert reader.read() == b"begin\n"
        for _ in range(8):
            log.write(b"x" * 2999 + b"\n")
        rest = all_of(reader)
    kept = log.read()
    held = 4096 - len(b"begin\n")  # it had the first file open
    missed = 8 * 3000 - held - len(kept)
    notice = b"\n[%d bytes were dropped here: they were rotated away before they could be read]\n" % missed
    assert missed > 0 and rest[held:] == notice + kept


def test_the_last_lines(log: Log) -> None:
    lines = [b"line %d\n" % number for number in range(1500)]
    for line in lines:
        log.write(line)
    for count in (0, 1, 2, 700, 1000):
        assert log.read(count) == b"".join(lines[len(lines) - count :])
    assert log.read(10**9) == log.read()
    log.write(b"half a line")
    assert log.read(1) == b"half a line" and log.read(2) == lines[-1] + b"half a line"


def test_what_was_written_since(log: Log, clock: list[float]) -> None:
    begun = clock[0]
    for number in range(100):
        log.write(b"%02d %s\n" % (number, b"x" * 296))
        os.utime(log.path, (clock[0], clock[0]))
        clock[0] += 10.0
    assert log.read(since=begun + 990).startswith(b"99 ")
    assert log.read(since=begun + 981).startswith(b"99 ")
    assert log.read(since=begun + 980).startswith(b"98 ")
    assert log.read(since=begun + 805).startswith(b"81 ")
    assert log.read(since=begun + 991) == b"" and log.read(since=begun) == log.read() == log.read(since=1)


def test_an_index_does_not_outgrow_its_log(log: Log, clock: list[float]) -> None:
    """Of one that writes a byte a second, which is in the first file all the time."""
    for _ in range(3000):
        log.write(b".")
        clock[0] += 1.0
    assert os.stat(f"{log.path}.index").st_size < 32 * (128 + 3000 / 60 + 2)


def test_another_pump_goes_on_where_one_was_killed(log: Log) -> None:
    os.write(log.fifo, b"x" * 5000)
    log.pump.move()
    log.pump = log.start()
    log.write(b"y" * 9000)
    assert log.read() == (b"x" * 5000 + b"y" * 9000)[-len(log.read()) :]
    with reading(log.path, 0) as reader:
        log.pump = log.start()
        log.write(b"z" * 9000)
        assert all_of(reader) == b"z" * 9000


@pytest.mark.parametrize("moment", range(7))
def test_a_pump_that_is_killed_while_it_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Before any change of a name, and after the last: no byte that is kept is lost, and none comes twice."""
    log = Log(tmp_path)
    sent = b"".join(b"%07d\n" % number for number in range(2048))  # four full files, of which three are kept
    for start in range(0, len(sent), 1024):
        log.write(sent[start : start + 1024])
    with reading(log.path, 1) as reader:
        assert reader.read() == sent[-8:]
        with _killed_at(monkeypatch, moment):
            log.write(b"and more\n")
        log.pump = log.start()
        log.write(b"and yet more\n")
        sent += b"and more\nand yet more\n"
        assert all_of(reader) == b"and more\nand yet more\n"
    kept = log.read()
    assert sent.endswith(kept) and len(kept) > 4096
    log.write(bytes(20000))
    assert log.read(10**6) == (sent + bytes(20000))[-len(log.read()) :]


@pytest.mark.parametrize("lost", ["stdout.index", "stdout.1.index", "stdout.2.index", "stdout*.index"])
def test_an_index_that_is_lost_costs_no_output(log: Log, lost: str) -> None:
    sent = b"".join(b"%07d\n" % number for number in range(2000))
    for start in range(0, len(sent), 1000):
        log.write(sent[start : start + 1000])
    with reading(log.path) as reader:
        for index in log.path.parent.glob(lost):
            index.unlink()
        log.pump = log.start()
        log.write(b"and more\n" * 1000)
        assert (sent + b"and more\n" * 1000).endswith(log.read())
        assert reader.read()[:8] == sent[-11904:][:8]


@contextmanager
def _killed_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> Iterator[None]:
    done = 0
    rename, unlink = os.rename, os.unlink

    def step() -> None:
        nonlocal done
        done += 1
        if done > moment:
            raise KeyboardInterrupt

    def renaming(old: str, new: str) -> None:
        step()
        rename(old, new)

    def unlinking(path: str) -> None:
        step()
        unlink(path)

    with monkeypatch.context() as patched:
        patched.setattr("agent.launcher.pump.os.rename", renaming)
        patched.setattr("agent.launcher.pump.os.unlink", unlinking)
        try:
            yield
        except KeyboardInterrupt:
            return


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9000), st.booleans(), st.booleans()), max_size=30))
def test_a_reader_gets_all_or_hears_how_much_it_missed(steps: list[tuple[int, bool, bool]]) -> None:
    """Whenever it reads, and whenever a pump is replaced."""
    with TemporaryDirectory() as directory:
        log = Log(Path(directory))
        sent = got = 0
        with reading(log.path) as reader:
            for size, reads, replaced in steps:
                log.write(b"x" * size)
                sent += size
                if replaced:
                    log.pump = log.start()
                if reads:
                    got += _counted(reader)
            assert got + _counted(reader) == sent


def _counted(reader: LogReader) -> int:
    """Bytes read, and those that a notice says were missed."""
    count = 0
    while data := reader.read():
        count += int(data.split()[0].lstrip(b"[")) if data.startswith(b"\n[") else len(data)
    return count
