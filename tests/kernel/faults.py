"""A crash between any two steps. Every change to the kernel or the disk counts as a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import pytest

from netns import container, durable, reconcile
from netns.ipam import leases
from netns.netlink import Netlink, Operation

MOST_STEPS = 400


class Crash(Exception):
    """As if the process had been killed here."""


@dataclass
class Steps:
    """Lets `left` steps happen."""

    left: int = MOST_STEPS

    def step(self) -> None:
        if self.left == 0:
            raise Crash
        self.left -= 1


def steps_of(monkeypatch: pytest.MonkeyPatch, *more: tuple[Any, str], counting: Steps | None = None) -> Steps:
    """`more` are further functions, by where they are and their names, each call of which is a step."""
    counting = counting or Steps()
    apply = Netlink.apply

    async def stepwise(self: Netlink, operations: Sequence[Operation]) -> None:
        for operation in operations:
            counting.step()
            await apply(self, [operation])

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            counting.step()
            return function(*arguments, **named)

        return call

    monkeypatch.setattr(Netlink, "apply", stepwise)
    for module, name in (
        (reconcile, "write"),
        (container, "write"),
        (durable, "write_synced"),
        (durable, "sync_directory"),
        (leases, "write_synced"),
        (leases, "sync_directory"),
        (leases, "_rest"),
        *more,
    ):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return counting
