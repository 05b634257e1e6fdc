"""`tepui service`: what of a service's definition is true right now, and why the rest is not yet."""

from __future__ import annotations

import json as codec
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import completion
from cli.client import connect
from cli.output import Json, print_json, print_table, print_title
from cli.problem import Problem
from cli.service_log import log
from cli.task_table import print_tasks

app = typer.Typer(no_args_is_help=True)
app.command()(log)

Id = Annotated[str, typer.Argument(help="As in the definition: /web.", autocompletion=completion.services)]


@app.command()
def run(file: Annotated[Path, typer.Argument(help="A Marathon app definition (JSON).")], json: Json = False) -> None:
    """Run a service."""
    created = connect().post("/v2/apps", read_definition(file))
    if json:
        print_json(created)
    else:
        typer.echo(f"{created['id']}: deployment {created['deployments'][0]['id']}")


@app.command("list")
def list_services(json: Json = False) -> None:
    """Every service, and how many of its instances run."""
    apps = connect().get("/v2/apps")["apps"]
    if json:
        print_json(apps)
        return
    rows = (
        (app["id"], f"{app['tasksRunning']}/{app['instances']}", f"{app['cpus']:g}", f"{app['mem']:g}", _status(app))
        for app in apps
    )
    print_table(("SERVICE", "#RUNNING", "#CPUS", "#MEM", "STATUS"), rows)


@app.command()
def show(service: Id, json: Json = False) -> None:
    """One service with its tasks, and why it waits."""
    answer = connect().get(f"/api/v1/services/{service.lstrip('/')}")
    if json:
        print_json(answer)
        return
    app = answer["app"]
    print_title(app["id"], f"{app['tasksRunning']} of {app['instances']} running", _status(app))
    for sentence in answer["waiting"]:
        typer.echo(f"waiting: {sentence}")
    print_tasks(answer["tasks"])


@app.command()
def scale(service: Id, instances: Annotated[int, typer.Argument(min=0)], json: Json = False) -> None:
    """Change the number of instances."""
    _told(service, connect().put(f"/v2/apps/{service.lstrip('/')}", {"instances": instances}), json)


@app.command()
def update(
    service: Id,
    file: Annotated[Path, typer.Argument(help="What is to change of its definition (JSON); all else stays.")],
    json: Json = False,
) -> None:
    """Change a service: its tasks are replaced as its upgradeStrategy says."""
    _told(service, connect().put(f"/v2/apps/{service.lstrip('/')}", read_definition(file)), json)


@app.command()
def restart(service: Id, json: Json = False) -> None:
    """Replace every task of a service, as its upgradeStrategy says."""
    _told(service, connect().post(f"/v2/apps/{service.lstrip('/')}/restart"), json)


@app.command()
def rollback(
    service: Id,
    version: Annotated[str, typer.Argument(help="As 'tepui service versions' says; else the one before.")] = "",
    json: Json = False,
) -> None:
    """Go back to an earlier version of a service's definition."""
    client, path = connect(), f"/v2/apps/{service.lstrip('/')}"
    if not version:
        known = client.get(f"{path}/versions")["versions"]
        if len(known) < 2:
            raise Problem(f"{service}: has no version but this one")
        version = known[1]
    _told(service, client.put(path, {"version": version}), json)


@app.command()
def versions(service: Id, json: Json = False) -> None:
    """The versions of a service's definition that are kept, the newest first."""
    known = connect().get(f"/v2/apps/{service.lstrip('/')}/versions")["versions"]
    if json:
        print_json(known)
        return
    for version in known:
        typer.echo(version)


@app.command()
def deployments(json: Json = False) -> None:
    """Services and pods that are not yet as they were asked to be."""
    found = connect().get("/v2/deployments")
    if json:
        print_json(found)
        return
    rows = ((each["id"], ", ".join(each["affectedApps"] + each["affectedPods"]), each["version"]) for each in found)
    print_table(("DEPLOYMENT", "OF", "SINCE"), rows)


@app.command()
def cancel(deployment: Annotated[str, typer.Argument(help="Its id.")], json: Json = False) -> None:
    """Go back from a deployment to what was there before; a service that is new is removed."""
    answer = connect().delete(f"/v2/deployments/{deployment}")
    if json:
        print_json(answer)
    else:
        typer.echo(f"deployment {answer['deploymentId']}")


@app.command()
def remove(service: Id, json: Json = False) -> None:
    """Stop and remove a service."""
    _told(service, connect().delete(f"/v2/apps/{service.lstrip('/')}"), json)


def _told(service: str, answer: dict[str, Any], json: bool) -> None:
    if json:
        print_json(answer)
    else:
        typer.echo(f"{service}: deployment {answer['deploymentId']}")


def _status(app: dict[str, Any]) -> str:
    return "deploying" if app["deployments"] else "running"


def read_definition(file: Path) -> Any:
    try:
        return codec.loads(file.read_text())
    except OSError as error:
        raise Problem(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise Problem(f"{file}: not JSON: {error}") from error
