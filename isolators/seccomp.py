"""Which system calls a container may make: the default profile, one of its own in Docker's format, or all of them.

Returns `linux.seccomp` for any runtime, and writes the same as a program to `seccomp.bpf` in the container's directory,
which our launcher loads as it is. It is compiled once for each profile and set of capabilities.

A profile of the task's own may be stricter than the default. What lets more through, and `unconfined`, takes a right
that the node's configuration gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from isolators.base import BundlePart, Container, Isolator, IsolatorError, Unsupported
from isolators.capabilities import granted
from isolators.profiles import docker
from isolators.profiles.docker import Profile, ProfileError
from isolators.rights import Rights
from isolators.seccomp_filter import FilterError, compile_filter, knows

UNCONFINED = "unconfined"
FILTER_FILE = "seccomp.bpf"
PROFILE_MAX_BYTES = 1 << 20
MAX_PROGRAM_BYTES = 4096 * 8  # BPF_MAXINSNS
FILTERS = 64  # kept compiled, about 30 KiB each
NEEDS_RIGHT = "set unconfined_seccomp in this node's agent.toml to permit it"


@dataclass(frozen=True, slots=True)
class Filter:
    """`seccomp` is `linux.seccomp`, `program` the same for the kernel. `beyond` is what the default does not permit."""

    seccomp: dict[str, Any]
    program: bytes
    beyond: tuple[str, ...]


class SeccompIsolator(Isolator):
    name = "seccomp"

    def __init__(self, rights: Rights) -> None:
        self._rights = rights

    async def prepare(self, container: Container) -> BundlePart:
        task = container.task
        if task.seccomp == UNCONFINED:
            self._need_right("seccomp: unconfined is not permitted")
            return {}
        found = _filter(task.seccomp, frozenset(granted(task)))
        if found.beyond:
            self._need_right(f"seccomp: the profile permits what the default does not: {', '.join(found.beyond)}")
        _write(container, found.program)
        return {"linux": {"seccomp": found.seccomp}}

    def _need_right(self, reason: str) -> None:
        if not self._rights.unconfined:
            raise Unsupported(f"{reason}: {NEEDS_RIGHT}")


@lru_cache(maxsize=FILTERS)
def _filter(profile: str, capabilities: frozenset[str]) -> Filter:
    """Raises Unsupported."""
    machine = docker.this_machine()
    default = docker.resolve(docker.default(), capabilities, machine)
    seccomp = docker.resolve(_parse(profile), capabilities, machine) if profile else default
    try:
        program = compile_filter(seccomp)
    except FilterError as error:
        raise Unsupported(str(error)) from error
    if len(program) > MAX_PROGRAM_BYTES:
        raise Unsupported(f"seccomp: the profile makes a program of {len(program)} bytes, {MAX_PROGRAM_BYTES} at most")
    return Filter(seccomp, program, tuple(docker.excess(seccomp, default)))


def _parse(text: str) -> Profile:
    """A name that nobody knows is refused: it may be the misspelt one that was to be denied."""
    if len(text) > PROFILE_MAX_BYTES:
        raise Unsupported(f"seccomp: a profile has at most {PROFILE_MAX_BYTES} bytes")
    try:
        profile = docker.parse(text)
    except ProfileError as error:
        raise Unsupported(f"seccomp: neither {UNCONFINED} nor a profile in Docker's format: {error}") from error
    common = {name for rule in docker.default().syscalls for name in rule.all_names}
    for name in {name for rule in profile.syscalls for name in rule.all_names} - common:
        if not knows(name):
            raise Unsupported(f"seccomp: no system call is named {name!r}")
    return profile


def _write(container: Container, program: bytes) -> None:
    path = container.directory / FILTER_FILE
    try:
        path.write_bytes(program)
    except OSError as error:
        raise IsolatorError(f"write {path}: {error.strerror}") from error
