"""Files for a task's workspace: downloaded and unpacked by children that can do nothing else (child/).

What is downloaded goes to a file in the agent's own directory first, where its digest is looked at, and only then into
the workspace, as the container's root. `cache`d files stay there, by their URI and digest; the least used ones go when
all of them exceed a bound. As with Mesos, nobody asks the server whether they have changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from agent.fetch.errors import FetchError, Refused
from model.fetch import Fetch, problem

CHILD = Path(__file__).with_name("child")
MOST_BYTES = 8 << 30  # of one file, and of what it unfolds to
MOST_ENTRIES = 1_000_000
CACHE_MOST_BYTES = 2 << 30  # as Mesos
DEADLINE_S = 1800.0
TRIES = 3
RETRY_FIRST_S = 1.0
ANSWER_MOST_BYTES = 64 << 10
KINDS = {
    "tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"),
    "zip": (".zip",),
    "gz": (".gz",),
}

Tell = Callable[[str], None]


class Fetcher:
    """`directory` is the agent's own. `local` are the directories below which `file:` may read."""

    def __init__(self, directory: Path, local: Sequence[Path], most_bytes: int = MOST_BYTES) -> None:
        self._directory = directory
        self._local = tuple(local)
        self._most_bytes = most_bytes

    def open(self) -> None:
        """Once: what an earlier agent had half is removed."""
        self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._directory.glob("fetch.*"):
            path.unlink()

    async def fetch(self, wanted: Sequence[Fetch], workspace: Path, uid: int, tell: Tell) -> None:
        """Into `workspace`, which belongs to `uid`. Raises FetchError."""
        for fetch in wanted:
            if wrong := problem(fetch):
                raise Refused(f"fetch {public(fetch.uri)}: {wrong}")
            tell(f"fetching {public(fetch.uri)}")
            try:
                async with self._file(fetch, uid) as file:
                    await self._check(fetch, file)
                    await self._place(fetch, file, workspace, uid)
            except FetchError as error:
                raise type(error)(f"fetch {public(fetch.uri)}: {error}") from error
            except OSError as error:
                raise FetchError(f"fetch {public(fetch.uri)}: {error.strerror}") from error

    @property
    def _cache(self) -> Path:
        return self._directory / "cache"

    @asynccontextmanager
    async def _file(self, fetch: Fetch, uid: int) -> AsyncIterator[IO[bytes]]:
        if fetch.uri.startswith("file:"):
            with self._local_file(Path(unquote(urlsplit(fetch.uri).path))) as file:
                yield file
        elif not fetch.cache:
            with NamedTemporaryFile(prefix="fetch.", dir=self._directory) as file:
                await self._download(fetch, file, uid)
                yield file
        else:
            with await self._cached(fetch, uid) as file:
                yield file

    def _local_file(self, path: Path) -> IO[bytes]:
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(os.path.realpath(directory)) for directory in self._local):
            raise Refused("not authorised: it is not below a directory of 'local_sources' in agent.toml")
        try:
            file = os.fdopen(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
        except FileNotFoundError as error:
            raise Refused("there is no such file on this node") from error
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise Refused("it is no file")
        return file

    async def _cached(self, fetch: Fetch, uid: int) -> IO[bytes]:
        path = self._cache / hashlib.sha256(f"{fetch.uri} {fetch.digest}".encode()).hexdigest()
        if not path.exists():
            with NamedTemporaryFile(prefix="fetch.", dir=self._directory) as file:
                await self._download(fetch, file, uid)
                await self._check(fetch, file)
                os.link(file.name, f"{file.name}.whole")
                os.replace(f"{file.name}.whole", path)
        os.utime(path)
        self._trim()
        return path.open("rb")

    def _trim(self) -> None:
        """Who has one of them open keeps it."""
        files = sorted(((path.stat(), path) for path in self._cache.iterdir()), key=lambda pair: -pair[0].st_mtime_ns)
        size = 0
        for index, (status, path) in enumerate(files):
            size += status.st_size
            if index and size > CACHE_MOST_BYTES:
                path.unlink()

    async def _download(self, fetch: Fetch, file: IO[bytes], uid: int) -> None:
        delay = RETRY_FIRST_S
        for attempt in range(1, TRIES + 1):
            file.seek(0)
            file.truncate()
            arguments = [str(uid), str(file.fileno()), str(self._most_bytes)]
            try:
                return await _run("download.py", arguments, asyncio.subprocess.PIPE, fetch.uri, (file.fileno(),))
            except Refused:
                raise
            except FetchError as error:
                if attempt == TRIES:
                    raise FetchError(f"{error} (tried {TRIES} times)") from error
            await asyncio.sleep(delay)
            delay *= 2

    async def _check(self, fetch: Fetch, file: IO[bytes]) -> None:
        if fetch.digest:
            actual = await asyncio.to_thread(_digest, file.fileno())  # of gigabytes
            if actual != fetch.digest:
                raise Refused(f"wrong digest: it should be {fetch.digest} and is {actual}")

    async def _place(self, fetch: Fetch, file: IO[bytes], workspace: Path, uid: int) -> None:
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        request = {
            "name": fetch.name,
            "kind": kind(fetch),
            "executable": fetch.executable,
            "most_bytes": 2 * self._most_bytes,  # as it is, and unpacked
            "most_entries": MOST_ENTRIES,
        }
        await _run("place.py", [str(workspace), str(uid), json.dumps(request)], file, "", ())


def _digest(descriptor: int) -> str:
    """Opened again, so that the position stays where it is."""
    with open(f"/proc/self/fd/{descriptor}", "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def kind(fetch: Fetch) -> str:
    """How it is to be unpacked; empty: not at all. By the name, as Mesos does it."""
    if fetch.extract and not fetch.executable:
        for found, suffixes in KINDS.items():
            if fetch.name.lower().endswith(suffixes):
                return found
    return ""


def public(uri: str) -> str:
    """Without what may be secret: user and password, and the query."""
    try:
        parts = urlsplit(uri)
        host = parts.netloc.rpartition("@")[2]
        return parts._replace(netloc=host, query="..." if parts.query else "", fragment="").geturl()[:200]
    except ValueError:
        return "a URI"


async def _run(program: str, arguments: list[str], stdin: IO[bytes] | int, said: str, passed: tuple[int, ...]) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(CHILD / program), str(os.getpid()), *arguments),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        limit=ANSWER_MOST_BYTES,
        pass_fds=passed,
        env={name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ},
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            output, _ = await process.communicate(said.encode() if process.stdin is not None else None)
    except TimeoutError as error:
        raise FetchError(f"it takes longer than {DEADLINE_S:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    _raise(output)


def _raise(output: bytes) -> None:
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError as error:
        raise FetchError("what fetches ended without an answer") from error
    if "refused" in answer:
        raise Refused(answer["refused"])
    if "failed" in answer:
        raise FetchError(answer["failed"])
