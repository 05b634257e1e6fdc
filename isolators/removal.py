"""Removes a tree of files that somebody else has made, and perhaps so that it is hard to remove.

No link is followed, and nesting costs neither stack nor descriptors: what is in a directory is moved to the top before
the directory goes.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

OPEN_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(directory: Path) -> None:
    """Accepts one that is not there."""
    try:
        top = os.open(directory, OPEN_FLAGS)
    except FileNotFoundError:
        return
    try:
        while names := os.listdir(top):
            for name in names:
                _remove(top, name)
    finally:
        os.close(top)
    directory.rmdir()


def _remove(top: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=top)
    except IsADirectoryError:
        _empty(top, name)
        os.rmdir(name, dir_fd=top)


def _empty(top: int, name: str) -> None:
    inner = os.open(name, OPEN_FLAGS, dir_fd=top)
    try:
        for each in os.listdir(inner):
            try:
                os.unlink(each, dir_fd=inner)
            except IsADirectoryError:
                os.rename(each, secrets.token_hex(16), src_dir_fd=inner, dst_dir_fd=top)
    finally:
        os.close(inner)
