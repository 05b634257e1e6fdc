"""Another runtime, as `tepui-cni` sees it: executes the plug-in as it is installed, with what CNI has runtimes say."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from agent.cni_socket import CniSocket
from agent.foreign import Foreign
from netns.firewall.table import Firewall
from netns.networks import Networks
from tests.patience import PATIENCE

PLUGIN = Path(sys.executable).with_name("tepui-cni")
DEADLINE_S = 20.0 * PATIENCE
NULL = object()  # that of JSON
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Answer:
    """`said` is None when nothing was."""

    status: int
    said: Any

    @property
    def result(self) -> Any:
        assert self.status == 0, self.said
        return self.said

    @property
    def error(self) -> tuple[int, str]:
        assert self.status != 0, self.said
        assert self.said["cniVersion"] in ("1.0.0", "1.1.0") and isinstance(self.said["details"], str)
        return self.said["code"], self.said["msg"]


@dataclass
class Runtime:
    """`changes` are of the configuration; with None a key is left out, and so is a variable. `valid` are the valid
    attachments of a GC."""

    socket: Path
    network: str = "prod"
    version: str = "1.1.0"
    plugin: Path = PLUGIN
    environment: Mapping[str, str | None] = field(default_factory=dict)

    async def call(
        self, command: str, netns: str | None = None, container: str = "web", valid: Any = None, **changes: Any
    ) -> Answer:
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/usr/lib/cni",
            **self.environment,
        }
        configuration = {
            "cniVersion": self.version,
            "name": "tepui",
            "type": self.plugin.name,
            "network": self.network,
            "socket": str(self.socket),
            **changes,
            "cni.dev/valid-attachments": valid,
        }
        said = {key: value for key, value in configuration.items() if value is not None}
        text = json.dumps({key: None if value is NULL else value for key, value in said.items()})
        return await self.execute(text.encode(), {k: v for k, v in variables.items() if v is not None})

    async def execute(self, text: bytes, variables: dict[str, str]) -> Answer:
        with TemporaryFile() as said:  # a pipe would break when it is not read to its end
            said.write(text)
            said.seek(0)
            process = await asyncio.create_subprocess_exec(
                self.plugin,
                stdin=said,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **variables},
            )
        try:
            async with asyncio.timeout(DEADLINE_S):
                stdout, stderr = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert stderr == b"", stderr.decode()
        assert process.returncode is not None
        return Answer(process.returncode, json.loads(stdout) if stdout else None)

    async def add(self, pid: int, container: str = "web", **changes: Any) -> Any:
        return (await self.call("ADD", netns_of(pid), container, **changes)).result

    async def delete(self, pid: int, container: str = "web", **changes: Any) -> None:
        assert (await self.call("DEL", netns_of(pid), container, **changes)).result is None


def netns_of(pid: int) -> str:
    return f"/proc/{pid}/ns/net"


@dataclass(frozen=True, slots=True)
class Door:
    """What of an agent `tepui-cni` needs."""

    runtime: Runtime
    foreign: Foreign
    networks: Networks
    ready: asyncio.Event
    state: Path

    def records(self) -> list[str]:
        return sorted(path.name for path in (self.state / "foreign").glob("*"))


@asynccontextmanager
async def door(
    state: Path, networks: Networks, firewall: Firewall, boot_id: str = "boot-1", socket: Path | None = None
) -> AsyncIterator[Door]:
    """As an agent has it that has just started, and knows its networks."""
    foreign, ready = Foreign(state / "foreign", boot_id, networks, firewall), asyncio.Event()
    await foreign.recover()
    path = socket or state / "cni.sock"
    ready.set()
    serving = asyncio.create_task(CniSocket(path, foreign, networks, ready).run())
    await until(lambda: path.is_socket() and path.stat().st_mode & 0o777 == 0o600)
    try:
        yield Door(Runtime(path), foreign, networks, ready, state)
        assert not serving.done()
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    assert not path.exists()


async def until(condition: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + DEADLINE_S
    while not condition():
        assert loop.time() < end, "not in time"
        await asyncio.sleep(POLL_S)
