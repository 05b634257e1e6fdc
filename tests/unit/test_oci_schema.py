"""What the isolators return together is a configuration by the OCI runtime specification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isolators.base import Container, Sandbox, merge
from isolators.capabilities import CapabilitiesIsolator
from isolators.cgroup.limits import limits, oci_resources
from isolators.filesystem import FilesystemIsolator
from isolators.namespaces import NamespacesIsolator
from isolators.privileges import PrivilegesIsolator
from isolators.process import ProcessIsolator
from isolators.rights import Rights
from isolators.rlimits import RlimitsIsolator
from isolators.seccomp import SeccompIsolator
from model.resources import Resources
from model.task import Rlimit, TaskSpec
from tests.oci import violations

pytestmark = pytest.mark.anyio

RIGHTS = Rights(capabilities=frozenset({"CAP_NET_RAW", "CAP_SYS_ADMIN"}), unconfined=True, host_network=True)
OWN_PROFILE = json.dumps(
    {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_LOG"}]}
)
TASKS: dict[str, dict[str, Any]] = {
    "default": {},
    "with an image": {"rootfs": "/srv/image", "user": "1000:100", "cwd": "/srv"},
    "with limits": {"rlimits": (Rlimit("RLIMIT_NOFILE", 10, 2**63 - 1),), "pids": 1, "resources": Resources(1, 1)},
    "in the node's network": {"network": "host"},
    "with a capability": {"capabilities_add": ("CAP_NET_RAW",), "capabilities_drop": ("ALL",)},
    "that is privileged": {"capabilities_add": ("CAP_SYS_ADMIN",), "seccomp": "unconfined"},
    "with a profile": {"seccomp": OWN_PROFILE},
    "with variables": {"env": (("EMPTY", ""), ("EQUALS", "a=b"), ("UNICODE", "\u00e9"))},
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("changes", TASKS.values(), ids=TASKS)
async def test_bundles_are_by_the_specification(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert violations(await config(tmp_path, changes)) == []


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        (("process", "cwd"), "srv", "process/cwd"),
        (("process", "noNewPrivileges"), "yes", "process/noNewPrivileges"),
        (("process", "capabilities", "bounding"), ["NET_RAW"], "process/capabilities/bounding/0"),
        (("linux", "seccomp", "defaultAction"), "ERRNO", "linux/seccomp/defaultAction"),
        (("linux", "namespaces"), [{"type": "net"}], "linux/namespaces/0/type"),
        (("linux", "resources", "memory"), {"limit": "64M"}, "linux/resources/memory/limit"),
        (("ociVersion",), "1.0", "ociVersion"),
        (("linux", "invented"), 1, "linux"),
    ],
)
async def test_the_schema_finds_what_is_wrong(tmp_path: Path, path: tuple[str, ...], value: Any, place: str) -> None:
    changed = await config(tmp_path, {})
    *above, last = path
    at = changed
    for key in above:
        at[key] = dict(at[key])
        at = at[key]
    at[last] = value
    assert [violation.split(":")[0] for violation in violations(changed)] == [place]


async def config(directory: Path, changes: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"resources": Resources(cpus=500, mem=64), "network": "none", **changes}
    task = TaskSpec("web.1", "services", "/web", ("sleep", "1"), **fields)
    sandbox = Sandbox("c", directory, directory, 1 << 20, task.network)
    container = Container(task, sandbox)
    filesystem = FilesystemIsolator(directory)
    prepared = [
        NamespacesIsolator(RIGHTS),
        CapabilitiesIsolator(RIGHTS),
        SeccompIsolator(RIGHTS),
        PrivilegesIsolator(),
        RlimitsIsolator(),
        ProcessIsolator(),
    ]
    resources = oci_resources(limits(task, task.resources))
    return merge(
        [
            *[await isolator.open(sandbox) for isolator in (*prepared, filesystem)],
            *[await isolator.prepare(container) for isolator in prepared],
            filesystem.part(container),
            {"linux": {"cgroupsPath": "/tepui/web.1", "resources": resources}},
        ]
    )
