"""The isolation of `tests/kernel`, once more where cgroups are of version 2 alone, systemd owns the top of their tree,
and the kernel is Debian's. A topic is a run of pytest in the machine; the summary of one that fails names the tests.

Not among them: tests of the network, which is the same there, and those that start hundreds of containers.
"""

from __future__ import annotations

import pytest

from tests.vm import guest
from tests.vm.machine import Machine

pytestmark = pytest.mark.timeout(guest.DEADLINE_S)

TOPICS = {
    "limits": (
        "tests/kernel/test_resources.py tests/kernel/test_isolators.py tests/kernel/test_limits_exceeded.py"
        " tests/vm/inside/test_quota.py -k 'not just_before'"
    ),
    "containers": (
        "tests/kernel/test_launcher.py tests/kernel/test_privileges.py tests/kernel/test_seccomp.py"
        " tests/kernel/test_oci_runtime.py"
    ),
    "attacks": "tests/kernel/attacks -k 'not racer and not leaked_descriptors and not sweep_sees'",
}


@pytest.mark.parametrize("topic", TOPICS)
def test_isolation_holds(vm: Machine, topic: str) -> None:
    said = guest.run_tests(vm, TOPICS[topic])
    assert " passed" in said and "skipped" not in said, said
