"""script/rules [--check]: writes docs/rules, from what a kernel has after our drivers have done what they do.

Each page is a scenario: a node is set up in a network namespace of its own, and what the tools of an administrator say
of it is written down, with a sentence on every line. A line for which there is no sentence is an error: nothing that we
program is left unexplained. With --check nothing is written, and the pages that are not as they should be are named.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from model.network import Block, Network, NetworkKind, Vtep, vtep_mac
from model.policy import Policy, PortRange, Source
from model.task import Port, Protocol
from model.vip import Backend, Vip
from netns.driver import Attachment, NetworkSpec
from netns.firewall.nftables import NftFirewall
from netns.firewall.table import Entrance, Guest, Zone
from netns.link import vxlan_name
from netns.networks import Networks
from netns.nft.own import NftSession
from netns.vip.backend import Table
from netns.vip.node import Choice, NodeVips

DOCS = Path(__file__).resolve().parents[1] / "docs" / "rules"
CLONE_NEWNET = 0x40000000
VNI = 1024
UNDERLAY = ip_address("192.0.2.1")
POOLS = (ip_network("100.127.0.0/16"), ip_network("fd01:c::/112"))
OVERLAY = Network("overlay", NetworkKind.OVERLAY, (ip_network("100.64.0.0/11"), ip_network("fd01:b::/64")), vni=VNI)
BLOCKS = {
    node: tuple(Block("overlay", node, ip_network(each)) for each in (f"100.64.{n}.0/24", f"fd01:b:0:0:{n}::/80"))
    for n, node in enumerate(("n1", "n2"))
}
PEER = Vtep("overlay", "n2", ip_address("192.0.2.2"), vtep_mac("n2", VNI), BLOCKS["n2"])
SPEC = NetworkSpec(OVERLAY, BLOCKS["n1"], (PEER,))
LOCAL = tuple(block.subnet for block in BLOCKS["n1"])

# Lines that say nothing of ours.
EVERYWHERE = re.compile(r"#|\*|\}$|COMMIT|(table|type(of)?|flags|timeout) (?!nat|filter)")

Prepare = Callable[[Path, ExitStack], Coroutine[None, None, None]]  # a state directory, and what ends with the page
Sentences = tuple[tuple[str, str], ...]  # what a line matches, and what is to be said of it


@dataclass(frozen=True, slots=True)
class Command:
    argv: str
    sentences: Sentences


@dataclass(frozen=True, slots=True)
class Page:
    name: str
    title: str
    text: str
    prepare: Prepare
    commands: tuple[Command, ...]


def main() -> None:
    check = sys.argv[1:] == ["--check"]
    stale = []
    for page in PAGES:
        text, path = _written(page), DOCS / f"{page.name}.md"
        if check and (not path.exists() or path.read_text() != text):
            stale.append(path.name)
        elif not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    if stale:
        sys.exit(f"docs/rules is not what the kernel has: {', '.join(stale)}: run script/rules")


def _written(page: Page) -> str:
    with _node() as state, ExitStack() as stack:
        asyncio.run(page.prepare(state, stack))
        parts = [_part(command) for command in page.commands]
    made = "Made by `script/rules` from what a kernel has; a test compares the two."
    return "\n".join((f"# {page.title}", "", page.text.strip(), "", *parts, made, ""))


def _part(command: Command) -> str:
    said = subprocess.run(command.argv.split(), capture_output=True, text=True, check=True).stdout
    told = ((line, _sentence(line, command)) for line in _lines(said))
    rows = [
        f"| {'<br>'.join(map(_shown, (line for line, _ in lines)))} | {sentence} |"
        for sentence, lines in groupby(told, lambda each: each[1])
    ]
    return "\n".join((f"## {command.argv}", "", "| | |", "|---|---|", *rows, ""))


def _shown(line: str) -> str:
    """What begins a block stands out."""
    return f"**`{line}`**" if line.startswith(("chain ", "set ", "map ")) else f"`{line}`"


def _sentence(line: str, command: Command) -> str:
    for pattern, sentence in command.sentences:
        if re.search(pattern, line):
            return sentence
    sys.exit(f"{command.argv}: there is no sentence for: {line}")


def _lines(said: str) -> Iterator[str]:
    """Without what every listing has; an element list is one line."""
    text = re.sub(r",\s*\n\s*", ", ", said)
    for line in text.splitlines():
        bare = re.sub(r" \[\d+:\d+\]$| linkdown", "", line.strip())
        if bare and not EVERYWHERE.match(bare):
            yield bare.removesuffix(" {")


# What is there


async def _overlay(state: Path, stack: ExitStack) -> None:
    async with Networks(state, "n1", "boot", UNDERLAY) as driver:
        await driver.configure(SPEC)
        await driver.attach(Attachment("web", "overlay", stack.enter_context(_container())))


def _vips(choice: Choice, affinity_s: int = 0, drained: bool = False) -> Prepare:
    async def prepare(state: Path, stack: ExitStack) -> None:
        async with Networks(state, "n1", "boot", UNDERLAY) as driver:
            await driver.configure_vip_route(POOLS)
            await driver.configure(SPEC)
        session = NftSession()
        vips = NodeVips(session, choice)
        rows = [replace(row, affinity_s=affinity_s) for row in (_web(4), _web(6), EMPTY)]
        await vips.apply(Table({row.key: row for row in rows}, POOLS, LOCAL, OVERLAY.subnets))
        if drained:
            rows = [replace(row, backends=row.backends[1:]) for row in rows]
            await vips.apply(Table({row.key: row for row in rows}, POOLS, LOCAL, OVERLAY.subnets))
        await vips.close()
        session.close()

    return prepare


async def _guarded(state: Path, stack: ExitStack, entrances: frozenset[Entrance] | None = None) -> None:
    firewall = NftFirewall()
    zone = Zone(OVERLAY, LOCAL, vxlan_name(VNI))
    sources = (Source(app="services/api"), Source(subnet=ip_network("198.51.100.0/24")))
    policy = Policy("web", app="services/web", sources=sources, ports=(PortRange(Protocol.TCP, 8080, 8080),))
    members = {"services/api": frozenset({BLOCKS["n2"][0].subnet[9]})}
    await firewall.configure((zone,), (policy,), members, frozenset({PEER.underlay}), entrances)
    addresses = tuple(subnet[2] for subnet in LOCAL)
    await firewall.admit(Guest("web.1", "services/web", addresses, (Port(8080, host=31000),)))


async def _entered(state: Path, stack: ExitStack) -> None:
    await _guarded(state, stack, frozenset(Entrance(pool[1], 80, Protocol.TCP) for pool in POOLS))


def _web(version: int) -> Vip:
    index = (4, 6).index(version)
    here, there = (BLOCKS[node][index].subnet[2] for node in ("n1", "n2"))
    backends = (Backend("web.1", "n1", here, 8080), Backend("web.2", "n2", there, 8080))
    return Vip(POOLS[index][1], 80, Protocol.TCP, "services/web", backends)


EMPTY = Vip(ip_address("10.1.2.3"), 53, Protocol.UDP, "", ())

ITSELF = "A container that has reached itself: it would discard a packet from its own address."
BOTH = r"(4|6)( |$)"
VIP_TABLE: Sentences = (
    (rf"^set pools{BOTH}", "Where VIPs are."),
    (rf"^set local{BOTH}", "Containers of this node."),
    (rf"^set cluster{BOTH}", "Containers of all nodes."),
    (rf"^set itself{BOTH}", "Backends on this node: they may ask for themselves."),
    (rf"^set empty{BOTH}", "VIPs outside of the pools behind which nobody is."),
    (rf"^map vips{BOTH}", "Finds a VIP by address, protocol and port, and says which chain knows its backends."),
    (rf"^map (tcp|udp){BOTH}", "Finds a backend by VIP, port and slot."),
    (r"^elements = \{ \S+/\d+ \}", "From the cluster's and the node's settings."),
    (r"^elements = .*goto of_1", "`services/web` has one slot left."),
    (r"^elements = \{ 100.127.0.1 \. 80 \. 0 : 100.64.1.2 \. 8080 \}", "It leads to the backend that is left."),
    (r"^chain of_1", "VIPs with one slot. The chain for two is gone with the last VIP that had as many."),
    (r"^elements = .*goto of_2", "`services/web` has two slots, one for each backend."),
    (r"^elements = .*goto sticky", "`services/web` has affinity: a chain of its own."),
    (r"^elements = \{ \S+ \. (80|http) \. 0 :", "The two slots of `services/web`, and where they lead."),
    (r"^elements = \{ 10\.1\.2\.3", "An address outright, outside of the pools, that has no backend now."),
    (r"^elements = \{ (100\.64|fd01:b)", "The backend of `services/web` that is here."),
    (r"^chain pre", "What comes in: from containers, and from outside."),
    (r"^chain own", "What the node's own programs send."),
    (r"^chain post", "What goes out."),
    (r"^chain forward", "What passes the node, after translation."),
    (r"^chain sent", "What the node's own programs send, after translation."),
    (r"^chain refuse", "What is for a VIP behind which nobody is. It is told so at once."),
    (r"^chain of_2", "VIPs with two slots."),
    (r"^chain sticky", "`services/web`, by the version of IP."),
    (r"^chain to_", "A backend of it: `services/web` sends a client here when it chooses this one."),
    (r"^set st_", "Its clients. Each is forgotten when it has not come for so long."),
    (r"^size ", "The kernel's bound."),
    (r"hook (prerouting|output) priority -101", "One before the place where iptables and others translate (-100)."),
    (r"hook postrouting priority", "The place of all that change sources."),
    (r"hook (forward|output) priority", "The place of all that filter."),
    (r"vmap @vips", "TCP and UDP to a VIP go to its chain. All else goes on."),
    (r"@itself\d masquerade", ITSELF),
    (
        r"@cluster\d masquerade",
        "Containers reach what is outside with the node's address. To VIPs they keep their own.",
    ),
    (r"@pools\d goto refuse", "It is still for a VIP: nobody is behind it."),
    (r"@empty\d goto refuse", "The same outside of the pools, where only the VIP's port is ours."),
    (r"reject with tcp reset", "TCP is reset."),
    (r"^reject", "All else is answered by ICMP."),
    (
        r"numgen random mod 1 map",
        "A new connection goes where the only slot leads. One that is open stays.",
    ),
    (r"numgen random mod \d map", "A new connection draws a slot, and goes where that leads."),
    (r"@st_\w+ goto to_", "A client that has been there goes there again."),
    (r"numgen random mod \d vmap", "A new one draws."),
    (r"^update @st_", "It is remembered, for a time that begins anew."),
    (r"dnat ip6? to", "And goes there."),
)
IPTABLES: Sentences = (
    (r"^:(PREROUTING|INPUT|OUTPUT|POSTROUTING|FORWARD)", "The kernel's."),
    (r"^:TEPUI-", "An anchor: its name stays, and it leads to the root of a tree of chains."),
    (
        r"^:TPV-",
        "A chain of the tree. Its name says how many rules it has, and is a hash of them: what changes has another.",
    ),
    (r"^-A (PREROUTING|OUTPUT) -j TEPUI-VIP", "What comes in, and what the node's programs send. First of all rules."),
    (r"^-A POSTROUTING -j TEPUI-POST", "What goes out."),
    (r"^-A (FORWARD|OUTPUT) -j TEPUI-REFUSE", "What passes, or is sent, after translation."),
    (r"^-A TEPUI-\w+ -j TPV-", "The root now. A change of the table is complete when this is another."),
    (r"-d 100\.127\.0\.0/16 -j TPV-2", "It is still for a VIP: nobody is behind it."),
    (r"-d 100\.127\.0\.0/16 -j TPV-", "The pool."),
    (
        r"-d \S+/20 -j TPV-",
        "Of a pool, or of all backends here, 4,096 addresses: at most 16 such rules in a pool of 65,536.",
    ),
    (r"-d \S+/26 -j TPV-", "Of these 64 addresses: at most 64 such rules."),
    (r"-d \S+/32 -j TPV-", "The address of a VIP."),
    (r"--probability .*DNAT", "Of two backends the first is chosen half of the time."),
    (r"DNAT", "And else the second."),
    (
        r"-s \S+/32 -d \S+/32 -j MASQUERADE",
        ITSELF,
    ),
    (r"-s 100\.64\.0\.0/24 -j TPV-", "Containers of this node."),
    (r"-d 100\.64\.0\.0/11 -j RETURN", "To other containers they keep their address."),
    (r"-j MASQUERADE", "They reach what is outside with the node's address."),
    (r"^-A TPV-\S+ -j TPV-", "First those that have reached themselves."),
    (r"tcp-reset", "TCP is reset."),
    (r"-d 10\.1\.2\.3/32 .*port-unreachable", "Outside of the pools only the VIP's port is ours."),
    (r"port-unreachable", "All else is answered by ICMP."),
)
FIREWALL: Sentences = (
    (r"^set overlays", "Through these links comes what is of other nodes' containers."),
    (rf"^set local{BOTH}", "Containers of this node."),
    (rf"^set cluster{BOTH}", "Containers of all nodes."),
    (rf"^set remote{BOTH}", "Containers of other nodes: the networks, without what is here."),
    (rf"^set internal{BOTH}", "Containers here, of networks that have no way out."),
    (rf"^set leaving{BOTH}", "Containers here, of networks that have one."),
    (rf"^map zones{BOTH}", "Which chain judges what is for a container here, by its network."),
    (rf"^map apps{BOTH}", "The same by its app, where a policy names that. It comes first."),
    (rf"^set peers{BOTH}", "Nodes of the overlays."),
    (rf"^set own{BOTH}", "Containers here: each may reach itself."),
    (rf"^map publish{BOTH}", "Ports of the node, and where they lead."),
    (rf"^set published_(tcp|udp){BOTH}", "Where what came by a port of the node may go."),
    (r"^set from_", "Containers of an app that a policy names, on all nodes."),
    (r"^elements = .*goto (net|app)_", "By the chains below."),
    (r"^elements = ", "As it is now."),
    (
        r"^chain forged",
        "What comes in, before it is followed as a connection: it is dropped if it can not be from there.",
    ),
    (r"^chain spoofed", "From a container."),
    (r"^chain stray", "From an overlay."),
    (r"^chain outer", "VXLAN of ours, from the underlay."),
    (r"^chain input", "For the node itself."),
    (r"^chain to_node", "From a container, for the node itself."),
    (r"^chain from_container", "From a container, for others."),
    (r"^chain forward", "What passes the node. An accept here ends our chain alone: others' rules judge it too."),
    (r"^chain publish_own", "The same for the node's own programs."),
    (r"^chain publish", "Ports of the node that lead to containers. VIPs have been translated before."),
    (r"^chain leave", "What goes out. IPv4 that leaves the cluster is masqueraded with the VIPs."),
    (r"^chain net_", "For a container of this network."),
    (r"^chain app_", "For a container of this app."),
    (r"^chain refuse", "What is not let in is told so at once."),
    (r"hook prerouting priority -300", "Ahead of everybody."),
    (r"hook (prerouting|output) priority -99", "One behind the place where iptables and others translate (-100)."),
    (r"hook postrouting priority", "The place of all that change sources."),
    (r"hook (input|forward) priority", "The place of all that filter."),
    (r"^icmpv6 type \{", "No router, and no neighbour, is a container: what they need is there from the beginning."),
    (r"^(ip|ip6) [sd]addr (127\.0\.0\.0/8|::1) drop", "Loopback is nobody's from outside, whatever route_localnet is."),
    (r"^ip saddr 0\.0\.0\.0 drop", "It has an address, and needs none."),
    (r"^fib saddr \. iif", "Its address is another's: the way back is not where it comes from."),
    (r"@th,96,24 .* daddr != @cluster", "VXLAN with a VNI of ours, to a node: it would be taken for this node's."),
    (r"@th,96,24 .* goto outer", "VXLAN with a VNI of ours."),
    (r"saddr != @remote\d drop", "No container of another node has this address."),
    (r"saddr @peers\d accept", "From a node."),
    (r"^drop", "From nobody else."),
    (r"^iifname \"tv\*\" (goto|jump)", "From a container, by the name of its link."),
    (r"^iifname @overlays goto", "From an overlay."),
    (r"^iifname \"lo\" accept", "From itself."),
    (r"daddr @local\d drop", "Who is on the node's own links has no way to containers but ports and VIPs."),
    (rf"^set external_(tcp|udp){BOTH}", "VIPs that are for clients from outside."),
    (r"@external_\w+ accept", "A client from outside has asked for a VIP that is for it."),
    (
        r"@external_\w+ .*masquerade",
        "To other nodes it goes with this one's address, so that the answer comes back.",
    ),
    (r"daddr @remote\d goto refuse", "Nobody from outside goes to other nodes' containers through this one."),
    (r"^ct state 0x2,0x4 accept", "Of a connection that was let in, or an answer to one."),
    (r"^ct status 0x20 accept", "It came by a VIP, or a port of the node."),
    (r"dport 53 .*accept", "Names."),
    (r"type (8|128) .*accept", "Whether the gateway is there."),
    (r"^goto refuse", "And nothing else."),
    (r"daddr (169\.254\.0\.0/16|fd00:ec2::254) goto refuse", "The metadata of clouds, which has their credentials."),
    (r"saddr @internal\d", "No way out of the cluster."),
    (r"@own\d accept", "It reaches itself."),
    (r"vmap @apps\d", "The app's policies."),
    (r"vmap @zones\d", "The network's. What is for no container here goes on."),
    (r"dport 53 return", "Who publishes port 53 of the node does not take the place of its name server."),
    (r"^fib daddr type 2 .* dnat", "An address of the node, with a port that leads to a container."),
    (r"^ct status 0x20 .*@own\d masquerade", "A container that has reached itself."),
    (r"saddr @leaving6 .*masquerade", "IPv6 that leaves the cluster has the node's address."),
    (r"^fib saddr type 2 oifname", "The node's own connections have the address of the network into which they go."),
    (r"@published_(tcp|udp)", "It came by a port of the node that leads here."),
    (r"saddr \S+ accept", "From the same network."),
    (r"saddr @from_\S+ .*accept", "From an app that the policy names, to the port that it names."),
    (r"saddr \S+ .*dport 8080 accept", "From a subnet that the policy names."),
    (r"reject with tcp reset", "TCP is reset."),
    (r"^reject", "All else is answered by ICMP."),
)
VIP_ROUTES: Sentences = (
    (r"dev tg", "The node's own way to VIPs: as far as the translation, with the gateway's address of the overlay."),
)
LINKS: Sentences = ((r"^tx1024", "The overlay's: one for each network. Its number is the VNI."),)
OVERLAY_ROUTES: Sentences = (
    (
        r"via \S+ dev tx1024",
        "A block of another node: through VXLAN to its end there. This comes last, when all else is there.",
    ),
    (r"dev tv", "A container of this node, by its own link."),
    (r"dev tg", "What nobody has leased of this node's block ends at the gateway."),
)
NEIGHBOURS: Sentences = (
    (r"lladdr", "The end of another node: the first address of its block stands for it. Nobody asks."),
)
FDB: Sentences = (
    (r"dst 192\.0\.2\.2", "Where packets to that end go in the underlay. Nothing is learned, nothing flooded."),
)

ABOUT_VIPS = """
A service `/web` has a task on this node (n1) and one on another, and asks for the VIP `/web:80`: 100.127.0.1 and
fd01:c::1. A second VIP, 10.1.2.3:53, is outside of the pools, and nobody is behind it.
"""
DRAINED = (("map", "vips4"), ("map", "tcp4"), ("chain", "of_1"))
HAIRPIN = (("map", "tcp4"), ("set", "itself4"), ("chain", "post"))
PORT_MAP = (("map", "publish4"), ("set", "published_tcp4"), ("chain", "publish"), ("chain", "publish_own"))
ENTERED = (("set", "external_tcp4"), ("set", "external_tcp6"), ("chain", "forward"), ("chain", "leave"))
SHOW_ROUTES = (
    Command("ip -4 route show proto 85", VIP_ROUTES),
    Command("ip -6 route show proto 85", VIP_ROUTES),
)
NFT = Command("nft -n list table inet tepui-vips", VIP_TABLE)
PAGES = (
    Page("vip-nftables", "A VIP by nftables", ABOUT_VIPS, _vips("nftables"), (NFT, *SHOW_ROUTES)),
    Page(
        "vip-iptables",
        "A VIP by iptables",
        ABOUT_VIPS + "IPv6 is in nftables all the same ([vip-nftables.md](vip-nftables.md)).",
        _vips("iptables"),
        (
            Command("iptables-legacy-save -t nat", IPTABLES),
            Command("iptables-legacy-save -t filter", IPTABLES),
            *SHOW_ROUTES,
        ),
    ),
    Page(
        "affinity",
        "A VIP whose clients stay with their backend",
        ABOUT_VIPS + 'Its port has the label `"tepui/affinity": "600"`.',
        _vips("nftables", 600),
        (NFT,),
    ),
    Page(
        "drain",
        "A VIP that a task has left",
        ABOUT_VIPS
        + """
`web.1`, the task on this node, is about to be stopped. It is out of the VIP on all nodes before it gets a signal, and
goes on while clients are connected to it: what the kernel follows as a connection it leads where it led it before.
""",
        _vips("nftables", drained=True),
        tuple(Command(f"nft -n list {what} inet tepui-vips {name}", VIP_TABLE) for what, name in DRAINED),
    ),
    Page(
        "hairpin",
        "A container that reaches itself through its VIP",
        ABOUT_VIPS
        + """
`web.1`, 100.64.0.2 on this node, asks for 100.127.0.1:80, and the slot that it draws is its own.
""",
        _vips("nftables"),
        tuple(Command(f"nft -n list {what} inet tepui-vips {name}", VIP_TABLE) for what, name in HAIRPIN),
    ),
    Page(
        "port-map",
        "A port of the node that leads to a container",
        """
This node (n1) has a container of the app `/web` on `overlay`, at 100.64.0.2, whose port 8080 is published as 31000. A
policy lets the app `/api`, which has a container on another node, and 198.51.100.0/24 connect to its port 8080.
""",
        _guarded,
        tuple(Command(f"nft -n list {what} inet tepui {name}", FIREWALL) for what, name in PORT_MAP),
    ),
    Page(
        "external",
        "Clients from outside",
        """
`external = true` stands in this node's agent.toml, and `/web` has the label `"tepui/external": "true"` beside that of
its VIP, `/web:80`: 100.127.0.1 and fd01:c::1. The site's routers lead 100.127.0.0/16 to this node.
""",
        _entered,
        tuple(Command(f"nft -n list {what} inet tepui {name}", FIREWALL) for what, name in ENTERED),
    ),
    Page(
        "firewall",
        "Networks, a policy and a port of the node",
        """
This node (n1) has a container of the app `/web` on `overlay`, at 100.64.0.2, whose port 8080 is published as 31000. A
policy lets the app `/api`, which has a container on another node, and 198.51.100.0/24 connect to its port 8080.
""",
        _guarded,
        (Command("nft -n list table inet tepui", FIREWALL),),
    ),
    Page(
        "overlay",
        "An overlay of two nodes",
        "This node (n1, 192.0.2.1) has a container on `overlay`, and n2 (192.0.2.2) a block of it.",
        _overlay,
        (
            Command("ip -br link show up type vxlan", LINKS),
            Command("ip -4 route show proto 84", OVERLAY_ROUTES),
            Command("ip -6 route show proto 84", OVERLAY_ROUTES),
            Command("ip neigh show nud permanent dev tx1024", NEIGHBOURS),
            Command("bridge fdb show dev tx1024", FDB),
        ),
    ),
)


# Where it is


@contextmanager
def _node() -> Iterator[Path]:
    """In a network namespace that goes when this process ends, with a card."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for line in (
        "link set lo up",
        "link add card type veth peer name wire",
        "link set wire up",
        f"address add {UNDERLAY}/24 dev card",
        "link set card up",
    ):
        subprocess.run(["ip", *line.split()], check=True)
    with TemporaryDirectory() as state:
        yield Path(state)


@contextmanager
def _container() -> Iterator[int]:
    """A process in a network namespace of its own."""
    argv = ["unshare", "-n", "sh", "-c", "echo ready; exec sleep infinity"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


if __name__ == "__main__":
    main()
