"""The stream of events, from the ring to the command line, and metrics as Prometheus reads them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent import metrics
from agent.usage import Sampler
from cli.event_streams import parse
from cli.events import describe
from frameworks.services import catalog
from frameworks.services import metrics as service_metrics
from frameworks.services.definition import Definition
from frameworks.services.framework import Services
from master.event_log import Event
from master.events import Events
from master.rest.app import create_app
from master.rest.observe import observe_router
from master.store import metrics as store_metrics
from model.metrics import Family, Kind, container_families, expose, gauge
from model.network import Network, NetworkKind
from model.task import TaskState, Usage
from tests.unit.cluster import node, until
from tests.unit.control import Master, master, task
from tests.unit.node import Life, World

pytestmark = pytest.mark.anyio
OVERLAY = [{"mode": "container", "name": "overlay"}]


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Master]:
    async with master(tmp_path) as made:
        await made.nodes.connected(node("n1"))
        yield made


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind((metrics.ADDRESS, 0))
        return int(probe.getsockname()[1])


async def kept(events: Events, last_id: str = "") -> list[Event]:
    return [event async for event in events.read(last_id, follow=False)]


def words(event: Event) -> list[object]:
    data = json.loads(event.data)
    return [event.kind, data.get("task", data.get("node")), data.get("state", data.get("count"))]


async def test_each_change_is_told_once_and_in_order(parts: Master) -> None:
    events = Events(parts.tasks, parts.nodes, parts.networks)
    await parts.run("a.1", "n1")
    await parts.saw("a.1", TaskState.RUNNING)
    await parts.saw("a.1", TaskState.RUNNING)
    parts.nodes.disconnected("n1")
    await parts.saw("a.1", TaskState.FAILED, reason="exited with 1")
    told = [words(event) for event in await kept(events)]
    assert told == [
        ["task", "a.1", "ASSIGNED"],
        ["task", "a.1", "RUNNING"],
        ["node", "n1", "online"],
        ["task", "a.1", "FAILED"],
    ]


async def test_a_reader_goes_on_where_it_was(parts: Master) -> None:
    events = Events(parts.tasks, parts.nodes, parts.networks)
    for name in ("a", "b", "c"):
        await parts.tasks.add("n1", [task(name)])
    first, *rest = await kept(events)
    assert await kept(events, first.id) == rest and await kept(events, rest[-1].id) == []
    for unknown in ("", "nonsense", "other-1", first.id.replace("-0", "-99"), f"{first.id}0x"):
        assert await kept(events, unknown) == [first, *rest]


async def test_a_reader_that_was_away_too_long_is_told_how_much_it_missed(parts: Master) -> None:
    events = Events(parts.tasks, parts.nodes, parts.networks, kept=3)
    await parts.tasks.add("n1", [task("0")])
    (first,) = await kept(events)
    for number in range(1, 7):
        await parts.tasks.add("n1", [task(str(number))])
    missed, *rest = await kept(events, first.id)
    assert words(missed) == ["missed", None, 3]
    assert [words(event)[1] for event in rest] == ["4", "5", "6"]
    assert await kept(events, missed.id) == rest


async def test_a_follower_hears_of_what_comes(parts: Master) -> None:
    events = Events(parts.tasks, parts.nodes, parts.networks)
    heard: list[object] = []

    async def follow() -> None:
        async for event in events.read():
            heard.append(words(event)[1])

    following = asyncio.create_task(follow())
    for count, name in enumerate("abc", 1):
        await parts.tasks.add("n1", [task(name)])
        await until(lambda count=count: len(heard) == count)  # type: ignore[misc]
    following.cancel()
    assert heard == ["a", "b", "c"]


def client(parts: Master, events: Events) -> httpx2.AsyncClient:
    app = create_app("good".__eq__, [observe_router(parts.tasks, parts.nodes, events)])
    headers = {"Authorization": "Bearer good"}
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://master", headers=headers)


async def test_events_as_the_api_sends_and_the_command_prints_them(parts: Master) -> None:
    events = Events(parts.tasks, parts.nodes, parts.networks)
    await parts.tasks.add("n1", [task("a.1")])
    await parts.saw("a.1", TaskState.FAILED, reason="exited with 1")
    async with client(parts, events) as http:
        answer = await http.get("/api/v1/events", params={"follow": False})
        first, second = await kept(events)
        resumed = await http.get("/api/v1/events", params={"follow": False}, headers={"Last-Event-ID": first.id})
    assert answer.headers["content-type"].startswith("text/event-stream")
    opened = ": events follow\n\n"
    assert answer.text == opened + "".join(f"id: {e.id}\nevent: {e.kind}\ndata: {e.data}\n\n" for e in (first, second))
    assert resumed.text == f"{opened}id: {second.id}\nevent: task\ndata: {second.data}\n\n"
    whole = b": nothing happened\n\n" + answer.content
    printed = [describe(*event[1:])[21:] for event in parse(whole[i : i + 7] for i in range(0, len(whole), 7))]
    assert printed == ["task a.1 on n1: ASSIGNED", "task a.1 on n1: FAILED; exited with 1"]
    assert describe("missed", {"count": 3}) == "... 3 events are no longer kept"
    away = {"at": 0.0, "node": "n1", "state": "online", "connected": False, "errors": ["no such link"]}
    assert describe("node", away)[21:] == "node n1: online, not connected; no such link"


async def test_metrics_of_the_master(parts: Master) -> None:
    await parts.run("a.1", "n1")
    await parts.saw("a.1", TaskState.RUNNING)
    parts.tasks.measure("n1", {"a.1": Usage(cpu_s=1.5, net_sent_bytes=7)})
    async with client(parts, Events(parts.tasks, parts.nodes, parts.networks)) as http:
        refused = await http.get("/metrics", headers={"Authorization": "Bearer bad"})
        lines = (await http.get("/metrics")).text.splitlines()
        shown = (await http.get("/metrics", headers={"Accept": "application/json"})).json()
    assert refused.status_code == 401
    assert shown["gauges"]['tepui_tasks{state="RUNNING"}'] == {"value": 1.0} and shown["timers"] == {}
    (sent,) = (count for name, count in shown["counters"].items() if "network_transmit_bytes" in name)
    assert sent == {"count": 7}
    assert 'tepui_tasks{state="RUNNING"} 1.0' in lines and 'tepui_nodes{state="online"} 1.0' in lines
    (cpu,) = [line for line in lines if line.startswith("container_cpu_usage_seconds_total{")]
    assert 'task="a.1"' in cpu and 'node="n1"' in cpu and cpu.endswith("} 1.5")


async def test_metrics_of_services_and_of_the_store(parts: Master) -> None:
    services = Services(parts.store, parts.allocator.subscribe("services"))
    await catalog.add(
        parts.store, Definition.model_validate({"id": "/a", "cmd": "true", "instances": 2, "networks": OVERLAY})
    )
    await services._load(await parts.store.revision())
    text = expose((*service_metrics.families(services), *store_metrics.families(parts.store)))
    read = {family.name: family.samples[0].value for family in text_string_to_metric_families(text)}
    assert (read["tepui_services"], read["tepui_deployments"], read["tepui_service_instances"]) == (1, 1, 2)
    assert read["tepui_store_writes"] >= read["tepui_store_commits"] > 1 and read["tepui_store_commit_seconds"] > 0
    assert read["tepui_store_size_bytes"] > 4096 and read["tepui_store_waiting_writes"] == 0


async def test_metrics_of_a_node_are_on_loopback(tmp_path: Path, unused_port: int) -> None:
    life = Life(World(tmp_path))
    sampler = Sampler(life.reconciler.living, life.containers.usage)
    sampler.usages = {"a.1": Usage(pids=3)}
    serving = asyncio.create_task(
        metrics.serve(unused_port, lambda: metrics.render(life.reconciler, sampler, tmp_path))
    )
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{unused_port}", trust_env=False) as http:
            text = await answered(http)
            assert (await http.get("/other")).status_code == 404
    finally:
        serving.cancel()
    assert 'container_threads{task="a.1",owner=""} 3\n' in text
    assert "# TYPE node_load1 gauge\n" in text and "node_memory_MemAvailable_bytes " in text


async def answered(http: httpx2.AsyncClient) -> str:
    async with asyncio.timeout(10):
        while True:
            try:
                return (await http.get("/metrics")).text
            except httpx2.ConnectError:
                await asyncio.sleep(0.01)


async def test_a_port_that_is_taken_costs_the_metrics_and_nothing_else(unused_port: int) -> None:
    async with await asyncio.start_server(lambda *_: None, metrics.ADDRESS, unused_port):
        await asyncio.wait_for(metrics.serve(unused_port, str), 10)


def test_a_parser_of_prometheus_reads_what_was_meant() -> None:
    labels = (("task", 'web "1"\\'), ("owner", "/a\nb"))
    usage = Usage(cpu_s=1.5, mem_bytes=7, mem_limit_bytes=None, net_sent_packets=3)
    families = [*container_families([(labels, usage)]), gauge("node_load1", "Load.", 0.25)]
    read = {family.name: family for family in text_string_to_metric_families(expose(families))}
    for family in families:
        found = read[family.name.removesuffix("_total")]
        assert (found.type, found.documentation) == (family.kind.value, family.help)
        samples = [(tuple(sample.labels.items()), sample.value) for sample in found.samples]
        assert samples == [(each, float(value)) for each, value in family.samples]
    assert len(read) == len(families)


def test_metrics_are_written_as_prometheus_reads_them() -> None:
    family = Family("a_total", Kind.COUNTER, "All of a.", (((("path", 'C:\\ "x"\n'),), 2.0), ((), 1)))
    assert expose([family]) == (
        '# HELP a_total All of a.\n# TYPE a_total counter\na_total{path="C:\\\\ \\"x\\"\\n"} 2.0\na_total 1\n'
    )
    usages = [((("task", "a"),), Usage(mem_limit_bytes=None, mem_bytes=5))]
    text = expose(container_families(usages))
    assert 'container_memory_usage_bytes{task="a"} 5\n' in text and "container_spec_memory_limit_bytes{" not in text


async def test_networks_that_come_and_go(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        events = Events(parts.tasks, parts.nodes, parts.networks)
        prod = Network("prod", NetworkKind.BRIDGE, (ip_network("10.20.0.0/16"),))
        await parts.networks.create(prod, [], (ip_network("100.127.0.0/16"),))
        await parts.networks.remove("prod")
        told = [json.loads(event.data) for event in [event async for event in events.read("", follow=False)]]
        assert [(each["network"], each["state"]) for each in told] == [("prod", "created"), ("prod", "removed")]
        assert describe("network", told[0]).endswith("  network prod: created")
