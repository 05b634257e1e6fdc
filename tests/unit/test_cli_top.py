"""What tasks take a second, as `tepui top` computes and shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter

from cli import top
from cli.problem import Problem
from cli.rates import IDLE_S, REPORT_S, Rate, Rates
from cli.service_tasks import choose
from tests.unit.served import api_of, served, tepui

NOW = 1_000_000.0


def task(name: str, cpu_s: float, node: str = "n1", since: float = 0.0, **fields: Any) -> dict[str, Any]:
    usage = {"cpu_s": cpu_s, "mem_bytes": 2**20, "pids": 3, "net_received_bytes": 1024 * cpu_s, "net_sent_bytes": 0}
    limits = {"cpus": 0.5, "mem_bytes": 64 * 2**20}
    made = {"id": name, "owner": "/web", "node": node, "state": "RUNNING", "killing": False, "since": since}
    return made | {"usage": usage, "limits": limits} | fields


def test_before_there_is_news_it_is_the_average() -> None:
    rates = Rates()
    rates.note([task("a", 50.0, since=NOW - 100)], NOW)
    assert rates.of(task("a", 50.0, since=NOW - 100), NOW) == Rate(0.5, 512.0, 0.0) and not rates.complete


def test_the_report_before_the_first_news_was_one_interval_earlier() -> None:
    rates = Rates()
    for at, taken in ((NOW, 10.0), (NOW + 1, 10.0), (NOW + 2, 12.5)):
        rates.note([task("a", taken)], at)
    assert rates.of(task("a", 12.5), NOW + 2).cpus == 2.5 / REPORT_S and rates.complete


def test_later_reports_are_as_far_apart_as_they_came() -> None:
    rates = Rates()
    for at, taken in ((NOW, 10.0), (NOW + 2, 12.0), (NOW + 7.5, 12.0), (NOW + 8, 15.0)):
        rates.note([task("a", taken)], at)
    assert rates.of(task("a", 15.0), NOW + 8).cpus == 0.5


def test_what_has_just_begun_took_it_since_then() -> None:
    rates = Rates()
    rates.note([task("a", 0.0, since=NOW - 1)], NOW)
    rates.note([task("a", 2.0, since=NOW - 1)], NOW + 1)
    assert rates.of(task("a", 2.0, since=NOW - 1), NOW + 1).cpus == 1.0


def test_without_news_for_long_it_takes_nothing() -> None:
    rates = Rates()
    for at, taken in ((NOW, 10.0), (NOW + 5, 15.0), (NOW + 5 + IDLE_S + 1, 15.0)):
        rates.note([task("a", taken)], at)
    assert rates.of(task("a", 15.0), NOW + 6).cpus == 1.0
    assert rates.of(task("a", 15.0), NOW + 6 + IDLE_S).cpus == 0.0


def test_the_busiest_come_first() -> None:
    rates, tasks = Rates(), [task("a", 1.0), task("b", 9.0), task("c", 1.0)]
    tasks[2]["usage"]["mem_bytes"] = 2**30
    rates.note(tasks, NOW)
    assert [each.id for each in top.busiest(tasks, rates, NOW)] == ["b", "c", "a"]


def test_a_command_runs_in_the_oldest_task_that_runs() -> None:
    tasks = [task("web.1", 0, since=9), task("web.2", 0, since=5), task("web.3", 0, since=1, state="STARTING")]
    tasks.append(task("web.4", 0, since=0, killing=True))
    assert choose("/web", tasks, "") == "web.2" and choose("/web", tasks, "web.1") == "web.1"
    with pytest.raises(Problem, match=r"/web: has no running task web.3; running: web.1, web.2"):
        choose("/web", tasks, "web.3")
    with pytest.raises(Problem, match="/web: has no running task; running: none"):
        choose("/web", [], "")


class Master:
    def __init__(self) -> None:
        self.looks = 0
        router = self.router = APIRouter()
        router.get("/api/v1/tasks")(self.tasks)
        router.get("/api/v1/services/{app:path}")(self.tasks)
        router.get("/api/v1/nodes")(self.nodes)

    async def tasks(self) -> dict[str, Any]:
        self.looks += 1
        return {"tasks": [task("web.1", self.looks * 0.5), task("web.2", self.looks * 2.0, "n2")]}

    async def nodes(self) -> dict[str, Any]:
        node = {"state": "online", "connected": True, "used": {"cpus": 1, "mem": 128}}
        node |= {"resources": {"cpus": 2, "mem": 2048}}
        return {"nodes": [{"id": "n1", **node}, {"id": "n2", **node, "connected": False}]}


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Master]:
    monkeypatch.setattr(top, "ONCE_POLL_S", 0.0)
    made = Master()
    with served(tmp_path, api_of(made.router), monkeypatch):
        yield made


def test_once(master: Master) -> None:
    lines = tepui("top", "--once").lines
    nodes, tasks = lines[1:3], lines[5:7]
    assert [line.split()[0] for line in (*nodes, *tasks)] == ["n1", "n2", "web.2", "web.1"]
    assert nodes[0].split()[1:4] == ["online", "1", "0.10"] and "no session" in nodes[1]
    assert tasks[0].split()[1:4] == ["n2", "0.40", "0.5"]
    assert master.looks == 2  # until there is news of every task


def test_as_json(master: Master) -> None:
    answer = json.loads(tepui("top", "--json").out)
    assert answer["tasks"][0] | {"cpus": 0.4, "received": 409.6, "mem_bytes": 2**20} == answer["tasks"][0]
    assert [node["cpus"] for node in answer["nodes"]] == [0.1, 0.4]


def test_of_one_service(master: Master) -> None:
    lines = tepui("service", "top", "/web").lines
    assert lines[0].split()[0] == "TASK" and len(lines) == 3
    assert "nodes" not in json.loads(tepui("service", "top", "web", "--json").out)
