"""Seccomp profiles: what Docker's format means, what the default holds, and when a profile is laxer than that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from isolators.profiles import docker
from isolators.profiles.docker import Machine, ProfileError, excess, parse, resolve

X86 = Machine("amd64", "SCMP_ARCH_X86_64", (6, 18))
ARM = Machine("arm64", "SCMP_ARCH_AARCH64", (6, 18))
NONE: frozenset[str] = frozenset()
ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"


def profile(*rules: dict[str, Any], default: str = ERRNO, **more: Any) -> docker.Profile:
    return parse(
        json.dumps({"defaultAction": default, "syscalls": [{"action": ALLOW, **rule} for rule in rules], **more})
    )


def names(resolved: dict[str, Any], action: str = ALLOW) -> set[str]:
    return {name for rule in resolved["syscalls"] if rule["action"] == action for name in rule["names"]}


@pytest.mark.parametrize("machine", [X86, ARM], ids=["x86", "arm"])
def test_default_never_allows(machine: Machine) -> None:
    never = {
        *("keyctl", "add_key", "request_key", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"),
        *("kexec_load", "kexec_file_load", "swapon", "swapoff", "pivot_root", "nfsservctl", "uselib", "create_module"),
        *("ustat", "sysfs", "_sysctl", "get_kernel_syms", "query_module", "move_pages", "migrate_pages", "socketcall"),
    }
    everything = frozenset(rule for entry in docker.default().syscalls for rule in entry.includes.caps)
    assert names(resolve(docker.default(), everything, machine)) & never == set()


def test_default_without_capabilities_allows_nothing_that_makes_namespaces_or_mounts() -> None:
    allowed = names(resolve(docker.default(), NONE, X86))
    denied = {"unshare", "setns", "mount", "umount2", "fsopen", "open_tree", "move_mount", "bpf", "perf_event_open"}
    assert allowed & denied == set()
    assert allowed & {"open_by_handle_at", "chroot", "kcmp", "pidfd_getfd", "init_module", "syslog", "reboot"} == set()
    assert {"clone3"} == names(resolve(docker.default(), NONE, X86), ERRNO) - {"socketcall"}


def test_default_speaks_of_each_call_once_under_each_condition() -> None:
    seen = [
        (name, str(rule.args), str(rule.includes), str(rule.excludes))
        for rule in docker.default().syscalls
        for name in rule.all_names
    ]
    assert len(seen) == len(set(seen))


def test_default_allows_five_families_of_sockets() -> None:
    rules = [rule for rule in resolve(docker.default(), NONE, X86)["syscalls"] if "socket" in rule["names"]]
    assert [rule["args"][0]["valueTwo"] for rule in rules] == [1, 2, 10, 16, 17]
    # The kernel looks at 32 bits of the register, so the filter must too.
    assert {(rule["args"][0]["op"], rule["args"][0]["value"]) for rule in rules} == {("SCMP_CMP_MASKED_EQ", 2**32 - 1)}


def test_capabilities_bring_their_calls() -> None:
    assert "chroot" in names(resolve(docker.default(), frozenset({"CAP_SYS_CHROOT"}), X86))
    admin = resolve(docker.default(), frozenset({"CAP_SYS_ADMIN"}), X86)
    assert {"mount", "clone3", "unshare"} <= names(admin)
    assert all("args" not in rule for rule in admin["syscalls"] if "clone" in rule["names"])


@pytest.mark.parametrize(
    ("condition", "applies"),
    [
        ({}, True),
        ({"includes": {"caps": ["CAP_BPF"]}}, False),
        ({"excludes": {"caps": ["CAP_BPF"]}}, True),
        ({"includes": {"arches": ["arm64"]}}, False),
        ({"excludes": {"arches": ["amd64"]}}, False),
        ({"includes": {"minKernel": "6.18"}}, True),
        ({"includes": {"minKernel": "6.19"}}, False),
        ({"excludes": {"minKernel": "4.8"}}, False),
        ({"includes": {"arches": ["amd64"], "minKernel": "7.0"}}, False),
    ],
)
def test_conditions(condition: dict[str, Any], applies: bool) -> None:
    resolved = resolve(profile({"names": ["read"], **condition}), NONE, X86)
    assert ("read" in names(resolved)) is applies


def test_architectures_are_the_native_one_and_its_subordinates_without_x32() -> None:
    table = [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}]
    assert resolve(profile(archMap=table), NONE, X86)["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert resolve(profile(archMap=table), NONE, ARM)["architectures"] == ["SCMP_ARCH_AARCH64"]
    assert resolve(profile(), NONE, X86)["architectures"] == ["SCMP_ARCH_X86_64"]


def test_socketcall_is_denied_unless_spoken_of() -> None:
    assert "socketcall" in names(resolve(profile({"names": ["socket"]}), NONE, X86), ERRNO)
    assert "socketcall" in names(resolve(profile({"names": ["socketcall"]}), NONE, X86))
    assert "socketcall" not in names(resolve(profile(default=ALLOW), NONE, X86), ERRNO)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "the whole"),
        ("[]", "the whole"),
        ("{}", "defaultAction"),
        ('{"defaultAction": "SCMP_ACT_NOTIFY"}', "defaultAction"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/x"}', "listenerPath"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}', "defaultErrnoRet"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"]}]}', "syscalls.0.action"),
    ],
)
def test_what_is_no_profile_is_refused_with_its_place(text: str, place: str) -> None:
    with pytest.raises(ProfileError, match=f"^{place}:"):
        parse(text)


def test_two_conditions_on_one_argument_are_refused() -> None:
    twice = [{"index": 0, "value": number, "op": "SCMP_CMP_NE"} for number in (38, 40)]
    with pytest.raises(ProfileError, match=r"syscalls.0.args"):
        profile({"names": ["socket"], "args": twice})


def compare(*rules: dict[str, Any], **more: Any) -> list[str]:
    return excess(resolve(profile(*rules, **more), NONE, X86), resolve(docker.default(), NONE, X86))


def test_excess_is_what_the_default_denies() -> None:
    socket = {"index": 0, "value": 38, "op": "SCMP_CMP_LT"}
    assert compare({"names": ["read", "write"]}) == []
    assert compare({"names": ["read", "mount", "bpf"]}) == ["bpf", "mount"]
    assert compare({"names": ["mount"], "action": "SCMP_ACT_KILL"}) == []
    assert compare({"names": ["mount"], "action": "SCMP_ACT_LOG"}) == ["mount"]
    assert compare({"names": ["socket"]}) == ["socket"]
    assert compare({"names": ["socket"], "args": [socket]}) == ["socket"]
    assert compare({"names": ["read"], "args": [socket]}) == []
    assert compare(default=ALLOW) == ["*"]
    assert compare(default="SCMP_ACT_LOG") == ["*"]


def test_the_default_does_not_exceed_itself() -> None:
    default = resolve(docker.default(), NONE, X86)
    assert excess(default, default) == []
