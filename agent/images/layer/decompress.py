"""A layer as a stream: read once, and both digests of it are known at its end.

A thread reads, hashes and decompresses ahead of the unpacking; all three let go of the interpreter while they work, so
that two CPUs are in use. The queue between bounds the memory. gzip is zlib's, zstd the node's libzstd by ctypes (it
comes with dpkg). Which of them it is the first bytes say, not a media type.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import queue
import threading
import zlib
from collections.abc import Iterator
from typing import Protocol

CHUNK = 256 * 1024
AHEAD = 16  # chunks
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
GZIP_WINDOW = 31  # zlib.h: 15 bits of window, and 16 for gzip's header
ZSTD_WINDOW_LOG_MAX, ZSTD_WINDOW_LOG = 100, 27  # zstd.h: ZSTD_d_windowLogMax; 128 MiB, as `zstd -d` takes


class Broken(Exception):
    """It is not what it seems to be: no decompressor gets to its end."""


class Decoder(Protocol):
    def decode(self, data: bytes) -> Iterator[bytes]:
        """What `data` unfolds to, in chunks of a bounded size."""

    def finish(self) -> None:
        """Raises Broken when the end is missing."""


class Plain:
    def decode(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        return


class Gzip:
    """Also of several members, one after the other (RFC 1952 section 2.2). Zeros after the last are padding."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(GZIP_WINDOW)
        self._begun = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._member, self._begun = zlib.decompressobj(GZIP_WINDOW), False
            try:
                yield self._member.decompress(data, CHUNK)
            except zlib.error as error:
                raise Broken(f"gzip: {error}") from error
            self._begun = True
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail

    def finish(self) -> None:
        """`flush` has no more than what did not fit, and all of that was asked for."""
        if self._begun and not self._member.eof:
            raise Broken("gzip: it ends too early")


class _Buffer(ctypes.Structure):
    """zstd.h: ZSTD_inBuffer and ZSTD_outBuffer, which are alike."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t))


class Zstd:
    def __init__(self) -> None:
        self._library = ctypes.CDLL("libzstd.so.1")
        self._library.ZSTD_createDCtx.restype = ctypes.c_void_p
        self._library.ZSTD_decompressStream.restype = ctypes.c_size_t
        self._library.ZSTD_getErrorName.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._library.ZSTD_createDCtx())
        self._library.ZSTD_DCtx_setParameter(self._context, ZSTD_WINDOW_LOG_MAX, ZSTD_WINDOW_LOG)
        self._space = ctypes.create_string_buffer(CHUNK)
        self._wanted = 0  # 0: a frame is complete

    def decode(self, data: bytes) -> Iterator[bytes]:
        source = _Buffer(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data), 0)
        full = False
        while source.position < source.size or full:
            target = _Buffer(ctypes.addressof(self._space), CHUNK, 0)
            self._wanted = self._library.ZSTD_decompressStream(
                self._context, ctypes.byref(target), ctypes.byref(source)
            )
            if self._library.ZSTD_isError(ctypes.c_size_t(self._wanted)):
                name = self._library.ZSTD_getErrorName(ctypes.c_size_t(self._wanted))
                raise Broken(f"zstd: {name.decode()}")
            full = target.position == CHUNK and self._wanted != 0
            yield self._space.raw[: target.position]

    def finish(self) -> None:
        if self._wanted:
            raise Broken("zstd: it ends too early")


class Layer:
    """Positions are in what was decompressed. One reader, from front to end."""

    def __init__(self, descriptor: int, length: int, decoder: Decoder) -> None:
        self._descriptor = descriptor
        self._left = length
        self._decoder = decoder
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(AHEAD)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._chunk = memoryview(b"")
        self._position = 0
        self._ended = False
        self.blob = hashlib.sha256()
        self.content = hashlib.sha256()
        self.blob_bytes = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        """Forwards only; past the end it stays there."""
        while position > self._position and self.some(position - self._position):
            pass

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        first = self.some(size)
        if len(first) == size:
            return bytes(first)
        parts, missing = [bytes(first)], size - len(first)
        while missing and (part := self.some(missing)):
            parts.append(bytes(part))
            missing -= len(part)
        return b"".join(parts)

    def some(self, most: int) -> memoryview:
        """What is there, at most so much; nothing at the end."""
        if not self._chunk and not self._ended:
            self._next()
        part, self._chunk = self._chunk[:most], self._chunk[most:]
        self._position += len(part)
        return part

    def _next(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        got = self._queue.get()
        if isinstance(got, BaseException):
            raise got
        self._chunk, self._ended = memoryview(got), not got

    def _run(self) -> None:
        try:
            while data := self._read_blob():
                for part in self._decoder.decode(data):
                    if part:
                        self.content.update(part)
                        self._queue.put(part)
            self._decoder.finish()
            self._queue.put(b"")
        except (Broken, OSError, MemoryError) as error:
            self._queue.put(error)

    def _read_blob(self) -> bytes:
        data = os.read(self._descriptor, CHUNK if self._left < 0 else min(CHUNK, self._left))
        if self._left > 0:
            self._left -= len(data)
        self.blob.update(data)
        self.blob_bytes += len(data)
        return data


def opened(descriptor: int, length: int) -> Layer:
    """The file that is open, from where it stands. `length` -1 means to its end."""
    magic = os.pread(descriptor, len(ZSTD_MAGIC), os.lseek(descriptor, 0, os.SEEK_CUR))
    if magic == ZSTD_MAGIC:
        return Layer(descriptor, length, Zstd())
    return Layer(descriptor, length, Gzip() if magic.startswith(GZIP_MAGIC) else Plain())
