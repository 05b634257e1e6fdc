"""The devices controller: a list in the kernel on version 1, a program attached to the cgroup in version 2.

A container has the whole list or, where the node has no devices controller at all, none.
"""

from __future__ import annotations

import os
from pathlib import Path

from cgroupspy.interfaces import BaseFileInterface

from isolators.cgroup import bpf
from isolators.cgroup.controller import Controller, Files, open_files
from isolators.cgroup.device_program import program
from isolators.cgroup.devices import Rule
from isolators.cgroup.limits import Limits


class DevicesFilesV1(Files):  # type: ignore[misc]
    """cgroup-v1/devices.rst"""

    allow = BaseFileInterface("devices.allow", writeonly=True)
    deny = BaseFileInterface("devices.deny", writeonly=True)
    list = BaseFileInterface("devices.list", readonly=True)


class DevicesV1(Controller):
    name = "devices"

    def limit(self, directory: Path, limits: Limits) -> None:
        """A list that is right is left alone: `deny a` takes away everything, and what runs would notice."""
        files = open_files(DevicesFilesV1, directory)
        if _read(files.list) == {str(rule) for rule in limits.devices}:
            return
        files.deny = "a"
        for rule in limits.devices:
            files.allow = str(rule)


class DevicesV2(Controller):
    """A part of the core: no controller has to be switched on for it."""

    def limit(self, directory: Path, limits: Limits) -> None:
        attach(directory, limits.devices)


def attach(directory: Path, rules: tuple[Rule, ...]) -> None:
    """In place of the program that is there, if one is, without a moment between the two."""
    cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        loaded = bpf.load_device_program(program(rules))
        try:
            bpf.attach_to_cgroup(loaded, cgroup)
        finally:
            os.close(loaded)
    finally:
        os.close(cgroup)


def _read(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines()}
