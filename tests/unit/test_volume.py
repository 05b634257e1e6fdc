"""What may be a volume, and what a node permits of its own files."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.resources import Resources
from model.rights import missing, needed, volume
from model.task import TaskSpec
from model.volume import (
    HostVolume,
    Propagation,
    VolumeKind,
    VolumeMount,
    mount_problem,
    nearest,
    parse_host_volume,
    persistent,
)

HOST = VolumeMount("/data", VolumeKind.HOST, "/srv/data")
KEPT = VolumeMount("/data", VolumeKind.PERSISTENT, "db.1.data", size=10)
OWN = VolumeMount("/data", VolumeKind.EPHEMERAL, "scratch")
PODS = VolumeMount("/data", VolumeKind.POD, "shared")
TASK = TaskSpec("web.1", "services", "/web", ("true",), Resources(), "none")


@pytest.mark.parametrize("mount", [HOST, KEPT, OWN, PODS, replace(HOST, propagation=Propagation.SLAVE)])
def test_sound(mount: VolumeMount) -> None:
    assert mount_problem(mount) == ""


@pytest.mark.parametrize("mount", [HOST, KEPT, OWN])
@pytest.mark.parametrize(
    "destination",
    [
        "/",
        "/proc",
        "/proc/sys",
        "/sys",
        "/sys/fs/cgroup",
        "/dev",
        "/dev/shm",
        "/a/../proc",
        "/a/",
        "a",
        "",
        "//proc",
        "/\0",
    ],
)
def test_nothing_goes_over_what_is_the_kernels(mount: VolumeMount, destination: str) -> None:
    assert mount_problem(replace(mount, destination=destination))


@pytest.mark.parametrize(
    ("mount", "says"),
    [
        (replace(HOST, source="srv"), "absolute"),
        (replace(PODS, source="../up"), "no name of a volume"),
        (replace(PODS, propagation=Propagation.SLAVE), "for host volumes"),
        (replace(HOST, source="/srv/../etc"), "without . and .."),
        (replace(KEPT, source="../x"), "no id"),
        (replace(KEPT, source=".x"), "no id"),
        (replace(KEPT, size=0), "must be from 1"),
        (replace(OWN, source="a/b"), "no name"),
        (replace(OWN, propagation=Propagation.SLAVE), "for host volumes"),
        (replace(KEPT, propagation=Propagation.SHARED), "for host volumes"),
    ],
)
def test_refused(mount: VolumeMount, says: str) -> None:
    assert says in mount_problem(mount)


def test_persistent_ones_count_once() -> None:
    assert persistent([KEPT, OWN, HOST, replace(KEPT, destination="/again")]) == ("db.1.data",)


@pytest.mark.parametrize("text", ["/srv", "/srv:", "/srv:wr", "srv:ro", "/srv/../etc:ro", "/srv/:rw", ":ro"])
def test_what_a_node_can_not_permit(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_host_volume(text)


def test_the_nearest_permission_counts() -> None:
    permitted = [parse_host_volume(text) for text in ("/srv:rw", "/srv/safe:ro", "/srv-2:rshared")]
    assert nearest("/srv/safe/x", permitted) == HostVolume("/srv/safe", "ro")
    assert nearest("/srv/safer", permitted) == nearest("/srv", permitted) == HostVolume("/srv", "rw")
    assert nearest("/etc", permitted) is None
    assert nearest("/etc", [HostVolume("/", "ro")]) == HostVolume("/", "ro")


@pytest.mark.parametrize(
    ("mount", "permitted"),
    [
        (HOST, True),
        (replace(HOST, read_only=True), True),
        (replace(HOST, source="/srv/safe/x", read_only=True), True),
        (replace(HOST, source="/srv/safe/x"), False),
        (replace(HOST, propagation=Propagation.SLAVE), True),
        (replace(HOST, propagation=Propagation.SHARED, read_only=True), False),
        (replace(HOST, source="/etc", read_only=True), False),
        (KEPT, True),
        (OWN, True),
    ],
)
def test_rights(mount: VolumeMount, permitted: bool) -> None:
    granted = frozenset(volume(parse_host_volume(text)) for text in ("/srv:rw", "/srv/safe:ro"))
    assert (not missing(needed(replace(TASK, volumes=(mount,))), granted)) == permitted
