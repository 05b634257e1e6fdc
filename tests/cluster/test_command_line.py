"""`tepui` as a person uses it on a cluster: waiting for deployments, asking why, following events, watching what is
busy."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import daemons
from lab.cluster import MASTER
from lab.daemons import CPUS_PER_NODE
from tests.cluster import bed, client
from tests.cluster.bed import Cluster, eventually

DEADLINE_S = 60.0
BUSY = "while :; do :; done"


def argv(cluster: Cluster, *words: str) -> list[str]:
    return daemons.command(cluster.lab, MASTER, ["tepui", *words])


def tepui(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(cluster, *words), capture_output=True, text=True, timeout=DEADLINE_S)


def written(directory: Path, definition: dict[str, Any]) -> str:
    file = directory / "definition.json"
    file.write_text(json.dumps(definition))
    return str(file)


@contextmanager
def following(cluster: Cluster, directory: Path, *words: str) -> Iterator[tuple[Path, Path]]:
    """What the command writes, and what it complains of."""
    out, err = directory / "out", directory / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(argv(cluster, *words), stdout=stdout, stderr=stderr)
        try:
            yield out, err
        finally:
            process.kill()
            process.wait(DEADLINE_S)


def test_a_deployment_is_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    done = tepui(cluster, "service", "run", written(tmp_path, bed.checked(3)), "--wait")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "/web: 3 of 3 serve"
    assert "/web: 0 of 3 serve" in done.stderr and len(cluster.running("/web")) == 3
    with client.terminal(argv(cluster, "service", "restart", "/web", "--wait")) as terminal:
        terminal.expect("of 3 serve")
        terminal.expect("/web: 3 of 3 serve")
        assert terminal.process.wait(DEADLINE_S) == 0
    done = tepui(cluster, "service", "exec", "/web", "--", "echo", "hello")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    done = tepui(cluster, "service", "remove", "/web", "--wait")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "/web: is gone") and not cluster.tasks()


def test_an_app_that_waits_is_explained(cluster: Cluster, tmp_path: Path) -> None:
    large = bed.command("/large", "exec sleep 3600", cpus=CPUS_PER_NODE / 1000 + 1)
    done = tepui(cluster, "service", "run", written(tmp_path, large), "--timeout", "2")
    assert done.returncode == 1 and "not done after 2 s: /large: 0 of 1 serve" in done.stderr

    def explained() -> list[str] | None:
        lines = [line.rstrip() for line in tepui(cluster, "explain", "large").stdout.splitlines()]
        return lines if sum(line.startswith("refused") for line in lines) == len(cluster.names) else None

    lines = eventually(explained, "each node's refusal is told") or []
    assert lines[0] == "/large  service  0 of 1 running"
    assert any(line.startswith("waiting      needs 3 CPU: 3 of 3 nodes have too little") for line in lines)
    (deployment,) = [line.split()[1].rstrip(":") for line in lines if line.startswith("deployment")]
    shown = tepui(cluster, "service", "deployment", "show", deployment).stdout
    assert "waiting    needs 3 CPU" in shown
    done = tepui(cluster, "service", "deployment", "cancel", deployment, "--wait")
    assert done.returncode == 0 and cluster.get("/v2/apps")["apps"] == []


def test_why_it_fails_is_explained_with_its_last_words(cluster: Cluster, tmp_path: Path) -> None:
    failing = bed.command("/failing", "echo no such table; exit 3", backoffSeconds=600)
    assert tepui(cluster, "service", "run", written(tmp_path, failing)).returncode == 0

    def explained() -> list[str] | None:
        lines = [line.rstrip() for line in tepui(cluster, "explain", "failing").stdout.splitlines()]
        return lines if "last words   no such table" in lines else None

    lines = eventually(explained, "its last words are told") or []
    assert any(line.startswith("waiting      1 start failed: the next one in") for line in lines), lines
    assert any(line.startswith("last failure") and line.endswith("failed: exited with 3") for line in lines), lines


def test_events_are_followed_through_a_restart_of_the_master(cluster: Cluster, tmp_path: Path) -> None:
    with following(cluster, tmp_path, "events", "-f", "--app", "/told") as (out, err):
        cluster.run(bed.command("/told", "exec sleep 3600"))
        eventually(lambda: " of /told: succeeded" in out.read_text(), "it hears of the deployment")
        lines = out.read_text().splitlines()
        assert any("service /told: asked for by" in line for line in lines)
        assert any("task told." in line and ": RUNNING" in line for line in lines)
        moments = [line[:19] for line in lines]
        assert moments == sorted(moments)
        cluster.lab.kill_daemon(MASTER, "master")
        eventually(lambda: err.read_text().count("is read again") >= 2, "it is back at its streams")
        assert "broke:" in err.read_text()
        cluster.remove("/told")
        eventually(lambda: "service /told: removed" in out.read_text(), "it hears of what happened since")


def test_what_is_busy_comes_first(cluster: Cluster) -> None:
    for app, line in (("/busy", BUSY), ("/idle", "exec sleep 3600")):
        cluster.run(bed.command(app, line, cpus=0.2))
        cluster.await_running(app, 1)

    def measured() -> bool:
        tasks = json.loads(tepui(cluster, "top", "--json").stdout)["tasks"]
        return bool(tasks[0]["owner"] == "/busy" and 0.1 < tasks[0]["cpus"] < 0.3 and tasks[1]["cpus"] < 0.05)

    eventually(measured, "the busy one takes what it may have")
    lines = tepui(cluster, "top", "--once").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == cluster.names
    assert lines[6].startswith("busy.") and lines[7].startswith("idle.")
    assert tepui(cluster, "service", "top", "/idle").stdout.count("idle.") == 1
    with client.terminal(argv(cluster, "top")) as terminal:
        terminal.expect("busy.")
        client.tell(terminal.process, signal.SIGINT)
        assert terminal.process.wait(DEADLINE_S) == 0


def job(name: str, line: str, *after: str) -> dict[str, Any]:
    run = {"cpus": 0.05, "mem": 32, "cmd": line, "networks": [{"mode": "container", "name": "overlay"}]}
    return {"id": name, "run": run, "dependencies": [{"id": each} for each in after]}


def test_a_pipeline_is_run_mended_and_run_again(cluster: Cluster, tmp_path: Path) -> None:
    jobs = [
        job("extract", "echo day $DAY"),
        job("clean", "echo no rows; exit 3", "extract"),
        job("load", "true", "clean"),
    ]
    for each in jobs:
        assert tepui(cluster, "job", "add", written(tmp_path, each)).returncode == 0
    done = tepui(cluster, "job", "run", "extract", "--env", "DAY=1", "--wait")
    assert done.returncode == 1 and done.stderr.endswith("failed: clean failed\n")
    assert "load: blocked: clean failed" in done.stdout and "✗ failed" in done.stdout
    assert "blocked: clean failed" in tepui(cluster, "explain", "load").stdout
    assert "last words   no rows" in tepui(cluster, "explain", "clean").stdout
    assert tepui(cluster, "job", "log", "extract").stdout == "day 1\n"
    assert tepui(cluster, "job", "update", "clean", written(tmp_path, job("clean", "true", "extract"))).returncode == 0
    done = tepui(cluster, "job", "rerun", "extract", "--wait")
    assert done.returncode == 0 and done.stdout.count("✓ success") == 3
    assert tepui(cluster, "job", "run", "load", "--wait").returncode == 0
    told = tepui(cluster, "events", "--app", "load").stdout
    assert "load blocked" in told and told.index("load blocked") < told.index("load success")
    for name in ("load", "clean", "extract"):
        assert tepui(cluster, "job", "remove", name, "--stop").returncode == 0


def test_the_shell_completes_what_there_is(cluster: Cluster) -> None:
    cluster.run(bed.command("/group/web", "exec sleep 3600"))
    cluster.await_running("/group/web", 1)
    words = "tepui service show /gr"
    variables = ["_TEPUI_COMPLETE=complete_bash", f"COMP_WORDS={words}", "COMP_CWORD=3"]
    line = daemons.command(cluster.lab, MASTER, ["env", *variables, "tepui"])
    began = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.stdout.split(), done.stderr) == (["/group/web"], "")
    assert time.monotonic() - began < 3.0
