"""A node's VIPs: the back end is chosen, moved from one to another without a gap, and flows of UDP follow the table."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from model.task import Protocol
from model.vip import Vip
from netns.nft.own import NftSession
from netns.vip.node import Choice, NodeVips
from tests.kernel.namespaces import NetnsProcess, network_of, run
from tests.kernel.vips import CONNECT_DEADLINE_S, VIP, Container, ask, connect, containers, many, table, vip

pytestmark = pytest.mark.anyio

Make = Callable[[int], Container]
PAIRS: list[tuple[Choice, Choice]] = [("iptables", "nftables"), ("nftables", "iptables"), ("nftables", "nftables")]


@pytest.fixture
def container(spawn: Callable[[], NetnsProcess]) -> Iterator[Make]:
    with containers(spawn) as make:
        yield make


@asynccontextmanager
async def agent(choice: Choice) -> AsyncIterator[NodeVips]:
    """Whose rules stay when it ends."""
    session = NftSession()
    made = NodeVips(session, choice)
    try:
        yield made
    finally:
        await made.close()
        session.close()


def legacy() -> str:
    return run("iptables-legacy-save", "-t", "nat")


def by_nft() -> bool:
    return VIP in run("nft", "list", "map", "inet", "tepui-vips", "vips4")


async def test_chosen_is_what_others_translate_with(container: Make) -> None:
    web = container(2)
    async with agent("auto") as vips:
        await vips.apply(table(vip(web.backend())))
        assert by_nft() and ask(None)[0] == web.address
    with open("/proc/net/ip_tables_names") as names:  # noqa: ASYNC230 - the kernel's
        assert "nat" not in names.read()  # to look was not to make
    run("iptables-legacy", *["-t", "nat", "-A", "POSTROUTING", "-s", "172.17.0.0/16", "-j", "MASQUERADE"])
    async with agent("auto") as vips:
        await vips.apply(table(vip(web.backend())))
        assert not by_nft() and f"--to-destination {web.address}:8080" in legacy() and ask(None)[0] == web.address
        await vips.remove()
    run("iptables-legacy", *["-t", "nat", "-F", "POSTROUTING"])
    async with agent("auto") as vips:
        await vips.apply(table(vip(web.backend())))
        assert by_nft() and "TEPUI" not in legacy()


@contextmanager
def asking(client: Container) -> Iterator[list[str]]:
    """Who answers, again and again, all the while; and what went wrong."""
    answers, over = [], threading.Event()

    def go_on() -> None:
        while not over.is_set():
            try:
                answers.append(ask(client)[0])
            except OSError as error:
                answers.append(repr(error))

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(("one", "other"), PAIRS)
async def test_moved_without_a_connection_lost(container: Make, one: Choice, other: Choice) -> None:
    client, web = container(2), container(3)
    wanted = table(vip(web.backend()), *many(30).vips.values())
    async with agent(one) as vips:
        await vips.apply(wanted)
    with connect(client, VIP) as open_, open_.makefile("rw") as stream, asking(client) as answers:
        assert stream.readline().split()[0] == web.address
        async with agent(other) as vips:
            await vips.apply(wanted)
            stream.write("still there?\n")
            stream.flush()
            assert stream.readline() == "still there?\n"
            assert by_nft() == (other == "nftables") and ("TEPUI" in legacy()) == (other == "iptables")
            assert await vips.mend() == []
    assert set(answers) == {web.address}
    async with agent("nftables") as vips:
        await vips.remove()
        assert await vips.installed() is None


# UDP


@contextmanager
def sender(client: Container) -> Iterator[socket.socket]:
    with network_of(client.namespace.pid):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.settimeout(CONNECT_DEADLINE_S)
        yield made


def send(sock: socket.socket, address: str = VIP, port: int = 80) -> str:
    """Who answers."""
    sock.connect((address, port))
    sock.send(b"who?")
    return sock.recv(100).decode().split()[0]


def flows() -> set[str]:
    """Of UDP, without their timers."""
    lines = run("cat", "/proc/net/nf_conntrack").splitlines()
    return {" ".join(line.split()[5:]) for line in lines if " udp " in line}


@pytest.mark.parametrize("choice", ["iptables", "nftables"])
@pytest.mark.parametrize("restarted", [False, True])
async def test_udp_finds_another_backend_at_once(container: Make, choice: Choice, restarted: bool) -> None:
    client, old, new, other = (container(number) for number in (2, 3, 4, 5))

    def udp(*backends: Container, port: int = 80) -> Vip:
        return vip(*(each.backend() for each in backends), port=port, protocol=Protocol.UDP)

    with sender(client) as moved, sender(client) as kept, sender(client) as direct:
        async with agent(choice) as vips:
            await vips.apply(table(udp(old), udp(other, port=81)))
            assert (send(moved), send(kept, port=81), send(direct, other.address, 8080)) == (
                old.address,
                other.address,
                other.address,
            )
            assert send(moved) == old.address
            before = flows()
            if not restarted:
                await vips.apply(table(udp(new), udp(other, port=81)))
        if restarted:
            async with agent(choice) as vips:
                await vips.apply(table(udp(new), udp(other, port=81)))
        gone = before - flows()
        assert len(gone) == 1 and f"src={old.address}" in gone.pop()
        assert (send(moved), send(kept, port=81)) == (new.address, other.address)
        async with agent(choice) as vips:
            await vips.apply(table(udp(new), udp(other, port=81)))
            await vips.apply(table(udp(new, other), udp(other, port=81)))
            assert send(moved) == new.address
            await vips.apply(table(udp(other, port=81)))
            with pytest.raises(ConnectionRefusedError):
                send(moved)
            assert send(kept, port=81) == other.address
