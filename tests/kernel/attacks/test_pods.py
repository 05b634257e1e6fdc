"""A container that sees the processes of its pod tries to get hold of those that are not its neighbours' yet: they come
from the node, and hold what no container may have until they have given it up (CVE-2016-9962, as for commands)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.commands import Commands
from agent.launcher.client import LaunchError
from isolators.base import BundlePart, Isolator, Sandbox
from model.task import TaskState
from tests.kernel.agent import agent
from tests.kernel.sandbox import until
from tests.kernel.test_pods import ends, pod, written

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

COMMANDS = 12
# A process has its old name for a moment after it has executed something: what counts is whose memory it has.
ATTACK = """
import ctypes, json, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
seen, got, stop = set(), set(), []
signal.signal(signal.SIGUSR1, lambda *_: stop.append(True))
def comm(pid):
    return open(f"/proc/{pid}/comm").read().strip()
def is_the_nodes(pid):
    return "python" in os.readlink(f"/proc/{pid}/exe")
def look(pid):
    yield "executable", lambda: is_the_nodes(pid)
    yield "root", lambda: os.listdir(f"/proc/{pid}/root/")
    yield "cwd", lambda: os.listdir(f"/proc/{pid}/cwd/")
    yield "descriptors", lambda: os.listdir(f"/proc/{pid}/fd")
    yield "memory", lambda: open(f"/proc/{pid}/mem", "rb")
    yield "environment", lambda: open(f"/proc/{pid}/environ", "rb").read()
    yield "map", lambda: os.listdir(f"/proc/{pid}/map_files")
print("ready", flush=True)
while not stop:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if not comm(pid).startswith("tepui"):
                continue
            for name, way in look(pid):
                try:
                    found = way()
                except PermissionError:
                    continue
                finally:
                    seen.add(comm(pid))
                if found and is_the_nodes(pid):
                    got.add(f"{name} of {comm(pid)}")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
print(json.dumps({"seen": sorted(seen), "got": sorted(got)}), flush=True)
signal.pause()
"""


class Misleading(Isolator):
    """Adds to what the others have returned."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    async def open(self, sandbox: Sandbox) -> BundlePart:
        name = {"network": "net"}.get(self._kind, self._kind)
        return {"linux": {"namespaces": [{"type": self._kind, "path": f"/proc/1/ns/{name}"}]}}


async def test_what_starts_beside_it_is_out_of_its_reach(tmp_path: Path) -> None:
    specs = pod(("/usr/bin/python3", "-c", ATTACK), *[("sleep", "infinity")] * 5, share_pid=True)
    async with agent(tmp_path / "agent") as made:
        for spec in specs:
            made.reconciler.assign(spec, kill=False)
        for spec in specs:
            assert (await made.reached(spec.id, TaskState.RUNNING)).state is TaskState.RUNNING
        await until(lambda: "ready" in written(made, specs[0]), "it looks around")
        commands = Commands(made.containers, made.node.launcher)
        container = made.reconciler.running(specs[1].id)
        attacker = made.reconciler.running(specs[0].id)
        assert container is not None and attacker is not None
        for _ in range(COMMANDS):
            assert (await commands.run(container, ("true",))).code == 0
        assert (await commands.run(attacker, ("sh", "-c", "kill -USR1 $(pidof -s python3)"))).code == 0
        await until(lambda: written(made, specs[0]).count("\n") == 2, "it has said what it found")
        found = json.loads(written(made, specs[0]).splitlines()[1])
        made.reconciler.assign(specs[0], kill=True)
        await ends(made, specs)
    assert "tepui-pod" in found["seen"] and len(found["seen"]) > 1
    assert found["got"] == []


@pytest.mark.parametrize("kind", ["user", "network", "ipc", "pid"])
async def test_no_namespace_is_joined_but_the_pods(tmp_path: Path, kind: str) -> None:
    """Of a bundle that names another process than the pod's own."""
    async with agent(tmp_path / "agent") as made:
        spec = pod(("true",), share_ipc=True, share_pid=True)[0]
        assert spec.pod is not None
        holder = await made.sandboxes.make("none")
        made.node.isolators.append(Misleading(kind))
        with pytest.raises(LaunchError, match="join namespaces"):
            await made.sandboxes.join(holder.sandbox, spec.pod)
        await holder.launch.abort()
        await made.containers.cleanup(holder.sandbox)
        assert list(made.directories.bundles.iterdir()) == []
