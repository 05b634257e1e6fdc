"""Containers behind veths, TCP servers that say who they are, and tables of VIPs that lead to them."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from model.task import Protocol
from model.vip import Backend, Vip
from netns.vip.backend import Table
from tests.kernel.namespaces import NetnsProcess, network_of, run

POOL = IPv4Network("100.127.0.0/16")
LOCAL = IPv4Network("100.64.1.0/24")
CLUSTER = IPv4Network("100.64.0.0/11")
GATEWAY = "100.64.1.1"
OUTSIDE = "192.0.2.2"
VIP = "100.127.3.7"
SERVER_DEADLINE_S = 5.0
CONNECT_DEADLINE_S = 2.0

NAMED_SERVER = """
import socketserver, sys, threading
class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        self.request[1].sendto(f"{sys.argv[1]} {self.client_address[0]}".encode(), self.client_address)
class Named(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(f"{sys.argv[1]} {self.client_address[0]}\\n".encode())
        while line := self.rfile.readline():
            self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128
datagrams = socketserver.UDPServer(("0.0.0.0", 8080), Datagram)
threading.Thread(target=datagrams.serve_forever, daemon=True).start()
with Server(("0.0.0.0", 8080), Named) as server:
    print("ready", flush=True)
    server.serve_forever()
"""


@dataclass(frozen=True, slots=True)
class Container:
    """Routed by the host alone, as containers are. Its server answers with its address and the client's."""

    namespace: NetnsProcess
    address: str

    def backend(self, weight: int = 1) -> Backend:
        return Backend(f"task-{self.address}", "node", IPv4Address(self.address), 8080, weight)


@contextmanager
def containers(spawn: Callable[[], NetnsProcess]) -> Iterator[Callable[[int], Container]]:
    """Makes container number N with address 100.64.1.N and starts its server."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    # A redirect counts against the rate of ICMP errors, so the refusal that follows it would not be sent.
    for scope in ("all", "default"):
        Path(f"/proc/sys/net/ipv4/conf/{scope}/send_redirects").write_text("0")
    with ExitStack() as stack:

        def make(number: int) -> Container:
            made = Container(spawn(), f"100.64.1.{number}")
            wire(made.namespace, f"tv{number}", GATEWAY, made.address)
            run("ip", "route", "add", f"{made.address}/32", "dev", f"tv{number}", "src", GATEWAY)
            run("ip", "route", "replace", str(POOL), "dev", f"tv{number}", "src", GATEWAY)
            stack.callback(end, start(made.namespace, made.address))
            return made

        yield make


def wire(peer: NetnsProcess, link: str, host: str, address: str) -> None:
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(peer.pid))
    run("ip", "address", "add", f"{host}/32", "dev", link)
    run("ip", "link", "set", link, "up")
    for command in (
        f"address add {address}/32 dev eth0",
        "link set lo up",
        "link set eth0 up",
        f"route add {host}/32 dev eth0",
        f"route add default via {host}",
    ):
        peer.run("ip", *command.split())


def start(namespace: NetnsProcess, name: str) -> subprocess.Popen[str]:
    argv = ["nsenter", "-t", str(namespace.pid), "-n", sys.executable, "-I", "-S", "-c", NAMED_SERVER, name]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as stdout:
        assert stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(SERVER_DEADLINE_S)


def connect(source: Container | None, address: str, port: int = 80) -> socket.socket:
    """From a container, or from the host itself."""
    with network_of(source.namespace.pid) if source else nullcontext():
        return socket.create_connection((address, port), timeout=CONNECT_DEADLINE_S)


def ask(source: Container | None, address: str = VIP, port: int = 80) -> tuple[str, str]:
    """Who answered, and which client address it saw."""
    with connect(source, address, port) as connection, connection.makefile() as stream:
        server, client = stream.readline().split()
        return server, client


def vip(*backends: Backend, address: str = VIP, port: int = 80, protocol: Protocol = Protocol.TCP) -> Vip:
    return Vip(IPv4Address(address), port, protocol, "/web", tuple(sorted(backends)))


def table(*vips: Vip) -> Table:
    return Table({row.key: row for row in vips}, (POOL,), (LOCAL,), (CLUSTER,))


def many(count: int, port: int = 8080) -> Table:
    rows = [Backend(f"t{number}", "n", CLUSTER[2 + number], port) for number in range(count)]
    return table(*(vip(row, address=str(POOL[1 + number])) for number, row in enumerate(rows)))
