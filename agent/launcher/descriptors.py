"""Waiting for pipes, terminals and sockets from the event loop, by descriptor: what asyncio's transports do not take,
and without reading more than was asked for, so that whoever writes waits for whoever reads.
"""

from __future__ import annotations

import asyncio
import errno
import os

READ_BYTES = 64 * 1024


async def read(descriptor: int) -> bytes:
    """What there is, once there is something; empty at the end. The descriptor must not block."""
    while True:
        try:
            return os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            await readable(descriptor)
        except OSError as error:
            if error.errno == errno.EIO:  # of a terminal: nobody has its other end open
                return b""
            raise


async def write(descriptor: int, data: bytes) -> None:
    """All of it. Raises BrokenPipeError when nobody reads any more."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            await writable(descriptor)


async def readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


async def writable(descriptor: int) -> None:
    """Also when a write would fail at once."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(descriptor)
