"""Every kernel test runs in a fresh network namespace that plays the host; the machine's own is never touched."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from netns import reconcile, sysctl
from netns.netlink import Netlink, Operation
from tests.kernel import namespaces
from tests.kernel.agent import Agent, agent
from tests.kernel.namespaces import Echo, NetnsProcess
from tests.kernel.shelf import Shelf


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """On a disk, as an agent's state is: where /tmp is a tmpfs there is nothing to limit the I/O of."""
    with TemporaryDirectory(prefix="tepui-test-", dir="/var/tmp") as directory:
        yield Path(directory)


@pytest.fixture(autouse=True)
def host_netns() -> Iterator[None]:
    """The test, its event loop, threads and subprocesses are in a network namespace that has only lo."""
    if os.geteuid() != 0:
        pytest.fail("kernel tests need root")
    with namespaces.fresh_network():
        yield


@pytest.fixture
def host_mounts(host_netns: None) -> Iterator[None]:
    """The test is in a mount namespace of its own too, from which nothing propagates."""
    with namespaces.fresh_mounts():
        yield


@pytest.fixture
def spawn() -> Iterator[Callable[..., NetnsProcess]]:
    """Makes processes, each in a network namespace of its own, that end with the test."""
    with ExitStack() as stack:

        def make(*options: str) -> NetnsProcess:
            process = namespaces.spawn(*options)
            stack.callback(process.stop)
            return process

        yield make


@pytest.fixture
def echo_server() -> Iterator[Callable[[int], Echo]]:
    """Starts a TCP echo server in the namespace of a process; it ends with the test."""
    with ExitStack() as stack:

        def make(pid: int) -> Echo:
            server = namespaces.echo_server(pid)
            stack.callback(server.stop)
            return server

        yield make


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every operation on netlink and every setting written from now on, in words."""
    done: list[str] = []
    apply, write = Netlink.apply, sysctl.write

    async def counting_apply(self: Netlink, operations: Sequence[Operation]) -> None:
        done.extend(operation.describe() for operation in operations)
        await apply(self, operations)

    def counting_write(setting: sysctl.Sysctl) -> None:
        done.append(setting.describe())
        write(setting)

    monkeypatch.setattr(Netlink, "apply", counting_apply)
    monkeypatch.setattr(reconcile, "write", counting_write)
    return done


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Agent]:
    """An agent without a master, that may read images and files below `tmp_path`."""
    async with agent(tmp_path) as made:
        yield made


@pytest.fixture
def shelf(node: Agent, tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)
