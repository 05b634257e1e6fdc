"""What of a task may change while it runs, without a restart: how much it may use, and whether it is paused.

An adjustment is asked for as a whole and done as a whole. The agent answers each, in the task's status, with the
adjustment's number and, where it could not be done, the reason: then all is as it was before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from model.limits import TaskLimits
from model.resources import Resources
from model.task import TaskSpec


@dataclass(frozen=True, slots=True)
class Adjustment:
    """`number` counts a task's adjustments from 1: of two the greater is right. 0: none was asked for yet."""

    resources: Resources
    pids: int
    limits: TaskLimits
    paused: bool = False
    number: int = 0


def adjustment_of(task: TaskSpec, paused: bool = False, number: int = 0) -> Adjustment:
    return Adjustment(task.resources, task.pids, task.limits, paused, number)


def adjusted(task: TaskSpec, adjustment: Adjustment) -> TaskSpec:
    return replace(task, resources=adjustment.resources, pids=adjustment.pids, limits=adjustment.limits)
