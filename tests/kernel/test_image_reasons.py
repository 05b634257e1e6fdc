"""What can be wrong with a task's image: each has a reason of its own on the task, and is tried again only where that
can help."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.images import pulls
from agent.images.manifest import MACHINE
from model.task import TaskState
from tests.images import Entry, Made, busybox, layer, make
from tests.kernel.agent import agent
from tests.kernel.registry import HOST, Registry, knows, registry
from tests.kernel.shelf import mounted_tmpfs, of_image

pytestmark = pytest.mark.anyio

PROGRAM = Path("/bin/true").read_bytes()  # one of the node, with a loader
FOREIGN = PROGRAM[:18] + struct.pack("<H", 22) + PROGRAM[20:]
Break = Callable[[Registry, Made, Path], object]


def nothing(shop: Registry, made: Made, state: Path) -> None:
    return


def swap_layer(shop: Registry, made: Made, state: Path) -> None:
    shop.blob(next(iter(made.blobs))).write_bytes(b"something else")


def lose_layer(shop: Registry, made: Made, state: Path) -> None:
    shop.blob(next(iter(made.blobs))).unlink()


def stop(shop: Registry, made: Made, state: Path) -> None:
    shop.stop()


def distrust(shop: Registry, made: Made, state: Path) -> None:
    (state / "registries/certs.d" / HOST / "ca.crt").unlink()


def app(content: bytes, mode: int = 0o755) -> tuple[Entry, ...]:
    return (Entry("app", content, mode=mode),)


@dataclass(frozen=True)
class Case:
    """An image of these files, which executes /app, in a registry that the node knows. `retries` are told of."""

    reason: str
    state: TaskState = TaskState.REJECTED
    name: str = "web:1"
    secret: str = "shop"
    files: tuple[Entry, ...] = app(b"#!/bin/sh\n")
    architecture: str = MACHINE
    break_it: Break = nothing
    disk: str = ""  # options of a file system for the images alone
    retries: int = 0


FAILED = TaskState.FAILED
CASES = {
    "image not found": Case("not found: ", name="other:1"),
    "tag not found": Case("not found: ", name="web:2"),
    "digest not found": Case("not found: ", name=f"web@sha256:{'0' * 64}"),
    "layer not found": Case("not found: ", break_it=lose_layer),
    "wrong digest": Case("wrong digest: ", break_it=swap_layer),
    "wrong architecture": Case("wrong architecture: it is for linux/mips", architecture="mips"),
    "registry down": Case("registry down: ", FAILED, break_it=stop, retries=pulls.TRIES - 1),
    "401": Case("not authorised: ", secret=""),
    "pull secret unknown": Case("pull secret 'other' is not on this node", secret="other"),
    "bad certificate": Case("bad certificate: ", break_it=distrust),
    "disk full": Case("disk full: ", FAILED, files=app(os.urandom(6 << 20)), disk="size=4m"),
    "entrypoint missing": Case("entrypoint missing: there is no /app", FAILED, files=()),
    "not executable": Case("not executable: /app has mode 0644", FAILED, files=app(b"#!/bin/sh\n", 0o644)),
    "wrong libc": Case("wrong libc: /app needs the loader /lib", FAILED, files=app(PROGRAM)),
    "wrong machine": Case("wrong architecture: /app is for s390x", FAILED, files=app(FOREIGN)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_the_reason_is_on_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr(pulls, "RETRY_FIRST_S", 0.01)
    state = tmp_path / "state"
    layers = [layer([*busybox(), *case.files])]
    made = make(layers, {"Entrypoint": ["/app"]}, architecture=case.architecture)
    disk = mounted_tmpfs(state / "images", case.disk) if case.disk else nullcontext()
    with registry(tmp_path / "registry") as shop:
        shop.push("web:1", made)
        state.mkdir()
        knows(state, shop)
        case.break_it(shop, made, state)
        with disk:
            async with agent(state) as node:
                spec = of_image(f"{HOST}/{case.name}", image={"pull_secret": case.secret})
                status = await node.run(spec)
    assert (status.state, case.reason in status.reason) == (case.state, True), status.reason
    assert len({report.message for report in node.reports if "trying again" in report.message}) == case.retries
    assert status.message == ""
