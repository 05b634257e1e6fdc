"""Waiting for something to become true in machines that are slow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

POLL_S = 0.5

Result = TypeVar("Result")


class NotYet(Exception):
    """A command failed. That may be an answer which is not there yet; the text is what it wrote."""


def eventually(condition: Callable[[], Result], what: str, deadline_s: float) -> Result:
    """What `condition` returns when it is true at last."""
    end = time.monotonic() + deadline_s
    reason = ""
    while True:
        try:
            if result := condition():
                return result
        except NotYet as error:
            reason = f" ({error})"
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}{reason}"
        time.sleep(POLL_S)
