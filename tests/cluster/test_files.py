"""`tepui task ls`, `cat` and `cp`, end to end."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.cluster import bed
from tests.cluster.bed import Cluster, eventually
from tests.cluster.client import run

SCRIPT = """
mkdir -p /data/sub; head -c 5000000 /dev/urandom > /data/blob; echo two > /data/sub/b; ln -s b /data/sub/link
ln -s /etc/passwd /data/out; printf 'x' > "$(printf '/data/\\033[31mred')"; sha256sum < /data/blob; exec sleep 3600
"""


@pytest.fixture
def task(cluster: Cluster) -> str:
    cluster.run(bed.command("/files", SCRIPT, mem=64, cpus=0.5))
    (made,) = cluster.await_running("/files", 1)
    eventually(lambda: cluster.log_of(made), "its files are there")
    return made


def test_files_are_listed_shown_and_copied(cluster: Cluster, task: str, tmp_path: Path) -> None:
    listed = json.loads(run(cluster, "ls", f"{task}:/data", "--json").stdout)
    assert [entry["name"] for entry in listed] == ["\033[31mred", "blob", "out", "sub"]
    table = run(cluster, "ls", f"{task}:/data").stdout.decode()
    assert "-rw-r--r--" in table and "out -> /etc/passwd" in table and "\033" not in table
    assert run(cluster, "cat", f"{task}:/data/sub/link").stdout == b"two\n"
    copied = run(cluster, "cp", f"{task}:/data", str(tmp_path))
    assert (copied.returncode, copied.stderr) == (0, b"tepui: left out: data/out\n")
    digest = hashlib.sha256((tmp_path / "data/blob").read_bytes()).hexdigest()
    assert digest == cluster.log_of(task).split()[0]
    assert os.readlink(tmp_path / "data/sub/link") == "b"
    assert run(cluster, "cp", f"{task}:/data/sub/b", str(tmp_path / "new")).returncode == 0
    assert (tmp_path / "new").read_text() == "two\n"


def test_what_can_not_be_shown_has_its_reason(cluster: Cluster, task: str, tmp_path: Path) -> None:
    for arguments, reason in (
        (("cat", f"{task}:/missing"), b"tepui: /missing: No such file or directory\n"),
        (("cat", f"{task}:/data"), b"tepui: /data: Is a directory\n"),
        (("cp", f"{task}:/missing", str(tmp_path)), b"tepui: /missing: No such file or directory\n"),
        (("ls", task), f"tepui: {task}: must be TASK:PATH\n".encode()),
    ):
        done = run(cluster, *arguments)
        assert (done.returncode, done.stderr) == (1, reason)
