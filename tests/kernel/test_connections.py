"""Who is connected to what on the node, as its kernel knows it."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from ipaddress import ip_address

import pytest

from model.network import Address
from netns import connections
from netns.connections import FRESH_S, Connections
from tests.kernel.namespaces import run

pytestmark = pytest.mark.anyio
# Any rule that asks for the state of a connection has the kernel look after all of this namespace.
TRACK = "table inet t { chain c { type filter hook input priority 0; ct state established accept; }; }"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_open_connections_are_counted_until_they_are_closed(host: str) -> None:
    run("nft", TRACK)
    known = Connections()
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        end = ip_address(host), server.getsockname()[1]

        async def count() -> int:
            return await known.open_to([end, end])

        async def counted(expected: int) -> None:
            known._at = -FRESH_S
            assert await count() == expected

        await counted(0)
        clients = [socket.create_connection(server.getsockname()[:2]) for _ in range(3)]
        accepted = [server.accept()[0] for _ in clients]
        await counted(3)
        assert await known.open_to([(end[0], end[1] + 1), (ip_address("192.0.2.1"), end[1])]) == 0
        clients[0].shutdown(socket.SHUT_WR)  # it has asked, and waits for its answer
        await counted(3)
        for sock in (clients[0], accepted[0]):
            sock.close()
        await counted(2)
        for sock in (*clients, *accepted):
            sock.close()
        await counted(0)


async def test_many_who_ask_at_once_are_answered_by_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    run("nft", TRACK)
    looks, look = 0, connections._look

    def counted() -> Counter[tuple[Address, int]]:
        nonlocal looks
        looks += 1
        return look()

    monkeypatch.setattr(connections, "_look", counted)
    asked = Connections()
    await asyncio.gather(*(asked.open_to([]) for _ in range(50)))
    assert 1 <= looks <= 2
