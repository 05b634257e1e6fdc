"""Runs tests inside of the machine, on both of its processors."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from tests.vm.machine import Machine
from tests.vm.tree import HOME

INSIDE = "TEPUI_TEST_INSIDE"  # is set for tests that run in the machine
PATIENCE = 8  # see tests/patience.py
DEADLINE_S = 1800.0
WORKERS = 3  # tests wait now and then
# Only what tests in there need: pytest looks for all plug-ins that are installed, and each of them is slow to start.
PLUGINS = ("xdist.plugin", "pytest_timeout", "anyio.pytest_plugin", "no:cacheprovider")


def run_tests(vm: Machine, tests: Iterable[str], without: Iterable[str]) -> str:
    """What pytest says of these files, less the tests with such words in their names. Raises Failed, with the same,
    when a test fails or there is none."""
    environment = f"{INSIDE}=1 TEPUI_TEST_PATIENCE={PATIENCE} PYTEST_DISABLE_PLUGIN_AUTOLOAD=1"
    options = [f"--numprocesses={WORKERS}", f"--timeout={DEADLINE_S:g}", "--quiet", "--durations=5"]
    options += [word for plugin in PLUGINS for word in ("-p", plugin)]
    selected = ["-k", " and ".join(f"not {word}" for word in without), *tests]
    command = f"cd {HOME} && {environment} .venv/bin/python -m pytest {shlex.join([*options, *selected])}"
    return vm.run(command, DEADLINE_S)
