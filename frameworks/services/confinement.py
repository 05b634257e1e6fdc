"""The parts of a definition that say how its tasks are confined: Marathon's `container.linuxInfo` (`marathon.raml:
LinuxInfo`), `container.docker.parameters` and `resourceLimits`, and what they make of a task.

Parameters are tried on a task when they are read, so that what is wrong with one is told with its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from frameworks.services import parameters
from frameworks.services.fields import STRICT, Location, invalid
from model.resources import Resources
from model.task import TaskSpec

PARAMETERS_MOST = 256
UNLIMITED = 1 << 40  # thousandths, MiB: a node gives all that it has
DEFAULT_PROFILE = "default"
# Whatever the app asks for, no option fails for want of it here.
PROBE = TaskSpec("probe", "services", "/probe", ("true",), Resources(1, 0), "bridge")


class Strict(BaseModel):
    model_config = STRICT


class Seccomp(Strict):
    """Docker's profile, or none."""

    profileName: str | None = None
    unconfined: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> Seccomp:
        if self.unconfined == (self.profileName is not None):
            raise invalid("exactly one of profileName and unconfined must be given")
        if self.profileName not in (None, DEFAULT_PROFILE):
            raise invalid(
                f"no profile is named {self.profileName!r}: there is {DEFAULT_PROFILE!r}, and one of your own goes into"
                " the docker parameter security-opt, as seccomp={...}"
            )
        return self


class IpcInfo(Strict):
    mode: Literal["PRIVATE", "SHARE_PARENT"]
    shmSize: Annotated[int, Field(ge=1, le=1 << 20)] | None = None

    @model_validator(mode="after")
    def _private(self) -> IpcInfo:
        if self.mode != "PRIVATE":
            raise invalid("mode must be PRIVATE: there is no parent to share with")
        return self


class LinuxInfo(Strict):
    seccomp: Seccomp | None = None
    ipcInfo: IpcInfo | None = None


class Parameter(Strict):
    key: str
    value: str

    @field_validator("key")
    @classmethod
    def _known(cls, key: str) -> str:
        if said := parameters.key_problem(key):
            raise invalid(said)
        return key

    @field_validator("value")
    @classmethod
    def _sound(cls, value: str, info: ValidationInfo) -> str:
        if "key" in info.data:
            try:
                parameters.applied(PROBE, info.data["key"], value)
            except ValueError as error:
                raise invalid(str(error)) from None
        return value


Parameters = Annotated[list[Parameter], Field(max_length=PARAMETERS_MOST)]
Limit = Annotated[float, Field(gt=0, le=UNLIMITED, allow_inf_nan=False)] | Literal["unlimited"]


class ResourceLimits(Strict):
    """Of what a task may use while nobody else needs it."""

    cpus: Limit | None = None
    mem: Limit | None = None

    def problems(self, asked: Resources) -> Iterator[tuple[str, str]]:
        """What is less than is asked for, by the field's name."""
        for name, limit, least, unit in (("cpus", self.cpus, asked.cpus, 1000), ("mem", self.mem, asked.mem, 1)):
            if limit is not None and _amount(limit, unit) < least:
                yield name, f"must be at least the {least / unit:g} that the app asks for"


def problems(
    task: TaskSpec, options: Sequence[Parameter], limits: ResourceLimits | None
) -> Iterator[tuple[Location, str]]:
    """What does not go with what the app asks for, each with its place."""
    for index, option in enumerate(options):
        try:
            parameters.applied(task, option.key, option.value)
        except ValueError as error:
            yield ("container", "docker", "parameters", index, "value"), str(error)
    for name, problem in (limits or ResourceLimits()).problems(task.resources):
        yield ("resourceLimits", name), problem


def confined(
    task: TaskSpec, linux: LinuxInfo | None, options: Sequence[Parameter], limits: ResourceLimits | None
) -> TaskSpec:
    """The task as the definition wants it confined."""
    if linux is not None and linux.seccomp is not None and linux.seccomp.unconfined:
        task = replace(task, seccomp="unconfined")
    if linux is not None and linux.ipcInfo is not None and linux.ipcInfo.shmSize is not None:
        task = replace(task, shm=linux.ipcInfo.shmSize)
    task = bounded(task, limits)
    for option in options:
        task = parameters.applied(task, option.key, option.value)
    return task


def bounded(task: TaskSpec, limits: ResourceLimits | None) -> TaskSpec:
    if limits is None:
        return task
    amounts = replace(task.limits, cpu_limit=_amount(limits.cpus, 1000), mem_limit=_amount(limits.mem, 1))
    return replace(task, limits=amounts)


def _amount(limit: float | str | None, unit: int) -> int:
    if limit is None:
        return 0
    return UNLIMITED if isinstance(limit, str) else ceil(round(limit * unit, 6))
