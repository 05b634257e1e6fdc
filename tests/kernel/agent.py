"""An agent for tests without a master: reconciler, checkpoint, isolators and launcher, and what it reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agent.checkpoint import Checkpoint
from agent.containers import Containers, Directories, Made
from agent.fetch.fetcher import Fetcher
from agent.images.images import Images, Places
from agent.images.secrets import PullSecrets
from agent.launcher.client import NATIVE
from agent.provision import Provision
from agent.reconciler import Reconciler
from agent.sandboxes import SPARES, Sandboxes
from isolators.rights import NO_RIGHTS, Rights
from model.resources import Resources
from model.task import TaskSpec, TaskState, TaskStatus
from tests.kernel.sandbox import DEADLINE_S, Sandbox, sandbox, until

CAPACITY = Resources(cpus=2000, mem=1024, disk=1024)


@dataclass
class Agent:
    node: Sandbox
    directories: Directories
    reports: list[TaskStatus] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.ready.set()
        state = self.directories.state
        self.images = Images(Places(state / "images", self.directories.bundles, state / "registries", (state,)))
        self.fetcher = Fetcher(state / "fetch", (state,))
        self.fetcher.open()
        provision = Provision(self.images, self.fetcher, PullSecrets({"shop": state / "shop.json"}))
        self.containers = Containers(self.directories, self.node.isolators, self.node.launcher, provision=provision)
        self.sandboxes = Sandboxes(self.containers, self.ready)
        checkpoint = Checkpoint(self.directories.tasks)
        self.reconciler = Reconciler(
            self.containers, self.sandboxes, checkpoint, "this-boot", CAPACITY, self.report, self.ready
        )

    def report(self, status: TaskStatus) -> None:
        self.reports.append(status)
        self.heard.set()

    def spares(self, network: str) -> list[Made]:
        return list(self.sandboxes._spares.get(network, ()))

    async def with_spares(self, network: str) -> list[Made]:
        """As many as it keeps of them."""
        self.sandboxes.take(network)
        if self.sandboxes._making is None:
            self.sandboxes.begin()
        await until(lambda: len(self.spares(network)) == SPARES, f"spares in {network}")
        return self.spares(network)

    async def die(self) -> None:
        """As by SIGKILL, at a moment when it makes no sandbox: what it held is closed, and nothing is put away."""
        await self.reconciler.close()
        if self.sandboxes._making is not None:
            self.sandboxes._making.cancel()
        held = [made for spares in self.sandboxes._spares.values() for made in spares]
        for made in (*held, *self.reconciler.first_steps.made.values()):
            made.launch.keeper.close()
        await self.node.launcher.stop()

    async def run(self, spec: TaskSpec) -> TaskStatus:
        """How the task ended."""
        self.reconciler.assign(spec, kill=False)
        return await self.reached(spec.id, TaskState.FINISHED)

    async def reached(self, task_id: str, state: TaskState) -> TaskStatus:
        """The first report of this state or a greater one."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for status in self.reports:
                    if status.task_id == task_id and status.state >= state:
                        return status
                self.heard.clear()
                await self.heard.wait()


@asynccontextmanager
async def agent(state: Path, rights: Rights = NO_RIGHTS, by: str = NATIVE) -> AsyncIterator[Agent]:
    """Checks at its end, as `sandbox` does, that nothing is left."""
    directories = Directories(state)
    directories.make()
    async with sandbox(directories.bundles, rights, by) as node, recovered(Agent(node, directories)) as made:
        yield made


@asynccontextmanager
async def recovered(made: Agent) -> AsyncIterator[Agent]:
    """From its start to its orderly end."""
    await made.images.open()
    await made.reconciler.recover()
    try:
        yield made
    finally:
        for spec in [record.spec for record in made.reconciler.books.records.values() if not record.over]:
            made.reconciler.assign(spec, kill=True)
            await made.reached(spec.id, TaskState.FINISHED)
        await made.reconciler.close()
        await made.sandboxes.close()
        await made.images.close()
