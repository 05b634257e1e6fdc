"""bpf(2) by ctypes: loads a device program, and attaches it to a cgroup (linux/bpf.h: union bpf_attr)."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Sequence

from isolators.cgroup.device_program import Instruction, encode

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

NR_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
LICENSE = b"\0"  # the program calls no function that asks for one
LOG_BYTES = 1 << 16


def load_device_program(instructions: Sequence[Instruction]) -> int:
    """A descriptor of the verified program. Raises OSError; what the verifier has to say is in it."""
    code = ctypes.create_string_buffer(encode(instructions))
    license_text = ctypes.create_string_buffer(LICENSE)
    log = ctypes.create_string_buffer(LOG_BYTES)
    attributes = struct.pack(
        "=IIQQIIQ",
        BPF_PROG_TYPE_CGROUP_DEVICE,
        len(instructions),
        ctypes.addressof(code),
        ctypes.addressof(license_text),
        1,
        LOG_BYTES,
        ctypes.addressof(log),
    )
    try:
        return _bpf(BPF_PROG_LOAD, attributes, "load device program")
    except OSError as error:
        said = log.value.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(error.errno, f"{error.strerror}: {said}" if said else error.strerror, error.filename) from error


def attach_to_cgroup(program: int, cgroup: int) -> None:
    """With no flags: of one cgroup's own programs the last one attached is the only one, and those of the cgroups
    above hold as well. It goes with the cgroup."""
    _bpf(BPF_PROG_ATTACH, struct.pack("=IIII", cgroup, program, BPF_CGROUP_DEVICE, 0), "attach device program")


def _bpf(command: int, attributes: bytes, operation: str) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = _libc.syscall(ctypes.c_long(NR_BPF), ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), operation)
    return result
