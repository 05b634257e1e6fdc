"""`tepui events`: three streams as one, in order, filtered, and read on after a connection has broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from cli import event_streams
from cli.client import connect
from cli.event_streams import FIRST, NOTICE, Event, follow, kept
from cli.events import describe, fits, owners
from cli.problem import Problem
from master.event_log import EventLog
from master.rest.errors import ApiError
from master.rest.event_stream import LastEventId, stream
from tests.unit.served import api_of, served, tepui

STAMP = "2026-01-31T12:00:{:02d}.000+0000"
START = 1769860800.0
PLAN = {"id": "d1", "steps": [{"actions": [{"action": "ScaleApplication", "app": "/web"}]}]}
RUN = {"id": "r1", "jobId": "load", "status": "FAILED"}


def task(at: float, owner: str = "/web", state: str = "RUNNING") -> dict[str, Any]:
    return {"at": START + at, "task": "web.1", "owner": owner, "node": "n1", "state": state, "killing": False} | {
        "healthy": None,
        "reason": "",
        "exit_code": None,
    }


class Master:
    """Streams end when all is told that there is, as broken ones do."""

    def __init__(self) -> None:
        self.logs = {source: EventLog(kept=4) for source in ("cluster", "services", "jobs")}
        self.missing: set[str] = set()
        self.refused = 0
        router = self.router = APIRouter()

        @router.get("/api/v1/events")
        async def cluster(last_event_id: LastEventId = "") -> StreamingResponse:
            return self._read("cluster", last_event_id)

        @router.get("/v2/events")
        async def services(last_event_id: LastEventId = "") -> StreamingResponse:
            return self._read("services", last_event_id)

        @router.get("/api/v1/jobs/events")
        async def jobs(last_event_id: LastEventId = "") -> StreamingResponse:
            return self._read("jobs", last_event_id)

    def _read(self, source: str, last_id: str) -> StreamingResponse:
        if source in self.missing:
            raise ApiError(self.refused or 404, "no")
        return stream(self.logs[source].read(last_id, follow=False))

    def tell(self, source: str, kind: str, **data: Any) -> None:
        self.logs[source].publish(kind, data)

    def tell_all(self) -> None:
        self.tell("cluster", "task", **task(1))
        self.tell("services", "deployment_info", timestamp=STAMP.format(0), plan=PLAN)
        self.tell("services", "status_update_event", timestamp=STAMP.format(1), appId="/web", taskStatus="TASK_RUNNING")
        self.tell("services", "deployment_success", timestamp=STAMP.format(3), id="d1", plan=PLAN)
        self.tell("jobs", "job_run_failed", timestamp=STAMP.format(2), jobRun=RUN, reason="exit code 3")


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Master]:
    monkeypatch.setattr(event_streams, "RETRY_S", (0.01,))
    made = Master()
    with served(tmp_path, api_of(made.router), monkeypatch):
        yield made


def test_all_streams_in_order(master: Master) -> None:
    master.tell_all()
    assert [line[21:] for line in tepui("events").lines] == [
        "deployment d1 of /web: begins",
        "task web.1 on n1: RUNNING",
        "job load: run r1: failed; exit code 3",
        "deployment d1 of /web: succeeded",
    ]
    found = [json.loads(line) for line in tepui("events", "--json").lines]
    assert [each["source"] for each in found] == ["services", "cluster", "jobs", "services"]
    assert [each["at"] - START for each in found] == [0, 1, 2, 3] and found[3]["id"] == "d1"


def test_chosen_by_type_and_by_service(master: Master) -> None:
    master.tell_all()
    kinds = [json.loads(line)["kind"] for line in tepui("events", "--json", "--app", "web").lines]
    assert kinds == ["deployment_info", "task", "deployment_success"]
    assert len(tepui("events", "--type", "status_update_event", "--type", "job_run_failed", "--json").lines) == 2
    assert tepui("events", "--app", "other").lines == []


def test_what_is_no_longer_kept_comes_first_and_is_never_left_out(master: Master) -> None:
    for at in range(6):
        master.tell("cluster", "task", **task(at))
    reader = next(follow(connect, {"cluster": f"{master.logs['cluster'].newest.partition('-')[0]}-0"}))
    assert [event.kind for event in reader if event.kind != NOTICE] == ["missed", *["task"] * 4]
    assert describe("missed", {"count": 1}).startswith("... 1 events are no longer kept")
    assert fits(Event("cluster", "", "missed", 0, {"count": 1}), ["node"], "/web")


def test_a_master_without_a_stream_has_the_others(master: Master) -> None:
    master.tell_all()
    master.missing = {"jobs"}
    assert len(tepui("events").lines) == 3 and set(kept(connect())) == {"cluster", "services"}
    master.refused = 401
    assert tepui("events").status == 1


def test_a_broken_stream_is_read_on(master: Master) -> None:
    master.tell("cluster", "task", **task(1, state="STARTING"))
    read = (event for together in follow(connect, {"cluster": FIRST}) for event in together)
    assert next(read).data["state"] == "STARTING"
    assert "broke: the stream has ended" in next(read).data["text"]
    assert "is read again" in next(read).data["text"]
    master.tell("cluster", "task", **task(2))
    assert next(event for event in read if event.kind != NOTICE).data["state"] == "RUNNING"


def test_of_another_life_of_the_master_something_is_not_known(master: Master) -> None:
    master.tell("cluster", "task", **task(1, state="STARTING"))
    read = (event for together in follow(connect, {"cluster": FIRST}) for event in together)
    assert next(read).kind == "task"
    master.logs["cluster"] = EventLog()
    master.tell("cluster", "task", **task(2))
    seen: list[Event] = []
    while not seen or seen[-1].kind != "task":
        seen.append(next(read))
    assert any("was started again" in event.data.get("text", "") for event in seen)


def test_whoever_is_refused_is_told(master: Master) -> None:
    master.missing, master.refused = {"services"}, 401
    with pytest.raises(Problem, match="/v2/events: no"):
        for _ in follow(connect, {"services": FIRST}):
            pass


def test_what_an_event_is_about() -> None:
    assert list(owners({"job": {"id": "load"}})) == ["load"]
    assert list(owners({"appDefinition": {"id": "/web"}})) == ["/web"]
    assert list(owners({"job": "extract", "nodes": [{"job": "extract"}, {"job": "load"}]})) == [
        "extract",
        "extract",
        "load",
    ]
    assert list(owners({"plan": {"steps": [{"actions": [{"pod": "/pod"}]}]}})) == ["/pod"]


@pytest.mark.parametrize(
    ("kind", "data", "text"),
    [
        (
            "api_post_event",
            {"appDefinition": {"id": "/web"}, "clientIp": "192.0.2.1"},
            "service /web: asked for by 192.0.2.1",
        ),
        ("app_terminated_event", {"appId": "/web"}, "service /web: removed"),
        ("job_created", {"job": {"id": "load"}}, "job load: created"),
        ("schedule_skipped", {"jobId": "a", "id": "s", "reason": "late"}, "job a: schedule s is passed over: late"),
        ("health_status_changed_event", {"taskId": "web.1", "alive": False}, "task web.1: unhealthy"),
        ("unheard_of", {"appId": "/web"}, "unheard_of /web"),
    ],
)
def test_sentences(kind: str, data: dict[str, Any], text: str) -> None:
    assert describe(kind, {"at": START, **data})[21:] == text
