"""Why a program could not be executed, in words that lead to the fault: execve(2) says ENOENT for four different ones.

Looks into the container's root file system, which is still mounted, as if it were `/`. What is in there is not trusted:
regular files are read only, and of those the first bytes.
"""

from __future__ import annotations

import errno
import os
import platform
import stat
import struct
from pathlib import Path

from agent.launcher.client import LaunchError
from isolators import mount
from isolators.base import Container
from isolators.process import PATH

HEAD_BYTES = 4096
ELF_MAGIC = b"\x7fELF"
# elf.h: e_machine, and p_type of the segment that names the loader.
MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64", 22: "s390x", 21: "ppc64le"}
PT_INTERP = 3
EXECUTABLE = 0o111


def explain(container: Container, error: LaunchError) -> str:
    if error.operation == "change directory" and error.errno == errno.ENOENT:
        return f"its working directory {error.path} is not in its file system"
    if error.operation != "execute":
        return str(error)
    try:
        return _explain(container, error.path) or str(error)
    except (OSError, struct.error, ValueError):
        return str(error)  # what can not be looked into is told as it was heard


def _explain(container: Container, program: str) -> str:
    found = _find(container, program)
    if found is None:
        return f"entrypoint missing: there is no {program} in its file system"
    path, mode, head = found
    if not stat.S_ISREG(mode):
        return f"not executable: {path} is no file"
    if not mode & EXECUTABLE:
        return f"not executable: {path} has mode {stat.S_IMODE(mode):04o}"
    if head.startswith(ELF_MAGIC):
        return _explain_elf(container, path, head)
    if head.startswith(b"#!"):
        return _explain_script(container, path, head)
    return f"not executable: {path} is neither a program nor a script that begins with #!"


def _find(container: Container, program: str) -> tuple[str, int, bytes] | None:
    """As execvp does: through PATH, unless there is a slash in it. The last one found, if none is executable."""
    variables = {"PATH": PATH, **dict(container.task.env)}
    directories = variables["PATH"].split(":") if "/" not in program else [""]
    found = None
    for directory in directories:
        path = os.path.join("/", container.task.cwd, directory, program)
        if (looked := _look(container.rootfs, path)) is not None:
            found = path, *looked
            if found[1] & EXECUTABLE:
                break
    return found


def _look(root: Path, path: str) -> tuple[int, bytes] | None:
    """Mode and first bytes; None when it is not there."""
    try:
        descriptor = mount.open_in_root(root, path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        return mode, os.pread(descriptor, HEAD_BYTES, 0) if stat.S_ISREG(mode) else b""
    finally:
        os.close(descriptor)


def _explain_elf(container: Container, path: str, head: bytes) -> str:
    order = "<" if head[5] == 1 else ">"
    (machine,) = struct.unpack_from(f"{order}H", head, 18)
    name = MACHINES.get(machine, f"machine {machine}")
    if name != platform.machine() and (name, platform.machine()) not in (("i386", "x86_64"), ("arm", "aarch64")):
        return f"wrong architecture: {path} is for {name}, and this node is {platform.machine()}"
    loader = _loader(head, order)
    if loader and _look(container.rootfs, loader) is None:
        return f"wrong libc: {path} needs the loader {loader}, which is not in its file system"
    return ""


def _loader(head: bytes, order: str) -> str:
    """What PT_INTERP names: the program that loads this one with its libraries."""
    wide = head[4] == 2
    start, size, count = (
        (*struct.unpack_from(f"{order}Q", head, 32), *struct.unpack_from(f"{order}HH", head, 54))
        if wide
        else (*struct.unpack_from(f"{order}I", head, 28), *struct.unpack_from(f"{order}HH", head, 42))
    )
    for index in range(count):
        at = start + index * size
        (kind,) = struct.unpack_from(f"{order}I", head, at)
        if kind == PT_INTERP:
            offset, length = (
                (*struct.unpack_from(f"{order}Q", head, at + 8), *struct.unpack_from(f"{order}Q", head, at + 32))
                if wide
                else (*struct.unpack_from(f"{order}I", head, at + 4), *struct.unpack_from(f"{order}I", head, at + 16))
            )
            return head[offset : offset + length].rstrip(b"\0").decode()
    return ""


def _explain_script(container: Container, path: str, head: bytes) -> str:
    words = head[2:].split(b"\n", 1)[0].split()
    interpreter = os.fsdecode(words[0]) if words else ""
    if not interpreter or _look(container.rootfs, interpreter) is None:
        return f"interpreter missing: {path} is a script for {interpreter!r}, which is not in its file system"
    return ""
