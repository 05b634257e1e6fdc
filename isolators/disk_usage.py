"""How much of the disk a tree of files takes, counted file by file as du(1) does.

The tree belongs to a container that may change it meanwhile, and may not like to be counted: directories are opened by
their name in the one above, no link is followed, and who nests them deeper than `MOST_NESTED` has found a way to make
counting expensive, which is an error (`TooDeep`).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST_NESTED = 200  # each level is an open descriptor
BLOCK = 512  # the unit of st_blocks, whatever the file system's is
OPEN_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TooDeep(Exception):
    """Directories are nested too deeply to be counted."""


def used_bytes(directory: Path) -> int:
    """Of all files below, a file with several names once. Raises TooDeep; files that vanish meanwhile do not count."""
    descriptor = os.open(directory, OPEN_FLAGS)
    try:
        return _below(descriptor, set(), 0) * BLOCK
    finally:
        os.close(descriptor)


def _below(directory: int, linked: set[int], depth: int) -> int:
    if depth > MOST_NESTED:
        raise TooDeep(f"directories are nested more than {MOST_NESTED} deep")
    blocks = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                status = os.stat(entry.name, dir_fd=directory, follow_symlinks=False)
                if status.st_ino in linked:
                    continue
                blocks += status.st_blocks
                if stat.S_ISDIR(status.st_mode):
                    blocks += _opened(directory, entry.name, linked, depth)
                elif status.st_nlink > 1:
                    linked.add(status.st_ino)
            except (FileNotFoundError, NotADirectoryError):
                continue
    return blocks


def _opened(above: int, name: str, linked: set[int], depth: int) -> int:
    descriptor = os.open(name, OPEN_FLAGS, dir_fd=above)
    try:
        return _below(descriptor, linked, depth + 1)
    finally:
        os.close(descriptor)
