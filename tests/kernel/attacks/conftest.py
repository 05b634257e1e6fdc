"""A node with default containers, and what it takes to attack from inside of one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kernel.attacks.attacker import Attacker
from tests.kernel.sandbox import Sandbox, root_directory, sandbox


@pytest.fixture
async def node(host_mounts: None, tmp_path: Path) -> AsyncIterator[Sandbox]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    async with sandbox(state) as made:
        yield made


@pytest.fixture
def attacker(node: Sandbox) -> Attacker:
    return Attacker(node)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The root file system of an attacker, who has put into it what he liked."""
    return root_directory(tmp_path / "image", ("sh", "cat", "ls", "ln", "stat", "true"))


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of the node's that a link in an image leads to."""
    directory = tmp_path / "victim"
    directory.mkdir()
    directory.chmod(0o777)
    (directory / "file").write_text(json.dumps("untouched"))
    (directory / "file").chmod(0o666)
    return directory
