"""What of a node's tasks no longer fits it: it may have less than when they were placed, or permit less.

They go on, for nothing has happened to them; but nobody may be left to wonder.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.resources import Resources, describe
from model.rights import needed
from model.task import TaskSpec


def misfits(tasks: Sequence[TaskSpec], resources: Resources, rights: frozenset[str]) -> list[str]:
    """In words, a sentence for each; empty when everything fits."""
    held = sum((task.resources for task in tasks), Resources())
    said = [
        f"its tasks hold {describe(kind, amount)} more than it has" for kind, amount in resources.shortage(held).items()
    ]
    for task in tasks:
        said += [f"task {task.id} has {right}, which it no longer permits" for right in sorted(needed(task) - rights)]
    return said
