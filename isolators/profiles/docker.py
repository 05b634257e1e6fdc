"""Docker's format of seccomp profiles, and what is left of one on this machine for a container with given capabilities.

The format is OCI's `linux.seccomp` plus conditions: a rule may apply only with a capability, on an architecture or from
a kernel on. `resolve` decides them, so that what it returns is plain OCI that any runtime understands.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Action = Literal[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRAP",
]
Operator = Literal[
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
]
Word = Annotated[int, Field(ge=0, lt=2**64)]
Errno = Annotated[int, Field(ge=0, le=4095)]  # MAX_ERRNO: a greater one would not be seen as an error

PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")
# uname(2)'s machine -> the name that Docker's conditions use (Go's GOARCH) and the architecture of its own programs.
MACHINES = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}
# Never reachable, whatever a profile says: its numbers are those of x86-64 with a bit set, and filters forget that.
X32 = "SCMP_ARCH_X32"


class ProfileError(ValueError):
    """Not a profile. The text names the place."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Argument(_Strict):
    """With SCMP_CMP_MASKED_EQ `value` is the mask and `valueTwo` what is left under it."""

    index: Annotated[int, Field(ge=0, le=5)]
    value: Word
    valueTwo: Word = 0
    op: Operator


class Condition(_Strict):
    caps: list[str] = []
    arches: list[str] = []
    minKernel: Annotated[str, Field(pattern=r"^[0-9]{1,4}\.[0-9]{1,4}$")] | None = None


class Rule(_Strict):
    names: list[str] = []
    name: str = ""
    action: Action
    errnoRet: Errno | None = None
    args: list[Argument] | None = None
    comment: str = ""
    includes: Condition = Condition()
    excludes: Condition = Condition()

    @property
    def all_names(self) -> list[str]:
        return [self.name, *self.names] if self.name else self.names


# On 32-bit x86. Its arguments are in memory, out of a filter's sight, so socket families can't be told apart. It has to
# be said: for a rule about `socket`, with whatever condition, libseccomp lets socketcall(SYS_SOCKET) through too.
NO_SOCKETCALL = Rule(names=["socketcall"], action="SCMP_ACT_ERRNO", errnoRet=errno.ENOSYS)


class Architecture(_Strict):
    architecture: str
    subArchitectures: list[str] | None = None


class Profile(_Strict):
    defaultAction: Action
    defaultErrnoRet: Errno | None = None
    architectures: list[str] = []
    archMap: list[Architecture] = []
    syscalls: list[Rule] = []


@dataclass(frozen=True, slots=True)
class Machine:
    """`arch` as in `MACHINES`, `kernel` as (6, 18)."""

    arch: str
    native: str
    kernel: tuple[int, int]


@cache
def default() -> Profile:
    return parse(files("isolators.profiles").joinpath("default.json").read_bytes())


def parse(text: str | bytes) -> Profile:
    """Raises ProfileError."""
    try:
        profile = Profile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise ProfileError(f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}") from error
    for index, rule in enumerate(profile.syscalls):
        _check(rule, f"syscalls.{index}")
    return profile


@cache
def this_machine() -> Machine:
    system = os.uname()
    major, minor = _version(system.release)
    arch, native = MACHINES[system.machine]
    return Machine(arch, native, (major, minor))


def resolve(profile: Profile, capabilities: frozenset[str], machine: Machine) -> dict[str, Any]:
    """`linux.seccomp` (config-linux.md, "Seccomp") for a container that may hold `capabilities`."""
    resolved: dict[str, Any] = {"defaultAction": profile.defaultAction}
    if profile.defaultErrnoRet is not None:
        resolved["defaultErrnoRet"] = profile.defaultErrnoRet
    resolved["architectures"] = _architectures(profile, machine)
    rules = [rule for rule in profile.syscalls if rule.all_names and _applies(rule, capabilities, machine)]
    if profile.defaultAction not in PERMISSIVE and all("socketcall" not in rule.all_names for rule in rules):
        rules.append(NO_SOCKETCALL)
    resolved["syscalls"] = [_syscall(rule) for rule in rules]
    return resolved


def excess(own: dict[str, Any], default: dict[str, Any]) -> list[str]:
    """What the resolved profile `own` lets through and `default` does not: names of system calls, or `*` for all."""
    if own["defaultAction"] in PERMISSIVE:
        return ["*"]
    granted = {grant for rule in default["syscalls"] if rule["action"] in PERMISSIVE for grant in _grants(rule)}
    asked = {grant for rule in own["syscalls"] if rule["action"] in PERMISSIVE for grant in _grants(rule)}
    return sorted({name for name, args in asked if not {(name, ""), (name, args)} & granted})


def _grants(rule: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(rule.get("args") or "")) for name in rule["names"]]


def _check(rule: Rule, place: str) -> None:
    """Two conditions on one argument are an "and" to one runtime and an "or" to another."""
    indexes = [argument.index for argument in rule.args or []]
    if len(set(indexes)) != len(indexes):
        raise ProfileError(f"{place}.args: two conditions on one argument: use a rule for each")


def _applies(rule: Rule, capabilities: frozenset[str], machine: Machine) -> bool:
    """All that is included must be there, nothing that is excluded may be."""
    wanted, unwanted = rule.includes, rule.excludes
    return (
        capabilities.issuperset(wanted.caps)
        and not capabilities.intersection(unwanted.caps)
        and (not wanted.arches or machine.arch in wanted.arches)
        and machine.arch not in unwanted.arches
        and (wanted.minKernel is None or machine.kernel >= _version(wanted.minKernel))
        and (unwanted.minKernel is None or machine.kernel < _version(unwanted.minKernel))
    )


def _architectures(profile: Profile, machine: Machine) -> list[str]:
    """The native one always: a container without it could not even exit."""
    subordinate = [
        name
        for entry in profile.archMap
        if entry.architecture == machine.native
        for name in entry.subArchitectures or []
    ]
    names = dict.fromkeys([machine.native, *profile.architectures, *subordinate])
    return [name for name in names if name != X32]


def _syscall(rule: Rule) -> dict[str, Any]:
    syscall: dict[str, Any] = {"names": rule.all_names, "action": rule.action}
    if rule.errnoRet is not None:
        syscall["errnoRet"] = rule.errnoRet
    if rule.args:
        syscall["args"] = [argument.model_dump() for argument in rule.args]
    return syscall


def _version(release: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", release)
    assert match is not None, release
    return int(match[1]), int(match[2])
