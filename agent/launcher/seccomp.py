"""Puts a process under its seccomp filter. The program is that of the bundle's `seccomp.bpf`, compiled by the agent.

From the moment the kernel has it, every system call of this process and of those it makes goes through it, so it is
loaded last. A filter can not be taken off again.
"""

from __future__ import annotations

import ctypes
import os
import struct

from agent.launcher import syscalls as sc

FILTER_FILE = "seccomp.bpf"
INSTRUCTION_BYTES = 8  # struct sock_filter
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
SECCOMP_SET_MODE_FILTER = 1


def read(bundle: str) -> bytes:
    """Empty when the bundle has none. Raises OSError."""
    try:
        with open(os.path.join(bundle, FILTER_FILE), "rb") as file:
            return file.read(MAX_INSTRUCTIONS * INSTRUCTION_BYTES + 1)
    except FileNotFoundError:
        return b""


def checked(program: bytes) -> bytes:
    """Raises ValueError when it is no program."""
    if not program or len(program) % INSTRUCTION_BYTES or len(program) > MAX_INSTRUCTIONS * INSTRUCTION_BYTES:
        raise ValueError(f"{FILTER_FILE}: not a BPF program")
    return program


def load(program: bytes) -> None:
    """Needs no_new_privs, or CAP_SYS_ADMIN in the user namespace (seccomp(2))."""
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxP", len(program) // INSTRUCTION_BYTES, ctypes.addressof(buffer))
    sc.seccomp(SECCOMP_SET_MODE_FILTER, fprog)
