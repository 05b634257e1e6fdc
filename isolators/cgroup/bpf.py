"""bpf(2) by ctypes: loads a device program, and makes it a cgroup's only one (linux/bpf.h: union bpf_attr)."""

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
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_PROG_QUERY = 16
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 2
BPF_CGROUP_MAX_PROGS = 64  # kernel/bpf/cgroup.c
QUERY = struct.Struct("=IIIIQI4x")
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
    """In place of the programs that are there. For a moment all of them have to agree, so nothing is ever open that
    is closed before and after. With this flag others may attach too, as OCI runtimes do to the cgroup that they find;
    programs of the cgroups above hold as well. It goes with the cgroup."""
    before = _attached(cgroup)
    _bpf(
        BPF_PROG_ATTACH,
        struct.pack("=IIII", cgroup, program, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI),
        "attach device program",
    )
    for number in before:
        old = _bpf(BPF_PROG_GET_FD_BY_ID, struct.pack("=I8x", number), f"open device program {number}")
        try:
            _bpf(BPF_PROG_DETACH, struct.pack("=IIII", cgroup, old, BPF_CGROUP_DEVICE, 0), "detach device program")
        finally:
            os.close(old)


def _attached(cgroup: int) -> Sequence[int]:
    """The ids of the cgroup's own device programs."""
    ids = (ctypes.c_uint32 * BPF_CGROUP_MAX_PROGS)()
    asked = QUERY.pack(cgroup, BPF_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), len(ids))
    query = ctypes.create_string_buffer(asked, len(asked))
    _bpf(BPF_PROG_QUERY, query, "list device programs")
    return ids[: QUERY.unpack(query.raw)[5]]


def _bpf(command: int, attributes: bytes | ctypes.Array[ctypes.c_char], operation: str) -> int:
    """Answers come in `attributes`, where it is a buffer."""
    size = ctypes.c_uint(len(attributes))
    result: int = _libc.syscall(ctypes.c_long(NR_BPF), ctypes.c_int(command), attributes, size)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), operation)
    return result
