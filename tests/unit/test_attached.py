"""What an agent that was restarted knows of the links of containers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from agent.attached import attachments
from agent.launcher import record
from isolators.base import Container, Holder, Sandbox
from model.resources import Resources
from model.task import Interface, TaskSpec
from netns.driver import Attachment


def _container(directory: Path, network: str = "prod") -> Container:
    directory.mkdir(exist_ok=True)
    task = TaskSpec("web.1", "services", "/web", ("true",), Resources(), network)
    return Container(task, Sandbox(directory.name, directory, directory, 100_000, network))


def _keep(directory: Path, process: record.Identity) -> None:
    keeper = record.Keeper(process, record.boot_id(), record.STARTING, process)
    record.write_keeper(str(directory), keeper)


def test_those_whose_process_lives_are_attached(tmp_path: Path) -> None:
    me = record.identify(os.getpid())
    assert me is not None
    containers = [_container(tmp_path / name) for name in ("lives", "other", "unkept")]
    containers.append(_container(tmp_path / "host", "host"))
    for name in ("lives", "host"):
        _keep(tmp_path / name, me)
    _keep(tmp_path / "other", replace(me, start=me.start + 1))  # its process id was given to somebody else
    assert attachments(containers) == [Attachment("lives", "prod", me.pid)]


def test_every_link_is_known(tmp_path: Path) -> None:
    me = record.identify(os.getpid())
    assert me is not None
    one = _container(tmp_path / "lives")
    _keep(tmp_path / "lives", me)
    both = replace(one, task=replace(one.task, interfaces=(Interface("front"), Interface("back"))))
    assert attachments([both]) == [
        Attachment("lives", "prod", me.pid),
        Attachment("lives", "front", me.pid, "eth1"),
        Attachment("lives", "back", me.pid, "eth2"),
    ]


def test_a_pod_is_attached_once_by_its_holder(tmp_path: Path) -> None:
    me = record.identify(os.getpid())
    assert me is not None
    (tmp_path / "pod").mkdir()
    _keep(tmp_path / "pod", me)
    holder = Holder("pod", tmp_path / "pod", tmp_path / "pod", me.pid, ("network",))
    members = [_container(tmp_path / name) for name in ("a", "b")]
    members = [replace(each, sandbox=replace(each.sandbox, holder=holder)) for each in members]
    assert attachments(members) == [Attachment("pod", "prod", me.pid)]
