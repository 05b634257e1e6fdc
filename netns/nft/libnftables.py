"""nftables by its own library, in this process: a command costs a tenth of what starting nft(8) does.

Each call is one transaction: all of it or nothing. The library's socket stays in the network namespace in which the
context was made. libnftables(3) names the functions; it is not for two threads at once, and it waits for its socket by
select(2), which ends the process when the descriptor is not below 1024: a context is to be made while few files are
open.
"""

from __future__ import annotations

import ctypes
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from netns.driver import NetworkError

LIBRARY, PACKAGE = "libnftables.so.1", "nftables"
SEPARATOR = "; "
FD_SETSIZE = 1024  # select(2)
SHOWN = 100  # characters of a command that failed
# nftables/libnftables.h
NFT_CTX_DEFAULT = 0
NFT_CTX_OUTPUT_HANDLE, NFT_CTX_OUTPUT_JSON, NFT_CTX_OUTPUT_NUMERIC_ALL = 1 << 3, 1 << 4, 0x780
NFT_CTX_OUTPUT_TERSE = 1 << 11
NUMERIC_JSON = NFT_CTX_OUTPUT_HANDLE | NFT_CTX_OUTPUT_JSON | NFT_CTX_OUTPUT_NUMERIC_ALL


class Nftables:
    """One context of the library, in the calling thread's network namespace."""

    def __init__(self) -> None:
        self._library = _load()
        _refuse_late()
        self._context = self._library.nft_ctx_new(NFT_CTX_DEFAULT)
        if not self._context:
            raise NetworkError("open nftables: the library has no memory")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, commands: str) -> None:
        """In nft's own language, one a line. Raises NetworkError with the first thing that nft says."""
        # In one line, because of more the library always repeats the first when it complains.
        self._run(commands.replace("\n", SEPARATOR), NFT_CTX_DEFAULT)

    def read(self, command: str, terse: bool = False) -> list[dict[str, Any]]:
        """What a `list` command says (libnftables-json(5)), with handles and with numbers for names; `terse` leaves the
        elements of sets out."""
        said = self._run(command, NUMERIC_JSON | (NFT_CTX_OUTPUT_TERSE if terse else 0))
        listing: list[dict[str, Any]] = json.loads(said or '{"nftables": []}')["nftables"]
        return listing

    def close(self) -> None:
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def _run(self, commands: str, flags: int) -> bytes:
        self._library.nft_ctx_output_set_flags(self._context, flags)
        failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        said: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if failed:
            raise NetworkError(f"nftables: {_complaint(said.decode(errors='replace'))}")
        return output


def _complaint(said: str) -> str:
    """The first thing that nft says, and of which command, where it has thousands: it repeats them, and marks the place
    in the line below."""
    problem, *place = said.strip().split("\n")[:3]
    if len(place) < 2 or "^" not in place[1]:
        return problem
    at = place[1].index("^")
    command = place[0][place[0].rfind(SEPARATOR, 0, at) + 1 :].partition(SEPARATOR)[0]
    word = place[0][at:].partition(SEPARATOR)[0]
    return f"{problem.removeprefix('Error: ')}: {word[:SHOWN]} in {command[:SHOWN].strip()}"


def _refuse_late() -> None:
    with Path(os.devnull).open() as next_free:
        if next_free.fileno() >= FD_SETSIZE:
            raise NetworkError(f"open nftables: the library can not use a descriptor above {FD_SETSIZE - 1}")


@cache
def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NetworkError(f"open nftables: {LIBRARY} is not here (apt-get install {PACKAGE})") from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for verb in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, verb).argtypes = [ctypes.c_void_p]
    for buffer in (library.nft_ctx_get_output_buffer, library.nft_ctx_get_error_buffer):
        buffer.argtypes, buffer.restype = [ctypes.c_void_p], ctypes.c_char_p
    return library
