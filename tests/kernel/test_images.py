"""Containers from images: layout directories and archives, layers that cover each other, and what goes wrong."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from model.image import ImageSpec
from model.task import TaskSpec, TaskState, TaskStatus
from tests import images as make
from tests.images import Entry, busybox, directory, hard_link, layer, symlink, write_archive, write_layout
from tests.kernel.agent import Agent, agent
from tests.kernel.sandbox import task

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Agent]:
    async with agent(tmp_path) as made:
        yield made


class Shelf:
    """Where tests put images."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def layout(self, *layers: bytes, name: str = "layout", **options: Any) -> str:
        write_layout(self.path / name, {"test": make.make(layers, **options)})
        return f"oci:{self.path / name}:test"

    def archive(self, *layers: bytes, config: dict[str, Any] | None = None) -> str:
        return f"docker-archive:{write_archive(self.path / 'image.tar', layers, config)}"


@pytest.fixture
def shelf(node: Agent, tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def of_image(reference: str, *argv: str, name: str = "web.1", arguments: bool = False, **changes: Any) -> TaskSpec:
    image = ImageSpec(reference, arguments=arguments, **changes.pop("image", {}))
    return task(name, *argv, **{"image": image, "user": "", "cwd": "", **changes})


async def run(node: Agent, spec: TaskSpec) -> tuple[TaskStatus, str]:
    status = await node.run(spec)
    logs = [node.directories.log(spec.id, stream) for stream in ("stdout", "stderr")]
    return status, "".join(log.read_text() for log in logs if log.exists())


COMPRESSIONS: list[Callable[[bytes], bytes]] = [gzip.compress, make.zstd, bytes]


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
    subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", reference, written], check=True)
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
        Entry("pipe", kind=make.tarfile.FIFOTYPE, mode=0o600),
        Entry("device", kind=make.tarfile.CHRTYPE, device=(1, 3)),
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
    _, output = await run(node, TaskSpec(**{**_fields(spec), "env": (("B", "task"),)}))
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
    _, output = await run(node, of_image(reference, "ls", "/"))
    assert output.count("file") == 124


def _fields(spec: TaskSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}
