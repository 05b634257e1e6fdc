"""`tepui job schedule`: when a job is run by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.client import connect
from cli.duration import duration, epoch
from cli.job_run import Id, path_of, view_of
from cli.output import Json, print_json, print_table

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Its id.")]
POLICIES = ("ALLOW", "FORBID", "REPLACE")
# What a schedule is, and not when it is due.
DEFINED = ("id", "cron", "timezone", "startingDeadlineSeconds", "concurrencyPolicy", "enabled")


@app.command()
def add(
    job: Id,
    schedule: Name,
    cron: Annotated[str, typer.Argument(help='Five fields: "0 3 * * *" is at three every night.')],
    timezone: Annotated[str, typer.Option(help="As in Europe/Berlin.")] = "UTC",
    policy: Annotated[str, typer.Option(help="While a run is under way: ALLOW, FORBID or REPLACE.")] = "ALLOW",
    deadline: Annotated[int, typer.Option(min=1, help="Seconds that a run may begin late.")] = 900,
    disabled: Annotated[bool, typer.Option("--disabled", help="Until it is enabled.")] = False,
    json: Json = False,
) -> None:
    """Have a job run at certain times."""
    if policy.upper() not in POLICIES:
        raise typer.BadParameter(f"{policy!r} is none of {', '.join(POLICIES)}", param_hint="--policy")
    values = (schedule, cron, timezone, deadline, policy.upper(), not disabled)
    made = connect().post(f"{path_of(job)}/schedules", dict(zip(DEFINED, values, strict=True)))
    _told(job, made, json)


@app.command("list")
def list_schedules(job: Id, json: Json = False) -> None:
    """A job's schedules: when they are due next, and what was passed over last."""
    found = connect().get(view_of(job))["schedules"]
    if json:
        print_json(found)
        return
    now = time.time()
    columns = ("SCHEDULE", "CRON", "TIME ZONE", "POLICY", "NEXT", "LAST", "PASSED OVER")
    print_table(columns, [tuple(_row(each, now)) for each in found])


@app.command()
def remove(job: Id, schedule: Name, json: Json = False) -> None:
    """Remove a schedule. Runs that it has started go on."""
    connect().delete(_path(job, schedule))
    if json:
        print_json({"id": schedule})
    else:
        typer.echo(f"{job}: {schedule} is removed")


@app.command()
def enable(job: Id, schedule: Name, json: Json = False) -> None:
    """Have it due again, from now on."""
    _switch(job, schedule, True, json)


@app.command()
def disable(job: Id, schedule: Name, json: Json = False) -> None:
    """Keep a schedule without its being due."""
    _switch(job, schedule, False, json)


def next_due(schedule: dict[str, Any], now: float) -> str:
    """`in 3 h`, `disabled`."""
    if not schedule["enabled"]:
        return "disabled"
    due = schedule.get("nextRunAt")
    return f"in {duration(epoch(due) - now)}" if due else "never"


def _switch(job: str, schedule: str, enabled: bool, json: bool) -> None:
    client, path = connect(), _path(job, schedule)
    found = client.get(path)
    wanted = {name: found[name] for name in DEFINED if name in found} | {"enabled": enabled}
    _told(job, client.put(path, wanted), json)


def _told(job: str, schedule: dict[str, Any], json: bool) -> None:
    if json:
        print_json(schedule)
    else:
        typer.echo(f"{job}: {schedule['id']}: {schedule['cron']} {schedule['timezone']}, {_when(schedule)}")


def _when(schedule: dict[str, Any]) -> str:
    when = next_due(schedule, time.time())
    return when if when == "disabled" else f"next {when}"


def _row(schedule: dict[str, Any], now: float) -> Iterator[object]:
    yield from (schedule["id"], schedule["cron"], schedule["timezone"], schedule["concurrencyPolicy"])
    yield next_due(schedule, now)
    yield f"{duration(now - epoch(schedule['lastDueAt']))} ago" if schedule["lastDueAt"] else None
    yield schedule["skipped"]["reason"] if schedule["skipped"] else None


def _path(job: str, schedule: str) -> str:
    return f"{path_of(job)}/schedules/{quote(schedule, safe='')}"
