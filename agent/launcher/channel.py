"""JSON messages over a SOCK_SEQPACKET socket: between agent and launcher, agent and keeper, keeper and init.

One message is one packet, so there is nothing to frame. The end of the other side is a message too: None.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

MAX_MESSAGE = 64 * 1024
MAX_DESCRIPTORS = 253  # SCM_MAX_FD: with one message

Message = dict[str, Any]


class SetupError(Exception):
    """A step on the way to a running container failed: which `operation`, on which `path`, with which `errno`."""

    def __init__(self, operation: str, path: str, errno: int) -> None:
        super().__init__(f"{operation}: {path}: {os.strerror(errno)}")
        self.operation, self.path, self.errno = operation, path, errno

    def message(self) -> Message:
        return {"event": "error", "operation": self.operation, "path": self.path, "errno": self.errno}


def failed(operation: str, error: OSError) -> SetupError:
    return SetupError(operation, str(error.filename or ""), error.errno or 0)


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, message: Message) -> None:
    channel.send(encode(message))


def receive(channel: socket.socket) -> Message | None:
    try:
        return decode(channel.recv(MAX_MESSAGE))
    except ConnectionResetError:  # it ended with messages of ours unread
        return None


def send_open(channel: socket.socket, message: Message, descriptors: list[int]) -> None:
    socket.send_fds(channel, [encode(message)], descriptors)


def receive_open(channel: socket.socket) -> tuple[Message | None, list[int]]:
    """With the descriptors that came with it, which are not inherited by programs that are executed."""
    try:
        packet, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None, []
    return decode(packet), descriptors


def encode(message: Message) -> bytes:
    return json.dumps(message).encode()


def decode(packet: bytes) -> Message | None:
    message: Message | None = json.loads(packet) if packet else None
    return message
