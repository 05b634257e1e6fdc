"""Has one layer unpacked by a child that is confined to the layer's directory (layer/main.py).

Executed, not forked, for the agent has threads. Two bounds on what a layer unfolds to keep a small download from
filling the disk; a deadline keeps a slow one from staying for ever.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.images.errors import DiskFull, Hostile, ImageError
from agent.launcher import syscalls as sc

MAIN = Path(__file__).with_name("layer") / "main.py"
MOST_BYTES = 64 << 30
MOST_ENTRIES = 2_000_000
DEADLINE_S = 3600.0
ANSWER_MOST_BYTES = 64 << 20  # ten thousand opaque directories of 4096 bytes, quoted
LOOK_S = 0.2  # how often somebody is told how far it is
OPAQUE = "trusted.overlay.opaque"  # Documentation/filesystems/overlayfs.rst


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer as an archive in a file, or in a part of one. `length` -1: to the end."""

    path: Path
    offset: int = 0
    length: int = -1


@dataclass(frozen=True, slots=True)
class Unpacked:
    """`blob` is the digest of the archive as it was, `diff_id` that of what it decompressed to."""

    blob: str
    diff_id: str
    blob_bytes: int
    bytes: int
    entries: int


async def unpack(
    blob: Blob,
    target: Path,
    progress: Callable[[int], None],
    most_bytes: int = MOST_BYTES,
    most_entries: int = MOST_ENTRIES,
) -> Unpacked:
    """Into the empty directory `target`. `progress` hears how many bytes of the blob were read. Raises Hostile,
    DiskFull, or ImageError; what is in `target` then is to be removed."""
    descriptor = os.open(blob.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.lseek(descriptor, blob.offset, os.SEEK_SET)
        arguments = (str(os.getpid()), str(target), str(blob.length), str(most_bytes), str(most_entries))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(MAIN), *arguments),
            stdin=descriptor,
            stdout=asyncio.subprocess.PIPE,
            limit=ANSWER_MOST_BYTES,
        )
        try:
            answer = await _answer(process, descriptor, blob, progress)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    finally:
        os.close(descriptor)
    result = _result(answer)
    await asyncio.to_thread(_mark_opaque, target, result.pop("opaque"))  # there may be thousands
    return Unpacked(**result)


async def _answer(
    process: asyncio.subprocess.Process, descriptor: int, blob: Blob, progress: Callable[[int], None]
) -> bytes:
    """The child reads the same open file, so its position is how far it has come."""
    assert process.stdout is not None
    reading = asyncio.ensure_future(process.stdout.read())
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (await asyncio.wait({reading}, timeout=LOOK_S))[0]:
                progress(os.lseek(descriptor, 0, os.SEEK_CUR) - blob.offset)
            await process.wait()
    except TimeoutError as error:
        raise Hostile(f"it is not unpacked after {DEADLINE_S:g} s") from error
    finally:
        reading.cancel()
    return reading.result()


def _result(answer: bytes) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(answer)
    except ValueError as error:
        raise ImageError("what unpacks layers ended without an answer") from error
    if "refused" in result:
        raise Hostile(f"hostile or broken layer: {result['refused']}")
    if "failed" in result:
        kind = DiskFull if result["errno"] in (errno.ENOSPC, errno.EDQUOT) else ImageError
        raise kind(f"unpack layer: {result['failed']}")
    return result


def _mark_opaque(target: Path, directories: list[str]) -> None:
    """Only root of the node may set the mark, and the child is less than that. The paths are the child's, so they are
    opened without following any link."""
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for directory in directories:
            flags = os.O_RDONLY | os.O_DIRECTORY
            descriptor = sc.openat2(root, "." + directory, flags, sc.RESOLVE_BENEATH | sc.RESOLVE_NO_SYMLINKS)
            try:
                os.setxattr(descriptor, OPAQUE, b"y")
            finally:
                os.close(descriptor)
    finally:
        os.close(root)
