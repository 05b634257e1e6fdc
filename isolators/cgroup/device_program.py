"""The device rules of a container as a BPF program (BPF_PROG_TYPE_CGROUP_DEVICE, linux/bpf.h): a pure function.

The kernel runs it for each open and mknod with a `struct bpf_cgroup_dev_ctx`: the kind of device in the low half of
`access_type` and what is wanted in the high half, then major and minor. It returns 1 to allow and 0 to refuse.

    w2 = kind, w3 = access wanted, w4 = major, w5 = minor
    for each rule: on to the next one unless kind, major and minor are the rule's and nothing else is wanted
        return 1
    return 0

Jumps are forward and by a few instructions, as the verifier likes it, so the length grows with the rules only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from isolators.cgroup.devices import Rule

BPF_DEVCG_DEV_BLOCK, BPF_DEVCG_DEV_CHAR = 1, 2
BPF_DEVCG_ACC_READ, BPF_DEVCG_ACC_WRITE = 2, 4
KINDS = {"b": BPF_DEVCG_DEV_BLOCK, "c": BPF_DEVCG_DEV_CHAR}
ACCESSES = {"r": BPF_DEVCG_ACC_READ, "w": BPF_DEVCG_ACC_WRITE}

# Instruction classes and operations (linux/bpf_common.h, linux/bpf.h); W and 32: on the low 32 bits.
BPF_LDX_MEM_W = 0x61
BPF_ALU32_AND_K = 0x54
BPF_ALU32_RSH_K = 0x74
BPF_ALU32_MOV_X = 0xBC
BPF_ALU64_MOV_K = 0xB7
BPF_JMP32_JNE_K = 0x56
BPF_EXIT = 0x95
ACCESS_TYPE, MAJOR, MINOR = 0, 4, 8  # offsets in bpf_cgroup_dev_ctx
RESULT, CONTEXT, KIND, WANTED, MAJOR_REGISTER, MINOR_REGISTER, SCRATCH = range(7)


@dataclass(frozen=True, slots=True)
class Instruction:
    """`struct bpf_insn`."""

    code: int
    destination: int = 0
    source: int = 0
    offset: int = 0
    immediate: int = 0

    def encode(self) -> bytes:
        return struct.pack("=BBhi", self.code, self.source << 4 | self.destination, self.offset, self.immediate)


def program(rules: Iterable[Rule]) -> list[Instruction]:
    instructions = [
        Instruction(BPF_LDX_MEM_W, KIND, CONTEXT, ACCESS_TYPE),
        Instruction(BPF_ALU32_MOV_X, WANTED, KIND),
        Instruction(BPF_ALU32_AND_K, KIND, immediate=0xFFFF),
        Instruction(BPF_ALU32_RSH_K, WANTED, immediate=16),
        Instruction(BPF_LDX_MEM_W, MAJOR_REGISTER, CONTEXT, MAJOR),
        Instruction(BPF_LDX_MEM_W, MINOR_REGISTER, CONTEXT, MINOR),
    ]
    for rule in rules:
        instructions += _allow(rule)
    return [*instructions, *_return(0)]


def encode(instructions: Iterable[Instruction]) -> bytes:
    return b"".join(instruction.encode() for instruction in instructions)


def _allow(rule: Rule) -> list[Instruction]:
    """One condition after the other, each of which jumps behind the rule when it does not hold."""
    refused = ~sum(ACCESSES[letter] for letter in rule.access) & 0xFFFF
    conditions = [(KIND, KINDS[rule.kind]), (MAJOR_REGISTER, rule.major)]
    if rule.minor is not None:
        conditions.append((MINOR_REGISTER, rule.minor))
    excess = [
        Instruction(BPF_ALU32_MOV_X, SCRATCH, WANTED),
        Instruction(BPF_ALU32_AND_K, SCRATCH, immediate=refused),
        Instruction(BPF_JMP32_JNE_K, SCRATCH, offset=len(_return(1)), immediate=0),
    ]
    end = len(conditions) + len(excess) + len(_return(1))
    checks = [
        Instruction(BPF_JMP32_JNE_K, register, offset=end - index - 1, immediate=value)
        for index, (register, value) in enumerate(conditions)
    ]
    return [*checks, *excess, *_return(1)]


def _return(value: int) -> list[Instruction]:
    return [Instruction(BPF_ALU64_MOV_K, RESULT, immediate=value), Instruction(BPF_EXIT)]
