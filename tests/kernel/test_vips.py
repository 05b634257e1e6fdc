"""VIPs in a real kernel, by each back end."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import pytest

from model.task import Protocol
from netns.vip.backend import Table
from netns.vip.iptables import IptablesVips
from netns.vip.nftables import NftVips
from tests.kernel.namespaces import NetnsProcess, network_of, run
from tests.kernel.vips import (
    CONNECT_DEADLINE_S,
    GATEWAY,
    OUTSIDE,
    VIP,
    Container,
    ask,
    connect,
    containers,
    end,
    start,
    table,
    vip,
    wire,
)

pytestmark = pytest.mark.anyio

Vips = IptablesVips | NftVips


@pytest.fixture(params=[IptablesVips, NftVips])
async def vips(request: pytest.FixtureRequest) -> AsyncIterator[Vips]:
    backend: Vips = request.param()
    yield backend
    await backend.close()


@pytest.fixture
def container(spawn: Callable[[], NetnsProcess]) -> Iterator[Callable[[int], Container]]:
    with containers(spawn) as make:
        yield make


async def test_a_vip_answers_containers_and_the_host(vips: Vips, container: Callable[[int], Container]) -> None:
    client, web = container(2), container(3)
    await vips.apply(table(vip(web.backend())))
    assert ask(client) == (web.address, client.address)
    assert ask(None) == (web.address, GATEWAY)


async def test_backends_share_connections_by_weight(vips: Vips, container: Callable[[int], Container]) -> None:
    client, *webs = (container(number) for number in (2, 3, 4, 5))
    weights = {webs[0].address: 1, webs[1].address: 1, webs[2].address: 2}
    await vips.apply(table(vip(*(web.backend(weights[web.address]) for web in webs))))
    seen = Counter(ask(client)[0] for _ in range(400))
    expected = {address: 400 * weight / 4 for address, weight in weights.items()}
    # Chi-square with two degrees of freedom: a fair draw exceeds 27.6 once in a million runs.
    assert sum((seen[address] - count) ** 2 / count for address, count in expected.items()) < 27.6


async def test_a_container_reaches_itself_through_its_vip(vips: Vips, container: Callable[[int], Container]) -> None:
    web, other = container(2), container(3)
    await vips.apply(table(vip(web.backend())))
    assert ask(web) == (web.address, GATEWAY)
    assert ask(other) == (web.address, other.address)


@pytest.mark.parametrize("address", [VIP, "100.127.200.1", "10.1.2.3"])
async def test_a_vip_without_backends_is_refused_at_once(
    vips: Vips, container: Callable[[int], Container], address: str
) -> None:
    client, other = container(2), container(3)
    run("ip", "route", "add", "10.1.2.3/32", "dev", "tv3", "src", GATEWAY)
    await vips.apply(table(vip(), vip(address="10.1.2.3"), vip(address="10.1.2.3", protocol=Protocol.UDP)))
    for source in (client, other, None):
        started = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            connect(source, address)
        assert time.monotonic() - started < 0.1


async def test_udp_to_a_vip_without_backends_is_refused(vips: Vips, container: Callable[[int], Container]) -> None:
    client = container(2)
    await vips.apply(table(vip(protocol=Protocol.UDP)))
    with network_of(client.namespace.pid), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.settimeout(CONNECT_DEADLINE_S)
        sending.connect((VIP, 80))
        sending.send(b"anyone?")
        with pytest.raises(ConnectionRefusedError):
            sending.recv(100)


async def test_an_address_outside_of_the_pool_keeps_its_other_ports(
    vips: Vips, container: Callable[[int], Container]
) -> None:
    client, owner, web = container(2), container(3), container(4)
    await vips.apply(table(vip(web.backend(), address=owner.address)))
    assert ask(client, owner.address, 80)[0] == web.address
    assert ask(client, owner.address, 8080)[0] == owner.address


async def test_an_open_connection_survives_a_change_of_backends(
    vips: Vips, container: Callable[[int], Container]
) -> None:
    client, old, new = container(2), container(3), container(4)
    await vips.apply(table(vip(old.backend())))
    with connect(client, VIP) as connection, connection.makefile("rw") as stream:
        assert stream.readline().split()[0] == old.address
        for remaining in (vip(new.backend()), vip()):
            await vips.apply(table(remaining))
            stream.write("still there?\n")
            stream.flush()
            assert stream.readline() == "still there?\n"
        await vips.apply(table(vip(new.backend())))
        assert ask(client)[0] == new.address


MANY = 20_000
CONNECT_MANY = f"""
import collections, socket, sys
seen = collections.Counter()
for _ in range({MANY}):
    with socket.create_connection((sys.argv[1], 80), 5) as connection:
        seen[connection.recv(100).decode()] += 1
print(len(seen), seen.total(), *seen)
"""
SERVE_MANY = """
import socket
with socket.create_server(("", 9090), backlog=128) as server:
    print("ready", flush=True)
    while True:
        with server.accept()[0] as connection:
            connection.sendall(connection.getpeername()[0].encode())
            connection.recv(1)  # until the client closes: its end is the one that waits
"""


async def test_ports_do_not_run_out(vips: Vips, container: Callable[[int], Container]) -> None:
    """Whose address is changed on the way has to share the ports of that address with all others."""
    client, web = container(2), container(3)
    await vips.apply(table(vip(replace(web.backend(), port=9090))))
    server = await asyncio.create_subprocess_exec(*python_in(web, SERVE_MANY), stdout=subprocess.PIPE)
    assert server.stdout is not None and await server.stdout.readline() == b"ready\n"
    asking = await asyncio.create_subprocess_exec(*python_in(client, CONNECT_MANY, VIP), stdout=subprocess.PIPE)
    said, _ = await asking.communicate()
    server.kill()
    await server.wait()
    assert said.decode() == f"1 {MANY} {client.address}\n"


def python_in(where: Container, program: str, *arguments: str) -> tuple[str, ...]:
    return ("nsenter", "-t", str(where.namespace.pid), "-n", sys.executable, "-I", "-S", "-c", program, *arguments)


async def test_a_client_stays_with_its_backend(vips: Vips, container: Callable[[int], Container]) -> None:
    """Whatever becomes of others; until its own is gone, or it has not come for so long."""
    clients, webs = [container(number) for number in (2, 3)], [container(number) for number in (4, 5, 6)]

    def sticky(*backends: Container, affinity_s: int = 60) -> Table:
        return table(replace(vip(*(each.backend() for each in backends)), affinity_s=affinity_s))

    await vips.apply(sticky(*webs))
    chosen = {client.address: ask(client)[0] for client in clients}
    for client in (*clients, *clients, *clients):
        assert ask(client) == (chosen[client.address], client.address)
    first = next(web for web in webs if web.address == chosen[clients[0].address])
    others = [web for web in webs if web is not first]
    await vips.apply(sticky(first, others[0]))
    await vips.apply(sticky(*webs))
    assert {ask(clients[0])[0] for _ in range(12)} == {first.address}
    assert await vips.mend() == []
    await vips.apply(sticky(*others))
    (second,) = {ask(clients[0])[0] for _ in range(12)}
    assert second in {web.address for web in others}
    await vips.apply(sticky(*webs, affinity_s=1))
    seen = set()
    for _ in range(20):  # of three, to meet one alone so often is a chance of one in 10^9
        seen.add(ask(clients[0])[0])
        await asyncio.sleep(1.3)
        if len(seen) > 1:
            break
    assert len(seen) > 1
    await vips.apply(table(vip(first.backend())))
    assert ask(clients[0])[0] == first.address
    if isinstance(vips, NftVips):
        assert "sticky_" not in run("nft", "list", "table", "inet", "tepui-vips")


@pytest.mark.parametrize("affinity_s", [0, 60])
async def test_backends_get_alike_whatever_their_order(
    vips: Vips, container: Callable[[int], Container], affinity_s: int
) -> None:
    """Each of many clients is drawn anew, also with affinity."""
    webs = [container(number) for number in (3, 4, 5, 6)]
    run("ip", "addr", "add", "100.64.1.1/32", "dev", "lo")
    for number in range(200, 250) if affinity_s else ():
        run("ip", "addr", "add", f"100.64.1.{number}/32", "dev", "lo")
    await vips.apply(table(replace(vip(*(web.backend() for web in webs)), affinity_s=affinity_s)))
    sources = [f"100.64.1.{number}" for number in range(200, 250)] * 4 if affinity_s else [""] * 400
    seen: Counter[str] = Counter()
    for source in dict.fromkeys(sources) if affinity_s else sources:
        with socket.create_connection((VIP, 80), CONNECT_DEADLINE_S, (source, 0) if source else None) as connection:
            seen[connection.makefile().readline().split()[0]] += 1
    count = seen.total() / len(webs)
    # Chi-square with three degrees of freedom: a fair draw exceeds 30.7 once in a million runs.
    assert sum((seen[web.address] - count) ** 2 / count for web in webs) < 30.7


async def test_only_what_leaves_the_cluster_is_masqueraded(
    vips: Vips, container: Callable[[int], Container], spawn: Callable[[], NetnsProcess]
) -> None:
    client, neighbour, outside = container(2), container(3), spawn()
    wire(outside, "out", "192.0.2.1", OUTSIDE)
    run("ip", "route", "add", f"{OUTSIDE}/32", "dev", "out")
    server = start(outside, OUTSIDE)
    await vips.apply(table())
    assert ask(client, OUTSIDE, 8080) == (OUTSIDE, "192.0.2.1")
    assert ask(client, neighbour.address, 8080) == (neighbour.address, client.address)
    end(server)
