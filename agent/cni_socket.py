"""The agent's end of `tepui-cni`: a Unix socket, one request a connection, a line of JSON each way.

    {"command": "ADD", "environment": {"CNI_CONTAINERID": ..., ...}, "configuration": {...}}
    {"result": {...}}  or  {"error": {"code": 11, "msg": ..., "details": ...}}

Who may connect is root: the socket's mode says so, and the kernel is asked who did (SO_PEERCRED), since a container may
have been given the socket as a file. What a client may cost is bounded all the same: its size, its time, its number.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any

import structlog

from agent.cni_request import (
    FAILED,
    IO_FAILURE,
    NOT_AVAILABLE,
    NOT_DECODED,
    TRY_AGAIN_LATER,
    Refused,
    Request,
    parse,
)
from agent.cni_result import result
from agent.foreign import Foreign
from netns.driver import NetworkError
from netns.networks import Networks

MAX_REQUEST = 2 << 20  # twice what the plug-in takes, for what JSON makes of it
REQUEST_S = 5.0
ANSWER_S = 5.0
MOST_CLIENTS = 64
MODE, DIRECTORY_MODE = 0o600, 0o700
UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid

log = structlog.get_logger()


class CniSocket:
    """`ready`: the node's networks are there."""

    def __init__(self, path: Path, foreign: Foreign, networks: Networks, ready: asyncio.Event) -> None:
        self._path = path
        self._foreign = foreign
        self._networks = networks
        self._ready = ready
        self._clients: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled. An agent that can not have its socket goes on without: its own containers need none."""
        try:
            listening = _listen(self._path)
        except OSError as error:
            log.error("no other runtime can attach containers", socket=str(self._path), reason=str(error))
            return
        server = await asyncio.start_unix_server(self._welcome, sock=listening, limit=MAX_REQUEST)
        try:
            await server.serve_forever()
        finally:
            self._path.unlink(missing_ok=True)
            for client in self._clients:
                client.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.current_task()
        assert client is not None
        self._clients.add(client)
        try:
            answer = await self._answer(reader, writer)
            writer.transport.set_write_buffer_limits(0)  # `drain` waits for all of it
            async with asyncio.timeout(ANSWER_S):
                writer.write(json.dumps(answer).encode("ascii") + b"\n")
                await writer.drain()
        except (OSError, TimeoutError):
            pass  # it has left, or does not listen
        finally:
            self._clients.discard(client)
            writer.transport.abort()  # should the answer not be in the kernel, nobody reads it

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, Any]:
        request: Request | None = None
        try:
            _refuse_others(writer)
            if len(self._clients) > MOST_CLIENTS:
                raise Refused(TRY_AGAIN_LATER, f"{MOST_CLIENTS} requests are under way already")
            request = parse(await _line(reader))
            return {"result": await self._perform(request)}
        except Refused as error:
            return _error(request, error.code, str(error))
        except NetworkError as error:
            return _error(request, FAILED, str(error))
        except OSError as error:
            return _error(request, IO_FAILURE, str(error))

    async def _perform(self, request: Request) -> dict[str, Any]:
        match request.command:
            case "STATUS":
                self._refuse_unready(request, NOT_AVAILABLE, NOT_AVAILABLE)
            case "ADD":
                self._refuse_unready(request, TRY_AGAIN_LATER, FAILED)
                endpoint = await self._foreign.add(request)
                return result(endpoint, request.netns, request.version, request.dns)
            case "CHECK":
                self._refuse_unready(request, TRY_AGAIN_LATER, FAILED)
                await self._foreign.check(request)
            case "DEL":
                await self._foreign.remove(request)
            case "GC":
                await self._foreign.collect(request)
        return {}

    def _refuse_unready(self, request: Request, early: int, unknown: int) -> None:
        if not self._ready.is_set():
            raise Refused(early, "the agent is starting, and does not know its networks yet")
        if request.network not in (linked := self._networks.linked):
            others = f"what does: {', '.join(linked)}" if linked else "nothing does"
            raise Refused(unknown, f'network "{request.network}": gives no link on this node; {others}')


def _listen(path: Path) -> socket.socket:
    """Nobody but root gets as far as to the check of who it is. Raises OSError."""
    path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    status = path.parent.stat()
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path.parent}: others than root can change it")
    if _answers(path):
        raise FileExistsError(f"{path}: another agent listens there")
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(os.fspath(path))
        path.chmod(MODE)  # before anybody can connect, which takes `listen`
    except BaseException:
        listening.close()
        raise
    return listening


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its queue is full
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def _refuse_others(writer: asyncio.StreamWriter) -> None:
    peer: socket.socket = writer.get_extra_info("socket")
    pid, uid, _ = UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    if uid != 0:
        raise Refused(IO_FAILURE, f"user {uid} (process {pid}) may not attach containers: root may")


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(REQUEST_S):
            return await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        raise Refused(NOT_DECODED, f"the request is larger than {MAX_REQUEST >> 20} MiB") from None
    except asyncio.IncompleteReadError:
        raise Refused(NOT_DECODED, "the request ends within a line") from None
    except TimeoutError:
        raise Refused(IO_FAILURE, f"the request did not come within {REQUEST_S:g} s") from None


def _error(request: Request | None, code: int, text: str) -> dict[str, Any]:
    about = {} if request is None else {"command": request.command, "container": request.container}
    log.warning("refused another runtime", **about, code=code, reason=text)
    details = "" if request is None or not request.container else f"container {request.container}"
    return {"error": {"code": code, "msg": text, "details": details}}
