"""`tepui pod`: containers that run together on one node and share a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli import completion
from cli.client import connect
from cli.definition import read_definition
from cli.deployment import settle, settle_removal
from cli.output import Json, print_json, print_table, print_title
from cli.service_change import Force, changed
from cli.task_table import print_tasks
from cli.waiting import Patience, Timeout, Wait

app = typer.Typer(no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="As in the definition: /web.", autocompletion=completion.pods)]


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="A Marathon pod definition (JSON).")],
    force: Force = False,
    wait: Wait = False,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Run a pod; change it when there is one of this id."""
    definition = read_definition(file)
    client = connect()
    path = f"/{str(definition.get('id', '')).strip('/')}" if isinstance(definition, dict) else ""
    if path in [pod["id"] for pod in client.get("/v2/pods")]:
        change = changed(client, "PUT", f"/v2/pods{quote(path)}", definition, force)
    else:
        change = client.change("POST", "/v2/pods", definition)
    told = f"{change.answer['id']}: version {change.answer['version']}"
    settle(client, change, told, Patience(wait, timeout, json))


@app.command("list")
def list_pods(json: Json = False) -> None:
    """Every pod, and how many of its instances are as they should be."""
    pods = connect().get("/v2/pods/::status")
    if json:
        print_json(pods)
        return
    rows = ((pod["id"], _stable(pod), ", ".join(_containers(pod)), pod["status"].lower()) for pod in pods)
    print_table(("POD", "#STABLE", "CONTAINERS", "STATUS"), rows)


@app.command()
def show(pod: Id, json: Json = False) -> None:
    """One pod with its instances and their tasks, and why it waits."""
    answer = connect().get(f"/api/v1/pods/{quote(pod.strip('/'))}")
    if json:
        print_json(answer)
        return
    status = answer["status"]
    print_title(status["id"], f"{_stable(status)} stable", status["status"].lower())
    for sentence in answer["waiting"]:
        typer.echo(f"waiting: {sentence}")
    for ended in status["terminationHistory"]:
        typer.echo(f"ended: {ended['instanceID']}: {ended['message']}")
    rows = (
        (instance["id"], instance["agentId"], instance["status"].lower(), ", ".join(_addresses(instance)))
        for instance in status["instances"]
    )
    print_table(("INSTANCE", "NODE", "STATUS", "ADDRESS"), rows)
    print_tasks(answer["tasks"])


@app.command()
def remove(pod: Id, force: Force = False, wait: Wait = False, timeout: Timeout = None, json: Json = False) -> None:
    """Stop and remove a pod."""
    client = connect()
    change = changed(client, "DELETE", f"/v2/pods/{quote(pod.strip('/'))}", None, force)
    settle_removal(client, f"/{pod.strip('/')}", change, Patience(wait, timeout, json))


def _stable(status: dict[str, Any]) -> str:
    stable = sum(instance["status"] == "STABLE" for instance in status["instances"])
    return f"{stable}/{status['spec']['scaling']['instances']}"


def _containers(status: dict[str, Any]) -> Iterator[str]:
    return (container["name"] for container in status["spec"]["containers"])


def _addresses(instance: dict[str, Any]) -> Iterator[str]:
    return (address for network in instance["networks"] for address in network["addresses"])
