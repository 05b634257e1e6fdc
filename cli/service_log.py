"""`tepui service log`: what all tasks of a service write, line by line, each with its task's name before it.

One thread a task, since each reads a stream of its own. With `-f` tasks that start later are followed too.
"""

from __future__ import annotations

import json as codec
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cli.client import connect
from cli.log_options import Follow, Since, Stderr, Stdout, Tail, log_query
from cli.output import Json
from cli.problem import Problem
from cli.service_change import Id, view_of
from cli.task_table import short

POLL_S = 2.0


def log(
    service: Id,
    follow: Follow = False,
    tail: Tail = -1,
    since: Since = "",
    stdout: Stdout = False,
    stderr: Stderr = False,
    json: Json = False,
) -> None:
    """What the tasks of a service write. As JSON, a line is an object with its task."""
    readers = _Readers(log_query(follow, tail, since, stdout, stderr), as_json if json else named)
    while True:
        tasks = connect().get(view_of(service))["tasks"]
        readers.read({task["id"] for task in tasks})
        if not follow:
            return readers.wait()
        time.sleep(POLL_S)


class _Readers:
    def __init__(self, query: dict[str, Any], shown: Callable[[str, bytes], bytes]) -> None:
        self._query = query
        self._shown = shown
        self._threads: dict[str, threading.Thread] = {}
        self._complaints: dict[str, str] = {}
        self._broke_at: dict[str, float] = {}
        self._printing = threading.Lock()

    def read(self, tasks: Iterable[str]) -> None:
        """Those that are not being read yet."""
        for task in sorted(tasks):
            if task not in self._threads:
                # Should the person interrupt, these must not keep the program.
                thread = self._threads[task] = threading.Thread(target=self._read, args=(task,), daemon=True)
                thread.start()

    def wait(self) -> None:
        for thread in self._threads.values():
            thread.join()

    def _read(self, task: str) -> None:
        """A log that can not be read, as of a task that has not started, is tried again; why is said once."""
        query = self._query
        if task in self._broke_at:  # what came before was printed
            query = query | {"since": self._broke_at[task], "tail": -1}
        try:
            with connect().stream(f"/api/v1/tasks/{task}/log", **query) as chunks:
                for line in lines(chunks):
                    with self._printing:
                        sys.stdout.buffer.write(self._shown(task, line) + b"\n")
                        sys.stdout.buffer.flush()
                    self._broke_at[task] = time.time()
        except Problem as problem:
            if self._complaints.get(task) != str(problem):
                self._complaints[task] = str(problem)
                print(f"{short(task)} ! {problem}", file=sys.stderr)
            if self._query["follow"]:
                del self._threads[task]


def named(task: str, line: bytes) -> bytes:
    return b"%s | %s" % (short(task).encode(), line)


def as_json(task: str, line: bytes) -> bytes:
    return codec.dumps({"task": task, "line": line.decode(errors="replace")}).encode()


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Without their ends; the last one may have none."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest
