"""Where bytes from outside are worked on: in namespaces of their own, with one directory as `/` and nothing else.

For an image's layer what stays of root are the rights over files that unpacking takes; device files can not be made
(whiteouts, character devices 0:0, need no right). For what is fetched nothing stays. So `..`, absolute names and links
lead to the directory's own files, whatever the code that follows does.

To be used by a program that the agent executes, with the standard library alone, in a child that it has cloned.
"""

from __future__ import annotations

import os
import resource
import signal

from agent.launcher import syscalls as sc

CONNECTED = sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS | sc.CLONE_NEWCGROUP
NAMESPACES = CONNECTED | sc.CLONE_NEWNET
MOUNTED = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOEXEC
# capability.h: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP.
RIGHTS = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 31
MEMORY_BYTES = 1 << 30
DESCRIPTORS = 64
CAPABILITIES = 64


def end_with(parent: int) -> None:
    """This process gets SIGKILL when `parent`, the one that made it, ends."""
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_outer(parent: int) -> None:
    """The same from a new pid namespace, in which nobody outside has a number; the old /proc still tells."""
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if not os.path.exists(f"/proc/{parent}"):
        os._exit(1)


def enter(directory: str) -> None:
    """Afterwards there is no other file than those below `directory`, and no more open than the standard streams."""
    _pivot(directory)
    sc.close_all_but(2)


def keep_file_rights() -> None:
    """Of root's rights only those over files."""
    _limit_resources()
    _drop_rights(RIGHTS)


def become(uid: int) -> None:
    """An id that nobody else has, with no rights at all."""
    _limit_resources()
    os.setgroups(())
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _drop_rights(0)


def _limit_resources() -> None:
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_NOFILE, DESCRIPTORS)
    _limit(resource.RLIMIT_CORE, 0)
    os.umask(0)


def _pivot(target: str) -> None:
    """As the launcher's init does it (agent/launcher/init.py)."""
    node = os.open("/", sc.O_PATH | os.O_CLOEXEC)
    sc.mount_setattr(node, sc.AT_RECURSIVE, "/", propagation=sc.MS_PRIVATE)
    tree = sc.open_tree(target, sc.OPEN_TREE_CLONE)
    sc.mount_setattr(tree, 0, target, attr_set=MOUNTED)
    sc.move_mount(tree, os.open(target, sc.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC), target)
    os.fchdir(tree)
    sc.pivot_root(".", ".")
    sc.umount2(".", sc.MNT_DETACH)
    os.chdir("/")


def _limit(kind: int, amount: int) -> None:
    hard = resource.getrlimit(kind)[1]
    bound = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(kind, (bound, bound))


def _drop_rights(kept: int) -> None:
    if os.geteuid() == 0:
        _limit_bounding_set(kept)
    sc.capset(kept, kept, 0)
    sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL)
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)


def _limit_bounding_set(kept: int) -> None:
    for capability in range(CAPABILITIES):
        try:
            held = sc.prctl(sc.PR_CAPBSET_READ, capability)
        except OSError:  # EINVAL: the kernel knows no more
            return
        if held and not kept >> capability & 1:
            sc.prctl(sc.PR_CAPBSET_DROP, capability)
