"""`container.docker.parameters`: options of `docker run`, as Marathon passes them on, for what a task of ours has.

Each option changes the task, or is refused by name. Those that say what another field of the definition says (`memory`,
`env`) name that field.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from model.capability import ALL, KNOWN
from model.limits import Device, IoLimit, TaskLimits, Tmpfs
from model.mounts import tmpfs_problem
from model.signals import parse_signal
from model.sysctl import problem as sysctl_problem
from model.task import Rlimit, TaskSpec

MIB = 1 << 20
AMOUNT = re.compile(r"([0-9]{1,15})([kmg]?)b?", re.IGNORECASE)
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
NUMBER = re.compile(r"[0-9]{1,12}")
CPUSET = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*")
RLIMITS = frozenset(name for name in dir(resource) if name.startswith("RLIMIT_"))
UNLIMITED = 2**63 - 1  # of an rlimit: as much as can be written
PIDS_MOST = 1 << 22
BOOLEANS = {"true": True, "1": True, "": True, "false": False, "0": False}
# Said elsewhere in the definition.
INSTEAD = {
    "memory": "mem",
    "cpus": "cpus",
    "cpu-quota": "cpus",
    "cpu-period": "cpus",
    "cpu-shares": "cpus",
    "env": "env",
    "label": "labels",
    "network": "networks",
    "net": "networks",
    "publish": "container/portMappings",
    "volume": "container/volumes",
    "entrypoint": "args",
    "stop-timeout": "taskKillGracePeriodSeconds",
}

Apply = Callable[[TaskSpec, str], TaskSpec]


def applied(task: TaskSpec, key: str, value: str) -> TaskSpec:
    """The task with one more option. Raises ValueError that says what is wrong with the value."""
    return PARAMETERS[key](task, value)


def key_problem(key: str) -> str:
    """Why there is no such option here; empty when there is."""
    if key in PARAMETERS:
        return ""
    if key in INSTEAD:
        return f"{key!r} is not supported here: use {INSTEAD[key]}"
    return f"{key!r} is not supported: {', '.join(sorted(PARAMETERS))} are"


def _cap_add(task: TaskSpec, value: str) -> TaskSpec:
    name = _capability(value)
    if name == ALL:
        raise ValueError("ALL can not be added: name each capability")
    return replace(task, capabilities_add=(*task.capabilities_add, name))


def _cap_drop(task: TaskSpec, value: str) -> TaskSpec:
    return replace(task, capabilities_drop=(*task.capabilities_drop, _capability(value)))


def _capability(value: str) -> str:
    name = value.upper()
    if name == ALL:
        return name
    name = name if name.startswith("CAP_") else f"CAP_{name}"
    if name not in KNOWN:
        raise ValueError(f"{value!r} is no capability")
    return name


def _sysctl(task: TaskSpec, value: str) -> TaskSpec:
    name, equals, setting = value.partition("=")
    if not equals:
        raise ValueError(f"{value!r} must be NAME=VALUE")
    if said := sysctl_problem(name, setting, task.network):
        raise ValueError(said)
    return replace(task, sysctls=(*task.sysctls, (name, setting)))


def _ulimit(task: TaskSpec, value: str) -> TaskSpec:
    name, _, amounts = value.partition("=")
    kind = f"RLIMIT_{name.upper()}"
    if kind not in RLIMITS:
        raise ValueError(f"{name!r} is no limit of a process")
    soft, colon, hard = amounts.partition(":")
    limit = Rlimit(kind, _rlimit(soft), _rlimit(hard if colon else soft))
    if limit.soft > limit.hard:
        raise ValueError(f"{value!r}: the soft limit is above the hard one")
    return replace(task, rlimits=(*(each for each in task.rlimits if each.kind != kind), limit))


def _rlimit(text: str) -> int:
    return UNLIMITED if text == "-1" else _number(text, 0, UNLIMITED)


def _memory_swap(task: TaskSpec, value: str) -> TaskSpec:
    """Docker's is memory and swap together."""
    both = _mebibytes(value)
    if both < task.resources.mem:
        raise ValueError(f"memory-swap is memory and swap together: it must be at least {task.resources.mem}m")
    return _limits(task, swap=both - task.resources.mem)


def _device(task: TaskSpec, value: str) -> TaskSpec:
    path, *rest = value.split(":")
    inside, access = rest[0] if rest and rest[0].startswith("/") else path, rest[-1] if rest else "rwm"
    if inside != path or len(rest) > 2:
        raise ValueError(f"{value!r}: a device has the same path in the container as on its node")
    access = "rw" if access == path else access.replace("m", "")
    if not path.startswith("/dev/") or access not in ("r", "w", "rw"):
        raise ValueError(f"{value!r} must be a path below /dev, and perhaps :r, :w or :rw")
    return _limits(task, devices=(*task.limits.devices, Device(path, access)))


def _rate(field: str, parse: Callable[[str], int]) -> Apply:
    def apply(task: TaskSpec, value: str) -> TaskSpec:
        path, colon, rate = value.rpartition(":")
        if not colon or not path.startswith("/dev/"):
            raise ValueError(f"{value!r} must be a path below /dev, a colon and a rate")
        known = {limit.device: limit for limit in task.limits.io}
        fields: dict[str, Any] = {field: parse(rate)}
        limit = replace(known.get(path, IoLimit(path)), **fields)
        return _limits(task, io=tuple((known | {path: limit}).values()))

    return apply


def _cpuset(task: TaskSpec, value: str) -> TaskSpec:
    if not CPUSET.fullmatch(value):
        raise ValueError(f"{value!r} must name CPUs like 0-3,6")
    return _limits(task, cpuset=value)


def _tmpfs(task: TaskSpec, value: str) -> TaskSpec:
    destination, _, options = value.partition(":")
    wanted = Tmpfs(destination)
    for option in options.split(",") if options else ():
        wanted = _with_option(wanted, option)
    if said := tmpfs_problem(wanted):
        raise ValueError(said)
    return replace(task, tmpfs=(*(each for each in task.tmpfs if each.destination != destination), wanted))


def _with_option(wanted: Tmpfs, option: str) -> Tmpfs:
    name, _, value = option.partition("=")
    match name:
        case "size":
            return replace(wanted, size=_mebibytes(value))
        case "mode":
            return replace(wanted, mode=value.removeprefix("0") if len(value) > 4 else value)
        case "exec" | "noexec":
            return replace(wanted, executable=name == "exec")
        case "rw" | "nosuid" | "nodev":  # it is so
            return wanted
    raise ValueError(f"option {option!r} is not supported: size, mode, exec and noexec are")


def _security(task: TaskSpec, value: str) -> TaskSpec:
    name, _, setting = value.replace(":", "=", 1).partition("=") if "=" not in value else value.partition("=")
    if name == "no-new-privileges" and setting in ("", "true"):  # it is always so
        return task
    if name != "seccomp":
        raise ValueError(f"{value!r} is not supported: seccomp=unconfined, seccomp={{...}} and no-new-privileges are")
    if setting != "unconfined" and not setting.startswith("{"):
        raise ValueError("seccomp must be unconfined, or a profile in Docker's format, as JSON")
    return replace(task, seccomp=setting)


def _flag(field: str) -> Apply:
    def apply(task: TaskSpec, value: str) -> TaskSpec:
        if value.lower() not in BOOLEANS:
            raise ValueError(f"{value!r} must be true or false")
        fields: dict[str, Any] = {field: BOOLEANS[value.lower()]}
        return replace(task, **fields)

    return apply


def _of_task(field: str, parse: Callable[[str], int | str]) -> Apply:
    def apply(task: TaskSpec, value: str) -> TaskSpec:
        fields: dict[str, Any] = {field: parse(value)}
        return replace(task, **fields)

    return apply


def _of_limits(field: str, parse: Callable[[str], int]) -> Apply:
    return lambda task, value: _limits(task, **{field: parse(value)})


def _limits(task: TaskSpec, **fields: Any) -> TaskSpec:
    limits: TaskLimits = replace(task.limits, **fields)
    return replace(task, limits=limits)


def _between(least: int, most: int) -> Callable[[str], int]:
    return lambda text: _number(text, least, most)


def _number(text: str, least: int, most: int) -> int:
    if not NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise ValueError(f"{text!r} must be a number from {least} to {most}")
    return int(text)


def _bytes(text: str) -> int:
    found = AMOUNT.fullmatch(text)
    if found is None or not int(found[1]):
        raise ValueError(f"{text!r} must be an amount like 64m or 1g")
    return int(found[1]) * UNITS[found[2].lower()]


def _signal(text: str) -> str:
    parse_signal(text)
    return text


def _mebibytes(text: str) -> int:
    return -(-_bytes(text) // MIB)


PARAMETERS: dict[str, Apply] = {
    "blkio-weight": _of_limits("io_weight", _between(1, 1000)),
    "cap-add": _cap_add,
    "cap-drop": _cap_drop,
    "cpuset-cpus": _cpuset,
    "device": _device,
    "device-read-bps": _rate("read_bps", _bytes),
    "device-read-iops": _rate("read_iops", _between(1, 1 << 32)),
    "device-write-bps": _rate("write_bps", _bytes),
    "device-write-iops": _rate("write_iops", _between(1, 1 << 32)),
    "memory-swap": _memory_swap,
    "oom-score-adj": _of_limits("oom_score_adj", _between(0, 1000)),
    "pids-limit": _of_task("pids", _between(1, PIDS_MOST)),
    "read-only": _flag("read_only"),
    "security-opt": _security,
    "shm-size": _of_task("shm", _mebibytes),
    "stop-signal": _of_task("kill_signal", _signal),
    "sysctl": _sysctl,
    "tmpfs": _tmpfs,
    "ulimit": _ulimit,
}
