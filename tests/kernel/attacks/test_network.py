"""The rows about networks, tried from a container that has NET_RAW, and by a neighbour on the wire."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from model.network import VXLAN_PORT, Address, vtep_mac
from model.task import Port, Protocol
from netns.gateway import GATEWAY_MAC
from tests.kernel.namespaces import NetnsProcess, network_of
from tests.kernel.site import ANSWER_S, OPEN, PATIENCE_S, REFUSED, SILENT, Site, ask_tcp, site, tcp, udp

pytestmark = pytest.mark.anyio

ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
PAYLOAD = b"forged"
UDP_PORT = 9000


@pytest.fixture
async def lan(spawn: Callable[[], NetnsProcess], tmp_path: Path) -> AsyncIterator[Site]:
    async with site(spawn, tmp_path) as made:
        yield made


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def datagram(source: Address, destination: Address, port: int, payload: bytes = PAYLOAD) -> bytes:
    """An IP packet with a UDP datagram in it."""
    length = 8 + len(payload)
    ends = source.packed + destination.packed
    head = struct.pack("!HHHH", UDP_PORT, port, length, 0)
    total = checksum(ends + struct.pack("!II", length, socket.IPPROTO_UDP) + head + payload) or 0xFFFF
    body = head[:6] + struct.pack("!H", total) + payload
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64) + ends + body
    fixed = struct.pack("!BBHHHBB", 0x45, 0, 20 + length, 1, 0, 64, socket.IPPROTO_UDP)
    return fixed + struct.pack("!H", checksum(fixed + bytes(2) + ends)) + ends + body


def fragments(packet: bytes) -> list[bytes]:
    """Of an IPv4 packet: in the first there is the UDP header alone."""
    parts = []
    for payload, offset in ((packet[20:28], 0x2000), (packet[28:], 1)):  # more fragments; in units of 8 bytes
        head = packet[:2] + struct.pack("!HHH", 20 + len(payload), 1, offset) + packet[8:10]
        parts.append(head + struct.pack("!H", checksum(head + bytes(2) + packet[12:20])) + packet[12:20] + payload)
    return parts


def send_frame(pid: int, link: str, to_mac: str, packet: bytes, from_mac: str = "02:00:00:00:00:99") -> None:
    kind = ETH_P_IP if packet[0] >> 4 == 4 else ETH_P_IPV6
    macs = bytes.fromhex((to_mac + from_mac).replace(":", ""))
    with network_of(pid), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((link, 0))
        wire.send(macs + struct.pack("!H", kind) + packet)


def mac(process: NetnsProcess, link: str) -> str:
    [found] = process.ip("link", "show", link)
    return str(found["address"])


@contextmanager
def receiver(pid: int, family: int = socket.AF_INET) -> Iterator[socket.socket]:
    with network_of(pid):
        sock = socket.socket(family, socket.SOCK_DGRAM)
    with sock:
        sock.bind(("", UDP_PORT))
        yield sock


def arrives(sock: socket.socket, patience_s: float = PATIENCE_S) -> bool:
    sock.settimeout(patience_s)
    try:
        return sock.recv(2048) == PAYLOAD
    except TimeoutError:
        return False


async def test_cve_2020_8558_a_neighbour_does_not_reach_loopback(lan: Site) -> None:
    """Also where somebody else has set route_localnet, which we never do."""
    web = await lan.container(lan.one, "web.1", "prod", Port(80, host=8080))
    one, outside = lan.one.host, lan.outside
    for link in ("card", web.link, "all"):
        assert one.run("cat", f"/proc/sys/net/ipv4/conf/{link}/route_localnet") == "0\n"
    one.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet")
    forged = datagram(outside.address, ip_address("127.0.0.1"), UDP_PORT)
    inside = datagram(web.address, ip_address("127.0.0.1"), UDP_PORT)
    with receiver(lan.one.pid) as loopback:
        send_frame(outside.process.pid, "card", mac(one.process, "card"), forged)
        send_frame(web.pid, "eth0", GATEWAY_MAC, inside)
        assert not arrives(loopback)
        one.run("nft", "flush", "chain", "inet", "tepui", "forged")
        send_frame(outside.process.pid, "card", mac(one.process, "card"), forged)
        assert arrives(loopback, ANSWER_S)  # the packet is good: it was our rule that dropped it


async def test_cve_2025_67499_cve_2019_9946_transit_traffic_is_not_caught(lan: Site) -> None:
    """The node routes for others, and what passes it to a port that is published here goes on to where it was going."""
    await lan.container(lan.one, "web.1", "prod", Port(81, host=80, protocols=(Protocol.TCP, Protocol.UDP)))
    behind = lan.spawn()
    lan.one.host.run("ip", "link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", str(behind.pid))
    lan.one.host.run("ip", "addr", "add", "198.51.100.1/24", "dev", "lan")
    lan.one.host.run("ip", "link", "set", "lan", "up")
    lan.one.host.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    behind.run("ip", "addr", "add", "198.51.100.2/24", "dev", "lan")
    behind.run("ip", "link", "set", "lan", "up")
    behind.run("ip", "route", "add", "default", "via", "198.51.100.1")
    lan.outside.run("ip", "route", "add", "198.51.100.0/24", "via", str(lan.one.host.address))
    lan.serve(behind.pid, 80)
    assert ask_tcp(lan.outside.process.pid, "198.51.100.2", 80) == "192.0.2.9 80"
    assert ask_tcp(lan.outside.process.pid, lan.one.host.address, 80) == "192.0.2.9 81"


async def test_cve_2019_9946_a_vip_comes_before_a_published_port(lan: Site) -> None:
    """A VIP at the node's own address and a port that a container publishes."""
    await lan.container(lan.one, "web.1", "prod", Port(81, host=8080))
    backend = await lan.container(lan.one, "vip.1", "prod")
    client = await lan.container(lan.one, "client.1", "prod")
    for chain in ("PREROUTING", "OUTPUT"):
        rule = f"{chain} -d {lan.one.host.address} -p tcp --dport 8080 -j DNAT --to-destination {backend.address}:80"
        lan.one.host.run("iptables-legacy", "-t", "nat", "-A", *rule.split())
    for pid in (client.pid, lan.one.pid):
        assert ask_tcp(pid, lan.one.host.address, 8080).endswith(" 80")


async def test_cve_2025_54388_flushed_rules_of_others_isolate_as_before(lan: Site) -> None:
    """What a reload of a firewall does; and what reloads everything is mended (test_firewall.py)."""
    web = await lan.container(lan.one, "web.1", "prod", Port(80, host=8080))
    stranger = await lan.container(lan.one, "x.1", "dev")
    for family in ("iptables-legacy", "ip6tables-legacy", "iptables-nft"):
        for table in ("filter", "nat", "mangle", "raw"):
            lan.one.host.run(family, "-t", table, "-F")
            lan.one.host.run(family, "-t", table, "-X")
        assert tcp(stranger.pid, web.address, 80) == REFUSED
        assert tcp(lan.outside.process.pid, lan.one.host.address, 8080) == OPEN
    assert await lan.one.mend() == []


async def test_moby_41872_45610_a_neighbour_does_not_route_to_containers(lan: Site) -> None:
    web = await lan.container(lan.one, "web.1", "prod", Port(80, host=8080))
    lan.one.host.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    lan.outside.run("ip", "route", "add", "100.64.0.0/16", "via", str(lan.one.host.address))
    lan.outside.run("ip", "route", "add", "fd01:b::/32", "via", str(lan.one.host.address6))
    for address in (web.address, web.address6, lan.one.block("prod").gateway):
        assert tcp(lan.outside.process.pid, address, 80) == SILENT
        assert udp(lan.outside.process.pid, address, 80) == SILENT
    assert tcp(lan.outside.process.pid, "127.0.0.1", 8080) == REFUSED
    assert tcp(lan.outside.process.pid, lan.one.host.address, 8080) == OPEN


def encapsulated(lan: Site, vni: int, inner: bytes, source: Address) -> bytes:
    """RFC 7348 section 5."""
    macs = bytes.fromhex((vtep_mac("n1", vni) + vtep_mac("n2", vni)).replace(":", ""))
    frame = macs + struct.pack("!H", ETH_P_IP) + inner
    return datagram(source, lan.one.host.address, VXLAN_PORT, struct.pack("!II", 8 << 24, vni << 8) + frame)


async def test_cve_2023_28840_overlay_packets_from_who_is_no_peer_are_dropped(lan: Site) -> None:
    web = await lan.container(lan.one, "web.1", "prod", serves=False)
    inner = datagram(ip_address("100.64.2.9"), web.address, UDP_PORT)
    forged = encapsulated(lan, 1024, inner, lan.outside.address)
    genuine = encapsulated(lan, 1024, inner, lan.two.host.address)
    card = mac(lan.one.host.process, "card")
    with receiver(web.pid) as inside:
        send_frame(lan.outside.process.pid, "card", card, forged)
        assert not arrives(inside)
        send_frame(lan.two.pid, "card", card, genuine)
        assert arrives(inside, ANSWER_S)


async def test_cve_2023_28840_overlays_of_others_are_left_alone(lan: Site) -> None:
    forged = encapsulated(lan, 77, datagram(lan.outside.address, lan.one.host.address, 1), lan.outside.address)
    with lan.one.host.inside():
        theirs = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    with theirs:
        theirs.settimeout(ANSWER_S)
        send_frame(lan.outside.process.pid, "card", mac(lan.one.host.process, "card"), forged)
        assert theirs.recv(2048)[20:] == forged[20:]  # it got past our rules


async def test_cve_2023_28840_a_container_makes_no_overlay_packets(lan: Site) -> None:
    """What leaves the cluster has its node's address, as containers' packets have with the masquerade of VIPs: to the
    other node it would come from a peer."""
    thief = await lan.container(lan.one, "thief.1", "prod", serves=False)
    victim = await lan.container(lan.two, "web.1", "prod", serves=False)
    one, two = lan.one.host, lan.two.host
    one.run("nft", "add table ip t; add chain ip t post { type nat hook postrouting priority srcnat; }")
    one.run("nft", "add rule ip t post ip saddr 100.64.0.0/16 ip daddr != 100.64.0.0/16 masquerade")
    inner = datagram(ip_address("100.64.1.77"), victim.address, UDP_PORT)
    macs = bytes.fromhex((vtep_mac("n2", 1024) + vtep_mac("n1", 1024)).replace(":", ""))
    overlay = struct.pack("!II", 8 << 24, 1024 << 8) + macs + struct.pack("!H", ETH_P_IP) + inner
    forged = datagram(thief.address, two.address, VXLAN_PORT, overlay)
    with receiver(victim.pid) as inside:
        send_frame(thief.pid, "eth0", GATEWAY_MAC, forged)
        send_frame(thief.pid, "eth0", GATEWAY_MAC, datagram(thief.address, one.address, VXLAN_PORT, overlay))
        assert not arrives(inside)
        one.run("nft", "flush chain inet tepui spoofed")
        send_frame(thief.pid, "eth0", GATEWAY_MAC, forged)
        assert arrives(inside, ANSWER_S)  # the packet is good


def arp(sender: Address, sender_mac: str, target: Address) -> bytes:
    """RFC 826: an answer that nobody asked for."""
    macs = bytes.fromhex(sender_mac.replace(":", ""))
    fixed = struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, 2)
    return fixed + macs + sender.packed + macs + target.packed


async def test_cve_2021_32575_arp_of_a_container_is_believed_by_nobody(lan: Site) -> None:
    thief = await lan.container(lan.one, "thief.1", "prod", serves=False)
    victim = await lan.container(lan.one, "victim.1", "prod")
    client = await lan.container(lan.one, "client.1", "prod", serves=False)
    gateway, own_mac = lan.one.block("prod").gateway, "02:00:00:00:00:99"
    processes = (lan.one.host.process, victim.process, client.process)

    def known(*which: str) -> list[str]:
        return [process.run("ip", "neigh", "show", *which) for process in processes]

    before = known("nud", "permanent")
    assert victim.address.compressed in str(before)
    for claimed in (victim.address, client.address, gateway, lan.one.host.address, lan.two.host.address):
        for target, to_mac in ((claimed, "ff:ff:ff:ff:ff:ff"), (gateway, GATEWAY_MAC), (victim.address, GATEWAY_MAC)):
            frame = bytes.fromhex((to_mac + own_mac).replace(":", "")) + struct.pack("!H", ETH_P_ARP)
            with network_of(thief.pid), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
                wire.bind(("eth0", 0))
                wire.send(frame + arp(claimed, own_mac, target))
    assert ask_tcp(client.pid, victim.address, 80) == f"{client.address} 80"  # after them in line
    assert own_mac not in str(known())
    assert known("nud", "permanent") == before


async def test_what_is_for_everybody_is_for_nobody(lan: Site) -> None:
    """Broadcast and multicast of a container reach neither its node nor other containers."""
    web = await lan.container(lan.one, "web.1", "prod", serves=False)
    near = await lan.container(lan.one, "web.2", "prod", serves=False)
    with receiver(lan.one.pid) as node, receiver(near.pid) as other:
        for sock, pid in ((node, lan.one.pid), (other, near.pid)):
            with network_of(pid):
                link = web.link if pid == lan.one.pid else "eth0"
                member = struct.pack("4s4si", socket.inet_aton("224.0.0.9"), bytes(4), socket.if_nametoindex(link))
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)

        def send_to_all() -> None:
            for text, to_mac in (
                ("255.255.255.255", "ff:ff:ff:ff:ff:ff"),
                ("100.64.1.255", "ff:ff:ff:ff:ff:ff"),
                ("224.0.0.9", "01:00:5e:00:00:09"),
            ):
                send_frame(web.pid, "eth0", to_mac, datagram(web.address, ip_address(text), UDP_PORT))

        send_to_all()
        assert not arrives(node) and not arrives(other)
        send_frame(web.pid, "eth0", GATEWAY_MAC, datagram(web.address, near.address, UDP_PORT))
        assert arrives(other, ANSWER_S)
        lan.one.host.run("nft", "delete", "table", "inet", "tepui")
        send_to_all()
        assert arrives(node, ANSWER_S) and not arrives(other)  # it was our rules that kept it from the node


async def test_fragments_are_judged_as_the_whole_they_make(lan: Site) -> None:
    """Whatever their order, and though only one of them says to which port it goes."""
    web = await lan.container(lan.one, "web.1", "prod", serves=False)
    allowed = await lan.container(lan.two, "web.2", "prod", serves=False)
    other = await lan.container(lan.two, "db.1", "dev", serves=False)
    for target, reaches in ((other, False), (allowed, True)):
        for order in (slice(None), slice(None, None, -1)):
            with receiver(target.pid) as inside:
                for part in fragments(datagram(web.address, target.address, UDP_PORT))[order]:
                    send_frame(web.pid, "eth0", GATEWAY_MAC, part)
                assert arrives(inside, ANSWER_S if reaches else PATIENCE_S) == reaches


async def test_cve_2023_28840_inner_packets_are_of_the_cluster_and_not_from_here(lan: Site) -> None:
    """A peer whose packets are right outside and forged inside."""
    web = await lan.container(lan.one, "web.1", "prod", serves=False)
    near = await lan.container(lan.one, "web.2", "prod", serves=False)
    card = mac(lan.one.host.process, "card")
    with receiver(web.pid) as inside:
        for source in (lan.outside.address, near.address, ip_address("127.0.0.1")):
            inner = datagram(source, web.address, UDP_PORT)
            send_frame(lan.two.pid, "card", card, encapsulated(lan, 1024, inner, lan.two.host.address))
        assert not arrives(inside)


def icmpv6(source: Address, destination: Address, kind: int, body: bytes) -> bytes:
    """RFC 4861: with the hop limit of 255 that everything of neighbour discovery has."""
    ends = source.packed + destination.packed
    message = struct.pack("!BBH", kind, 0, 0) + body
    total = checksum(ends + struct.pack("!II", len(message), socket.IPPROTO_ICMPV6) + message)
    message = message[:2] + struct.pack("!H", total) + message[4:]
    return struct.pack("!IHBB", 6 << 28, len(message), socket.IPPROTO_ICMPV6, 255) + ends + message


async def test_cve_2020_10749_router_advertisements_from_a_container_are_dropped(lan: Site) -> None:
    """Even by a node that listens to them on that link: it gets neither a route nor a neighbour."""
    web = await lan.container(lan.one, "web.1", "prod", serves=False)
    for setting, value in (("accept_ra", "2"), ("accept_ra_defrtr", "1"), ("accept_redirects", "1")):
        lan.one.host.run("sh", "-c", f"echo {value} > /proc/sys/net/ipv6/conf/{web.link}/{setting}")
    lan.one.host.run("ip", "addr", "add", "fe80::1/64", "dev", web.link, "nodad")
    router, everybody = ip_address("fe80::bad"), ip_address("ff02::1")
    advertisement = icmpv6(router, everybody, 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0))
    neighbour = icmpv6(router, everybody, 136, struct.pack("!I", 0x20000000) + web.address6.packed)
    for packet in (neighbour, advertisement):
        send_frame(web.pid, "eth0", "33:33:00:00:00:01", packet)
    send_frame(web.pid, "eth0", GATEWAY_MAC, datagram(web.address6, ip_address("fe80::1"), 1))  # after them in line
    assert "fe80::bad" not in lan.one.host.run("ip", "-6", "route")
    lan.one.host.run("nft", "flush chain inet tepui spoofed; flush chain inet tepui input")
    send_frame(web.pid, "eth0", "33:33:00:00:00:01", advertisement)
    deadline = time.monotonic() + ANSWER_S
    while "fe80::bad" not in lan.one.host.run("ip", "-6", "route"):  # the packet is good
        assert time.monotonic() < deadline, "the node does not listen to router advertisements"


async def test_cve_2021_32575_a_container_has_no_address_but_its_own(lan: Site) -> None:
    thief = await lan.container(lan.one, "thief.1", "prod", serves=False)
    victim = await lan.container(lan.one, "victim.1", "prod", serves=False)
    target = await lan.container(lan.one, "web.1", "prod", serves=False)
    for family, own, forged, to in (
        (socket.AF_INET, thief.address, victim.address, target.address),
        (socket.AF_INET, thief.address, lan.one.block("prod").gateway, target.address),
        (socket.AF_INET, thief.address, lan.outside.address, target.address),
        (socket.AF_INET6, thief.address6, victim.address6, target.address6),
        (socket.AF_INET6, thief.address6, lan.outside.address6, target.address6),
    ):
        with receiver(target.pid, family) as inside:
            send_frame(thief.pid, "eth0", GATEWAY_MAC, datagram(forged, to, UDP_PORT))
            assert not arrives(inside), forged
            send_frame(thief.pid, "eth0", GATEWAY_MAC, datagram(own, to, UDP_PORT))
            assert arrives(inside, ANSWER_S), own
