"""Where a task may have something mounted in its container."""

from __future__ import annotations

import posixpath
import re

from model.limits import Tmpfs

# The kernel's, or filled by the node: what is mounted over them could hide what masks them (CVE-2025-52881).
OWN = ("/proc", "/sys", "/dev")
MOST_MIB = 1 << 20
MODE = re.compile(r"[01]?[0-7]{3}")


def path_problem(path: str) -> str:
    """Two slashes at the beginning are left by normpath, for they may mean something (POSIX, "Pathname Resolution")."""
    if not path.startswith("/") or path.startswith("//") or posixpath.normpath(path) != path or "\0" in path:
        return "must be an absolute path without . and .."
    return ""


def destination_problem(path: str) -> str:
    """Why nothing may be mounted there; empty when it may."""
    if said := path_problem(path):
        return said
    if path == "/":
        return "the root itself can not be covered"
    for own in OWN:
        if path == own or path.startswith(own + "/"):
            return f"nothing may be mounted over {own}"
    return ""


def tmpfs_problem(wanted: Tmpfs) -> str:
    if not 1 <= wanted.size <= MOST_MIB:
        return f"size is {wanted.size} MiB: it must be from 1 to {MOST_MIB}"
    if not MODE.fullmatch(wanted.mode):
        return f"mode {wanted.mode!r} must be three octal digits, or four with the sticky bit"
    return destination_problem(wanted.destination)
