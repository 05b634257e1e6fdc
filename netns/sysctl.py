"""Kernel settings of a network namespace, below /proc/sys/net: those of the calling thread's namespace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from netns.driver import NetworkError

ROOT = Path("/proc/sys/net")


@dataclass(frozen=True, slots=True)
class Sysctl:
    """`path` below /proc/sys/net, as in `ipv4/conf/all/forwarding`."""

    path: str
    value: str

    def describe(self) -> str:
        return f"set net/{self.path} to {self.value}"


def holds(sysctl: Sysctl) -> bool:
    """Whether it has its value. False for a link that does not exist, but for settings of IPv6 (see `write`)."""
    try:
        return (ROOT / sysctl.path).read_text().strip() == sysctl.value
    except FileNotFoundError:
        return _of_ipv6(sysctl)
    except OSError as error:
        raise NetworkError(f"read net/{sysctl.path}: {error.strerror}") from error


def write(sysctl: Sysctl) -> None:
    """A setting of IPv6 that is not there needs no writing: the kernel was told to do without IPv6, or the link's MTU
    is below what IPv6 needs (RFC 8200 section 5) and the kernel took it off the link."""
    try:
        (ROOT / sysctl.path).write_text(sysctl.value)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and _of_ipv6(sysctl):
            return
        raise NetworkError(f"{sysctl.describe()}: {error.strerror}") from error


def quiet(dev: str) -> tuple[Sysctl, ...]:
    """A link that gives itself no address and takes no advice from what is connected to it."""
    return (
        Sysctl(f"ipv6/conf/{dev}/addr_gen_mode", "1"),
        Sysctl(f"ipv6/conf/{dev}/accept_ra", "0"),
        Sysctl(f"ipv6/conf/{dev}/accept_redirects", "0"),
        Sysctl(f"ipv4/conf/{dev}/accept_redirects", "0"),
    )


def ipv6(dev: str, wanted: bool) -> tuple[Sysctl, ...]:
    """Whether a link has IPv6 at all, whatever the node has new links have."""
    return (Sysctl(f"ipv6/conf/{dev}/disable_ipv6", "0" if wanted else "1"),)


def ipv6_router() -> tuple[Sysctl, ...]:
    """What makes the node a router of IPv6, which, unlike with IPv4, it is as a whole or not at all. A router believes
    no advertisements of others, so links on which the node has listened to them until now are told to go on
    (ip-sysctl.rst: accept_ra 2): it would lose its own address and default route. Links that come later are not: they
    may be those of containers. Nothing, when the node is a router already."""
    everywhere = Sysctl("ipv6/conf/all/forwarding", "1")
    if holds(everywhere):
        return ()
    links = sorted(path.name for path in (ROOT / "ipv6/conf").iterdir() if path.name not in ("all", "default"))
    listening = [link for link in links if holds(Sysctl(f"ipv6/conf/{link}/accept_ra", "1"))]
    return (*(Sysctl(f"ipv6/conf/{link}/accept_ra", "2") for link in listening), everywhere)


def forwarding(dev: str) -> tuple[Sysctl, ...]:
    """Packets that come in through `dev` are routed onwards. It is the link they come in through that counts, so for
    IPv4 the node as a whole need not become a router (for IPv6 see `ipv6_router`)."""
    return (Sysctl(f"ipv4/conf/{dev}/forwarding", "1"),)


def _of_ipv6(sysctl: Sysctl) -> bool:
    return sysctl.path.startswith("ipv6/")
