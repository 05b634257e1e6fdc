"""Attacks by way of what is mounted: links in images, exchanged while a container starts, and files to mask."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.launcher.client import LaunchError
from isolators.base import Container
from isolators.mount import mount_points
from tests.kernel.attacks.attacker import Attacker
from tests.kernel.sandbox import Sandbox, exit_of, output, task

pytestmark = pytest.mark.anyio

STARTS = 1000
AT_ONCE = 4
UP = "../../../../../../../../../.."


async def test_cve_2021_30465_a_racer_does_not_move_a_mount_out(node: Sandbox, image: Path, victim: Path) -> None:
    """A volume that the attacker shares, and a second one that is mounted in it. A directory on the way is exchanged
    for a link to the node's directory, over and over."""
    volume, prize = image.parent / "volume", image.parent / "prize"
    for directory in (volume, prize):
        directory.mkdir()
    mounts = [bind(volume, "/volume"), bind(prize, "/volume/way/prize")]
    look = f"cat /proc/self/mountinfo; echo seen: $(ls {victim} /volume/way/prize/..)"
    gate = asyncio.Semaphore(AT_ONCE)

    async def start(number: int) -> str:
        async with gate:
            container = node.container(task(f"attacker.{number}", "sh", "-c", look, rootfs=str(image)))
            launch = await node.create(container)
            await node.prepare(container, lambda config: config["mounts"].extend(mounts))
            try:
                await node.fill(container, launch)
            except LaunchError as error:
                return str(error)
            await exit_of(container)
            await clean(node, container)
            return output(container)

    with racing(volume, f"{UP}{victim}"):
        seen = await asyncio.gather(*(start(number) for number in range(STARTS)))
    assert os.listdir(victim) == ["file"]
    assert any("/volume" in text for text in seen)
    assert not any("seen: file" in text for text in seen)
    assert [point for point in mount_points() if point.path.is_relative_to(victim)] == []


@pytest.mark.parametrize("target", ["/proc/sys/kernel/core_pattern", "/proc/kcore", "/etc/shadow"])
async def test_cve_2025_31133_masks_are_not_what_an_image_puts_at_dev_null(
    attacker: Attacker, image: Path, target: str
) -> None:
    before = core_pattern()
    (image / "dev").mkdir()
    (image / "dev/null").symlink_to(target)
    text = await attacker.shell(
        "cat /proc/keys /proc/timer_list; stat -c %t:%T /proc/keys;"
        "for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/vm/drop_caches; do"
        "  (echo '|/bin/evil' > $f) 2>/dev/null && echo wrote $f; done",
        rootfs=str(image),
    )
    assert text == "1:3\n"
    assert core_pattern() == before


@pytest.mark.parametrize("name", ["console", "pts", "pts/0", "ptmx", "tty", "shm", "mqueue"])
async def test_cve_2025_52565_links_in_the_images_dev_are_covered(attacker: Attacker, image: Path, name: str) -> None:
    before = core_pattern()
    (image / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
    (image / "dev" / name).symlink_to("/proc/sys/kernel/core_pattern")
    text = await attacker.shell("cat /proc/self/mountinfo; (echo evil > /dev/console) 2>&-", rootfs=str(image))
    points = {line.split()[4]: line.split(" - ")[1].split()[0] for line in text.splitlines()}
    assert (points["/dev"], points["/dev/pts"], points["/dev/mqueue"]) == ("tmpfs", "devpts", "mqueue")
    assert not any(path.startswith("/proc/sys/kernel") for path in points)
    assert core_pattern() == before


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("target", ["tmp", f"{UP}/tmp", "/etc"])
async def test_cve_2026_41579_and_2019_19921_links_for_system_directories_are_refused(
    node: Sandbox, image: Path, name: str, target: str
) -> None:
    (image / name).symlink_to(target)
    with pytest.raises(LaunchError, match=f"move /{name}: .*symbolic link"):
        await launch(node, image)


@pytest.mark.parametrize(
    "destination", ["/proc", "/proc/sys", "/sys", "/sys/fs", "/dev", "/tmp/../proc", "//proc/self"]
)
async def test_cve_2025_52881_no_volume_goes_over_system_directories(
    node: Sandbox, image: Path, victim: Path, destination: str
) -> None:
    with pytest.raises(LaunchError, match="may not be mounted on"):
        await launch(node, image, bind(victim, destination))


@pytest.mark.parametrize(
    "target", ["/proc", "/proc/self", "/proc/sys/kernel/core_pattern", "/sys/kernel", "proc/1/attr"]
)
async def test_cve_2025_52881_no_volume_goes_there_by_a_link(
    node: Sandbox, image: Path, victim: Path, target: str
) -> None:
    (image / "volume").symlink_to(target)
    source = victim / "file" if target.endswith("pattern") else victim
    with pytest.raises(LaunchError, match="on /volume"):
        await launch(node, image, bind(source, "/volume"))


@pytest.mark.parametrize("destination", ["/../../../../../victim/x", "/link/x", "/absolute/x"])
async def test_cve_2022_23648_and_2021_43816_a_volumes_path_stays_inside(
    node: Sandbox, image: Path, victim: Path, destination: str
) -> None:
    (image / "link").symlink_to(f"{UP}{victim}")
    (image / "absolute").symlink_to(victim)
    await launch(node, image, bind(image / "etc", destination))
    assert os.listdir(victim) == ["file"]


async def test_ghsa_6fw5_and_jq35_counters_and_sensors_are_masked(attacker: Attacker) -> None:
    masked = "/proc/interrupts /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/latency_stats"
    directories = (
        "/sys/class/thermal /sys/class/powercap /sys/devices/virtual/powercap /sys/firmware /proc/acpi /proc/scsi"
    )
    assert await attacker.shell(f"cat {masked} 2>&-; ls -A {directories} 2>&- | grep -v :$ | grep .") == ""


async def test_cve_2023_25809_control_groups_are_out_of_reach(attacker: Attacker) -> None:
    text = await attacker.shell(
        "for f in $(find /sys/fs/cgroup /proc/self/root/sys/fs -name cgroup.procs -o -name release_agent 2>&-); do"
        "  (echo 0 > $f) 2>&- && echo wrote $f; done; mkdir /sys/fs/cgroup/x 2>&- && echo made; cat /proc/self/cgroup"
    )
    assert "wrote" not in text and "made" not in text
    limited = [line for line in text.splitlines() if "pids" in line or "memory" in line]
    assert {line.rsplit(":", 1)[1] for line in limited or text.splitlines()} == {"/"}


@contextmanager
def racing(volume: Path, target: str) -> Iterator[None]:
    """`volume/way` is a directory, a link to `target`, and nothing, in turn."""
    ended = threading.Event()

    def race() -> None:
        way, link, plain = volume / "way", volume / "link", volume / "plain"
        while not ended.is_set():
            link.symlink_to(target)
            os.rename(link, way)
            way.unlink()
            plain.mkdir()
            os.rename(plain, way)
            for inner in way.iterdir():
                inner.rmdir()
            way.rmdir()

    # A thread, for the exchange must go on while the event loop is busy.
    racer = threading.Thread(target=race)
    racer.start()
    try:
        yield
    finally:
        ended.set()
        racer.join()


def core_pattern() -> bytes:
    return Path("/proc/sys/kernel/core_pattern").read_bytes()


async def launch(node: Sandbox, image: Path, *mounts: dict[str, Any]) -> None:
    changed = task("attacker.1", "true", rootfs=str(image))
    container, _ = await node.start(changed, lambda config: config["mounts"].extend(mounts))
    await exit_of(container)


async def clean(node: Sandbox, container: Container) -> None:
    for isolator in reversed(node.isolators):
        await isolator.cleanup(container.sandbox)


def bind(source: Path, destination: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["bind"]}
