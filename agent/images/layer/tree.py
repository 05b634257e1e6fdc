"""Unpacks a layer's archive into `/`, which is the layer's directory (OCI image-spec, layer.md).

Reads a tar stream, writes files as the overlay file system wants them: a whiteout `.wh.NAME` becomes a character device
0:0 in the place of NAME; of an opaque directory (`.wh..wh..opq`) the path is returned, for only the agent may mark it.
Of two entries with one name the later one counts. Sockets can not be in an archive, and devices are left out: in a
container they would be dead (the root is mounted with `nodev`), and on the node they would be alive.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
from typing import IO, Any, cast

from agent.images.layer.decompress import CHUNK, Broken, Layer

WHITEOUT = ".wh."
AUFS_OWN = ".wh..wh."  # what AUFS kept for itself; only the next has a meaning in a layer
OPAQUE = ".wh..wh..opq"
MAX_ID = 65535  # a container has so many
MAX_PATH = 4096
MAX_SEGMENT = 255
OPAQUE_MOST = 10_000
# What a file's other names in PAX headers may set. `trusted.overlay.*` and `user.overlay.*` would be instructions to
# the overlay file system, and access lists name ids of other machines.
XATTR = "SCHILY.xattr."
XATTRS = ("security.capability", "user.")
XATTRS_NEVER = ("user.overlay.",)
# What names, links and attributes can bring about. Everything else is the node's trouble, not the layer's.
HOSTILE = (errno.ENOTDIR, errno.ELOOP, errno.EPERM, errno.EINVAL, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG)


class Refused(Exception):
    """The layer is not one, or asks for what no layer needs. The text names the entry."""


class Unpacking:
    def __init__(self, layer: Layer, most_bytes: int, most_entries: int) -> None:
        self._layer = layer
        self._most_bytes = most_bytes
        self._most_entries = most_entries
        self._directories: dict[str, tarfile.TarInfo] = {}
        self.entries = 0
        self.apparent_bytes = 0
        self.opaque: list[str] = []

    def run(self) -> None:
        stream = _Archive(self._layer, self._most_bytes)
        with tarfile.TarFile(fileobj=cast(IO[bytes], stream)) as archive:
            while (entry := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would remember all of them
                self._count(entry)
                self._place(entry)
        for path, entry in reversed(self._directories.items()):
            _set_times(path, entry)
        stream.drain()

    def _count(self, entry: tarfile.TarInfo) -> None:
        self.entries += 1
        self.apparent_bytes += entry.size if entry.isreg() else 0
        if self.entries > self._most_entries:
            raise Refused(f"it has more than {self._most_entries} entries")
        if self.apparent_bytes > self._most_bytes:
            raise Refused(f"its files are larger than {self._most_bytes} bytes together")

    def _place(self, entry: tarfile.TarInfo) -> None:
        path = _path(entry.name)
        try:
            try:
                self._put(entry, path)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), 0o755)  # an archive may leave out the directories on the way
                self._put(entry, path)
        except OSError as error:
            if error.errno in HOSTILE:
                raise Refused(f"{entry.name!r}: {error.strerror}") from error
            raise

    def _put(self, entry: tarfile.TarInfo, path: str) -> None:
        parent, _, name = path.rpartition("/")
        if name.startswith(WHITEOUT):
            self._hide(parent, name)
        elif path != "/" or entry.isdir():
            self._make(entry, path)

    def _hide(self, parent: str, name: str) -> None:
        if name == OPAQUE:
            self._make_opaque(parent or "/")
        elif not name.startswith(AUFS_OWN):
            path = f"{parent}/{name.removeprefix(WHITEOUT)}"
            if path.endswith(("/", "/.", "/..")):
                raise Refused(f"{name!r} hides nothing")
            self._replace(path)
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))

    def _make_opaque(self, directory: str) -> None:
        """Told by its real path: a link on the way would be followed differently from outside."""
        os.stat(directory)
        self.opaque.append(os.path.realpath(directory))
        if len(self.opaque) > OPAQUE_MOST:
            raise Refused(f"it has more than {OPAQUE_MOST} opaque directories")

    def _make(self, entry: tarfile.TarInfo, path: str) -> None:
        if entry.isdir():
            self._make_directory(entry, path)
        elif entry.isreg():
            self._make_file(entry, path)
        elif entry.issym():
            self._replace(path)
            os.symlink(entry.linkname, path)
            _set_owner(path, entry)
            _set_times(path, entry)
        elif entry.islnk():
            self._link(entry, path)
        elif entry.isfifo():
            self._replace(path)
            os.mkfifo(path)
            _set_owner(path, entry)
            os.chmod(path, entry.mode & 0o7777)
            _set_times(path, entry)
        elif not (entry.ischr() or entry.isblk()):
            raise Refused(f"{entry.name!r} is of an unknown type {entry.type!r}")

    def _make_directory(self, entry: tarfile.TarInfo, path: str) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                self._replace(path)
                os.mkdir(path, 0o700)
        _set_owner(path, entry)
        os.chmod(path, entry.mode & 0o7777)
        _set_xattrs(path, entry)
        self._directories.pop(path, None)
        self._directories[path] = entry

    def _make_file(self, entry: tarfile.TarInfo, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileExistsError:
            self._replace(path)
            descriptor = os.open(path, flags, 0o600)
        try:
            self._fill(descriptor, entry)
            _check_owner(entry)
            if entry.uid or entry.gid:
                os.fchown(descriptor, entry.uid, entry.gid)
            os.fchmod(descriptor, entry.mode & 0o7777)
            _set_xattrs(descriptor, entry)
            _set_times(descriptor, entry)
        finally:
            os.close(descriptor)

    def _fill(self, descriptor: int, entry: tarfile.TarInfo) -> None:
        if entry.sparse is not None:
            for offset, size in cast(list[tuple[int, int]], entry.sparse):
                os.lseek(descriptor, offset, os.SEEK_SET)
                self._copy(descriptor, size, entry)
            os.ftruncate(descriptor, entry.size)
        else:
            self._copy(descriptor, entry.size, entry)

    def _copy(self, descriptor: int, size: int, entry: tarfile.TarInfo) -> None:
        while size:
            part = self._layer.some(size)
            if not part:
                raise Refused(f"it ends in the middle of {entry.name!r}")
            size -= len(part)
            while part:
                part = part[os.write(descriptor, part) :]

    def _link(self, entry: tarfile.TarInfo, path: str) -> None:
        """To a file of this layer. A link into a layer below can not be: that one is shared."""
        target = _path(entry.linkname)
        if target == path:
            return
        self._replace(path)
        try:
            os.link(target, path, follow_symlinks=False)
        except FileNotFoundError:
            if not os.path.lexists(target):
                raise Refused(f"{entry.name!r} is a link to {entry.linkname!r}, which is not in the layer") from None
            raise

    def _replace(self, path: str) -> None:
        """Takes away what an earlier entry put there."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            shutil.rmtree(path)
            for known in [known for known in self._directories if known == path or known.startswith(path + "/")]:
                del self._directories[known]


def unpack(layer: Layer, most_bytes: int, most_entries: int) -> dict[str, Any]:
    """What is told of the layer. Raises Refused, or OSError of the node's disk."""
    unpacking = Unpacking(layer, most_bytes, most_entries)
    try:
        unpacking.run()
    except (tarfile.TarError, Broken, ValueError, OverflowError, RecursionError) as error:
        raise Refused(f"no archive of a layer: {error}") from error
    return {
        "blob": f"sha256:{layer.blob.hexdigest()}",
        "diff_id": f"sha256:{layer.content.hexdigest()}",
        "blob_bytes": layer.blob_bytes,
        "bytes": max(layer.tell(), unpacking.apparent_bytes),
        "entries": unpacking.entries,
        "opaque": sorted(set(unpacking.opaque)),
    }


class _Archive:
    """The stream as `tarfile` reads it, which is not far beyond a bound."""

    def __init__(self, layer: Layer, most_bytes: int) -> None:
        self._layer = layer
        self._most = most_bytes
        self.tell = layer.tell

    def read(self, size: int) -> bytes:
        self._check()
        return self._layer.read(size)

    def seek(self, position: int) -> None:
        self._layer.seek(position)
        self._check()

    def drain(self) -> None:
        """What is behind the archive's end counts for the digests."""
        while self._layer.some(CHUNK):
            self._check()

    def _check(self) -> None:
        if self._layer.tell() > self._most:
            raise Refused(f"it unfolds to more than {self._most} bytes")


def _path(name: str) -> str:
    """Absolute, in the layer. `..` is refused, though it could not lead out of here."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Refused(f"{name!r} has .. in its path")
    if "\0" in name or len(os.fsencode(name)) > MAX_PATH or any(len(os.fsencode(part)) > MAX_SEGMENT for part in parts):
        raise Refused(f"{name[:100]!r} is no name of a file")
    return "/" + "/".join(parts)


def _check_owner(entry: tarfile.TarInfo) -> None:
    if not (0 <= entry.uid <= MAX_ID and 0 <= entry.gid <= MAX_ID):
        raise Refused(f"{entry.name!r} belongs to {entry.uid}:{entry.gid}, and ids go up to {MAX_ID}")


def _set_owner(path: str, entry: tarfile.TarInfo) -> None:
    _check_owner(entry)
    os.chown(path, entry.uid, entry.gid, follow_symlinks=False)


def _set_times(file: str | int, entry: tarfile.TarInfo) -> None:
    at = int(entry.mtime * 10**9)
    try:
        if isinstance(file, int):
            os.utime(file, ns=(at, at))
        else:
            os.utime(file, ns=(at, at), follow_symlinks=False)
    except (OverflowError, FileNotFoundError):
        return  # a time that no clock shows is no reason to refuse a file; a directory may have gone by a link


def _set_xattrs(file: str | int, entry: tarfile.TarInfo) -> None:
    for key, value in entry.pax_headers.items():
        name = key.removeprefix(XATTR)
        if name != key and name.startswith(XATTRS) and not name.startswith(XATTRS_NEVER):
            try:
                os.setxattr(file, name, value.encode("utf-8", "surrogateescape"))
            except OSError as error:
                if error.errno != errno.ENOTSUP:
                    raise
