"""Bounds what a container may write to its private layer and its ephemeral volumes, where its task asks for an amount
of disk.

Where the file system enforces project quotas (XFS, mounted with `prjquota`) the layer is a project of its own: a write
beyond the limit fails. Elsewhere the layer is measured at intervals, and a task that is found over its limit ends with
that reason. An interval is `PATIENCE` times as long as the measuring took, so that it costs one part in that many.

A task that asks for no disk is not bounded. Its temporary directories are memory and bounded with it.

The volumes of a pod are bounded by what it asks for beside its tasks. They are a project of the pod's sandbox, or else
measured with the first of its tasks, which holds those resources (`TaskSpec.held`), and ends for all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from isolators import disk_usage, project_quota
from isolators.base import BundlePart, Container, Isolator, IsolatorError, Limit, Sandbox
from isolators.mount import mount_points
from isolators.workspace import DIRECTORY
from model.resources import Resources
from model.task import Usage

MIB = 1 << 20
SHORTEST_INTERVAL_S = 1.0
PATIENCE = 50
VOLUMES = "volumes"  # the ephemeral ones, in Sandbox.layer


@dataclass(frozen=True, slots=True)
class Layer:
    """What is known of one container's layer. `used_bytes` is as of the last measurement."""

    limit: int  # MiB; 0: none
    used_bytes: int = 0
    exceeded: Limit | None = None


class DiskIsolator(Isolator):
    """Prepared after the file system, which makes the layer."""

    name = "disk"

    def __init__(self, state_directory: Path) -> None:
        self._quotas = project_quota.enforced(state_directory, mount_points())
        self._layers: dict[str, Layer] = {}

    async def recover(self, known: list[Container], orphans: list[str]) -> None:
        self._layers |= {container.id: Layer(container.task.resources.disk) for container in known}

    async def open(self, sandbox: Sandbox) -> BundlePart:
        if self._quotas:
            with _operation("assign disk quota", sandbox):
                project_quota.assign(sandbox.layer, _project(sandbox))  # for workspace and volumes
        return {}

    async def prepare(self, container: Container) -> BundlePart:
        if self._quotas:
            with _operation("assign disk quota", container):
                for directory in ("upper", "work", "work/work"):  # a rename must not lead from project to project
                    project_quota.assign(container.layer / directory, _project(container))
        return {}

    async def enforce(self, container: Container) -> None:
        """Of a pod's sandbox too, which nothing is prepared for."""
        self._layers[container.id] = Layer(container.task.resources.disk)
        if self._quotas:
            with _operation("set disk quota", container):
                _limit(container, container.task.resources.disk)

    async def watch(self, container: Container) -> Limit | None:
        if self._quotas:
            return None
        interval = 0.0
        while (limit := await self.exceeded(container)) is None:
            await asyncio.sleep(interval)
            if self._layer(container).limit or _of_pod(container):
                # By a thread: of a million files it takes seconds.
                took = await asyncio.to_thread(self._measure, container)
                interval = max(SHORTEST_INTERVAL_S, took * PATIENCE)
            else:
                interval = SHORTEST_INTERVAL_S * PATIENCE  # an update may bring a limit
        return limit

    async def exceeded(self, container: Container) -> Limit | None:
        return self._layer(container).exceeded

    async def update(self, container: Container, resources: Resources) -> None:
        if self._quotas:
            with _operation("set disk quota", container):
                _limit(container, resources.disk)
        self._layers[container.id] = replace(self._layer(container), limit=resources.disk)

    async def usage(self, container: Container, usage: Usage) -> Usage:
        layer = self._layer(container)
        used = layer.used_bytes
        if self._quotas:
            with _operation("read disk quota", container):
                used = project_quota.used_bytes(container.layer, _project(container))
        return replace(usage, disk_bytes=used, disk_limit_bytes=layer.limit * MIB or None)

    async def cleanup(self, sandbox: Sandbox) -> None:
        known = self._layers.pop(sandbox.id, None)
        if self._quotas and known is not None and known.limit:
            with _operation("lift disk quota", sandbox):
                _limit(sandbox, 0)

    def _layer(self, container: Container) -> Layer:
        return self._layers.get(container.id, Layer(0))

    def _measure(self, container: Container) -> float:
        """Returns the seconds that it took."""
        began = time.monotonic()
        layer = self._layer(container)
        with _operation("measure disk", container):
            try:
                used = _used(_written(container.layer))
                over = _over("disk limit", layer.limit, used)
                if over is None and (limit := _of_pod(container)) and container.sandbox.holder is not None:
                    over = _over("disk limit of its pod", limit, _used(_written(container.sandbox.holder.layer)))
                self._keep(container, Layer(layer.limit, used, over))
            except disk_usage.TooDeep as error:
                self._keep(container, replace(layer, exceeded=Limit(f"disk limit can not be held: {error}")))
        return time.monotonic() - began

    def _keep(self, container: Container, layer: Layer) -> None:
        if container.id in self._layers:  # else it was cleaned up while it was measured
            self._layers[container.id] = layer


def _of_pod(container: Container) -> int:
    """What this container has to hold the pod's volumes to, in MiB; 0: nothing."""
    pod = container.task.pod
    return pod.resources.disk if pod is not None and pod.members[0] == container.task.id else 0


def _written(layer: Path) -> list[Path]:
    return [path for name in ("upper", DIRECTORY, VOLUMES) if (path := layer / name).is_dir()]


def _used(directories: Iterable[Path]) -> int:
    return sum(map(disk_usage.used_bytes, directories))


def _over(what: str, limit: int, used: int) -> Limit | None:
    if not limit or used <= limit * MIB:
        return None
    return Limit(f"{what} {limit} MiB exceeded ({used / MIB:.1f} MiB)")


def _limit(container: Container | Sandbox, limit: int) -> None:
    project_quota.limit(container.layer.parent, _project(container), limit * MIB)


def _project(container: Container | Sandbox) -> int:
    """Far above what people give to projects."""
    return container.number


@contextmanager
def _operation(operation: str, container: Container | Sandbox) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IsolatorError(f"{operation} of {container.id}: {error}") from error
