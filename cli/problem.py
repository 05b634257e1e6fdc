"""What is told to the person at the command line, instead of a traceback."""

from __future__ import annotations


class Problem(Exception):
    """What is wrong, and what to do next, in one line."""
