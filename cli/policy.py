"""`tepui policy`: who may connect to whom."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.client import connect
from cli.definition import read_definition
from cli.output import Json, print_json, print_table

app = typer.Typer(no_args_is_help=True)

PROTOCOLS = ("tcp", "udp")
SOURCES = ("network", "app", "subnet")

Name = Annotated[str, typer.Argument(metavar="POLICY")]
Network = Annotated[str | None, typer.Option("--network", help="Let others in to the containers of this network.")]
App = Annotated[str | None, typer.Option("--app", help="Leave this app (/web) to those that are named, and no others.")]
From = Annotated[
    list[str] | None,
    typer.Option("--from", help="network:NAME, app:/NAME or subnet:192.0.2.0/24. Can be repeated; without: nobody."),
]
Port = Annotated[
    list[str] | None,
    typer.Option("--port", help="The container's own: 80/tcp, 8000-8010/udp. Can be repeated; without: any."),
]
File = Annotated[Path | None, typer.Option("--file", "-f", help="The policy as JSON, as `show --json` prints it.")]


@app.command("list")
def list_policies(json: Json = False) -> None:
    """Every policy."""
    policies = connect().get("/api/v1/policies")["policies"]
    if json:
        print_json(policies)
    else:
        print_table(("POLICY", "TO", "FROM", "PORTS"), map(_row, policies))


@app.command()
def show(policy: Name, json: Json = False) -> None:
    """One policy."""
    found = connect().get(_path(policy))["policy"]
    if json:
        print_json(found)
    else:
        print_table(("POLICY", "TO", "FROM", "PORTS"), [_row(found)])


@app.command("set")
def set_policy(
    policy: Name,
    network: Network = None,
    app: App = None,
    source: From = None,
    port: Port = None,
    file: File = None,
    json: Json = False,
) -> None:
    """Make a policy, or replace the one of this name."""
    if file is not None:
        if network or app or source or port:
            raise typer.BadParameter(
                "it has all of the policy: no --network, --app, --from or --port", param_hint="--file"
            )
        body = read_definition(file)
    else:
        target = {key: value for key, value in (("network", network), ("app", app)) if value is not None}
        body = {**target, "from": list(map(_source, source or ())), "ports": list(map(_port, port or ()))}
    found = connect().put(_path(policy), body)["policy"]
    if json:
        print_json(found)
    else:
        typer.echo(f"{found['name']}: {_reach(found)}")


@app.command()
def remove(policy: Name, json: Json = False) -> None:
    """Remove a policy. An app for which there is no other is reached like its network again."""
    found = connect().delete(_path(policy))["policy"]
    if json:
        print_json(found)
    else:
        typer.echo(f"{found['name']}: removed")


def _path(policy: str) -> str:
    return f"/api/v1/policies/{quote(policy, safe='')}"


def _source(given: str) -> dict[str, str]:
    kind, _, name = given.partition(":")
    if kind not in SOURCES or not name:
        raise typer.BadParameter(f"{given!r} is none of network:NAME, app:/NAME and subnet:SUBNET", param_hint="--from")
    return {kind: name}


def _port(given: str) -> dict[str, str]:
    number, _, protocol = given.partition("/")
    if number in PROTOCOLS:
        number, protocol = protocol, number
    if protocol not in PROTOCOLS or not number:
        raise typer.BadParameter(f"{given!r} is not as in 80/tcp or 8000-8010/udp", param_hint="--port")
    return {"protocol": protocol, "port": number}


def _row(policy: dict[str, Any]) -> tuple[object, ...]:
    ports = (f"{ports['port']}/{ports['protocol']}" for ports in policy["ports"])
    return policy["name"], _target(policy), _joined(map(_named, policy["from"]), "nobody"), _joined(ports, "any")


def _reach(policy: dict[str, Any]) -> str:
    """A sentence."""
    _, target, sources, ports = _row(policy)
    return f"to {target}, from {sources}, ports {ports}"


def _target(policy: dict[str, Any]) -> str:
    return _named({key: policy[key] for key in ("network", "app") if key in policy})


def _named(of: dict[str, str]) -> str:
    ((kind, name),) = of.items()
    return f"{kind}:{name}"


def _joined(words: Iterable[str], none: str) -> str:
    return ", ".join(words) or none
