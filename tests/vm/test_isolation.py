"""The isolation of `tests/kernel`, once more where cgroups are of version 2 alone, systemd owns the top of their tree,
and the kernel is Debian's. It is one run of pytest in the machine; its summary names the tests that fail.

Not among them: tests of the network, which is the same there, of images, commands and pods, which are made of what is
tested here, and what is decided before the kernel hears of it.
"""

from __future__ import annotations

import pytest

from tests.vm import guest
from tests.vm.machine import Machine

pytestmark = pytest.mark.timeout(guest.DEADLINE_S)

TESTS = (
    "tests/kernel/test_resources.py",
    "tests/kernel/test_limits_exceeded.py",
    "tests/vm/inside/test_quota.py",
    "tests/kernel/test_isolators.py",
    "tests/kernel/test_launcher.py",
    "tests/kernel/test_privileges.py",
    "tests/kernel/test_seccomp.py",
    "tests/kernel/test_oci_runtime.py",
    "tests/kernel/attacks/test_kernel.py",
    "tests/kernel/attacks/test_mounts.py",
    "tests/kernel/attacks/test_runtime.py",
    "tests/kernel/attacks/test_sweep.py",
)
# Words in the names of tests.
NOT_THERE = (
    *("runc", "users_are_parsed", "links_for_system_directories", "no_volume_goes", "volumes_path"),
    *("just_before", "racer", "leaked_descriptors", "sweep_sees"),  # these start hundreds of containers
)


def test_isolation_holds(vm: Machine) -> None:
    said = guest.run_tests(vm, TESTS, NOT_THERE)
    assert " passed" in said and "skipped" not in said, said
