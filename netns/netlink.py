"""Rtnetlink in batches: many operations, one system call, one answer for each.

What container networking pays for is round trips and socket set-up, not the kernel's work. So a socket is kept open
for the node's own namespace, and operations are data (`describe` for the log and the error, `message` for the kernel)
that go out together. The kernel works through a batch in order and does not stop at an error: callers put what may
only happen after a success in a batch of its own.

pyroute2 encodes, decodes and waits. Its errors end here, as NetworkError with the operation that failed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nlsocket import NetlinkRequest

from netns.driver import NetworkError

ANSWER_DEADLINE_S = 10.0
BATCH_SIZE = 256  # the acknowledgements of a batch fit into the socket's receive buffer

# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400

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


class Netlink:
    """A socket in one network namespace, and how links are found there: by default the calling thread's."""

    def __init__(self, sock: socket.socket | None = None, index_of: IndexOf | None = None) -> None:
        self._socket = sock or open_socket()
        self.index_of = index_of or link_index
        # Strict checking makes the kernel filter dumps by link, instead of ignoring that it was asked to.
        self._iproute = AsyncIPRoute(use_socket=self._socket, strict_check=True)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)

    async def __aenter__(self) -> Self:
        await self._iproute.setup_endpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._iproute.close()
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
        slow = any(operation.slow for operation in operations)
        answers = await self._exchange(messages, slow, "; ".join(operation.describe() for operation in operations[:3]))
        for operation, answer in zip(operations, answers, strict=True):
            if isinstance(answer, NetlinkError) and answer.code not in operation.tolerates:
                raise NetworkError(f"{operation.describe()}: {os.strerror(answer.code)}") from answer

    async def read(self, message: Message, what: str) -> list[Message]:
        """The answer to one question, complete. A link that does not exist has an empty answer."""
        answer = (await self._exchange([message], slow=False, what=f"read {what}"))[0]
        if not isinstance(answer, NetlinkError):
            return answer
        if answer.code in (errno.ENODEV, errno.ENOENT):
            return []
        raise NetworkError(f"read {what}: {os.strerror(answer.code)}") from answer

    async def _exchange(self, messages: Sequence[Message], slow: bool, what: str) -> list[list[Message] | NetlinkError]:
        requests = [NetlinkRequest(self._iproute, message) for message in messages]
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                for request in requests:
                    await request.prepare()
                data = b"".join(request.msg.data for request in requests)
                # Sending is when the kernel does the work, in the calling thread.
                await asyncio.to_thread(self._socket.send, data) if slow else self._socket.send(data)
                return [await _answer(request) for request in requests]
        except TimeoutError as error:
            raise NetworkError(f"{what}: no answer from the kernel within {ANSWER_DEADLINE_S:g} s") from error
        except OSError as error:
            raise NetworkError(f"{what}: {error.strerror}") from error


def open_socket() -> socket.socket:
    """A netlink socket in the network namespace of the calling thread."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


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


def request(message: Message, kind: int, flags: int) -> Message:
    """`message` with its header: `kind` is RTM_..., `flags` are added to those every change needs."""
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | flags
    return message


def dump(message: Message, kind: int) -> Message:
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_DUMP
    return message


async def _answer(request: NetlinkRequest) -> list[Message] | NetlinkError:
    try:
        return [message async for message in request.response()]
    except NetlinkError as error:
        return error
