"""Which of a node's addresses other nodes know it by."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from agent.underlay import NoUnderlay, underlay_address
from cli.settings import AgentSettings, SettingsError, load
from netns.address import addresses_within
from netns.netlink import Netlink
from tests.kernel.namespaces import run

pytestmark = pytest.mark.anyio

MASTER = "192.0.2.10:8444"


@pytest.fixture
def two_links(host_netns: None) -> None:
    for name, addresses in {
        "front": ("192.0.2.1/24", "2001:db8:1::1/64"),
        "back": ("198.51.100.1/24", "198.51.100.2/24", "2001:db8:2::1/64"),
    }.items():
        run("ip", "link", "add", name, "type", "veth", "peer", f"{name}2")
        for address in addresses:
            run("ip", "addr", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
        run("ip", "link", "set", name, "up")
        run("ip", "link", "set", f"{name}2", "up")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, "192.0.2.1"),
        (ip_address("203.0.113.9"), "203.0.113.9"),  # whose word is taken for it
        (ip_network("192.0.2.0/24"), "192.0.2.1"),
        (ip_network("198.51.100.2/32"), "198.51.100.2"),
        (ip_network("2001:db8:2::/64"), "2001:db8:2::1"),
    ],
)
async def test_the_one_that_is_meant(two_links: None, wanted: object, expected: str) -> None:
    assert await underlay_address(wanted, MASTER) == ip_address(expected)  # type: ignore[arg-type]


async def test_none_and_several_are_refused_by_name(two_links: None) -> None:
    with pytest.raises(NoUnderlay, match=r"address: this node has none in 10\.0\.0\.0/8"):
        await underlay_address(ip_network("10.0.0.0/8"), MASTER)
    with pytest.raises(NoUnderlay, match=r"several in 198\.51\.100\.0/24: 198\.51\.100\.1, 198\.51\.100\.2: set one"):
        await underlay_address(ip_network("198.51.100.0/24"), MASTER)
    async with Netlink() as netlink:
        everything = await addresses_within(netlink, ip_network("0.0.0.0/0"))
    assert [str(address) for address in everything] == ["127.0.0.1", "192.0.2.1", "198.51.100.1", "198.51.100.2"]


async def test_a_master_on_this_node_leads_to_no_address(two_links: None) -> None:
    for master in ("127.0.0.1:8444", "[::1]:8444"):
        with pytest.raises(NoUnderlay, match=r"is on this node, and no other node can reach .*: set address"):
            await underlay_address(None, master)
    assert await underlay_address(None, "192.0.2.1:8444") == ip_address("192.0.2.1")


async def test_no_route_to_the_master(host_netns: None) -> None:
    with pytest.raises(NoUnderlay, match=r"no route to the master 192\.0\.2\.10:8444: Network is unreachable"):
        await underlay_address(None, MASTER)


@pytest.mark.parametrize("text", ["192.0.2.1", "192.0.2.0/24", "2001:db8::1", "2001:db8::/64"])
def test_setting_is_an_address_or_a_subnet(tmp_path: Path, text: str) -> None:
    (tmp_path / "agent.toml").write_text(f'address = "{text}"\n')
    settings = load(AgentSettings, tmp_path / "agent.toml")
    assert settings.address == (ip_network(text) if "/" in text else ip_address(text))


def test_setting_that_is_neither_is_refused(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('address = "192.0.2.300"\n')
    with pytest.raises(SettingsError, match=r"agent\.toml: address"):
        load(AgentSettings, tmp_path / "agent.toml")
