"""Attacks by way of what is fetched: schemes, redirects, sizes and archives (CVE-2022-30324, CVE-2024-1329)."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.fetch.errors import FetchError, Refused
from agent.fetch.fetcher import Fetcher
from model.fetch import Fetch
from tests.images import Entry, directory, hard_link, layer, symlink
from tests.kernel.web import ADDRESS, Web, endless, redirect, web

pytestmark = pytest.mark.anyio

UID = 1_048_576
SMALL = 1 << 20


@pytest.fixture
def server() -> Iterator[Web]:
    with web() as made:
        yield made


class Box:
    """A sandbox next to a victim."""

    def __init__(self, path: Path) -> None:
        self.path, self.victim = path / "sandbox", path / "victim"
        path.chmod(0o755)
        for directory_ in (self.path, self.victim):
            directory_.mkdir()
        os.chown(self.path, UID, UID)
        (self.victim / "file").write_text("untouched")
        self.victim.chmod(0o777)
        self._fetcher = Fetcher(path / "fetch", (path / "permitted",), SMALL)
        self._fetcher.open()

    async def fetch(self, uri: str) -> list[str]:
        await self._fetcher.fetch([Fetch(uri)], self.path, UID, lambda text: None)
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*"))


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    """Whatever happens, the victim is left alone and nothing belongs to anybody but the container's root."""
    made = Box(tmp_path)
    yield made
    assert os.listdir(made.victim) == ["file"] and (made.victim / "file").read_text() == "untouched"
    assert {path.lstat().st_uid for path in made.path.rglob("*")} <= {UID}
    assert os.listdir(tmp_path / "fetch") == ["cache"]


@pytest.mark.parametrize("uri", ["ftp://a/b", "gopher://a/b", "/etc/shadow", "data:text/plain,x", "file://host/x",
                                 "http:///x", "http://a:99999/x", "http://a/..", "http://[::1/x", "http://a/%2e%2e",
                                 "-oProxyCommand=x", "git::http://a/b", "http://a/b\nX: y"])  # fmt: skip
async def test_other_uris_are_refused(box: Box, uri: str) -> None:
    with pytest.raises(Refused):
        await box.fetch(uri)


@pytest.mark.parametrize("target", ["file:///etc/shadow", "ftp://192.0.2.80/x", "data:,x", "http://127.0.0.1:1/x"])
async def test_redirects_to_elsewhere_are_refused(box: Box, server: Web, target: str) -> None:
    server.pages["/a"] = redirect(target)
    with pytest.raises(Refused, match="[Rr]edirect|address of the node itself"):
        await box.fetch(server.uri("/a"))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254"]
)
async def test_the_node_itself_is_not_asked(box: Box, server: Web, host: str) -> None:
    with pytest.raises(Refused, match="address of the node itself or of its link"):
        await box.fetch(f"http://{host}:{server.port}/a")
    assert server.asked == []


@pytest.mark.parametrize("path", ["/etc/shadow", "/etc/passwd", "{}/way/passwd", "{}/permitted/../victim/file"])
async def test_files_of_the_node_elsewhere_are_refused(box: Box, tmp_path: Path, path: str) -> None:
    (tmp_path / "permitted").mkdir()
    (tmp_path / "permitted/way").symlink_to("/etc")
    with pytest.raises(Refused, match="not authorised"):
        await box.fetch(f"file://{path.format(tmp_path)}")
    with pytest.raises(Refused, match="not authorised"):
        await box.fetch(f"file://{tmp_path}/permitted/way/passwd")


async def test_what_is_too_large_is_given_up(box: Box, server: Web) -> None:
    server.pages["/a"] = endless
    with pytest.raises(Refused, match="larger than 1048576 bytes"):
        await box.fetch(server.uri("/a"))


async def test_bombs_are_given_up(box: Box, server: Web) -> None:
    zeros = bytes(8 << 20)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", zeros)
    pages = {
        "/a.zip": buffer.getvalue(),
        "/a.gz": gzip.compress(zeros),
        "/a.tgz": gzip.compress(layer([Entry("z", zeros)])),
    }
    server.pages.update(pages)
    for path in pages:
        with pytest.raises(Refused, match="more bytes than are allowed"):
            await box.fetch(server.uri(path))


def zip_of(name: str, content: str = "evil", mode: int = 0o644) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("plain")
        info.filename = name
        info.external_attr = mode << 16
        archive.writestr(info, content)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../victim/file", "/victim/file", "a/../../victim/file", "{}/victim/file"])
async def test_names_that_lead_out_are_refused(box: Box, server: Web, tmp_path: Path, name: str) -> None:
    server.pages |= {"/a.tar": layer([Entry(name.format(tmp_path), b"evil")]), "/a.zip": zip_of(name.format(tmp_path))}
    for path in ("/a.tar", "/a.zip"):
        with pytest.raises(Refused, match="not below the archive"):
            await box.fetch(server.uri(path))


async def test_links_are_not_followed(box: Box, server: Web, tmp_path: Path) -> None:
    victim = str(box.victim)
    hostile = {
        "/dir.tar": [symlink("way", victim), Entry("way/file", b"evil")],
        "/hard.tar": [hard_link("stolen", "etc/shadow")],
        "/hard2.tar": [symlink("way", victim), hard_link("stolen", "way/file")],
        "/climb.tar": [symlink("way", "../victim"), directory("way/new")],
    }
    for path, entries in hostile.items():
        server.pages[path] = layer(entries)
        with pytest.raises(FetchError):
            await box.fetch(server.uri(path))
    server.pages["/end.tar"] = layer([symlink("file", f"{victim}/file"), Entry("file", b"mine")])
    await box.fetch(server.uri("/end.tar"))
    assert (box.path / "file").read_text() == "mine"


async def test_a_second_file_does_not_go_through_a_link_of_the_first(box: Box, server: Web) -> None:
    server.pages |= {"/a.tar": layer([symlink("b", f"{box.victim}/file")]), "/b": b"evil"}
    await box.fetch(server.uri("/a.tar"))
    await box.fetch(server.uri("/b"))
    assert (box.path / "b").read_text() == "evil"


async def test_devices_and_special_modes_are_not_made(box: Box, server: Web) -> None:
    server.pages["/a.tar"] = layer([Entry("mem", kind=tarfile.CHRTYPE, device=(1, 1))])
    with pytest.raises(Refused, match="neither a file nor a directory nor a link"):
        await box.fetch(server.uri("/a.tar"))
    server.pages["/b.tar"] = layer([Entry("su", b"x", mode=0o6755)])
    server.pages["/b.zip"] = zip_of("su2", mode=0o6755)
    for path in ("/b.tar", "/b.zip"):
        await box.fetch(server.uri(path))
    assert [(box.path / name).stat().st_mode & 0o7777 for name in ("su", "su2")] == [0o755, 0o755]


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip", "a.gz", "a.tar.xz", "a.tar.bz2"])
async def test_broken_archives_are_refused(box: Box, server: Web, name: str) -> None:
    server.pages[f"/{name}"] = os.urandom(5000)
    with pytest.raises(Refused, match="broken archive"):
        await box.fetch(server.uri(f"/{name}"))


async def test_a_password_in_a_uri_is_in_no_message_and_no_list_of_processes(box: Box, server: Web) -> None:
    with pytest.raises(FetchError) as caught:
        await box.fetch(f"http://user:secret@{ADDRESS}:{server.port}/none?token=secret")
    assert "secret" not in str(caught.value)
