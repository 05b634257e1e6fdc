"""Has another OCI runtime, crun or runc, make a container's first process, in the place of `init.py`.

All else stays as it is: the keeper is the parent (it is the subreaper to which that process comes when `create` has
ended), the process joins the user and network namespaces of the sandbox and its cgroups, `start` lets it go, and who
clears the container away has the runtime `delete` what it noted (`agent/runtime.py`).

The runtime gets a bundle of its own in `runtime/`. Its `config.json` is the container's, without the limits, which
the cgroups have already: only the list of devices stays, for where there is none a runtime has its own.

A runtime looks for the root file system with the container's ids, to which the agent's directories are closed. They
stay so: the runtime runs in a mount namespace in which the first closed one is covered by a directory that may be
passed through, and has nothing in it but what the container is made of.

What is bound with ids mapped, or from an open file, is mounted for the runtime too, below `runtime/mounts`: not every
runtime can do the first, and in its namespaces the path of the second is another one.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import stat
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NoReturn

from agent.launcher import syscalls as sc
from agent.launcher.bundle import JOINABLE, Bundle
from agent.launcher.channel import SetupError
from agent.launcher.mounts import Bind

DIRECTORY = "runtime"
NAME_FILE = "name"
STATE = "state"
LOG, PID = "log.json", "pid"
MOUNTS = "mounts"
DEADLINE_MS = 25_000
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UNIFIED = "/sys/fs/cgroup/unified"
OPEN_FILES = "/proc/"
JOINED = ("user", "network")  # what a runtime joins in any case
FAILED = 127
# How runc and crun begin when it is the program that can not be executed, and the ends of what they say then.
EXECUTION = ("exec: ", "executable file ", "open executable")
EXECUTION_ERRORS = {
    "not found in $PATH": errno.ENOENT,
    "no such file or directory": errno.ENOENT,
    "permission denied": errno.EACCES,
}
OCI_VERSION = "1.0.2"  # Debian's crun knows no later one, and nothing of ours is later


def create(runtime: str, container: str, bundle: Bundle, sandbox: int, streams: tuple[int, int]) -> int:
    """The container's first process, which waits. `container` is the container's directory, and `sandbox` a process in
    the user and network namespaces that it is to join. Raises OSError and SetupError."""
    directory = os.path.join(container, DIRECTORY)
    os.mkdir(directory, 0o700)
    _write(os.path.join(directory, NAME_FILE), runtime)
    with open(os.path.join(container, "config.json"), "rb") as file:
        config = adapted(json.load(file), first_closed(bundle.rootfs), sandbox, os.path.join(directory, MOUNTS))
    _write(os.path.join(directory, "config.json"), json.dumps(config))
    pid_file = os.path.join(directory, PID)
    _run(runtime, container, bundle, ("create", "--bundle", directory, "--pid-file", pid_file), streams)
    with open(pid_file, encoding="ascii") as text:
        return int(text.read())


def start(runtime: str, container: str, bundle: Bundle) -> None:
    _run(runtime, container, bundle, ("start",), ())


def command(runtime: str, directory: str, *verb: str) -> list[str]:
    """`directory` is the container's."""
    own = os.path.join(directory, DIRECTORY)
    manager = ["--cgroup-manager=cgroupfs"] if runtime == "crun" else []
    root, log = os.path.join(own, STATE), os.path.join(own, LOG)
    return [runtime, *manager, "--root", root, "--log", log, "--log-format", "json", *verb]


def adapted(config: dict[str, Any], closed: str | None, sandbox: int, made: str) -> dict[str, Any]:
    """`closed`: below it the container's root can look up nothing, which is hidden well enough. runc can't mask it.
    `made` is where what it can not mount itself is mounted for it."""
    linux = config["linux"]
    changes = {
        "resources": {key: value for key, value in linux.get("resources", {}).items() if key == "devices"},
        "maskedPaths": [
            path for path in linux.get("maskedPaths", []) if closed is None or not path.startswith(closed + "/")
        ],
        "namespaces": [_joined(entry, sandbox) for entry in linux["namespaces"]],
    }
    mounts = [_mounted(mount, made) for mount in config.get("mounts", [])]
    return {**config, "ociVersion": OCI_VERSION, "mounts": mounts, "linux": {**linux, **changes}}


def _mounted(mount: dict[str, Any], made: str) -> dict[str, Any]:
    if not _is_made(mount["source"], mapped="uidMappings" in mount):
        return mount
    rest = {key: value for key, value in mount.items() if key not in ("uidMappings", "gidMappings")}
    return {**rest, "source": _made(made, mount["destination"])}


def _is_made(source: str, mapped: bool) -> bool:
    return mapped or source.startswith(OPEN_FILES)


def _made(directory: str, destination: str) -> str:
    return os.path.join(directory, sha256(os.fsencode(destination)).hexdigest()[:16])


def _joined(namespace: dict[str, str], sandbox: int) -> dict[str, str]:
    """A pod's are those of the sandbox too."""
    if namespace["type"] not in JOINED and "path" not in namespace:
        return namespace
    return {**namespace, "path": f"/proc/{sandbox}/ns/{JOINABLE[namespace['type']]}"}


def _run(runtime: str, container: str, bundle: Bundle, verb: tuple[str, ...], streams: tuple[int, ...]) -> None:
    """To its end. Raises SetupError with what the runtime has to say."""
    argv = command(runtime, container, *verb, os.path.basename(container))
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _execute(argv, container, bundle, streams, parent)
    if not _ended(pid):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise SetupError(f"{runtime} {verb[0]}", container, errno.ETIMEDOUT)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        said = _complaint(container) or f"ended with {status}"
        if (number := execution_error(said)) is not None:
            raise SetupError("execute", bundle.process.argv[0], number)
        raise SetupError(f"{runtime} {verb[0]}: {said}", container, errno.EINVAL)


def execution_error(said: str) -> int | None:
    """The errno, when what a runtime `said` is that it can not execute the program: then it is told as `init.py` tells
    it. One of a format that the kernel does not know both start, and it exits with 1."""
    if not any(said.startswith(words) or f": {words}" in said for words in EXECUTION):
        return None
    return next((number for words, number in EXECUTION_ERRORS.items() if words.lower() in said.lower()), None)


def _execute(argv: list[str], container: str, bundle: Bundle, streams: tuple[int, ...], parent: int) -> NoReturn:
    """It ends with the maker: nobody would ever start what it makes."""
    try:
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(FAILED)
        if streams:
            _open_way(container, bundle)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for number, descriptor in enumerate((null, *(streams or (null, null)))):
            os.dup2(descriptor, number)
        for signal_number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):  # Python's: they would be inherited
            signal.signal(signal_number, signal.SIG_DFL)
        os.umask(0o022)
        os.execvpe(argv[0], argv, {"PATH": PATH})
    except OSError as error:
        _complain(container, f"{error.filename or ''}: {error.strerror}")
    finally:
        os._exit(FAILED)


def _ended(pid: int) -> bool:
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(DEADLINE_MS))
    finally:
        os.close(pidfd)


def _open_way(container: str, bundle: Bundle) -> None:
    made = _open_made(container, bundle)  # what is open belongs to the node's mount namespace
    sc.unshare(sc.CLONE_NEWNS)
    node = os.open("/", sc.O_PATH | os.O_CLOEXEC)
    sc.mount_setattr(node, sc.AT_RECURSIVE, "/", propagation=sc.MS_PRIVATE)
    if os.path.ismount(UNIFIED):  # crun refuses a hybrid of both versions
        _join_unified(container)
        sc.umount2(UNIFIED, sc.MNT_DETACH)
    closed = first_closed(bundle.rootfs)
    if closed is not None:
        os.umask(0)
        trees = {
            path: sc.open_tree(path, sc.OPEN_TREE_CLONE | sc.AT_RECURSIVE)
            for path in _needed(container, bundle, closed)
        }
        cover = sc.new_mount("tmpfs", "tmpfs", ("mode=711", "size=256k"), sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV)
        _attach(cover, closed)
        for path, tree in trees.items():
            os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
            _attach(tree, path)
    for path, tree in made.items():
        os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
        _attach(tree, path)


def _open_made(container: str, bundle: Bundle) -> dict[str, int]:
    directory = os.path.join(container, DIRECTORY, MOUNTS)
    return {
        _made(directory, mount.destination): mount.opened().tree
        for mount in bundle.mounts
        if isinstance(mount, Bind) and _is_made(mount.source, mapped=bool(mount.uid_maps))
    }


def _join_unified(container: str) -> None:
    """A runtime takes care of version 1 only. The cgroup that it starts from is all that the container will see."""
    with open(os.path.join(container, "config.json"), "rb") as file:
        path = json.load(file)["linux"].get("cgroupsPath", "")
    procs = os.path.join(UNIFIED, path.lstrip("/"), "cgroup.procs")
    if path and os.path.exists(procs):
        _write(procs, str(os.getpid()))


def first_closed(path: str) -> str | None:
    """The topmost directory above `path` that others may not pass through."""
    above = ""
    for name in path.split("/")[1:-1]:
        above = f"{above}/{name}"
        if not os.stat(above).st_mode & stat.S_IXOTH:
            return above
    return None


def _needed(container: str, bundle: Bundle, closed: str) -> Iterator[str]:
    yield bundle.rootfs
    yield os.path.join(container, DIRECTORY)
    for mount in bundle.mounts:
        if isinstance(mount, Bind) and mount.source.startswith(closed + "/") and not mount.uid_maps:
            yield mount.source


def _attach(tree: int, path: str) -> None:
    if not os.path.exists(path):
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.mkdir(path, 0o711)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    target = os.open(path, sc.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    sc.move_mount(tree, target, path)
    os.close(target)
    os.close(tree)


def _complaint(directory: str) -> str:
    """The last error of its log: a line is a JSON object."""
    try:
        with open(os.path.join(directory, DIRECTORY, LOG), encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return ""
    said = [json.loads(line) for line in lines if line.startswith("{")]
    errors = [entry.get("msg", "") for entry in said if entry.get("level") in ("error", "fatal")]
    return str(errors[-1]) if errors else ""


def _complain(directory: str, reason: str) -> None:
    with open(os.path.join(directory, DIRECTORY, LOG), "a", encoding="utf-8") as file:
        print(json.dumps({"level": "error", "msg": reason}), file=file)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
