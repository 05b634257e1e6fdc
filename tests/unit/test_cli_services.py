"""`tepui service` and `explain` against the services framework itself, with the cluster in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from starlette.types import ASGIApp

from cli import waiting
from cli.client import connect
from cli.task_table import short
from frameworks.services.framework import Services
from frameworks.services.rest import PUBLIC, routers
from master.rest import cluster as own
from master.rest.app import create_app
from master.store.sqlite import SqliteStore
from model.task import TaskState
from tests.unit.cluster import Cluster, node
from tests.unit.served import TOKEN, served, tepui

WEB: dict[str, Any] = {"id": "/web", "args": ["server"], "cpus": 0.5, "mem": 64, "instances": 2}
WEB["networks"] = [{"mode": "container", "name": "overlay"}]


class World(Cluster):
    do: Callable[[Callable[[], object]], None]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(waiting, "POLL_S", 0.02)
    made = World(node("n1"), node("n2"))

    @asynccontextmanager
    async def api() -> AsyncIterator[ASGIApp]:
        store = await SqliteStore.open(tmp_path / "store.db")
        services = Services(store, made.subscribe())
        running = asyncio.create_task(services.run())
        try:
            yield create_app(lambda token: token == TOKEN, [tasks_of(services), *routers(store, services)], PUBLIC)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await store.close()

    with served(tmp_path, api, monkeypatch) as service:
        made.do = service.do
        yield made


def tasks_of(services: Services) -> APIRouter:
    """What the master's own part of the API tells of tasks."""
    router = APIRouter()

    @router.get("/api/v1/tasks")
    async def tasks() -> dict[str, Any]:
        return {"tasks": [own.task_json(run.view) for app in services.apps() for run in services.runs(app.id)]}

    @router.get("/api/v1/tasks/{task}/log")
    async def log(task: str) -> PlainTextResponse:
        return PlainTextResponse("first\nno such file: web.conf\n")

    return router


def write(directory: Path, **fields: Any) -> str:
    file = directory / "definition.json"
    file.write_text(json.dumps(fields))
    return str(file)


def test_a_service_from_beginning_to_end(cluster: World, tmp_path: Path) -> None:
    done = tepui("service", "run", write(tmp_path, **WEB), "--wait")
    assert done.status == 0 and done.lines[-1] == "/web: 2 of 2 serve"
    done = tepui("service", "scale", "web", "3", "--wait")
    assert (done.status, done.lines[-1]) == (0, "/web: 3 of 3 serve")
    assert tepui("service", "restart", "web", "-w").status == 0
    assert tepui("service", "update", "web", write(tmp_path, mem=32), "-w").status == 0
    assert tepui("service", "rollback", "web", "-w").status == 0
    assert json.loads(tepui("service", "show", "web", "--json").out)["app"]["mem"] == 64
    assert tepui("explain", "web").lines == ["/web  service  3 of 3 running  fine"]
    done = tepui("service", "remove", "web", "--wait")
    assert (done.status, done.lines[-1]) == (0, "/web: is gone")
    assert tepui("explain", "web").err == "tepui: there is no service, pod or job web\n"


def test_what_waits_is_explained_and_taken_back(cluster: World, tmp_path: Path) -> None:
    assert tepui("service", "run", write(tmp_path, **WEB), "--wait").status == 0
    done = tepui("service", "update", "web", write(tmp_path, cpus=8), "--timeout", "1")
    assert done.status == 1 and "needs 8 CPU: 2 of 2 nodes have too little" in done.err
    lines = tepui("explain", "web").lines
    assert lines[0] == "/web  service  2 of 2 running"
    assert "waiting      needs 8 CPU: 2 of 2 nodes have too little (most free: 3.5 CPU)" in lines
    assert "refused      by n1: /web lacks CPU" in lines and "refused      by n2: /web lacks CPU" in lines
    (deployment,) = [line.split()[1].rstrip(":") for line in lines if line.startswith("deployment")]
    shown = tepui("service", "deployment", "show", deployment).lines
    assert "serving    0 of 2 serve, 2 of the version before are there still" in shown
    locked = tepui("service", "scale", "web", "3")
    assert locked.status == 1 and f"tepui service deployment show {deployment}" in locked.err
    done = tepui("service", "deployment", "cancel", deployment, "--wait")
    assert (done.status, done.lines[-1]) == (0, "/web: 2 of 2 serve")
    assert "cancelled" in tepui("service", "deployment", "show", deployment).out
    (explained,) = json.loads(tepui("explain", "/web", "--json").out)
    assert explained["fine"] and explained["kind"] == "service"


def test_a_canary_is_promoted(cluster: World, tmp_path: Path) -> None:
    assert tepui("service", "run", write(tmp_path, **WEB), "--wait").status == 0
    done = tepui("service", "canary", "web", write(tmp_path, mem=32), "--instances", "1", "--wait")
    assert done.status == 0
    assert done.lines[-2] == "/web: 1 of 1 of the new version serve, beside 1 of the version before"
    assert "canary       until it is promoted or cancelled" in tepui("explain", "web").lines
    done = tepui("service", "promote", "web", "--wait")
    assert done.status == 0 and {task.spec.resources.mem for task in cluster.running("/web")} == {32}
    assert tepui("service", "promote", "web").status == 1


def test_the_last_failure_is_told_with_its_last_words(cluster: World, tmp_path: Path) -> None:
    assert tepui("service", "run", write(tmp_path, **WEB | {"backoffSeconds": 600}), "--wait").status == 0
    victim = cluster.running("/web")[0].spec.id
    cluster.do(lambda: cluster.advance(victim, TaskState.FAILED, exit_code=3))
    lines = tepui("explain", "web").lines
    assert lines[0] == "/web  service  1 of 2 running"
    (waits,) = [line for line in lines if line.startswith("waiting")]
    assert "1 start failed: the next one in" in waits and "exit code 3" in waits
    assert f": {short(victim)} on n" in lines[-2] and lines[-2].endswith("failed: exit code 3")
    assert lines[-1] == "last words   no such file: web.conf"


def test_several_services_are_one_deployment(cluster: World, tmp_path: Path) -> None:
    for name in ("/a", "/b"):
        assert tepui("service", "run", write(tmp_path, **WEB | {"id": name}), "--wait").status == 0
    change = connect().change("PUT", "/v2/apps", [{"id": "/a", "cpus": 8}, {"id": "/b", "cpus": 8}])
    shown = tepui("service", "deployment", "show", change.deployment).lines
    assert "of         /a, /b" in shown and "serving    0 of 4 serve, 4 of the version before are there still" in shown
    assert "deployment" in tepui("explain", "b").out


def test_a_pod_is_waited_for_and_explained(cluster: World, tmp_path: Path) -> None:
    container = {"name": "one", "resources": {"cpus": 0.1, "mem": 32}, "exec": {"command": {"shell": "sleep 9"}}}
    pod = {"id": "/pod", "containers": [container], "networks": WEB["networks"], "scaling": {"instances": 1}}
    pod["scaling"] |= {"kind": "fixed"}
    done = tepui("pod", "run", write(tmp_path, **pod), "--wait")
    assert done.status == 0 and done.lines[-1] == "/pod: 1 of 1 serve"
    assert tepui("explain", "pod").lines == ["/pod  pod  1 of 1 stable  fine"]
    pod["scaling"] = {"kind": "fixed", "instances": 100}
    assert tepui("pod", "run", write(tmp_path, **pod), "--timeout", "0.5").status == 1
    assert any(line.startswith("waiting      needs 0.1 CPU") for line in tepui("explain", "/pod").lines)
    assert tepui("pod", "run", write(tmp_path, **pod)).status == 1
    assert tepui("pod", "remove", "pod", "--force", "-w").lines[-1] == "/pod: is gone"
