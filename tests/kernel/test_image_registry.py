"""Images from a registry with TLS and a password: what is brought and what is not, and each reason why not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from agent.images import pulls, unpack
from agent.images.errors import BadCertificate, ImageError, NotFound, NotPermitted, Unreachable, WrongDigest
from agent.images.images import Images, Places
from model.image import ImageSpec
from model.task import TaskState
from tests.images import Entry, busybox, layer, make
from tests.kernel.agent import agent
from tests.kernel.registry import HOST, Registry, credentials, registry
from tests.kernel.sandbox import task

pytestmark = pytest.mark.anyio

SMALL = layer([Entry("hello", b"hello")])


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Registry]:
    with registry(tmp_path / "registry") as made:
        yield made


@pytest.fixture
def places(tmp_path: Path, shop: Registry) -> Places:
    """Of a node that trusts the registry."""
    shop.trusted(tmp_path / "registries/certs.d" / HOST)
    (tmp_path / "containers").mkdir()
    return Places(tmp_path / "images", tmp_path / "containers", tmp_path / "registries")


@pytest.fixture
async def images(places: Places) -> AsyncIterator[Images]:
    made = Images(places)
    await made.open()
    yield made
    await made.close()


def spec(shop: Registry, reference: str, force_pull: bool = False) -> ImageSpec:
    return ImageSpec(reference, force_pull, pull_config=shop.credentials)


def quiet(text: str) -> None:
    return


async def test_a_task_runs_from_a_registry_and_tells_how_far_it_is(tmp_path: Path, shop: Registry) -> None:
    reference = shop.push("web:1", make([layer(busybox()), SMALL], {"Cmd": ["cat", "/hello"]}))
    shop.trusted(tmp_path / "state/registries/certs.d" / HOST)
    async with agent(tmp_path / "state") as node:
        status = await node.run(task("web.1", image=spec(shop, reference), user="", cwd=""))
        assert (status.state, status.reason, status.message) == (TaskState.FINISHED, "exited with 0", "")
        assert node.directories.log("web.1", "stdout").read_text() == "hello"
        messages = [report.message for report in node.reports if report.state is TaskState.PREPARING]
        assert any(message.startswith(f"pulling {reference}") for message in messages)
        assert shop.credentials not in (node.directories.tasks / "web.1.json").read_text()


async def test_by_digest(shop: Registry, images: Images) -> None:
    shop.push("web:1", made := make([SMALL]))
    image = await images.pull(spec(shop, f"{HOST}/web@{made.digest}"), quiet)
    assert image.digest == made.digest
    with pytest.raises(NotFound, match=f"image {HOST}/web@sha256:0+: not found"):
        await images.pull(spec(shop, f"{HOST}/web@sha256:{'0' * 64}"), quiet)


async def test_layers_that_are_here_are_not_brought_again(shop: Registry, images: Images) -> None:
    base = layer(busybox())
    first, second = make([base]), make([base, SMALL])
    await images.pull(spec(shop, shop.push("web:1", first)), quiet)
    reference = shop.push("web:2", second)
    (shop.blob(next(iter(first.blobs)))).unlink()
    await images.pull(spec(shop, reference), quiet)
    assert len(images.listed()) == 2


async def test_one_layer_comes_once_for_many_pulls(
    shop: Registry, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten images, each pulled twice at once, that have a layer in common."""
    unpacked: list[str] = []
    plain = unpack.unpack

    async def counting(blob: unpack.Blob, target: Path, progress: Callable[[int], None]) -> unpack.Unpacked:
        unpacked.append(blob.path.name)
        return await plain(blob, target, progress)

    monkeypatch.setattr(unpack, "unpack", counting)
    base = layer(busybox())
    references = [shop.push(f"web:{number}", make([base, layer([Entry(f"f{number}")])])) for number in range(10)]
    async with asyncio.TaskGroup() as group:
        for reference in references * 2:
            group.create_task(images.pull(spec(shop, reference), quiet))
    assert len(unpacked) == len(set(unpacked)) == 11


async def test_a_pull_that_nobody_waits_for_ends(shop: Registry, images: Images, tmp_path: Path) -> None:
    reference = shop.push("web:1", make([layer(busybox())]))
    shop.stop()
    pulling = asyncio.create_task(images.pull(spec(shop, reference), quiet))
    other = asyncio.create_task(images.pull(spec(shop, reference), quiet))
    await asyncio.sleep(0)
    pulling.cancel()
    shop.start()
    await other
    assert list((tmp_path / "images/staging").iterdir()) == []


async def test_an_image_here_is_asked_for_again_only_by_force(shop: Registry, images: Images, tmp_path: Path) -> None:
    first, second = make([SMALL], {"Cmd": ["1"]}), make([SMALL], {"Cmd": ["2"]})
    reference = shop.push("web:1", first)
    for name, force in (("a", False), ("b", False), ("c", True)):
        (tmp_path / "containers" / name).mkdir()
        image, _ = await images.use(spec(shop, reference, force), name, tmp_path / "containers" / name, quiet)
        assert image.config.command == (("1",) if name != "c" else ("2",))
        shop.push("web:1", second)


async def test_no_such_image(shop: Registry, images: Images) -> None:
    shop.push("web:1", make([SMALL]))
    for name in ("web:2", "other:1"):
        with pytest.raises(NotFound, match="not found: .*unknown"):
            await images.pull(spec(shop, f"{HOST}/{name}"), quiet)


@pytest.mark.parametrize("config", ["", credentials("wrong")], ids=["none", "wrong"])
async def test_401(shop: Registry, images: Images, config: str) -> None:
    reference = shop.push("web:1", make([SMALL]))
    with pytest.raises(NotPermitted, match="not authorised: "):
        await images.pull(ImageSpec(reference, pull_config=config), quiet)


async def test_the_nodes_own_credentials_are_used_by_default(shop: Registry, images: Images, places: Places) -> None:
    (places.registries / "auth.json").write_text(shop.credentials)
    await images.pull(ImageSpec(shop.push("web:1", make([SMALL]))), quiet)


async def test_a_certificate_of_somebody_else(shop: Registry, images: Images, places: Places) -> None:
    reference = shop.push("web:1", make([SMALL]))
    (places.registries / "certs.d" / HOST / "ca.crt").unlink()
    with pytest.raises(BadCertificate, match="bad certificate: .*x509"):
        await images.pull(spec(shop, reference), quiet)


async def test_a_registry_that_is_down_is_tried_again(
    shop: Registry, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulls, "RETRY_FIRST_S", 0.01)
    reference = shop.push("web:1", make([SMALL]))
    shop.stop()
    said: list[str] = []
    with pytest.raises(Unreachable, match=r"registry down: .*refused.* \(tried 6 times\)"):
        await images.pull(spec(shop, reference), said.append)
    assert [text for text in said if "trying again in 0.08 s (4 of 6)" in text]
    pulling = asyncio.create_task(images.pull(spec(shop, reference), said.append))
    await asyncio.sleep(0)
    shop.start()
    await pulling


@pytest.mark.parametrize("which", ["layer", "config"])
async def test_bytes_that_are_not_what_their_digest_says(shop: Registry, images: Images, which: str) -> None:
    """On the registry's disk; it does not look."""
    made = make([SMALL])
    reference = shop.push("web:1", made)
    digests = list(made.blobs)
    path = shop.blob(digests[0] if which == "layer" else digests[1])
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)
    with pytest.raises(WrongDigest, match="wrong digest|should be sha256"):
        await images.pull(spec(shop, reference), quiet)


async def test_a_layer_that_the_registry_lost(shop: Registry, images: Images) -> None:
    made = make([SMALL])
    reference = shop.push("web:1", made)
    shop.blob(next(iter(made.blobs))).unlink()
    with pytest.raises(ImageError, match=f"image {reference}: "):
        await images.pull(spec(shop, reference), quiet)


async def test_each_reason_is_on_the_task(tmp_path: Path, shop: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls, "RETRY_FIRST_S", 0.01)
    shop.trusted(tmp_path / "state/registries/certs.d" / HOST)
    async with agent(tmp_path / "state") as node:
        ended = {}
        for number, (name, config) in enumerate([("gone:1", shop.credentials), ("web:1", "")]):
            image = ImageSpec(shop.push("web:1", make([SMALL])).replace("web:1", name), pull_config=config)
            ended[name] = await node.run(task(f"web.{number}", image=image, user="", cwd=""))
        shop.stop()
        ended["down"] = await node.run(task("web.9", image=spec(shop, f"{HOST}/down:1"), user="", cwd=""))
    assert [status.state for status in ended.values()] == [TaskState.REJECTED, TaskState.REJECTED, TaskState.FAILED]
    for name, reason in (("gone:1", "not found"), ("web:1", "not authorised"), ("down", "registry down")):
        assert reason in ended[name].reason


async def test_a_task_that_is_killed_while_its_image_is_pulled_ends(tmp_path: Path, shop: Registry) -> None:
    shop.trusted(tmp_path / "state/registries/certs.d" / HOST)
    shop.stop()
    async with agent(tmp_path / "state") as node:
        spec_of = task("web.1", image=spec(shop, f"{HOST}/web:1"), user="", cwd="")
        node.reconciler.assign(spec_of, kill=False)
        while not any("trying again" in report.message for report in node.reports):
            node.heard.clear()
            await node.heard.wait()
        node.reconciler.assign(spec_of, kill=True)
        status = await node.reached("web.1", TaskState.FINISHED)
    assert (status.state, status.reason) == (TaskState.KILLED, "killed before it was started")
