"""Looks around in a container as a black box, and tells what it found: for `test_sweep.py`, which puts it after
`inside.py`. It knows nothing of how the container was made.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from tests.kernel.attacks.inside import NUMBERS, attempt, call

SECRETS = (
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/sudoers",
    "/root",
    "/etc/ssl/private",
    "/var/lib/private",
    "/proc/kcore",
    "/proc/kmsg",
    "/proc/vmallocinfo",
    "/proc/slabinfo",
    "/proc/sysrq-trigger",
    "/sys/kernel/security",
    "/sys/kernel/debug",
    "/sys/kernel/tracing",
    "/sys/fs/bpf",
    "/sys/fs/pstore",
    "/dev/kmsg",
    "/dev/mem",
)
WRITE = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW
PLACES_OF_SOCKETS = ("/run", "/tmp", "/var", "/dev", "/etc")


def writable_kernel_files() -> list[str]:
    """Of procfs and sysfs, less the directories of processes, what can be opened for writing. That is tried: the bits
    of a mode say little here. What is masked is the null device, which may be written."""
    found = []
    for top in ("/proc", "/sys"):
        for directory, below, files in os.walk(top):
            below[:] = [name for name in below if directory != "/proc" or not name.isdigit()]
            found += [
                path for path in paths(directory, files) if attempt(path, WRITE) == "ok" and os.stat(path).st_rdev == 0
            ]
    return sorted(found)


def paths(directory: str, names: list[str]) -> list[str]:
    return [os.path.join(directory, name) for name in names]


def readable_secrets() -> list[str]:
    """What has content for us: an empty answer is a mask's."""
    return [path for path in SECRETS if is_read(path)]


def is_read(path: str) -> bool:
    try:
        if os.path.isdir(path):
            return bool(os.listdir(path))
        with open(path, "rb") as file:
            return bool(file.read(1))
    except OSError:
        return False


def writable_files() -> list[str]:
    """Files of the node, outside of what is mounted for the container alone."""
    own = tuple(f"{point}/" for point, kind in mounts().items() if kind != "overlay")
    found = []
    for directory, below, files in os.walk("/"):
        below[:] = [name for name in below if not f"{os.path.join(directory, name)}/".startswith(own)]
        found += [path for path in paths(directory, files) if not os.path.islink(path) and os.access(path, os.W_OK)]
    return found


def mounts() -> dict[str, str]:
    """File systems by mount point."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split()[4]: line.partition(" - ")[2].split()[0] for line in lines}


def devices() -> list[str]:
    """Device files in /dev that can be opened."""
    found = []
    for directory, _, files in os.walk("/dev"):
        for path in (f"{directory}/{name}" for name in files):
            kind = os.stat(path, follow_symlinks=False).st_mode
            if (stat.S_ISCHR(kind) or stat.S_ISBLK(kind)) and attempt(path, os.O_RDWR | os.O_NONBLOCK) == "ok":
                found.append(path)
    return sorted(found)


def kernel_addresses() -> bool:
    with open("/proc/kallsyms", encoding="ascii") as file:
        return any(int(line.split()[0], 16) for line in file)


def sockets() -> list[str]:
    """Unix sockets that somebody answers on."""
    found = []
    for top in PLACES_OF_SOCKETS:
        for directory, _, files in os.walk(top):
            found += [f"{directory}/{name}" for name in files if answers(f"{directory}/{name}")]
    return found


def answers(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
    except OSError:
        return False
    return True


def families() -> list[int]:
    return [family for family in range(1, 46) if any(call("socket", family, kind, 0) == "ok" for kind in (1, 2, 3, 5))]


def status() -> dict[str, str]:
    wanted = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Groups")
    lines = (line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: value.strip() for name, value in lines if name in wanted}


def processes() -> list[str]:
    return sorted(name for name in os.listdir("/proc") if name.isdigit())


def open_descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))[:-1]


def kernel_log() -> str:
    return call("syslog", 3, bytes(64), 64)


def calls() -> dict[str, str]:
    return {name: call(name, None, 0, 0, None, None) for name in NUMBERS if name not in ("clone", "ptrace")}


def sweep() -> dict[str, object]:
    looks = (
        open_descriptors,
        writable_files,
        writable_kernel_files,
        readable_secrets,
        kernel_addresses,
        kernel_log,
        devices,
        sockets,
        families,
        status,
        processes,
        calls,
    )
    return {look.__name__: look() for look in looks}
