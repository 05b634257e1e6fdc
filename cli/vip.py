"""`tepui vip`."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.client import connect
from cli.output import Json, print_json, print_table

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="VIP", help="Its name (web) or address, with or without the port.")]


@app.command("list")
def list_vips(json: Json = False) -> None:
    """Every virtual address with the tasks behind it."""
    vips = connect().get("/api/v1/vips")["vips"]
    if json:
        print_json(vips)
        return
    rows = (
        (
            _address(vip),
            vip["name"],
            ", ".join(_socket(each["address"], each["port"]) for each in vip["backends"]) or "none",
            ", ".join(vip["behind"]),
        )
        for vip in vips
    )
    print_table(("VIP", "NAME", "BACKENDS", "NODES BEHIND"), rows)


@app.command()
def show(vip: Name, json: Json = False) -> None:
    """One virtual address: the tasks behind it, and whether every node translates it so."""
    found = connect().get(f"/api/v1/vips/{quote(vip.removeprefix('/'), safe='/:[]')}")["vips"]
    if json:
        print_json(found)
        return
    for number, each in enumerate(found):
        if number:
            typer.echo()
        typer.echo(f"{_address(each)} {each['name']} {each['dns']}")
        print_table(("  BACKEND", "TASK", "NODE", "#WEIGHT"), map(_backend, each["backends"]))
        print_table(
            ("  ON NODE", ""), ((f"  {node['node']}", node["state"] or "as it should be") for node in each["nodes"])
        )


def _backend(backend: dict[str, Any]) -> tuple[object, ...]:
    where = _socket(backend["address"], backend["port"])
    return f"  {where}", backend["task_id"], backend["node"], backend["weight"]


def _address(vip: dict[str, Any]) -> str:
    return f"{_socket(vip['address'], vip['port'])}/{vip['protocol']}"


def _socket(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
