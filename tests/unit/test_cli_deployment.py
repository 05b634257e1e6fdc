"""Deployments at the command line: what is said of one, waiting for it, and exit statuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from cli import waiting
from cli.deployment import conclusion, describe, step
from cli.progress import Lines, Step
from master.rest.errors import ApiError
from tests.unit.served import api_of, served, tepui

ID = "3f2a9c01-6b1e-4c0e-9d5a-2f1f9a7a8b3c"
FOUND: dict[str, Any] = {
    "id": ID,
    "app": "/web",
    "apps": ["/web"],
    "state": "running",
    "since": "2026-01-31T12:00:00.000Z",
    "deadline": None,
    "canary": None,
    "wanted": 4,
    "serving": 2,
    "old": 0,
    "waiting": ["needs 4 CPU: 3 of 3 nodes have too little (most free: 1.5 CPU)", "waits for 1 task to end"],
    "reason": "",
}
SINCE = 1769860800.0


def of(**fields: Any) -> dict[str, Any]:
    return FOUND | fields


class Master:
    """Deployments go through `states`, one with each look; the last one stays."""

    def __init__(self) -> None:
        self.states = [of()]
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.looks: list[list[dict[str, Any]]] = [[]]
        self.locked = False
        router = self.router = APIRouter()
        router.put("/v2/apps/{app:path}", response_model=None)(self.change)
        router.delete("/v2/apps/{app:path}")(self.remove)
        router.post("/v2/apps", status_code=201)(self.create)
        router.post("/api/v1/services/{app:path}/promote")(self.promote)
        router.get("/api/v1/tasks")(self.all_tasks)
        router.get("/api/v1/pods/{app:path}")(self.all_tasks)
        router.delete("/v2/deployments/{id}")(self.cancel)
        router.get("/api/v1/deployments/{id}")(self.deployment)
        router.get("/v2/deployments")(self.deployments)

    async def deployment(self, id: str) -> dict[str, Any]:
        found = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if not found:
            raise ApiError(404, f"Deployment '{id}' does not exist")
        return found

    async def deployments(self) -> list[dict[str, Any]]:
        return [{"id": ID, "affectedApps": ["/web"], "affectedPods": [], "version": FOUND["since"]}]

    async def all_tasks(self) -> dict[str, Any]:
        return {"tasks": self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]}

    async def create(self, response: Response) -> dict[str, Any]:
        return self._begun(response, "create", {"id": "/web", "deployments": [{"id": ID}]})

    async def change(self, app: str, response: Response, force: str = "", canary: str = "") -> Any:
        if self.locked and not force:
            return JSONResponse({"message": "App is locked.", "deployments": [{"id": ID}]}, status_code=409)
        return self._begun(response, app, {"version": "v", "deploymentId": ID}, force=force, canary=canary)

    async def remove(self, app: str, response: Response) -> dict[str, Any]:
        return self._begun(response, app, {"version": "v", "deploymentId": ID})

    async def promote(self, app: str, response: Response) -> dict[str, Any]:
        return self._begun(response, f"promote {app}", {"version": "v", "deploymentId": ID})

    async def cancel(self, id: str, response: Response) -> dict[str, Any]:
        return self._begun(response, f"cancel {id}", {"version": "v", "deploymentId": ID})

    def _begun(self, response: Response, what: str, answer: dict[str, Any], **query: str) -> dict[str, Any]:
        self.asked.append((what, {key: value for key, value in query.items() if value}))
        response.headers["Marathon-Deployment-Id"] = ID
        return answer


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Master]:
    monkeypatch.setattr(waiting, "POLL_S", 0.0)
    made = Master()
    with served(tmp_path, api_of(made.router), monkeypatch):
        yield made


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "web.json").write_text('{"id": "/web"}')
    return str(tmp_path / "web.json")


def test_one_sentence_says_how_far_and_why_not_further() -> None:
    assert step(of(), []).text == f"/web: 2 of 4 serve; {FOUND['waiting'][0]} (and 1 more)"
    assert step(of(old=1, waiting=[]), []).text == "/web: 2 of 4 serve, 1 of the version before is there still"
    pulls = "web.3f2a9c01 pulls nginx:1.25: 2 of 5 layers, 34 of 80 MiB"
    assert step(of(waiting=["waits for its image"]), [pulls]) == Step(2, 4, f"/web: 2 of 4 serve; {pulls} (and 1 more)")
    assert conclusion(of(serving=0, state="succeeded")) == "/web: 4 of 4 serve"
    assert conclusion(of(serving=1, canary=1, old=3)).startswith("/web: 1 of 1 of the new version serve, beside 3 of")


def test_what_is_said_of_one_deployment() -> None:
    told = list(describe(of(canary=1, deadline="2026-01-31T12:10:00.000+0000"), SINCE + 60))
    assert told[2] == ("state", "running (since 1 min)")
    assert [value for name, value in told if name == "waiting"] == FOUND["waiting"]
    assert ("deadline", "in 9 min: then it is rolled back") in told
    failed = dict(describe(of(state="failed", reason="too late", deadline=SINCE), SINCE + 120))
    assert failed["state"] == "failed: too late (since 2 min)" and "waiting" not in failed and "deadline" not in failed


def test_lines_tell_news_and_amounts_only_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    tell = Lines(lambda: now[0])
    for at, counted in (
        (10.0, Step(1, 4, "a")),
        (10.1, Step(1, 4, "b")),
        (10.2, Step(2, 4, "c")),
        (13.0, Step(2, 4, "c")),
    ):
        now[0] = at
        tell(counted)
    tell(Step(2, 4, "d"))
    assert capsys.readouterr().err.split() == ["a", "c", "d"]


def test_run_waits_until_all_serve(master: Master, file: str) -> None:
    master.states = [of(), of(serving=3, waiting=[]), of(serving=0, state="succeeded", waiting=[])]
    task = {"id": "web.1", "owner": "/web", "state": "PREPARING", "message": "pulls x: 1 of 2 layers"}
    master.looks = [[task, {**task, "state": "RUNNING"}]]
    done = tepui("service", "run", file, "--wait")
    assert done.status == 0 and done.lines == [f"/web: deployment {ID}", "/web: 4 of 4 serve"]
    assert done.err.splitlines() == [
        "/web: 2 of 4 serve; web.1 pulls x: 1 of 2 layers (and 2 more)",
        "/web: 3 of 4 serve; web.1 pulls x: 1 of 2 layers",
    ]


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_one_that_comes_to_nothing_is_exit_status_1(master: Master, file: str, state: str) -> None:
    master.states = [of(), of(state=state, reason="3 starts in a row failed")]
    done = tepui("service", "update", "/web", file, "-w")
    assert done.status == 1 and done.err.endswith(f"tepui: deployment {ID} {state}: 3 starts in a row failed\n")


def test_patience_ends_and_the_deployment_goes_on(master: Master) -> None:
    done = tepui("service", "scale", "web", "4", "--timeout", "0")
    assert done.status == 1 and f"not done after 0 s: /web: 2 of 4 serve; {FOUND['waiting'][0]}" in done.err
    assert done.err.endswith(f"It goes on: tepui service deployment show {ID}\n")


def test_without_patience_nothing_is_waited_for(master: Master, file: str) -> None:
    done = tepui("service", "add", file)
    assert (done.status, done.lines, done.err) == (0, [f"/web: deployment {ID}"], "")
    assert json.loads(tepui("service", "add", file, "--json").out)["deployments"] == [{"id": ID}]


def test_json_is_the_last_state(master: Master) -> None:
    master.states = [of(), of(state="succeeded", serving=4)]
    done = tepui("service", "scale", "web", "4", "--wait", "--json")
    assert done.status == 0 and json.loads(done.out)["serving"] == 4
    master.states = [of(state="failed", reason="no")]
    done = tepui("service", "scale", "web", "4", "--wait", "--json")
    assert done.status == 1 and json.loads(done.out)["state"] == "failed"


def test_a_service_that_is_locked_says_what_to_do(master: Master, file: str) -> None:
    master.locked = True
    done = tepui("service", "update", "web", file)
    assert done.status == 1 and f"tepui service deployment show {ID}" in done.err and "--force" in done.err
    assert tepui("service", "update", "web", file, "--force").status == 0
    assert master.asked == [("web", {"force": "true"})]


def test_canary_promotion_and_cancelling(master: Master, file: str) -> None:
    assert tepui("service", "canary", "/group/web", file, "--instances", "2").status == 0
    assert tepui("service", "promote", "/group/web").status == 0
    assert tepui("service", "deployment", "cancel", ID).status == 0
    assert master.asked == [("group/web", {"canary": "2"}), ("promote group/web", {}), (f"cancel {ID}", {})]


def test_a_service_is_gone_when_its_last_task_is(master: Master) -> None:
    task = {"owner": "/web", "state": "RUNNING"}
    ended = {**task, "state": "KILLED"}
    master.looks = [[{**task, "id": "a"}, {**task, "id": "b"}], [{**task, "id": "a"}, {**ended, "id": "b"}], []]
    done = tepui("service", "remove", "web", "--wait")
    assert (done.status, done.lines[-1]) == (0, "/web: is gone")
    assert done.err.splitlines() == ["/web: 2 tasks left", "/web: 1 task left"]


def test_one_that_removes_what_was_new_is_done_when_it_is_not_known_any_more(master: Master) -> None:
    master.states = [{}]
    assert tepui("service", "scale", "web", "2", "--wait").status == 1
    assert tepui("service", "deployment", "cancel", ID, "--wait").lines == [f"deployment {ID}", "done"]
    assert tepui("service", "deployment", "show", ID).status == 1


def test_listed_and_shown(master: Master) -> None:
    listed = tepui("service", "deployment", "list").lines
    assert listed[0].split() == ["DEPLOYMENT", "OF", "SINCE"] and listed[1].split()[:2] == [ID, "/web"]
    assert tepui("service", "deployments").lines[0] == listed[0]
    assert f"waiting    {FOUND['waiting'][0]}" in tepui("service", "deployment", "show", ID).lines
    assert json.loads(tepui("service", "deployment", "show", ID, "--json").out) == of()


def test_what_is_no_file_or_no_json_is_said(master: Master, tmp_path: Path) -> None:
    assert tepui("service", "run", str(tmp_path / "none.json")).status == 1
    (tmp_path / "bad.json").write_text("{")
    done = tepui("service", "run", str(tmp_path / "bad.json"))
    assert done.status == 1 and "bad.json: not JSON" in done.err
    assert tepui("service", "scale", "web", "many").status == 2
