"""The commands that change a service. Each begins a deployment, which can be waited for (`cli/deployment.py`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from cli import completion
from cli.client import Change, Client, connect
from cli.definition import read_definition
from cli.deployment import settle, settle_removal
from cli.output import Json
from cli.problem import Problem, Refused
from cli.waiting import Patience, Timeout, Wait

KIND = re.compile(r"^/v2/(apps|pods)")

Id = Annotated[str, typer.Argument(help="As in the definition: /web.", autocompletion=completion.services)]
Force = Annotated[bool, typer.Option("--force", help="Also while another change of it is under way: in its place.")]
Changed = Annotated[Path, typer.Argument(metavar="FILE", help="What is to change of its definition; all else stays.")]


def run(
    file: Annotated[Path, typer.Argument(help="A Marathon app definition (JSON).")],
    wait: Wait = False,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Run a service."""
    client = connect()
    made = client.change("POST", "/v2/apps", read_definition(file))
    settled(client, made.answer["id"], made, wait, timeout, json)


def update(
    service: Id, file: Changed, force: Force = False, wait: Wait = False, timeout: Timeout = None, json: Json = False
) -> None:
    """Change a service: its tasks are replaced as its upgradeStrategy says."""
    client = connect()
    change = changed(client, "PUT", path_of(service), read_definition(file), force)
    settled(client, service, change, wait, timeout, json)


def scale(
    service: Id,
    instances: Annotated[int, typer.Argument(min=0)],
    force: Force = False,
    wait: Wait = False,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Change the number of instances."""
    client = connect()
    change = changed(client, "PUT", path_of(service), {"instances": instances}, force)
    settled(client, service, change, wait, timeout, json)


def restart(service: Id, force: Force = False, wait: Wait = False, timeout: Timeout = None, json: Json = False) -> None:
    """Replace every task of a service, as its upgradeStrategy says."""
    client = connect()
    settled(client, service, changed(client, "POST", f"{path_of(service)}/restart", None, force), wait, timeout, json)


def rollback(
    service: Id,
    version: Annotated[str, typer.Argument(help="As 'tepui service versions' says; else the one before.")] = "",
    force: Force = False,
    wait: Wait = False,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Go back to an earlier version of a service's definition."""
    client, path = connect(), path_of(service)
    if not version:
        known = client.get(f"{path}/versions")["versions"]
        if len(known) < 2:
            raise Problem(f"{service}: has no version but this one")
        version = known[1]
    settled(client, service, changed(client, "PUT", path, {"version": version}, force), wait, timeout, json)


def canary(
    service: Id,
    file: Changed,
    instances: Annotated[int, typer.Option("--instances", "-n", min=1, help="How many are of the new version.")] = 1,
    force: Force = False,
    wait: Wait = False,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Try a change on a few instances. Then: tepui service promote, or tepui service deployment cancel."""
    client = connect()
    change = changed(client, "PUT", path_of(service), read_definition(file), force, canary=instances)
    settled(client, service, change, wait, timeout, json)


def promote(service: Id, wait: Wait = False, timeout: Timeout = None, json: Json = False) -> None:
    """What a canary has tried is right for all instances."""
    client = connect()
    change = changed(client, "POST", f"{view_of(service)}/promote")
    settled(client, service, change, wait, timeout, json)


def remove(service: Id, force: Force = False, wait: Wait = False, timeout: Timeout = None, json: Json = False) -> None:
    """Stop and remove a service."""
    client = connect()
    change = changed(client, "DELETE", path_of(service), None, force)
    settle_removal(client, f"/{service.strip('/')}", change, Patience(wait, timeout, json))


def path_of(service: str) -> str:
    return f"/v2/apps/{quote(service.strip('/'))}"


def view_of(service: str) -> str:
    """Our own, with its tasks."""
    return f"/api/v1/services/{quote(service.strip('/'))}"


def changed(
    client: Client, method: str, path: str, body: object = None, force: bool = False, **query: object
) -> Change:
    """Raises Problem with the next step when a deployment is under way."""
    try:
        return client.change(method, path, body, **(query | ({"force": "true"} if force else {})))
    except Refused as refused:
        if under_way := locked_by(refused):
            raise Problem(
                f"{KIND.sub('', path)}: another change of it is under way (deployment {under_way}):"
                f" wait for it, look at it by 'tepui service deployment show {under_way}',"
                " or put this one in its place with --force"
            ) from refused
        raise


def locked_by(refused: Refused) -> str:
    """The deployment that is in the way, if that is why."""
    try:
        return str(refused.body["deployments"][0]["id"]) if refused.status == 409 else ""
    except (KeyError, IndexError, TypeError):
        return ""


def settled(client: Client, service: str, change: Change, wait: bool, timeout: float | None, json: bool) -> None:
    settle(client, change, f"{service}: deployment {change.deployment}", Patience(wait, timeout, json))
