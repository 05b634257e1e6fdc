"""The device rules as a BPF program, run by an interpreter of the few instructions that it consists of."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolators.base import Unsupported
from isolators.cgroup import device_program as bpf
from isolators.cgroup.device_program import Instruction, encode, program
from isolators.cgroup.devices import DEFAULT, Rule, rule, whole_disk
from model.limits import Device

READ, WRITE, MKNOD = 2, 4, 1
CHAR, BLOCK = 2, 1

RULES = st.lists(
    st.builds(
        Rule,
        st.sampled_from("bc"),
        st.integers(0, 3),
        st.none() | st.integers(0, 3),
        st.sampled_from(("r", "w", "rw")),
    ),
    max_size=6,
)


def run(instructions: list[Instruction], kind: int, access: int, major: int, minor: int) -> int:
    """What the program returns for one `struct bpf_cgroup_dev_ctx`."""
    context = struct.pack("=3I", access << 16 | kind, major, minor)
    registers = dict.fromkeys(range(11), 0)
    at = 0
    while True:
        step = instructions[at]
        at += 1
        match step.code:
            case bpf.BPF_LDX_MEM_W:
                registers[step.destination] = struct.unpack_from("=I", context, step.offset)[0]
            case bpf.BPF_ALU32_MOV_X:
                registers[step.destination] = registers[step.source]
            case bpf.BPF_ALU32_AND_K:
                registers[step.destination] &= step.immediate
            case bpf.BPF_ALU32_RSH_K:
                registers[step.destination] >>= step.immediate
            case bpf.BPF_ALU64_MOV_K:
                registers[step.destination] = step.immediate
            case bpf.BPF_JMP32_JNE_K:
                at += step.offset if registers[step.destination] != step.immediate else 0
            case bpf.BPF_EXIT:
                return registers[bpf.RESULT]
            case code:
                raise AssertionError(f"instruction {code:#x} is not one that we use")


def allowed(rules: list[Rule], kind: int, access: int, major: int, minor: int) -> bool:
    """What the rules mean."""
    for one in rules:
        held = sum({"r": READ, "w": WRITE}[letter] for letter in one.access)
        same = ({"c": CHAR, "b": BLOCK}[one.kind], one.major) == (kind, major) and one.minor in (None, minor)
        if same and not access & ~held:
            return True
    return False


@given(RULES, st.sampled_from((CHAR, BLOCK)), st.integers(0, 7), st.integers(0, 4), st.integers(0, 4))
def test_a_program_decides_as_its_rules_say(rules: list[Rule], kind: int, access: int, major: int, minor: int) -> None:
    expected = allowed(rules, kind, access, major, minor)
    assert run(program(rules), kind, access, major, minor) == int(expected)


def test_defaults_open_what_programs_expect_and_make_nothing() -> None:
    instructions = program(DEFAULT)
    assert run(instructions, CHAR, READ | WRITE, 1, 3) == 1  # null
    assert run(instructions, CHAR, READ | WRITE, 136, 7) == 1  # a pseudo terminal
    assert run(instructions, CHAR, READ, 1, 1) == 0  # mem
    assert run(instructions, BLOCK, READ, 1, 3) == 0
    assert run(instructions, CHAR, MKNOD, 1, 3) == 0


def test_no_rules_refuse_everything() -> None:
    assert encode(program([])).endswith(struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0))


def test_an_instruction_is_laid_out_as_the_kernel_reads_it() -> None:
    assert Instruction(0x56, 4, 1, 3, -1).encode() == bytes((0x56, 0x14, 3, 0, 0xFF, 0xFF, 0xFF, 0xFF))


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (Device("/dev/null", "x"), "access 'x'"),
        (Device("/dev/null", ""), "access ''"),
        (Device("/dev/null", "rr"), "access 'rr'"),
        (Device("/dev/missing"), "No such file"),
        (Device("/etc/passwd"), "below /dev"),
        (Device("/dev/../etc/passwd"), "below /dev"),
        (Device("/dev/shm"), "not a device"),
    ],
)
def test_devices_that_are_none(device: Device, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        rule(device)


def test_a_device_becomes_a_rule() -> None:
    assert str(rule(Device("/dev/null", "r"))) == "c 1:3 r"


def test_a_partition_stands_for_its_disk(tmp_path: Path) -> None:
    disk = tmp_path / "devices/sda"
    (disk / "sda1").mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    (disk / "sda1/dev").write_text("8:1\n")
    (disk / "sda1/partition").write_text("1\n")
    (tmp_path / "8:0").symlink_to(disk)
    (tmp_path / "8:1").symlink_to(disk / "sda1")
    assert [whole_disk(number, "/x", tmp_path) for number in (0x800, 0x801)] == ["8:0", "8:0"]
    with pytest.raises(Unsupported, match="on no disk"):
        whole_disk(0x30, "/x", tmp_path)
