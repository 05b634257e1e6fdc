"""`tepui events`."""

from __future__ import annotations

import json as codec
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Annotated, Any

import typer

from cli.client import connect
from cli.output import Json

app = typer.Typer()


@app.command()
def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until interrupted.")] = False,
    json: Json = False,
) -> None:
    """What happened to tasks, nodes, networks and policies, as far back as the master remembers."""
    with connect().stream("/api/v1/events", follow=follow) as chunks:
        for kind, data in parse(chunks):
            print(codec.dumps({"kind": kind, **data}) if json else describe(kind, data), flush=True)


def parse(chunks: Iterable[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and data of each event in a stream of server-sent events, as the master writes them."""
    rest = b""
    for chunk in chunks:
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(": ", 1) for line in block.decode().splitlines() if not line.startswith(":"))
            if "data" in fields:
                yield fields["event"], codec.loads(fields["data"])


def describe(kind: str, data: dict[str, Any]) -> str:
    if kind == "missed":
        return f"... {data['count']} events are no longer kept"
    at = datetime.fromtimestamp(data["at"]).strftime("%Y-%m-%d %H:%M:%S")
    if kind == "node":
        state = data["state"] if data["connected"] else f"{data['state']}, not connected"
        return f"{at}  node {data['node']}: {'; '.join([state, *data['errors']])}"
    if kind in ("network", "policy"):
        return f"{at}  {kind} {data[kind]}: {data['state']}"
    words = [data["state"], "ending" * data["killing"], "unhealthy" * (data["healthy"] is False), data["reason"]]
    return f"{at}  task {data['task']} on {data['node']}: {'; '.join(filter(None, words))}"
