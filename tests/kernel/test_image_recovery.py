"""Tasks of images whose agent is killed: what runs goes on and keeps its layers, what waits begins again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from agent.containers import Directories
from model.fetch import Fetch
from model.task import TaskState
from tests.images import Entry, busybox, layer, make
from tests.kernel.agent import Agent, recovered
from tests.kernel.registry import HOST, knows, registry
from tests.kernel.sandbox import Sandbox, sandbox, until
from tests.kernel.shelf import Shelf, of_image

pytestmark = pytest.mark.anyio

IMAGE = [*busybox(), Entry("hello", b"hello")]
LOOK = "cat /hello $MESOS_SANDBOX/extra; while test ! -e $MESOS_SANDBOX/go; do sleep 0.05; done; cat /hello"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Sandbox]:
    directories = Directories(tmp_path)
    directories.make()
    async with sandbox(directories.bundles) as made:
        yield made


@asynccontextmanager
async def killed(node: Sandbox, directories: Directories) -> AsyncIterator[Agent]:
    """An agent that is killed at the end of the block."""
    made = Agent(node, directories)
    await made.images.open()
    await made.reconciler.recover()
    yield made
    await made.die()
    await made.images.close()


async def test_a_task_that_runs_keeps_its_image_and_its_files(node: Sandbox, tmp_path: Path) -> None:
    directories, reference = Directories(tmp_path), Shelf(tmp_path).layout(layer(IMAGE))
    (tmp_path / "extra").write_text("extra")
    spec = of_image(reference, "sh", "-c", LOOK, fetch=(Fetch(f"file://{tmp_path}/extra"),))
    async with killed(node, directories) as first:
        first.reconciler.assign(spec, kill=False)
        await first.reached("web.1", TaskState.RUNNING)
        before = first.reconciler.books.records["web.1"]
    async with recovered(Agent(node, directories)) as second:
        after = second.reconciler.books.records["web.1"]
        assert (after.container, after.spec) == (before.container, before.spec)
        assert await second.images.prune() == 0
        (listed,) = second.images.listed()
        assert listed.tasks == ("web.1",)
        (container,) = directories.bundles.iterdir()
        (directories.layers / container.name / "workspace/go").touch()
        ended = await second.reached("web.1", TaskState.FINISHED)
        assert ended.reason == "exited with 0" and not container.exists()
        assert directories.log("web.1", "stdout").read_text() == "helloextrahello"
        assert await second.images.prune() > 0
        assert list((tmp_path / "layers").iterdir()) == list((tmp_path / "images/layers").iterdir()) == []


def waits(node: Agent) -> bool:
    return any("trying again" in report.message for report in node.reports)


async def test_a_task_that_waits_for_its_image_begins_again(node: Sandbox, tmp_path: Path) -> None:
    directories = Directories(tmp_path)
    with registry(tmp_path / "registry") as shop:
        shop.push("web:1", make([layer(IMAGE)], {"Cmd": ["cat", "/hello"]}))
        knows(tmp_path, shop)
        shop.stop()
        async with killed(node, directories) as first:
            first.reconciler.assign(of_image(f"{HOST}/web:1", image={"pull_secret": "shop"}), kill=False)
            await until(partial(waits, first), "it waits for the registry")
        shop.start()
        async with recovered(Agent(node, directories)) as second:
            ended = await second.reached("web.1", TaskState.FINISHED)
            assert (ended.reason, ended.message) == ("exited with 0", "")
            assert directories.log("web.1", "stdout").read_text() == "hello"
