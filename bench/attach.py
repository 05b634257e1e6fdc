"""What it costs to connect a container, to lease an address, and to tell a node of others. The peers are Debian's CNI
plug-ins `bridge` and `host-local`, executed as a runtime does, and batches of ip(8) and bridge(8).

Connecting takes turns with the plug-ins, each with the same network namespaces: the driver alone with those two, and
what an agent does, which has the firewall admit and dismiss the container too, with a chain that ends in `firewall`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from itertools import count
from pathlib import Path

from bench.node import OVERLAY, Node, apart, block, node, vtep
from bench.report import Row, percentile
from model.network import Block
from netns.driver import NetworkSpec
from netns.ipam.leases import Leases
from netns.link import veth_name
from netns.netlink import link_exists

PLUGINS = Path("/usr/lib/cni")
RUNS = 40
CROWD = 60  # containers that are connected at once
PEERS = 1_000
CHANGES = 30
HELD = 5_000
LEASES = 100
POLL_S = 0.0005

BY_CNI = "CNI bridge, host-local"
BY_BATCH = "ip -batch, bridge -batch"


async def rows(directory: Path) -> list[Row]:
    """In the network namespace of this process, which is given a card."""
    _shell("ip link add card type veth peer name wire; ip addr add 192.0.2.1/24 dev card; ip link set lo up")
    _shell("ip link set card up; ip link set wire up")
    cni = Cni(directory / "cni")
    async with node(1, directory / "attach") as made:
        one_by_one = [row for guarded in (False, True) for row in await _one_by_one(made, cni, guarded)]
        connecting = [*one_by_one, await _all_at_once(made, cni)]
        return [*connecting, *await _peers(made, directory), _leases(directory, cni)]


@dataclass(frozen=True, slots=True)
class Cni:
    """A runtime that has the plug-ins add and delete containers."""

    directory: Path

    def add(self, container: str, pid: int, guarded: bool = False) -> None:
        result = self._run("ADD", "bridge", container, pid)
        if guarded:
            self._run("ADD", "firewall", container, pid, json.loads(result))

    def delete(self, container: str, pid: int, guarded: bool = False) -> None:
        if guarded:
            self._run("DEL", "firewall", container, pid)
        self._run("DEL", "bridge", container, pid)

    def lease(self, container: str) -> None:
        self._run("ADD", "host-local", container, os.getpid())

    def hold(self, addresses: int) -> None:
        """As if so many had been given out."""
        store = self.directory / "bench"
        store.mkdir(parents=True, exist_ok=True)
        first = ip_address("10.42.0.2")
        for number in range(addresses):
            (store / str(first + number)).write_text(f"held{number}\r\neth0")
        (store / "last_reserved_ip.0").write_text(str(first + addresses - 1))

    def _run(self, command: str, plugin: str, container: str, pid: int, result: object = None) -> bytes:
        configuration = {
            "cniVersion": "1.0.0",
            "name": "bench",
            "type": plugin,
            "bridge": "bench0",
            "isGateway": True,
            "ipam": {"type": "host-local", "dataDir": str(self.directory), "subnet": "10.42.0.0/16"},
            **({"prevResult": result} if result is not None else {}),
        }
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/proc/{pid}/ns/net",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(PLUGINS),
            "PATH": os.environ["PATH"],
        }
        asked = json.dumps(configuration).encode()
        done = subprocess.run([PLUGINS / plugin], input=asked, env=environment, check=True, stdout=subprocess.PIPE)
        return done.stdout


async def _one_by_one(made: Node, cni: Cni, guarded: bool) -> list[Row]:
    ours, theirs = [], []
    alone = made if guarded else replace(made, firewall=None)
    with ExitStack() as stack:
        pids = [stack.enter_context(apart("cat")).pid for _ in range(RUNS)]
        for number, pid in enumerate(pids):
            name = f"one{number}-{guarded}"
            began = time.perf_counter()
            await alone.connect(name, pid)
            await alone.disconnect(name)
            ours.append(time.perf_counter() - began)
            while link_exists(veth_name(name)):  # noqa: ASYNC110 - nobody says when the kernel is done
                await asyncio.sleep(POLL_S)
            began = time.perf_counter()
            cni.add(name, pid, guarded)
            cni.delete(name, pid, guarded)
            theirs.append(time.perf_counter() - began)
    prefix, peer = ("guarded_", f"{BY_CNI}, firewall") if guarded else ("", BY_CNI)
    return [_row(f"{prefix}attach_detach_p{percent}", ours, theirs, percent, peer) for percent in (50, 99)]


async def _all_at_once(made: Node, cni: Cni) -> Row:
    """The time for one is that for all, divided by their number."""
    with ExitStack() as stack:
        pids = [stack.enter_context(apart("cat")).pid for _ in range(CROWD)]
        began = time.perf_counter()
        await asyncio.gather(*(made.connect(f"crowd{number}", pid) for number, pid in enumerate(pids)))
        ours = time.perf_counter() - began
        await asyncio.gather(*(made.disconnect(f"crowd{number}") for number in range(CROWD)))
    with ExitStack() as stack:
        pids = [stack.enter_context(apart("cat")).pid for _ in range(CROWD)]
        began = time.perf_counter()
        adding = (asyncio.to_thread(cni.add, f"crowd{number}", pid) for number, pid in enumerate(pids))
        await asyncio.gather(*adding)
        theirs = time.perf_counter() - began
    return Row("attach_each", "ms", 1e3 * ours / CROWD, 1e3 * theirs / CROWD, BY_CNI)


async def _peers(made: Node, directory: Path) -> list[Row]:
    """A node that hears of a thousand others, and then of one more or less."""
    peers = tuple(vtep(number) for number in range(2, PEERS + 2))
    spec = NetworkSpec(OVERLAY, (block(1),), peers)
    began = time.perf_counter()
    await made.networks.configure(spec)
    ours = time.perf_counter() - began
    ip_batch, fdb_batch = directory / "ip", directory / "fdb"
    ip_batch.write_text("".join(_ip_lines(number) for number in range(2, PEERS + 2)))
    fdb_batch.write_text("".join(_fdb_line(number) for number in range(2, PEERS + 2)))
    with apart("cat") as other:
        _inside(other.pid, "ip link add vx type vxlan id 42 dstport 4789 nolearning; ip link set vx up")
        _inside(other.pid, "ip addr add 100.64.1.0/32 dev vx")
        theirs = _timed(lambda: _inside(other.pid, f"ip -batch {ip_batch}; bridge -batch {fdb_batch}"))
        changed, by_hand = [], []
        for number in range(CHANGES):
            left = NetworkSpec(OVERLAY, (block(1),), peers[:-1] if number % 2 == 0 else peers)
            began = time.perf_counter()
            await made.networks.configure(left)
            changed.append(time.perf_counter() - began)
            ip_batch.write_text(_ip_lines(number + 2, "del"))
            fdb_batch.write_text(_fdb_line(number + 2, "del"))
            by_hand.append(_timed(lambda: _inside(other.pid, f"ip -batch {ip_batch}; bridge -batch {fdb_batch}")))
    return [
        Row("peers_1000_s", "s", ours, theirs, BY_BATCH),
        _row("peer_change_p50", changed, by_hand, 50, BY_BATCH),
        _row("peer_change_p99", changed, by_hand, 99, BY_BATCH),
    ]


def _leases(directory: Path, cni: Cni) -> Row:
    """Another address, while so many are held."""
    large = Block("large", "n1", ip_network("10.42.0.0/16"))
    leases = Leases(directory / "leases", "boot")
    names = (f"c{number}" for number in count())
    for _ in range(HELD):
        leases.acquire(next(names), large.network, (large,))
    ours = [_timed(lambda: leases.acquire(next(names), large.network, (large,))) for _ in range(LEASES)]
    cni.hold(HELD)
    theirs = [_timed(lambda: cni.lease(next(names))) for _ in range(LEASES)]
    return _row("lease_5000_p50", ours, theirs, 50, "CNI host-local")


def _row(what: str, ours: Sequence[float], theirs: Sequence[float], percent: int, peer: str) -> Row:
    return Row(what, "ms", 1e3 * percentile(ours, percent), 1e3 * percentile(theirs, percent), peer)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _ip_lines(number: int, verb: str = "add") -> str:
    peer = vtep(number)
    address, subnet = peer.blocks[0].vtep_address, peer.blocks[0].subnet
    route = f"route {verb} {subnet} via {address} dev vx onlink\n"
    neighbour = f"neigh {verb} {address} lladdr {peer.mac} dev vx{' nud permanent' if verb == 'add' else ''}\n"
    return neighbour + route if verb == "add" else route + neighbour


def _fdb_line(number: int, verb: str = "add") -> str:
    peer = vtep(number)
    return f"fdb {verb} {peer.mac} dev vx dst {peer.underlay} self{' permanent' if verb == 'add' else ''}\n"


def _inside(pid: int, line: str) -> None:
    subprocess.run(["nsenter", "-t", str(pid), "-n", "sh", "-ec", line], check=True)


def _shell(line: str) -> None:
    subprocess.run(["sh", "-ec", line], check=True)
