"""Images for tests, honest and otherwise: layers from lists of entries, layout directories and archives from layers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.images.manifest import MACHINE

BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static
APPLETS = ("sh", "cat", "ls", "true", "sleep", "id", "pwd", "env", "stat", "echo", "test", "touch", "httpd")


@dataclass(frozen=True)
class Entry:
    """A member of a layer's archive. `kind` is one of tarfile's types."""

    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    mode: int = 0o755
    link: str = ""
    uid: int = 0
    gid: int = 0
    device: tuple[int, int] = (0, 0)
    pax: dict[str, str] = field(default_factory=dict)


def directory(name: str, mode: int = 0o755, **changes: Any) -> Entry:
    return Entry(name, kind=tarfile.DIRTYPE, mode=mode, **changes)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, kind=tarfile.SYMTYPE, link=target, mode=0o777)


def hard_link(name: str, target: str) -> Entry:
    return Entry(name, kind=tarfile.LNKTYPE, link=target)


def layer(entries: Iterable[Entry]) -> bytes:
    """An uncompressed archive; nothing in the names is put right."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode, info.linkname = entry.kind, entry.mode, entry.link
            info.uid, info.gid, info.size = entry.uid, entry.gid, len(entry.content)
            info.devmajor, info.devminor = entry.device
            info.pax_headers = entry.pax
            archive.addfile(info, io.BytesIO(entry.content))
    return buffer.getvalue()


def busybox() -> list[Entry]:
    """A root file system in which the usual small programs run."""
    directories = [directory(name) for name in ("bin", "etc", "root", "dev", "proc", "sys", "run")]
    passwd = b"root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n"
    return [
        *directories,
        directory("tmp", 0o1777),
        Entry("etc/passwd", passwd, mode=0o644),
        Entry("bin/busybox", BUSYBOX.read_bytes()),
        *(symlink(f"bin/{applet}", "busybox") for applet in APPLETS),
    ]


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def gzipped(data: bytes) -> bytes:
    """The same each time."""
    return gzip.compress(data, mtime=0)


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


@dataclass(frozen=True)
class Made:
    manifest: bytes
    config: bytes
    blobs: dict[str, bytes]

    @property
    def digest(self) -> str:
        return digest(self.manifest)


def make(
    layers: Sequence[bytes],
    config: dict[str, Any] | None = None,
    compress: Callable[[bytes], bytes] = gzipped,
    architecture: str = MACHINE,
) -> Made:
    """`config` is the part about the process: Entrypoint, Cmd, Env, User, WorkingDir."""
    compressed = [compress(layer) for layer in layers]
    config_data = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
            "history": [{"created_by": "test"} for _ in layers],
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor(config_data, "application/vnd.oci.image.config.v1+json"),
            "layers": [_descriptor(blob, "application/vnd.oci.image.layer.v1.tar+gzip") for blob in compressed],
        }
    ).encode()
    blobs = {digest(data): data for data in (*compressed, config_data, manifest)}
    return Made(manifest, config_data, blobs)


def write_layout(path: Path, tags: dict[str, Made]) -> Path:
    """An OCI layout directory."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    entries = []
    for tag, made in tags.items():
        for name, data in made.blobs.items():
            (blobs / name.removeprefix("sha256:")).write_bytes(data)
        described = _descriptor(made.manifest, "application/vnd.oci.image.manifest.v1+json")
        entries.append({**described, "annotations": {"org.opencontainers.image.ref.name": tag}})
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    return path


def write_archive(path: Path, layers: Sequence[bytes], config: dict[str, Any] | None = None) -> Path:
    """What `docker save` writes."""
    made = make(layers, config)
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    described = [{"Config": "config.json", "RepoTags": ["test:latest"], "Layers": names}]
    files = [Entry("config.json", made.config), *map(Entry, names, layers)]
    path.write_bytes(layer([*files, Entry("manifest.json", json.dumps(described).encode())]))
    return path


def _descriptor(data: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest(data), "size": len(data)}
