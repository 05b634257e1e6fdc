"""A service's definition: the part of Marathon's app JSON that this version honours (`marathon.raml: App`).

What can't be honoured is refused by name, never ignored. A field that asks for nothing (null, false, 0, an empty list)
is taken as absent, because clients send back whole definitions that they read elsewhere.
"""

from __future__ import annotations

import re
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from frameworks.services import confinement, dependencies, health, networking, options, volumes
from frameworks.services.artifacts import Artifacts, DockerImage, Secrets, fetches, pull_problems
from frameworks.services.confinement import LinuxInfo, Parameters, ResourceLimits
from frameworks.services.constraints import Constraint, Constraints, constraints
from frameworks.services.fields import STRICT, Refused, invalid, invalid_at, without_answers
from frameworks.services.health import HealthChecks, ReadinessChecks
from frameworks.services.networking import NetworkRefs
from frameworks.services.old_forms import IpAddress, modern
from frameworks.services.ports import (
    AnyPort,
    PortDefinition,
    PortMapping,
    definition_problems,
    mapping_problems,
    repeated_ports,
)
from frameworks.services.unreachable import KillSelection, Unreachable
from frameworks.services.values import (
    ANY_ROLE,
    Amount,
    Bounded,
    Count,
    Environment,
    Executor,
    Factor,
    Gpus,
    NoCheck,
    NoExecutor,
    NoRateLimit,
    NoTerminal,
    Positive,
    Role,
    Roles,
    Seconds,
    Text,
    User,
)
from frameworks.services.volumes import NothingIsAbsent, Residency, UpgradeStrategy, Volumes
from model.fetch import Fetch
from model.image import ImageSpec
from model.resources import Resources
from model.task import Port, TaskSpec
from model.volume import PersistentVolume

SEGMENT = r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?"
APP_ID = re.compile(rf"(/{SEGMENT})+")
APP_ID_LENGTH = 160  # a task's id adds a UUID, and must stay a file name with room for a suffix
RESERVED = {"restart", "tasks", "versions"}  # the REST API has these below an app's id


def _app_id(value: str) -> str:
    """Absolute: `web` is `/web`, as in Marathon."""
    path = "/" + value.strip("/")
    if len(path) > APP_ID_LENGTH:
        raise invalid(f"is longer than {APP_ID_LENGTH} characters")
    if not APP_ID.fullmatch(path):
        raise invalid(
            f"{value!r} must be path segments of lower-case letters, digits and hyphens that begin and end with a"
            " letter or digit, like /group/web"
        )
    if path.rpartition("/")[2] in RESERVED:
        raise invalid(f"{value!r} must not end in one of {', '.join(sorted(RESERVED))}")
    return path


def _sound_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if problem := options.problem(key, value):
            raise invalid(problem)
    return labels


def _plain_labels(labels: dict[str, str]) -> dict[str, str]:
    for key in labels:
        if key.startswith(options.PREFIX):
            raise invalid(
                f"label {key}: the prefix {options.PREFIX} says something of services and pods, and nothing here"
            )
    return labels


AppId = Annotated[str, AfterValidator(_app_id)]
Labels = Annotated[dict[str, str], AfterValidator(_sound_labels)]
PlainLabels = Annotated[dict[str, str], AfterValidator(_plain_labels)]


class Strict(BaseModel):
    model_config = STRICT


class Container(Strict):
    """Without a type it is Docker's if it has an image, as in Marathon."""

    type: Literal["MESOS", "DOCKER"] = "MESOS"
    portMappings: list[PortMapping] = []
    docker: DockerImage | None = None
    linuxInfo: LinuxInfo | None = None
    volumes: Volumes = []

    @model_validator(mode="before")
    @classmethod
    def _type_of_its_image(cls, value: object) -> object:
        docker = value.get("docker") if isinstance(value, dict) else None
        if isinstance(value, dict) and "type" not in value and isinstance(docker, dict) and "image" in docker:
            return {**value, "type": "DOCKER"}
        return value

    @model_validator(mode="after")
    def _docker_has_an_image(self) -> Container:
        if self.type == "DOCKER" and (self.docker is None or self.docker.image is None):
            raise invalid('type DOCKER needs docker: {"image": ...}')
        return self

    @model_validator(mode="after")
    def _distinct_ports(self) -> Container:
        if repeated := repeated_ports([mapping.port(False) for mapping in self.portMappings]):
            raise invalid(f"portMappings: {', '.join(repeated)} occurs more than once")
        return self


class Definition(Strict):
    """Defaults are Marathon's."""

    id: AppId
    cmd: Annotated[Text, Field(min_length=1)] | None = None
    args: Annotated[list[Text], Field(min_length=1, max_length=10_000)] | None = None
    user: User | None = None
    env: Environment = {}
    cpus: Positive = 1.0
    mem: Positive = 128.0
    disk: Amount = 0.0
    gpus: Gpus = 0
    instances: Count = 1
    labels: Annotated[Labels, Bounded] = {}
    networks: NetworkRefs = []
    container: Container = Container()
    fetch: Artifacts = []
    secrets: Secrets = {}
    executor: Executor = ""
    role: Role = ANY_ROLE
    acceptedResourceRoles: Roles | None = None
    taskKillGracePeriodSeconds: Seconds = 3.0
    backoffSeconds: Seconds = 1.0
    backoffFactor: Factor = 1.15
    maxLaunchDelaySeconds: Seconds = 300.0
    healthChecks: HealthChecks = []
    readinessChecks: ReadinessChecks = []
    portDefinitions: Annotated[list[PortDefinition], Field(max_length=100)] | None = None
    requirePorts: bool = False
    constraints: Constraints = []
    dependencies: Annotated[list[str], Field(max_length=100)] = []
    residency: Annotated[Residency | None, NothingIsAbsent] = None
    resourceLimits: ResourceLimits | None = None
    killSelection: KillSelection = "YOUNGEST_FIRST"
    unreachableStrategy: Unreachable = None
    upgradeStrategy: UpgradeStrategy = UpgradeStrategy()

    # As they were before Marathon 1.5: what is said in them is in the fields of today by now.
    ports: list[AnyPort] | None = Field(None, exclude=True)
    uris: list[str] | None = Field(None, exclude=True)
    ipAddress: IpAddress | None = Field(None, exclude=True)

    check: NoCheck = None
    executorResources: NoExecutor = None
    storeUrls: Refused = None
    taskRateLimit: NoRateLimit = None
    tty: NoTerminal = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        said = _without_empty(without_answers(without_nulls(value)))
        return dependencies.absolute(volumes.with_defaults(modern(said)))

    @model_validator(mode="after")
    def _one_command(self) -> Definition:
        if self.cmd is not None and self.args is not None:
            raise invalid("exactly one of cmd and args must be given")
        if self.cmd is None and self.args is None and self.image is None:
            raise invalid("exactly one of cmd and args must be given, without an image that says what to execute")
        return self

    @model_validator(mode="after")
    def _ports_and_networks_fit(self) -> Definition:
        names = networking.names_of(self.networks)
        problems = dict(networking.problems(self.networks, self.instances))
        mappings = zip(self._mapped, (each.networkNames for each in self.container.portMappings), strict=True)
        problems |= dict(mapping_problems(tuple(mappings), names, ("container", "portMappings")))
        problems |= dict(definition_problems(self.portDefinitions, self.requirePorts, names))
        if problems:
            raise invalid_at(problems)
        return self

    @model_validator(mode="after")
    def _checks_have_ports(self) -> Definition:
        if problems := dict(health.problems(self.healthChecks, self.readinessChecks, self.task_ports)):
            raise invalid_at(problems)
        return self

    @model_validator(mode="after")
    def _pull_secret_is_known(self) -> Definition:
        config = self.container.docker.pullConfig if self.container.docker is not None else None
        if problems := dict(pull_problems(("container", "docker"), config, self.secrets, self.id)):
            raise invalid_at(problems)
        return self

    @model_validator(mode="after")
    def _confinement_fits(self) -> Definition:
        task = TaskSpec("probe", "services", self.id, self.argv, self.resources, self.network)
        if found := dict(confinement.problems(task, self.options, self.resourceLimits)):
            raise invalid_at(found)
        if path := volumes.overlapping(self.confined(task, volumes.PROBE)):
            raise invalid_at({("container", "volumes"): f"two are to be mounted at {path}"})
        return self

    @model_validator(mode="after")
    def _volumes_fit(self) -> Definition:
        given = self.container.volumes, self.residency, self.upgradeStrategy, self.unreachableStrategy
        if found := dict(volumes.problems(*given)):
            raise invalid_at(found)
        return self

    @property
    def placement(self) -> tuple[Constraint, ...]:
        return constraints(self.constraints)

    @property
    def upgrade(self) -> UpgradeStrategy:
        return self.upgradeStrategy

    @property
    def kept_in_place(self) -> bool:
        """Whether a task has to end before the next one of its instance can begin."""
        return any(each.persistent is not None for each in self.container.volumes)

    def scaled(self, instances: int) -> Definition:
        return self.model_copy(update={"instances": instances})

    def confined(self, task: TaskSpec, instance: str) -> TaskSpec:
        """The task with all that the definition says of how it is confined, and the volumes of this instance."""
        task = volumes.mounted(task, self.container.volumes, instance)
        return confinement.confined(task, self.container.linuxInfo, self.options, self.resourceLimits)

    def kept(self, framework: str, instance: str) -> tuple[PersistentVolume, ...]:
        """The persistent volumes of this instance."""
        return volumes.kept(self.container.volumes, framework, self.id, instance)

    @property
    def options(self) -> Parameters:
        return self.container.docker.parameters if self.container.docker else []

    @property
    def image(self) -> ImageSpec | None:
        docker = self.container.docker
        return docker.of_task(self.container.type, self.cmd is not None, self.secrets) if docker else None

    @property
    def fetches(self) -> tuple[Fetch, ...]:
        return fetches(self.fetch)

    @property
    def argv(self) -> tuple[str, ...]:
        return ("/bin/sh", "-c", self.cmd) if self.cmd is not None else tuple(self.args or ())

    @property
    def network(self) -> str:
        return networking.names_of(self.networks)[0]

    @property
    def task_ports(self) -> tuple[Port, ...]:
        """Those of the node that are yet to be chosen are 0."""
        if self.network == networking.HOST:
            return tuple(each.host_port(self.requirePorts) for each in self.definitions)
        return self._mapped

    @property
    def _mapped(self) -> tuple[Port, ...]:
        bridged = self.network == networking.BRIDGE
        return tuple(mapping.port(bridged) for mapping in self.container.portMappings)

    @property
    def service_ports(self) -> tuple[int, ...]:
        """One for each of its ports; 0: it has none."""
        if self.network == networking.HOST:
            return tuple(each.port for each in self.definitions)
        return tuple(mapping.servicePort or 0 for mapping in self.container.portMappings)

    @property
    def definitions(self) -> tuple[PortDefinition, ...]:
        """Of ports in the node's network."""
        return tuple(self.portDefinitions or ())

    @property
    def shown_ports(self) -> list[int] | None:
        """As answers have them beside `portDefinitions`."""
        return [each.port for each in self.definitions] if self.network == networking.HOST else None

    @property
    def resources(self) -> Resources:
        """Rounded up to what we hand out; `round` takes off what binary fractions add, so that 0.57 is 570."""
        return Resources(ceil(round(self.cpus * 1000, 6)), ceil(self.mem), ceil(self.disk))


def _without_empty(body: Any) -> Any:
    """An empty list says no more than that a field is there, where it would not do for an answer."""
    if not isinstance(body, dict):
        return body
    return {key: value for key, value in body.items() if value != [] or key not in ("args", "acceptedResourceRoles")}


class TaskIds(Strict):
    """Which tasks are to end."""

    ids: Annotated[list[str], Field(max_length=100_000)]


def without_nulls(value: Any) -> Any:
    """A null means "not set", at every depth of an object."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
