"""Services and jobs: how fast and how large a master is with 200 nodes and 5,000 tasks.

A real master (`tepui master run`, a process of its own) and 200 simulated nodes (`bench/simulated.py`, another one),
which join it as nodes do and speak the real session over mutual TLS; only what nodes do with tasks is faked. This
process asks the API, and all of it shares the machine's CPUs.

`all_running_5000` is from the first of 50 requests, each for an app of 100 instances with a VIP, until the API says
that all run, and `longest_pause` the slowest answer to a request for nothing meanwhile. `list_1000` is the whole answer
to `GET /v2/apps` when there are 1,000 apps, `get_app` one to `GET /v2/apps/ID` while another app gets 1,000 tasks. Of
job runs 10,000 are asked for while no node takes tasks; then all nodes do, and `job_runs` is their number divided by
the time until the last has succeeded, as all of them have to. The peers are what is promised.

At last the master is ended, and started again with 10,000 apps that have no tasks: `start_10000_apps` is until it
answers with all of them, `rss_10000_apps` what it takes then. The peer is a master without any.

What the processes needed of the CPUs goes to standard error.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.apart import ROOT, apart, report
from bench.report import Report, Row, percentile
from bench.simulated import Cluster, name_of
from cli.client import Admin, Client
from cli.problem import Problem

NODES, APPS, EACH = 200, 50, 100
TASKS = APPS * EACH
ROUNDS = 2
LISTED, LISTS = 1000, 20
DEPLOYED, DEPLOYMENTS, RATE = 1000, 3, 50
RUNS, RUN_S, CLIENTS = 10_000, 1, 4
PROMISED_RUNNING_S, PROMISED_LIST_MS, PROMISED_GET_MS, PROMISED_RSS_MIB = 10.0, 300.0, 20.0, 400.0
PROMISED_RUNS_S, PROMISED_PAUSE_MS = 300.0, 250.0
MANY, TOGETHER = 10_000, 500
RUN_DEADLINE_S = 550
DEADLINE_S, POLL_S, LOOK_S, START_POLL_S = 120.0, 0.2, 2.0, 0.05
TEPUI = (sys.executable, "-m", "cli.main")
TICKS = os.sysconf("SC_CLK_TCK")


def run() -> Report:
    return apart("bench.services", RUN_DEADLINE_S)


async def measure(directory: Path) -> Report:
    return _measure(directory)


def _measure(directory: Path) -> Report:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    made = _init(directory / "master")
    admin = Admin(**json.loads(Path(made["admin"]).read_text()))
    with _master(directory, admin, 0) as (master, start_s):
        empty = start_s, _rss_mib(master)
        with _nodes(directory, made) as nodes:
            bench = _Bench(admin, master, nodes)
            rows = [*bench.services(), *bench.jobs()]
        bench.fill(MANY)
    with _master(directory, admin, MANY) as (master, start_s):
        rows += [
            Row("start_10000_apps_s", "s", start_s, empty[0], "without apps"),
            Row("rss_10000_apps_mib", "MiB", _rss_mib(master), empty[1], "without apps"),
        ]
    return Report("services", tuple(rows))


def _init(state: Path) -> dict[str, str]:
    init = [*TEPUI, "master", "init", "--address", "127.0.0.1", "--uses", str(NODES), "--state", str(state), "--json"]
    made: dict[str, str] = json.loads(subprocess.run(init, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    return made


@contextmanager
def _master(directory: Path, admin: Admin, apps: int) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """With the seconds until it told of all its apps."""
    began = time.monotonic()
    with (
        (directory / "master.log").open("ab") as log,
        subprocess.Popen(
            [*TEPUI, "master", "run", "--state", str(directory / "master")], cwd=ROOT, stderr=log
        ) as process,
    ):
        try:
            _until(lambda: _has(admin, apps), START_POLL_S)
            yield process, time.monotonic() - began
        finally:
            process.terminate()


def _has(admin: Admin, apps: int) -> bool:
    try:
        return len(Client(admin).get("/v2/apps")["apps"]) >= apps
    except Problem:
        return False


def _rss_mib(process: subprocess.Popen[bytes]) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@contextmanager
def _nodes(directory: Path, made: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    (directory / "nodes").mkdir()
    cluster = Cluster(NODES, str(directory / "nodes"), made["token"], made["enrolment"], "127.0.0.1:8444")
    argv = [sys.executable, "-m", "bench.simulated"]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(asdict(cluster)) + "\n")
            stdin.flush()
            if stdout.readline() != "connected\n":
                raise RuntimeError("the nodes did not connect: see above")
            yield process
        finally:
            stdin.close()


class _Bench:
    def __init__(self, admin: Admin, master: subprocess.Popen[bytes], nodes: subprocess.Popen[str]) -> None:
        self._admin = admin
        self._client = Client(admin)
        self._master = master
        self._pids = {"master": master.pid, "nodes": nodes.pid}

    def services(self) -> list[Row]:
        running: list[float] = []
        pauses: list[float] = []
        for number in range(ROUNDS):
            if number:
                self._remove_all()
            with _probing(self._admin, lambda: "/v2/info", RATE) as times:
                running.append(self._start_all())
            pauses.append(max(times))
        rss = [_rss_mib(self._master)]
        for number in range(LISTED - APPS):
            self._client.post("/v2/apps", _app(f"/idle/app-{number}", 0))
        lists = [_timed(lambda: self._client.get("/v2/apps")) for _ in range(LISTS)]
        gets = [each for number in range(DEPLOYMENTS) for each in self._deploy(f"/large-{number}")]
        rss.append(_rss_mib(self._master))
        self._remove_all()
        return [
            Row("all_running_5000_s", "s", statistics.median(running), PROMISED_RUNNING_S, "promised"),
            Row("longest_pause_ms", "ms", statistics.median(pauses), PROMISED_PAUSE_MS, "promised"),
            Row("list_1000_ms", "ms", statistics.median(lists), PROMISED_LIST_MS, "promised"),
            Row("get_app_p50_ms", "ms", percentile(gets, 50), PROMISED_GET_MS, "promised"),
            Row("get_app_p99_ms", "ms", percentile(gets, 99), PROMISED_GET_MS, "promised"),
            Row("master_rss_mib", "MiB", max(rss), PROMISED_RSS_MIB, "promised"),
        ]

    def jobs(self) -> list[Row]:
        self._client.post("/v1/jobs", _job("sleepers"))
        self._each_node(lambda client, path: client.put(path, None))
        with self._telling(f"{RUNS} runs asked for"):
            self._ask_for_runs("sleepers")
        began = time.monotonic()
        with self._telling(f"{RUNS} runs done"):
            self._each_node(lambda client, path: client.delete(path))
            _until(lambda: self._succeeded("sleepers") == RUNS)
        return [Row("job_runs_per_s", "/s", RUNS / (time.monotonic() - began), PROMISED_RUNS_S, "promised")]

    def fill(self, apps: int) -> None:
        """There are so many apps then, most without tasks."""
        missing = apps - len(self._client.get("/v2/apps")["apps"])
        for first in range(0, missing, TOGETHER):
            names = [f"/more/app-{number}" for number in range(first, min(missing, first + TOGETHER))]
            self._client.put("/v2/apps", [_app(name, 0) for name in names])

    def _start_all(self) -> float:
        """Seconds until all tasks run."""
        began = time.monotonic()
        with self._telling(f"{TASKS} tasks started"):
            for number in range(APPS):
                self._client.post("/v2/apps", _app(f"/app-{number}", EACH))
            _until(lambda: sum(app["tasksRunning"] for app in self._client.get("/v2/apps")["apps"]) == TASKS)
        return time.monotonic() - began

    def _deploy(self, app: str) -> list[float]:
        """Milliseconds of each answer while an app gets its tasks."""
        names = [app, *(f"/app-{number}" for number in range(APPS))]
        self._client.post("/v2/apps", _app(app, DEPLOYED))
        with (
            self._telling(f"{DEPLOYED} tasks deployed"),
            _probing(self._admin, lambda: f"/v2/apps{random.choice(names)}", RATE) as times,
        ):
            _until(lambda: self._client.get("/v2/deployments") == [])
        self._client.delete(f"/v2/apps{app}", force="true")
        _until(lambda: self._tasks() == TASKS, LOOK_S)
        return times

    def _remove_all(self) -> None:
        with self._telling(f"{TASKS} tasks ended"):
            for number in range(APPS):
                self._client.delete(f"/v2/apps/app-{number}", force="true")
            _until(lambda: self._tasks() == 0, LOOK_S)

    def _tasks(self) -> int:
        return len(self._client.get("/api/v1/tasks")["tasks"])

    def _each_node(self, ask: Callable[[Client, str], object]) -> None:
        for number in range(NODES):
            ask(self._client, f"/api/v1/nodes/{name_of(number)}/drain")

    def _ask_for_runs(self, job: str) -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [Client(self._admin) for _ in range(CLIENTS)]
            asked = [pool.submit(_ask_for_runs, client, job, RUNS // CLIENTS) for client in clients]
            for each in asked:
                each.result()

    def _succeeded(self, job: str) -> int:
        summary = self._client.get(f"/v1/jobs/{job}", embed="historySummary")["historySummary"]
        if summary["failureCount"]:
            raise RuntimeError(f"{summary['failureCount']} runs failed")
        return int(summary["successCount"])

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """How long it took, and what it took of the CPUs."""
        began, before = time.monotonic(), {name: _cpu_s(pid) for name, pid in self._pids.items()}
        yield
        spent = [f"{name} {_cpu_s(pid) - before[name]:.1f} s" for name, pid in self._pids.items()]
        print(f"{what} in {time.monotonic() - began:.1f} s; CPU: {', '.join(spent)}", file=sys.stderr)


@contextmanager
def _probing(admin: Admin, path: Callable[[], str], rate: int) -> Iterator[list[float]]:
    """Asks again and again from a thread, so many times a second at most; milliseconds of each answer."""
    times: list[float] = []
    done = threading.Event()

    def probe() -> None:
        client, due = Client(admin), time.monotonic()
        while not done.wait(max(0.0, due - time.monotonic())):
            due = time.monotonic() + 1 / rate
            times.append(_timed(lambda: client.get(path())))

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield times
    finally:
        done.set()
        thread.join()


def _ask_for_runs(client: Client, job: str, count: int) -> None:
    for _ in range(count):
        client.post(f"/v1/jobs/{job}/runs")


def _app(app_id: str, instances: int) -> dict[str, Any]:
    port = {"containerPort": 8080, "name": "http", "labels": {"VIP_0": f"{app_id}:80"}}
    return {
        "id": app_id,
        "cmd": "exec /usr/bin/serve --port $PORT_HTTP",
        "cpus": 0.1,
        "mem": 64,
        "instances": instances,
        "env": {"LOG_LEVEL": "info", "REGION": "eu-1"},
        "labels": {"team": "web", "tier": "front"},
        "networks": [{"mode": "container", "name": "overlay"}],
        "container": {"type": "MESOS", "portMappings": [port]},
    }


def _job(job_id: str) -> dict[str, Any]:
    networks = [{"mode": "container", "name": "overlay"}]
    return {"id": job_id, "run": {"cmd": f"sleep {RUN_S}", "cpus": 0.1, "mem": 32, "disk": 0, "networks": networks}}


def _timed(ask: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.monotonic()
    ask()
    return 1000 * (time.monotonic() - began)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _until(condition: Callable[[], bool], poll_s: float = POLL_S) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {DEADLINE_S:g} s")
        time.sleep(poll_s)


if __name__ == "__main__":
    report(measure)
