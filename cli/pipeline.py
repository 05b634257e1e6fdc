"""What is shown of a pipeline, as `GET /api/v1/pipelines/RUN` has it: its graph with states, and why what waits.

Drawn as boxes where there is room for them, else as a line for each job. Colour says nothing that words do not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cli.duration import duration, epoch
from cli.graph import draw
from cli.output import console
from cli.progress import Step

if TYPE_CHECKING:
    from rich.text import Text

MARKS = {"SUCCESS": "✓", "FAILED": "✗", "KILLED": "✗", "ACTIVE": "●", "BLOCKED": "⊘", "SKIPPED": "-"}
UNDER_WAY = "○"
OVER = {"SUCCESS", "FAILED", "KILLED", "BLOCKED", "SKIPPED"}
STYLES = {r"✓ \w+": "green", r"✗ \w+": "red", r"⊘ \w+": "yellow", r"● \w+": "cyan"}

Pipeline = dict[str, Any]
Node = dict[str, Any]


def print_pipeline(pipeline: Pipeline, now: float) -> None:
    lines = drawing(pipeline, now, room())
    console().print(coloured("\n".join([*lines, *reasons(pipeline)])), soft_wrap=True)


def room() -> int:
    """Columns for a drawing; none where its characters can not be written."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    return console().width if encoding == "utf8" else 0


def drawing(pipeline: Pipeline, now: float, width: int) -> list[str]:
    boxes = {node["job"]: [node["job"], f"{mark(node)} {state(node, now)}"] for node in pipeline["nodes"]}
    edges = [(edge["from"], edge["to"]) for edge in pipeline["edges"] if edge["from"] in boxes and edge["to"] in boxes]
    lines = draw(boxes, edges)
    return lines if max(map(len, lines), default=0) <= width else list(rows(pipeline, now))


def rows(pipeline: Pipeline, now: float) -> Iterator[str]:
    """A line for each job, after those that it depends on."""
    widest = max((len(node["job"]) for node in pipeline["nodes"]), default=0)
    for node in pipeline["nodes"]:
        after = f"after {', '.join(node['dependencies'])}" if node["dependencies"] else ""
        yield f"{node['job']:<{widest}}  {state(node, now):<16}  {after}".rstrip()


def reasons(pipeline: Pipeline) -> Iterator[str]:
    """Why what did not succeed did not, and what waits does."""
    for node in pipeline["nodes"]:
        if node["outside"]:
            yield f"{node['job']}: also depends on {', '.join(node['outside'])}, of another pipeline"
        if node["reason"]:
            yield f"{node['job']}: {because(node)}"
        for sentence in node["waiting"]:
            yield f"{node['job']}: {sentence}"


def summary(pipeline: Pipeline, now: float) -> str:
    """`pipeline 2026...: active for 3 min`."""
    if pipeline["id"] is None:
        return "pipeline: has not been run"
    said = f"pipeline {pipeline['id']}: {pipeline['state'].lower()}"
    if pipeline["completedAt"]:
        took = epoch(pipeline["completedAt"]) - epoch(pipeline["createdAt"])
        said += f" after {duration(took)}, {duration(now - epoch(pipeline['completedAt']))} ago"
    else:
        said += f" for {duration(now - epoch(pipeline['createdAt']))}"
    return said + (f": {pipeline['reason']}" if pipeline["reason"] else "")


def failure(pipeline: Pipeline) -> str:
    """Of one that did not succeed."""
    ended = [f"{node['job']} {word(node)}" for node in pipeline["nodes"] if node["state"] in ("FAILED", "KILLED")]
    said = f"pipeline {pipeline['id']} {pipeline['state'].lower()}"
    return ": ".join(filter(None, [said, pipeline["reason"], ", ".join(ended)]))


def step(pipeline: Pipeline, now: float, width: int) -> Step:
    """Of what it waits for, the first thing."""
    over = [node for node in pipeline["nodes"] if node["state"] in OVER]
    moving = [node for node in pipeline["nodes"] if node["state"] not in (*OVER, "WAITING")]
    words = [
        f"{len(over)} of {len(pipeline['nodes'])} jobs are over",
        *(f"{node['job']} {word(node)}" for node in moving),
    ]
    waits = [f"{node['job']} {sentence}" for node in moving for sentence in node["waiting"]]
    picture = "\n".join(drawing(pipeline, now, width))
    return Step(len(over), len(pipeline["nodes"]), "; ".join([*words, *waits[:1]]), picture)


def mark(node: Node) -> str:
    return MARKS.get(node["state"], UNDER_WAY)


def word(node: Node) -> str:
    return str(node["state"]).lower().replace("_", " ")


def because(node: Node) -> str:
    """`blocked: clean failed`. The reason for a failure often begins with the word."""
    said = word(node)
    return str(node["reason"]) if node["reason"].startswith(said) else f"{said}: {node['reason']}"


def state(node: Node, now: float) -> str:
    """`success, 12 s`."""
    if not node["startedAt"]:
        return word(node)
    end = epoch(node["completedAt"]) if node["completedAt"] else now
    return f"{word(node)}, {duration(end - epoch(node['startedAt']))}"


def coloured(text: str) -> Text:
    from rich.text import Text

    made = Text(text)
    for pattern, style in STYLES.items():
        made.highlight_regex(pattern, style)
    return made
