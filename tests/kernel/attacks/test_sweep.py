"""All that can be found from inside a default container, compared with the list that is committed.

A difference is either a hole or a reason to look at `expected.json` again: the test writes what it found to the test's
temporary directory, and says where.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from isolators.rights import Rights
from tests.kernel.attacks.attacker import SWEEP, Attacker
from tests.kernel.sandbox import CGROUPS, sandbox

pytestmark = pytest.mark.anyio

PREFIX = "tepui-test-"  # of the directories of tests
EXPECTED = Path(__file__).with_name("expected.json").read_text()


async def test_a_default_container_finds_what_is_expected_and_no_more(attacker: Attacker, tmp_path: Path) -> None:
    found = without_other_tests(await attacker.find(f"{SWEEP}\nfound = sweep()", network="none"), tmp_path)
    (tmp_path / "found.json").write_text(json.dumps(found, indent=2) + "\n")
    assert found == json.loads(EXPECTED), tmp_path / "found.json"


async def test_the_sweep_sees_what_is_open(host_mounts: None, tmp_path: Path) -> None:
    """Else it would prove nothing: the same look at a container without a filter."""
    async with sandbox(tmp_path, Rights(frozenset({"CAP_NET_RAW"}), unconfined=True)) as node:
        found = await Attacker(node).find(
            f"{SWEEP}\nfound = sweep()", seccomp="unconfined", capabilities_add=("CAP_NET_RAW",)
        )
    assert found["status"]["Seccomp"] == "0"
    assert found["calls"]["keyctl"] not in ("EPERM", "ENOSYS")
    assert 17 in found["families"]


@pytest.mark.parametrize("runtime", [name for name in ("runc", "crun") if shutil.which(name)])
async def test_another_runtime_leaves_no_more_open(host_mounts: None, tmp_path: Path, runtime: str) -> None:
    async with sandbox(tmp_path, by=runtime) as node:
        found = await Attacker(node).find(f"{SWEEP}\nfound = sweep()", network="none")
    for directory in CGROUPS.glob(f"*/{node.prefix}"):  # it makes them in trees that we leave alone too
        directory.rmdir()
    assert without_other_tests(found, tmp_path) == json.loads(EXPECTED)


def without_other_tests(found: dict[str, Any], own: Path) -> dict[str, Any]:
    """What those that run at the same time leave open beside this one's directory is theirs."""
    others = f"{own.parent}/{PREFIX}"
    files = [path for path in found["writable_files"] if not path.startswith(others) or path.startswith(f"{own}/")]
    return {**found, "writable_files": files}
