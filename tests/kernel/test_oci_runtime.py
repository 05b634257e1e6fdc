"""Another runtime runs the bundles of ours, and confines them alike."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.launcher.client import Launch
from isolators.base import Container
from tests.kernel.sandbox import CGROUPS, DEADLINE_S, Sandbox, exit_of, output, sandbox, task
from tests.oci import violations

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

LOOK = """
cat /proc/self/uid_map /proc/self/gid_map
grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Uid|Gid)' /proc/self/status
cat /proc/self/oom_score_adj; cat /proc/sys/kernel/hostname
ulimit -n
echo x 2>&- > /proc/sys/kernel/domainname || echo read-only
cat /proc/keys /proc/timer_list
unshare --user true 2>&- || echo filtered
"""


@pytest.fixture
async def node() -> AsyncIterator[Sandbox]:
    """The other runtime enters the user namespace before it looks for the root file system, so the way to it must be
    open to others, as that to a temporary directory of a test is not."""
    state = Path("/var/tmp") / f"tepui-test-{os.getpid()}"
    state.mkdir(mode=0o711)
    try:
        async with sandbox(state) as made:
            yield made
        for directory in CGROUPS.glob(f"*/{made.prefix}"):  # it makes them in trees that we leave alone too
            directory.rmdir()
    finally:
        shutil.rmtree(state)


async def test_runc_runs_a_default_bundle_and_confines_it_alike(node: Sandbox) -> None:
    (ours, launch), (theirs, unused) = await prepared(node, "web.1"), await prepared(node, "web.2")
    await unused.abort()
    await node.fill(ours, launch)
    await exit_of(ours)
    seen = output(ours).splitlines()
    assert "NoNewPrivs:\t1" in seen and "Seccomp:\t2" in seen and "filtered" in seen
    assert seen == await run_with_runc(theirs)


async def prepared(node: Sandbox, name: str) -> tuple[Container, Launch]:
    container = node.container(task(name, "sh", "-c", LOOK, user="0:0"))
    container.directory.chmod(0o711)
    launch = await node.create(container)
    await node.prepare(container)
    config = json.loads((container.directory / "config.json").read_text())
    assert violations(config) == []
    return container, launch


async def run_with_runc(container: Container) -> list[str]:
    """It makes the cgroup itself, where the isolator has made it already, and removes it."""
    state = container.directory / "runc"
    argv = ("runc", "--root", str(state), "run", "--bundle", str(container.directory), container.id)
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    text, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    return text.decode().splitlines()
