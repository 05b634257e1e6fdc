"""What an agent finds missing on a machine, told in one line and before it changes anything."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from agent import preflight
from agent.preflight import NotFit
from cli.settings import AgentSettings, SettingsError, load
from model.volume import HostVolume


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a machine that has everything, its caller being root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/sbin/{program}")
    namespaces = tmp_path / "self" / "ns"
    namespaces.mkdir(parents=True)
    for name in preflight.NAMESPACES:
        (namespaces / name).touch()
    (tmp_path / "filesystems").write_text("".join(f"nodev\t{name}\n" for name in preflight.FILESYSTEMS) + "\text4\n")
    mounts = [
        f"{number} 1 0:{number} / /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}\n"
        for number, name in enumerate(("cpu", "memory", "pids", "cpuset", "devices", "freezer", "blkio"), 30)
    ]
    (tmp_path / "self" / "mountinfo").write_text("".join(mounts))
    seccomp = tmp_path / "sys" / "kernel" / "seccomp"
    seccomp.mkdir(parents=True)
    (seccomp / "actions_avail").write_text("kill_process errno allow\n")
    return tmp_path


def test_a_machine_that_has_it_all(proc: Path) -> None:
    preflight.check(proc)


def test_everything_that_lacks_is_told_at_once(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (proc / "filesystems").write_text("nodev\ttmpfs\nnodev\tproc\nnodev\tsysfs\nnodev\tmqueue\nnodev\tdevpts\n")
    (proc / "self" / "ns" / "user").unlink()
    (proc / "self" / "mountinfo").write_text("")
    (proc / "sys" / "kernel" / "seccomp" / "actions_avail").unlink()
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(NotFit) as caught:
        preflight.check(proc)
    for words in ("overlay (modprobe overlay)", "user namespaces", "cgroup", "seccomp", "apt-get install iptables"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value) and "tmpfs" not in str(caught.value)


def test_libraries_that_lack_are_told_with_their_packages(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "LIBRARIES", {"libnftables.so.1000": preflight.LIBRARIES["libnftables.so.1"]})
    with pytest.raises(NotFit, match=r"it lacks libnftables.so.1000 \(apt-get install nftables\)"):
        preflight.check(proc)


def test_only_root(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotFit, match="needs root: run it with sudo"):
        preflight.check(proc)


def test_a_runtime_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    preflight.check_runtime("native")
    with pytest.raises(NotFit, match=r'runtime = "crun": this machine lacks crun \(apt-get install crun\)'):
        preflight.check_runtime("crun")


def test_a_runtime_that_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('runtime = "docker"\n')
    with pytest.raises(SettingsError, match=r"agent.toml: runtime: .*'native', 'crun' or 'runc'"):
        load(AgentSettings, tmp_path / "agent.toml")


def test_host_volumes_of_a_node(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('host_volumes = ["/srv/data:rw", "/etc/ssl:ro"]\n')
    assert load(AgentSettings, file).host_volumes == [HostVolume("/srv/data", "rw"), HostVolume("/etc/ssl", "ro")]
    for wrong in ("/srv", "/proc/sys:ro", "/:ro", "data:rw", "/srv/../etc:ro"):
        file.write_text(f'host_volumes = ["{wrong}"]\n')
        with pytest.raises(SettingsError, match=r"agent.toml: host_volumes.0: .*"):
            load(AgentSettings, file)


def test_the_range_of_ports_that_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "agent.toml"
    assert load(AgentSettings, file).host_ports == (31000, 32000)
    file.write_text('host_ports = "20000-20100"\n')
    assert load(AgentSettings, file).host_ports == (20000, 20100)
    monkeypatch.setenv("TEPUI_AGENT_HOST_PORTS", "1025-32000")
    assert load(AgentSettings, file).host_ports == (1025, 32000)
    monkeypatch.delenv("TEPUI_AGENT_HOST_PORTS")
    for bad in ("31000", "2-1", "0-5", "1-65536", "a-b", ""):
        file.write_text(f'host_ports = "{bad}"\n')
        with pytest.raises(SettingsError, match="host_ports.*range of ports, like 31000-32000"):
            load(AgentSettings, file)


def test_where_other_runtimes_ask(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    assert load(AgentSettings, file).cni_socket == Path("/run/tepui/cni.sock")
    file.write_text('cni_socket = "cni.sock"\n')
    with pytest.raises(SettingsError, match=r"agent.toml: cni_socket: .*'cni.sock' must be an absolute path"):
        load(AgentSettings, file)
