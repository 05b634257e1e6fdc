"""A pod's definition: the part of Marathon's pod JSON that this version honours (`pod.raml`).

As with apps (`frameworks/services/definition.py`), what can't be honoured is refused by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from frameworks.services import networking
from frameworks.services.artifacts import Secrets, pull_problems
from frameworks.services.confinement import LinuxInfo
from frameworks.services.constraints import MOST as MOST_CONSTRAINTS
from frameworks.services.constraints import Constraint, constraints, problem_of
from frameworks.services.definition import AppId, Labels, without_nulls
from frameworks.services.fields import STRICT, Location, Refused, invalid, invalid_at
from frameworks.services.networking import NetworkRef, NetworkRefs
from frameworks.services.pods import volumes
from frameworks.services.pods.container import Container, OwnAmounts
from frameworks.services.pods.endpoints import endpoint_problems
from frameworks.services.pods.volumes import Volume, Volumes
from frameworks.services.ports import repeated_hosts, repeated_ports
from frameworks.services.unreachable import KillSelection, Unreachable
from frameworks.services.values import (
    ANY_ROLE,
    Bounded,
    Count,
    Environment,
    Factor,
    NoSharedCgroup,
    Role,
    Roles,
    Seconds,
    User,
)
from frameworks.services.volumes import UpgradeStrategy
from model.resources import Resources
from model.volume import PersistentVolume

POD_ID_LENGTH = 90  # a task's id adds a UUID and a container's name, and must stay a file name with room for a suffix
CONTAINERS_MOST = 32


Ignored = Annotated[str | None, AfterValidator(lambda value: None)]


def _pod_id(value: str) -> str:
    if len(value) > POD_ID_LENGTH:
        raise invalid(f"is longer than {POD_ID_LENGTH} characters")
    return value


def _networks(value: list[NetworkRef]) -> list[NetworkRef]:
    if any(each.addresses for each in value):
        raise invalid(f"label {networking.ADDRESS} is not supported for pods")
    return value


class Strict(BaseModel):
    model_config = STRICT


class Scaling(Strict):
    kind: Literal["fixed"] = "fixed"
    instances: Count = 1
    maxInstances: Refused = None


class Backoff(Strict):
    backoff: Seconds = 1.0
    backoffFactor: Factor = 1.15
    maxLaunchDelay: Seconds = 300.0


class PodConstraint(Strict):
    fieldName: str
    operator: str
    value: str | None = None

    @model_validator(mode="after")
    def _means_something(self) -> PodConstraint:
        if problem := problem_of(self.words):
            raise invalid(problem)
        return self

    @property
    def words(self) -> list[str]:
        return [self.fieldName, self.operator, *([self.value] if self.value is not None else [])]


class Placement(Strict):
    acceptedResourceRoles: Roles = []
    constraints: Annotated[list[PodConstraint], Field(max_length=MOST_CONSTRAINTS)] = []


class Scheduling(Strict):
    backoff: Backoff = Backoff()
    placement: Placement = Placement()
    killSelection: KillSelection = "YOUNGEST_FIRST"
    unreachableStrategy: Unreachable = None
    upgrade: UpgradeStrategy = UpgradeStrategy()


class PodDefinition(Strict):
    """Defaults are Marathon's, but that a pod takes nothing for itself unless it says so. A `version` is taken from
    those who send back what they read, and does not matter."""

    id: Annotated[AppId, AfterValidator(_pod_id)]
    containers: Annotated[list[Container], Field(min_length=1, max_length=CONTAINERS_MOST)]
    networks: Annotated[NetworkRefs, AfterValidator(_networks)] = []
    labels: Annotated[Labels, Bounded] = {}
    environment: Environment = {}
    user: User | None = None
    scaling: Scaling = Scaling()
    scheduling: Scheduling = Scheduling()
    executorResources: OwnAmounts = OwnAmounts()
    volumes: Volumes = []
    secrets: Secrets = {}
    role: Role = ANY_ROLE
    linuxInfo: LinuxInfo = LinuxInfo()
    version: Ignored = Field(None, exclude=True)

    legacySharedCgroups: NoSharedCgroup = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        return _published(without_nulls(value))

    @model_validator(mode="after")
    def _names_are_distinct(self) -> PodDefinition:
        problems: dict[Location, str] = {}
        if names := _repeated(container.name for container in self.containers):
            problems["containers",] = f"{', '.join(names)} occurs more than once"
        endpoints = [(index, endpoint) for index, each in enumerate(self.containers) for endpoint in each.endpoints]
        ports = [endpoint.port for _, endpoint in endpoints]
        if repeated := repeated_ports(ports) or repeated_hosts(ports):  # the containers have one address
            problems["containers", endpoints[-1][0], "endpoints"] = f"{', '.join(repeated)} occurs more than once"
        if problems:
            raise invalid_at(problems)
        return self

    @model_validator(mode="after")
    def _endpoints_and_networks_fit(self) -> PodDefinition:
        names = networking.names_of(self.networks)
        problems = dict(networking.problems(self.networks, self.instances))
        for index, container in enumerate(self.containers):
            problems |= dict(endpoint_problems(container.endpoints, names, ("containers", index, "endpoints")))
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

    @model_validator(mode="after")
    def _volumes_and_images_can_be_had(self) -> PodDefinition:
        problems = dict(volumes.problems(self.volumes, [container.volumeMounts for container in self.containers]))
        for index, container in enumerate(self.containers):
            if container.image is not None:
                place: Location = ("containers", index, "image")
                problems |= dict(pull_problems(place, container.image.pullConfig, self.secrets, self.id))
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
        return networking.names_of(self.networks)[0]

    @property
    def volumes_by_name(self) -> dict[str, Volume]:
        return {volume.name: volume for volume in self.volumes}

    @property
    def resources(self) -> Resources:
        """Of one instance."""
        containers = (container.resources.resources for container in self.containers)
        return sum(containers, self.executorResources.resources)

    def kept(self, framework: str, instance: str) -> tuple[PersistentVolume, ...]:
        """No volume of a pod outlives it."""
        return ()

    @property
    def placement(self) -> tuple[Constraint, ...]:
        return constraints(each.words for each in self.scheduling.placement.constraints)

    @property
    def upgrade(self) -> UpgradeStrategy:
        return self.scheduling.upgrade

    @property
    def kept_in_place(self) -> bool:
        return False

    @property
    def killSelection(self) -> str:
        return self.scheduling.killSelection

    @property
    def unreachableStrategy(self) -> Unreachable:
        return self.scheduling.unreachableStrategy

    @property
    def dependencies(self) -> list[str]:
        """What a pod depends on, its group does."""
        return []

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


def _published(body: Any) -> Any:
    """But in a network of containers, each endpoint has a port of the node, as in Marathon."""
    networks = body.get("networks") if isinstance(body, dict) else None
    if not isinstance(networks, list | None) or not isinstance(body.get("containers"), list):
        return body
    if any(isinstance(each, dict) and each.get("mode", "container") == "container" for each in networks or ()):
        return body
    return {**body, "containers": [_with_host_ports(container) for container in body["containers"]]}


def _with_host_ports(container: Any) -> Any:
    endpoints = container.get("endpoints") if isinstance(container, dict) else None
    if not isinstance(endpoints, list):
        return container
    return {
        **container,
        "endpoints": [{"hostPort": 0, **each} if isinstance(each, dict) else each for each in endpoints],
    }


def _repeated(values: Iterable[Any]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]
