"""Attacks by way of an image's layers: names, links, devices and sizes that no honest tool writes.

CVE-2025-47290, CVE-2021-32760, CVE-2018-15664 and their like. Each layer is unpacked next to a victim, a directory of
the node's, and must leave it alone; so must the node's own files, which are looked at where a layer aims at them.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.images.errors import Hostile, WrongDigest
from agent.images.store import remove_tree
from agent.images.unpack import Blob, unpack
from model.image import ImageSpec
from model.task import TaskState
from tests import images as make
from tests.images import Entry, busybox, directory, hard_link, layer, symlink
from tests.kernel.agent import agent
from tests.kernel.sandbox import task

pytestmark = pytest.mark.anyio

UP = "../../../../../../../../../.."


@dataclass
class Bench:
    """`target` is where a layer goes, `victim` beside it is where it must not."""

    target: Path
    victim: Path
    blob: Path

    async def unpack(self, data: bytes, **limits: int) -> list[str]:
        """What is in the target afterwards, without what the archive may always make."""
        self.blob.write_bytes(data)
        await unpack(Blob(self.blob), self.target, lambda count: None, **limits)
        return sorted(str(path.relative_to(self.target)) for path in self.target.rglob("*"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path / "target", tmp_path / "victim", tmp_path / "blob")
    made.target.mkdir()
    made.victim.mkdir()
    (made.victim / "file").write_text("untouched")
    return made


@pytest.fixture(autouse=True)
def unharmed(bench: Bench) -> Iterator[None]:
    """The victim, and what a layer finds by `/`."""
    before = stat_of(bench.victim), stat_of(bench.victim / "file")
    yield
    assert (stat_of(bench.victim), stat_of(bench.victim / "file")) == before
    assert os.listdir(bench.victim) == ["file"]
    assert (bench.victim / "file").read_text() == "untouched"
    assert not Path("/tepui-evil").exists()


@pytest.mark.parametrize("name", ["../victim/evil", "a/../../victim/evil", "./../victim/evil", "a/.."])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])
async def test_names_that_climb_are_refused(bench: Bench, name: str, kind: bytes) -> None:
    with pytest.raises(Hostile, match="has .. in its path"):
        await bench.unpack(layer([directory("a"), Entry(name, kind=kind, link="x")]))


async def test_absolute_names_are_the_layers_own(bench: Bench) -> None:
    assert await bench.unpack(layer([Entry("/tepui-evil", b"x"), Entry("//etc//x", b"x")])) == [
        "etc",
        "etc/x",
        "tepui-evil",
    ]


@pytest.mark.parametrize("aim", ["absolute", "climbing", "chain"])
async def test_links_on_the_way_do_not_lead_out(bench: Bench, aim: str) -> None:
    """Inside they lead to the layer's own files, or nowhere."""
    victim = str(bench.victim)
    links = {
        "absolute": [symlink("way", victim)],
        "climbing": [symlink("way", f"{UP}{victim}")],
        "chain": [symlink("one", UP), symlink("two", "one/./"), symlink("way", f"two{victim}")],
    }[aim]
    with pytest.raises(Hostile, match="'way/"):
        await bench.unpack(layer([*links, Entry("way/file", b"evil")]))
    with pytest.raises(Hostile, match="'way/"):
        await bench.unpack(layer([*links, Entry("way/.wh.file")]))
    with pytest.raises(Hostile, match="'way/"):
        await bench.unpack(layer([*links, Entry("way/.wh..wh..opq")]))


async def test_a_link_at_the_end_is_replaced_not_followed(bench: Bench) -> None:
    target = str(bench.victim / "file")
    entries = [symlink("file", target), Entry("file", b"evil"), symlink("d", str(bench.victim)), directory("d", 0o777)]
    await bench.unpack(layer(entries))
    assert (bench.target / "file").read_bytes() == b"evil"
    assert not (bench.target / "d").is_symlink()


@pytest.mark.parametrize("target", ["absolute", "climbing", "etc/shadow", "by link"])
async def test_hard_links_stay_in_the_layer(bench: Bench, target: str) -> None:
    names = {"absolute": str(bench.victim / "file"), "climbing": "../victim/file", "by link": "way/file"}
    way = [symlink("way", str(bench.victim))]
    with pytest.raises(Hostile):
        await bench.unpack(layer([*way, hard_link("stolen", names.get(target, target)), Entry("stolen", b"evil")]))


async def test_a_hard_link_to_a_link_does_not_follow_it(bench: Bench) -> None:
    entries = [symlink("way", str(bench.victim / "file")), hard_link("second", "way"), Entry("second", b"evil")]
    await bench.unpack(layer(entries))
    assert (bench.target / "second").read_bytes() == b"evil"


async def test_devices_are_left_out(bench: Bench) -> None:
    kinds = [Entry("mem", kind=tarfile.CHRTYPE, device=(1, 1)), Entry("disk", kind=tarfile.BLKTYPE, device=(8, 0))]
    assert await bench.unpack(layer(kinds)) == []


async def test_setuid_files_are_dead_where_they_lie(bench: Bench) -> None:
    """They keep the bit, for the container's own users; the directory of the store is closed to everybody else."""
    await bench.unpack(layer([Entry("su", b"x", mode=0o4755)]))
    assert stat.S_IMODE((bench.target / "su").stat().st_mode) == 0o4755


ATTRIBUTES = (
    "trusted.overlay.redirect",
    "trusted.overlay.opaque",
    "trusted.overlay.metacopy",
    "user.overlay.opaque",
    "security.selinux",
    "system.posix_acl_access",
)


@pytest.mark.parametrize("name", ATTRIBUTES)
async def test_attributes_that_direct_the_kernel_are_left_out(bench: Bench, name: str) -> None:
    entries = [directory("d", pax={f"SCHILY.xattr.{name}": "y"}), Entry("f", pax={f"SCHILY.xattr.{name}": "/victim"})]
    await bench.unpack(layer(entries))
    assert [os.listxattr(bench.target / name) for name in ("d", "f")] == [[], []]


@pytest.mark.parametrize("ids", [(65536, 0), (0, 2**31), (2**32, 0), (-1, 0)])
async def test_owners_beyond_the_containers_ids_are_refused(bench: Bench, ids: tuple[int, int]) -> None:
    """CVE-2024-40635: an id that overflows must not become root."""
    with pytest.raises(Hostile, match="belongs to|no archive"):
        await bench.unpack(layer([Entry("f", uid=ids[0], gid=ids[1])]))


async def test_a_bomb_of_gzip_is_refused(bench: Bench) -> None:
    bomb = gzip.compress(layer([Entry("zeros", bytes(64 << 20))]))
    with pytest.raises(Hostile, match="larger than|unfolds to more"):
        await bench.unpack(bomb, most_bytes=1 << 20)


async def test_a_bomb_behind_the_archives_end_is_refused(bench: Bench) -> None:
    """The digest covers what is behind the end, so it has to be read; but not without end."""
    with pytest.raises(Hostile, match="unfolds to more"):
        await bench.unpack(gzip.compress(layer([]) + bytes(64 << 20)), most_bytes=1 << 20)


@pytest.mark.parametrize("size", [1 << 40, 1 << 62])
async def test_huge_sparse_files_are_refused(bench: Bench, size: int) -> None:
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "big", "GNU.sparse.realsize": str(size)}
    content = b"1\n0\n0\n".ljust(512, b"\0")
    with pytest.raises(Hostile, match="larger than"):
        await bench.unpack(layer([Entry("big", content, pax=pax)]))


async def test_too_many_entries_are_refused(bench: Bench) -> None:
    with pytest.raises(Hostile, match="more than 100 entries"):
        await bench.unpack(layer(Entry(f"f{number}") for number in range(101)), most_entries=100)


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["d" * 200] * 30), "nul\0name", "\udcff\udcfe"])
async def test_bad_names_are_refused_or_kept_as_bytes(bench: Bench, name: str) -> None:
    data = layer([Entry(name if "\0" not in name else "plain", pax={"path": name} if "\0" in name else {})])
    if "\udcff" in name:
        assert [os.fsencode(path) for path in await bench.unpack(data)] == [b"\xff\xfe"]
    else:
        with pytest.raises(Hostile):
            await bench.unpack(data)


@pytest.mark.parametrize("entry", [Entry(".wh."), Entry(".wh..."), Entry(".wh.."), Entry("a/.wh.")])
async def test_whiteouts_of_nothing_are_refused(bench: Bench, entry: Entry) -> None:
    with pytest.raises(Hostile, match="hides nothing|'a/"):
        await bench.unpack(layer([entry]))


async def test_a_deep_tree_is_unpacked_and_removed(bench: Bench) -> None:
    """Deeper than a path can name, by going through links: what removes it must not recurse."""
    deep = "/".join(["d"] * 400)
    entries = [directory("way0")]
    for turn in range(10):
        entries += [directory(f"way{turn}/{deep}"), symlink(f"way{turn + 1}", f"way{turn}/{deep}")]
    bench.blob.write_bytes(layer(entries))
    assert (await unpack(Blob(bench.blob), bench.target, lambda count: None)).entries == 21
    await remove_tree(bench.target)
    assert not bench.target.exists()


async def test_parents_that_loop_are_refused(bench: Bench) -> None:
    with pytest.raises(Hostile, match="'a/x'"):
        await bench.unpack(layer([symlink("a", "b"), symlink("b", "a"), Entry("a/x")]))


@pytest.mark.parametrize("change", ["cut", "noise", "cut gzip", "pax size", "not a tar", "negative size"])
async def test_broken_archives_are_refused(bench: Bench, change: str) -> None:
    data = layer([Entry("file", os.urandom(100_000))])
    broken: dict[str, Callable[[], bytes]] = {
        "cut": lambda: data[:50_000],
        "noise": lambda: data[:512] + os.urandom(100_000),
        "cut gzip": lambda: gzip.compress(data)[:50_000],
        "pax size": lambda: layer([Entry("f", pax={"size": "9" * 4000})]),
        "not a tar": lambda: b"hello world" * 1000,
        "negative size": lambda: _with_size(data, b"\xff" * 12),
    }
    with pytest.raises(Hostile):
        await bench.unpack(broken[change]())


async def test_a_header_can_not_take_all_memory(bench: Bench) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 32 << 30
    with pytest.raises(Hostile):
        await bench.unpack(gzip.compress(header.tobuf() + bytes(1200 << 20), 1))


async def test_what_unpacks_sees_no_other_file_and_has_no_network(bench: Bench) -> None:
    """From the kernel's side, while it is at work: its root, its namespaces and what rights it has left."""
    big = layer([Entry("first", b"x"), Entry("big", bytes(200 << 20))])
    unpacking = asyncio.create_task(bench.unpack(gzip.compress(big, 1)))
    seen = None
    while seen is None and not unpacking.done():
        seen = _confined_child(bench.target)
        await asyncio.sleep(0.005)
    await unpacking
    assert seen is not None
    rights, no_new_privs, network = seen
    assert rights == 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 31
    assert no_new_privs == 1
    assert network != os.readlink("/proc/self/ns/net")


async def test_labels_of_an_image_control_nothing(tmp_path: Path) -> None:
    """CVE-2026-53488: labels and annotations as input for the agent."""
    made = make.make([layer(busybox())], {"Cmd": ["id", "-u"], "Labels": {"tepui/version": "x", "privileged": "true"}})
    made = make.Made(made.manifest.replace(b'"schemaVersion"', b'"annotations":{"tepui/user":"0"},"schemaVersion"'),
                     made.config, made.blobs)  # fmt: skip
    made.blobs[made.digest] = made.manifest
    async with agent(tmp_path) as node:
        make.write_layout(tmp_path / "layout", {"test": made})
        image = ImageSpec(f"oci:{tmp_path}/layout:test")
        status = await node.run(task("web.1", image=image, user="1000:1000", cwd=""))
        assert status.state is TaskState.FINISHED
        assert node.directories.log("web.1", "stdout").read_text() == "1000\n"


async def test_a_configuration_can_not_name_a_layer_of_somebody_else(tmp_path: Path) -> None:
    """Its diff-id is known here, yet the archive that it claims it for is another."""
    async with agent(tmp_path) as node:
        secret = make.make([layer(busybox()), layer([Entry("secret", b"x")])])
        make.write_layout(tmp_path / "secret", {"test": secret})
        await node.images.pull(ImageSpec(f"oci:{tmp_path}/secret:test"), lambda text: None)
        decoy = make.make([layer(busybox()), layer([Entry("decoy", b"x")])])
        stolen = _claiming(decoy, make.digest(layer([Entry("secret", b"x")])))
        make.write_layout(tmp_path / "stolen", {"test": stolen})
        with pytest.raises(WrongDigest, match="content should be"):
            await node.images.pull(ImageSpec(f"oci:{tmp_path}/stolen:test"), lambda text: None)


@pytest.mark.parametrize("reference", ["oci:/etc:x", "docker-archive:/etc/shadow", "oci:/{tmp}/../../etc:x"])
async def test_images_are_read_below_permitted_directories_only(tmp_path: Path, reference: str) -> None:
    async with agent(tmp_path) as node:
        (tmp_path / "way").symlink_to("/etc")
        for name in (reference.replace("/{tmp}", str(tmp_path)), f"oci:{tmp_path}/way:x"):
            status = await node.run(task(f"web.{name.count('/')}", image=ImageSpec(name), user="", cwd=""))
            assert status.state is TaskState.REJECTED
            assert "not authorised" in status.reason or "without . or .." in status.reason


def _claiming(made: make.Made, diff_id: str) -> make.Made:

    config = json.loads(made.config)
    config["rootfs"]["diff_ids"][1] = diff_id
    data = json.dumps(config).encode()
    manifest = json.loads(made.manifest)
    manifest["config"].update(digest=make.digest(data), size=len(data))
    text = json.dumps(manifest).encode()
    return make.Made(text, data, {**made.blobs, make.digest(data): data, make.digest(text): text})


def _with_size(data: bytes, size: bytes) -> bytes:
    """In base 256, where the first bit says that it is."""
    header = bytearray(data[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def _confined_child(target: Path) -> tuple[int, int, str] | None:
    """Effective capabilities, no_new_privs and network namespace of a process whose root is `target`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "root").samefile(target) and process.name != str(os.getpid()):
                status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
                if status["NoNewPrivs"] == "1":
                    return int(status["CapEff"], 16), 1, os.readlink(process / "ns/net")
        except OSError:
            continue
    return None


def stat_of(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns
