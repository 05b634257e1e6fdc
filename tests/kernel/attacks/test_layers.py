"""Attacks by way of what a container leaves in its private layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.task import TaskState
from tests.kernel.agent import agent
from tests.kernel.sandbox import task

pytestmark = pytest.mark.anyio

# Deeper than Python recurses, and than a path may be long.
NEST = """
import os
for _ in range(6000):
    os.mkdir("a")
    os.chdir("a")
"""


@pytest.mark.usefixtures("host_mounts")
async def test_directories_nested_to_outlive_their_container_do_not(tmp_path: Path) -> None:
    async with agent(tmp_path) as node:
        ended = await node.run(task("a", "python3", "-c", NEST))
        assert ended.state in (TaskState.FINISHED, TaskState.FAILED), ended  # by itself, or for what it has nested
        assert not list(node.directories.layers.iterdir()) and not list(node.directories.bundles.iterdir())
