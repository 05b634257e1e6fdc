"""`tepui service`: what of a service's definition is true right now, and why the rest is not yet."""

from __future__ import annotations

from typing import Any

import typer

from cli import deployment, service_change
from cli.client import connect
from cli.output import Json, print_json, print_table, print_title
from cli.service_change import Id, path_of, view_of
from cli.service_log import log
from cli.service_tasks import execute_command, top
from cli.task_table import print_tasks

app = typer.Typer(no_args_is_help=True)
app.command()(service_change.run)
app.command("add", help="The same as run.")(service_change.run)


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
    answer = connect().get(view_of(service))
    if json:
        print_json(answer)
        return
    app = answer["app"]
    print_title(app["id"], f"{app['tasksRunning']} of {app['instances']} running", _status(app))
    for sentence in answer["waiting"]:
        typer.echo(f"waiting: {sentence}")
    print_tasks(answer["tasks"])


@app.command()
def versions(service: Id, json: Json = False) -> None:
    """The versions of a service's definition that are kept, the newest first."""
    known = connect().get(f"{path_of(service)}/versions")["versions"]
    if json:
        print_json(known)
        return
    for version in known:
        typer.echo(version)


def _status(app: dict[str, Any]) -> str:
    return "deploying" if app["deployments"] else "running"


for command in (
    service_change.update,
    service_change.scale,
    service_change.restart,
    service_change.rollback,
    service_change.canary,
    service_change.promote,
    service_change.remove,
    log,
    top,
):
    app.command()(command)
app.command("logs", hidden=True)(log)
app.command("exec", context_settings={"allow_interspersed_args": False})(execute_command)
app.add_typer(deployment.app, name="deployment", help="Changes that are under way: what they wait for.")
# As they were called before there was more to say of deployments.
app.command("deployments", hidden=True)(deployment.list_deployments)
app.command("cancel", hidden=True)(deployment.cancel)
