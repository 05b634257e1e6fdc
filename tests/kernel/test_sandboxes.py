"""Sandboxes made ahead, with the real kernel: what a task gets is the same with and without, and nothing is left of one
that no task got."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from agent.containers import Directories, Made
from agent.launcher import record
from agent.node_network import NodeNetwork
from agent.sandboxes import QUIET_S, SPARES
from isolators.network import NetworkIsolator
from model.network import Block, Network, NetworkKind, Share
from model.task import Rlimit, TaskSpec, TaskState
from netns.driver import NetworkSpec
from netns.firewall.nftables import NftFirewall
from netns.link import VETH_PREFIX, veth_name
from netns.networks import Networks
from tests.kernel import remains
from tests.kernel.agent import Agent, recovered
from tests.kernel.namespaces import ip, run
from tests.kernel.remains import Remains
from tests.kernel.sandbox import Sandbox, alive, cgroups, isolators_of, mounts_below, sandbox, task, until
from tests.unit.node import Driver, Names, Vips

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

UNDERLAY = ip_address("192.0.2.1")
NETWORK = Network("prod", NetworkKind.OVERLAY, (ip_network("100.64.0.0/11"),), vni=1024)
TTY_GROUP = 5
ENDS = 40
FOREVER = ("sleep", "infinity")
LOOK = """
cat /proc/self/mountinfo | cut -d' ' -f4- | sed 's/master:[0-9]*//'
cat /proc/self/uid_map /proc/self/gid_map /proc/self/cgroup /proc/self/limits /proc/self/oom_score_adj
grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Uid|Gid|NSpid)' /proc/self/status
cat /proc/sys/kernel/hostname /etc/hosts /proc/net/route /proc/sys/net/ipv4/ip_unprivileged_port_start
ls -l /proc/self/fd /dev | cut -c1-10; ls /; env; pwd
echo looked; exec sleep infinity
"""


def block(subnet: str) -> Block:
    return Block("prod", "n1", ip_network(subnet))


@dataclass
class Node:
    state: Path
    networks: Networks
    sandbox: Sandbox
    directories: Directories
    mark: str

    def agent(self) -> Agent:
        """A new one, that knows nothing but what is on disk and in the kernel."""
        self.sandbox.isolators = [
            *isolators_of(self.directories.bundles, self.sandbox.prefix),
            NetworkIsolator(self.networks, NftFirewall()),
        ]
        return Agent(self.sandbox, self.directories)

    def look(self) -> Remains:
        return remains.look(self.directories.state, self.sandbox.prefix, self.mark)

    def leased(self) -> set[str]:
        directory = self.state / "network" / "leases" / "prod"
        return {path.name for path in directory.glob("*") if not path.name.endswith(".rested")}

    def places(self) -> set[str]:
        """Containers that have a directory."""
        return {path.name for place in (self.directories.bundles, self.directories.layers) for path in place.iterdir()}


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    mark = str(tmp_path)
    monkeypatch.setenv(remains.MARK, mark)
    run("ip", "link", "add", "card", "type", "veth", "peer", "wire")
    run("ip", "addr", "add", f"{UNDERLAY}/24", "dev", "card")
    for link in ("card", "wire"):
        run("ip", "link", "set", link, "up")
    (tmp_path / "network").mkdir()
    directories = Directories(tmp_path / "agent")
    directories.make()
    async with (
        Networks(tmp_path / "network", "n1", "this-boot", UNDERLAY) as networks,
        sandbox(directories.bundles) as made,
    ):
        await networks.configure(NetworkSpec(NETWORK, (block("100.64.1.0/24"),)))
        yield Node(tmp_path, networks, made, directories, mark)
    assert list(directories.layers.iterdir()) == []


def spec(name: str, *argv: str, **changes: Any) -> TaskSpec:
    return task(name, *(argv or FOREVER), network="prod", kill_grace_s=0.0, **changes)


async def container_of(agent: Agent, task_id: str) -> str:
    await agent.reached(task_id, TaskState.RUNNING)
    return agent.reconciler.books.records[task_id].container


async def seen(agent: Agent, wanted: TaskSpec) -> tuple[list[str], dict[str, Any]]:
    """What a task sees, and its bundle, without the names and numbers that are its container's alone."""
    agent.reconciler.assign(wanted, kill=False)
    running = await agent.reached(wanted.id, TaskState.RUNNING)
    log, record = agent.directories.log(wanted.id, "stdout"), agent.reconciler.books.records[wanted.id]
    await until(lambda: log.exists() and log.read_text().endswith("looked\n"), "it has looked")
    bundle = (agent.directories.bundles / record.container / "config.json").read_text()
    texts = []
    for text in (log.read_text(), bundle):
        own = (record.container, str(record.id_base), str(record.id_base + TTY_GROUP), running.addresses[0])
        for number, name in enumerate(own):
            text = text.replace(name, f"424242{number}")
        texts.append(text)
    return texts[0].splitlines(), json.loads(texts[1])


async def test_a_start_with_a_spare_is_as_one_without(node: Node) -> None:
    sysctls = (("net.ipv4.ip_unprivileged_port_start", "80"),)
    asks: dict[str, Any] = {"rlimits": (Rlimit("RLIMIT_NOFILE", 100, 100),), "sysctls": sysctls}
    async with recovered(node.agent()) as agent:
        without = await seen(agent, spec("web.1", "sh", "-c", LOOK, **asks))
        ready = {made.sandbox.id for made in await agent.with_spares("prod")}
        given = await seen(agent, spec("web.2", "sh", "-c", LOOK, **asks))
        assert await container_of(agent, "web.1") not in ready
        assert await container_of(agent, "web.2") in ready
    assert given == without and len(without[0]) > 60


async def test_who_is_given_a_spare_has_its_address_and_process(node: Node) -> None:
    async with recovered(node.agent()) as agent:
        spares = {made.sandbox.id: made for made in await agent.with_spares("prod")}
        agent.reconciler.assign(spec("web.1"), kill=False)
        running = await agent.reached("web.1", TaskState.RUNNING)
        made = spares[await container_of(agent, "web.1")]
        assert running.pid == made.launch.pid and running.addresses == (str(made.addresses[0]),)
        assert node.networks.addresses(made.sandbox.id) == made.addresses


async def test_spares_have_no_address_that_a_task_lacks(node: Node) -> None:
    small = block(f"100.64.1.0/{32 - (SPARES + 3).bit_length()}")
    await node.networks.configure(NetworkSpec(NETWORK, (small,)))
    async with recovered(node.agent()) as agent:
        for number in range(len(small.leasable()) - SPARES):
            await agent.with_spares("prod") if number else None
            agent.reconciler.assign(spec(f"web.{number}"), kill=False)
            await agent.reached(f"web.{number}", TaskState.RUNNING)
        spares = await agent.with_spares("prod")
        assert len(node.leased()) == len(small.leasable())
        wanted = str(spares[0].addresses[0])
        agent.reconciler.assign(spec("db.1", address=wanted), kill=False)
        assert (await agent.reached("db.1", TaskState.RUNNING)).addresses == (wanted,)


async def test_a_task_runs_since_it_was_started_and_not_since_its_sandbox_was_made(node: Node) -> None:
    """Or checks would have no patience left with a task whose sandbox has waited for long; also the next agent's."""
    async with recovered(node.agent()) as agent:
        spares = [record.identify(made.launch.pid) for made in await agent.with_spares("prod")]
        await until(lambda: all(spare and record.age(spare) > 1.0 for spare in spares), "spares have waited")
        agent.reconciler.assign(spec("web.1"), kill=False)
        running = await agent.reached("web.1", TaskState.RUNNING)
        keeper = record.read_keeper(str(agent.directories.bundles / await container_of(agent, "web.1")))
        assert keeper is not None and keeper.container in spares and record.running_for(keeper) < 1.0
        await agent.die()
        agent.reconciler.books.records.clear()
        async with recovered(node.agent()) as second:
            assert abs(second.reports[0].since - running.since) < 0.5


@pytest.mark.parametrize("whom", ["init", "keeper", "maker"])
async def test_a_spare_that_was_killed_is_not_given_out(node: Node, whom: str) -> None:
    async with recovered(node.agent()) as agent:
        spares = await agent.with_spares("prod")
        for made in spares:
            os.kill(victim(made.launch.pid, made.sandbox.directory, whom), signal.SIGKILL)
            await until(lambda made=made: not made.launch.waits, "it is known to be gone")  # type: ignore[misc]
        ended = await agent.run(spec("web.1", "true"))
        assert (ended.state, ended.reason) == (TaskState.FINISHED, "exited with 0")
        gone = {made.sandbox.id for made in spares}
        await until(lambda: not node.places() & gone, "nothing is left of those that were killed")
        assert not any(alive(made.launch.pid) for made in spares)


@pytest.mark.parametrize("whom", ["init", "keeper", "maker"])
async def test_a_task_whose_spare_was_killed_at_that_moment_takes_another(node: Node, whom: str) -> None:
    async with recovered(node.agent()) as agent:
        await agent.with_spares("prod")
        for number in range(5):
            await until(lambda: len(agent.spares("prod")) == SPARES, "all are ready")
            made, *_ = agent.spares("prod")
            os.kill(victim(made.launch.pid, made.sandbox.directory, whom), signal.SIGKILL)
            ended = await agent.run(spec(f"web.{number}", "true"))
            assert (ended.state, ended.reason) == (TaskState.FINISHED, "exited with 0")
            assert made.sandbox.id not in node.places()


async def test_a_task_whose_sandboxes_are_all_killed_is_given_up(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async with recovered(node.agent()) as agent:
        start = agent.containers.start

        async def killed(made: Made, *rest: Any) -> int:
            os.kill(made.launch.pid, signal.SIGKILL)
            return await start(made, *rest)

        monkeypatch.setattr(agent.containers, "start", killed)
        ended = await agent.run(spec("web.1", "true"))
        assert ended.state is TaskState.FAILED and ended.reason.endswith("init: No such process")


async def test_nothing_is_left_of_spares_that_are_dropped(node: Node) -> None:
    async with recovered(node.agent()) as agent:
        assert (await agent.run(spec("web.1", "true"))).state is TaskState.FINISHED
        agent.reconciler.withdraw("web.1")
        before = await at_rest(node)
        for _ in range(2):
            await agent.with_spares("prod")
            assert len(node.places()) == len(node.leased()) == SPARES
            await agent.sandboxes.drop("prod")
            assert node.places() == node.leased() == set()
            await until(lambda: at_rest_now(node) and node.look() == before, "it is as before")


async def test_an_end_while_one_is_made_leaves_nothing(node: Node) -> None:
    async with recovered(node.agent()) as agent:
        assert (await agent.run(spec("web.1", "true"))).state is TaskState.FINISHED
        agent.reconciler.withdraw("web.1")
        before = await at_rest(node)
    for tenths in range(ENDS):
        last = node.agent()
        await last.reconciler.recover()
        last.sandboxes.take("prod")
        last.sandboxes.begin()
        await asyncio.sleep(QUIET_S + tenths * 0.001)
        await last.sandboxes.close()
        what = f"it is as before, {tenths} ms after the first was begun"
        await until(lambda: at_rest_now(node) and node.look() == before, what)
        assert node.places() == node.leased() == set()


async def test_nothing_is_left_of_the_spares_of_an_agent_that_was_killed(node: Node) -> None:
    first = node.agent()
    await first.reconciler.recover()
    first.reconciler.assign(spec("web.1"), kill=False)
    running = await first.reached("web.1", TaskState.RUNNING)
    kept = await container_of(first, "web.1")
    spares = await first.with_spares("prod")
    await first.die()
    async with recovered(node.agent()) as second:
        assert node.places() == {kept} and node.leased() == set(running.addresses)
        assert {Path(path).name for path in cgroups(node.sandbox.prefix)} == {kept}
        assert {path.parent.name for path in mounts_below(node.directories.state)} == {kept}
        assert not any(alive(made.launch.pid) for made in spares) and running.pid and alive(running.pid)
        assert [link["ifname"] for link in ip("link") if link["ifname"].startswith(VETH_PREFIX)] == [veth_name(kept)]
        bases = {made.sandbox.id_base for made in await second.with_spares("prod")}
        assert len(bases) == SPARES and second.reconciler.books.records["web.1"].id_base not in bases


async def test_a_task_whose_sandbox_was_claimed_and_not_started_begins_again_in_another(node: Node) -> None:
    first = node.agent()
    await first.reconciler.recover()
    await first.with_spares("prod")
    first.ready.clear()
    first.reconciler.assign(spec("web.1"), kill=False)
    assert await first.reconciler.settle() == []
    claimed = first.reconciler.books.records["web.1"]
    assert claimed.container and claimed.status.state is TaskState.ACCEPTED and claimed.status.pid
    await first.die()
    async with recovered(node.agent()) as second:
        running = await second.reached("web.1", TaskState.RUNNING)
        again = await container_of(second, "web.1")
        assert again != claimed.container and running.sequence > claimed.status.sequence
        assert node.places() == {again} and node.leased() == set(running.addresses)
        assert not alive(claimed.status.pid) and running.pid and alive(running.pid)


async def test_spares_are_in_the_blocks_that_the_node_has_now(node: Node) -> None:
    async with recovered(node.agent()) as agent:
        fake = Driver()
        network = NodeNetwork("n1", node.networks, Vips(fake), NftFirewall(), Names(fake), (), agent.sandboxes.drop)
        for subnet in ("100.64.1.0/24", "100.64.2.0/24"):
            network.put_network(Share(NETWORK, (block(subnet),)))
            assert await network.apply() == []
            assert agent.spares("prod") == [] and node.leased() == set()
            addresses = [address for made in await agent.with_spares("prod") for address in made.addresses]
            assert len(addresses) == SPARES and all(address in ip_network(subnet) for address in addresses)
            network.put_network(Share(NETWORK, (block(subnet),)))
            assert await network.apply() == [] and len(agent.spares("prod")) == SPARES


async def test_bundles_are_in_memory_and_outlive_the_agent(tmp_path: Path) -> None:
    directories = Directories(tmp_path / "agent")
    for _ in range(2):
        directories.mount_run()
        directories.make()
        (directories.bundles / "c").mkdir(exist_ok=True)
    assert mounts_below(tmp_path) == [directories.run]
    assert run("stat", "-f", "-c", "%T", str(directories.bundles)).strip() == "tmpfs"
    run("umount", str(directories.run))


def victim(init: int, directory: Path, whom: str) -> int:
    keeper: int = json.loads((directory / "keeper.json").read_text())["keeper"]["pid"]
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    (maker,) = (int(child) for child in children if int(child) != init)
    return {"init": init, "keeper": keeper, "maker": maker}[whom]


def at_rest_now(node: Node) -> bool:
    """The kernel takes a while to remove links of those that have ended."""
    links = [link for link in node.look().links if link.startswith(VETH_PREFIX)]
    return "1 tepui-keeper" in node.look().processes and len(links) == len(node.leased())


async def at_rest(node: Node) -> Remains:
    """With a keeper ready for the next container."""
    await until(lambda: at_rest_now(node), "a keeper is ready")
    return node.look()
