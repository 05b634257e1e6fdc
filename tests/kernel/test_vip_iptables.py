"""VIPs by iptables: beside other programs' rules, and whatever becomes of the worker."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from model.vip import Backend
from netns.driver import NetworkError
from netns.iptables.client import Worker, wanted_body
from netns.iptables.rule import Extension, Rule, chain_name
from netns.iptables.worker import XTABLES_LOCK
from netns.vip.iptables import IptablesVips, request
from netns.vip.ruleset import compile_rules
from tests.kernel.namespaces import NetnsProcess, run
from tests.kernel.vips import CLUSTER, Container, ask, containers, many, table, vip

pytestmark = pytest.mark.anyio

PROJECT = str(Path(__file__).resolve().parents[2])
POLL_S = 0.01
FAULT_DEADLINE_S = 20.0


@pytest.fixture
def container(spawn: Callable[[], NetnsProcess]) -> Iterator[Callable[[int], Container]]:
    with containers(spawn) as make:
        yield make


@pytest.fixture
async def vips() -> AsyncIterator[IptablesVips]:
    backend = IptablesVips()
    yield backend
    await backend.close()


def saved() -> str:
    """All rules of this namespace, without the comments that bear a time."""
    lines = run("iptables-legacy-save").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def restore(rules: str) -> None:
    subprocess.run(["iptables-legacy-restore"], input=rules, text=True, check=True)


def foreign(rules: str) -> str:
    return "\n".join(line for line in rules.splitlines() if not re.search(r"TPV-|TEPUI-", line))


def chain_of(rules: str, text: str) -> str:
    """The chain of the first rule that has this text."""
    return next(line.split()[1] for line in rules.splitlines() if line.startswith("-A") and text in line)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(FAULT_DEADLINE_S):
        while True:
            if condition():
                return
            await asyncio.sleep(POLL_S)


async def busy_or_done(vips: IptablesVips, change: asyncio.Task[None]) -> None:
    await until(lambda: change.done() or _busy(vips.worker_pid))


async def test_a_port_mapping_of_another_program_does_not_take_a_vip(
    vips: IptablesVips, container: Callable[[int], Container]
) -> None:
    client, web, thief = container(2), container(3), container(4)
    await vips.apply(table(vip(web.backend())))
    mapping = f"PREROUTING 1 -p tcp --dport 80 -j DNAT --to-destination {thief.address}:8080"
    run("iptables-legacy", "-t", "nat", "-I", *mapping.split())
    assert ask(client)[0] == thief.address
    await vips.apply(table(vip(web.backend())))
    assert ask(client)[0] == web.address
    assert mapping.partition(" 1 ")[2].split()[-1] in saved()


# Other programs' rules

OTHERS = """*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
:KUBE-FORWARD - [0:0]
:ufw-user-input - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -j ufw-user-input
-A FORWARD -j DOCKER-USER
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A DOCKER-USER -j RETURN
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A ufw-user-input -p tcp -m tcp --dport 22 -m limit --limit 6/min -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SVC-NPX46M4PTMTKRN6Y -m statistic --mode random --probability 0.5 -j MARK --set-xmark 0x4000/0x4000
COMMIT
"""


async def test_rules_of_others_stay_as_they_are(vips: IptablesVips) -> None:
    restore(OTHERS)
    before = saved()
    for wanted in (many(50), many(40, port=9090), table()):
        await vips.apply(wanted)
        assert foreign(saved()) == before
    await vips.remove()
    assert saved() == before


async def test_our_jumps_are_put_first_again(vips: IptablesVips) -> None:
    await vips.apply(many(3))
    right = saved()
    for command in ("-t nat -D PREROUTING 1", "-t nat -A OUTPUT -j TEPUI-VIP", "-D FORWARD 1", "-F TEPUI-REFUSE"):
        run("iptables-legacy", *command.split())
        assert saved() != right
        await vips.apply(many(3))
        assert saved() == right
    run("iptables-legacy", "-t", "nat", "-I", "PREROUTING", "1", "-d", "198.51.100.1/32", "-j", "ACCEPT")
    await vips.apply(many(3))
    jumps = [line for line in saved().splitlines() if line.startswith("-A PREROUTING")]
    assert jumps == ["-A PREROUTING -j TEPUI-VIP", "-A PREROUTING -d 198.51.100.1/32 -j ACCEPT"]


# Desired against actual


async def test_installed_is_the_digest_of_the_table(vips: IptablesVips) -> None:
    assert await vips.installed() is None
    await vips.apply(many(20))
    assert await vips.installed() == compile_rules(many(20)).digest
    await vips.apply(many(21))
    assert await vips.installed() == compile_rules(many(21)).digest
    await vips.remove()
    await vips.remove()
    assert await vips.installed() is None


async def test_applying_the_same_table_changes_nothing(vips: IptablesVips) -> None:
    await vips.apply(many(20))
    rules = compile_rules(many(20))
    worker = Worker()
    answer = await worker.apply("apply again", request(rules, {"nat": set(), "filter": set()}))
    await worker.close()
    assert answer == {"missing": {"nat": [], "filter": []}, "changed": []}


async def test_a_new_agent_finds_what_the_old_one_left(vips: IptablesVips) -> None:
    await vips.apply(many(20))
    right = saved()
    successor = IptablesVips()
    try:
        assert await successor.installed() == compile_rules(many(20)).digest
        await successor.apply(many(20))
        assert saved() == right
        await successor.apply(many(19))
        assert await successor.installed() == compile_rules(many(19)).digest
    finally:
        await successor.close()


@pytest.mark.parametrize("damage", ["-F", "-D"])
async def test_a_damaged_chain_is_noticed_and_repaired(vips: IptablesVips, damage: str) -> None:
    await vips.apply(many(20))
    right, digest = saved(), await vips.installed()
    chain = chain_of(right, f"--to-destination {CLUSTER[9]}:8080")
    run("iptables-legacy", "-t", "nat", *([damage, chain, "1"] if damage == "-D" else [damage, chain]))
    assert await vips.installed() != digest
    await vips.apply(many(20))
    assert (saved(), await vips.installed()) == (right, digest)


async def test_a_flushed_table_is_rebuilt(vips: IptablesVips) -> None:
    await vips.apply(many(20))
    right = saved()
    run("iptables-legacy", "-t", "nat", "-F")
    run("iptables-legacy", "-t", "nat", "-X")
    await vips.apply(many(20))
    assert saved() == right


# Faults of the worker


@pytest.mark.parametrize("size", [1, 300, 1500])
async def test_a_worker_killed_in_an_apply_is_replaced(vips: IptablesVips, size: int) -> None:
    await vips.apply(many(10))
    pid = vips.worker_pid
    assert pid is not None
    change = asyncio.create_task(vips.apply(many(size, port=9090)))
    await busy_or_done(vips, change)
    os.kill(pid, signal.SIGKILL)
    await change
    assert await vips.installed() == compile_rules(many(size, port=9090)).digest


async def test_when_no_worker_lives_the_error_says_so_and_the_next_apply_is_right(vips: IptablesVips) -> None:
    await vips.apply(many(10))
    change = asyncio.create_task(vips.apply(many(1500, port=9090)))
    while not change.done():
        if (pid := vips.worker_pid) and _busy(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0)
    with pytest.raises(NetworkError, match="apply VIP table: iptables worker"):
        change.result()
    await vips.apply(many(1500, port=9090))
    assert await vips.installed() == compile_rules(many(1500, port=9090)).digest


def _busy(pid: int | None) -> bool:
    """Whether the process holds the xtables lock, so it is between reading and changing the kernel's tables."""
    try:
        return XTABLES_LOCK in {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except FileNotFoundError:
        return False


async def test_a_rejected_rule_names_itself_and_wedges_nothing(vips: IptablesVips) -> None:
    await vips.apply(many(10))
    right = saved()
    for _ in range(3):
        with pytest.raises(NetworkError, match=r"apply VIP table: .*--dport 99999"):
            await vips.apply(table(vip(Backend("t", "n", CLUSTER[2], 80), port=99999)))
        assert saved() == right
    await vips.apply(many(11))
    assert await vips.installed() == compile_rules(many(11)).digest


async def test_a_target_of_no_extension_is_an_error() -> None:
    worker = Worker()
    rule = Rule(Extension("NONESUCH"))
    chain = chain_name((rule,))
    with pytest.raises(NetworkError, match=r"try it: .*NONESUCH"):
        await worker.apply("try it", {"nat": wanted_body([chain], {chain: (rule,)}, {}, ())})
    await worker.close()


async def test_the_xtables_lock_is_waited_for(vips: IptablesVips) -> None:
    await vips.installed()
    with held_lock():
        change = asyncio.create_task(vips.apply(many(3)))
        await until(lambda: _busy(vips.worker_pid))
        assert not change.done() and "TPV-" not in saved_unlocked()
    await change
    assert await vips.installed() == compile_rules(many(3)).digest


@contextmanager
def held_lock() -> Iterator[None]:
    descriptor = os.open(XTABLES_LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def saved_unlocked() -> str:
    return Path("/proc/net/ip_tables_names").read_text() and run("iptables-legacy-save", "-t", "nat")


async def test_two_of_us_at_once_do_not_fail(vips: IptablesVips) -> None:
    other = IptablesVips()
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(vips.apply(many(20 + number)))
                group.create_task(other.apply(many(20 + number, port=9090)))
        await vips.apply(many(20))
        assert await vips.installed() == compile_rules(many(20)).digest
    finally:
        await other.close()


async def test_a_cancelled_apply_leaves_a_usable_back_end(vips: IptablesVips) -> None:
    for _ in range(3):
        change = asyncio.create_task(vips.apply(many(300)))
        await busy_or_done(vips, change)
        change.cancel()
        await asyncio.wait([change])
        await vips.apply(many(5))
        assert await vips.installed() == compile_rules(many(5)).digest


async def test_nothing_is_started_after_close(vips: IptablesVips) -> None:
    change = asyncio.create_task(vips.apply(many(300)))
    await busy_or_done(vips, change)
    await vips.close()
    await asyncio.gather(change, return_exceptions=True)  # it was in time, or was told that it was not
    with pytest.raises(NetworkError, match="read VIP rules: the iptables worker was closed"):
        await vips.installed()
    assert vips.worker_pid is None


async def test_the_worker_ends_with_its_parent_and_works_from_any_directory(tmp_path: Path) -> None:
    (tmp_path / "netns.py").write_text("raise SystemExit('the wrong module')")
    script = (
        "import asyncio, time\n"
        "from netns.vip.iptables import IptablesVips\n"
        "async def main():\n"
        "    vips = IptablesVips()\n"
        "    await vips.installed()\n"
        "    print(vips.worker_pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-c",
        script,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PROJECT},
    )
    assert parent.stdout is not None
    worker = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await until(lambda: not alive(worker))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_five_thousand_vips_from_nothing_take_seconds(vips: IptablesVips) -> None:
    started = time.monotonic()
    await vips.apply(many(5_000))
    assert time.monotonic() - started < 10
    assert await vips.installed() == compile_rules(many(5_000)).digest
