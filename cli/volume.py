"""`tepui volume`: persistent volumes, which outlive the tasks that use them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import completion
from cli.client import connect
from cli.output import Json, print_json, print_table

app = typer.Typer(no_args_is_help=True)

Id = Annotated[
    str, typer.Argument(metavar="VOLUME", help="Its id, or the beginning of it.", autocompletion=completion.volumes)
]


@app.command("list")
def list_volumes(json: Json = False) -> None:
    """Every persistent volume: where it is, and who uses it."""
    volumes = connect().get("/api/v1/volumes")["volumes"]
    if json:
        print_json(volumes)
        return
    columns = ("VOLUME", "OWNER", "NAME", "#SIZE", "NODE", "STATE", "TASK")
    print_table(columns, map(_row, volumes))


@app.command()
def show(volume: Id, json: Json = False) -> None:
    """One volume."""
    found = connect().get(f"/api/v1/volumes/{volume}")["volume"]
    if json:
        print_json(found)
    else:
        print_table(("FIELD", "VALUE"), found.items())


@app.command()
def remove(volume: Id, json: Json = False) -> None:
    """Destroy a volume that no task uses, with all that is on it. If its node is away, its owner goes on without it,
    and the node destroys it when it is back."""
    found = connect().delete(f"/api/v1/volumes/{volume}")["volume"]
    if json:
        print_json(found)
    else:
        typer.echo(f"{found['id']}: node {found['node']} ({found['node_state']}) is told to destroy it")


def _row(volume: dict[str, Any]) -> tuple[object, ...]:
    online = volume["node_state"] == "online"
    return (
        volume["id"],
        volume["owner"],
        volume["name"],
        f"{volume['size']} MiB",
        volume["node"] if online else f"{volume['node']} ({volume['node_state']})",
        volume["state"],
        volume["task"],
    )
