"""Overlay: what a connection through it costs beside a VXLAN that was made by hand, and what it costs to change.

Pairs of nodes, each node a network namespace with a cable to the other and a container: ours with the driver alone and
with the firewall too, as an agent has both, and those that a shell script made with ip(8), routed in the same way,
without any firewall and with a small one. Samples take turns. What changing costs is in `bench/attach.py`. Everything
is in namespaces of child processes and goes with them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from bench import attach, node
from bench.apart import apart, report
from bench.report import Report, Row, percentile

RUN_DEADLINE_S = 900
SAMPLES = 25
MIB = 256  # a sample of throughput
ROUND_TRIPS = 2_000  # a sample of latency
PORT = 8080
NODES = (1, 2)
BY_HAND_PEER = "VXLAN made with ip(8)"

# Ours: what `bench.node` makes of a namespace. By hand: a routed VXLAN without learning, and a veth to the container.
BY_HAND = """
set -e
me=$1 peer=$2 pid=$3
ip link add vx type vxlan id 42 local 192.0.2.$me dstport 4789 nolearning
ip link set vx address 02:00:00:00:00:0$me mtu 1450 up
ip addr add 10.42.$me.0/32 dev vx
ip neigh add 10.42.$peer.0 lladdr 02:00:00:00:00:0$peer dev vx nud permanent
bridge fdb add 02:00:00:00:00:0$peer dev vx dst 192.0.2.$peer self permanent
ip route add 10.42.$peer.0/24 via 10.42.$peer.0 dev vx onlink
ip link add v0 mtu 1450 type veth peer name eth0 mtu 1450 netns $pid
ip addr add 10.42.$me.1/32 dev v0
ip link set v0 up
sysctl -qw net.ipv4.conf.v0.forwarding=1 net.ipv4.conf.vx.forwarding=1 net.ipv4.conf.card.forwarding=1
nsenter -t $pid -n sh -c "ip link set eth0 up; ip addr add 10.42.$me.2/32 dev eth0;
    ip route add 10.42.$me.1 dev eth0; ip route add default via 10.42.$me.1"
ip route add 10.42.$me.2/32 dev v0
"""

# What somebody would write who thinks of connections, of forged sources and of the way out.
GUARD_BY_HAND = """
table inet guard {
    chain forged {
        type filter hook prerouting priority raw
        iifname "v0" fib saddr . iif oif missing drop
    }
    chain forward {
        type filter hook forward priority filter; policy drop
        ct state established,related accept
        ip saddr 10.42.0.0/16 ip daddr 10.42.0.0/16 accept
    }
    chain leave {
        type nat hook postrouting priority srcnat
        ip saddr 10.42.0.0/16 ip daddr != 10.42.0.0/16 masquerade
    }
}
"""

# Takes what comes, and says when there is no more; or sends every byte back.
SERVER = """
import socket, sys
with socket.create_server(("0.0.0.0", int(sys.argv[1]))) as server:
    print("ready", flush=True)
    buffer = bytearray(1 << 20)
    while True:
        peer, _ = server.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            echo = peer.recv(1) == b"e"
            while size := peer.recv_into(buffer):
                if echo: peer.sendall(buffer[:size])
            if not echo: peer.sendall(b"!")
"""

# Seconds for so many MiB, or of each of so many round trips of a byte: a line of JSON for each line that it reads.
CLIENT = """
import json, socket, sys, time
address = sys.argv[1], int(sys.argv[2])
chunk = bytes(1 << 20)
for line in sys.stdin:
    verb, count = line.split()
    with socket.create_connection(address, 10) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if verb == "move":
            peer.sendall(b"m")
            began = time.perf_counter()
            for _ in range(int(count)): peer.sendall(chunk)
            peer.shutdown(socket.SHUT_WR)
            peer.recv(1)
            took = time.perf_counter() - began
        else:
            peer.sendall(b"e")
            took = []
            for _ in range(int(count)):
                began = time.perf_counter()
                peer.sendall(b"x")
                peer.recv(1)
                took.append(time.perf_counter() - began)
    print(json.dumps(took), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Connection:
    """A client in one node's container that is connected to a server in the other's."""

    client: subprocess.Popen[str]

    def move(self) -> float:
        return float(self._ask(f"move {MIB}"))

    def round_trips(self) -> list[float]:
        return [float(each) for each in self._ask(f"echo {ROUND_TRIPS}")]

    def _ask(self, what: str) -> Any:
        assert self.client.stdin is not None and self.client.stdout is not None
        self.client.stdin.write(what + "\n")
        self.client.stdin.flush()
        return json.loads(self.client.stdout.readline())


def run() -> Report:
    return apart("bench.overlay", RUN_DEADLINE_S)


async def measure(directory: Path) -> Report:
    with ExitStack() as stack:
        bare, bare_by_hand, guarded, guarded_by_hand = (
            stack.enter_context(_ours(directory, guarded) if ours else _by_hand(guarded))
            for guarded in (False, True)
            for ours in (True, False)
        )
        paths = [bare, bare_by_hand, guarded, guarded_by_hand]
        moved: dict[Connection, list[float]] = {path: [] for path in paths}
        trips: dict[Connection, list[float]] = {path: [] for path in paths}
        for number in range(SAMPLES + 1):
            for path in paths[:: 1 if number % 2 else -1]:
                took, each = path.move(), path.round_trips()
                if number:  # the first warms up
                    moved[path].append(took)
                    trips[path] += each
    rows = []
    for ours, theirs, prefix, peer in (
        (bare, bare_by_hand, "", BY_HAND_PEER),
        (guarded, guarded_by_hand, "guarded_", f"{BY_HAND_PEER} and nft(8)"),
    ):
        each_mib = [1e3 * percentile(moved[path], 50) for path in (ours, theirs)]
        rows.append(Row(f"{prefix}throughput", "ms", each_mib[0], each_mib[1], peer))
        for percent in (50, 99):
            us = [1e6 * percentile(trips[path], percent) for path in (ours, theirs)]
            rows.append(Row(f"{prefix}latency_p{percent}", "us", us[0], us[1], peer))
    return Report("overlay", (*rows, *await attach.rows(directory)))


@contextmanager
def _ours(directory: Path, guarded: bool) -> Iterator[Connection]:
    with ExitStack() as stack:
        made = [stack.enter_context(node.apart(sys.executable, "-m", "bench.node")) for _ in NODES]
        _join(*(each.pid for each in made))
        said = []
        for number, each in zip(NODES, made, strict=True):
            state = directory / f"n{number}-{guarded}"
            state.mkdir()
            said.append(_tell(each, {"number": number, "peer": 3 - number, "state": str(state), "guarded": guarded}))
        yield stack.enter_context(_connected(int(said[0]["pid"]), int(said[1]["pid"]), said[1]["address"]))


@contextmanager
def _by_hand(guarded: bool) -> Iterator[Connection]:
    with ExitStack() as stack:
        made = [stack.enter_context(node.apart("cat")) for _ in NODES]
        containers = [stack.enter_context(node.apart("cat")) for _ in NODES]
        _join(*(each.pid for each in made))
        for number, each, container in zip(NODES, made, containers, strict=True):
            _in(each.pid, "sh", "-c", BY_HAND, "sh", str(number), str(3 - number), str(container.pid))
            if guarded:
                _in(each.pid, "nft", GUARD_BY_HAND)
        yield stack.enter_context(_connected(containers[0].pid, containers[1].pid, "10.42.2.2"))


@contextmanager
def _connected(client: int, server: int, address: str) -> Iterator[Connection]:
    """Client and server have a CPU each, so that the scheduler has less to say in it."""
    argv = [sys.executable, "-I", "-S", "-c"]
    with ExitStack() as stack:
        serving = stack.enter_context(node.running([*_on(1, server), *argv, SERVER, str(PORT)]))
        assert serving.stdout is not None and serving.stdout.readline() == "ready\n"
        asking = [*_on(0, client), *argv, CLIENT, str(IPv4Address(address)), str(PORT)]
        yield Connection(stack.enter_context(node.running(asking)))


def _on(cpu: int, pid: int) -> list[str]:
    return ["taskset", "--cpu-list", str(cpu), "nsenter", "-t", str(pid), "-n"]


def _join(one: int, two: int) -> None:
    """A cable between two nodes."""
    _in(one, "ip", "link", "add", "card", "type", "veth", "peer", "name", "card", "netns", str(two))
    for number, pid in zip(NODES, (one, two), strict=True):
        _in(pid, "ip", "addr", "add", f"192.0.2.{number}/24", "dev", "card")
        for link in ("lo", "card"):
            _in(pid, "ip", "link", "set", link, "up")


def _in(pid: int, *argv: str) -> None:
    subprocess.run(["nsenter", "-t", str(pid), "-n", *argv], check=True, stdout=subprocess.DEVNULL)


def _tell(process: subprocess.Popen[str], what: dict[str, object]) -> dict[str, str]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(what) + "\n")
    process.stdin.flush()
    said: dict[str, str] = json.loads(process.stdout.readline())
    return said


if __name__ == "__main__":
    report(measure)
