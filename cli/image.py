"""`tepui image`.

What draws the bars is imported when there are some: other commands should not wait for it.
"""

from __future__ import annotations

import json as codec
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.client import connect
from cli.duration import duration
from cli.output import Json, print_json, print_table, size
from cli.problem import Problem

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

app = typer.Typer(no_args_is_help=True)

Nodes = Annotated[list[str] | None, typer.Option("--node", "-n", help="Only there. Can be repeated.")]
Event = dict[str, Any]


@app.command()
def pull(reference: str, node: Nodes = None, json: Json = False) -> None:
    """Bring an image to nodes, so that tasks find it there. Ctrl-C gives it up."""
    _follow("pull", {"reference": reference, "nodes": node or []}, json)


@app.command("list")
def list_images(node: Nodes = None, json: Json = False) -> None:
    """Every image on every node, and the tasks that use it."""
    answer = connect().get("/api/v1/images", node=node or [])
    if json:
        print_json(answer["images"])
    else:
        print_table(("NODE", "IMAGE", "DIGEST", "#SIZE", "#PULLED", "#USED", "TASKS"), map(_row, answer["images"]))
    _refuse_errors(answer["errors"])


@app.command()
def remove(reference: str, node: Nodes = None, json: Json = False) -> None:
    """Remove an image that no task uses from nodes."""
    _follow("remove", {"reference": reference, "nodes": node or []}, json)


@app.command()
def prune(node: Nodes = None, json: Json = False) -> None:
    """Remove every image that no task uses."""
    _follow("prune", {"nodes": node or []}, json)


def _follow(verb: str, body: dict[str, Any], json: bool) -> None:
    with connect().stream(f"/api/v1/images/{verb}", body) as chunks:
        events = _events(chunks)
        ended = [event for event in (events if json else _shown(events)) if "progress" not in event]
    if json:
        print_json(ended)
    _refuse_errors({event["node"]: event["error"] for event in ended if "error" in event})


def _events(chunks: Iterable[bytes]) -> Iterator[Event]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from map(codec.loads, lines)


def _shown(events: Iterable[Event]) -> Iterator[Event]:
    """The events, each shown as it passes: a bar for each node that is at it, a line for each that is done."""
    with _bars() as bars:
        rows: dict[str, TaskID] = {}
        for event in events:
            node = event["node"]
            if "progress" in event:
                if node not in rows:
                    rows[node] = bars.add_task("", total=None)
                _advance(bars, rows[node], node, event["progress"])
            elif node in rows:
                bars.remove_task(rows.pop(node))
            if "done" in event:
                bars.console.print(f"{node}: {_outcome(event['done'])}")
            yield event


@contextmanager
def _bars() -> Iterator[Progress]:
    """None when standard output is no terminal: what is written there are the outcomes alone."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty()) as bars:
        yield bars


def _advance(bars: Progress, row: TaskID, node: str, progress: dict[str, Any]) -> None:
    layers = f"{progress['layers_done']}/{progress['layers']} layers" if progress["layers"] else ""
    description = f"{node}: {progress['note'] or layers}"
    bars.update(row, description=description, total=progress["bytes"] or None, completed=progress["bytes_done"])


def _outcome(done: dict[str, Any]) -> str:
    if "image" in done:
        image = done["image"]
        return f"{image['reference']} {image['digest']} ({size(image['bytes'])})"
    return f"{size(done['freed_bytes'])} freed"


def _refuse_errors(errors: dict[str, str]) -> None:
    if errors:
        raise Problem("; ".join(f"{node}: {error}" for node, error in sorted(errors.items())))


def _row(image: dict[str, Any]) -> tuple[object, ...]:
    now = time.time()
    return (
        image["node"],
        image["reference"],
        image["digest"].removeprefix("sha256:")[:12],
        size(image["bytes"]),
        duration(now - image["pulled_at"]),
        duration(now - image["used_at"]),
        ", ".join(image["tasks"]),
    )
