"""`tepui node`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cli.client import connect
from cli.output import Json, console, print_json, print_table
from cli.problem import Problem

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_nodes(json: Json = False) -> None:
    """Every node, what it has and what of it is used."""
    nodes = connect().get("/api/v1/nodes")["nodes"]
    if json:
        print_json(nodes)
        return
    print_table(("NODE", "ADDRESS", "STATE", "#TASKS", "#CPUS", "#MEM", "PROBLEMS"), map(_row, nodes))


@app.command("show")
def show_node(name: Annotated[str, typer.Argument(help="Its name.")], json: Json = False) -> None:
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
        console.print(f"{field:<10} {value}", markup=False)


@app.command("remove")
def remove_node(name: Annotated[str, typer.Argument(help="Its name.")], json: Json = False) -> None:
    """Give up a node that will not come back: its tasks are over, its volumes lost, its addresses free for others."""
    removed = connect().delete(f"/api/v1/nodes/{name}")
    if json:
        print_json(removed)
        return
    typer.echo(
        f"{name}: removed, with {removed['tasks']} tasks, {removed['volumes']} volumes, {removed['blocks']} blocks"
    )


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
    return str(node["state"]) if node["connected"] else f"{node['state']}, no session"


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
