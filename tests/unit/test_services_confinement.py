"""What a definition says of how its tasks are confined: taken over, or refused with its place and the reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from frameworks.services.app import create, new_task
from frameworks.services.confinement import UNLIMITED
from frameworks.services.definition import Definition
from frameworks.services.parameters import PARAMETERS
from frameworks.services.place import Demand, place
from frameworks.services.refusals import explain
from master.offers import Offer
from master.rest.errors import json_path
from model.limits import Device, IoLimit, TaskLimits, Tmpfs
from model.resources import Resources
from model.rights import needed
from model.task import Rlimit, TaskSpec
from model.volume import VolumeKind, VolumeMount
from tests.unit.cluster import node

BASE: dict[str, Any] = {"id": "/web", "cmd": "true", "mem": 64, "networks": [{"mode": "container", "name": "overlay"}]}
PROFILE = json.dumps({"defaultAction": "SCMP_ACT_ERRNO"})


def spec(**fields: Any) -> TaskSpec:
    definition = Definition.model_validate_json(json.dumps(BASE | fields))
    return new_task(create(definition, datetime.now(UTC)), datetime.now(UTC))


def with_options(*options: str) -> TaskSpec:
    pairs = [dict(zip(("key", "value"), option.split(" ", 1), strict=True)) for option in options]
    return spec(container={"docker": {"parameters": pairs}})


def refused(**fields: Any) -> tuple[str, str]:
    """The path and the reason."""
    with pytest.raises(ValidationError) as caught:
        Definition.model_validate_json(json.dumps(BASE | fields))
    (problem,) = caught.value.errors()
    return json_path(problem["loc"]), problem["msg"]


def refused_option(option: str) -> tuple[str, str]:
    key, _, value = option.partition(" ")
    return refused(container={"docker": {"parameters": [{"key": key, "value": value}]}})


def test_nothing_said_is_the_default() -> None:
    task = spec()
    assert (task.limits, task.seccomp, task.read_only, task.shm, task.pids) == (TaskLimits(), "", False, 64, 1024)


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("cap-add NET_RAW", "capabilities_add", ("CAP_NET_RAW",)),
        ("cap-drop cap_chown", "capabilities_drop", ("CAP_CHOWN",)),
        ("cap-drop ALL", "capabilities_drop", ("ALL",)),
        ("sysctl net.core.somaxconn=512", "sysctls", (("net.core.somaxconn", "512"),)),
        ("ulimit nofile=512:1024", "rlimits", (Rlimit("RLIMIT_NOFILE", 512, 1024),)),
        ("ulimit core=0", "rlimits", (Rlimit("RLIMIT_CORE", 0, 0),)),
        ("pids-limit 77", "pids", 77),
        ("shm-size 1g", "shm", 1024),
        ("shm-size 100kb", "shm", 1),
        ("stop-signal SIGQUIT", "kill_signal", "SIGQUIT"),
        ("read-only true", "read_only", True),
        ("tmpfs /scratch", "tmpfs", (Tmpfs("/scratch"),)),
        ("tmpfs /s:rw,size=16m,mode=0700,exec", "tmpfs", (Tmpfs("/s", 16, "0700", True),)),
        ("security-opt seccomp=unconfined", "seccomp", "unconfined"),
        (f"security-opt seccomp={PROFILE}", "seccomp", PROFILE),
        ("security-opt no-new-privileges", "seccomp", ""),
        ("volume /srv:/data:ro", "volumes", (VolumeMount("/data", VolumeKind.HOST, "/srv", read_only=True),)),
    ],
)
def test_options_of_the_task(option: str, field: str, value: object) -> None:
    assert getattr(with_options(option), field) == value


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("memory-swap 96m", "swap", 32),
        ("cpuset-cpus 0-3,6", "cpuset", "0-3,6"),
        ("oom-score-adj 900", "oom_score_adj", 900),
        ("blkio-weight 300", "io_weight", 300),
        ("device /dev/fuse", "devices", (Device("/dev/fuse", "rw"),)),
        ("device /dev/fuse:/dev/fuse:rm", "devices", (Device("/dev/fuse", "r"),)),
        ("device /dev/fuse:r", "devices", (Device("/dev/fuse", "r"),)),
        ("device-read-bps /dev/sda:1mb", "io", (IoLimit("/dev/sda", read_bps=1 << 20),)),
    ],
)
def test_options_of_the_limits(option: str, field: str, value: object) -> None:
    assert getattr(with_options(option).limits, field) == value


def test_options_add_up() -> None:
    task = with_options(
        "cap-add NET_RAW", "cap-add SYS_PTRACE", "device-read-bps /dev/sda:1m", "device-write-iops /dev/sda:9"
    )
    assert task.capabilities_add == ("CAP_NET_RAW", "CAP_SYS_PTRACE")
    assert task.limits.io == (IoLimit("/dev/sda", read_bps=1 << 20, write_iops=9),)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("cap-add NET_RAWW", "is no capability"),
        ("cap-add ALL", "name each capability"),
        ("sysctl kernel.core_pattern=x", "is not of a container's own"),
        ("sysctl net.core.somaxconn", "NAME=VALUE"),
        ("ulimit files=3", "is no limit of a process"),
        ("ulimit nofile=9:3", "above the hard one"),
        ("ulimit nofile=many", "must be a number"),
        ("pids-limit 0", "from 1 to"),
        ("pids-limit -1", "from 1 to"),
        ("shm-size 0", "an amount"),
        ("shm-size 1x", "an amount"),
        ("stop-signal SIGNONE", "is no signal"),
        ("oom-score-adj -5", "from 0 to 1000"),
        ("cpuset-cpus 1-", "CPUs like"),
        ("device /etc/shadow", "below /dev"),
        ("device /dev/sda:/dev/other", "same path"),
        ("device-read-bps /dev/sda", "a colon and a rate"),
        ("read-only maybe", "true or false"),
        ("tmpfs /proc/x", "over /proc"),
        ("tmpfs /sys", "over /sys"),
        ("tmpfs /dev/x", "over /dev"),
        ("tmpfs /", "root itself"),
        ("tmpfs relative", "absolute"),
        ("tmpfs /a/../proc", "absolute path without"),
        ("tmpfs /a:size=0", "an amount"),
        ("tmpfs /a:mode=9", "octal"),
        ("tmpfs /a:suid", "is not supported"),
        ("security-opt apparmor=unconfined", "is not supported"),
        ("security-opt seccomp=/etc/profile.json", "as JSON"),
        ("memory-swap -1", "an amount"),
    ],
)
def test_bad_values_are_refused_where_they_are(option: str, reason: str) -> None:
    path, said = refused_option(option)
    assert path == "/container/docker/parameters(0)/value" and reason in said


@pytest.mark.parametrize(
    ("key", "reason"), [("privileged", "is not supported"), ("memory", "use mem"), ("env", "use env"), ("", "are")]
)
def test_unknown_options_are_refused_by_name(key: str, reason: str) -> None:
    path, said = refused_option(f"{key} 1")
    assert path == "/container/docker/parameters(0)/key" and repr(key) in said and reason in said


def test_every_option_has_a_test() -> None:
    tested = [mark.args[1] for test in (test_options_of_the_task, test_options_of_the_limits) for mark in marks(test)]
    options = {case[0].split(" ")[0] for cases in tested for case in cases}
    assert PARAMETERS.keys() - options == {"device-read-iops", "device-write-bps", "device-write-iops"}


def marks(test: Any) -> list[Any]:
    return [mark for mark in test.pytestmark if mark.name == "parametrize"]


def test_swap_is_counted_from_the_memory() -> None:
    path, said = refused(container={"docker": {"parameters": [{"key": "memory-swap", "value": "32m"}]}})
    assert path == "/container/docker/parameters(0)/value" and "at least 64m" in said


def test_linux_info() -> None:
    assert spec(container={"linuxInfo": {"seccomp": {"unconfined": True}}}).seccomp == "unconfined"
    assert spec(container={"linuxInfo": {"seccomp": {"profileName": "default"}}}).seccomp == ""
    assert spec(container={"linuxInfo": {"ipcInfo": {"mode": "PRIVATE", "shmSize": 256}}}).shm == 256


@pytest.mark.parametrize(
    ("info", "path"),
    [
        ({"seccomp": {"profileName": "strict"}}, "/container/linuxInfo/seccomp"),
        ({"seccomp": {"profileName": "default", "unconfined": True}}, "/container/linuxInfo/seccomp"),
        ({"seccomp": {}}, "/container/linuxInfo/seccomp"),
        ({"ipcInfo": {"mode": "SHARE_PARENT"}}, "/container/linuxInfo/ipcInfo"),
        ({"ipcInfo": {"mode": "PRIVATE", "shmSize": 0}}, "/container/linuxInfo/ipcInfo/shmSize"),
        ({"capabilities": []}, "/container/linuxInfo/capabilities"),
    ],
)
def test_linux_info_that_is_refused(info: dict[str, Any], path: str) -> None:
    assert refused(container={"linuxInfo": info})[0] == path


def test_limits_above_what_is_asked_for() -> None:
    limits = spec(cpus=0.5, resourceLimits={"cpus": 1.5, "mem": "unlimited"}).limits
    assert (limits.cpu_limit, limits.mem_limit) == (1500, UNLIMITED)


@pytest.mark.parametrize(
    ("limits", "path"),
    [
        ({"cpus": 0.1}, "/resourceLimits/cpus"),
        ({"mem": 32}, "/resourceLimits/mem"),
        ({"disk": 1}, "/resourceLimits/disk"),
    ],
)
def test_limits_below_it_are_refused(limits: dict[str, Any], path: str) -> None:
    assert refused(cpus=0.5, resourceLimits=limits)[0] == path


def test_user_ids_are_those_of_a_container() -> None:
    assert spec(user="65535:65535").user == "65535:65535"
    assert refused(user="65536")[0] == refused(user="0:99999")[0] == "/user"


def test_what_no_node_permits_is_named() -> None:
    task = with_options("cap-add SYS_ADMIN", "cap-add CHOWN", "device /dev/fuse", "security-opt seccomp=unconfined")
    rights = needed(task)
    assert rights == {"capability CAP_SYS_ADMIN", "device /dev/fuse", "seccomp unconfined"}
    demand = Demand("/web", Resources(100, 32), ("overlay",), 1, rights)
    offers = [Offer("o1", node("n1"), Resources(4000, 4096), frozenset({"overlay"}))]
    plan = place([demand], offers, {})
    assert plan.placements == ()
    assert explain(demand.resources, plan.refusals)[0] == (
        "needs capability CAP_SYS_ADMIN: no node permits it, in its agent.toml"
    )
