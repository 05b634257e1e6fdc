"""Waiting for what was begun, for as long as a person has patience. The master may be away for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from cli.output import print_json
from cli.problem import Problem, Unreachable
from cli.progress import Step, progress

POLL_S = 0.5
OUTAGE_S = 60.0  # so long the master may be away, as when it is started again

Wait = Annotated[bool, typer.Option("--wait", "-w", help="Until it is done: exit status 1 if it comes to nothing.")]
Timeout = Annotated[
    float | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="Wait so long at most. It goes on without.")
]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """What was said of waiting, and whether the end is to be told as JSON."""

    wait: bool
    timeout: float | None
    json: bool

    @property
    def waits(self) -> bool:
        return self.wait or self.timeout is not None


def begin(told: str, answer: Any, patience: Patience) -> None:
    """What there is to say before anybody waits."""
    if not patience.json:
        typer.echo(told)
    elif not patience.waits:
        print_json(answer)


def await_end(
    read: Callable[[], T], over: Callable[[T], bool], step: Callable[[T], Step], timeout: float | None, see: str
) -> T:
    """What was read when it was over. Raises Problem when it takes longer; `see` is the command that tells then."""
    begun = answered = time.monotonic()
    last = Step(0, 0, "the master does not answer")
    with progress() as tell:
        while True:
            try:
                found = read()
                if over(found):
                    return found
                last, answered = step(found), time.monotonic()
                tell(last)
            except Unreachable:
                if time.monotonic() - answered > OUTAGE_S:
                    raise
            if timeout is not None and time.monotonic() - begun >= timeout:
                raise Problem(f"not done after {timeout:g} s: {last.text}. It goes on: {see}")
            time.sleep(POLL_S)
