"""Containers from images: layout directories and archives, layers that cover each other, and what goes wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import shutil
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agent.images.errors import WrongDigest
from model.image import ImageSpec
from model.task import TaskState
from tests import images as make
from tests.images import Entry, busybox, directory, hard_link, layer, symlink, write_layout
from tests.kernel import namespaces
from tests.kernel.agent import Agent
from tests.kernel.shelf import Shelf, of_image, run

pytestmark = pytest.mark.anyio

PROGRAM = Path("/bin/true").read_bytes()  # one of the node, with a loader
COMPRESSIONS: list[Callable[[bytes], bytes]] = [make.gzipped, make.zstd, bytes]


@pytest.mark.parametrize("compress", COMPRESSIONS, ids=["gzip", "zstd", "plain"])
async def test_a_layout_runs(node: Agent, shelf: Shelf, compress: Callable[[bytes], bytes]) -> None:
    reference = shelf.layout(layer(busybox()), compress=compress, config={"Cmd": ["echo", "hello"]})
    status, output = await run(node, of_image(reference))
    assert (status.state, status.reason, output) == (TaskState.FINISHED, "exited with 0", "hello\n")


async def test_an_archive_runs(node: Agent, shelf: Shelf) -> None:
    reference = shelf.archive(layer(busybox()), layer([Entry("hello", b"from the second")]))
    status, output = await run(node, of_image(reference, "cat", "/hello"))
    assert (status.reason, output) == ("exited with 0", "from the second")


async def test_an_archive_written_by_skopeo_runs(node: Agent, shelf: Shelf, tmp_path: Path) -> None:
    reference = shelf.layout(layer(busybox()), layer([Entry("hello", b"hello")]))
    written = f"docker-archive:{tmp_path}/saved.tar:web:1"
    await asyncio.to_thread(namespaces.run, "skopeo", "--insecure-policy", "copy", "-q", reference, written)
    status, output = await run(node, of_image(f"docker-archive:{tmp_path}/saved.tar", "cat", "/hello"))
    assert (status.reason, output) == ("exited with 0", "hello")


async def test_upper_layers_hide_files_and_directories_of_lower_ones(node: Agent, shelf: Shelf) -> None:
    lower = [directory("a"), Entry("a/gone", b"1"), Entry("a/stays", b"1"), directory("b"), Entry("b/old", b"1")]
    lower += [directory("c"), Entry("c/old"), directory("d/e"), Entry("d/e/old")]
    upper = [directory("a"), Entry("a/.wh.gone"), directory("b"), Entry("b/.wh..wh..opq"), Entry("b/new", b"2")]
    upper += [Entry(".wh.c"), Entry("d/e/.wh..wh..opq"), Entry(".wh..wh.plnk")]
    reference = shelf.layout(layer(busybox()), layer(lower), layer(upper))
    status, output = await run(node, of_image(reference, "sh", "-c", "cd /; ls a b d/e; test -e c || echo no c"))
    assert (status.reason, output) == ("exited with 0", "a:\nstays\n\nb:\nnew\n\nd/e:\nno c\n")


async def test_files_keep_what_they_are(node: Agent, shelf: Shelf) -> None:
    entries = [
        Entry("mine", b"x", mode=0o640, uid=1000, gid=1001),
        Entry("setuid", b"x", mode=0o4755),
        hard_link("second", "mine"),
        symlink("link", "/mine"),
        Entry("pipe", kind=tarfile.FIFOTYPE, mode=0o600),
        Entry("device", kind=tarfile.CHRTYPE, device=(1, 3)),
        Entry("twice", b"first"),
        Entry("twice", b"second"),
    ]
    reference = shelf.layout(layer(busybox()), layer(entries))
    look = "cd /; stat -c '%n %a %u:%g %h %F' mine setuid link pipe; cat twice; test -e device || echo ' no device'"
    _, output = await run(node, of_image(reference, "sh", "-c", look))
    assert output.splitlines() == [
        "mine 640 1000:1001 2 regular file",
        "setuid 4755 0:0 1 regular file",
        "link 777 0:0 1 symbolic link",
        "pipe 600 0:0 1 fifo",
        "second no device",
    ]


async def test_an_image_says_what_runs_where_and_as_whom(node: Agent, shelf: Shelf) -> None:
    config = {"User": "web", "WorkingDir": "/srv/app", "Env": ["A=image", "B=image", "PATH=/bin"]}
    reference = shelf.layout(layer(busybox()), config={**config, "Entrypoint": ["sh", "-c"], "Cmd": ["id -u; pwd"]})
    _, output = await run(node, of_image(reference))
    assert output == "1000\n/srv/app\n"
    spec = of_image(reference, "id -u; pwd; echo $A $B", name="web.2", arguments=True, user="0", cwd="/tmp")
    _, output = await run(node, dataclasses.replace(spec, env=(("B", "task"),)))
    assert output == "0\n/tmp\nimage task\n"


async def test_what_a_container_writes_is_its_own(node: Agent, shelf: Shelf) -> None:
    reference = shelf.layout(layer(busybox()))
    write = "echo more >> /etc/passwd; touch /mine; stat -c %u /mine $MESOS_SANDBOX; cd $MESOS_SANDBOX && touch x && ls"
    _, output = await run(node, of_image(reference, "sh", "-c", write))
    assert output == "0\n0\nx\n"
    _, output = await run(node, of_image(reference, "sh", "-c", "cat /etc/passwd; ls /", name="web.2"))
    assert "more" not in output and "mine" not in output


async def test_an_image_that_is_there_is_not_read_again(node: Agent, shelf: Shelf, tmp_path: Path) -> None:
    reference = shelf.layout(layer(busybox()))
    await run(node, of_image(reference, "true"))
    shutil.rmtree(tmp_path / "layout")
    status, _ = await run(node, of_image(reference, "true", name="web.2"))
    assert status.reason == "exited with 0"
    status, _ = await run(node, of_image(reference, "true", name="web.3", image={"force_pull": True}))
    assert (status.state, "there is no" in status.reason) == (TaskState.REJECTED, True)


async def test_images_with_125_layers_run(node: Agent, shelf: Shelf) -> None:
    layers = [layer([Entry(f"file{number}", b"x")]) for number in range(124)]
    reference = shelf.layout(layer(busybox()), *layers)
    await node.images.pull(ImageSpec(reference), lambda text: None)
    _, output = await run(node, of_image(reference, "ls", "/"))
    assert output.count("file") == 124


@pytest.mark.parametrize(
    ("files", "argv", "reason"),
    [
        ([], ("/app",), "entrypoint missing: there is no /app in its file system"),
        ([], ("app",), "entrypoint missing: there is no app in its file system"),
        ([Entry("app", b"#!/bin/sh\n", mode=0o644)], ("/app",), "not executable: /app has mode 0644"),
        ([directory("app")], ("/app",), "not executable: /app is no file"),
        ([Entry("app", b"hello")], ("/app",), "not executable: /app is neither a program nor a script"),
        ([Entry("app", b"#!/bin/bash -e\n")], ("/app",), "interpreter missing: /app is a script for '/bin/bash'"),
    ],
)
async def test_a_program_that_can_not_be_executed_says_why(
    node: Agent, shelf: Shelf, files: Sequence[Entry], argv: tuple[str, ...], reason: str
) -> None:
    status, _ = await run(node, of_image(shelf.layout(layer([*busybox(), *files])), *argv))
    assert (status.state, reason in status.reason) == (TaskState.FAILED, True), status.reason


async def test_a_program_for_another_libc_or_machine_says_so(node: Agent, shelf: Shelf) -> None:
    """A program of the node's without its loader, and the same one with another number for the machine."""

    loader = re.search(rb"/lib[a-z0-9]*/ld-linux[^\0]*", PROGRAM)
    assert loader is not None
    foreign = PROGRAM[:18] + struct.pack("<H", 22) + PROGRAM[20:]
    entries = [*busybox(), Entry("app", PROGRAM), Entry("foreign", foreign)]
    reference = shelf.layout(layer(entries))
    status, _ = await run(node, of_image(reference, "/app"))
    assert status.reason == f"wrong libc: /app needs the loader {loader[0].decode()}, which is not in its file system"
    status, _ = await run(node, of_image(reference, "/foreign", name="web.2"))
    assert status.reason == f"wrong architecture: /foreign is for s390x, and this node is {os.uname().machine}"


async def test_what_is_wrong_with_an_image_is_the_reason_of_its_task(node: Agent, shelf: Shelf, tmp_path: Path) -> None:
    wrong = make.make([layer(busybox())])
    first = next(iter(wrong.blobs))
    write_layout(tmp_path / "damaged", {"test": make.Made(wrong.manifest, wrong.config, {**wrong.blobs, first: b"x"})})
    lost = make.Made(wrong.manifest, wrong.config, {name: data for name, data in wrong.blobs.items() if name != first})
    write_layout(tmp_path / "lost", {"test": lost})
    reasons = {
        shelf.layout(layer(busybox()), architecture="mips", name="mips"): "it is for linux/mips, and this node is",
        f"oci:{tmp_path}/mips:other": "there is no image with the tag 'other'",
        f"oci:{tmp_path}/nothing:test": "no OCI layout: there is no",
        f"docker-archive:{tmp_path}/nothing.tar": "there is no such file",
        f"oci:{tmp_path}/damaged:test": "no archive of a layer",
        f"oci:{tmp_path}/lost:test": "is missing",
        shelf.layout(layer(busybox()), name="empty"): "neither ENTRYPOINT nor CMD",
        "Not/An:Image:": "is no name of an image",
    }
    for number, (reference, reason) in enumerate(reasons.items()):
        status, _ = await run(node, of_image(reference, name=f"web.{number}"))
        assert reason in status.reason, (reference, status.reason)
        assert status.state is TaskState.REJECTED or "missing" in reason
        assert not (node.directories.bundles / f"web.{number}").exists()


async def test_a_wrong_digest_is_told_from_a_broken_archive(node: Agent, shelf: Shelf, tmp_path: Path) -> None:
    honest, other = make.make([layer(busybox())]), layer([Entry("other")])
    first = next(iter(honest.blobs))
    swapped = make.Made(honest.manifest, honest.config, {**honest.blobs, first: make.gzipped(other)})
    write_layout(tmp_path / "swapped", {"test": swapped})
    with pytest.raises(WrongDigest, match=f"a layer should be {first} and is sha256:"):
        await node.images.pull(ImageSpec(f"oci:{tmp_path}/swapped:test"), lambda text: None)
    assert list((tmp_path / "images/layers").iterdir()) == []
