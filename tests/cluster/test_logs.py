"""What containers write reaches its reader: past rotation, agents and keepers that are killed, and the task's end."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lab import daemons
from lab.cluster import MASTER
from tests.cluster import bed, traces
from tests.cluster.bed import Cluster, eventually

# Lines of 100 bytes that begin with a number, so that one that is lost, torn or repeated is seen.
COUNTING = "i=0; while :; do i=$((i+1)); printf '%-99d\\n' $i; sleep 0.002; done"
FAST = "i=0; while :; do i=$((i+1)); echo $i; done"
SMALL = {"CONTAINER_LOGGER_MAX_STDOUT_SIZE": "4KB", "CONTAINER_LOGGER_LOGROTATE_STDOUT_OPTIONS": "rotate 9"}
NOTICE = re.compile(rb"\n\[(\d+) bytes were dropped here: they were rotated away before they could be read\]\n")
READ_DEADLINE_S = 60.0


def test_a_follower_sees_every_line_while_agent_and_keeper_are_killed(cluster: Cluster) -> None:
    """The follower has to ask again when the agent dies; what it then reads has no gap."""
    cluster.run(bed.command("/counting", COUNTING, env=SMALL))
    (task,) = cluster.await_running("/counting", 1).values()
    with following(cluster, task["id"]) as lines:
        assert [next(lines) for _ in range(300)] == list(range(1, 301))
    cluster.lab.kill_daemon(task["node"], "agent")
    kill_keeper(cluster, task)
    last = eventually(lambda: last_line(cluster, task["id"], beyond=300), "the log goes on")
    with following(cluster, task["id"], "--tail", "50") as lines:
        first = next(lines)
        assert [next(lines) for _ in range(300)] == list(range(first + 1, first + 301))
        assert last - 50 < first
    kept = [int(line) for line in cluster.log_of(task["id"]).splitlines()[1:]]
    assert kept == list(range(kept[0], kept[-1] + 1))


def test_a_reader_that_is_too_slow_is_told_and_holds_up_nobody(cluster: Cluster) -> None:
    cluster.run(bed.command("/fast", FAST, cpus=1, env={"CONTAINER_LOGGER_MAX_STDOUT_SIZE": "64KB"}))
    (task,) = cluster.await_running("/fast", 1)
    with stream(cluster, task) as chunks:
        read = next(chunks)
        before = last_line(cluster, task)
        eventually(lambda: last_line(cluster, task, beyond=before + 1_000_000), "it writes on, and others read")
        while not (notice := NOTICE.search(read)):
            read += next(chunks)
        while b"\n" not in read[notice.end() :].partition(b"\n")[2]:
            read += next(chunks)
    # What is missing are as many bytes as the notice says: so many numbers of so many digits.
    seen = read[: notice.start()].splitlines(keepends=True)
    torn = b"" if seen[-1].endswith(b"\n") else seen.pop()
    rest, following_line = read[notice.end() :].split(b"\n")[:2]
    numbers = range(int(seen[-1]) + 1, int(following_line))
    missing = sum(len(str(number)) + 1 for number in (numbers[0], numbers[-1])) if len(numbers) < 3 else size(numbers)
    assert int(notice[1]) == missing - len(torn) - len(rest) - 1


def test_the_last_lines_and_those_since_a_time(cluster: Cluster) -> None:
    script = "echo old; sleep 2; echo new; echo newer; exec sleep 3600"
    cluster.run(bed.command("/lines", script))
    (task,) = cluster.await_running("/lines", 1)
    eventually(lambda: cluster.log_of(task) == "old\nnew\nnewer\n", "all is written")
    written = time.time()
    assert output(cluster, task, "--tail", "1") == "newer\n"
    assert output(cluster, task, "--tail", "0") == ""
    assert output(cluster, task, "--since", "1h") == "old\nnew\nnewer\n"
    stamp = cluster.request("GET", f"/api/v1/tasks/{task}/log", params={"since": written - 1.5})
    assert stamp.text == "new\nnewer\n"


def test_the_log_of_a_task_outlives_the_task(cluster: Cluster) -> None:
    """Until its node removes it: nothing else knows the task any more."""
    cluster.run(bed.command("/short", "echo famous last words; exec sleep 3600"))
    (task,) = cluster.await_running("/short", 1)
    eventually(lambda: cluster.log_of(task), "it has spoken")
    cluster.remove("/short")
    eventually(lambda: not cluster.tasks(), "the task is forgotten")
    assert output(cluster, task) == "famous last words\n"
    unknown = cluster.request("GET", "/api/v1/tasks/short.invented/log")
    assert unknown.status_code == 404 and "none of the 3 connected nodes has it" in unknown.text


def test_the_logs_of_a_service_are_those_of_its_tasks(cluster: Cluster) -> None:
    cluster.run(bed.command("/chorus", "echo hello; echo again; exec sleep 3600", instances=3))
    tasks = cluster.await_running("/chorus", 3)
    eventually(lambda: all(cluster.log_of(task).count("\n") == 2 for task in tasks), "all have spoken")
    argv = daemons.command(cluster.lab, MASTER, ["tepui", "service", "log", "/chorus"])
    printed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=READ_DEADLINE_S).stdout
    names = [task.split("-")[0] for task in tasks]
    assert sorted(printed.splitlines()) == sorted(f"{name} | {word}" for name in names for word in ("hello", "again"))


def size(numbers: range) -> int:
    """Bytes of these numbers, a line for each."""
    total, low = 0, numbers.start
    while low < numbers.stop:
        high = min(numbers.stop, 10 ** len(str(low)))
        total += (high - low) * (len(str(low)) + 1)
        low = high
    return total


@contextmanager
def following(cluster: Cluster, task: str, *options: str) -> Iterator[Iterator[int]]:
    """The numbers that the task writes."""
    argv = daemons.command(cluster.lab, MASTER, ["tepui", "task", "log", "-f", *options, task])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        try:
            yield map(int, follower.stdout)
        finally:
            follower.kill()


@contextmanager
def stream(cluster: Cluster, task: str) -> Iterator[Iterator[bytes]]:
    """The body of the answer, which is read as slowly as the test likes."""
    extensions = {"sni_hostname": cluster.server_name}
    path, query = f"/api/v1/tasks/{task}/log", {"follow": True}
    opened = cluster.api.stream("GET", path, params=query, timeout=READ_DEADLINE_S, extensions=extensions)
    with ExitStack() as stack:
        # The connection is made by whoever enters, and so in the master's network.
        response = cluster.lab.within(MASTER, lambda: stack.enter_context(opened))
        yield response.iter_bytes()


def output(cluster: Cluster, task: str, *options: str) -> str:
    argv = daemons.command(cluster.lab, MASTER, ["tepui", "task", "log", *options, task])
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=READ_DEADLINE_S).stdout


def last_line(cluster: Cluster, task: str, beyond: int = 0) -> int:
    """0 while it is not beyond that."""
    response = cluster.request("GET", f"/api/v1/tasks/{task}/log", params={"tail": 2})
    line = response.text.partition("\n")[0].strip() if response.is_success else ""
    return int(line) if line and int(line) > beyond else 0


def kill_keeper(cluster: Cluster, task: dict[str, Any]) -> None:
    record = traces.bundle(cluster.lab, task["node"], task["id"]) / "keeper.json"
    keeper = json.loads(record.read_text())["keeper"]["pid"]
    cluster.lab.exec(task["node"], ["kill", "-9", str(keeper)])
