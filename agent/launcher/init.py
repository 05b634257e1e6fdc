"""The container's first process, from its clone to its exec: the whole story, in order.

    enter     a root of its own with what every container has: /proc, /sys, /dev, /run; nothing of the node is in reach
    [wait]    the agent puts the process into its cgroups and connects its network; then for a task, or for the word
              that there will be none, for it holds the namespaces of a pod (`hold`)
    move in   the task's root file system, with what was made moved into it, and the mounts that the task asks for
    become    the process gives up what it may not keep: capabilities, ids, descriptors
    confine   from here on its system calls are filtered
    execute   the program, which is pid 1 from then on

It starts with all capabilities in a user namespace of its own, yet with the node's ids until `take_ids`. What lies on
the node is given to it open, by its maker.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import signal
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from agent.launcher import seccomp, sysctl
from agent.launcher import syscalls as sc
from agent.launcher.bundle import Bundle, Frame, Hidings, Process
from agent.launcher.channel import SetupError, failed, receive, receive_open, send
from agent.launcher.mounts import (
    DEVICES,
    Attach,
    Device,
    DeviceLinks,
    Filesystem,
    Mask,
    Mount,
    Operation,
    ReadOnly,
    attach,
    mount_target,
)

SETUP_FAILED = 127
HOLDER_TITLE = b"tepui-pod"
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
ROOT = "/rootfs"  # where the task's root is attached, before it becomes the root


def run(frame: Frame, directory: str, maker: socket.socket) -> NoReturn:
    """Never returns. The maker hears `ready`, `moved in`, `executing`, then the end of the socket; or an error."""
    try:
        _expect(maker, "mapped")
        place, proc = _enter(frame, directory)
        send(maker, {"event": "ready"})
        asked, given = receive_open(maker)
        if asked == {"op": "hold"}:
            hold(maker)
        if asked != {"op": "move in"}:
            os._exit(SETUP_FAILED)
        text, root, *trees = given
        bundle: Bundle = pickle.loads(_contents(text))
        _move_in(place, root, frame, _operations(bundle, trees), bundle)
        _set_sysctls(proc, bundle)
        send(maker, {"event": "moved in"})
        _connect_streams(_expect(maker, "execute"))
        _become(bundle, maker.fileno())
        send(maker, {"event": "executing"})
        if bundle.process.no_new_privileges:
            confine(bundle.seccomp)
        execute(bundle.process)
    except SetupError as error:
        send(maker, error.message())
        receive(maker)  # stay until the maker knows what to do
    finally:
        os._exit(SETUP_FAILED)


def _enter(frame: Frame, directory: str) -> tuple[int, int]:
    """Returns the new root, open, and a private procfs, for the settings that are made when the network is there."""
    mounts = [_opened(mount) for mount in (*frame.mounts, *DEVICES)]
    with _step("open directory of the container"):
        target = os.open(directory, sc.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    with _step("take ids of the container"):
        take_ids(0, 0, ())
        sc.prctl(sc.PR_SET_DUMPABLE, 0)  # in a pod it may be seen by others (enter.py says why that is enough)
        os.setsid()
    with _step("mount root of the sandbox"):
        place = _attach_place(target, directory)
    if frame.made & sc.CLONE_NEWNET:
        with _step("set link lo up"):
            _loopback_up()
    with _step("mount private proc"):
        proc = sysctl.open_proc()
    for operation in (*mounts, DeviceLinks(), *_hidings(frame.hidings)):
        with _step(operation.describe()):
            operation.execute(place)
    with _step("leave the node's root"):
        _pivot(place)
    return place, proc


def hold(maker: socket.socket) -> NoReturn:
    """Lives on as process 1 of its namespaces without any privilege, with nothing open, and does nothing, so that
    nobody in the pod gains by it. Processes that lost their parent come to it and go."""
    with _step("give up privileges"):
        _limit_bounding_set(0)
        sc.capset(0, 0, 0)
        sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
        sc.prctl(sc.PR_SET_NAME, HOLDER_TITLE)
    _reset_signals()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    send(maker, {"event": "held"})
    sc.close_all_but(maker.fileno())
    maker.close()
    while True:
        signal.pause()


def _move_in(place: int, root: int, frame: Frame, operations: Iterable[Operation], bundle: Bundle) -> None:
    """`root` is the root file system, attached nowhere."""
    with _step("attach root file system"):
        target = mount_target(place, ROOT, directory=True)
        sc.move_mount(root, target, bundle.rootfs)
        os.close(target)
    for path in frame.tops:
        with _step(f"move {path}"):
            target = mount_target(root, path, directory=True)
            attach(sc.openat2(place, path, sc.O_PATH, sc.RESOLVE_IN_ROOT), target, path)
    for operation in operations:
        with _step(operation.describe()):
            operation.execute(root)
    if bundle.hostname:
        with _step("set host name"):
            sc.sethostname(bundle.hostname)
    with _step("pivot root"):
        if bundle.read_only:
            sc.mount_setattr(root, 0, "/", attr_set=sc.MOUNT_ATTR_RDONLY)
        _pivot(root)


def _opened(mount: Mount | Device) -> Operation:
    with _step(mount.describe()):
        return mount.opened()


def _operations(bundle: Bundle, trees: list[int]) -> Iterator[Operation]:
    """`trees` are `Bundle.sources`, as the maker has opened them. What hides comes last: it covers what was mounted."""
    given = iter(trees)
    for mount in (*bundle.mounts, *bundle.devices):
        yield mount if isinstance(mount, Filesystem) else Attach(next(given), mount.source, mount.destination)
    yield from _hidings(bundle.hidings)


def _hidings(hidings: Hidings) -> Iterator[Operation]:
    yield from (ReadOnly(path) for path in hidings.read_only)
    yield from (Mask(path) for path in hidings.masked)


def _attach_place(target: int, directory: str) -> int:
    """An empty file system to hold the others, over the container's directory in this mount namespace, which is made
    private, so that nothing of this reaches the node or comes from there later."""
    node = os.open("/", sc.O_PATH | os.O_CLOEXEC)
    sc.mount_setattr(node, sc.AT_RECURSIVE, "/", propagation=sc.MS_PRIVATE)
    os.close(node)
    place = sc.new_mount("tmpfs", "tmpfs", ("size=64k", "mode=755"), sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV)
    sc.move_mount(place, target, directory)
    os.close(target)
    return place


def _pivot(root: int) -> None:
    """With both arguments `.` the old root ends up on top of the new one, and is detached from there
    (pivot_root(2), "pivot_root(".", ".")")."""
    os.fchdir(root)
    sc.pivot_root(".", ".")
    sc.umount2(".", sc.MNT_DETACH)
    os.chdir("/")


def _connect_streams(streams: list[int]) -> None:
    with _step("open /dev/null"):
        for number, descriptor in enumerate((os.open("/dev/null", os.O_RDONLY), *streams)):
            os.dup2(descriptor, number)


def _set_sysctls(proc: int, bundle: Bundle) -> None:
    for name, value in bundle.sysctls:
        with _step(f"set sysctl {name}"):
            sysctl.write(proc, name, value)


def _become(bundle: Bundle, maker: int) -> None:
    if bundle.new_cgroup_namespace:
        with _step("unshare cgroup namespace"):  # only now: its root is the cgroup that the process is in
            sc.unshare(sc.CLONE_NEWCGROUP)
    become(bundle.process, bundle.seccomp, maker)


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
        if not keep >> capability & 1:
            try:
                sc.prctl(sc.PR_CAPBSET_DROP, capability)
            except OSError as error:
                if error.errno == errno.EINVAL:  # the kernel knows no more
                    return
                raise


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


def _contents(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _expect(maker: socket.socket, operation: str) -> list[int]:
    """Returns the descriptors that came with it. The maker's end, or anything else it says, means that this container
    will not be."""
    message, descriptors = receive_open(maker)
    if message is None or message["op"] != operation:
        os._exit(SETUP_FAILED)
    return descriptors


@contextmanager
def _step(operation: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise failed(operation, error) from error
