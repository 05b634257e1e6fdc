"""Images from a registry with TLS and a password: what is brought and what is not, and each reason why not."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from agent.images import pulls, unpack
from agent.images.errors import BadCertificate, ImageError, NotFound, NotPermitted, Refused, Unreachable, WrongDigest
from agent.images.images import Images, Places
from agent.images.manifest import Image
from agent.images.pulls import Progress
from agent.images.secrets import PullSecrets
from model.image import ImageSpec, PullProgress
from model.task import TaskState
from tests.images import Entry, busybox, layer, make
from tests.kernel.agent import agent
from tests.kernel.registry import HOST, Registry, credentials, knows, registry
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


def spec(reference: str, force_pull: bool = False) -> ImageSpec:
    """For a node that `knows` the registry."""
    return ImageSpec(reference, force_pull, pull_secret="shop")


def quiet(progress: PullProgress) -> None:
    return


async def pull(images: Images, shop: Registry, reference: str, progress: Progress = quiet) -> Image:
    return await images.pull(reference, progress, shop.credentials)


async def test_a_task_runs_from_a_registry_and_tells_how_far_it_is(tmp_path: Path, shop: Registry) -> None:
    reference = shop.push("web:1", make([layer(busybox()), SMALL], {"Cmd": ["cat", "/hello"]}))
    knows(tmp_path / "state", shop)
    async with agent(tmp_path / "state") as node:
        status = await node.run(task("web.1", image=spec(reference), user="", cwd=""))
        assert (status.state, status.reason, status.message) == (TaskState.FINISHED, "exited with 0", "")
        assert node.directories.log("web.1", "stdout").read_text() == "hello"
        messages = [report.message for report in node.reports if report.state is TaskState.PREPARING]
        assert any(message.startswith(f"pulls {reference}") for message in messages)
        assert shop.credentials not in (node.directories.tasks / "web.1.json").read_text()


async def test_by_digest(shop: Registry, images: Images) -> None:
    shop.push("web:1", made := make([SMALL]))
    image = await pull(images, shop, f"{HOST}/web@{made.digest}")
    assert image.digest == made.digest
    with pytest.raises(NotFound, match=f"image {HOST}/web@sha256:0+: not found"):
        await pull(images, shop, f"{HOST}/web@sha256:{'0' * 64}")


async def test_layers_that_are_here_are_not_brought_again(shop: Registry, images: Images) -> None:
    base = layer(busybox())
    first, second = make([base]), make([base, SMALL])
    await pull(images, shop, shop.push("web:1", first))
    reference = shop.push("web:2", second)
    (shop.blob(next(iter(first.blobs)))).unlink()
    await pull(images, shop, reference)
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
            group.create_task(pull(images, shop, reference))
    assert len(unpacked) == len(set(unpacked)) == 11


async def test_a_pull_that_nobody_waits_for_ends(shop: Registry, images: Images, tmp_path: Path) -> None:
    reference = shop.push("web:1", make([layer(busybox())]))
    shop.stop()
    pulling = asyncio.create_task(pull(images, shop, reference))
    other = asyncio.create_task(pull(images, shop, reference))
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
        container = tmp_path / "containers" / name
        image, _ = await images.use(spec(reference, force), name, container, quiet, shop.credentials)
        assert image.config.command == (("1",) if name != "c" else ("2",))
        shop.push("web:1", second)


async def test_no_such_image(shop: Registry, images: Images) -> None:
    shop.push("web:1", make([SMALL]))
    for name in ("web:2", "other:1"):
        with pytest.raises(NotFound, match="not found: .*unknown"):
            await pull(images, shop, f"{HOST}/{name}")


@pytest.mark.parametrize("config", ["", credentials("wrong")], ids=["none", "wrong"])
async def test_401(shop: Registry, images: Images, config: str) -> None:
    reference = shop.push("web:1", make([SMALL]))
    with pytest.raises(NotPermitted, match="not authorised: "):
        await images.pull(reference, quiet, config)


async def test_the_nodes_own_credentials_are_used_by_default(shop: Registry, images: Images, places: Places) -> None:
    (places.registries / "auth.json").write_text(shop.credentials)
    await images.pull(shop.push("web:1", make([SMALL])), quiet)


async def test_a_certificate_of_somebody_else(shop: Registry, images: Images, places: Places) -> None:
    reference = shop.push("web:1", make([SMALL]))
    (places.registries / "certs.d" / HOST / "ca.crt").unlink()
    with pytest.raises(BadCertificate, match="bad certificate: .*x509"):
        await pull(images, shop, reference)


async def test_a_registry_that_is_down_is_tried_again(
    shop: Registry, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulls, "RETRY_FIRST_S", 0.01)
    reference = shop.push("web:1", make([SMALL]))
    shop.stop()
    said: list[PullProgress] = []
    with pytest.raises(Unreachable, match=r"registry down: .*refused.* \(tried 6 times\)"):
        await pull(images, shop, reference, said.append)
    assert [progress for progress in said if "trying again in 0.08 s (4 of 6)" in progress.describe()]
    pulling = asyncio.create_task(pull(images, shop, reference, said.append))
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
        await pull(images, shop, reference)


async def test_a_layer_that_the_registry_lost(shop: Registry, images: Images) -> None:
    made = make([SMALL])
    reference = shop.push("web:1", made)
    shop.blob(next(iter(made.blobs))).unlink()
    with pytest.raises(ImageError, match=f"image {reference}: "):
        await pull(images, shop, reference)


async def test_a_task_that_is_killed_while_its_image_is_pulled_ends(tmp_path: Path, shop: Registry) -> None:
    knows(tmp_path / "state", shop)
    shop.stop()
    async with agent(tmp_path / "state") as node:
        spec_of = task("web.1", image=spec(f"{HOST}/web:1"), user="", cwd="")
        node.reconciler.assign(spec_of, kill=False)
        while not any("trying again" in report.message for report in node.reports):
            node.heard.clear()
            await node.heard.wait()
        node.reconciler.assign(spec_of, kill=True)
        status = await node.reached("web.1", TaskState.FINISHED)
    assert (status.state, status.reason) == (TaskState.KILLED, "killed before it was started")


async def test_a_pull_secret_is_in_no_file_and_no_report_of_the_agent(tmp_path: Path, shop: Registry) -> None:
    reference = shop.push("web:1", make([layer(busybox())], {"Cmd": ["env"]}))
    knows(tmp_path / "state", shop)
    token = json.loads(shop.credentials)["auths"][HOST]["auth"].encode()
    async with agent(tmp_path / "state") as node:
        node.reconciler.assign(task("web.1", image=spec(reference), user="", cwd=""), kill=False)
        while not any(report.state >= TaskState.FINISHED for report in node.reports):
            found = [path for path in files(tmp_path / "state") if token in content(path)]
            assert found == []
            await asyncio.sleep(0.01)
        assert node.reports[-1].reason == "exited with 0"
        assert token.decode() not in repr(node.reports)


def files(state: Path) -> list[Path]:
    """What is on the agent's disk, but for the secret's own file, and what a pull needs while it goes on."""
    staging = state / "images/staging"
    there = (Path(directory, name) for directory, _, names in os.walk(state) for name in names)  # some go meanwhile
    return [path for path in there if path.is_file() and path.name != "shop.json" and not path.is_relative_to(staging)]


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it is gone


@pytest.mark.parametrize(
    ("name", "owner", "mode", "says"),
    [
        ("gone", "/web", 0o600, "is not on this node"),
        ("team/pull", "/teams", 0o600, "is not for /teams"),
        ("team/pull", "/web/team/x", 0o600, "is not for /web/team/x"),
        ("pull", "/web", 0o640, "chmod 600"),
        ("directory", "/web", 0o700, "Is a directory"),
        ("missing", "/web", 0o600, "No such file"),
        ("huge", "/web", 0o600, "no file of sensible size"),
    ],
)
def test_a_pull_secret_that_can_not_be_used(tmp_path: Path, name: str, owner: str, mode: int, says: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "huge").write_bytes(bytes(1 << 20))
    (tmp_path / "pull").write_text("{}")
    path = tmp_path / name.rpartition("/")[2]
    if path.exists():
        path.chmod(mode)
    known = ("team/pull", "pull", "directory", "huge", "missing")
    secrets = PullSecrets({each: tmp_path / each.rpartition("/")[2] for each in known})
    with pytest.raises(Refused, match=says):
        secrets.read(name, owner)


def test_a_pull_secret_is_for_what_is_below_its_path(tmp_path: Path) -> None:
    (tmp_path / "pull").write_text("{}")
    (tmp_path / "pull").chmod(0o600)
    secrets = PullSecrets({"team/pull": tmp_path / "pull", "pull": tmp_path / "pull"})
    assert [secrets.read("team/pull", owner) for owner in ("/team", "/team/web", "/team/web/db")] == ["{}"] * 3
    assert secrets.read("pull", "/any") == "{}"
