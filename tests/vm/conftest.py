"""One virtual machine for all tests: Debian with systemd and version 2 of control groups alone.

`inside` is what runs in the machine: here it is not collected.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.vm import image, tree
from tests.vm.guest import INSIDE
from tests.vm.machine import Machine

collect_ignore = [] if INSIDE in os.environ else ["inside"]


@pytest.fixture(scope="session")
def vm() -> Iterator[Machine]:
    with image.resumed() as machine:
        machine.run(f"mkdir -p {tree.HOME} && tar -x -C {tree.HOME}", stdin=tree.packed())
        yield machine
