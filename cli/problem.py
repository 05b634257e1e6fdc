"""What is told to the person at the command line, instead of a traceback.

Problem
    Refused      the master says no: what it says is in `status` and `body`
    Unreachable  there is no answer, or it broke off: the same may succeed later
"""

from __future__ import annotations

from typing import Any


class Problem(Exception):
    """What is wrong, and what to do next, in one line."""


class Refused(Problem):
    """By the master, with this HTTP status and body (JSON; None when it is none)."""

    def __init__(self, text: str, status: int, body: Any) -> None:
        super().__init__(text)
        self.status = status
        self.body = body


class Unreachable(Problem):
    """The master, or the connection to it has broken."""
