"""What passes between the agent and the name server: packets of JSON, and in them sockets that listen for names."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from model.network import Address

T = TypeVar("T")

LONGEST = 1 << 18  # octets of a packet
PART = 1 << 15  # octets of things in a packet
BACKLOG = 128
IP_FREEBIND = 15  # linux/in.h, of IPv6 too: the address may come later, or be gone for a moment


async def send(sock: socket.socket, said: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    while True:
        try:
            socket.send_fds(sock, [json.dumps(said).encode()], descriptors)
            return
        except BlockingIOError:
            await _writable(sock)


async def receive(sock: socket.socket) -> dict[str, Any]:
    packet = await asyncio.get_running_loop().sock_recv(sock, LONGEST)
    if not packet:
        raise ConnectionResetError("the name server has ended")
    said: dict[str, Any] = json.loads(packet)
    return said


def parts(items: Iterable[T]) -> Iterator[list[T]]:
    """Each of a size that is far from what a packet may have."""
    part: list[T] = []
    size = 0
    for item in items:
        part.append(item)
        size += len(json.dumps(item))
        if size > PART:
            yield part
            part, size = [], 0
    if part:
        yield part


def bound(address: Address, port: int) -> tuple[socket.socket, socket.socket]:
    """UDP and TCP. Several processes may be bound to the same, of one user: the next is before the last goes."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sockets = []
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            sock.bind((str(address), port))
        sockets[1].listen(BACKLOG)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets[0], sockets[1]


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(sock)
