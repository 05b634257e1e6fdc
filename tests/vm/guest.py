"""Runs tests inside of the machine, on both of its processors."""

from __future__ import annotations

from tests.vm.machine import CPUS, Machine
from tests.vm.tree import HOME

INSIDE = "TEPUI_TEST_INSIDE"  # is set for tests that run in the machine
PATIENCE = 8  # see tests/patience.py
DEADLINE_S = 900.0


def run_tests(vm: Machine, arguments: str) -> str:
    """What pytest says when called with these. Raises Failed, with the same, when a test fails or there is none."""
    environment = f"{INSIDE}=1 TEPUI_TEST_PATIENCE={PATIENCE}"
    options = f"--quiet --numprocesses={CPUS} --timeout={DEADLINE_S:g} --durations=5 -p no:cacheprovider"
    command = f"cd {HOME} && {environment} .venv/bin/python -m pytest {options} {arguments}"
    return vm.run(command, DEADLINE_S)
