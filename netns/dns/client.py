"""The agent's side of the node's name server: finds the process or starts it, opens its ports, and tells it what there
is.

What is said between them, JSON, one object a packet (any of these keys, in this order of effect):

    {"listen": ADDRESS}       with two sockets that are bound to it, UDP and TCP
    {"silence": [ADDRESS]}    {"scopes": [...]}    {"put": {KEY: THING}}    {"remove": [KEY]}
    {"all": "begins"}         {"all": "ends"}      what is not put between these is no more
    {"done": N}               answered by the same: all that came before is so
    {"over": true}            it ends

The process says first {"digest": ..., "pid": ..., "listening": [ADDRESS]}. One of another digest is of another version,
or for another domain: it is told that it is over when the new one knows everything, and both answer meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import structlog

from model.network import Address
from netns.dns.channel import LONGEST, bound, parts, receive, send
from netns.dns.table import NameTable, Thing, scope_to_wire, to_wire
from netns.driver import NetworkError
from netns.spec import KERNEL_IPV6

log = structlog.get_logger()

SOCKET, LOG = "names.sock", "names.log"
PORT = 53
SO_SNDBUFFORCE = 32  # asm-generic/socket.h
ANSWER_DEADLINE_S = 10.0
RETRY_S = 2.0
PROJECT = Path(__file__).resolve().parents[2]
CODE = ("model/names.py", "netns/dns/*.py")


class NameServer:
    """Implements `netns.dns.table.Names`. `directory` is private, and empty after a reboot."""

    def __init__(
        self,
        directory: Path,
        domain: str,
        *,
        compat: bool = True,
        master: Sequence[Address] = (),
        upstreams: Sequence[Address] = (),
        port: int = PORT,
    ) -> None:
        self._directory = directory
        self._port = port
        settings: dict[str, Any] = {
            "domain": domain,
            "compat": compat,
            "master": [str(address) for address in master],
            "upstreams": [str(address) for address in upstreams],
        }
        self._settings = {**settings, "digest": _digest(settings)}
        self._turn = asyncio.Lock()
        self._socket: socket.socket | None = None
        self._lost = asyncio.Event()
        self._table: NameTable | None = None
        self._told: Mapping[str, Thing] | None = None  # to the process that is there now
        self._listening: set[Address] = set()
        self._refused: set[Address] = set()  # where it can not listen
        self._count = 0
        self._process: subprocess.Popen[bytes] | None = None  # that this agent has started
        self._pidfd = -1  # of the process that is there now

    async def apply(self, table: NameTable) -> None:
        async with self._turn:
            self._table = table
            if self._socket is not None:
                asyncio.get_running_loop().remove_reader(self._socket)
            try:
                async with asyncio.timeout(ANSWER_DEADLINE_S):
                    await self._tell(table)
            except TimeoutError as error:
                self._kill()
                raise self._failed("no answer") from error
            except OSError as error:
                raise self._failed(str(error)) from error
            finally:
                self._watch()

    async def keep(self) -> None:
        """Until cancelled: another process in place of one that has ended, and another attempt at what was refused."""
        while True:
            await self._lost.wait()
            self._lost.clear()
            if self._table is None:
                continue
            try:
                await self.apply(self._table)
            except NetworkError as error:
                log.error("names are not answered", reason=str(error))
            if self._lost.is_set():
                await asyncio.sleep(RETRY_S)

    async def close(self, *, needed: bool) -> None:
        """What is `needed` goes on without the agent."""
        async with self._turn:
            if not needed:
                with suppress(OSError):
                    if self._socket is None:
                        self._socket = await self._connect()
                    await self._send({"over": True})
            self._disconnect()

    def _failed(self, reason: str) -> NetworkError:
        self._disconnect()
        self._lost.set()
        return NetworkError(f"tell the name server what there is: {reason}")

    async def _tell(self, table: NameTable) -> None:
        late = None
        if self._socket is None or self._gone():
            self._disconnect()
            late = await self._find()
        before, self._told = self._told, None  # should this be given up in the middle, the next time all is told
        things = table.things
        put = {key: thing for key, thing in things.items() if before is None or before.get(key) is not thing}
        removed = before.keys() - things.keys() if before is not None else ()
        if before is None:
            await self._send({"all": "begins"})
        await self._send({"scopes": [scope_to_wire(scope) for scope in table.scopes]})
        for part in parts((key, to_wire(thing)) for key, thing in put.items()):
            await self._send({"put": dict(part)})
        for names in parts(removed):
            await self._send({"remove": names})
        if before is None:
            await self._send({"all": "ends"})
        await self._listen(table.listen)
        self._count += 1
        await self._send({"done": self._count})
        while (await self._hear()).get("done") != self._count:
            pass
        self._told = dict(things)
        if late is not None:
            await _end(late)

    async def _listen(self, wanted: Iterable[Address]) -> None:
        """What can not be listened on does not keep anybody from the rest."""
        gone = self._listening - set(wanted)
        if gone:
            await self._send({"silence": sorted(map(str, gone))})
            self._listening -= gone
        there = {address for address in wanted if address.version == 4 or KERNEL_IPV6.exists()}
        for address in sorted(there - self._listening, key=str):
            try:
                sockets = bound(address, self._port)
            except OSError as error:
                if address not in self._refused:
                    said = {"address": str(address), "port": self._port, "reason": error.strerror}
                    log.error("names are not answered here, trying again", **said)
                self._refused.add(address)
                asyncio.get_running_loop().call_later(RETRY_S, self._lost.set)
                continue
            self._refused.discard(address)
            try:
                await self._send({"listen": str(address)}, [sock.fileno() for sock in sockets])
            finally:
                for sock in sockets:
                    sock.close()
            self._listening.add(address)

    async def _find(self) -> socket.socket | None:
        """Connects to the process, and starts one if there is none that will do. Returns the connection to one that is
        to end."""
        late = None
        with suppress(OSError):
            found = await self._connect()
            hello = await receive(found)
            if hello.get("digest") == self._settings["digest"]:
                self._take(found, hello)
                self._listening = set(map(ip_address, hello["listening"]))
                log.info("name server found", pid=hello["pid"])
                return None
            late = found
        self._start()
        fresh = await self._connect()
        hello = await receive(fresh)
        self._take(fresh, hello)
        log.info("name server started", pid=hello["pid"])
        return late

    def _take(self, found: socket.socket, hello: dict[str, Any]) -> None:
        self._socket = found
        self._pidfd = os.pidfd_open(hello["pid"])

    def _kill(self) -> None:
        """It does not answer any more, and would keep its ports."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _start(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            with suppress(FileNotFoundError):
                self._at(os.unlink)
            self._at(control.bind)
            control.listen()
            # -P: the module must be this project's, whatever the working directory holds.
            command = (sys.executable, "-P", "-m", "netns.dns.process", str(control.fileno()))
            # Not asyncio's: that ends its processes with the loop. Nor has it this process' output, which may be a pipe
            # whose reader waits for the end.
            with (self._directory / LOG).open("wb") as log_file:
                self._process = subprocess.Popen(
                    (*command, json.dumps(self._settings)),
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=log_file,
                    pass_fds=(control.fileno(),),
                    env={**os.environ, "PYTHONPATH": str(PROJECT)},
                )

    async def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 2 * LONGEST)
        try:
            self._at(sock.connect)
        except OSError:
            sock.close()
            raise
        return sock

    def _at(self, use: Callable[[str], object]) -> None:
        """With the socket's path, in few letters: there may be no more than 107."""
        directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            use(f"/proc/self/fd/{directory}/{SOCKET}")
        finally:
            os.close(directory)

    def _gone(self) -> bool:
        assert self._socket is not None
        try:
            return not self._socket.recv(LONGEST, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _disconnect(self) -> None:
        if self._process is not None:
            self._process.poll()  # else one that has ended would stay a zombie
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._socket, self._pidfd, self._told, self._listening = None, -1, None, set()

    async def _send(self, said: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        assert self._socket is not None
        await send(self._socket, said, descriptors)

    async def _hear(self) -> dict[str, Any]:
        assert self._socket is not None
        return await receive(self._socket)

    def _watch(self) -> None:
        """The end of the process is heard of by the socket."""
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._stirred)

    def _stirred(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
        self._lost.set()


async def _end(late: socket.socket) -> None:
    with late, suppress(OSError):
        await send(late, {"over": True})


def _digest(settings: Mapping[str, Any]) -> str:
    """Of the settings and the code."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for pattern in CODE:
        for path in sorted(PROJECT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()
