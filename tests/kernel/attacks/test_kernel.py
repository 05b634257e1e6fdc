"""Attacks on the kernel that all containers share: system calls that have no business in one."""

from __future__ import annotations

import platform

import pytest

from tests.kernel.attacks.attacker import Attacker

pytestmark = pytest.mark.anyio

# Without a filter most of these would answer EFAULT or EINVAL: they were let in to look at their arguments.
CLOSED = (
    "add_key",
    "bpf",
    "fsopen",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_load",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "reboot",
    "request_key",
    "setns",
    "swapon",
    "syslog",
    "unshare",
    "userfaultfd",
)
NAMESPACE_FLAGS = {
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}
AF_ALG, AF_VSOCK = 38, 40
SOCKET_32, SOCKETPAIR_32, SOCKETCALL_32, UNSHARE_32, MOUNT_32, KEYCTL_32 = 359, 360, 102, 310, 21, 288

x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="its other ABIs")


async def test_closed_calls_do_not_even_look_at_their_arguments(attacker: Attacker) -> None:
    found = await attacker.find(f"found = {{name: call(name, None, 0, 0, None, None) for name in {CLOSED}}}")
    assert found == dict.fromkeys(CLOSED, "EPERM")


@pytest.mark.parametrize("user", ["0:0", "1000:1000"])
async def test_no_namespace_is_made(attacker: Attacker, user: str) -> None:
    """Root in a namespace of its own reaches code of the kernel that expects to be called by root alone."""
    found = await attacker.find(
        f"found = [call(name, flag | extra, *[0] * zeros) for flag in {list(NAMESPACE_FLAGS.values())}"
        " for name, extra, zeros in (('unshare', 0, 0), ('clone', 17, 4))]"
        " + [call('clone3', bytes(88), 88)]",
        user=user,
    )
    assert found == ["EPERM"] * 2 * len(NAMESPACE_FLAGS) + ["ENOSYS"]


async def test_cve_2022_0492_no_control_group_is_mounted_for_its_release_agent(attacker: Attacker) -> None:
    found = await attacker.find(
        """
os.mkdir("/tmp/cgroup")
found = [call("mount", b"cgroup", b"/tmp/cgroup", b"cgroup", 0, options) for options in (b"rdma", b"memory", b"pids")]
found += [call("unshare", 0x12000000), os.listdir("/tmp/cgroup")]
found += [attempt(f"/sys/fs/cgroup/{tree}/release_agent", os.O_WRONLY) for tree in ("memory", "pids", "rdma")]
"""
    )
    assert found == ["EPERM"] * 4 + [[]] + ["ENOENT"] * 3


@pytest.mark.parametrize("family", [AF_ALG, AF_VSOCK])
async def test_cve_2026_31431_families_of_sockets_that_cross_containers_are_closed(
    attacker: Attacker, family: int
) -> None:
    """The kernel reads 32 of the register's 64 bits: the rest must not carry a call past the filter."""
    found = await attacker.find(
        f"""
numbers = [{family}, {family} | 1 << 32, {family} | 1 << 63, {family} - (1 << 32)]
calls = [(name, number, kind) for name in ("socket", "socketpair") for number in numbers for kind in (1, 5)]
found = [call(*each, 0, bytes(8)) for each in calls]
"""
    )
    assert set(found) == {"EPERM"}


@x86_64
@pytest.mark.parametrize("family", [AF_ALG, AF_VSOCK])
async def test_cve_2026_31431_on_every_abi(attacker: Attacker, family: int) -> None:
    found = await attacker.find(
        f"""
import struct
low = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40)  # MAP_32BIT
low.write(struct.pack("3I", {family}, 5, 0))
found = [
    call_32({SOCKET_32}, {family}, 5, 0),
    call_32({SOCKETPAIR_32}, {family}, 5, 0),
    call_32({SOCKETCALL_32}, 1, ctypes.addressof(ctypes.c_char.from_buffer(low))),
    call(NUMBERS["socket"] | X32_BIT, {family}, 5, 0),
]
"""
    )
    assert found == ["EPERM", "EPERM", "ENOSYS", "ENOSYS"]


@x86_64
async def test_the_32_bit_door_is_as_closed(attacker: Attacker) -> None:
    found = await attacker.find(
        f"""
found = [call_32(20), call_32({SOCKET_32}, 2, 1, 0)]
found += [call_32({UNSHARE_32}, flag) for flag in {list(NAMESPACE_FLAGS.values())}]
found += [call_32({MOUNT_32}), call_32({KEYCTL_32}), call_32(120, 0x10000011)]
"""
    )
    assert found == ["ok", "ok", *["EPERM"] * (len(NAMESPACE_FLAGS) + 3)]


async def test_keys_of_the_node_are_not_found(attacker: Attacker) -> None:
    """A keyring belongs to a user, not to a container, on kernels that have no namespaces for them."""
    found = await attacker.find("found = [call('keyctl', 0, key, 1) for key in (-1, -2, -3, -4, -5)]")
    assert found == ["EPERM"] * 5


async def test_the_filter_can_not_be_taken_off(attacker: Attacker) -> None:
    found = await attacker.find(
        """
before = call("unshare", 0x10000000)
LIBC.prctl(22, 0, 0, 0, 0), LIBC.prctl(38, 0, 0, 0, 0)
mode = [line.split()[1] for line in open("/proc/self/status") if "Seccomp:" in line]
found = [before, call("unshare", 0x10000000), *mode]
"""
    )
    assert found == ["EPERM", "EPERM", "2"]


async def test_a_tracer_does_not_change_what_was_filtered(attacker: Attacker) -> None:
    """Before Linux 4.8 a traced child's call was changed after the filter had passed it."""
    script = """
import signal
child = os.fork()
if child == 0:
    call("ptrace", 0, 0, None, None)
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0 if call("unshare", 0x10000000) == "EPERM" else 1)
os.waitpid(child, 0)
call("ptrace", 7, child, None, None)
found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
    assert await attacker.find(script) == 0
