"""Images in registries: skopeo asks for them and brings them, into a layout directory of the store's staging.

Each question is one execution, with a deadline, without rights beyond root's own files, ended with the agent. Manifest
and configuration are taken as they are in the registry (`inspect --raw`), so their digests are the registry's. Layers
that the node has already are laid out as empty files of the right size, for skopeo leaves alone what is there.

Signatures are not looked at (`--insecure-policy` means that); what is verified is every digest, here and when a layer
is unpacked.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from agent.images import errors, manifest
from agent.images.errors import ImageError
from agent.images.manifest import Image, Layer
from agent.images.reference import Reference
from agent.images.source import Source
from agent.images.unpack import Blob

ASK_DEADLINE_S = 60.0
STALL_DEADLINE_S = 120.0  # a transfer may take hours, but something has to come
LOOK_S = 0.2
OUTPUT_MOST_BYTES = 8 << 20
SAID_MOST = 300
TAG = "image"
CONFINED = ("setpriv", "--pdeathsig", "KILL", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all")
PASSED_ON = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")

# What skopeo and the registries behind it say, most telling first.
REASONS: tuple[tuple[str, type[ImageError], str], ...] = (
    (r"no space left on device|disk quota exceeded", errors.DiskFull, "the node's disk is full"),
    (r"digest.* (?:did|does) not match", errors.WrongDigest, "wrong digest"),
    (r"x509:|tls: failed|certificate|HTTP response to HTTPS", errors.BadCertificate, "bad certificate"),
    (
        r"toomanyrequests|too many requests|\b(?:500|502|503|504)\b.*(?:error|unavailable|gateway)|StatusCode: 5\d\d"
        r"|connection refused|no such host|i/o timeout|timeout|unreachable|connection reset|server misbehaving"
        r"|deadline exceeded|no route to host|unexpected EOF|EOF$|name resolution",
        errors.Unreachable,
        "registry down",
    ),
    (r"unauthorized|authentication required|\b401\b|denied|\b403\b", errors.NotPermitted, "not authorised"),
    (r"manifest unknown|name unknown|not found|\b404\b|name_unknown", errors.NotFound, "not found"),
)


class Registry(Source):
    def __init__(self, reference: Reference, staging: Path, auth_file: Path, certificates: Path | None) -> None:
        """`staging` is an empty directory of this pull's own. `auth_file` is a Docker `config.json`; `certificates` a
        directory with the authorities that may speak for the registry (containers-certs.d(5)), None: the node's."""
        self._reference = reference
        self._staging = staging
        self._options = ["--authfile", str(auth_file)]
        self._certificates = str(certificates) if certificates else None
        self._digest = reference.digest
        self._copying: asyncio.Task[None] | None = None
        self._placed = 0

    async def __aexit__(self, *failure: object) -> None:
        if self._copying is not None:
            self._copying.cancel()
            await asyncio.gather(self._copying, return_exceptions=True)

    async def image(self) -> tuple[bytes, bytes]:
        data = await self._ask("--raw", self._name(self._reference.digest))
        if self._reference.digest:
            manifest.check(data, self._reference.digest, "its manifest")
        if manifest.is_index(data):
            chosen = manifest.choose(data)
            data = manifest.check(await self._ask("--raw", self._name(chosen)), chosen, "its manifest")
        self._digest = manifest.digest_of(data)
        config = await self._ask("--config", "--raw", self._name(self._digest))
        return data, manifest.check(config, manifest.parse_manifest(data).config, "its configuration")

    async def fetch(self, image: Image, wanted: Collection[Layer]) -> None:
        blobs = self._blobs()
        blobs.mkdir(parents=True)
        missing = {layer.blob for layer in wanted}
        for layer in image.layers:
            if layer.blob not in missing:
                self._place(layer)
        if missing:
            self._copying = asyncio.create_task(self._copy())

    async def blob(self, layer: Layer) -> Blob:
        """A layer can be unpacked while others are on their way."""
        path = self._blobs() / layer.blob.removeprefix("sha256:")
        while not path.exists():
            assert self._copying is not None
            if self._copying.done():
                self._copying.result()
                if not path.exists():
                    raise errors.NotFound(f"the registry has no layer {layer.blob}")
            await asyncio.wait({self._copying}, timeout=LOOK_S)
        return Blob(path)

    def fetched_bytes(self) -> int:
        files = [*self._staging.glob("layout/oci-put-blob*"), *self._blobs().glob("*")]
        return max(0, sum(_size(path) for path in files) - self._placed)

    def _blobs(self) -> Path:
        return self._staging / "layout" / "blobs" / "sha256"

    def _place(self, layer: Layer) -> None:
        with open(self._blobs() / layer.blob.removeprefix("sha256:"), "wb") as file:
            file.truncate(layer.size)
        self._placed += layer.size

    def _name(self, digest: str) -> str:
        tag = f"@{digest}" if digest else f":{self._reference.tag}"
        return f"docker://{self._reference.name}{tag}"

    async def _ask(self, *arguments: str) -> bytes:
        certificates = ["--cert-dir", self._certificates] if self._certificates else []
        command = ["inspect", *self._options, *certificates, *arguments]
        return await self._skopeo(command, ASK_DEADLINE_S)

    async def _copy(self) -> None:
        certificates = ["--src-cert-dir", self._certificates] if self._certificates else []
        names = [self._name(self._digest), f"oci:{self._staging / 'layout'}:{TAG}"]
        copying = asyncio.create_task(self._skopeo(["copy", "--quiet", *self._options, *certificates, *names], None))
        try:
            await self._watch(copying)
        finally:
            copying.cancel()
            await asyncio.wait({copying})

    async def _watch(self, copying: asyncio.Task[bytes]) -> None:
        """Until it ends. Raises Unreachable when nothing comes any more."""
        loop = asyncio.get_running_loop()
        seen, since = -1, loop.time()
        while not (await asyncio.wait({copying}, timeout=LOOK_S * 5))[0]:
            if (size := self.fetched_bytes()) != seen:
                seen, since = size, loop.time()
            elif loop.time() - since > STALL_DEADLINE_S:
                raise errors.Unreachable(f"registry down: nothing came for {STALL_DEADLINE_S:g} s")
        copying.result()

    async def _skopeo(self, command: Sequence[str], deadline_s: float | None) -> bytes:
        overrides = ["--insecure-policy", "--override-os", "linux", "--override-arch", manifest.MACHINE]
        process = await asyncio.create_subprocess_exec(
            *(*CONFINED, "skopeo", *overrides, "--tmpdir", str(self._staging), *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(self._staging),
        )
        try:
            async with asyncio.timeout(deadline_s):
                output, said = await _outputs(process)
                code = await process.wait()
        except TimeoutError as error:
            raise errors.Unreachable(f"registry down: no answer after {deadline_s:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code != 0:
            raise reason(said.decode(errors="replace"))
        return output


def reason(said: str) -> ImageError:
    """What skopeo says when it fails, by kind."""
    text = _last_message(said)
    for pattern, kind, words in REASONS:
        if re.search(pattern, text, re.IGNORECASE):
            return kind(f"{words}: {text}")
    return ImageError(f"skopeo: {text}")


def _last_message(said: str) -> str:
    """Of lines like `time="..." level=fatal msg="..."` the last message."""
    messages = re.findall(r'msg="((?:[^"\\]|\\.)*)"', said)
    text = messages[-1].replace('\\"', '"') if messages else said.strip()
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable if len(printable) <= SAID_MOST else f"{printable[:80]} ... {printable[-(SAID_MOST - 85) :]}"


async def _outputs(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    assert process.stdout is not None and process.stderr is not None
    async with asyncio.TaskGroup() as group:
        output = group.create_task(_bounded(process.stdout))
        said = group.create_task(_bounded(process.stderr))
    return output.result(), said.result()


async def _bounded(stream: asyncio.StreamReader) -> bytes:
    """The first of it. The rest is read and dropped, for the writer must not wait."""
    kept = bytearray()
    while part := await stream.read(1 << 16):
        kept += part[: OUTPUT_MOST_BYTES - len(kept)]
    return bytes(kept)


def _environment(home: Path) -> dict[str, str]:
    """Nothing of the agent's own; credentials that lie in somebody's home directory are not found."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), "TMPDIR": str(home), **passed}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # it has got its name meanwhile
