"""What is kept of images on a node: shared, never removed while in use, never half, and bounded by the disk."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from agent.images.errors import ImageError, Refused
from agent.images.images import Images, Places
from isolators import mount
from model.image import ImageSpec
from model.task import TaskState
from tests.images import Entry, busybox, layer
from tests.kernel.agent import Agent
from tests.kernel.sandbox import until
from tests.kernel.shelf import Shelf, of_image

pytestmark = pytest.mark.anyio


async def test_a_full_disk_is_the_reason_and_nothing_is_left(node: Agent, shelf: Shelf, tmp_path: Path) -> None:
    small = layer([Entry("small", bytes(1 << 20))])
    with mounted_tmpfs(tmp_path / "disk", "size=8m"):
        places = Places(tmp_path / "disk/images", tmp_path / "containers", tmp_path, (tmp_path,))
        images = Images(places)
        await images.open()
        unused = ImageSpec(shelf.layout(small, name="small"))
        await images.pull(unused, lambda text: None)
        big = ImageSpec(shelf.layout(layer([Entry("big", os.urandom(9 << 20))]), name="big"))
        with pytest.raises(ImageError, match="No space left on device"):
            await images.pull(big, lambda text: None)
        assert images.listed() == ()  # room was made, and it was not enough
        assert list((tmp_path / "disk/images/staging").iterdir()) == []
        fits = ImageSpec(shelf.layout(layer([Entry("fits", os.urandom(6 << 20))]), name="fits"))
        await images.pull(unused, lambda text: None)
        await images.pull(fits, lambda text: None)
        await images.close()


async def test_images_in_use_are_never_removed(node: Agent, shelf: Shelf, tmp_path: Path) -> None:
    """Also when the name stands for another image meanwhile."""
    first = shelf.layout(layer(busybox()), layer([Entry("first", b"1")]))
    spec = of_image(first, "sh", "-c", "while test ! -e /tmp/go; do sleep 0.1; done; cat /first")
    node.reconciler.assign(spec, kill=False)
    await node.reached(spec.id, TaskState.RUNNING)
    with pytest.raises(Refused, match="is in use by web.1"):
        await node.images.remove(first)
    assert await node.images.prune() == 0
    shelf.layout(layer(busybox()), layer([Entry("second", b"2")]))
    await node.images.pull(ImageSpec(first, force_pull=True), lambda text: None)
    assert len(list((tmp_path / "images/layers").iterdir())) == 3
    await node.images.prune()
    assert len(list((tmp_path / "images/layers").iterdir())) == 3
    node.reconciler.assign(spec, kill=True)
    await node.reached(spec.id, TaskState.FINISHED)
    assert await node.images.prune() > 0
    assert [list((tmp_path / "images" / name).iterdir()) for name in ("layers", "blobs", "images", "staging")] == [
        []
    ] * 4


async def test_layers_are_shared_and_go_with_the_last_image(node: Agent, shelf: Shelf, tmp_path: Path) -> None:
    base = layer(busybox())
    one = shelf.layout(base, layer([Entry("one", b"1")]), name="one")
    two = shelf.layout(base, layer([Entry("two", b"2")]), name="two")
    for reference in (one, two):
        await node.images.pull(ImageSpec(reference), lambda text: None)
    assert [len(list((tmp_path / "images/layers").iterdir())), len(node.images.listed())] == [3, 2]
    freed = await node.images.remove(one)
    assert freed < 20_000
    assert len(list((tmp_path / "images/layers").iterdir())) == 2
    with pytest.raises(Refused, match="is not on this node"):
        await node.images.remove(one)


async def test_nothing_half_used_after_a_kill(node: Agent, shelf: Shelf, tmp_path: Path) -> None:
    """SIGKILL at several moments of a pull by a process of its own; then the next one begins."""
    big = layer([Entry(f"f{number}", os.urandom(20_000)) for number in range(2000)])
    reference = shelf.layout(layer(busybox()), big)
    store = tmp_path / "other"
    for size in (0, 1, 100, 1000):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", PULL, str(tmp_path), reference)
        await until(partial(has_begun, store, size, process), "it unpacks")
        process.kill()
        await process.wait()
        await until(lambda: not unpackers(store), "what unpacks ends with it")
        images = Images(Places(store, tmp_path / "containers", tmp_path, (tmp_path,)))
        await images.open()
        assert list((store / "staging").iterdir()) == []
        for path in (store / "layers").iterdir():
            assert (path / "layer.json").exists()
        await images.close()
    await images.pull(ImageSpec(reference), lambda text: None)
    assert len(images.listed()) == 1


async def test_a_layer_of_another_boot_is_trusted_only_when_it_reached_the_disk(
    shelf: Shelf, node: Agent, tmp_path: Path
) -> None:
    reference = shelf.layout(layer(busybox()))
    await node.images.pull(ImageSpec(reference), lambda text: None)
    record = next((tmp_path / "images/layers").glob("*/layer.json"))
    await until(lambda: json.loads(record.read_text())["boot"] == "", "it is on disk")
    record.write_text(record.read_text().replace('"boot":""', '"boot":"before"'))
    images = Images(Places(tmp_path / "images", tmp_path / "containers", tmp_path, (tmp_path,)))
    await images.open()
    assert images.listed() == ()
    assert list((tmp_path / "images/layers").iterdir()) == []


PULL = """
import asyncio, sys
from pathlib import Path
from agent.images.images import Images, Places
from model.image import ImageSpec
async def main():
    base = Path(sys.argv[1])
    images = Images(Places(base / "other", base / "containers", base, (base,)))
    await images.open()
    await images.pull(ImageSpec(sys.argv[2]), lambda text: None)
asyncio.run(main())
"""


def unpacked(store: Path) -> int:
    return len(list(store.glob("staging/*/layer.*/root/f*")))


def has_begun(store: Path, size: int, process: asyncio.subprocess.Process) -> bool:
    return unpacked(store) >= size or process.returncode is not None


def unpackers(store: Path) -> list[str]:
    """Processes that unpack below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(store).encode() in (process / "cmdline").read_bytes() and "rm" not in (process / "comm").read_text():
                found.append(process.name)
        except OSError:
            continue
    return found


@contextmanager
def mounted_tmpfs(path: Path, options: str) -> Iterator[None]:
    path.mkdir()
    mount.mount("tmpfs", path, "tmpfs", 0, options)
    try:
        yield
    finally:
        mount.umount2(path, mount.MNT_DETACH)
