"""`tepui node`."""

from __future__ import annotations

from typing import Any

import typer

from cli.client import connect
from cli.output import Json, print_json, print_table

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_nodes(json: Json = False) -> None:
    """Every node, what it has and what of it is used."""
    nodes = connect().get("/api/v1/nodes")["nodes"]
    if json:
        print_json(nodes)
        return
    print_table(("NODE", "ADDRESS", "STATE", "#TASKS", "#CPUS", "#MEM", "PROBLEMS"), map(_row, nodes))


def _row(node: dict[str, Any]) -> tuple[object, ...]:
    has, used = node["resources"], node["used"]
    state = node["state"] if node["connected"] else f"{node['state']}, no session"
    return (
        node["id"],
        node["address"],
        state,
        node["tasks"],
        f"{used['cpus']:g}/{has['cpus']:g}",
        f"{used['mem']:g}/{has['mem']:g}",
        "; ".join(node["errors"]),
    )
