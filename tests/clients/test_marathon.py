"""The PyPI package `marathon`: programs that use its MarathonClient as its users do, on the master's node.

Each of `programs/` is one subject, and ends with status 0 when all went as the client's documentation says. What the
client does not know breaks it, so that every answer it gets is also held against its idea of Marathon.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.cluster import MASTER
from tests.cluster import bed
from tests.cluster.bed import Cluster

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(path.stem for path in (Path(__file__).parent / "programs").glob("[!_]*.py") if path.stem != "session")
# Where DC/OS has its Marathon, and where proxies put it.
BELOW = ("", "/marathon", "/service/marathon/")
DEADLINE_S = 100.0


@pytest.mark.parametrize("program", PROGRAMS)
def test_program(cluster: Cluster, python: Path, authority: Path, program: str) -> None:
    run(cluster, python, authority, program)


@pytest.mark.parametrize("below", BELOW[1:])
def test_below_a_prefix(cluster: Cluster, python: Path, authority: Path, below: str) -> None:
    run(cluster, python, authority, "apps", below)


def run(cluster: Cluster, python: Path, authority: Path, program: str, below: str = "") -> None:
    admin = bed.admin(cluster.lab)
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "MARATHON_URL": admin["url"] + below,
        "MARATHON_TOKEN": admin["token"],
        "MARATHON_CA": str(authority),
    }
    argv = [str(python), "-m", f"tests.clients.programs.{program}"]
    done = cluster.lab.exec(MASTER, argv, variables, deadline_s=DEADLINE_S)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
