"""What another runtime is given: the container's bundle, but for what is done already and what it can't do."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from agent.launcher.oci import adapted, command, first_closed

MADE = "/made"


def config(**linux: Any) -> dict[str, Any]:
    return {"ociVersion": "1.2.0", "root": {"path": "/state/containers/c1/rootfs"}, "linux": {"namespaces": []} | linux}


def test_limits_are_left_out_but_for_the_devices() -> None:
    rules = [{"allow": False, "access": "rwm"}]
    wanted = config(resources={"devices": rules, "memory": {"limit": 1}}, cgroupsPath="/tepui/c1")
    linux = adapted(wanted, None, 42, MADE)["linux"]
    assert linux["resources"] == {"devices": rules} and linux["cgroupsPath"] == "/tepui/c1"
    assert wanted["linux"]["resources"]["memory"] == {"limit": 1}


def test_users_and_network_are_those_of_the_sandbox() -> None:
    spaces = adapted(config(namespaces=[{"type": kind} for kind in ("user", "network", "pid")]), None, 42, MADE)
    joined = [{"type": "user", "path": "/proc/42/ns/user"}, {"type": "network", "path": "/proc/42/ns/net"}]
    assert spaces["linux"]["namespaces"] == [*joined, {"type": "pid"}]


def test_what_can_not_be_reached_is_not_masked() -> None:
    paths = ["/proc/kcore", "/state", "/state/containers"]
    assert adapted(config(maskedPaths=paths), "/state", 42, MADE)["linux"]["maskedPaths"] == ["/proc/kcore", "/state"]
    assert adapted(config(maskedPaths=paths), None, 42, MADE)["linux"]["maskedPaths"] == paths


def test_what_it_can_not_mount_is_mounted_for_it() -> None:
    maps = [{"containerID": 0, "hostID": 1 << 20, "size": 1}]
    mounts = [
        {"destination": "/data", "type": "bind", "source": "/state/volumes/v", "uidMappings": maps},
        {"destination": "/srv/a", "type": "bind", "source": "/proc/42/fd/7"},
        {"destination": "/run/secrets", "type": "bind", "source": "/state/secrets"},
        {"destination": "/proc", "type": "proc", "source": "proc"},
    ]
    given = adapted(config() | {"mounts": mounts}, None, 42, MADE)["mounts"]
    mapped, opened, *others = [mount["source"] for mount in given]
    assert others == ["/state/secrets", "proc"]
    assert mapped.startswith("/made/") and opened.startswith("/made/") and mapped != opened
    assert "uidMappings" not in given[0]


def test_all_that_it_notes_is_with_the_container() -> None:
    argv = command("crun", "/state/containers/web.1", "start", "web.1")
    assert argv[:2] == ["crun", "--cgroup-manager=cgroupfs"] and argv[-2:] == ["start", "web.1"]
    assert argv[argv.index("--root") + 1] == "/state/containers/web.1/runtime/state"


def test_the_first_directory_that_others_may_not_pass(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    closed = first_closed(str(tmp_path / "containers" / "web.1" / "rootfs"))
    assert closed is not None and tmp_path.is_relative_to(closed)
    assert not os.stat(closed).st_mode & stat.S_IXOTH
    assert all(above.stat().st_mode & stat.S_IXOTH for above in Path(closed).parents)
    assert first_closed("/usr/bin/env") is None
