"""Rtnetlink in batches: many operations, one system call, one answer for each.

What container networking pays for is round trips and socket set-up, not the kernel's work. So a socket is kept open
for the node's own namespace, and operations are data (`describe` for the log and the error, `message` for the kernel)
that go out together. The kernel works through a batch in order and does not stop at an error: callers put what may
only happen after a success in a batch of its own.

pyroute2 encodes and decodes. What it would do around that (a queue for every message, a task for every answer) takes
longer than the kernel's work, and the kernel has answered when it was told. Errors end here, as NetworkError with the
operation that failed.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any, ClassVar, Self

from netns.driver import NetworkError

ANSWER_DEADLINE_S = 10.0
BATCH_SIZE = 256  # the acknowledgements of a batch fit into the socket's receive buffer

# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
ERROR = struct.Struct("=i")  # the first of struct nlmsgerr
RECEIVE_BYTES = 1 << 16

# linux/sockios.h, linux/if.h: struct ifreq with its flags
SIOCGIFFLAGS, IFF_UP = 0x8913, 1
IFREQ = struct.Struct("16sh14x")

# A message of pyroute2: a mapping with a header, fields and a list of attributes. The library has no types.
Message = Any
# Link names to indexes. Raises NetworkError for a link that does not exist.
IndexOf = Callable[[str], int]


class Operation(ABC):
    """One change. `tolerates` are the errors that mean it was done before. A `slow` one takes the kernel milliseconds,
    during which the event loop must go on."""

    __slots__ = ()
    tolerates: ClassVar[frozenset[int]] = frozenset()
    slow: ClassVar[bool] = False

    @abstractmethod
    def describe(self) -> str: ...

    @abstractmethod
    def message(self, index_of: IndexOf) -> Message:
        """Raises NetworkError when a link that it needs does not exist."""


@dataclass(slots=True)
class Answer:
    """To one message: `error` is a number of errno, or 0; `parts` are the messages of a dump, or one link."""

    parts: list[bytes] = field(default_factory=list)
    error: int = 0
    complete: bool = False


class Netlink:
    """A socket in one network namespace, and how links are found there: by default the calling thread's."""

    def __init__(self, sock: socket.socket | None = None, index_of: IndexOf | None = None) -> None:
        self._given = sock is not None
        self._socket = sock or open_socket()
        self.index_of = index_of or link_index
        self._sequence = count(1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    @property
    def port(self) -> int:
        """By which the kernel says whose change it tells of (struct nlmsghdr: nlmsg_pid)."""
        port: int = self._socket.getsockname()[0]
        return port

    async def apply(self, operations: Sequence[Operation]) -> None:
        """Perform all of them, in order. Raises NetworkError for the first that failed; the others were tried."""
        for start in range(0, len(operations), BATCH_SIZE):
            await self._apply_batch(operations[start : start + BATCH_SIZE])

    async def _apply_batch(self, operations: Sequence[Operation]) -> None:
        messages = [operation.message(self.index_of) for operation in operations]
        what = "; ".join(operation.describe() for operation in operations[:3])
        if any(operation.slow for operation in operations) and not self._given:
            answers = await self._exchange_aside(messages, what)
        else:
            answers = self._exchange(self._socket, messages, what)
        for operation, answer in zip(operations, answers, strict=True):
            if answer.error and answer.error not in operation.tolerates:
                raise NetworkError(f"{operation.describe()}: {os.strerror(answer.error)}")

    async def read(
        self,
        message: Message,
        what: str,
        wanted: Callable[[bytes], bool] = lambda part: True,
        kind: type[Message] | None = None,
    ) -> list[Message]:
        """The answer to one question: all of its messages that are `wanted`, as `kind` (by default, that of the
        question). A link that does not exist has an empty answer."""
        [answer] = self._exchange(self._socket, [message], f"read {what}")
        if answer.error in (0, errno.ENODEV, errno.ENOENT):
            return [_decoded(kind or type(message), part) for part in answer.parts if wanted(part)]
        raise NetworkError(f"read {what}: {os.strerror(answer.error)}")

    async def _exchange_aside(self, messages: Sequence[Message], what: str) -> list[Answer]:
        """By another socket in a thread: the event loop goes on, and so does who has something quick to do."""
        with open_socket() as aside:
            return await asyncio.to_thread(self._exchange, aside, messages, what)

    def _exchange(self, sock: socket.socket, messages: Sequence[Message], what: str) -> list[Answer]:
        """The kernel does the work while it is sent, in the calling thread, so the answers are there already."""
        answers = {next(self._sequence): Answer() for _ in messages}
        data = b"".join(_encoded(message, number) for message, number in zip(messages, answers, strict=True))
        try:
            sock.send(data)
            while not all(answer.complete for answer in answers.values()):
                _sort(sock.recv(RECEIVE_BYTES), answers)
        except TimeoutError as error:
            raise NetworkError(f"{what}: no answer from the kernel within {ANSWER_DEADLINE_S:g} s") from error
        except OSError as error:
            raise NetworkError(f"{what}: {error.strerror}") from error
        return list(answers.values())


def open_socket() -> socket.socket:
    """A netlink socket in the network namespace of the calling thread."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    # Strict checking makes the kernel filter dumps by link, instead of ignoring that it was asked to.
    sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
    sock.settimeout(ANSWER_DEADLINE_S)
    sock.bind((0, 0))
    return sock


def link_index(name: str) -> int:
    """The index of a link in the network namespace of the calling thread."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise NetworkError(f"link {name}: {os.strerror(errno.ENODEV)}") from error


def link_exists(name: str) -> bool:
    """Whether a link is there, in the network namespace of the calling thread."""
    try:
        return bool(socket.if_nametoindex(name))
    except OSError:
        return False


def link_is_up(name: str) -> bool:
    """Whether a link is there and set up, in the network namespace of the calling thread."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, SIOCGIFFLAGS, IFREQ.pack(name.encode(), 0))
        except OSError:
            return False
    return bool(IFREQ.unpack(answer)[1] & IFF_UP)


def link_names() -> dict[int, str]:
    """By index, of all links in the network namespace of the calling thread."""
    return dict(socket.if_nameindex())


def request(message: Message, kind: int, flags: int) -> Message:
    """`message` with its header: `kind` is RTM_..., `flags` are added to those every change needs."""
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | flags
    return message


def dump(message: Message, kind: int) -> Message:
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_DUMP
    return message


def _encoded(message: Message, sequence: int) -> bytes:
    message["header"]["sequence_number"] = sequence
    message["header"]["pid"] = 0
    message.reset()
    message.encode()
    return bytes(message.data)


def _sort(packet: bytes, answers: dict[int, Answer]) -> None:
    """Add what is in a packet to the answers. They begin at multiples of four bytes."""
    position = 0
    while position < len(packet):
        length, kind, _, sequence, _ = HEADER.unpack_from(packet, position)
        # What comes late, after somebody had given up, is of no interest.
        answer = answers.get(sequence, Answer())
        if kind == NLMSG_ERROR:
            answer.error, answer.complete = -ERROR.unpack_from(packet, position + HEADER.size)[0], True
        elif kind == NLMSG_DONE:
            answer.complete = True
        else:
            answer.parts.append(packet[position : position + length])
        position += length + 3 & ~3


def _decoded(kind: type[Message], part: bytes) -> Message:
    message = kind(part)
    message.decode()
    return message
