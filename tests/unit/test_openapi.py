"""The description of the API, and the API held against it: by requests that follow it, and by such that do not."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from frameworks.services.framework import Services
from frameworks.services.rest import PUBLIC, routers
from master.rest.app import create_app
from master.store.sqlite import SqliteStore
from tests.unit.cluster import Cluster, node

ROOT = Path(__file__).parents[2]
DESCRIPTION = ROOT / "docs/openapi.json"
TOKEN = {"Authorization": "Bearer t"}
EXAMPLES = 8  # for each operation, of each kind
START_DEADLINE_S = 10.0
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ENDLESS = {"GET /v2/events"}
KNOWN = ["a", "group/web", "pod"]  # ids that there are at the start
Result = TypeVar("Result")

APP = {"cmd": "true", "cpus": 0.1, "mem": 32, "networks": [{"mode": "container", "name": "overlay"}]}
POD = {
    "id": "/pod",
    "containers": [{"name": "c", "exec": {"command": {"shell": "true"}}, "resources": {"cpus": 0.1, "mem": 32}}],
    "networks": [{"mode": "container", "name": "overlay"}],
}


def test_the_description_is_that_of_the_code(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    subprocess.run([ROOT / "script/openapi", tmp_path / "new.json"], env=environment, check=True)
    assert (tmp_path / "new.json").read_text() == DESCRIPTION.read_text(), "run script/openapi"


def described() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DESCRIPTION.read_text())
    return found


def services() -> dict[str, Any]:
    """The part of it that needs no more of a master than services do."""
    found = described()
    found["paths"] = {path: methods for path, methods in found["paths"].items() if path.startswith("/v2/")}
    return found


def operations() -> list[str]:
    named = (f"{verb.upper()} {path}" for path, verbs in services()["paths"].items() for verb in verbs)
    return sorted(set(named) - ENDLESS)


def test_every_operation_says_what_its_errors_are_and_who_may_ask() -> None:
    found = described()
    assert found["security"] == [{"token": []}] and "token" in found["components"]["securitySchemes"]
    for path, verbs in found["paths"].items():
        for verb, operation in verbs.items():
            shape = {"schema": {"$ref": "#/components/schemas/Problem"}}
            for status in "4XX", "5XX":
                assert operation["responses"][status]["content"] == {"application/json": shape}, (verb, path)
            assert ("security" in operation) == (path == "/ping")


class Server:
    """The API over real HTTP, and a cluster in memory, in a thread with a loop of their own."""

    def __init__(self, directory: Path) -> None:
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stop = self._in_loop(self._start(directory))

    def close(self) -> None:
        self._in_loop(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _in_loop(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_DEADLINE_S)

    async def _start(self, directory: Path) -> list[asyncio.Task[None]]:
        self._store = await SqliteStore.open(directory / "store.db")
        framework = Services(self._store, Cluster(node("n1"), node("n2")).subscribe())
        app = create_app("t".__eq__, routers(self._store, framework), PUBLIC)
        configuration = uvicorn.Config(app, port=0, log_config=None, lifespan="off", server_header=False)
        self._server = uvicorn.Server(configuration)
        tasks = [asyncio.create_task(framework.run()), asyncio.create_task(self._server.serve())]
        async with asyncio.timeout(START_DEADLINE_S):
            while not self._server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.005)
        host, port = self._server.servers[0].sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return tasks

    async def _end(self) -> None:
        framework, serving = self._stop
        self._server.should_exit = True
        await serving
        framework.cancel()
        with suppress(asyncio.CancelledError):
            await framework
        await self._store.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("api"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def api(server: Server) -> Any:
    found = schemathesis.openapi.from_dict(services())
    found.config.update(base_url=server.url)
    return found


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
@pytest.mark.parametrize("name", operations())
def test_answers_are_as_described(api: Any, name: str, mode: GenerationMode) -> None:
    """No request is a fault of ours, and every answer, errors too, has the shape that is documented."""
    verb, path = name.split()
    operation = api[path][verb]
    restore(api)

    # The same requests every time.
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), known=st.sampled_from([None, *KNOWN]))
    def check(case: Any, known: str | None) -> None:
        for parameter in {"app_id", "pod_id", "group"} & set(case.path_parameters or ()):
            if known is not None:
                case.path_parameters[parameter] = known
        case.call_and_validate(headers=TOKEN, checks=CHECKS)

    check()


def restore(api: Any) -> None:
    """What operations before have changed or removed."""
    for app in KNOWN[:2]:
        api["/v2/apps/{app_id}"]["PUT"].Case(path_parameters={"app_id": app}, body=APP).call(headers=TOKEN)
    api["/v2/pods"]["POST"].Case(body=POD, media_type="application/json").call(headers=TOKEN)
