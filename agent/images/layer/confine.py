"""Where a layer is unpacked: in namespaces without network or processes, with the target as `/` and nothing else.

What stays of root are the rights over files that unpacking takes; device files can not be made (whiteouts, character
devices 0:0, need no right). So `..`, absolute names and links lead to the target's own files, whatever the code that
follows does.
"""

from __future__ import annotations

import os
import resource
import signal

from agent.launcher import syscalls as sc

NAMESPACES = sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWNET | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS | sc.CLONE_NEWCGROUP
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


def enter(target: str) -> None:
    """Afterwards there is no other file than those below `target`, and no more open than the standard streams."""
    _pivot(target)
    sc.close_all_but(2)
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_NOFILE, DESCRIPTORS)
    _limit(resource.RLIMIT_CORE, 0)
    os.umask(0)
    _drop_rights()


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


def _drop_rights() -> None:
    for capability in range(CAPABILITIES):
        try:
            held = sc.prctl(sc.PR_CAPBSET_READ, capability)
        except OSError:  # EINVAL: the kernel knows no more
            break
        if held and not RIGHTS >> capability & 1:
            sc.prctl(sc.PR_CAPBSET_DROP, capability)
    sc.capset(RIGHTS, RIGHTS, 0)
    sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL)
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
