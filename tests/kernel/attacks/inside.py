"""System calls as an attacker makes them: by number, on both ABIs of x86-64, without a library in between.

This text is put in front of what an attack runs with the node's python3 inside a container, so it stands alone.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
# asm/unistd.h
NUMBERS = {
    "x86_64": {
        "socket": 41,
        "socketpair": 53,
        "clone": 56,
        "ptrace": 101,
        "pivot_root": 155,
        "mount": 165,
        "swapon": 167,
        "reboot": 169,
        "init_module": 175,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "unshare": 272,
        "kexec_load": 246,
        "perf_event_open": 298,
        "open_by_handle_at": 304,
        "setns": 308,
        "bpf": 321,
        "userfaultfd": 323,
        "syslog": 103,
    },
    "aarch64": {
        "socket": 198,
        "socketpair": 199,
        "clone": 220,
        "ptrace": 117,
        "pivot_root": 41,
        "mount": 40,
        "swapon": 224,
        "reboot": 142,
        "init_module": 105,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "unshare": 97,
        "kexec_load": 104,
        "perf_event_open": 241,
        "open_by_handle_at": 265,
        "setns": 268,
        "bpf": 280,
        "userfaultfd": 282,
        "syslog": 116,
    },
}[platform.machine()] | {
    # The same everywhere.
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "clone3": 435,
    "mount_setattr": 442,
}
# f(number, first, second, third): moves the arguments to where a 32-bit call has them (eax, ebx, ecx, edx), and enters
# the kernel through the 32-bit door, int $0x80.
INT_80 = bytes.fromhex("53 89f8 89f3 87ca cd80 5b c3")
X32_BIT = 0x40000000


def call(name: str | int, *arguments: int | bytes | None) -> str:
    """`ok`, or the name of the error."""
    number = NUMBERS[name] if isinstance(name, str) else name
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *words)
    return name_of(ctypes.get_errno()) if result < 0 else "ok"


def call_32(number: int, *arguments: int) -> str:
    """The same by `int $0x80`; numbers are those of a 32-bit x86 kernel."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(INT_80)
        code = ctypes.c_char.from_buffer(page)
        function = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint] * 4)(ctypes.addressof(code))
        result = function(number, *[*arguments, 0, 0, 0][:3])
        del function, code
    return name_of(-result) if result < 0 else "ok"


def attempt(path: str, flags: int) -> str:
    """Opens a file: `ok`, or the name of the error."""
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return name_of(error.errno or 0)
    return "ok"


def name_of(number: int) -> str:
    return errno.errorcode.get(number, str(number))
