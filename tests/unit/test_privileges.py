"""Capabilities, settings and secrets that a task may ask for, and those that are refused before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.checkpoint import Checkpoint, TaskRecord
from isolators.base import Container, Isolator, IsolatorError, Sandbox, Unsupported, merge
from isolators.capabilities import CapabilitiesIsolator
from isolators.namespaces import NamespacesIsolator
from isolators.rights import NO_RIGHTS, Rights
from isolators.secrets import MAX_BYTES, SecretsIsolator
from isolators.sysctls import SysctlsIsolator
from model.capability import DEFAULT
from model.resources import Resources
from model.task import Secret, TaskSpec, TaskState, TaskStatus
from wire.convert import task_from_wire, task_to_wire

pytestmark = pytest.mark.anyio

RAW = Rights(capabilities=frozenset({"CAP_NET_RAW"}))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def spec(**fields: Any) -> TaskSpec:
    plain: dict[str, Any] = {"resources": Resources(cpus=1, mem=1), "network": "none", **fields}
    return TaskSpec("web.1", "services", "/web", ("true",), **plain)


async def prepare(isolator: Isolator, **fields: Any) -> dict[str, Any]:
    task = spec(**fields)
    sandbox = Sandbox("web.1", Path("/nonexistent"), Path("/nonexistent"), 1 << 20, task.network)
    return merge([await isolator.open(sandbox), await isolator.prepare(Container(task, sandbox))])


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ((), (), set(DEFAULT)),
        ((), ("CAP_CHOWN",), set(DEFAULT) - {"CAP_CHOWN"}),
        ((), ("CAP_NET_RAW",), set(DEFAULT)),
        ((), ("ALL",), set()),
        (("CAP_KILL",), ("ALL",), {"CAP_KILL"}),
        (("CAP_NET_RAW",), (), {*DEFAULT, "CAP_NET_RAW"}),
    ],
)
async def test_capabilities_are_added_and_dropped(
    add: tuple[str, ...], drop: tuple[str, ...], expected: set[str]
) -> None:
    part = await prepare(CapabilitiesIsolator(RAW), capabilities_add=add, capabilities_drop=drop)
    sets = part["process"]["capabilities"]
    assert set(sets["bounding"]) == set(sets["effective"]) == set(sets["permitted"]) == expected
    assert sets["inheritable"] == sets["ambient"] == []


@pytest.mark.parametrize(
    ("add", "drop", "reason"),
    [
        (("CAP_SYS_ADMIN",), (), "CAP_SYS_ADMIN may not be added"),
        (("NET_RAW",), (), "'NET_RAW' is none"),
        (("ALL",), (), "'ALL' is none"),
        ((), ("CAP_INVENTED",), "'CAP_INVENTED' is none"),
        (("CAP_KILL",), ("CAP_KILL",), "both added and dropped"),
    ],
)
async def test_capabilities_that_are_refused(add: tuple[str, ...], drop: tuple[str, ...], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        await prepare(CapabilitiesIsolator(RAW), capabilities_add=add, capabilities_drop=drop)


async def test_the_nodes_network_takes_a_right() -> None:
    with pytest.raises(Unsupported, match="host_network"):
        await prepare(NamespacesIsolator(NO_RIGHTS), network="host")
    part = await prepare(NamespacesIsolator(Rights(host_network=True)), network="host")
    assert {"type": "network"} not in part["linux"]["namespaces"]


async def test_sysctls_of_own_namespaces() -> None:
    given = (("net.ipv4.ip_unprivileged_port_start", "0"), ("kernel.sem", "250\t32000\t32\t128"))
    assert await prepare(SysctlsIsolator(), sysctls=given) == {"linux": {"sysctl": dict(given)}}
    assert await prepare(SysctlsIsolator()) == {}


@pytest.mark.parametrize(
    ("sysctls", "network", "reason"),
    [
        ((("kernel.core_pattern", "|/evil"),), "none", "kernel.core_pattern"),
        ((("vm.overcommit_memory", "1"),), "none", "vm.overcommit_memory"),
        ((("net.ipv4.ip_forward", "1"),), "host", "is the node's"),
        ((("net/ipv4/ip_forward", "1"),), "none", "net/ipv4/ip_forward"),
        ((("net...kernel.core_pattern", "1"),), "none", "net...kernel"),
        ((("net", "1"),), "none", "'net'"),
        ((("kernel.shmmax", "1\n2"),), "none", "no value of one line"),
        ((("kernel.shmmax", ""),), "none", "no value of one line"),
        ((("kernel.shmmax", "1"), ("kernel.shmmax", "2")), "none", "given twice"),
    ],
)
async def test_sysctls_that_are_refused(sysctls: tuple[tuple[str, str], ...], network: str, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        await prepare(SysctlsIsolator(), sysctls=sysctls, network=network)


@pytest.mark.parametrize(
    ("secrets", "reason"),
    [
        ((Secret("../x", "a"),), "'../x' is no name"),
        ((Secret("", "a"),), "is no name"),
        ((Secret(".", "a"),), "is no name"),
        ((Secret("a", "1"), Secret("a", "2")), "given twice"),
        ((Secret("a", "x" * MAX_BYTES), Secret("b", "x")), "bytes together"),
    ],
)
async def test_secrets_that_are_refused(secrets: tuple[Secret, ...], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        await prepare(SecretsIsolator(Path("/nonexistent")), secrets=secrets)


async def test_secrets_that_a_restart_has_lost_fail_the_task() -> None:
    with pytest.raises(IsolatorError, match="are gone: the agent was restarted"):
        await prepare(SecretsIsolator(Path("/nonexistent")), secrets=(Secret("a", None),))


def test_secrets_are_not_on_the_agents_disk_nor_in_its_log(tmp_path: Path) -> None:
    task = spec(secrets=(Secret("password", "hunter2"),))
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(TaskRecord(task, TaskStatus("web.1", TaskState.ACCEPTED), "boot", "c", 1 << 20))
    assert all(b"hunter2" not in path.read_bytes() for path in tmp_path.iterdir())
    assert checkpoint.load()["web.1"].spec.secrets == (Secret("password", None),)
    assert "hunter2" not in repr(task)


def test_everything_survives_the_wire() -> None:
    task = spec(
        seccomp="unconfined",
        capabilities_add=("CAP_KILL",),
        capabilities_drop=("ALL",),
        sysctls=(("kernel.sem", "1"),),
        secrets=(Secret("a", "\u00e9\n"),),
    )
    assert task_from_wire(task_to_wire(task)) == task
