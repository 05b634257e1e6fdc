"""The lab's network: a bridge in a namespace of its own, and a cable (a veth pair) from it to each node's eth0.

Every link is made inside the namespace it stays in, or goes from the fabric's straight to the node's; the machine's
own namespace has no part in it. Nobody has a route to anything but 10.77.0.0/24.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lab.errors import LabError

SUBNET = IPv4Network("10.77.0.0/24")
BRIDGE = "br0"
CLONE_NEWNET = 0x40000000  # linux/sched.h

Result = TypeVar("Result")


def create(fabric_pid: int) -> None:
    """Make the bridge, in the network namespace of `fabric_pid`."""
    with _errors("create the bridge"):
        in_network(fabric_pid, _create_bridge)


def connect(fabric_pid: int, node_pid: int, node: str, address: IPv4Address) -> None:
    """Plug the cable in: eth0 of `node` is up with `address` when this returns. Replaces an older cable."""
    with _errors(f"connect {node}"):
        in_network(fabric_pid, lambda: _lay_cable(node, node_pid))
        in_network(node_pid, lambda: _configure_eth0(address))


def disconnect(fabric_pid: int, node: str) -> None:
    """Take the cable away. Accepts that there is none."""
    with _errors(f"disconnect {node}"):
        in_network(fabric_pid, lambda: _remove_cable(node))


def set_cable(fabric_pid: int, node: str, up: bool) -> None:
    """Cut the cable, or mend it: what is sent while it is cut is lost, and both ends see no carrier."""
    with _errors(f"{'join' if up else 'cut'} {node}"):
        in_network(fabric_pid, lambda: _set_link(node, up))


def in_network(pid: int, verb: Callable[[], Result]) -> Result:
    """`verb()` in the network namespace of `pid`; sockets that it returns stay there.

    In a thread that ends afterwards, because a namespace is a property of a thread, and the caller's must not change.
    """

    def enter() -> Result:
        _set_namespace(pid)
        return verb()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(enter).result()


def _create_bridge() -> None:
    with IPRoute() as ip:
        ip.link("add", ifname=BRIDGE, kind="bridge")
        ip.link("set", index=_index(ip, BRIDGE), state="up")


def _lay_cable(node: str, node_pid: int) -> None:
    # The end of a node that has lost its power lives on until the kernel has cleaned its namespace up.
    _remove_cable(node)
    with IPRoute() as ip:
        ip.link("add", ifname=node, kind="veth", peer={"ifname": "eth0", "net_ns_pid": node_pid})
        ip.link("set", index=_index(ip, node), master=_index(ip, BRIDGE), state="up")


def _remove_cable(node: str) -> None:
    with IPRoute() as ip:
        for index in ip.link_lookup(ifname=node):
            try:
                ip.link("del", index=index)
            except NetlinkError as error:
                # The kernel was faster: it cleans up behind a node that lost its power.
                if error.code != errno.ENODEV:
                    raise


def _configure_eth0(address: IPv4Address) -> None:
    with IPRoute() as ip:
        index = _index(ip, "eth0")
        ip.addr("add", index=index, address=str(address), prefixlen=SUBNET.prefixlen)
        ip.link("set", index=index, address=_mac(address), state="up")


def _mac(address: IPv4Address) -> str:
    """The same after every boot, as a machine's is: its peers have it in their neighbour tables."""
    return "02:6c:" + address.packed.hex(":")


def _set_link(name: str, up: bool) -> None:
    with IPRoute() as ip:
        ip.link("set", index=_index(ip, name), state="up" if up else "down")


def _index(ip: Any, name: str) -> int:
    found = ip.link_lookup(ifname=name)
    if not found:
        raise LabError(f"link {name}: there is none")
    return int(found[0])


def _set_namespace(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(namespace, CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), f"setns {pid}")
    finally:
        os.close(namespace)


@contextmanager
def _errors(operation: str) -> Iterator[None]:
    try:
        yield
    except (NetlinkError, OSError) as error:
        code = error.code if isinstance(error, NetlinkError) else error.errno
        raise LabError(f"{operation}: {os.strerror(code or 0)}") from error
