"""Tables of commands: what is in a cell is shown as it is."""

from __future__ import annotations

import pytest

from cli.output import print_table


def test_addresses_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("ADDRESS", "#COUNT", "NAME"), [("fd01:b::1", 1, "[fd01:a::7]:80"), ("[red]", None, "")])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["ADDRESS", "COUNT", "NAME"]
    assert first.split() == ["fd01:b::1", "1", "[fd01:a::7]:80"]
    assert second.split() == ["[red]", "-", "-"]
