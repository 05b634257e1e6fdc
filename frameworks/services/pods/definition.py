"""A pod's definition: the part of Marathon's pod JSON that this version honours (`pod.raml`, `podContainer.raml`).

As with apps (`frameworks/services/definition.py`), what can't be honoured is refused by name. One thing is ours:
`linuxInfo.pidInfo`, which is to processes what Marathon's `ipcInfo` is to System V IPC.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from frameworks.services.confinement import ResourceLimits, Seccomp
from frameworks.services.definition import (
    PROTOCOLS,
    Amount,
    AppId,
    Count,
    EnvName,
    Labels,
    NetworkRefs,
    PortLabels,
    PortName,
    Positive,
    Seconds,
    Text,
    User,
    without_nulls,
)
from frameworks.services.fields import STRICT, Location, Refused, invalid, invalid_at
from frameworks.services.pods.health import HealthCheck
from model.resources import Resources
from model.task import Port
from model.volume import PersistentVolume

POD_ID_LENGTH = 90  # a task's id adds a UUID and a container's name, and must stay a file name with room for a suffix
CONTAINERS_MOST = 32
ANY_ROLE = "*"  # there are no others


Ignored = Annotated[str | None, AfterValidator(lambda value: None)]


def _pod_id(value: str) -> str:
    if len(value) > POD_ID_LENGTH:
        raise invalid(f"is longer than {POD_ID_LENGTH} characters")
    return value


def _roles(value: list[str]) -> list[str]:
    if value not in ([], [ANY_ROLE]):
        raise invalid(f'must be ["{ANY_ROLE}"]: resources have no roles')
    return value


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
    command: Command
    overrideEntrypoint: Refused = None


class Amounts(Strict):
    """Of one container."""

    cpus: Positive
    mem: Positive
    disk: Amount = 0.0
    gpus: Refused = None

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


class Endpoint(Strict):
    name: PortName
    containerPort: Annotated[int, Field(ge=1, le=65535)]
    protocol: Annotated[list[Literal["tcp", "udp"]], Field(min_length=1, max_length=2)] = ["tcp"]
    labels: PortLabels = {}
    hostPort: Refused = None
    networkNames: Refused = None

    @property
    def port(self) -> Port:
        labels = tuple(sorted(self.labels.items()))
        return Port(self.containerPort, self.name, PROTOCOLS[",".join(dict.fromkeys(self.protocol))], labels)


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
    exec: Exec
    resources: Amounts
    endpoints: list[Endpoint] = []
    environment: dict[EnvName, Text] = {}
    user: User | None = None
    healthCheck: HealthCheck | None = None
    labels: Labels = {}
    lifecycle: Lifecycle = Lifecycle()
    linuxInfo: LinuxInfo = LinuxInfo()
    resourceLimits: ResourceLimits | None = None

    artifacts: Refused = None
    image: Refused = None
    tty: Refused = None
    volumeMounts: Refused = None

    @property
    def ports(self) -> tuple[Port, ...]:
        return tuple(endpoint.port for endpoint in self.endpoints)


class Scaling(Strict):
    kind: Literal["fixed"] = "fixed"
    instances: Count = 1
    maxInstances: Refused = None


class Backoff(Strict):
    backoff: Seconds = 1.0
    backoffFactor: Annotated[float, Field(ge=1, le=1000, allow_inf_nan=False)] = 1.15
    maxLaunchDelay: Seconds = 300.0


class Placement(Strict):
    acceptedResourceRoles: Annotated[list[str], AfterValidator(_roles)] = []
    constraints: Refused = None


class Scheduling(Strict):
    backoff: Backoff = Backoff()
    placement: Placement = Placement()
    killSelection: Literal["YOUNGEST_FIRST"] = "YOUNGEST_FIRST"
    unreachableStrategy: Refused = None
    upgrade: Refused = None


class PodDefinition(Strict):
    """Defaults are Marathon's, but that a pod takes nothing for itself unless it says so. A `version` is taken from
    those who send back what they read, and does not matter."""

    id: Annotated[AppId, AfterValidator(_pod_id)]
    containers: Annotated[list[Container], Field(min_length=1, max_length=CONTAINERS_MOST)]
    networks: NetworkRefs = Field([], validate_default=True)
    labels: Labels = {}
    environment: dict[EnvName, Text] = {}
    user: User | None = None
    scaling: Scaling = Scaling()
    scheduling: Scheduling = Scheduling()
    executorResources: OwnAmounts = OwnAmounts()
    version: Ignored = Field(None, exclude=True)

    role: Refused = None
    secrets: Refused = None
    volumes: Refused = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        return without_nulls(value)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> PodDefinition:
        problems: dict[Location, str] = {}
        if names := _repeated(container.name for container in self.containers):
            problems["containers",] = f"{', '.join(names)} occurs more than once"
        endpoints = [(index, endpoint) for index, each in enumerate(self.containers) for endpoint in each.endpoints]
        sockets = [f"{e.containerPort}/{protocol}" for _, e in endpoints for protocol in e.port.protocols]
        for repeated in (_repeated(endpoint.name for _, endpoint in endpoints), _repeated(sockets)):
            if repeated:  # the containers have one address
                problems["containers", endpoints[-1][0], "endpoints"] = f"{', '.join(repeated)} occurs more than once"
        if problems:
            raise invalid_at(problems)
        return self

    @model_validator(mode="after")
    def _checks_and_limits_fit(self) -> PodDefinition:
        problems: dict[Location, str] = {}
        for index, container in enumerate(self.containers):
            names = [endpoint.name for endpoint in container.endpoints]
            if container.healthCheck is not None and (said := container.healthCheck.problem(names)):
                problems["containers", index, "healthCheck"] = said
            if container.resourceLimits is not None:
                for name, said in container.resourceLimits.problems(container.resources.resources):
                    problems["containers", index, "resourceLimits", name] = said
        if problems:
            raise invalid_at(problems)
        return self

    def scaled(self, instances: int) -> PodDefinition:
        return self.model_copy(update={"scaling": self.scaling.model_copy(update={"instances": instances})})

    @property
    def instances(self) -> int:
        return self.scaling.instances

    @property
    def network(self) -> str:
        return self.networks[0].network

    @property
    def resources(self) -> Resources:
        """Of one instance."""
        containers = (container.resources.resources for container in self.containers)
        return sum(containers, self.executorResources.resources)

    def kept(self, framework: str, instance: str) -> tuple[PersistentVolume, ...]:
        """No volume of a pod outlives it."""
        return ()

    @property
    def residency(self) -> None:
        return None

    @property
    def backoffSeconds(self) -> float:
        return self.scheduling.backoff.backoff

    @property
    def backoffFactor(self) -> float:
        return self.scheduling.backoff.backoffFactor

    @property
    def maxLaunchDelaySeconds(self) -> float:
        return self.scheduling.backoff.maxLaunchDelay


def _repeated(values: Iterable[Any]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]


def _resources(cpus: float, mem: float, disk: float) -> Resources:
    """As `Definition.resources` rounds."""
    return Resources(ceil(round(cpus * 1000, 6)), ceil(mem), ceil(disk))
