"""VIPs by nftables: one table of our own, changed by the element, put right when somebody else has touched it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from model.network import Network, NetworkKind
from model.task import Protocol
from model.vip import Backend, Vip
from netns.driver import NetworkError
from netns.firewall.nftables import NftFirewall
from netns.firewall.table import Guest, Zone
from netns.nft.netfilter import Netfilter
from netns.nft.own import NftSession
from netns.vip.backend import Table
from netns.vip.nft_table import TABLE
from netns.vip.nftables import NftVips
from tests.kernel.namespaces import run
from tests.kernel.vips import CLUSTER, POOL, many, table, vip

pytestmark = pytest.mark.anyio

OTHERS = """
table ip nat {
    chain PREROUTING {
        type nat hook prerouting priority dstnat; policy accept;
        tcp dport 8080 dnat to 172.17.0.2:80
    }
    chain POSTROUTING {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 172.17.0.0/16 masquerade
    }
}
table inet firewalld {
    chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept; }
}
"""


@pytest.fixture
async def vips(host_netns: None) -> AsyncIterator[NftVips]:
    session = NftSession()
    yield NftVips(session)
    session.close()


def listing(table: str = TABLE) -> str:
    return run("nft", "list", "table", *table.split())


def web(*backends: int, port: int = 80, protocol: Protocol = Protocol.TCP) -> Vip:
    return vip(*(Backend(f"t{n}", "n", CLUSTER[n], 8080) for n in backends), port=port, protocol=protocol)


async def test_installed_is_the_same_for_equal_tables_only(vips: NftVips) -> None:
    assert await vips.installed() is None
    digests = []
    for wanted in (many(20), many(21), table(web(2, 3, 4)), many(20)):
        await vips.apply(wanted)
        digests.append(await vips.installed())
    assert digests[0] == digests[3] and len(set(digests)) == 3  # whatever there was in between
    for _ in range(2):
        await vips.remove()
    assert await vips.installed() is None


async def test_a_change_is_one_transaction_of_what_differs(vips: NftVips) -> None:
    await vips.apply(many(100))
    before, handles = Netfilter(), run("nft", "-a", "list", "table", *TABLE.split()).count("handle")
    generation = before.generation()
    await vips.apply(many(100))
    assert before.generation() == generation
    changed = dict(many(100).vips)
    key, row = next(iter(changed.items()))
    changed[key] = replace(row, backends=(*row.backends, Backend("t", "n", CLUSTER[99], 8080)))
    await vips.apply(replace(many(100), vips=changed))
    assert before.generation() == generation + 1
    before.close()
    assert run("nft", "-a", "list", "table", *TABLE.split()).count("handle") == handles + 5  # a chain and its rules
    assert f"{row.address} . 6 . 80 : goto of_2" in _numeric()
    await vips.apply(many(100))
    assert "of_2" not in _numeric()


def _numeric() -> str:
    return run("nft", "-n", "list", "table", *TABLE.split()).replace("tcp", "6")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("flush table inet tepui-vips", "chain of_1 was changed"),
        ("delete table inet tepui-vips", "the table inet tepui-vips was gone"),
        ("flush map inet tepui-vips tcp4", "tcp4 lacked 20 of 20 elements"),
        ("add element inet tepui-vips itself4 { 1.2.3.4 . 1.2.3.4 }", "itself4 had 1 elements that are not ours"),
        ("insert rule inet tepui-vips pre accept", "chain pre was changed"),
        ("delete element inet tepui-vips pools4 { 100.127.0.0/16 }", "pools4 lacked 1 of 1 elements"),
        ("add chain inet tepui-vips other", "chain other was changed"),
    ],
)
async def test_what_somebody_changes_is_put_right_and_named(vips: NftVips, damage: str, words: str) -> None:
    await vips.apply(many(20))
    right = listing()
    assert await vips.mend() == []
    run("nft", damage)
    assert words in await vips.mend()
    assert listing() == right
    assert await vips.mend() == []


@pytest.mark.parametrize("damage", ["delete table inet tepui-vips", "flush map inet tepui-vips vips4"])
async def test_what_can_not_be_changed_any_more_is_put_there_anew(vips: NftVips, damage: str) -> None:
    await vips.apply(many(20))
    run("nft", damage)
    await vips.apply(many(19))
    right = listing()
    await vips.mend()
    assert listing() == right and "100.127.0.20" not in right


async def test_rules_of_others_stay_and_ours_are_not_read_for_them_twice(vips: NftVips) -> None:
    run("nft", OTHERS)
    before = listing("ip nat"), listing("inet firewalld")
    await vips.apply(many(20))
    run("nft", "add table inet more")
    assert await vips.mend() == []
    assert vips._own.untouched()
    await vips.remove()
    assert (listing("ip nat"), listing("inet firewalld")) == before


async def test_what_the_firewall_does_is_no_strangers_doing(host_netns: None) -> None:
    session = NftSession()
    firewall, vips = NftFirewall(session), NftVips(session)
    zone = Zone(Network("prod", NetworkKind.BRIDGE, (ip_network("10.9.0.0/16"),)), (ip_network("10.9.1.0/24"),))
    await vips.apply(many(3))
    await firewall.configure((zone,), (), {}, frozenset())
    await firewall.admit(Guest("web", "prod", (ip_address("10.9.1.2"),)))
    await vips.apply(many(4))
    assert vips._own.untouched() and firewall._own.untouched()
    run("nft", "delete table inet tepui")
    assert not vips._own.untouched()
    assert await vips.mend() == [] and await firewall.mend() == ["the table inet tepui was gone"]
    assert await vips.mend() == [] and await firewall.mend() == []
    session.close()


async def test_the_next_agent_takes_over_without_a_gap(vips: NftVips) -> None:
    await vips.apply(many(20))
    right = await vips.installed()
    session = NftSession()
    successor = NftVips(session)
    assert await successor.mend() == []  # it knows nothing yet
    assert await successor.installed() == right
    await successor.apply(many(20))
    assert await successor.installed() == right
    session.close()


async def test_a_cancelled_apply_is_known_for_what_it_did(vips: NftVips) -> None:
    await vips.apply(many(10))
    change = asyncio.create_task(vips.apply(many(3000, port=9090)))
    await asyncio.sleep(0.05)
    change.cancel()
    with pytest.raises(asyncio.CancelledError):
        await change
    await vips.apply(many(20))
    right = listing()
    await vips.remove()
    await vips.apply(many(20))
    assert listing() == right


async def test_versions_of_ip_are_not_mixed_and_nothing_changes(vips: NftVips) -> None:
    await vips.apply(many(3))
    right = listing()
    six = Backend("t", "n", ip_address("fd01:b::2"), 8080)
    with pytest.raises(NetworkError, match=r"VIP 100\.127\.3\.7:80/tcp \(/web\): backend fd01:b::2 is of another"):
        await vips.apply(table(vip(six)))
    assert listing() == right
    await vips.apply(many(4))
    assert await vips.mend() == []


async def test_ten_thousand_vips(vips: NftVips) -> None:
    """Both versions of IP, two backends each, and pools that contain each other."""
    rows = {}
    for n in range(1, 5001):
        for pool, cluster in ((POOL, CLUSTER), (ip_network("fd01:c::/112"), ip_network("fd01:b::/64"))):
            backends = tuple(Backend(f"t{n}.{i}", "n", cluster[2 + 2 * n + i], 8080) for i in (0, 1))
            row = Vip(pool[n], 80, Protocol.TCP, f"/{n}", backends)
            rows[row.key] = row
    local = (ip_network("100.64.1.0/24"), ip_network("fd01:b:0:0:1::/80"), ip_network("fd01:b::/96"))
    pools = (POOL, ip_network("100.127.3.0/24"), ip_network("fd01:c::/112"))
    wanted = Table(rows, pools, local, (CLUSTER, ip_network("fd01:b::/64")))
    started = time.monotonic()
    await vips.apply(wanted)
    assert time.monotonic() - started < 20
    run("nft", "add table inet theirs")
    assert await vips.mend() == []
    said = json.loads(run("nft", "-j", "list", "map", "inet", "tepui-vips", "tcp6"))
    assert len(said["nftables"][1]["map"]["elem"]) == 10_000
