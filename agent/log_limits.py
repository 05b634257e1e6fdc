"""How much of what a task writes is kept: by the node's settings, or by the task's environment, as in Mesos.

Mesos' LogrotateContainerLogger takes these from a task's environment, and so do we (Mesos docs/logging.md,
"environment_variable_prefix"):

    CONTAINER_LOGGER_MAX_STDOUT_SIZE            `10MB`: of one file
    CONTAINER_LOGGER_LOGROTATE_STDOUT_OPTIONS   `rotate 4`: how many older ones are kept beside it

and the same for STDERR. Other options of logrotate are about files that somebody else writes, and mean nothing here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.launcher.pump import DEFAULT_LIMITS, Limits
from isolators.base import Unsupported
from model.task import TaskSpec

PREFIX = "CONTAINER_LOGGER_"
SIZE = re.compile(r"(\d{1,15})(B|KB|MB|GB)")  # stout's Bytes
UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
ROTATE = re.compile(r"^\s*rotate\s+(\d{1,6})\s*$", re.MULTILINE)
LEAST_BYTES = 4096  # one page, as in Mesos
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """`limits` for tasks that say nothing; `most` bytes is what any stream may keep, all its files together."""

    limits: Limits = DEFAULT_LIMITS
    most: int = 256 * MIB

    def of(self, task: TaskSpec) -> tuple[Limits, Limits]:
        """Of stdout and stderr. Raises Unsupported, with the name of the variable."""
        env = dict(task.env)
        return self._stream(env, "STDOUT"), self._stream(env, "STDERR")

    def _stream(self, env: dict[str, str], stream: str) -> Limits:
        size_name, options_name = f"{PREFIX}MAX_{stream}_SIZE", f"{PREFIX}LOGROTATE_{stream}_OPTIONS"
        size, files = self.limits.size, self.limits.files
        if size_name in env:
            size = _size(size_name, env[size_name])
        if found := ROTATE.search(env.get(options_name, "")):
            files = int(found[1]) + 1
        if size * files > self.most:
            raise Unsupported(
                f"{stream.lower()}: {files} log files of {size} bytes are more than the {self.most // MIB} MiB that "
                f"this node keeps of a stream: lower {size_name} or 'rotate' in {options_name}"
            )
        return Limits(size, files)


DEFAULT_POLICY = LogPolicy()


def _size(name: str, text: str) -> int:
    found = SIZE.fullmatch(text.strip())
    size = int(found[1]) * UNITS[found[2]] if found else 0
    if size < LEAST_BYTES:
        raise Unsupported(f"env {name}: {text!r} is not a size of at least {LEAST_BYTES} bytes, such as 10MB")
    return size
