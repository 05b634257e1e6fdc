"""The system calls that Python 3.11 lacks, as three-line wrappers that raise OSError with the object they were about.

Constants have the names of the kernel's headers. Numbers from 424 up are the same on every architecture; the older
ones are listed for those that we run on. Mounts are made with the calls of Linux 5.2 and 5.12 (`fsopen`, `open_tree`,
`move_mount`, `mount_setattr`): they take file descriptors, so no path is resolved twice.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
# PyDLL keeps the interpreter's lock during the call: a child that starts without it would wait for it for ever.
_locked = ctypes.PyDLL(None, use_errno=True)
_locked.syscall.restype = ctypes.c_long

_OLD_NUMBERS = {
    "x86_64": {"pivot_root": 155, "capset": 126, "seccomp": 317},
    "aarch64": {"pivot_root": 41, "capset": 91, "seccomp": 277},
}
NR_PIVOT_ROOT = _OLD_NUMBERS[platform.machine()]["pivot_root"]
NR_CAPSET = _OLD_NUMBERS[platform.machine()]["capset"]
NR_SECCOMP = _OLD_NUMBERS[platform.machine()]["seccomp"]
NR_OPEN_TREE = 428
NR_MOVE_MOUNT = 429
NR_FSOPEN = 430
NR_FSCONFIG = 431
NR_FSMOUNT = 432
NR_CLONE3 = 435
NR_CLOSE_RANGE = 436
NR_OPENAT2 = 437
OPENAT2_ATTEMPTS = 100
NR_MOUNT_SETATTR = 442

CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 0x1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MS_PRIVATE = 1 << 18
MNT_DETACH = 0x2

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
O_PATH = 0o10000000

# linux/magic.h
PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572
DEVPTS_SUPER_MAGIC = 0x1CD1

MAX_FD = 0x7FFFFFFF

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

_LINUX_CAPABILITY_VERSION_3 = 0x20080522


def clone3(flags: int) -> tuple[int, int]:
    """Like fork, into new namespaces: (0, -1) in the child, (pid, pidfd) in the parent. With CLONE_PARENT the child is
    a sibling, and its end is told as ours is."""
    pidfd = ctypes.c_int(-1)
    address = ctypes.addressof(pidfd)
    exit_signal = 0 if flags & CLONE_PARENT else signal.SIGCHLD
    arguments = struct.pack("8Q", flags | CLONE_PIDFD, address, 0, 0, exit_signal, 0, 0, 0)
    pid = _locked.syscall(ctypes.c_long(NR_CLONE3), arguments, ctypes.c_long(len(arguments)))
    if pid < 0:
        raise _error(f"flags {flags:#x}")
    return pid, pidfd.value


def unshare(flags: int) -> None:
    if _libc.unshare(ctypes.c_int(flags)) < 0:
        raise _error(f"flags {flags:#x}")


def setns(pidfd: int, flags: int) -> None:
    """Into these namespaces of another process, all of them or none (Linux 5.8)."""
    if _libc.setns(ctypes.c_int(pidfd), ctypes.c_int(flags)) < 0:
        raise _error(f"flags {flags:#x}")


def sethostname(name: str) -> None:
    encoded = name.encode()
    if _libc.sethostname(encoded, ctypes.c_size_t(len(encoded))) < 0:
        raise _error(name)


def open_tree(path: str, flags: int) -> int:
    """With OPEN_TREE_CLONE: a detached copy of the mount at `path`."""
    return _syscall(path, NR_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags | os.O_CLOEXEC)


def clone_mount(directory: int, path: str) -> int:
    """A detached copy of the mount under the open `directory`, with all mounts below; `path` is for the error."""
    return _syscall(path, NR_OPEN_TREE, directory, b"", OPEN_TREE_CLONE | AT_EMPTY_PATH | AT_RECURSIVE | os.O_CLOEXEC)


def move_mount(tree: int, target: int, path: str) -> None:
    """Attaches the detached mount `tree` at the open `target`; `path` is for the error."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _syscall(path, NR_MOVE_MOUNT, tree, b"", target, b"", flags)


def mount_setattr(tree: int, flags: int, path: str, *, attr_set: int = 0, propagation: int = 0) -> None:
    attributes = struct.pack("4Q", attr_set, 0, propagation, 0)
    _syscall(path, NR_MOUNT_SETATTR, tree, b"", flags | AT_EMPTY_PATH, attributes, len(attributes))


def new_mount(kind: str, source: str, options: tuple[str, ...], attributes: int) -> int:
    """A detached mount of a new file system: `fsopen`, `fsconfig` for each option, `fsmount`."""
    context = _syscall(kind, NR_FSOPEN, kind.encode(), 1)
    try:
        for option in (f"source={source}", *options):
            _configure(context, option)
        _syscall(kind, NR_FSCONFIG, context, FSCONFIG_CMD_CREATE, 0, 0, 0)
        return _syscall(kind, NR_FSMOUNT, context, 1, attributes)
    finally:
        os.close(context)


def openat2(directory: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """Tried again when anything was renamed or mounted anywhere while a `..` was looked up (EAGAIN): the kernel can't
    tell whether that led out."""
    how = struct.pack("3Q", flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(OPENAT2_ATTEMPTS - 1):
        try:
            return _syscall(path, NR_OPENAT2, directory, os.fsencode(path), how, len(how))
        except BlockingIOError:
            continue
    return _syscall(path, NR_OPENAT2, directory, os.fsencode(path), how, len(how))


def fstatfs_type(descriptor: int) -> int:
    """The magic number of the file system that the file is on."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(ctypes.c_int(descriptor), buffer) < 0:
        raise _error(f"fd {descriptor}")
    kind: int = struct.unpack_from("l", buffer)[0]
    return kind


def pivot_root(new_root: str, put_old: str) -> None:
    _syscall(new_root, NR_PIVOT_ROOT, new_root.encode(), put_old.encode())


def umount2(path: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(path), ctypes.c_int(flags)) < 0:
        raise _error(path)


def close_all_but(keep: int) -> None:
    """Closes every descriptor but the standard streams and `keep`."""
    for first, last in ((3, keep - 1), (keep + 1, MAX_FD)):
        if first <= last:
            _syscall(f"fd {first}", NR_CLOSE_RANGE, first, last, 0)


def prctl(option: int, *arguments: int | bytes) -> int:
    padded = [*arguments, 0, 0, 0, 0][:4]
    result: int = _libc.prctl(ctypes.c_int(option), *(_word(argument) for argument in padded))
    if result < 0:
        raise _error(f"option {option}")
    return result


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Masks of 64 bits, of the calling thread."""
    header = struct.pack("Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    words = [[mask >> shift & 0xFFFFFFFF for mask in (effective, permitted, inheritable)] for shift in (0, 32)]
    _syscall(f"{effective:#x}", NR_CAPSET, header, struct.pack("6I", *words[0], *words[1]))


def seccomp(operation: int, arguments: bytes) -> None:
    _syscall(f"operation {operation}", NR_SECCOMP, operation, 0, arguments)


def _configure(context: int, option: str) -> None:
    key, equals, value = option.partition("=")
    command = FSCONFIG_SET_STRING if equals else FSCONFIG_SET_FLAG
    _syscall(option, NR_FSCONFIG, context, command, key.encode(), value.encode() if equals else 0, 0)


def _syscall(path: str, number: int, *arguments: int | bytes) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *(_word(argument) for argument in arguments))
    if result < 0:
        raise _error(path)
    return result


def _word(argument: int | bytes) -> ctypes.c_long | bytes:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _error(path: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)
