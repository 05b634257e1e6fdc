"""Volumes of a pod and where its containers have them (`volumes.raml: Volume, VolumeMount`).

One that says no more than its name is made with the pod, shared by those of its containers that mount it, and gone with
the pod. Of the node's own files a pod may have what an app may have.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, model_validator

from frameworks.services.fields import STRICT, Location, invalid
from frameworks.services.values import NoPersistence, NoSecret
from frameworks.services.volumes import VOLUMES_MOST
from model.volume import VOLUME_NAME, WORKSPACE, VolumeKind, VolumeMount, mount_problem


def _name(value: str) -> str:
    if not VOLUME_NAME.fullmatch(value):
        raise invalid(f"{value!r}: a volume's name is letters, digits, hyphens, dots and _, at most 40 of them")
    return value


class Strict(BaseModel):
    model_config = STRICT


class Volume(Strict):
    name: Annotated[str, AfterValidator(_name)]
    host: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    persistent: NoPersistence = None
    secret: NoSecret = None

    @model_validator(mode="after")
    def _sound(self) -> Volume:
        if said := mount_problem(self.mounted_at("/volume", read_only=False)):
            raise invalid(said)
        return self

    def mounted_at(self, destination: str, read_only: bool) -> VolumeMount:
        if self.host is not None:
            return VolumeMount(destination, VolumeKind.HOST, self.host, read_only)
        return VolumeMount(destination, VolumeKind.POD, self.name, read_only)


class Mount(Strict):
    """A path that is not absolute is below the workspace, as in an app."""

    name: str
    mountPath: Annotated[str, Field(min_length=1, max_length=1024)]
    readOnly: bool = False

    @model_validator(mode="after")
    def _sound(self) -> Mount:
        if said := mount_problem(VolumeMount(self.destination, VolumeKind.POD, "volume")):
            raise invalid(said)
        return self

    @property
    def destination(self) -> str:
        return posixpath.join(WORKSPACE, self.mountPath)


Volumes = Annotated[list[Volume], Field(max_length=VOLUMES_MOST)]
Mounts = Annotated[list[Mount], Field(max_length=VOLUMES_MOST)]


def problems(volumes: Sequence[Volume], mounts: Sequence[Sequence[Mount]]) -> Iterator[tuple[Location, str]]:
    """What does not go together, each with its place. `mounts` are those of each container."""
    names = [volume.name for volume in volumes]
    mounted = {mount.name for each in mounts for mount in each}
    for index, name in enumerate(names):
        if names.index(name) != index:
            yield ("volumes", index, "name"), f"{name!r} occurs more than once"
        if name not in mounted:
            yield ("volumes", index, "name"), f"none of the containers mounts {name!r}"
    for container, each in enumerate(mounts):
        destinations = [mount.destination for mount in each]
        for index, mount in enumerate(each):
            place: Location = ("containers", container, "volumeMounts", index)
            if mount.name not in names:
                yield (*place, "name"), f"{mount.name!r} is none of the pod's volumes"
            if destinations.index(mount.destination) != index:
                yield (*place, "mountPath"), f"two are to be mounted at {mount.destination}"


def mounts_of(mounts: Sequence[Mount], volumes: Mapping[str, Volume]) -> tuple[VolumeMount, ...]:
    """As a task has them. `volumes` by name."""
    return tuple(volumes[mount.name].mounted_at(mount.destination, mount.readOnly) for mount in mounts)
