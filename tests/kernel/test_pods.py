"""Pods with the real kernel: what their containers share and what they do not, their common fate, and that nothing is
left of them, whatever is killed at whatever moment."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from isolators.network import NetworkIsolator
from isolators.rights import Rights
from model.network import Block, Network, NetworkKind
from model.pod import Pod
from model.task import TaskSpec, TaskState, TaskStatus
from netns.driver import NetworkSpec
from netns.firewall.nftables import NftFirewall
from netns.networks import Networks
from tests.kernel import remains
from tests.kernel.agent import Agent, agent, recovered
from tests.kernel.namespaces import ip
from tests.kernel.namespaces import run as sh
from tests.kernel.remains import Remains
from tests.kernel.sandbox import CGROUPS, alive, task, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

NETWORK = NetworkSpec(
    Network("prod", NetworkKind.OVERLAY, (ip_network("100.64.0.0/11"),), vni=1024),
    (Block("prod", "n1", ip_network("100.64.1.0/24")),),
)
RUNTIMES = [name for name in ("runc", "crun") if shutil.which(name)]
FOREVER = ("sleep", "infinity")
SERVE = """
import socket, sys
server = socket.create_server(("127.0.0.1", 8080))
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    connection.sendall(b"hello from the other one\\n")
    connection.close()
"""
ASK = """
import socket, time
while True:
    try:
        print(socket.create_connection(("127.0.0.1", 8080), 5).makefile().read(), end="", flush=True)
        break
    except ConnectionRefusedError:
        time.sleep(0.02)
time.sleep(3600)
"""


def pod(*commands: Sequence[str], **changes: Any) -> list[TaskSpec]:
    """A task for each command: `web.p.c0` and so on."""
    members = tuple(f"web.p.c{number}" for number in range(len(commands)))
    shared = {name: changes.pop(name) for name in ("share_ipc", "share_pid", "resources") if name in changes}
    return [
        task(
            member,
            *command,
            **{"kill_grace_s": 0.0, **changes},
            pod=Pod("web.p", member.rpartition(".")[2], members, **shared),
        )
        for member, command in zip(members, commands, strict=True)
    ]


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    monkeypatch.setenv(remains.MARK, str(tmp_path))
    async with agent(tmp_path / "agent") as made:
        yield made


def assign(made: Agent, specs: Sequence[TaskSpec]) -> None:
    for spec in specs:
        made.reconciler.assign(spec, kill=False)


async def run(made: Agent, specs: Sequence[TaskSpec]) -> list[TaskStatus]:
    """All of them, when they run."""
    assign(made, specs)
    statuses = [await made.reached(spec.id, TaskState.RUNNING) for spec in specs]
    assert [status.state for status in statuses] == [TaskState.RUNNING] * len(specs), statuses
    return statuses


async def ends(made: Agent, specs: Sequence[TaskSpec]) -> list[tuple[TaskState, str]]:
    """How they ended; the agent has forgotten them then."""
    statuses = [await made.reached(spec.id, TaskState.FINISHED) for spec in specs]
    for spec in specs:
        made.reconciler.withdraw(spec.id)
    return [(status.state, status.reason) for status in statuses]


def written(made: Agent, spec: TaskSpec) -> str:
    log = made.directories.log(spec.id, "stdout")
    return log.read_text() if log.exists() else ""


async def said(made: Agent, spec: TaskSpec, end: str) -> str:
    await until(lambda: written(made, spec).endswith(end), f"{spec.id} has said {end!r}")
    return written(made, spec)


def on_signal(line: str) -> tuple[str, ...]:
    return "sh", "-c", f"trap '{line}' USR1; echo ready; while :; do sleep 0.02; done"


async def give_signal(made: Agent, spec: TaskSpec) -> None:
    await said(made, spec, "ready\n")
    os.kill(made.reconciler.books.records[spec.id].status.pid or 0, signal.SIGUSR1)


def namespaces(pid: int | None) -> dict[str, str]:
    kinds = ("user", "net", "ipc", "pid", "mnt", "uts", "cgroup")
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds}


def shared(statuses: Sequence[TaskStatus]) -> set[str]:
    one, *others = [namespaces(status.pid) for status in statuses]
    return {kind for kind, name in one.items() if all(other[kind] == name for other in others)}


def of_process(pid: int | None, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def holder(made: Agent) -> tuple[Path, int]:
    """The directory of the pod's sandbox, and its first process."""
    (name,) = {record.holder for record in made.reconciler.books.records.values()}
    directory = made.directories.bundles / name
    return directory, json.loads((directory / "keeper.json").read_text())["container"]["pid"]


def look(made: Agent) -> Remains:
    found = remains.look(made.directories.state, made.node.prefix, str(made.directories.state.parent))
    return replace(found, files=frozenset(file for file in found.files if not file.endswith("/lives")))


async def as_before(made: Agent, before: Remains) -> None:
    await until(lambda: remains.difference(before, look(made)) == "", remains.difference(before, look(made)))


async def at_rest(made: Agent) -> Remains:
    """After a first task, with a keeper ready for the next container."""
    assert (await made.run(task("first.1", "true"))).state is TaskState.FINISHED
    made.reconciler.withdraw("first.1")
    await until(lambda: "1 tepui-keeper" in look(made).processes, "a keeper is ready")
    return look(made)


async def test_they_reach_each_other_by_loopback(node: Agent) -> None:
    specs = pod(("/usr/bin/python3", "-c", SERVE), ("/usr/bin/python3", "-c", ASK))
    await run(node, specs)
    assert await said(node, specs[1], "one\n") == "hello from the other one\n"


async def test_in_the_nodes_network_they_share_ids_and_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(remains.MARK, str(tmp_path))
    async with agent(tmp_path / "agent", Rights(host_network=True)) as made:
        statuses = await run(made, pod(FOREVER, FOREVER, network="host"))
        assert shared(statuses) == {"user", "net"}
        assert namespaces(statuses[0].pid)["net"] == os.readlink("/proc/self/ns/net")


async def test_the_nodes_network_is_for_pods_that_it_permits(node: Agent) -> None:
    specs = pod(FOREVER, FOREVER, network="host")
    assign(node, specs)
    ended = await ends(node, specs)
    assert all("set host_network in this node's agent.toml" in reason for _, reason in ended), ended


async def test_they_share_network_and_ids_and_nothing_that_was_not_asked_for(node: Agent) -> None:
    statuses = await run(node, pod(FOREVER, FOREVER))
    assert shared(statuses) == {"user", "net"}
    _, pid = holder(node)
    assert {kind for kind, _ in namespaces(pid).items() & namespaces(statuses[0].pid).items()} == {"user", "net"}


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        ({"share_ipc": True}, {"user", "net", "ipc"}),
        ({"share_pid": True}, {"user", "net", "pid"}),
        ({"share_ipc": True, "share_pid": True}, {"user", "net", "ipc", "pid"}),
    ],
)
async def test_they_share_what_they_ask_for(node: Agent, asked: dict[str, bool], kinds: set[str]) -> None:
    assert shared(await run(node, pod(FOREVER, FOREVER, FOREVER, **asked))) == kinds


async def test_memory_is_shared_with_ipc_only(node: Agent) -> None:
    write = ("sh", "-c", "echo here > /dev/shm/note; touch /dev/mqueue/queue; echo done; exec sleep infinity")
    read = on_signal("cat /dev/shm/note; ls /dev/mqueue; echo done")
    for asked, expected in ((True, "ready\nhere\nqueue\ndone\n"), (False, "ready\ndone\n")):
        specs = pod(write, read, share_ipc=asked)
        await run(node, specs)
        await said(node, specs[0], "done\n")
        await give_signal(node, specs[1])
        assert await said(node, specs[1], "done\n") == expected
        node.reconciler.assign(specs[0], kill=True)
        await ends(node, specs)
        node.reports.clear()
        for spec in specs:
            node.directories.log(spec.id, "stdout").unlink()


async def test_files_and_cgroups_are_each_ones_own(node: Agent) -> None:
    write = ("sh", "-c", "echo secret > /mine; echo secret > /tmp/mine; echo done; exec sleep infinity")
    specs = pod(write, on_signal("ls / /tmp; echo done"))
    await run(node, specs)
    await said(node, specs[0], "done\n")
    records = [node.reconciler.books.records[spec.id] for spec in specs]
    await give_signal(node, specs[1])
    assert "mine" not in (await said(node, specs[1], "done\n")).split()
    statuses = [node.reconciler.books.records[spec.id].status for spec in specs]
    cgroups = [of_process(status.pid, "cgroup") for status in statuses]
    assert cgroups[0] != cgroups[1] and records[0].container in cgroups[0] and records[1].container in cgroups[1]
    assert [status.usage.mem_limit_bytes for status in statuses] == [64 << 20] * 2
    assert records[0].id_base == records[1].id_base and records[0].quota != records[1].quota


# What a container that is root can try on another one of its pod, whose process is `sleep 4242`.
REACH = """
for pid in $(ls /proc | grep -x '[0-9]*'); do
    grep -q '42[4]2' /proc/$pid/cmdline 2>/dev/null && echo sees $pid
done
if [ $$ != 1 ]; then
    ls /proc/1/root/ >/dev/null 2>&1 && echo enters the holder
    cat /proc/1/environ >/dev/null 2>&1 && echo reads the holder
    kill -9 1; kill -INT 1; kill -CHLD 1
fi 2>/dev/null
echo done; exec sleep infinity
"""


async def test_without_its_processes_a_container_sees_nothing_of_another(node: Agent) -> None:
    specs = pod(("sleep", "4242"), ("sh", "-c", REACH))
    await run(node, specs)
    assert await said(node, specs[1], "done\n") == "done\n"


async def test_with_shared_processes_it_sees_them_and_the_holder_is_out_of_reach(node: Agent) -> None:
    specs = pod(("sleep", "4242"), ("sh", "-c", REACH), share_pid=True)
    await run(node, specs)
    text = await said(node, specs[1], "done\n")
    assert "sees" in text and "holder" not in text
    _, pid = holder(node)
    assert alive(pid)
    status = dict(line.split(":\t", 1) for line in of_process(pid, "status").splitlines() if ":\t" in line)
    assert {status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"].strip() == "1"
    assert not [fd for fd in os.listdir(f"/proc/{pid}/fd") if int(fd) > 2]


async def test_an_orphan_in_a_shared_pid_namespace_is_reaped_and_ends_with_its_container(node: Agent) -> None:
    orphan = ("sh", "-c", "(sleep 0.1; exit 3) & (sleep 4243 &) ; sleep 0.05; exec sleep infinity")
    specs = pod(FOREVER, orphan, share_pid=True)
    await run(node, specs)
    _, pid = holder(node)

    def children() -> list[str]:
        return [of_process(int(child), "cmdline") for child in of_process(pid, f"task/{pid}/children").split()]

    await until(lambda: children() == ["sleep\x004243\x00"], "the other is reaped")
    node.reconciler.assign(specs[1], kill=True)
    assert [state for state, _ in await ends(node, specs)] == [TaskState.KILLED] * 2


@pytest.mark.parametrize(
    ("code", "state", "reason"),
    [(0, TaskState.FINISHED, "exited with 0"), (3, TaskState.FAILED, "exited with 3")],
)
async def test_they_end_together(node: Agent, code: int, state: TaskState, reason: str) -> None:
    before = await at_rest(node)
    specs = pod(FOREVER, on_signal(f"exit {code}"), FOREVER)
    await run(node, specs)
    await give_signal(node, specs[1])
    fate = (TaskState.KILLED, f"its pod ended with c1: {reason}")
    assert await ends(node, specs) == [fate, (state, reason), fate]
    await as_before(node, before)


async def test_nobody_runs_when_one_can_not_be_started(node: Agent) -> None:
    before = await at_rest(node)
    specs = pod(("sh", "-c", "echo ran"), FOREVER)
    specs[1] = replace(specs[1], rootfs="/nowhere")
    assign(node, specs)
    (killed, fate), (rejected, reason) = await ends(node, specs)
    assert killed is TaskState.KILLED and rejected is TaskState.REJECTED and fate == f"its pod ended with c1: {reason}"
    assert written(node, specs[0]) == ""
    await as_before(node, before)


async def test_they_are_executed_in_their_order(node: Agent) -> None:
    await run(node, pod(FOREVER, FOREVER, FOREVER, FOREVER))
    ran = [status.task_id for status in node.reports if status.state is TaskState.RUNNING]
    assert ran == [f"web.p.c{number}" for number in range(4)]


async def test_a_task_whose_pod_did_not_come_with_it_does_not_run(node: Agent) -> None:
    specs = pod(FOREVER, FOREVER)
    assign(node, specs[:1])
    assert await ends(node, specs[:1]) == [(TaskState.FAILED, "web.p.c1 of its pod did not come with it")]


@pytest.mark.parametrize("whom", ["first process", "keeper", "holder", "keeper of the holder"])
async def test_nothing_is_left_when_one_process_is_killed(node: Agent, whom: str) -> None:
    before = await at_rest(node)
    specs = pod(FOREVER, FOREVER)
    statuses = await run(node, specs)
    directory, held = holder(node)
    record = node.reconciler.books.records[specs[0].id]
    keeper = json.loads((node.directories.bundles / record.container / "keeper.json").read_text())["keeper"]["pid"]
    over = json.loads((directory / "keeper.json").read_text())["keeper"]["pid"]
    victim = {"first process": statuses[0].pid, "keeper": keeper, "holder": held, "keeper of the holder": over}[whom]
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    if "keeper" in whom:  # the container survives it
        os.kill(statuses[0].pid or 0, signal.SIGKILL)
    await ends(node, specs)
    await as_before(node, before)


@asynccontextmanager
async def successor(made: Agent) -> AsyncIterator[Agent]:
    """As after SIGKILL."""
    await made.die()
    made.reconciler.books.records.clear()
    async with recovered(Agent(made.node, made.directories)) as again:
        yield again


async def test_a_pod_outlives_its_agent(node: Agent) -> None:
    specs = pod(FOREVER, FOREVER, share_ipc=True)
    statuses = await run(node, specs)
    async with successor(node) as again:
        found = [again.reconciler.books.records[spec.id].status for spec in specs]
        assert [(status.state, status.pid) for status in found] == [
            (TaskState.RUNNING, status.pid) for status in statuses
        ]
        os.kill(statuses[0].pid or 0, signal.SIGKILL)
        fate = "its pod ended with c0: killed by SIGKILL"
        assert await ends(again, specs) == [(TaskState.FAILED, "killed by SIGKILL"), (TaskState.KILLED, fate)]
        assert list(again.directories.bundles.iterdir()) == []


@pytest.mark.parametrize("whom", ["first process", "holder"])
async def test_an_agent_that_was_away_ends_what_is_left(node: Agent, whom: str) -> None:
    specs = pod(FOREVER, FOREVER)
    statuses = await run(node, specs)
    victim = statuses[1].pid if whom == "first process" else holder(node)[1]
    await node.reconciler.close()
    os.kill(victim or 0, signal.SIGKILL)
    async with successor(node) as again:
        ended = await ends(again, specs)
        assert all(state >= TaskState.FAILED for state, _ in ended) and not alive(statuses[0].pid or 0)
        assert list(again.directories.bundles.iterdir()) == []


@pytest.mark.parametrize("milliseconds", range(0, 120, 10))
async def test_an_agent_killed_while_a_pod_starts_loses_and_doubles_nothing(node: Agent, milliseconds: int) -> None:
    specs = pod(*(("sh", "-c", "echo ran; exec sleep infinity") for _ in range(3)))
    assign(node, specs)
    assert await node.reconciler.settle() == []
    await asyncio.sleep(milliseconds / 1000)
    async with successor(node) as again:
        for spec in specs:
            await again.reached(spec.id, TaskState.RUNNING)
        statuses = [again.reconciler.books.records[spec.id].status for spec in specs]
        assert shared(statuses) == {"user", "net"}
        for spec in specs:
            assert await said(again, spec, "ran\n") == "ran\n"
        assert len(list(again.directories.bundles.iterdir())) == len(specs) + 1
        again.reconciler.assign(specs[0], kill=True)
        await ends(again, specs)
        assert list(again.directories.bundles.iterdir()) == list(again.directories.layers.iterdir()) == []


@pytest.mark.parametrize("by", RUNTIMES)
async def test_another_runtime_makes_pods_alike(tmp_path: Path, by: str) -> None:
    async with agent(tmp_path / "agent", by=by) as made:
        specs = pod(("/usr/bin/python3", "-c", SERVE), ("/usr/bin/python3", "-c", ASK), share_ipc=True, share_pid=True)
        statuses = await run(made, specs)
        assert shared(statuses) == {"user", "net", "ipc", "pid"}
        assert await said(made, specs[1], "one\n") == "hello from the other one\n"
        os.kill(statuses[0].pid or 0, signal.SIGKILL)
        assert [state for state, _ in await ends(made, specs)] == [TaskState.FAILED, TaskState.KILLED]
        assert list(made.directories.bundles.iterdir()) == []
    for path in CGROUPS.glob(f"*/{made.node.prefix}"):  # a runtime makes it in trees that we leave alone
        path.rmdir()


async def test_a_pod_has_one_address_and_gives_it_back(tmp_path: Path) -> None:
    sh("ip", "link", "add", "card", "type", "veth", "peer", "wire")
    sh("ip", "addr", "add", "192.0.2.1/24", "dev", "card")
    for link in ("card", "wire"):
        sh("ip", "link", "set", link, "up")
    (tmp_path / "network").mkdir()
    async with (
        Networks(tmp_path / "network", "n1", "this-boot", ip_address("192.0.2.1")) as networks,
        agent(tmp_path / "agent") as made,
    ):
        await networks.configure(NETWORK)
        made.node.isolators.append(NetworkIsolator(networks, NftFirewall()))
        before = links()
        await made.with_spares("prod")
        specs = pod(FOREVER, ("sh", "-c", "cat /etc/hosts; echo done; exec sleep infinity"), network="prod")
        statuses = await run(made, specs)
        ((address,),) = {status.addresses for status in statuses}
        assert f"{address} web\n" in await said(made, specs[1], "done\n")
        holder_id = made.reconciler.books.records[specs[0].id].holder
        assert networks.addresses(holder_id) == (ip_address(address),)
        await made.sandboxes.drop("prod")
        await until(lambda: len(links() - before) == 1, "the pod has the only link")
        usages = [await made.containers.usage(container) for container in made.reconciler.living()]
        assert usages[0].net_sent_packets >= usages[1].net_sent_packets == 0
        made.reconciler.assign(specs[0], kill=True)
        await ends(made, specs)
        assert networks.addresses(holder_id) == ()
        await until(lambda: links() == before, "no link is left")


def links() -> set[str]:
    return {link["ifname"] for link in ip("link")}


def of_launcher(made: Agent) -> list[int]:
    """The launcher and whatever comes from it: keepers, makers, what joins, and containers that execute nothing yet."""
    mark = f"{remains.MARK}={made.directories.state.parent}".encode()
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if mark in (directory / "environ").read_bytes().split(b"\0") and directory.name != str(os.getpid()):
                found.append(int(directory.name))
    return sorted(found)


async def past_start(made: Agent, specs: Sequence[TaskSpec]) -> None:
    records = made.reconciler.books.records
    await until(lambda: all(records[spec.id].status.state >= TaskState.RUNNING for spec in specs), "run or have ended")


@pytest.mark.parametrize("which", [0, 1, 2, 4, 6, 8, -2, -1])
async def test_whatever_is_killed_while_it_starts_nothing_is_left(node: Agent, which: int) -> None:
    before = await at_rest(node)
    for milliseconds in range(0, 60, 6):
        specs = [
            replace(spec, env=((remains.MARK, str(node.directories.state.parent)),)) for spec in pod(*[FOREVER] * 3)
        ]
        assign(node, specs)
        await asyncio.sleep(milliseconds / 1000)
        processes = of_launcher(node)
        with suppress(ProcessLookupError):
            os.kill(processes[which % len(processes)], signal.SIGKILL)
        await past_start(node, specs)
        node.reconciler.assign(specs[0], kill=True)
        ended = await ends(node, specs)
        assert all(state in (TaskState.KILLED, TaskState.FAILED) for state, _ in ended), ended
        node.reports.clear()
        await node.node.launcher.start()
        await as_before(node, before)
