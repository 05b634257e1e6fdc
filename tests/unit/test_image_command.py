"""What `tepui image` shows of what happens on the nodes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli import image
from cli.problem import Problem

PROGRESS = {"reference": "a:1", "layers": 5, "layers_done": 2, "bytes": 80, "bytes_done": 34, "note": "", "message": ""}
PULLED = {"reference": "a:1", "digest": "sha256:1", "bytes": 1 << 20}


def test_lines_that_come_in_pieces_are_put_together() -> None:
    lines = b"".join(json.dumps({"node": name}).encode() + b"\n" for name in ("n1", "n2"))
    pieces = [lines[:5], lines[5:21], lines[21:]]
    assert list(image._events(pieces)) == [{"node": "n1"}, {"node": "n2"}]


def test_standard_output_has_an_outcome_for_each_node(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[dict[str, Any]] = [
        {"node": "n1", "progress": PROGRESS | {"layers": 0}},
        {"node": "n1", "progress": PROGRESS},
        {"node": "n2", "done": {"freed_bytes": 3 << 20}},
        {"node": "n1", "done": {"image": PULLED}},
        {"node": "n3", "error": "not found"},
    ]
    assert list(image._shown(events)) == events
    assert capsys.readouterr().out == "n2: 3 MiB freed\nn1: a:1 sha256:1 (1 MiB)\n"


def test_nodes_that_failed_are_an_error() -> None:
    with pytest.raises(Problem, match="^n1: it is not connected; n3: not found$"):
        image._refuse_errors({"n3": "not found", "n1": "it is not connected"})
    image._refuse_errors({})
