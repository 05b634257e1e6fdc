"""Compiles `linux.seccomp` of an OCI configuration to the BPF program that the kernel runs before each system call.

libseccomp knows the numbers of every architecture and orders the comparisons. It is called here, in the agent, and not
in the container's first process: that one gets the finished program.

In front of libseccomp's program stands one of ours. What is newer than all that the profile speaks of is answered with
ENOSYS, as an older kernel would, and programs fall back; an error of the profile's would end them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from functools import cache
from typing import Any

# seccomp.h of libseccomp 2.5
ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
# AUDIT_ARCH_* of linux/audit.h, which libseccomp takes for its own tokens.
ARCHITECTURES = {
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_ARM": 0x40000028,
}
SCMP_FLTATR_CTL_OPTIMIZE = 8
BINARY_TREE = 2
UNKNOWN = -1  # __NR_SCMP_ERROR

# linux/bpf_common.h, linux/seccomp.h
BPF_LD_W_ABS = 0x20
BPF_JA = 0x05
BPF_JEQ_K = 0x15
BPF_JGT_K = 0x25
BPF_JGE_K = 0x35
BPF_RET_K = 0x06
OFFSET_NR = 0
OFFSET_ARCH = 4
RET_ENOSYS = ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS
X32_BIT = 0x40000000  # __X32_SYSCALL_BIT
INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter


class FilterError(Exception):
    """The profile can't be compiled on this machine. The text names the rule."""


class _ArgCmp(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def compile_filter(seccomp: dict[str, Any]) -> bytes:
    """An array of `struct sock_filter`. Raises FilterError."""
    default = _action(seccomp["defaultAction"], seccomp.get("defaultErrnoRet"))
    library = _library()
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    if not context:
        raise FilterError("seccomp: libseccomp takes no such default action")
    try:
        _fill(context, seccomp, default)
        return _prologue(seccomp, default) + _exported(context)
    finally:
        library.seccomp_release(context)


def knows(name: str) -> bool:
    """Whether libseccomp knows a system call of this name, on whatever architecture."""
    number: int = _library().seccomp_syscall_resolve_name(name.encode())
    return number != UNKNOWN


def _fill(context: ctypes.c_void_p, seccomp: dict[str, Any], default: int) -> None:
    for name in seccomp["architectures"]:
        if name not in ARCHITECTURES:
            raise FilterError(f"seccomp: architecture {name} is not known on this node")
        result = _library().seccomp_arch_add(context, ctypes.c_uint32(ARCHITECTURES[name]))
        if result not in (0, -errno.EEXIST):
            raise FilterError(f"seccomp: architecture {name}: {os.strerror(-result)}")
    _library().seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, ctypes.c_uint32(BINARY_TREE))
    for rule in seccomp["syscalls"]:
        action = _action(rule["action"], rule.get("errnoRet"))
        if action != default:  # libseccomp refuses to be told twice
            for name in rule["names"]:
                _add(context, action, name, rule.get("args") or [])


def _add(context: ctypes.c_void_p, action: int, name: str, args: list[dict[str, Any]]) -> None:
    """A name that is newer than libseccomp can be left out where it is allowed: it gets ENOSYS."""
    number = _library().seccomp_syscall_resolve_name(name.encode())
    if number == UNKNOWN:
        if action == ACTIONS["SCMP_ACT_ALLOW"]:
            return
        raise FilterError(f"seccomp: this node's libseccomp does not know {name}, so it can not be denied")
    comparisons = (_ArgCmp * len(args))(*(_comparison(arg) for arg in args))
    result = _library().seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(args), comparisons)
    if result < 0:
        raise FilterError(f"seccomp: rule for {name}: {os.strerror(-result)}")


def _comparison(arg: dict[str, Any]) -> _ArgCmp:
    return _ArgCmp(arg["index"], OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo", 0))


def _exported(context: ctypes.c_void_p) -> bytes:
    with os.fdopen(os.memfd_create("seccomp"), "rb") as file:
        result = _library().seccomp_export_bpf(context, file.fileno())
        if result < 0:
            raise FilterError(f"seccomp: export the program: {os.strerror(-result)}")
        file.seek(0)
        return file.read()


def _prologue(seccomp: dict[str, Any], default: int) -> bytes:
    """For each architecture: is the call it, is its number beyond what the profile speaks of, ENOSYS. Nothing, when the
    default lets new calls pass."""
    if default in (ACTIONS["SCMP_ACT_ALLOW"], ACTIONS["SCMP_ACT_LOG"]):
        return b""
    names = {name for rule in seccomp["syscalls"] for name in rule["names"]}
    program = b""
    for architecture in reversed(seccomp["architectures"]):
        block = _block(architecture, _greatest(names, architecture))
        program = _asked(architecture, block, behind=len(program) // INSTRUCTION.size) + program
    return program


def _block(architecture: str, greatest: int) -> list[bytes]:
    """What is done with a call of this architecture; it falls through when nothing was decided."""
    returns = INSTRUCTION.pack(BPF_RET_K, 0, 0, RET_ENOSYS)
    block = [INSTRUCTION.pack(BPF_LD_W_ABS, 0, 0, OFFSET_NR)]
    if architecture == "SCMP_ARCH_X86_64":
        block += [INSTRUCTION.pack(BPF_JGE_K, 0, 1, X32_BIT), returns]
    return [*block, INSTRUCTION.pack(BPF_JGT_K, 0, 1, greatest), returns]


def _asked(architecture: str, block: list[bytes], behind: int) -> bytes:
    """The block under its condition; `behind` instructions of other architectures' are passed over afterwards."""
    head = INSTRUCTION.pack(BPF_LD_W_ABS, 0, 0, OFFSET_ARCH)
    branch = INSTRUCTION.pack(BPF_JEQ_K, 0, len(block) + 1, ARCHITECTURES[architecture])
    return head + branch + b"".join(block) + INSTRUCTION.pack(BPF_JA, 0, 0, behind)


def _greatest(names: set[str], architecture: str) -> int:
    token = ctypes.c_uint32(ARCHITECTURES[architecture])
    numbers = [_library().seccomp_syscall_resolve_name_arch(token, name.encode()) for name in names]
    return max(numbers, default=UNKNOWN)


def _action(name: str, number: int | None) -> int:
    if name != "SCMP_ACT_ERRNO":
        return ACTIONS[name]
    return ACTIONS[name] | (errno.EPERM if number is None else number)


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise FilterError("seccomp: libseccomp.so.2 is not on this node: apt-get install libseccomp2") from error
    library.seccomp_init.restype = ctypes.c_void_p
    return library
