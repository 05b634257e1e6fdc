"""The isolators that every container gets, in the order in which they prepare it.

The process comes after the file system, in which it looks up its user. Clean-up goes the other way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from isolators.base import Isolator
from isolators.capabilities import CapabilitiesIsolator
from isolators.cgroup.isolator import CgroupIsolator
from isolators.disk import DiskIsolator
from isolators.filesystem import FilesystemIsolator
from isolators.namespaces import NamespacesIsolator
from isolators.network import NetworkIsolator
from isolators.persistent import PersistentVolumes
from isolators.privileges import PrivilegesIsolator
from isolators.process import ProcessIsolator
from isolators.rights import Rights
from isolators.rlimits import RlimitsIsolator
from isolators.seccomp import SeccompIsolator
from isolators.secrets import SecretsIsolator
from isolators.sysctls import SysctlsIsolator
from isolators.volumes import VolumesIsolator
from isolators.workspace import WorkspaceIsolator
from model.names import DEFAULT_DOMAIN
from netns.driver import Driver
from netns.firewall.table import Firewall, Guest


def standard_isolators(
    state_directory: Path,
    networks: Driver,
    firewall: Firewall,
    volumes: PersistentVolumes,
    cgroup: str,
    rights: Rights,
    other_guests: Callable[[], tuple[Guest, ...]] = tuple,
    domain: str = DEFAULT_DOMAIN,
) -> tuple[Isolator, ...]:
    """`cgroup` is the subtree, relative to each hierarchy's root, in which containers get theirs; `rights` is what
    tasks may ask for beyond the defaults; `other_guests` are on the networks too, and no tasks' containers; `domain` is
    that of the cluster's names."""
    return (
        CgroupIsolator(cgroup, rights),
        NamespacesIsolator(rights),
        FilesystemIsolator(state_directory),
        DiskIsolator(state_directory),
        CapabilitiesIsolator(rights),
        SeccompIsolator(rights),
        PrivilegesIsolator(),
        RlimitsIsolator(),
        SysctlsIsolator(),
        WorkspaceIsolator(),
        VolumesIsolator(state_directory, volumes, rights),
        ProcessIsolator(),
        SecretsIsolator(state_directory),
        NetworkIsolator(networks, firewall, other_guests, domain),
    )
