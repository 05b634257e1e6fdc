"""What the daemons are told: a TOML file in the state directory, and environment variables that outrank it.

`tepui master init` and `tepui agent join` write the files; a person may edit them. An unknown key is an error.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from cli.cni_plugin import SOCKET as CNI_SOCKET
from model.node import HOST_PORTS, LOST_AFTER_S, UNREACHABLE_AFTER_S
from model.volume import HostVolume, parse_host_volume

Port = Field(ge=1, le=65535)


def _host_volume(value: object) -> object:
    return parse_host_volume(value) if isinstance(value, str) else value


def _port_range(value: object) -> object:
    """`31000-32000`."""
    if not isinstance(value, str):
        return value
    first, _, last = value.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= 65535):
        raise ValueError(f"{value!r} must be the first and the last of a range of ports, like 31000-32000")
    return int(first), int(last)


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"{str(path)!r} must be an absolute path")
    return path


class SettingsError(Exception):
    """A settings file can not be used. The text names the file and the key."""


class _Settings(BaseSettings):
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


VIP_POOLS: list[IPv4Network | IPv6Network] = [ip_network("100.127.0.0/16"), ip_network("fd01:c::/112")]


class MasterSettings(_Settings):
    """`listen` is the address of all three ports. `names` are what clients may call the master besides localhost. Names
    of VIPs get addresses from `vip_pools`, of which every node has to know; labels may name addresses in these and in
    `vip_ranges`. What the delays mean is told in `master/nodes.py`."""

    model_config = SettingsConfigDict(env_prefix="TEPUI_MASTER_", extra="forbid")

    listen: IPv4Address | IPv6Address = IPv4Address("0.0.0.0")
    names: list[str] = []
    api_port: int = Field(8443, ge=1, le=65535)
    control_port: int = Field(8444, ge=1, le=65535)
    enrol_port: int = Field(8445, ge=1, le=65535)
    vip_pools: list[IPv4Network | IPv6Network] = VIP_POOLS
    vip_ranges: list[IPv4Network | IPv6Network] = []
    unreachable_after_s: float = Field(UNREACHABLE_AFTER_S, gt=0)
    lost_after_s: float = Field(LOST_AFTER_S, gt=0)


class AgentSettings(_Settings):
    """`cpus` (thousandths), `mem` and `disk` (MiB) are what may be handed out; None: what the machine has, less a
    reserve for itself. `address` is the node's on the underlay, or a subnet that it is in (of several links the right
    one); None: the one that leads to the master. Without `vxlan_checksum_offload` checksums of what overlays carry are
    not left to the network card, which may get them wrong (`netns/overlay/offload.py`). `capabilities`,
    `unconfined_seccomp`, `host_network`, `devices` and `host_volumes` (each `/srv/data:rw`, or `:ro`, or `:rshared`)
    permit tasks what the defaults do not (`isolators/rights.py`).
    `runtime` makes containers' first processes: our own launcher, or another OCI runtime that is installed here.

    Of each stream of a task `log_files` of `log_file_mib` are kept, unless the task asks for something else
    (`agent/log_limits.py`), which may be up to `log_stream_mib` in all; and when the task has ended, for
    `log_keep_h` hours, or until the logs of ended tasks take more than `log_keep_mib`.

    `cni_path` are the directories in which CNI plug-ins are looked for, each root's alone. At `cni_socket` our own
    plug-in, `tepui-cni`, asks for what other runtimes want.
    `vip_backend` translates virtual addresses; by itself iptables, if another program of the node does so, and else
    nftables. With `external` clients from outside of the cluster come in through this node, to virtual addresses whose
    label says that they are for them (`tepui/external`). Of `host_ports` one is taken for a task that asks for any port
    of the node. Names of DC/OS (below `mesos` and `thisdcos.directory`) are answered too with `compat_domains`; names
    that are not the cluster's are asked of `name_servers`, or else of those in the node's resolv.conf.

    `metrics_port` is on loopback (`agent/metrics.py`). `local_sources` are directories of the node from which tasks may
    have images (`oci:`, `docker-archive:`) and files (`file:`). `pull_secrets` are the files with credentials for
    registries that stand for what definitions name."""

    model_config = SettingsConfigDict(env_prefix="TEPUI_AGENT_", extra="forbid")

    master: str = ""  # host:port of the control port
    address: IPv4Address | IPv6Address | IPv4Network | IPv6Network | None = None
    vxlan_checksum_offload: bool = True
    cgroup: str = "tepui"
    cpus: int | None = Field(None, gt=0)
    mem: int | None = Field(None, gt=0)
    disk: int | None = Field(None, ge=0)
    attributes: dict[str, str] = {}
    capabilities: list[str] = []
    unconfined_seccomp: bool = False
    host_network: bool = False
    devices: list[str] = []
    host_volumes: list[Annotated[HostVolume, BeforeValidator(_host_volume)]] = []
    runtime: Literal["native", "crun", "runc"] = "native"
    local_sources: list[Path] = []
    pull_secrets: dict[str, Path] = {}
    vip_pools: list[IPv4Network | IPv6Network] = VIP_POOLS
    vip_backend: Literal["auto", "iptables", "nftables"] = "auto"
    external: bool = False
    compat_domains: bool = True
    name_servers: list[IPv4Address | IPv6Address] = []
    log_file_mib: int = Field(10, ge=1)
    log_files: int = Field(3, ge=1)
    log_stream_mib: int = Field(256, ge=1)
    log_keep_h: float = Field(24.0, ge=0)
    log_keep_mib: int = Field(1024, ge=0)
    cni_path: list[Path] = [Path("/opt/cni/bin"), Path("/usr/lib/cni")]
    cni_socket: Annotated[Path, AfterValidator(_absolute)] = Path(CNI_SOCKET)
    host_ports: Annotated[tuple[int, int], NoDecode, BeforeValidator(_port_range)] = HOST_PORTS
    metrics_port: int = Field(9464, ge=1, le=65535)


S = TypeVar("S", bound=_Settings)


def load(kind: type[S], file: Path) -> S:
    """`kind` from `file` (which may be absent) and the environment. Raises SettingsError."""
    from_file = type(kind.__name__, (kind,), {"model_config": SettingsConfigDict(toml_file=file)})
    try:
        return from_file()  # type: ignore[no-any-return]
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: {error}") from error


def machine_resources(state: Path) -> tuple[int, int, int]:
    """Thousandths of a CPU, MiB of memory and of disk that tasks may have: the machine's, less what it needs itself."""
    cpus = len(os.sched_getaffinity(0)) * 1000
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    disk = os.statvfs(state)
    return cpus, memory - min(1024, memory // 4), disk.f_bavail * disk.f_frsize // 2**20 * 3 // 4
