"""Two guarded nodes and a host that is none, on one wire, each in a network namespace of its own.

Networks are attached by the driver, as the agent does it. What is tried is tried with packets.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from model.network import Address, Block, Network, NetworkKind, Vtep, vtep_mac
from model.policy import Policy
from model.task import Port
from netns.driver import Attachment, NetworkSpec
from netns.firewall.nftables import NftFirewall
from netns.firewall.table import Guest, Zone
from netns.gateway import GATEWAY_MAC
from netns.link import veth_name, vxlan_name
from netns.neighbour import mac_of
from netns.networks import Networks
from tests.kernel.namespaces import NetnsProcess, network_of

OPEN, REFUSED, SILENT = "open", "refused", "silent"
PATIENCE_S = 0.4  # after which nothing is said to have come
ANSWER_S = 5.0  # within which what is to come comes
PORTS = (80, 81)

NETWORKS = {
    "prod": Network("prod", NetworkKind.OVERLAY, (ip_network("100.64.0.0/16"),), vni=1024),
    "dev": Network("dev", NetworkKind.OVERLAY, (ip_network("100.65.0.0/16"),), vni=1025),
    "local": Network("local", NetworkKind.BRIDGE, (ip_network("10.9.0.0/16"),)),
}
SUBNETS6 = {"prod": "fd01:b:0:1", "dev": "fd01:b:0:2", "local": "fd01:b:0:3"}

SERVER = """
import socket, sys, threading
def tcp(listener):
    while True:
        connection, client = listener.accept()
        connection.sendall(client[0].encode() + b" " + str(listener.getsockname()[1]).encode())
        connection.close()
def udp(receiver):
    while True:
        data, client = receiver.recvfrom(2048)
        receiver.sendto(client[0].encode() + b" " + str(receiver.getsockname()[1]).encode(), client)
for port in map(int, sys.argv[1:]):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    threading.Thread(target=tcp, args=(listener,)).start()
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        receiver = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        receiver.bind((address, port))
        threading.Thread(target=udp, args=(receiver,)).start()
print("ready", flush=True)
"""


@dataclass(frozen=True, slots=True)
class Host:
    """Somebody on the wire, at 192.0.2.`number` and 2001:db8::`number`."""

    process: NetnsProcess
    number: int

    @property
    def address(self) -> Address:
        return ip_address(f"192.0.2.{self.number}")

    @property
    def address6(self) -> Address:
        return ip_address(f"2001:db8::{self.number}")

    @contextmanager
    def inside(self) -> Iterator[None]:
        with network_of(self.process.pid):
            yield

    def run(self, *argv: str) -> str:
        return self.process.run(*argv)


@dataclass(frozen=True, slots=True)
class Container:
    process: NetnsProcess
    guest: Guest

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def address(self) -> Address:
        return self.guest.addresses[0]

    @property
    def address6(self) -> Address:
        return self.guest.addresses[1]

    @property
    def link(self) -> str:
        return veth_name(self.guest.container)


@dataclass(slots=True)
class Node:
    host: Host
    networks: Networks
    firewall: NftFirewall
    names: tuple[str, ...] = tuple(NETWORKS)
    policies: tuple[Policy, ...] = ()
    members: Mapping[str, frozenset[Address]] = field(default_factory=dict)
    internal: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"n{self.host.number}"

    @property
    def pid(self) -> int:
        return self.host.process.pid

    def block(self, network: str) -> Block:
        [subnet] = NETWORKS[network].subnets
        prefix = str(subnet).split(".0", maxsplit=1)[0]
        return Block(network, self.name, ip_network(f"{prefix}.{self.host.number}.0/24"))

    def zone(self, name: str) -> Zone:
        """Of both versions, though the driver gives the first and the test the other."""
        six = SUBNETS6[name]
        network = NETWORKS[name]
        network = replace(
            network, subnets=(*network.subnets, ip_network(f"{six}::/64")), internal=name in self.internal
        )
        local = (self.block(name).subnet, ip_network(f"{six}:{self.host.number}::/80"))
        return Zone(network, local, vxlan_name(network.vni) if network.vni else "")

    def vtep(self, network: str) -> Vtep:
        vni = NETWORKS[network].vni
        assert vni is not None
        return Vtep(network, self.name, self.host.address, vtep_mac(self.name, vni), (self.block(network),))

    async def guard(self, *peers: Node) -> None:
        zones = tuple(self.zone(name) for name in self.names)
        underlays = frozenset(peer.host.address for peer in peers)
        with self.host.inside():
            await self.firewall.configure(zones, self.policies, self.members, underlays)

    async def connect(self, *peers: Node) -> None:
        with self.host.inside():
            for name in self.names:
                network = NETWORKS[name]
                vteps = tuple(peer.vtep(name) for peer in peers) if network.vni else ()
                await self.networks.configure(NetworkSpec(network, (self.block(name),), vteps))

    async def start(self, process: NetnsProcess, name: str, network: str, ports: tuple[Port, ...] = ()) -> Container:
        """`name` is `<app>.<number>`, its app `services/<app>`."""
        with self.host.inside():
            [four] = await self.networks.attach(Attachment(name, network, process.pid))
            six = ip_address(f"{SUBNETS6[network]}:{self.host.number}::{int(four) & 0xFF:x}")
            self._add_ipv6(process, name, six)
            guest = Guest(name, f"services/{name.partition('.')[0]}", (four, six), ports)
            await self.firewall.admit(guest)
        return Container(process, guest)

    async def admit(self, container: Container, *ports: Port) -> Container:
        guest = replace(container.guest, ports=ports)
        with self.host.inside():
            await self.firewall.admit(guest)
        return replace(container, guest=guest)

    async def dismiss(self, container: Container) -> None:
        with self.host.inside():
            await self.firewall.dismiss(container.guest.container)

    async def mend(self) -> list[str]:
        with self.host.inside():
            return await self.firewall.mend()

    def _add_ipv6(self, process: NetnsProcess, name: str, address: Address) -> None:
        link, gateway = veth_name(name), "fd01:b:0:ffff::1"
        self.host.run("sh", "-c", f"echo 0 > /proc/sys/net/ipv6/conf/{link}/disable_ipv6")
        self.host.run("ip", "neigh", "replace", str(address), "lladdr", mac_of(self.four(process)), "dev", link)
        self.host.run("ip", "route", "replace", f"{address}/128", "dev", link)
        process.run("ip", "addr", "add", f"{address}/128", "dev", "eth0", "nodad")
        process.run("ip", "neigh", "replace", gateway, "lladdr", GATEWAY_MAC, "dev", "eth0")
        process.run("ip", "route", "add", f"{gateway}/128", "dev", "eth0")
        process.run("ip", "route", "add", "default", "via", gateway, "dev", "eth0")

    def four(self, process: NetnsProcess) -> Address:
        [link] = process.ip("-4", "addr", "show", "dev", "eth0")
        return ip_address(link["addr_info"][0]["local"])


@dataclass(slots=True)
class Site:
    one: Node
    two: Node
    outside: Host
    stack: AsyncExitStack
    spawn: Callable[[], NetnsProcess]

    async def container(self, node: Node, name: str, network: str, *ports: Port, serves: bool = True) -> Container:
        made = await node.start(self.spawn(), name, network, ports)
        if serves:
            self.serve(made.pid)
        return made

    async def guard(self, **changes: object) -> None:
        """Tell both nodes what the master wants."""
        for node, peer in ((self.one, self.two), (self.two, self.one)):
            for name, value in changes.items():
                setattr(node, name, value)
            await node.guard(peer)

    def serve(self, pid: int, *ports: int) -> None:
        """TCP and UDP, IPv4 and IPv6. Answers with the client's address and the port."""
        argv = ["nsenter", "-t", str(pid), "-n", sys.executable, "-I", "-S", "-c", SERVER]
        process = subprocess.Popen([*argv, *map(str, ports or PORTS)], stdout=subprocess.PIPE, text=True)
        self.stack.callback(_stop, process)
        assert process.stdout is not None
        with process.stdout as stdout:
            assert stdout.readline() == "ready\n"


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(ANSWER_S)


@asynccontextmanager
async def site(spawn: Callable[[], NetnsProcess], state: Path) -> AsyncIterator[Site]:
    switch = spawn()
    switch.run("ip", "link", "add", "switch", "type", "bridge")
    switch.run("ip", "link", "set", "switch", "up")
    hosts = [_host(spawn(), switch, number) for number in (1, 2, 9)]
    async with AsyncExitStack() as stack:
        one, two = [await _node(stack, host, state) for host in hosts[:2]]
        made = Site(one, two, hosts[2], stack, spawn)
        await made.guard()
        await made.one.connect(made.two)
        await made.two.connect(made.one)
        yield made


def _host(process: NetnsProcess, switch: NetnsProcess, number: int) -> Host:
    host = Host(process, number)
    switch.run("ip", "link", "add", f"to{number}", "type", "veth", "peer", "name", "card", "netns", str(process.pid))
    switch.run("ip", "link", "set", f"to{number}", "master", "switch", "up")
    process.run("ip", "link", "set", "lo", "up")
    process.run("ip", "addr", "add", f"{host.address}/24", "dev", "card")
    process.run("ip", "addr", "add", f"{host.address6}/64", "dev", "card", "nodad")
    process.run("ip", "link", "set", "card", "up")
    return host


async def _node(stack: AsyncExitStack, host: Host, state: Path) -> Node:
    host.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
    for limit in ("ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"):  # or refusals in a row are not said
        host.run("sh", "-c", f"echo 0 > /proc/sys/net/{limit}")
    with host.inside():
        name = f"n{host.number}"
        networks = await stack.enter_async_context(Networks(state / name, name, "boot-1", host.address))
        firewall = NftFirewall()

    async def remove() -> None:
        with host.inside():
            await firewall.remove()

    stack.push_async_callback(remove)
    return Node(host, networks, firewall)


def tcp(pid: int, address: Address | str, port: int, patience_s: float = PATIENCE_S) -> str:
    """What becomes of a connection from the namespace of `pid`: one of the words above."""
    return _outcome(lambda: ask_tcp(pid, address, port, patience_s))


def udp(pid: int, address: Address | str, port: int, patience_s: float = PATIENCE_S) -> str:
    return _outcome(lambda: ask_udp(pid, address, port, patience_s))


def ping(pid: int, address: Address | str, patience_s: float = PATIENCE_S) -> str:
    return _outcome(lambda: _ask_echo(pid, ip_address(address), patience_s))


def ask_tcp(pid: int, address: Address | str, port: int, patience_s: float = ANSWER_S) -> str:
    """The answer of `Site.serve`. Raises OSError."""
    with _socket(pid, address, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience_s)
        connection.connect((str(address), port))
        return _text(connection.recv(100))


def ask_udp(pid: int, address: Address | str, port: int, patience_s: float = ANSWER_S) -> str:
    with _socket(pid, address, socket.SOCK_DGRAM) as sender:
        sender.settimeout(patience_s)
        sender.connect((str(address), port))
        sender.send(b"who am I?")
        return _text(sender.recv(100))


def _socket(pid: int, address: Address | str, kind: int) -> socket.socket:
    with network_of(pid):
        return socket.socket(socket.AF_INET6 if ":" in str(address) else socket.AF_INET, kind)


def _text(answer: bytes) -> str:
    if not answer:
        raise ConnectionResetError("closed without an answer")
    return answer.decode().removeprefix("::ffff:")


def _outcome(ask: Callable[[], object]) -> str:
    try:
        ask()
    except TimeoutError:
        return SILENT
    except OSError:
        return REFUSED
    return OPEN


def _ask_echo(pid: int, address: Address, patience_s: float) -> None:
    """RFC 792, RFC 4443 section 4.1. As ping(8): an error in answer is found by connecting the socket."""
    kind, protocol = (8, socket.IPPROTO_ICMP) if address.version == 4 else (128, socket.IPPROTO_ICMPV6)
    with network_of(pid):
        sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_RAW, protocol)
    with sock:
        sock.settimeout(patience_s)
        level, option = (socket.IPPROTO_IP, 11) if address.version == 4 else (socket.IPPROTO_IPV6, 25)
        sock.setsockopt(level, option, 1)  # IP_RECVERR, IPV6_RECVERR
        sock.connect((str(address), 0))
        sock.send(_with_checksum(struct.pack("!BBHHH", kind, 0, 0, pid & 0xFFFF, 1)))
        while True:
            packet = sock.recv(2048)
            answer = packet[20:] if address.version == 4 else packet
            if answer[0] in (0, 129):
                return


def _with_checksum(message: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return message[:2] + struct.pack("!H", ~total & 0xFFFF) + message[4:]
