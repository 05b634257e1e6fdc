"""`tepui network`: networks of containers, made and removed while the cluster runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import completion
from cli.client import connect
from cli.definition import read_definition
from cli.output import Json, print_json, print_table

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NETWORK", help="Its name.", autocompletion=completion.networks)]
Subnets = Annotated[list[str], typer.Option("--subnet", help="IPv4 or IPv6, like 10.20.0.0/16. May be repeated.")]
Static = Annotated[list[str], typer.Option("--static", help="A part for addresses that tasks ask for.")]
Cni = Annotated[Path | None, typer.Option("--cni", help="A configuration list of CNI: the kind is then cni.")]


@app.command("list")
def list_networks(json: Json = False) -> None:
    """Every network: its subnets, and how many addresses tasks have and can have."""
    networks = connect().get("/api/v1/networks")["networks"]
    if json:
        print_json(networks)
        return
    print_table(("NETWORK", "KIND", "SUBNETS", "#VNI", "#USED", "#FREE", "PROBLEMS"), map(_row, networks))


@app.command()
def show(network: Name, json: Json = False) -> None:
    """One network: which node has which part of it, and who has what address."""
    found = connect().get(f"/api/v1/networks/{network}")["network"]
    if json:
        print_json(found)
    else:
        _print_whole(found)


@app.command()
def create(
    network: Name,
    kind: Annotated[str, typer.Option(help="overlay, or bridge: on each node alone.")] = "overlay",
    subnet: Subnets = [],  # noqa: B006 - never changed
    static: Static = [],  # noqa: B006
    block_prefix: Annotated[int | None, typer.Option(help="How large a node's part is, of IPv4.")] = None,
    block_prefix6: Annotated[int | None, typer.Option(help="The same of IPv6.")] = None,
    vni: Annotated[int | None, typer.Option(help="Of an overlay; a free one if not given.")] = None,
    mtu: Annotated[int | None, typer.Option(help="Of its links; what the nodes' network carries if not given.")] = None,
    internal: Annotated[bool, typer.Option("--internal", help="Nothing leads out of the cluster.")] = False,
    cni: Cni = None,
    json: Json = False,
) -> None:
    """Make a network on every node. Without a subnet it gets one that is free."""
    wanted = {
        "name": network,
        "kind": "cni" if cni is not None else kind,
        "subnets": subnet,
        "static": static or None,
        "block_prefix": block_prefix,
        "block_prefix6": block_prefix6,
        "vni": vni,
        "mtu": mtu,
        "internal": internal,
        "cni": read_definition(cni) if cni is not None else None,
    }
    made = connect().post("/api/v1/networks", {key: value for key, value in wanted.items() if value is not None})
    if json:
        print_json(made["network"])
    else:
        _print_whole(made["network"])


@app.command()
def remove(network: Name, json: Json = False) -> None:
    """Remove a network that nothing uses."""
    removed = connect().delete(f"/api/v1/networks/{network}")["network"]
    if json:
        print_json(removed)
    else:
        typer.echo(f"{removed['name']}: removed")


def _row(network: dict[str, Any]) -> tuple[object, ...]:
    return (
        network["name"],
        network["kind"],
        " ".join(network["subnets"]),
        network["vni"],
        network["used"],
        network["free"],
        "; ".join(f"{each['node']}: {each['error']}" for each in network["errors"]),
    )


def _print_whole(network: dict[str, Any]) -> None:
    fields = ("kind", "subnets", "static", "vni", "mtu", "internal", "used", "free")
    typer.echo(f"{'network':<10} {network['name']}")
    for field in fields:
        value = network[field]
        if value not in (None, [], False):
            text = " ".join(value) if isinstance(value, list) else str(value).lower()
            typer.echo(f"{field:<10} {text}")
    for name in network["policies"]:
        typer.echo(f"{'policy':<10} {name}")
    for each in network["errors"]:
        typer.echo(f"{'problem':<10} {each['node']}: {each['error']}")
    if network["nodes"]:
        typer.echo()
        print_table(("NODE", "BLOCKS", "#USED", "#FREE"), map(_node_row, network["nodes"]))
    users = {each["address"]: each["task"] for each in network["addresses"]}
    kept = {each["address"]: each["owner"] for each in network["kept"]}
    if users or kept:
        typer.echo()
        rows = [(address, users.get(address), kept.get(address)) for address in {**users, **kept}]
        print_table(("ADDRESS", "TASK", "KEPT FOR"), rows)


def _node_row(node: dict[str, Any]) -> tuple[object, ...]:
    blocks = [f"{block} (retiring)" if block in node["retiring"] else block for block in node["blocks"]]
    return node["node"], " ".join(blocks), node["used"], node["free"]
