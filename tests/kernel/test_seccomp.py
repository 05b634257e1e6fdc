"""Filters as the kernel enforces them in real containers: the default, a profile of the task's own, none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.launcher.client import LaunchError
from isolators import profiles
from isolators.base import Unsupported
from isolators.rights import Rights
from tests.kernel.sandbox import Sandbox, exit_of, output, root_directory, sandbox, task

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

INSIDE = (Path(__file__).parent / "attacks" / "inside.py").read_text()
GETPRIORITY = "LIBC.getpriority(0, 0), ctypes.get_errno()"
EVERYTHING = json.dumps({"defaultAction": "SCMP_ACT_ALLOW"})


@pytest.fixture(params=[Rights()], ids=["default"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Sandbox]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    async with sandbox(state, request.param) as made:
        yield made


permissive = pytest.mark.parametrize("node", [Rights(unconfined=True)], ids=["permissive"], indirect=True)


async def ask(node: Sandbox, *expressions: str, **changes: Any) -> list[str]:
    """What expressions of `attacks/inside.py` come to in a container."""
    lines = "\n".join(f"print({expression})" for expression in expressions)
    ended, text = await node.run(task("web.1", "python3", "-I", "-S", "-c", f"{INSIDE}\n{lines}", **changes))
    assert ended.code == 0, (ended, text)
    return text.splitlines()


def denying(*names: str, action: str = "SCMP_ACT_ERRNO") -> str:
    """Docker's way to write "the default without these": here, everything but these."""
    rules = [{"names": list(names), "action": action, "errnoRet": 99}]
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})


async def test_default_filter_is_one_and_on(node: Sandbox, tmp_path: Path) -> None:
    image = str(root_directory(tmp_path / "image"))
    ended, text = await node.run(task("web.1", "cat", "/proc/self/status", rootfs=image))
    assert ended.code == 0
    assert "Seccomp:\t2\nSeccomp_filters:\t1\n" in text


async def test_default_answers_on_each_abi(node: Sandbox) -> None:
    found = await ask(
        node,
        "call('unshare', 0x10000000)",
        "call('socket', 38, 5, 0)",
        "call('socket', 2, 1, 0)",
        "call('socket', 1 << 32 | 38, 5, 0)",
        "call('clone', 0x10000000 | 17, 0, 0, 0, 0)",
    )
    assert found == ["EPERM", "EPERM", "ok", "EPERM", "EPERM"]


@pytest.mark.parametrize("number", ["600", "'clone3'"])
async def test_newer_calls_are_as_unknown_as_to_an_older_kernel(node: Sandbox, number: str) -> None:
    assert await ask(node, f"call({number}, None, 0)") == ["ENOSYS"]


async def test_profile_of_its_own_takes_away(node: Sandbox) -> None:
    stricter = json.loads((Path(profiles.__file__).parent / "default.json").read_text())
    for rule in stricter["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name != "getpriority"]
    assert await ask(node, GETPRIORITY) == ["0 0"]
    assert await ask(node, GETPRIORITY, id="web.2", seccomp=json.dumps(stricter)) == ["-1 1"]


@pytest.mark.parametrize(
    ("seccomp", "reason"),
    [
        ("unconfined", "unconfined is not permitted: set unconfined_seccomp"),
        (EVERYTHING, r"permits what the default does not: \*"),
        (denying("mount"), r"permits what the default does not: \*"),
        ("nonsense", "neither unconfined nor a profile"),
        (
            json.dumps(
                {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["raed"], "action": "SCMP_ACT_ALLOW"}]}
            ),
            "raed",
        ),
        (" " * 2**21, "at most"),
    ],
    ids=["unconfined", "everything", "all-but", "nonsense", "misspelt", "large"],
)
async def test_what_is_refused(node: Sandbox, seccomp: str, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        await node.start(task("web.1", "true", seccomp=seccomp))


@permissive
async def test_unconfined_is_no_filter(node: Sandbox) -> None:
    found = await ask(node, "open('/proc/self/status').read().count('Seccomp:\\t0')", seccomp="unconfined")
    assert found == ["1"]


@permissive
async def test_a_lax_profile_is_obeyed_with_the_right(node: Sandbox) -> None:
    assert await ask(node, GETPRIORITY, seccomp=denying("getpriority")) == ["-1 99"]


@permissive
async def test_a_denied_program_start_is_told(node: Sandbox) -> None:
    container = node.container(task("web.1", "true", seccomp=denying("execve")))
    launch = await node.create(container)
    await node.prepare(container)
    with pytest.raises(LaunchError) as caught:
        await node.fill(container, launch)
    assert (caught.value.operation, caught.value.errno) == ("execute", 99)


@permissive
async def test_what_can_not_be_denied_is_refused(node: Sandbox) -> None:
    """Newer than libseccomp, and older than the default profile."""
    with pytest.raises(Unsupported, match="can not be denied"):
        await node.start(task("web.1", "true", seccomp=denying("uretprobe")))


async def test_filter_is_loaded_without_no_new_privileges_too(node: Sandbox) -> None:
    def allow(config: dict[str, Any]) -> None:
        config["process"]["noNewPrivileges"] = False

    container, _ = await node.start(task("web.1", "cat", "/proc/self/status", user="1000:1000"), allow)
    await exit_of(container)
    assert "NoNewPrivs:\t0\nSeccomp:\t2\n" in output(container)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, None], ids=["empty", "cut", "wrong", "missing"])
async def test_a_damaged_program_never_runs_a_container_without_it(node: Sandbox, content: bytes | None) -> None:
    container = node.container(task("web.1", "true"))
    launch = await node.create(container)
    await node.prepare(container)
    path = container.directory / "seccomp.bpf"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(LaunchError, match="read bundle|load seccomp filter"):
        await node.fill(container, launch)
