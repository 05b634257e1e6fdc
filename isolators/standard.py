"""The isolators that every container gets, in the order in which they prepare it.

Clean-up goes the other way: the cgroup comes first then, and with it the end of every process, so that nothing holds
what the others release.
"""

from __future__ import annotations

from pathlib import Path

from isolators.base import Isolator
from isolators.capabilities import CapabilitiesIsolator
from isolators.cgroup.isolator import CgroupIsolator
from isolators.filesystem import FilesystemIsolator, UserNamespace
from isolators.namespaces import NamespacesIsolator
from isolators.network import NetworkIsolator
from isolators.privileges import PrivilegesIsolator
from isolators.process import ProcessIsolator
from isolators.rlimits import RlimitsIsolator
from netns.driver import Driver


def standard_isolators(
    state_directory: Path, networks: Driver, userns_fd: UserNamespace, cgroup: str
) -> tuple[Isolator, ...]:
    """`cgroup` is the subtree, relative to each hierarchy's root, in which containers get theirs."""
    return (
        NamespacesIsolator(),
        FilesystemIsolator(state_directory, userns_fd),
        CapabilitiesIsolator(),
        PrivilegesIsolator(),
        RlimitsIsolator(),
        ProcessIsolator(),
        NetworkIsolator(networks),
        CgroupIsolator(cgroup),
    )
