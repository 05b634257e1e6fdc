"""What goes wrong with labs."""

from __future__ import annotations


class LabError(Exception):
    """The text names the operation and the object, and what to do where that is known."""
