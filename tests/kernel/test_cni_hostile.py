"""Plug-ins that misbehave: one clear error, within limits, and what had been added is deleted."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netns.cni.driver import CniDriver
from netns.driver import Attachment, NetworkError
from tests.kernel.cni import DEBIAN, alive, calls, commands, conflist, host_local, mounts_below, reserved, script, spec
from tests.kernel.namespaces import NetnsProcess, ip
from tests.patience import PATIENCE

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

Spawn = Callable[..., NetnsProcess]
LIMIT_S = 1.5 * PATIENCE
DEADLINE_S = 20.0 * PATIENCE
MOST_GROWTH_KIB = 16 << 10
PROJECT = Path(__file__).resolve().parents[2]

BAD = {
    "crash": ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
    "exit": ("sys.stderr.write('boom\\nat line 1'); sys.exit(3)", "exit 3: boom at line 1"),
    "flood": ("while True: sys.stdout.write('x' * 65536)", "wrote more than 1 MiB"),
    "flood of errors": ("while True: sys.stderr.write('x' * 65536)", "did not end within"),
    "silence": ("sys.exit(0)", "its result is not a JSON object"),
    "bad JSON": ("print('{'); sys.exit(0)", "its result is not a JSON object"),
    "deep JSON": ("print('[' * 100000); sys.exit(0)", "its result is not a JSON object"),
    "list": ("print('[]'); sys.exit(0)", "its result is not a JSON object"),
    "wrong version": ("done(cniVersion='0.4.0')", "its result is of version 0.4.0 and not 1.0.0"),
    "error": ("fail(11, 'try later', 'no\\nroute')", r"try later: no route \(code 11\)"),
    "partial": ("done(ips=[])", r"its result leaves out 10\.88\.0\.2 of the plug-in before it"),
    "no such interface": ("done(ips=[{'address': '10.88.0.2/24', 'interface': 7}])", "ips name interface 7 of 3"),
    "no address": ("done(ips=[{'address': '10.88.0.300/24'}])", r"ips\[0\].address: '10.88.0.300/24'"),
    "no list": ("done(ips={'address': '10.88.0.2/24'})", "ips: must be a list of objects"),
}


@pytest.fixture
def bin(tmp_path: Path) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir(mode=0o755)
    return directory


@pytest.fixture
def driver(tmp_path: Path, bin: Path) -> CniDriver:
    return CniDriver(tmp_path / "cni", [bin, DEBIAN], LIMIT_S)


def reset_peak() -> int:
    """KiB that this process has in memory; from now on its peak is counted anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", BAD)
async def test_bad_plugin_is_named_and_undone(
    driver: CniDriver, bin: Path, tmp_path: Path, spawn: Spawn, kind: str
) -> None:
    body, words = BAD[kind]
    data, web = tmp_path / "data", spawn()
    script(bin, "bad", f'if command == "ADD":\n    {body}')
    chain = {"type": "bridge", "bridge": "cni0", "ipam": host_local(data)}, {"type": "bad"}, {"type": "tuning"}
    await driver.configure(spec(conflist(*chain)))
    before = reset_peak()
    with pytest.raises(NetworkError, match=f'^attach web to cni "sdn": plug-in bad: ADD: .*{words}') as caught:
        await driver.attach(Attachment("web", "sdn", web.pid))
    assert peak() - before < MOST_GROWTH_KIB
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert commands(bin, "bad") == ["ADD", "DEL"]
    assert (reserved(data), driver.addresses("web"), mounts_below(tmp_path)) == ({}, (), [])
    assert [link["ifname"] for link in web.ip("link")] == ["lo"]
    assert {link["ifname"] for link in ip("link")} == {"lo", "cni0"}
    assert list((tmp_path / "cni" / "attachments").iterdir()) == []


HANG = """
if command == "ADD":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "1000"])
    with open(here + "/unfinished", "w") as file:
        print(os.getpid(), child.pid, file=file)
    os.rename(here + "/unfinished", here + "/pids")
    time.sleep(1000)
"""


async def test_what_hangs_is_ended_with_its_children(driver: CniDriver, bin: Path, spawn: Spawn) -> None:
    web = spawn()
    script(bin, "hang", HANG)
    await driver.configure(spec(conflist({"type": "hang"})))
    begun = time.monotonic()
    with pytest.raises(NetworkError, match=f"plug-in hang: ADD: did not end within {LIMIT_S:g} s"):
        await driver.attach(Attachment("web", "sdn", web.pid))
    assert time.monotonic() - begun < LIMIT_S + DEADLINE_S / 2
    pids = [int(pid) for pid in (bin / "pids").read_text().split()]
    await until(lambda: not any(map(alive, pids)))
    assert commands(bin, "hang") == ["ADD", "DEL"]


async def test_cancelled_attach_ends_the_plugin_and_detach_undoes_it(
    driver: CniDriver, bin: Path, spawn: Spawn
) -> None:
    web = spawn()
    script(bin, "hang", HANG)
    await driver.configure(spec(conflist({"type": "hang"})))
    attaching = asyncio.create_task(driver.attach(Attachment("web", "sdn", web.pid)))
    await until((bin / "pids").exists)
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    pids = [int(pid) for pid in (bin / "pids").read_text().split()]
    await until(lambda: not any(map(alive, pids)))
    assert commands(bin, "hang") == ["ADD"]
    await driver.detach("web")
    assert commands(bin, "hang") == ["DEL"]
    await driver.detach("web")
    assert commands(bin, "hang") == []


async def test_delete_that_fails_is_tried_again_and_does_not_keep_the_others(
    driver: CniDriver, bin: Path, tmp_path: Path, spawn: Spawn
) -> None:
    data, web = tmp_path / "data", spawn()
    script(bin, "bad", 'fail(100, "no") if command == "DEL" and not os.path.exists(here + "/ok") else done()')
    chain = {"type": "bridge", "bridge": "cni0", "ipam": host_local(data)}, {"type": "bad"}
    await driver.configure(spec(conflist(*chain)))
    found = await driver.attach(Attachment("web", "sdn", web.pid))
    for _ in range(2):
        with pytest.raises(NetworkError, match=r'detach web from cni "sdn": plug-in bad: DEL: no \(code 100\)'):
            await driver.detach("web")
        assert reserved(data) == {}
        assert driver.addresses("web") == found
    (bin / "ok").touch()
    await CniDriver(tmp_path / "cni", [bin, DEBIAN]).gc(frozenset())
    assert mounts_below(tmp_path) == []


async def test_plugin_that_does_not_know_the_container_has_nothing_to_delete(
    driver: CniDriver, bin: Path, spawn: Spawn
) -> None:
    web = spawn()
    script(bin, "fine", 'fail(3, "who?") if command == "DEL" else done()')
    await driver.configure(spec(conflist({"type": "fine"})))
    await driver.attach(Attachment("web", "sdn", web.pid))
    await driver.detach("web")
    assert driver.addresses("web") == ()


async def test_what_a_plugin_is_given(driver: CniDriver, bin: Path, tmp_path: Path, spawn: Spawn) -> None:
    """In the node's namespace, with nothing of the agent's environment."""
    web = spawn()
    script(bin, "one", "done()")
    script(bin, "two", "done(dns={})")
    two = {"type": "two", "anything": [1], "capabilities": {"portMappings": True, "bandwidth": False}}
    await driver.configure(spec(conflist({"type": "one"}, two)))
    assert len(calls(bin, "one")) == len(calls(bin, "two")) == 1
    ports = [{"hostPort": 1, "containerPort": 1, "protocol": "tcp"}]
    await driver.attach(Attachment("web", "sdn", web.pid), {"portMappings": ports})
    await driver.check("web")
    await driver.detach("web")
    result = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": str(tmp_path / "cni/attachments/web:eth0/netns")}],
        "ips": [{"address": "10.88.0.9/24", "interface": 0}],
    }
    one = {"type": "one", "cniVersion": "1.0.0", "name": "sdn"}
    final: dict[str, Any] = result | {"dns": {}}
    assert [(call[0], call[2]) for call in calls(bin, "one")] == [
        ("ADD", one),
        ("CHECK", one | {"prevResult": final}),
        ("DEL", one | {"prevResult": final}),
    ]
    made = calls(bin, "two")
    base = {
        "type": "two",
        "anything": [1],
        "cniVersion": "1.0.0",
        "name": "sdn",
        "runtimeConfig": {"portMappings": ports},
    }
    assert [call[2]["prevResult"] for call in made] == [result, final, final]
    assert all({**call[2], "prevResult": None} == base | {"prevResult": None} for call in made)
    for command, environment, _, namespace in made:
        assert namespace == os.readlink("/proc/thread-self/ns/net")
        assert {key: value for key, value in environment.items() if key not in ("PATH", "LC_CTYPE")} == {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "web",
            "CNI_NETNS": str(tmp_path / "cni/attachments/web:eth0/netns"),
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "",
            "CNI_PATH": f"{bin}:{DEBIAN}",
        }


async def test_network_that_is_not_ready_says_why(driver: CniDriver, bin: Path, tmp_path: Path, spawn: Spawn) -> None:
    web = spawn()
    script(bin, "sdn", 'fail(50, "controller is down") if command == "STATUS" else done()')
    await driver.configure(spec(conflist({"type": "sdn"}, version="1.1.0")))
    words = r'attach web to cni "sdn": is not ready: plug-in sdn: STATUS: controller is down \(code 50\)'
    with pytest.raises(NetworkError, match=words):
        await driver.attach(Attachment("web", "sdn", web.pid))
    assert commands(bin, "sdn") == ["STATUS"]
    assert list((tmp_path / "cni" / "attachments").iterdir()) == []
    await driver.configure(spec(conflist({"type": "sdn"}, version="1.0.0")))  # which has no STATUS
    await driver.attach(Attachment("web", "sdn", web.pid))
    assert commands(bin, "sdn") == ["ADD"]
    await driver.detach("web")


async def test_garbage_is_collected_at_start(driver: CniDriver, bin: Path, tmp_path: Path, spawn: Spawn) -> None:
    """On 1.1, with what is attached still; all plug-ins, whatever one says."""
    web, gone = spawn(), spawn()
    script(bin, "one", 'fail(100, "can not") if command == "GC" else done()')
    script(bin, "two", "done()")
    await driver.configure(spec(conflist({"type": "one"}, {"type": "two"}, version="1.1.0")))
    await driver.configure(spec(conflist({"type": "two"}, name="old"), "old"))
    await driver.configure(spec(conflist({"type": "two"}, name="off", version="1.1.0", disableGC=True), "off"))
    for name, process in (("web", web), ("gone", gone)):
        await driver.attach(Attachment(name, "sdn", process.pid))
    calls(bin, "two")
    again = CniDriver(tmp_path / "cni", [bin, DEBIAN])
    with pytest.raises(NetworkError, match=r'gc: network "sdn": plug-in one: GC: can not \(code 100\)'):
        await again.gc(frozenset({"web"}))
    delete, collect = calls(bin, "two")
    assert (delete[0], delete[1]["CNI_CONTAINERID"]) == ("DEL", "gone")
    assert (collect[0], collect[2]["name"]) == ("GC", "sdn")
    assert collect[2]["cni.dev/valid-attachments"] == [{"containerID": "web", "ifname": "eth0"}]
    await again.detach("web")


SLOW = """
def event(what):
    with open(here + "/events", "a") as file:
        print(what, file=file)
event(command + " begun")
while command == "ADD" and not os.path.exists(here + "/go"):
    time.sleep(0.01)
event(command + " ended")
done()
"""
AGENT = """
import asyncio, sys
from pathlib import Path
from netns.cni.driver import CniDriver
from netns.driver import Attachment
state, bin, pid = sys.argv[1:]
asyncio.run(CniDriver(Path(state), [Path(bin)]).attach(Attachment("web", "sdn", int(pid))))
"""


async def test_a_plugin_that_outlives_its_agent_is_waited_for(
    driver: CniDriver, bin: Path, tmp_path: Path, spawn: Spawn
) -> None:
    """Deleting beside adding would leave what is added afterwards."""
    web, events = spawn(), bin / "events"
    script(bin, "slow", SLOW)
    await driver.configure(spec(conflist({"type": "slow"})))
    argv = [sys.executable, "-c", AGENT, str(tmp_path / "cni"), str(bin), str(web.pid)]
    agent = await asyncio.create_subprocess_exec(*argv, env={"PYTHONPATH": str(PROJECT)})
    try:
        await until(events.exists)
    finally:
        agent.kill()
        await agent.wait()
    collecting = asyncio.create_task(CniDriver(tmp_path / "cni", [bin]).gc(frozenset()))
    await asyncio.wait({collecting}, timeout=1.0)  # long enough for the DEL that must not come
    assert events.read_text().splitlines() == ["ADD begun"]
    (bin / "go").touch()
    await collecting
    assert events.read_text().splitlines() == ["ADD begun", "ADD ended", "DEL begun", "DEL ended"]
    assert mounts_below(tmp_path) == []
