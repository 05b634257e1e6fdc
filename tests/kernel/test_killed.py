"""An agent that is killed (SIGKILL) at any step of connecting a container or of cutting it off: the next one leaves
nothing of it, or goes on with it. Driver, firewall, limits of bandwidth and published ports together.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.kernel.faults import MOST_STEPS
from tests.kernel.killed import Agent, agent, attach, container, detach
from tests.kernel.namespaces import NetnsProcess, ip, run
from tests.kernel.sandbox import until

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
Spawn = Callable[[], NetnsProcess]


@pytest.fixture
async def nothing(host_netns: None, tmp_path: Path) -> AsyncIterator[list[object]]:
    """What there is with an agent and no container; and again in the end."""
    for line in ("link add card type veth peer wire", "addr add 192.0.2.1/24 dev card", "link set card up"):
        run("ip", *line.split())
    async with agent(tmp_path, []) as made:
        before = traces(tmp_path)
        yield before
        await made.firewall.remove()


def traces(state: Path) -> list[object]:
    """Of containers, in the kernel and on the disk."""
    links = sorted(link["ifname"] for link in ip("link"))
    routes = sorted(f"{route['dst']} {route['dev']}" for route in (*ip("route"), *ip("-6", "route")))
    leases = sorted(path.name for path in (state / "leases").glob("*/*") if not path.name.endswith(".rested"))
    elements = [line for line in run("nft", "list", "table", "inet", "tepui").splitlines() if "elements" in line]
    neighbours = run("ip", "neigh", "show", "nud", "permanent") + run("ip", "-6", "neigh", "show", "nud", "permanent")
    queues = [line.split()[1:5] for line in run("tc", "qdisc").splitlines() if "tbf" in line or "clsact" in line]
    return [links, [each for each in routes if "fe80" not in each], leases, elements, neighbours, queues]


async def run_until(verb: str, state: Path, pid: int, step: int) -> bool:
    """Whether it was killed."""
    argv = (sys.executable, "-m", "tests.kernel.killed", verb, str(state), str(pid), str(step))
    process = await asyncio.create_subprocess_exec(*argv, cwd=ROOT, stdout=asyncio.subprocess.DEVNULL)
    code = await process.wait()
    assert code in (0, -signal.SIGKILL)
    return code != 0


async def forgotten(made: Agent, state: Path, nothing: list[object]) -> None:
    await until(lambda: traces(state) == nothing, "nothing is left")


async def test_attach(nothing: list[object], tmp_path: Path, spawn: Spawn) -> None:
    for step in range(MOST_STEPS):
        web = spawn()
        killed = await run_until("attach", tmp_path, web.pid, step)
        if step % 2:  # the container is no task's
            async with agent(tmp_path, []) as made:
                await forgotten(made, tmp_path, nothing)
        async with agent(tmp_path, [container(tmp_path)]) as made:
            await attach(made, tmp_path, web.pid)
            _, _, leases, elements, _, queues = traces(tmp_path)
            assert isinstance(leases, list) and len(leases) == 2 and len(str(queues).split("tbf")) == 3
            assert f"{leases[0]} . {leases[0]}" in str(elements) and "8080" in str(elements)
            assert {link["ifname"] for link in web.ip("link")} == {"lo", "eth0", "eth1"}
            await detach(made, tmp_path)
            await forgotten(made, tmp_path, nothing)
        web.stop()
        if not killed:
            assert step > 20
            return
    raise AssertionError(f"not done after {MOST_STEPS} steps")


async def test_detach(nothing: list[object], tmp_path: Path, spawn: Spawn) -> None:
    for step in range(MOST_STEPS):
        web = spawn()
        async with agent(tmp_path, []) as made:
            await attach(made, tmp_path, web.pid)
        killed = await run_until("detach", tmp_path, web.pid, step)
        async with agent(tmp_path, []) as made:
            await forgotten(made, tmp_path, nothing)
        web.stop()
        if not killed:
            assert step > 5
            return
    raise AssertionError(f"not done after {MOST_STEPS} steps")
