"""A crash between any two steps of attaching and detaching by CNI plug-ins leaks nothing.

A step is a change of the disk, of a mount, or a plug-in: before it is executed, and after it has done its work.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from netns import durable
from netns.cni import cache, chain, driver
from netns.cni.driver import CniDriver
from netns.cni.execute import execute
from netns.driver import Attachment
from tests.kernel.cni import DEBIAN, conflist, host_local, links, mounts_below, reserved, spec
from tests.kernel.faults import MOST_STEPS, Crash, Steps
from tests.kernel.namespaces import NetnsProcess, run

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

Spawn = Callable[..., NetnsProcess]
Action = Callable[[CniDriver], Awaitable[Any]]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    counting = Steps()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any) -> Any:
            counting.step()
            return function(*arguments)

        return call

    async def counted_execute(*arguments: Any, **options: Any) -> Any:
        counting.step()
        ended = await execute(*arguments, **options)
        counting.step()
        return ended

    monkeypatch.setattr(chain, "execute", counted_execute)
    for module, name in (
        (durable, "write_synced"),
        (durable, "sync_directory"),
        (cache, "sync_directory"),
        (cache, "let_go"),
        (driver, "keep"),
    ):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return counting


class Node:
    """What is below `directory`, and what the plug-ins left in the kernel."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "cni"
        self.data = directory / "data"
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "ipam": host_local(self.data)}
        self.spec = spec(conflist(bridge, {"type": "firewall", "backend": "iptables"}))

    def opened(self) -> CniDriver:
        return CniDriver(self.state, [DEBIAN])

    def nothing_left(self, web: NetnsProcess) -> None:
        assert reserved(self.data) == {}
        assert {link for link in links() if link.startswith("veth")} == set()
        assert "10.88.0." not in run("iptables-save")
        assert mounts_below(self.state) == []
        assert [path.name for path in (self.state / "attachments").glob("*")] == []
        assert [link["ifname"] for link in web.ip("link")] == ["lo"]

    async def after_crash_at_each_step(
        self, steps: Steps, action: Action, then: Action, before: Action | None = None
    ) -> int:
        for allowed in range(MOST_STEPS):
            if before is not None:
                await before(self.opened())
            steps.left, crashed = allowed, False
            try:
                await action(self.opened())
            except Crash:
                crashed = True
            steps.left = MOST_STEPS
            await then(self.opened())
            if not crashed:
                return allowed
        raise AssertionError(f"not done after {MOST_STEPS} steps")


@pytest.fixture
async def node(tmp_path: Path) -> Node:
    made = Node(tmp_path)
    await made.opened().configure(made.spec)
    return made


async def test_attach_then_collected(node: Node, steps: Steps, spawn: Spawn) -> None:
    web = spawn()

    async def collect(cni: CniDriver) -> None:
        await cni.gc(frozenset())
        assert cni.addresses("web") == ()
        node.nothing_left(web)

    attach: Action = lambda cni: cni.attach(Attachment("web", "sdn", web.pid))  # noqa: E731
    assert await node.after_crash_at_each_step(steps, attach, collect) > 12


async def test_attach_then_attached_again(node: Node, steps: Steps, spawn: Spawn) -> None:
    web = spawn()

    async def again(cni: CniDriver) -> None:
        [address] = await cni.attach(Attachment("web", "sdn", web.pid))
        assert reserved(node.data) == {str(address): "web"}
        await cni.check("web")
        await cni.detach("web")
        node.nothing_left(web)

    attach: Action = lambda cni: cni.attach(Attachment("web", "sdn", web.pid))  # noqa: E731
    await node.after_crash_at_each_step(steps, attach, again)


async def test_detach_then_collected(node: Node, steps: Steps, spawn: Spawn) -> None:
    web = spawn()

    async def collect(cni: CniDriver) -> None:
        await cni.gc(frozenset())
        node.nothing_left(web)

    attach: Action = lambda cni: cni.attach(Attachment("web", "sdn", web.pid))  # noqa: E731
    assert await node.after_crash_at_each_step(steps, lambda cni: cni.detach("web"), collect, before=attach) > 4


async def test_configure_and_remove(node: Node, steps: Steps) -> None:
    async def mend(cni: CniDriver) -> None:
        await cni.configure(node.spec)
        assert node.opened().known() == {"sdn"}
        await cni.remove("sdn")
        assert node.opened().known() == frozenset()

    async def both(cni: CniDriver) -> None:
        await cni.configure(node.spec)
        await cni.remove("sdn")

    assert await node.after_crash_at_each_step(steps, both, mend) > 4
