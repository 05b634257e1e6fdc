"""The process that answers for names. It outlives the agent, as containers do: while no agent is here it goes on with
what it was told last, and the next agent finds it.

Executed with a listening socket (`client.py` is the other side, and what is said between them is told there). What
comes from containers is parsed here, so it has no rights: it becomes nobody once it has read its own code, and opens
no port; sockets come to it open.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import socket
import sys
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from netns.dns.channel import LONGEST
from netns.dns.dcos import Domains
from netns.dns.forward import Forwarder
from netns.dns.server import Server
from netns.dns.table import from_wire, scope_from_wire
from netns.dns.zone import Zone

NAME = "tepui-names"
NOBODY = 65_534
PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
MOST_OPEN = 4096
MOST_MEMORY = 512 << 20


class Process:
    def __init__(self, hello: dict[str, Any], domains: Domains, forwarder: Forwarder) -> None:
        self._hello = hello
        self._zone = Zone(domains)
        self._server = Server(self._zone, forwarder)
        self._seen: set[str] | None = None  # keys that were put, since an agent began to tell all
        self._over = asyncio.Event()
        self._talk: asyncio.Task[None] | None = None

    async def run(self, control: socket.socket) -> None:
        """Until an agent says that it is over. Of several agents the last to come is heard."""
        loop = asyncio.get_running_loop()
        control.setblocking(False)
        loop.add_reader(control, self._greet, control)
        await self._over.wait()
        for address in self._server.listening:
            self._server.silence(address)

    def _greet(self, control: socket.socket) -> None:
        try:
            agent, _ = control.accept()
        except OSError:
            return
        if self._talk is not None:
            self._talk.cancel()
        agent.setblocking(False)
        agent.send(json.dumps({**self._hello, "listening": list(map(str, self._server.listening))}).encode())
        self._talk = asyncio.create_task(self._listen_to(agent))

    async def _listen_to(self, agent: socket.socket) -> None:
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(agent, readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                if not self._hear_all(agent):
                    return
        finally:
            loop.remove_reader(agent)
            agent.close()

    def _hear_all(self, agent: socket.socket) -> bool:
        """What there is to hear. False: nobody speaks any more."""
        while True:
            try:
                packet, descriptors, _, _ = socket.recv_fds(agent, LONGEST, 2)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not packet:
                return False
            self._hear(agent, json.loads(packet), [socket.socket(fileno=number) for number in descriptors])

    def _hear(self, agent: socket.socket, said: dict[str, Any], sockets: list[socket.socket]) -> None:
        if "listen" in said:
            self._server.listen(ip_address(said["listen"]), *sockets)
        for address in said.get("silence", ()):
            self._server.silence(ip_address(address))
        if "scopes" in said:
            self._server.configure(tuple(map(scope_from_wire, said["scopes"])))
        if said.get("all") == "begins":
            self._seen = set()
        for key, thing in said.get("put", {}).items():
            self._zone.put(key, from_wire(thing))
            if self._seen is not None:
                self._seen.add(key)
        for key in said.get("remove", ()):
            self._zone.remove(key)
        if said.get("all") == "ends":
            for key in self._zone.keys() - (self._seen or set()):
                self._zone.remove(key)
            self._seen = None
        self._server.names_changed()
        if "done" in said:
            with suppress(OSError):  # then it does not want to know
                agent.send(json.dumps({"done": said["done"]}).encode())
        if said.get("over"):
            self._over.set()


def main(control: int, settings: str) -> None:
    Path("/proc/self/comm").write_text(NAME)
    said = json.loads(settings)
    domains = Domains(said["domain"], said["compat"], tuple(map(ip_address, said["master"])))
    forwarder = Forwarder(tuple(map(ip_address, said["upstreams"])))
    give_up_rights()
    hello = {"digest": said["digest"], "pid": os.getpid()}
    with socket.socket(fileno=control) as listening:
        asyncio.run(Process(hello, domains, forwarder).run(listening))


def give_up_rights() -> None:
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    for kind, most in ((resource.RLIMIT_NOFILE, MOST_OPEN), (resource.RLIMIT_AS, MOST_MEMORY)):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
