"""A job's definition: the part of Metronome's job JSON that this version honours (`jobs.raml: JobSpec`).

As for services, what can't be honoured is refused by name. The parts that Metronome has from Marathon are those of
`frameworks/services`.
"""

from __future__ import annotations

import re
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

from frameworks.services import confinement, networking, volumes
from frameworks.services.artifacts import Artifacts, DockerImage, Reference, Secrets, fetches, pull_problems
from frameworks.services.constraints import MOST, Constraint, problem_of
from frameworks.services.definition import PlainLabels, without_nulls
from frameworks.services.fields import STRICT, Whole, invalid, invalid_at
from frameworks.services.networking import ADDRESS, NetworkRefs
from frameworks.services.values import Amount, Environment, Gpus, Seconds, Text, User
from frameworks.services.volumes import Volumes
from model.fetch import Fetch
from model.image import ImageSpec, Rules
from model.resources import Resources
from model.task import TaskSpec

SEGMENT = "[a-z0-9]+(-+[a-z0-9]+)*"
JOB_ID = re.compile(rf"{SEGMENT}(\.{SEGMENT})*")
JOB_ID_LENGTH = 128  # a task's id adds the run's and must stay a file name with room for a suffix
RESERVED = {"events"}  # our own view has it beside the jobs
DEPENDENCIES_MOST = 1000
YEAR_S = 366 * 86_400
PROBE = "probe"


class Strict(BaseModel):
    model_config = STRICT


def _job_id(value: str) -> str:
    if len(value) > JOB_ID_LENGTH:
        raise invalid(f"is longer than {JOB_ID_LENGTH} characters")
    if not JOB_ID.fullmatch(value):
        raise invalid(
            f"{value!r} must be names with dots between, of lower-case letters, digits and hyphens that begin and end"
            " with a letter or digit, like reports.daily"
        )
    if value in RESERVED:
        raise invalid(f"{value!r} must not be one of {', '.join(sorted(RESERVED))}")
    return value


def _not_privileged(value: bool) -> bool:
    if value:
        raise invalid("privileged containers are not run, for they are none: ask for single capabilities instead")
    return value


JobId = Annotated[str, AfterValidator(_job_id)]
Command = Annotated[Text, Field(min_length=1)]
Arguments = Annotated[list[Text], Field(max_length=10_000)]
Cpus = Annotated[float, Field(ge=0.01, le=2**40, allow_inf_nan=False), Whole]
Mem = Annotated[float, Field(ge=32, le=2**40, allow_inf_nan=False), Whole]
Deadline = Annotated[int, Field(ge=1, le=YEAR_S)]


class ConstraintSpec(Strict):
    """`EQ` is how `IS` was called."""

    attribute: Annotated[str, Field(min_length=1, max_length=256)]
    operator: Literal["IS", "LIKE", "UNLIKE"]
    value: str

    @field_validator("operator", mode="before")
    @classmethod
    def _of_today(cls, value: object) -> object:
        return "IS" if value == "EQ" else value

    @model_validator(mode="after")
    def _sound(self) -> ConstraintSpec:
        if problem := problem_of((self.attribute, self.operator, self.value)):
            raise invalid(problem)
        return self


class Placement(Strict):
    constraints: Annotated[list[ConstraintSpec], Field(max_length=MOST)] = []


class Restart(Strict):
    """`activeDeadlineSeconds` after its run was made a job is not tried again."""

    policy: Literal["NEVER", "ON_FAILURE"] = "NEVER"
    activeDeadlineSeconds: Annotated[int, Field(ge=0, le=YEAR_S)] | None = None


class Docker(DockerImage):
    @model_validator(mode="after")
    def _has_an_image(self) -> Docker:
        if self.image is None:
            raise invalid("needs an image")
        return self


class UcrImage(Strict):
    id: Reference
    kind: Literal["docker", "appc"] = "docker"
    forcePull: bool = False

    @field_validator("kind")
    @classmethod
    def _of_docker(cls, value: str) -> str:
        if value != "docker":
            raise invalid(f"{value!r} is not supported by this version: docker is")
        return value


class Ucr(Strict):
    image: UcrImage
    privileged: Annotated[bool, AfterValidator(_not_privileged)] = False


class Dependency(Strict):
    id: JobId


class RunSpec(Strict):
    """Defaults are Metronome's."""

    cpus: Cpus = 1.0
    mem: Mem = 128.0
    disk: Amount = 0.0
    gpus: Gpus = 0
    cmd: Command | None = None
    args: Arguments | None = None
    user: User | None = None
    env: Environment = {}
    placement: Placement = Placement()
    artifacts: Artifacts = []
    maxLaunchDelay: Deadline = 3600
    docker: Docker | None = None
    ucr: Ucr | None = None
    volumes: Volumes = []
    restart: Restart = Restart()
    taskKillGracePeriodSeconds: Seconds | None = None
    secrets: Secrets = {}
    networks: NetworkRefs = []

    @model_validator(mode="after")
    def _one_thing_to_run(self) -> RunSpec:
        if self.docker is not None and self.ucr is not None:
            raise invalid("at most one of docker and ucr must be given")
        if self.cmd is not None and self.args:
            raise invalid("exactly one of cmd and args must be given")
        if self.cmd is None and not self.args and self.image is None:
            raise invalid("exactly one of cmd and args must be given, without an image that says what to execute")
        return self

    @model_validator(mode="after")
    def _networks_fit(self) -> RunSpec:
        problems = dict(networking.problems(self.networks, 1))
        for index, each in enumerate(self.networks):
            if each.label(ADDRESS):
                problems["networks", index, "labels"] = f"{ADDRESS}: several runs can not have one address"
        if problems:
            raise invalid_at(problems)
        return self

    @model_validator(mode="after")
    def _secrets_are_for_images(self) -> RunSpec:
        config = self.docker.pullConfig if self.docker is not None else None
        used = {config.secret} if config is not None else set()
        if unused := sorted(self.secrets.keys() - used):
            said = "is not used: docker/pullConfig is what can use it"
            raise invalid_at({("secrets", name): said for name in unused})
        if config is not None and config.secret not in self.secrets:
            problem = f"{config.secret!r} is none of the definition's secrets"
            raise invalid_at({("docker", "pullConfig", "secret"): problem})
        return self

    @model_validator(mode="after")
    def _confinement_fits(self) -> RunSpec:
        task = TaskSpec(PROBE, "jobs", PROBE, self.argv, self.resources, self.network)
        found = {place[1:]: said for place, said in confinement.problems(task, self.options, None)}
        for index, volume in enumerate(self.volumes):
            if volume.persistent is not None:
                found["volumes", index, "persistent"] = "is not supported by this version for jobs: remove it"
        if found:
            raise invalid_at(found)
        if path := volumes.overlapping(self.confined(task)):
            raise invalid_at({("volumes",): f"two are to be mounted at {path}"})
        return self

    def confined(self, task: TaskSpec) -> TaskSpec:
        """The task with its volumes and with all that the definition says of how it is confined."""
        return confinement.confined(volumes.mounted(task, self.volumes, task.id), None, self.options, None)

    @property
    def options(self) -> confinement.Parameters:
        return self.docker.parameters if self.docker is not None else []

    @property
    def image(self) -> ImageSpec | None:
        if self.docker is not None:
            return self.docker.of_task("DOCKER", self.cmd is not None, self.secrets)
        if self.ucr is not None:
            image = self.ucr.image
            return ImageSpec(image.id, image.forcePull, Rules.MESOS, arguments=self.cmd is None)
        return None

    @property
    def fetches(self) -> tuple[Fetch, ...]:
        return fetches(self.artifacts)

    @property
    def argv(self) -> tuple[str, ...]:
        return ("/bin/sh", "-c", self.cmd) if self.cmd is not None else tuple(self.args or ())

    @property
    def network(self) -> str:
        return networking.names_of(self.networks)[0]

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        return tuple(Constraint(each.attribute, each.operator, each.value) for each in self.placement.constraints)

    @property
    def resources(self) -> Resources:
        """Rounded as a service's are."""
        return Resources(ceil(round(self.cpus * 1000, 6)), ceil(self.mem), ceil(self.disk))


class Definition(Strict):
    id: JobId
    description: Annotated[str, Field(max_length=10_000)] | None = None
    dependencies: Annotated[list[Dependency], Field(max_length=DEPENDENCIES_MOST)] = []
    labels: PlainLabels = {}
    run: RunSpec

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        return without_nulls(value)

    @model_validator(mode="after")
    def _depends_once(self) -> Definition:
        names = self.depends_on
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise invalid_at({("dependencies",): f"{', '.join(repeated)} occurs more than once"})
        return self

    @model_validator(mode="after")
    def _pull_secret_is_its_own(self) -> Definition:
        config = self.run.docker.pullConfig if self.run.docker is not None else None
        owner = "/" + self.id.replace(".", "/")
        if problems := dict(pull_problems(("docker",), config, self.run.secrets, owner)):
            raise invalid_at({("run", *place): said for place, said in problems.items()})
        return self

    @property
    def depends_on(self) -> tuple[str, ...]:
        return tuple(each.id for each in self.dependencies)


class Overrides(Strict):
    """What is different in one run. `env` is added to the job's."""

    cmd: Command | None = None
    args: Arguments | None = None
    env: Environment = {}
    cpus: Cpus | None = None
    mem: Mem | None = None
    disk: Amount | None = None
    placement: Placement | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        return without_nulls(value)

    @model_validator(mode="after")
    def _one_command(self) -> Overrides:
        if self.cmd is not None and self.args:
            raise invalid("exactly one of cmd and args must be given")
        return self

    def applied(self, definition: Definition) -> Definition:
        """Raises ValidationError: what they make of the job can not be run."""
        given = self.model_dump(exclude_unset=True)
        if not given:
            return definition
        run: dict[str, Any] = definition.run.model_dump(exclude_none=True)
        if "cmd" in given or "args" in given:
            run = {key: value for key, value in run.items() if key not in ("cmd", "args")}
        run |= given | {"env": {**run["env"], **given.get("env", {})}}
        return Definition.model_validate(definition.model_dump(exclude_none=True) | {"run": run})
