"""An API for commands to talk to: over TLS, by a thread of its own, with credentials as `tepui master init` writes
them.

`tepui` is the command itself, in this process: what it prints, and its exit status.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from fastapi import APIRouter
from starlette.types import ASGIApp
from typer.testing import CliRunner

from cli import main
from cli.admin import ADMIN_FILE, Admin
from cli.problem import Problem
from master.rest.app import create_app
from master.rest.server import serving
from pki.authority import Authority
from pki.credentials import issue_to, server_context
from pki.identity import Identity, Role

DEADLINE_S = 20.0
TOKEN = "t"

Api = Callable[[], AbstractAsyncContextManager[ASGIApp]]


@dataclass(frozen=True, slots=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.out.splitlines()]


@dataclass(frozen=True, slots=True)
class Served:
    """`admin` is the file with the credentials."""

    admin: Path
    loop: asyncio.AbstractEventLoop

    def do(self, act: Callable[[], object]) -> None:
        """In the thread of the API."""

        async def acted() -> None:
            act()

        asyncio.run_coroutine_threadsafe(acted(), self.loop).result(DEADLINE_S)


def tepui(*words: str, data: str = "") -> Done:
    result = CliRunner().invoke(main.app, words, input=data, prog_name="tepui")
    if isinstance(result.exception, Problem):  # which `main` prints
        return Done(1, result.stdout, f"{result.stderr}tepui: {result.exception}\n")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


@contextmanager
def served(directory: Path, api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Commands find the credentials by themselves."""
    authority = Authority.create(directory / "pki", "tepui.internal")
    master = issue_to(directory / "pki", authority, Identity(Role.MASTER, "master", "tepui.internal"), ("localhost",))
    ports: list[int] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with api() as app, serving(app, "127.0.0.1", 0, server_context(directory / "pki")) as port:
            ports.append(port)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(DEADLINE_S)
        admin = Admin(f"https://127.0.0.1:{ports[0]}", master.ca.decode(), master.identity.server_name, TOKEN)
        file = directory / ADMIN_FILE
        file.write_text(json.dumps(asdict(admin)))
        monkeypatch.setenv("TEPUI_ADMIN", str(file))
        yield Served(file, loop)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def api_of(*routers: APIRouter) -> Api:
    """With the master's own door."""

    @asynccontextmanager
    async def api() -> AsyncIterator[ASGIApp]:
        yield create_app(lambda token: token == TOKEN, routers, ("/ping",))

    return api
