"""Which form of an answer a client gets."""

from __future__ import annotations

import pytest

from master.rest.accept import preferred

JSON, TEXT = "application/json", "text/plain"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("text/plain", TEXT),
        ("Text/Plain; charset=utf-8", TEXT),
        ("application/json, text/plain", JSON),
        ("text/plain, application/json;q=0.9", TEXT),
        ("text/plain;q=0.5, application/json", JSON),
        ("text/html, text/plain;q=0.1, */*", TEXT),
        ("text/plain;q=0", JSON),
        ("text/plain;q=x", JSON),
        ("text/plain;q=nan, text/plain;q=", JSON),
        (",;,", JSON),
        ("image/png", JSON),
    ],
)
def test_preferred(accept: str, expected: str) -> None:
    assert preferred(accept, JSON, TEXT) == expected
