"""System services: one instance on every node that the app's constraints allow. Pure.

How many instances such an app has is how many nodes there are for it. A node that is away for a while still counts if
the app runs there: a short absence must not end what runs. One that drains does not, nor one that the constraints allow
no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from frameworks.services import options
from frameworks.services.app import App
from frameworks.services.constraints import Constraint
from frameworks.services.wanted import Run
from model.node import Node

ONE_A_NODE = Constraint("hostname", "UNIQUE")


def is_system(app: App) -> bool:
    return options.is_system(app.definition.labels)


def targets(app: App, nodes: Sequence[Node], runs: Iterable[Run]) -> frozenset[str]:
    """The nodes on which it is to run. `nodes` are those that take tasks now."""
    allowed = {node.id for node in nodes if _allows(app, node)}
    known = {node.id for node in nodes}
    away = {run.view.node for run in runs if run.view.node not in known and not run.view.leaving}
    return frozenset(allowed | away)


def misplaced(targets: frozenset[str], runs: Iterable[Run]) -> list[Run]:
    """Tasks that are where the app is not to be."""
    return [run for run in runs if run.view.node not in targets]


def _allows(app: App, node: Node) -> bool:
    return all(each.allows(each.place_of(node), Counter()) for each in app.definition.placement)
