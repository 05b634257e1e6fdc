"""`tepui top`: the nodes and the busiest tasks, again and again on a terminal, and once for a program that reads it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.client import Client, connect
from cli.output import Json, console, print_json, size, table
from cli.problem import Unreachable
from cli.rates import REPORT_S, Rate, Rates

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_S = 1.0
ONCE_POLL_S = 0.25
ONCE_S = REPORT_S + 1.0  # so that every node has told once more

app = typer.Typer()

Once = Annotated[bool, typer.Option("--once", help="Measure for some seconds, print that, and end.")]
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Busy:
    """A task that runs, and what it takes."""

    id: str
    owner: str
    node: str
    rate: Rate
    mem_bytes: float
    pids: float
    cpu_limit: float | None
    mem_limit_bytes: float | None


@dataclass(frozen=True, slots=True)
class Load:
    """A node, what its tasks take, what is reserved for them, and what there is."""

    id: str
    state: str
    tasks: int
    cpus: float
    mem_bytes: float
    reserved: Object
    resources: Object


@app.command()
def top(once: Once = False, json: Json = False) -> None:
    """What nodes and tasks take, the busiest first."""
    watch("/api/v1/tasks", once, json, with_nodes=True)


def watch(path: str, once: bool, json: bool, with_nodes: bool = False) -> None:
    """`path` is where the tasks are, under `tasks`."""
    look = Look(connect(), path, with_nodes)
    if once or json or not sys.stdout.isatty():
        loads, tasks = look.once()
        if json:
            print_json(as_json(loads, tasks))
        else:
            console().print(drawn(loads, tasks))
        return
    with suppress(KeyboardInterrupt):
        _live(look)


class Look:
    """At the cluster, once and again."""

    def __init__(self, client: Client, path: str, with_nodes: bool) -> None:
        self._client = client
        self._path = path
        self._with_nodes = with_nodes
        self._rates = Rates()

    def __call__(self) -> tuple[list[Load], list[Busy]]:
        answer = self._client.get(self._path)["tasks"]
        nodes = self._client.get("/api/v1/nodes")["nodes"] if self._with_nodes else []
        now = time.time()
        running = [task for task in answer if task["state"] == "RUNNING"]
        self._rates.note(running, now)
        tasks = busiest(running, self._rates, now)
        return [load(node, tasks) for node in nodes], tasks

    def once(self) -> tuple[list[Load], list[Busy]]:
        end = time.monotonic() + ONCE_S
        seen = self()
        while not self._rates.complete and time.monotonic() < end:
            time.sleep(ONCE_POLL_S)
            seen = self()
        return seen


def busiest(running: Sequence[Object], rates: Rates, now: float) -> list[Busy]:
    tasks = [
        Busy(
            task["id"],
            task["owner"],
            task["node"],
            rates.of(task, now),
            task["usage"]["mem_bytes"],
            task["usage"]["pids"],
            task["limits"]["cpus"],
            task["limits"]["mem_bytes"],
        )
        for task in running
    ]
    return sorted(tasks, key=lambda task: (-task.rate.cpus, -task.mem_bytes, task.id))


def load(node: Object, tasks: Sequence[Busy]) -> Load:
    there = [task for task in tasks if task.node == node["id"]]
    cpus, mem_bytes = sum(task.rate.cpus for task in there), sum(task.mem_bytes for task in there)
    state = node["state"] if node["connected"] else f"{node['state']}, no session"
    return Load(node["id"], state, len(there), cpus, mem_bytes, node["used"], node["resources"])


def as_json(loads: Sequence[Load], tasks: Sequence[Busy]) -> Object:
    shown = [asdict(task) for task in tasks]
    flat = [{key: value for key, value in (task | task["rate"]).items() if key != "rate"} for task in shown]
    return ({"nodes": [asdict(each) for each in loads]} if loads else {}) | {"tasks": flat}


def drawn(loads: Sequence[Load], tasks: Sequence[Busy]) -> RenderableType:
    from rich.console import Group

    columns = ("NODE", "STATE", "#TASKS", "#CPUS", "#RESERVED", "#OF", "#MEM", "#RESERVED", "#OF")
    busy = table(("TASK", "NODE", "#CPUS", "#OF", "#MEM", "#OF", "#PIDS", "#IN/S", "#OUT/S"), map(_task_row, tasks))
    return Group(table(columns, map(_node_row, loads)), "", busy) if loads else busy


def _node_row(node: Load) -> tuple[object, ...]:
    return (
        node.id,
        node.state,
        node.tasks,
        f"{node.cpus:.2f}",
        f"{node.reserved['cpus']:g}",
        f"{node.resources['cpus']:g}",
        size(node.mem_bytes),
        size(node.reserved["mem"] * 2**20),
        size(node.resources["mem"] * 2**20),
    )


def _task_row(task: Busy) -> tuple[object, ...]:
    return (
        task.id,
        task.node,
        f"{task.rate.cpus:.2f}",
        f"{task.cpu_limit:g}" if task.cpu_limit is not None else None,
        size(task.mem_bytes),
        size(task.mem_limit_bytes),
        int(task.pids),
        size(int(task.rate.received)),
        size(int(task.rate.sent)),
    )


def _live(look: Look) -> None:
    from rich.live import Live

    with Live(console=console(), screen=True, auto_refresh=False) as live:
        while True:
            try:
                loads, tasks = look()
                rows = max(1, console().height - len(loads) - 4)
                live.update(drawn(loads, tasks[:rows]), refresh=True)
            except Unreachable as away:
                live.update(str(away), refresh=True)
            time.sleep(REFRESH_S)
