"""Files that are fetched into a task's sandbox, and why some are not. Hostile ones are in attacks/test_fetch.py."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from agent.fetch import fetcher
from model.fetch import Fetch
from model.task import TaskSpec, TaskState, TaskStatus
from tests.images import Entry, busybox, directory, layer, make
from tests.kernel.agent import Agent
from tests.kernel.namespaces import run as command
from tests.kernel.registry import HOST, registry
from tests.kernel.sandbox import task
from tests.kernel.shelf import Shelf, of_image, run
from tests.kernel.web import ADDRESS, Page, Web, cut, redirect, status, web

pytestmark = pytest.mark.anyio

TREE = layer(
    [directory("d"), Entry("d/run", b"#!/bin/sh\necho run\n", mode=0o755), Entry("d/text", b"text", mode=0o640)]
)


@pytest.fixture
def server() -> Iterator[Web]:
    with web() as made:
        yield made


def fetching(*fetch: Fetch, run: str = "ls -R", **changes: Any) -> TaskSpec:
    return task("web.1", "sh", "-c", run, fetch=fetch, **{"cwd": "", **changes})


async def ended(node: Agent, spec: TaskSpec) -> TaskStatus:
    return (await run(node, spec))[0]


async def test_a_file_is_in_the_sandbox_which_is_where_the_task_is(node: Agent, server: Web) -> None:
    server.pages["/a/file.txt?x=1"] = b"hello"
    look = "pwd; echo $MESOS_SANDBOX; cat file.txt; stat -c ' %a %u' file.txt; touch new && echo writable"
    _, output = await run(node, fetching(Fetch(server.uri("/a/file.txt?x=1")), run=look))
    assert output == "/mnt/mesos/sandbox\n/mnt/mesos/sandbox\nhello 644 0\nwritable\n"
    assert not (node.directories.bundles / "web.1").exists()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("d/text", "text")
        archive.writestr("d/run", "run")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.tar", TREE), ("a.tgz", gzip.compress(TREE)), ("a.tar.gz", gzip.compress(TREE)), ("a.zip", zipped())],
)
async def test_archives_are_unpacked(node: Agent, server: Web, name: str, data: bytes) -> None:
    server.pages[f"/{name}"] = data
    _, output = await run(node, fetching(Fetch(server.uri(f"/{name}")), run="ls; cat d/text"))
    assert output == f"{name}\nd\ntext"
    packed = fetching(Fetch(server.uri(f"/{name}"), extract=False), run="ls")
    _, output = await run(node, dataclasses.replace(packed, id="web.2"))
    assert output == f"{name}\n"


async def test_gz_executable_and_another_name(node: Agent, server: Web) -> None:
    server.pages["/text.gz"] = gzip.compress(b"text\n")
    server.pages["/program"] = b"#!/bin/sh\necho ran\n"
    fetch = [Fetch(server.uri("/text.gz")), Fetch(server.uri("/program"), "bin/go", executable=True)]
    _, output = await run(node, fetching(*fetch, run="cat text; bin/go"))
    assert output == "text\nran\n"


async def test_the_sandbox_belongs_to_the_tasks_user(node: Agent, server: Web, shelf: Shelf) -> None:
    server.pages["/a.tgz"] = gzip.compress(TREE)
    reference = shelf.layout(layer(busybox()))
    look = "cd $MESOS_SANDBOX; stat -c %u . d d/text; touch new && d/run"
    spec = of_image(reference, "sh", "-c", look, user="web", fetch=(Fetch(server.uri("/a.tgz")),))
    _, output = await run(node, spec)
    assert output == "1000\n1000\n1000\nrun\n"


async def test_a_file_of_the_node(node: Agent, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("mine")
    uri = f"file://{tmp_path}/a%20file"
    _, output = await run(node, fetching(Fetch(uri), run="cat 'a file'"))
    assert output == "mine"


async def test_a_cached_file_is_asked_for_once(node: Agent, server: Web) -> None:
    server.pages["/a"] = b"first"
    for number, cache in enumerate((True, True, False)):
        spec = fetching(Fetch(server.uri("/a"), cache=cache), run="cat a")
        _, output = await run(node, dataclasses.replace(spec, id=f"web.{number}"))
        assert output == ("first" if cache else "second")
        server.pages["/a"] = b"second"
    assert len(server.asked) == 2


async def test_the_cache_is_bounded(node: Agent, server: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetcher, "CACHE_MOST_BYTES", 2500)
    (tmp_path / "box").mkdir()
    for number in range(4):
        server.pages[f"/{number}"] = bytes(1000)
        await node.fetcher.fetch([Fetch(server.uri(f"/{number}"), cache=True)], tmp_path / "box", 0, lambda text: None)
    assert len(list((tmp_path / "fetch/cache").iterdir())) == 2


async def test_redirects_are_followed(node: Agent, server: Web) -> None:
    server.pages["/a"] = redirect("/b")
    server.pages["/b"] = b"there"
    _, output = await run(node, fetching(Fetch(server.uri("/a")), run="cat a"))
    assert output == "there"


async def test_a_digest_is_looked_at(node: Agent, server: Web) -> None:
    server.pages["/a"] = b"hello"
    right = hashlib.sha256(b"hello").hexdigest()
    _, output = await run(node, fetching(Fetch(server.uri("/a"), digest=f"sha256:{right}"), run="cat a"))
    assert output == "hello"
    wrong = fetching(Fetch(server.uri("/a"), digest=f"sha256:{'0' * 64}"))
    failed = await ended(node, dataclasses.replace(wrong, id="web.2"))
    assert (failed.state, f"is sha256:{right}" in failed.reason) == (TaskState.REJECTED, True)


@pytest.mark.parametrize(
    ("page", "state", "reason", "tries"),
    [
        (status(404), TaskState.REJECTED, "HTTP 404 Not Found", 1),
        (status(401), TaskState.REJECTED, "HTTP 401 Unauthorized", 1),
        (status(503), TaskState.FAILED, "HTTP 503 Service Unavailable (tried 3 times)", 3),
        (cut, TaskState.FAILED, "tried 3 times", 3),
        (redirect("/a"), TaskState.REJECTED, "redirect", 1),
    ],
    ids=["404", "401", "503", "cut", "loop"],
)
async def test_what_can_not_be_fetched_says_why(
    node: Agent, server: Web, monkeypatch: pytest.MonkeyPatch, page: Page, state: TaskState, reason: str, tries: int
) -> None:
    monkeypatch.setattr(fetcher, "RETRY_FIRST_S", 0.01)
    server.pages["/a"] = page
    failed = await ended(node, fetching(Fetch(server.uri("/a"))))
    assert (failed.state, reason in failed.reason) == (state, True), failed.reason
    assert failed.reason.startswith(f"fetch {server.uri('/a')}: ")
    assert tries in (len(server.asked), 1)


async def test_user_and_password_are_for_the_first_server_alone(node: Agent, server: Web) -> None:
    seen: list[str | None] = []

    def here(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers["Authorization"])
        redirect("/there")(request)

    def there(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers["Authorization"])
        status(404)(request)

    server.pages |= {"/here": here, "/there": there}
    await ended(node, fetching(Fetch(server.uri("/here").replace("//", "//us%40er:pass@"))))
    assert seen == ["Basic dXNAZXI6cGFzcw==", None]


async def test_nobody_there(node: Agent, server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "RETRY_FIRST_S", 0.01)
    failed = await ended(node, fetching(Fetch(f"http://user:secret@{ADDRESS}:1/a?token=secret")))
    assert failed.reason == f"fetch http://{ADDRESS}:1/a?...: Connection refused (tried 3 times)"


async def test_https_with_an_authority_of_the_nodes(
    node: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    files = ["-keyout", f"{keys}/key.pem", "-out", f"{keys}/cert.pem", "-nodes"]
    name = ["-subj", "/CN=web", "-addext", f"subjectAltName=IP:{ADDRESS}"]
    command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", *name, *files)
    with web(keys) as server:
        server.pages["/a"] = b"safe"
        failed = await ended(node, fetching(Fetch(server.uri("/a"))))
        assert (failed.state, "bad certificate: " in failed.reason) == (TaskState.REJECTED, True)
        monkeypatch.setenv("SSL_CERT_FILE", f"{keys}/cert.pem")
        spec = fetching(Fetch(server.uri("/a")), run="cat a")
        _, output = await run(node, dataclasses.replace(spec, id="web.2"))
        assert output == "safe"


async def test_credentials_for_an_image_may_be_fetched(node: Agent, tmp_path: Path) -> None:
    with registry(tmp_path / "registry") as shop:
        shop.trusted(tmp_path / "registries/certs.d" / HOST)
        reference = shop.push("web:1", make([layer(busybox())]))
        archive = layer([directory(".docker"), Entry(".docker/config.json", shop.credentials.encode(), mode=0o600)])
        (tmp_path / "docker.tar.gz").write_bytes(gzip.compress(archive))
        spec = of_image(reference, "true", fetch=(Fetch(f"file://{tmp_path}/docker.tar.gz"),))
        assert (await ended(node, spec)).reason == "exited with 0"
