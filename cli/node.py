"""`tepui node`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cli import completion
from cli.client import Client, connect
from cli.output import Json, print_json, print_table
from cli.problem import Problem
from model.task import TaskState

POLL_S = 0.5

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Its name.", autocompletion=completion.nodes)]


@app.command("list")
def list_nodes(json: Json = False) -> None:
    """Every node, what it has and what of it is used."""
    nodes = connect().get("/api/v1/nodes")["nodes"]
    if json:
        print_json(nodes)
        return
    print_table(("NODE", "ADDRESS", "STATE", "#TASKS", "#CPUS", "#MEM", "PROBLEMS"), map(_row, nodes))


@app.command("show")
def show_node(name: Name, json: Json = False) -> None:
    """One node: what it has, what it permits, and what is wrong with it."""
    nodes = connect().get("/api/v1/nodes")["nodes"]
    node = next((node for node in nodes if node["id"] == name), None)
    if node is None:
        known = ", ".join(node["id"] for node in nodes) or "none"
        raise Problem(f"there is no node {name}; there are: {known}")
    if json:
        print_json(node)
        return
    for field, value in describe(node):
        typer.echo(f"{field:<10} {value}")


@app.command("remove")
def remove_node(name: Name, json: Json = False) -> None:
    """Give up a node that will not come back: its tasks are over, its volumes lost, its addresses free for others."""
    removed = connect().delete(f"/api/v1/nodes/{name}")
    if json:
        print_json(removed)
        return
    typer.echo(
        f"{name}: removed, with {removed['tasks']} tasks, {removed['volumes']} volumes, {removed['blocks']} blocks"
    )


@app.command("drain")
def drain_node(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Until no task is left that can be moved.")] = False,
    json: Json = False,
) -> None:
    """Have a node's tasks moved elsewhere, each when another one serves in its place, and give it no new ones."""
    client = connect()
    drained = client.put(f"/api/v1/nodes/{name}/drain", {})
    said = -1
    while wait and (left := _movable(client, name)):
        if left != said and not json:
            typer.echo(f"{name}: {left} task{'s' if left > 1 else ''} left")
        said = left
        time.sleep(POLL_S)
    if json:
        print_json(drained)
        return
    typer.echo(f"{name}: has no task left that can be moved" if wait else f"{name}: drains")


@app.command("undrain")
def undrain_node(name: Name, json: Json = False) -> None:
    """Let a node have tasks again."""
    undrained = connect().delete(f"/api/v1/nodes/{name}/drain")
    if json:
        print_json(undrained)
        return
    typer.echo(f"{name}: takes tasks")


def _movable(client: Client, name: str) -> int:
    """How many of its tasks are not over, and have no volume there."""
    volumes = {volume["task"] for volume in client.get("/api/v1/volumes")["volumes"]}
    tasks = client.get("/api/v1/tasks")["tasks"]
    there = [task["id"] for task in tasks if task["node"] == name and not TaskState[task["state"]].terminal]
    return len(set(there) - volumes)


def describe(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Lines of a name and what is to be said."""
    yield "node", f"{node['id']} ({node['hostname']}, {node['address']})"
    yield "state", _state(node)
    yield "tasks", str(node["tasks"])
    for kind, amount in node["resources"].items():
        yield kind, f"{node['used'][kind]:g} of {amount:g}"
    if node["attributes"]:
        yield "attributes", ", ".join(f"{key}={value}" for key, value in node["attributes"].items())
    if node["rights"]:
        yield "permits", ", ".join(node["rights"])
    for problem in (*node["errors"], *node["misfits"]):
        yield "problem", problem


def _state(node: dict[str, Any]) -> str:
    words = [node["state"], *(["draining"] if node["draining"] else []), *([] if node["connected"] else ["no session"])]
    return ", ".join(words)


def _row(node: dict[str, Any]) -> tuple[object, ...]:
    has, used = node["resources"], node["used"]
    return (
        node["id"],
        node["address"],
        _state(node),
        node["tasks"],
        f"{used['cpus']:g}/{has['cpus']:g}",
        f"{used['mem']:g}/{has['mem']:g}",
        "; ".join((*node["errors"], *node["misfits"])),
    )
