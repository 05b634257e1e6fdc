"""One container of a pod: the part of Marathon's JSON that this version honours (`podContainer.raml: PodContainer`).

One thing is ours: `linuxInfo.pidInfo`, which is to processes what Marathon's `ipcInfo` is to System V IPC.
"""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from frameworks.services.artifacts import Artifacts, PullConfig, Reference, Secrets
from frameworks.services.confinement import ResourceLimits, Seccomp
from frameworks.services.definition import PlainLabels
from frameworks.services.fields import STRICT, invalid
from frameworks.services.pods.endpoints import Endpoint
from frameworks.services.pods.health import HealthCheck
from frameworks.services.pods.volumes import Mounts
from frameworks.services.ports import PortName
from frameworks.services.values import (
    Amount,
    Bounded,
    Environment,
    Gpus,
    NoCheck,
    NoImageLabels,
    NoTerminal,
    Positive,
    Seconds,
    Text,
    User,
)
from model.image import ImageSpec, Rules
from model.resources import Resources
from model.task import Port


class Strict(BaseModel):
    model_config = STRICT


class Command(Strict):
    shell: Annotated[Text, Field(min_length=1)] | None = None
    argv: Annotated[list[Text], Field(min_length=1, max_length=10_000)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Command:
        if (self.shell is None) == (self.argv is None):
            raise invalid("exactly one of shell and argv must be given")
        return self

    @property
    def words(self) -> tuple[str, ...]:
        return ("/bin/sh", "-c", self.shell) if self.shell is not None else tuple(self.argv or ())


class Exec(Strict):
    """`argv` is what the image's entrypoint gets, unless that is overridden, as a shell's command always does."""

    command: Command
    overrideEntrypoint: bool | None = None

    @model_validator(mode="after")
    def _shell_overrides(self) -> Exec:
        if self.overrideEntrypoint is False and self.command.shell is not None:
            raise invalid("overrideEntrypoint must not be false with command.shell: an entrypoint is given argv only")
        return self

    @property
    def arguments(self) -> bool:
        return self.command.argv is not None and not self.overrideEntrypoint


class Image(Strict):
    kind: Literal["DOCKER", "APPC"]
    id: Reference
    forcePull: bool = False
    pullConfig: PullConfig | None = None
    labels: NoImageLabels = None

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind != "DOCKER":
            raise invalid(f"{kind} is not supported by this version: DOCKER is, for images of OCI and Docker")
        return kind


class Amounts(Strict):
    """Of one container."""

    cpus: Positive
    mem: Positive
    disk: Amount = 0.0
    gpus: Gpus = 0

    @property
    def resources(self) -> Resources:
        return _resources(self.cpus, self.mem, self.disk)


class OwnAmounts(Strict):
    """Of the pod itself, beside its containers'."""

    cpus: Amount = 0.0
    mem: Amount = 0.0
    disk: Amount = 0.0

    @property
    def resources(self) -> Resources:
        return _resources(self.cpus, self.mem, self.disk)


class Sharing(Strict):
    """`SHARE_PARENT`: with the other containers of the pod that have it too."""

    mode: Literal["PRIVATE", "SHARE_PARENT"]

    @property
    def shared(self) -> bool:
        return self.mode == "SHARE_PARENT"


class IpcInfo(Sharing):
    """The first container that shares /dev/shm says how large it is, in MiB."""

    shmSize: Annotated[int, Field(ge=1, le=1 << 20)] | None = None


class LinuxInfo(Strict):
    seccomp: Seccomp | None = None
    ipcInfo: IpcInfo | None = None
    pidInfo: Sharing | None = None


class Lifecycle(Strict):
    killGracePeriodSeconds: Seconds = 3.0


class Container(Strict):
    name: PortName
    exec: Exec | None = None
    image: Image | None = None
    artifacts: Artifacts = []
    resources: Amounts
    endpoints: list[Endpoint] = []
    environment: Environment = {}
    user: User | None = None
    healthCheck: HealthCheck | None = None
    labels: Annotated[PlainLabels, Bounded] = {}
    lifecycle: Lifecycle = Lifecycle()
    linuxInfo: LinuxInfo = LinuxInfo()
    resourceLimits: ResourceLimits | None = None
    volumeMounts: Mounts = []

    check: NoCheck = None
    tty: NoTerminal = None

    @model_validator(mode="after")
    def _executes_something(self) -> Container:
        if self.exec is None and self.image is None:
            raise invalid("exec must be given, without an image that says what to execute")
        return self

    def image_of_task(self, secrets: Secrets) -> ImageSpec | None:
        """By the rules of Mesos's containerizer, which is the one that ran pods."""
        if self.image is None:
            return None
        secret = secrets[self.image.pullConfig.secret].source if self.image.pullConfig else ""
        arguments = self.exec is not None and self.exec.arguments
        return ImageSpec(self.image.id, self.image.forcePull, Rules.MESOS, arguments, secret)

    @property
    def words(self) -> tuple[str, ...]:
        """Empty: the image says what to execute."""
        return self.exec.command.words if self.exec is not None else ()

    @property
    def ports(self) -> tuple[Port, ...]:
        return tuple(endpoint.port for endpoint in self.endpoints)


def _resources(cpus: float, mem: float, disk: float) -> Resources:
    """As `Definition.resources` rounds."""
    return Resources(ceil(round(cpus * 1000, 6)), ceil(mem), ceil(disk))
