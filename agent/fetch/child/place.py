"""What the agent executes to put a file into a workspace: `python -I -S place.py AGENT TARGET UID REQUEST`.

Standard input is the file. `TARGET` is the workspace, and all that the child that does the work sees; `REQUEST` is
JSON: `name`, `kind` (tar, zip, gz, or empty to leave it packed), `executable`, `most_bytes`, `most_entries`. Everything
is made by `UID`, which owns the workspace and nothing else. Standard output gets one line of JSON: nothing in it, or
why not. `AGENT` is the pid that this process ends with.
"""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from agent import confine
from agent.launcher import syscalls as sc

CHUNK = 256 * 1024
BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError)
WRONG = (ValueError, RuntimeError, NotImplementedError, RecursionError, OverflowError)  # zipfile's ways to give up


class Refused(Exception):
    """What is in the archive is not to be unpacked."""


def main() -> None:
    agent, target, uid, request = sys.argv[1:]
    confine.end_with(int(agent))
    codecs.lookup("cp437")  # of names in zip archives: a module that is out of reach later
    me = os.getpid()
    pid, _ = sc.clone3(confine.NAMESPACES)
    if pid == 0:
        confine.end_with_outer(me)
        confine.enter(target)
        confine.become(int(uid))
        print(json.dumps(_answer(json.loads(request))), flush=True)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    sys.exit(0 if status == 0 else 1)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        _place(request)
    except Refused as error:
        return {"refused": str(error)}
    except BROKEN as error:
        return {"refused": f"broken archive: {error}"}
    except OSError as error:
        return {"failed": f"{error.filename or request['name']}: {error.strerror or error}", "errno": error.errno}
    except (*WRONG, MemoryError) as error:
        return {"refused": f"broken archive: {type(error).__name__} {error}"}
    return {}


def _place(request: dict[str, Any]) -> None:
    room = _Room(request["most_bytes"], request["most_entries"])
    source = os.fdopen(0, "rb")
    name, kind = request["name"], request["kind"]
    _write(name, _chunks(source), 0o755 if request["executable"] else 0o644, room)
    source.seek(0)
    if kind == "tar":
        _untar(source, room)
    elif kind == "zip":
        _unzip(source, room)
    elif kind == "gz":
        with gzip.open(source) as unpacked:
            _write(name.removesuffix(".gz"), _chunks(unpacked), 0o644, room)


class _Room:
    """What may still be written."""

    def __init__(self, most_bytes: int, most_entries: int) -> None:
        self._bytes, self._entries = most_bytes, most_entries

    def take(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < 0:
            raise Refused("it unfolds to more bytes than are allowed")

    def enter(self) -> None:
        self._entries -= 1
        if self._entries < 0:
            raise Refused("it has more entries than are allowed")


def _untar(source: IO[bytes], room: _Room) -> None:
    """Files, directories and links; nothing of who owned them elsewhere. `tarfile` finds out how it is compressed."""
    with tarfile.open(fileobj=source, mode="r:*") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would remember all of them
            room.enter()
            path = _path(member.name)
            if member.isdir():
                os.makedirs(path, 0o755, exist_ok=True)
            elif member.isreg():
                room.take(member.size if member.sparse is not None else 0)
                content = archive.extractfile(member)
                assert content is not None
                _write(path, _chunks(content), member.mode & 0o777, room)
            elif member.issym():
                _link(member.linkname, path)
            elif member.islnk():
                _make_way(path)
                os.link(_path(member.linkname), path, follow_symlinks=False)
            else:
                raise Refused(f"{member.name!r} is neither a file nor a directory nor a link")


def _unzip(source: IO[bytes], room: _Room) -> None:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            room.enter()
            path = _path(member.filename)
            if member.is_dir():
                os.makedirs(path, 0o755, exist_ok=True)
            else:
                mode = member.external_attr >> 16 & 0o777 or 0o644
                with archive.open(member) as content:
                    _write(path, _chunks(content), mode, room)


def _write(path: str, chunks: Iterator[bytes], mode: int, room: _Room) -> None:
    _make_way(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode | 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        for data in chunks:
            room.take(len(data))
            file.write(data)


def _link(target: str, path: str) -> None:
    """Where it leads to is for the container to see, which has its own `/`; from here nobody follows it."""
    _make_way(path)
    os.symlink(target, path)


def _make_way(path: str) -> None:
    """Directories on the way; an earlier file of that name makes room."""
    parent = os.path.dirname(path)
    if parent:
        os.makedirs(parent, 0o755, exist_ok=True)
        if os.path.realpath(parent) != os.path.normpath(f"/{parent}"):
            raise Refused(f"{path!r} leads through a link")
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.path.islink(path)):
        os.unlink(path)


def _path(name: str) -> str:
    """Relative, in the workspace."""
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise Refused(f"{name!r} is not below the archive")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/".join(parts) or "."


def _chunks(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while data := file.read(CHUNK):
        yield data


if __name__ == "__main__":
    main()
