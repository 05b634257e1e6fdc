"""Credentials for registries that a task may name, but does not bring: a Docker `config.json` in a file of the node's.

`pull_secrets` in agent.toml says which file each name stands for. So no credential is in a definition, in the master's
store, on the wire or in the agent's checkpoint; the file is read when it is needed, and only by root.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from agent.images.errors import NotPermitted, Refused
from model.image import may_use

MOST_BYTES = 64 << 10
OTHERS = stat.S_IRWXG | stat.S_IRWXO


class PullSecrets:
    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)

    def read(self, name: str, owner: str) -> str:
        """What stands for `name`, for a task of `owner`. Raises Refused, without a word of what is in it."""
        if not may_use(owner, name):
            raise NotPermitted(f"not authorised: pull secret {name!r} is not for {owner}, only for apps below its path")
        path = self._files.get(name)
        if path is None:
            raise Refused(f"pull secret {name!r} is not on this node: name its file in 'pull_secrets' in agent.toml")
        try:
            return _content(path)
        except OSError as error:
            raise Refused(f"pull secret {name!r}: {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise Refused(f"pull secret {name!r}: {path} is no Docker config.json") from error


def _content(path: Path) -> str:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise Refused(f"pull secret: {path} is no file of sensible size")
        if status.st_mode & OTHERS:
            raise Refused(f"pull secret: {path} can be read by others than its owner: chmod 600 it")
        return file.read().decode()
