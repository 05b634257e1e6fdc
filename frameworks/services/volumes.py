"""The parts of a definition that say what its tasks share with their node or with the task before them: Marathon's
`container.volumes` and `residency` (`marathon.raml: AppVolume, AppResidency`), and what they make of a task.

A path in the container that is not absolute is below the workspace, where such a task then starts. A
`hostPath` that is not absolute is in there too: a persistent volume of that name if there is one, which so gets a
second place, and else a volume that is gone with the task.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator

from frameworks.services.fields import STRICT, Location, invalid, refused_because
from frameworks.services.unreachable import UnreachableStrategy
from frameworks.services.values import NoSecret
from model.mounts import MOST_MIB
from model.task import TaskSpec
from model.volume import VOLUME_NAME, WORKSPACE, PersistentVolume, VolumeKind, VolumeMount, mount_problem

VOLUMES_MOST = 64
DAY_S = 86_400
RESIDENCY = {"taskLostBehavior": "WAIT_FOREVER", "relaunchEscalationTimeoutSeconds": 3600}
UPGRADE = {"minimumHealthCapacity": 0.5, "maximumOverCapacity": 0.0}
OnlyRoot = Annotated[None, refused_because("persistent volumes are on the node's own disk, of type root")]
NoProvider = Annotated[None, refused_because("there are no providers of volumes beside the nodes")]
PROBE = "probe"  # an instance whose volumes are only looked at


class Strict(BaseModel):
    model_config = STRICT


class Persistent(Strict):
    """`size` in MiB."""

    size: Annotated[int, Field(ge=1, le=MOST_MIB)]
    type: Literal["root", "path", "mount"] = "root"
    constraints: OnlyRoot = None
    maxSize: OnlyRoot = None
    profileName: OnlyRoot = None

    @field_validator("type")
    @classmethod
    def _of_the_root_disk(cls, value: str) -> str:
        if value != "root":
            raise invalid(f"{value!r} is not supported by this version: root is")
        return value


class Volume(Strict):
    containerPath: Annotated[str, Field(min_length=1, max_length=1024)]
    mode: Literal["RO", "RW"] = "RW"
    hostPath: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    persistent: Persistent | None = None
    external: NoProvider = None
    secret: NoSecret = None

    @model_validator(mode="after")
    def _sound(self) -> Volume:
        if (self.hostPath is None) == (self.persistent is None):
            raise invalid("exactly one of hostPath and persistent must be given")
        if self.persistent is not None and not self.containerPath.startswith("/") and "/" in self.containerPath:
            raise invalid("containerPath of a persistent volume must be one name, like data, or absolute")
        if self.persistent is not None and not VOLUME_NAME.fullmatch(self.name):
            raise invalid(f"{self.name!r}: a volume's name is letters, digits, hyphens, dots and _, at most 40 of them")
        if said := mount_problem(self.mount(PROBE, {})):
            raise invalid(said)
        return self

    @property
    def name(self) -> str:
        """What a persistent one, or one of the sandbox, is called."""
        return (self.hostPath or self.containerPath).strip("/").replace("/", "-")

    def mount(self, instance: str, kept: dict[str, int]) -> VolumeMount:
        """`kept`: the persistent volumes that the app has, and their sizes."""
        destination, read_only = posixpath.join(WORKSPACE, self.containerPath), self.mode == "RO"
        if self.hostPath is not None and self.hostPath.startswith("/"):
            return VolumeMount(destination, VolumeKind.HOST, self.hostPath, read_only)
        size = self.persistent.size if self.persistent is not None else kept.get(self.hostPath or "", 0)
        if not size:
            return VolumeMount(destination, VolumeKind.EPHEMERAL, self.hostPath or "", read_only)
        return VolumeMount(destination, VolumeKind.PERSISTENT, volume_id(instance, self.name), read_only, size=size)


Volumes = Annotated[list[Volume], Field(max_length=VOLUMES_MOST)]


class Residency(Strict):
    taskLostBehavior: Literal["WAIT_FOREVER", "RELAUNCH_AFTER_TIMEOUT"] = "WAIT_FOREVER"
    relaunchEscalationTimeoutSeconds: Annotated[int, Field(ge=0, le=365 * DAY_S)] = 3600

    @property
    def patience_s(self) -> float:
        """How long an instance waits for its volumes before it begins anew elsewhere."""
        forever = self.taskLostBehavior == "WAIT_FOREVER"
        return float("inf") if forever else float(self.relaunchEscalationTimeoutSeconds)


class UpgradeStrategy(Strict):
    """How an app changes to another version (`marathon.raml: upgradeStrategy`), in parts of its instances: how many
    serve meanwhile, and how many more there may be. The tasks of an app with persistent volumes can't be elsewhere
    before they end here; its bounds are Marathon's for such apps."""

    minimumHealthCapacity: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    maximumOverCapacity: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0


def _nothing_is_absent(value: object) -> object:
    return None if value in (None, 0, "", [], {}) else value


NothingIsAbsent = BeforeValidator(_nothing_is_absent)


def with_defaults(body: Any) -> Any:
    """What Marathon adds to the definition of an app that has persistent volumes, and which clients read."""
    if not _is_resident(body):
        return body
    given = body.get("upgradeStrategy")
    upgrade = UPGRADE | (given if isinstance(given, dict) else {})
    return {"residency": RESIDENCY, "unreachableStrategy": "disabled", **body, "upgradeStrategy": upgrade}


def _is_resident(body: Any) -> bool:
    container = body.get("container") if isinstance(body, dict) else None
    volumes = container.get("volumes") if isinstance(container, dict) else None
    return isinstance(volumes, list) and any(isinstance(each, dict) and "persistent" in each for each in volumes)


def problems(
    volumes: Sequence[Volume],
    residency: Residency | None,
    upgrade: UpgradeStrategy,
    unreachable: UnreachableStrategy | None,
) -> Iterator[tuple[Location, str]]:
    """What does not go together, each with its place."""
    names = [each.name for each in volumes if each.persistent is not None]
    for index, volume in enumerate(volumes):
        if volume.persistent is not None and names.count(volume.name) > 1:
            yield ("container", "volumes", index, "containerPath"), f"two persistent volumes are called {volume.name!r}"
    if residency is not None and not names:
        yield ("residency",), "is for an app with persistent volumes: remove it"
    if names:
        if unreachable is not None and not unreachable.disabled:
            yield ("unreachableStrategy",), 'must be "disabled" for an app with persistent volumes'
        if upgrade.maximumOverCapacity != 0:
            yield ("upgradeStrategy", "maximumOverCapacity"), "must be 0 for an app with persistent volumes"
        if upgrade.minimumHealthCapacity > 0.5:
            yield ("upgradeStrategy", "minimumHealthCapacity"), "must be at most 0.5 for an app with persistent volumes"


def mounted(task: TaskSpec, volumes: Sequence[Volume], instance: str) -> TaskSpec:
    """The task with the volumes of this instance of its app."""
    kept = {each.containerPath: each.persistent.size for each in volumes if each.persistent is not None}
    mounts = tuple(each.mount(instance, kept) for each in volumes)
    with_volumes = replace(task, volumes=mounts)
    # No directory named: the workspace, or the one that the image says.
    return replace(with_volumes, cwd="") if with_volumes.needs_provision else with_volumes


def overlapping(task: TaskSpec) -> str:
    """A place where two things would be mounted; empty when there is none."""
    taken = [each.destination for each in task.tmpfs] + [each.destination for each in task.volumes]
    return next((path for path in taken if taken.count(path) > 1), "")


def kept(volumes: Iterable[Volume], framework: str, owner: str, instance: str) -> tuple[PersistentVolume, ...]:
    """The persistent volumes that an instance has."""
    return tuple(
        PersistentVolume(volume_id(instance, each.name), framework, owner, instance, each.name, each.persistent.size)
        for each in volumes
        if each.persistent is not None
    )


def volume_id(instance: str, name: str) -> str:
    return f"{instance}.{name}"
