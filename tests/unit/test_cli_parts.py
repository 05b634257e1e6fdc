"""`tepui` as a whole: its parts come when they are called, and the shell completes what there is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter

from cli import completion
from cli.parts import PARTS, load
from tests.unit.served import api_of, served, tepui

# What daemons and connections need. (typer has pydantic check what it reads.)
PROGRAM = """
import sys
sys.argv = ["tepui", *sys.argv[1:]]
from cli import main
try:
    main.main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
HEAVY = (
    "grpc",
    "fastapi",
    "pydantic_settings",
    "uvicorn",
    "httpx2",
    "asyncio",
    "websockets",
    "pyroute2",
    "agent",
    "master",
)

READERS = {"list", "show", "versions", "usage", "log", "logs", "ls", "events", "explain", "top", "queue"}
READERS |= {"runs", "history", "deployments"}

router = APIRouter()


@router.get("/v2/apps")
async def apps(id: str = "") -> dict[str, list[dict[str, str]]]:
    return {"apps": [{"id": each} for each in ("/web", "/group/web", "/db") if id in each]}


@router.get("/v2/pods")
async def pods() -> list[dict[str, str]]:
    return [{"id": "/pod"}]


@router.get("/api/v1/nodes")
async def nodes() -> dict[str, list[dict[str, str]]]:
    return {"nodes": [{"id": "n1"}, {"id": "n2"}]}


@router.get("/api/v1/tasks")
async def tasks() -> dict[str, list[dict[str, str]]]:
    return {"unexpected": []}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with served(tmp_path, api_of(router), monkeypatch) as made:
        yield made.admin


def run(*words: str) -> tuple[str, set[str]]:
    """What a process of its own prints, and the packages that it has loaded."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True)
    (modules,) = done.stderr.splitlines()
    return done.stdout, {name.partition(".")[0] for name in modules.split()}


def complete(monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """What bash is told after Tab."""
    monkeypatch.setenv("_TEPUI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    out, loaded = run()
    assert loaded.isdisjoint(HEAVY)
    return out.split()


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_there_and_has_help(name: str) -> None:
    assert load(name).name == name and load(name).help
    shown = tepui(name, "--help")
    assert shown.status == 0 and f"tepui {name}" in shown.out


def test_help_needs_no_part_and_neither_does_wrong_usage() -> None:
    shown = tepui("--help")
    assert shown.status == 0 and all(name in shown.out for name in PARTS)
    assert tepui("servic").status == 2 and "'service'" in tepui("servic").err
    assert tepui().status == 2


def commands(name: str, found: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(found, "commands"):
        yield name, found
    for each, command in getattr(found, "commands", {}).items():
        yield from commands(f"{name} {each}", command)


def test_every_command_that_reads_has_json() -> None:
    known = [each for part in PARTS for each in commands(part, load(part))]
    readers = [(name, command) for name, command in known if name.split()[-1] in READERS]
    assert len(readers) > 30
    assert [name for name, command in readers if "--json" not in {o for p in command.params for o in p.opts}] == []


@pytest.mark.parametrize("words", [["--help"], ["service", "--help"], ["node", "--help"], ["task", "--help"]])
def test_what_daemons_need_is_not_loaded_for_help(words: list[str]) -> None:
    assert run(*words)[1].isdisjoint(HEAVY)


def test_commands_of_clients_do_not_load_daemons(api: Path) -> None:
    _, loaded = run("node", "list", "--json")
    assert "httpx2" in loaded and loaded.isdisjoint({"grpc", "fastapi", "uvicorn", "pyroute2", "agent", "master"})


def test_ids_are_completed(api: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete(monkeypatch, "tepui ser") == ["service"]
    assert complete(monkeypatch, "tepui service show /w") == ["/web"]
    assert complete(monkeypatch, "tepui service show w") == ["web"]
    assert complete(monkeypatch, "tepui node drain n") == ["n1", "n2"]
    assert complete(monkeypatch, "tepui pod show ") == ["/pod"]


def test_completion_is_silent_when_there_is_no_answer(
    api: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert complete(monkeypatch, "tepui task show w") == []  # not what was asked for
    assert complete(monkeypatch, "tepui network show o") == []  # 404
    admin = json.loads(api.read_text())
    for change in ({"token": "wrong"}, {"url": "https://127.0.0.1:1"}, {"server_name": "other"}, {"ca": "none"}):
        (tmp_path / "other.json").write_text(json.dumps(admin | change))
        monkeypatch.setenv("TEPUI_ADMIN", str(tmp_path / "other.json"))
        assert completion.nodes("n") == []
    monkeypatch.setenv("TEPUI_ADMIN", str(tmp_path / "none.json"))
    assert complete(monkeypatch, "tepui node show n") == []
