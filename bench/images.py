"""Images: what bringing one into the store costs, and what it adds to a launch.

The image is in an OCI layout directory: three layers of the machine's own files, one of many small ones, one of larger
ones, one that hides a part of the others. The peers bring the same image into storage of their own: `umoci unpack`,
and `podman pull`, which reads the layout as `skopeo copy` does. Ours verifies every digest, makes the image known and
leaves it ready for containers. They take turns, each into an empty directory, with the layout in the page cache.

The other row is a launch from the image, which is in the store, beside one from a plain directory.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.images.images import Images, Places
from agent.images.manifest import MACHINE
from bench.apart import apart, report
from bench.launch import Ours, rootfs_of_clock, underlay
from bench.report import Report, Row, percentile
from model.image import ImageSpec

TURNS = 7
LAUNCHES = 100
PAUSE_S = 0.25  # before each launch, so that a sandbox is ready
ADDED_MS = 3.0  # is promised
WARM_UP = 3
RUN_DEADLINE_S = 900
SMALL_FILES = "usr/lib/python3.11"
LARGE_FILES = "usr/bin"
TAG = "bench"


def run() -> Report:
    return apart("bench.images", RUN_DEADLINE_S)


async def measure(directory: Path) -> Report:
    layout = _layout(directory / "layout", list(_layers(directory)))
    ours: list[float] = []
    umoci: list[float] = []
    podman: list[float] = []
    for turn in range(WARM_UP + TURNS):
        samples = await _ours(directory, layout), _umoci(directory, layout), _podman(directory, layout)
        if turn >= WARM_UP:
            for kept, sample in zip((ours, umoci, podman), samples, strict=True):
                kept.append(sample)
    with_image, without = await _launches(directory)
    return Report(
        "images",
        (
            Row("unpack_p50", "ms", percentile(ours, 50), percentile(umoci, 50), "umoci unpack"),
            Row("pull_p50", "ms", percentile(ours, 50), percentile(podman, 50), "podman pull"),
            *(
                Row(f"start_p{q}", "ms", percentile(with_image, q), percentile(without, q), "a directory")
                for q in (10, 50)
            ),
            Row("start_added_p10", "ms", percentile(with_image, 10) - percentile(without, 10), ADDED_MS, "promised"),
        ),
    )


async def _ours(directory: Path, layout: Path) -> float:
    store = directory / "store"
    (directory / "containers").mkdir(exist_ok=True)
    images = Images(Places(store, directory / "containers", directory, (directory,)))
    await images.open()
    begin = time.monotonic()
    await images.pull(f"oci:{layout}:{TAG}", lambda text: None)
    took = time.monotonic() - begin
    await images.close()  # what it still writes must not meet the peers
    shutil.rmtree(store)
    return took * 1e3


def _umoci(directory: Path, layout: Path) -> float:
    bundle = directory / "bundle"
    took = _timed(["umoci", "unpack", "--image", f"{layout}:{TAG}", str(bundle)], {})
    shutil.rmtree(bundle)
    return took


def _podman(directory: Path, layout: Path) -> float:
    storage = directory / "storage"
    places = ["--root", str(storage / "root"), "--runroot", str(storage / "run"), "--tmpdir", str(storage / "tmp")]
    command = ["podman", *places, "--storage-driver", "overlay", "pull", "--quiet", f"oci:{layout}:{TAG}"]
    took = _timed(command, {"TMPDIR": str(directory)})
    subprocess.run(["umount", storage / "root/overlay"], capture_output=True, check=False)
    shutil.rmtree(storage)
    return took


def _timed(command: list[str], variables: dict[str, str]) -> float:
    begin = time.monotonic()
    subprocess.run(command, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=sys.stderr, check=True)
    return (time.monotonic() - begin) * 1e3


async def _launches(directory: Path) -> tuple[list[float], list[float]]:
    rootfs = rootfs_of_clock(directory)
    layout = _layout(directory / "clock-layout", [_packed(directory / "clock.tar.gz", rootfs)])
    image = ImageSpec(f"oci:{layout}:{TAG}")
    with_image: list[float] = []
    without: list[float] = []
    await underlay()
    async with Ours(directory, rootfs) as agent:
        for turn in range(WARM_UP + LAUNCHES):
            for kept, changes in ((with_image, {"image": image, "rootfs": ""}), (without, {})):
                await asyncio.sleep(PAUSE_S)
                sample = await agent.launch(**changes)
                if turn >= WARM_UP:
                    kept.append(sample)
    return with_image, without


def _layers(directory: Path) -> Iterator[Path]:
    for number, path in enumerate((SMALL_FILES, LARGE_FILES)):
        archive = directory / f"layer{number}.tar.gz"
        subprocess.run(["tar", "-C", "/", "--exclude=__pycache__", "-czf", archive, path], check=True)
        yield archive
    upper = directory / "upper"
    (upper / SMALL_FILES).mkdir(parents=True)
    (upper / SMALL_FILES / ".wh.json").touch()
    yield _packed(directory / "upper.tar.gz", upper)


def _packed(archive: Path, tree: Path) -> Path:
    subprocess.run(["tar", "-C", tree, "-czf", archive, "."], check=True)
    return archive


def _layout(path: Path, archives: list[Path]) -> Path:
    """An OCI layout directory of these layers."""
    (path / "blobs/sha256").mkdir(parents=True)
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    layers, diff_ids = [], []
    for archive in archives:
        layers.append(_blob(path, archive.read_bytes(), "layer.v1.tar+gzip"))
        plain = subprocess.run(["gzip", "-dc", archive], capture_output=True, check=True).stdout
        diff_ids.append(f"sha256:{hashlib.sha256(plain).hexdigest()}")
    root = {"type": "layers", "diff_ids": diff_ids}
    config = _json_blob(path, {"architecture": MACHINE, "os": "linux", "rootfs": root, "config": {}}, "config.v1+json")
    manifest = _json_blob(path, {"schemaVersion": 2, "config": config, "layers": layers}, "manifest.v1+json")
    manifest["annotations"] = {"org.opencontainers.image.ref.name": TAG}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    return path


def _json_blob(path: Path, value: dict[str, Any], kind: str) -> dict[str, Any]:
    return _blob(path, json.dumps(value).encode(), kind)


def _blob(path: Path, data: bytes, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (path / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}


if __name__ == "__main__":
    report(measure)
