"""The container's first process, from its clone to its exec: the whole story, in order.

    enter     new root, mounts, host name; nothing of the node is in reach afterwards
    [wait]    the agent puts the process into its cgroups and connects its network
    become    the process gives up what it may not keep: capabilities, ids, descriptors
    confine   from here on its system calls are filtered
    execute   the program, which is pid 1 from then on

It starts with all capabilities in a user namespace of its own, yet with the node's ids until `take_ids`. That
is the time to open what only the node's root can reach, such as the bundle's directory.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from agent.launcher import seccomp, sysctl
from agent.launcher import syscalls as sc
from agent.launcher.bundle import Bundle, Process
from agent.launcher.channel import SetupError, failed, receive, send
from agent.launcher.mounts import DEVICES, DeviceLinks, Mask, Mount, Operation, ReadOnly

SETUP_FAILED = 127
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1


def run(bundle: Bundle, keeper: socket.socket, stdout: int, stderr: int) -> NoReturn:
    """Never returns. The keeper sees `ready`, then `executing`, then the end of the socket; or an error."""
    try:
        _expect(keeper, "mapped")
        proc = _enter(bundle)
        _connect_streams(stdout, stderr)
        send(keeper, {"event": "ready"})
        _expect(keeper, "start")
        _set_sysctls(proc, bundle)
        _become(bundle, keeper.fileno())
        send(keeper, {"event": "executing"})
        if bundle.process.no_new_privileges:
            confine(bundle.seccomp)
        execute(bundle.process)
    except SetupError as error:
        send(keeper, error.message())
        receive(keeper)  # stay until the keeper knows what to do
    finally:
        os._exit(SETUP_FAILED)


def _enter(bundle: Bundle) -> int:
    """Returns a private procfs, open, for the settings that are made when the network is there."""
    with _step("open root file system"):
        root = sc.open_tree(bundle.rootfs, sc.OPEN_TREE_CLONE | sc.AT_RECURSIVE)
    operations = [_opened(mount) for mount in bundle.mounts]
    with _step("attach root file system"):
        _attach_root(root, bundle)
    with _step("take ids of the container"):
        take_ids(0, 0, ())
        os.setsid()
    if bundle.hostname:
        with _step("set host name"):
            sc.sethostname(bundle.hostname)
    if bundle.namespaces & sc.CLONE_NEWNET:
        with _step("set link lo up"):
            _loopback_up()
    with _step("mount private proc"):
        proc = sysctl.open_proc() if bundle.sysctls else -1
    for operation in _operations(bundle, operations):
        with _step(operation.describe()):
            operation.execute(root)
    with _step("pivot root"):
        _pivot(root, bundle)
    return proc


def _opened(mount: Mount) -> Operation:
    with _step(mount.describe()):
        return mount.opened()


def _operations(bundle: Bundle, mounts: list[Operation]) -> Iterator[Operation]:
    """Masks last: they cover what was mounted before."""
    yield from mounts
    yield from DEVICES
    yield from bundle.devices
    yield DeviceLinks()
    yield from (ReadOnly(path) for path in bundle.read_only_paths)
    yield from (Mask(path) for path in bundle.masked)


def _attach_root(root: int, bundle: Bundle) -> None:
    """A copy of the mount on top of itself: the copy that came with the namespace is locked, and pivot_root refuses
    locked mounts. Private, so that nothing of this reaches the node or comes from there later."""
    node = os.open("/", sc.O_PATH | os.O_CLOEXEC)
    sc.mount_setattr(node, sc.AT_RECURSIVE, "/", propagation=sc.MS_PRIVATE)
    target = os.open(bundle.rootfs, sc.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    sc.move_mount(root, target, bundle.rootfs)
    os.close(node)
    os.close(target)


def _pivot(root: int, bundle: Bundle) -> None:
    """With both arguments `.` the old root ends up on top of the new one, and is detached from there
    (pivot_root(2), "pivot_root(".", ".")")."""
    if bundle.read_only:
        sc.mount_setattr(root, 0, "/", attr_set=sc.MOUNT_ATTR_RDONLY)
    os.fchdir(root)
    sc.pivot_root(".", ".")
    sc.umount2(".", sc.MNT_DETACH)
    os.chdir("/")
    os.close(root)


def _connect_streams(stdout: int, stderr: int) -> None:
    with _step("open /dev/null"):
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)


def _set_sysctls(proc: int, bundle: Bundle) -> None:
    for name, value in bundle.sysctls:
        with _step(f"set sysctl {name}"):
            sysctl.write(proc, name, value)


def _become(bundle: Bundle, keeper: int) -> None:
    if bundle.namespaces & sc.CLONE_NEWCGROUP:
        with _step("unshare cgroup namespace"):  # only now: its root is the cgroup that the process is in
            sc.unshare(sc.CLONE_NEWCGROUP)
    become(bundle.process, bundle.seccomp, keeper)


def become(process: Process, program: bytes, keep: int) -> None:
    """Ends with the privileges of `process`, and but for the standard streams no descriptor except `keep`. Should
    `process` permit new privileges it is confined already."""
    with _step("limit capabilities"):
        _limit_bounding_set(process.bounding)
        sc.prctl(sc.PR_SET_KEEPCAPS, 1)
    if not process.no_new_privileges:  # then a filter takes a capability, which is about to go
        confine(program)
    with _step(f"change to user {process.uid}:{process.gid}"):
        take_ids(process.uid, process.gid, process.groups)
    with _step("set capabilities"):
        sc.capset(process.effective, process.permitted, 0)
        sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL)
        if process.no_new_privileges:
            sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    with _step("close descriptors"):  # before chdir: /proc/self/fd of an open directory would lead out (CVE-2024-21626)
        sc.close_all_but(keep)
    with _step("change directory"):
        _change_directory(process.cwd)
    _reset_signals()
    os.umask(0o022)


def confine(program: bytes) -> None:
    if program:
        with _step("load seccomp filter"):
            seccomp.load(program)


def execute(process: Process) -> NoReturn:
    try:
        os.execvpe(process.argv[0], process.argv, process.env)
    except OSError as error:
        raise SetupError("execute", process.argv[0], error.errno or 0) from error


def take_ids(uid: int, gid: int, groups: tuple[int, ...]) -> None:
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _limit_bounding_set(keep: int) -> None:
    for capability in range(64):
        try:
            held = sc.prctl(sc.PR_CAPBSET_READ, capability)
        except OSError:  # EINVAL: the kernel knows no more
            return
        if held and not keep >> capability & 1:
            sc.prctl(sc.PR_CAPBSET_DROP, capability)


def _change_directory(path: str) -> None:
    os.chdir(path)
    try:
        os.getcwd()  # fails when the directory is not below the root
    except OSError as error:
        raise OSError(error.errno, "outside the container", path) from error


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inet:
        fcntl.ioctl(inet, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def _reset_signals() -> None:
    """Python ignores the first two and handles the third; an ignored signal would stay so across exec."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _expect(keeper: socket.socket, operation: str) -> None:
    """The keeper's end, or anything else it says, means that this container will not be."""
    message = receive(keeper)
    if message is None or message["op"] != operation:
        os._exit(SETUP_FAILED)


@contextmanager
def _step(operation: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise failed(operation, error) from error
