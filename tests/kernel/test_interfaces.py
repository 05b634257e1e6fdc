"""Containers on several networks: which way what goes, which way answers go, and that all of it ends together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from model.network import Address, Block, Network, NetworkKind
from netns.driver import Attachment, NetworkError, NetworkSpec
from netns.link import INTERFACES, veth_name, veth_names
from netns.networks import Networks
from tests.kernel.namespaces import Echo, NetnsProcess, echo, ip, run

pytestmark = pytest.mark.anyio

UNDERLAY = ip_address("192.0.2.1")
Spawn = Callable[..., NetnsProcess]


def spec(name: str, number: int) -> NetworkSpec:
    subnets = (ip_network(f"10.{number}.0.0/16"), ip_network(f"fd00:{number}::/64"))
    blocks = (ip_network(f"10.{number}.1.0/24"), ip_network(f"fd00:{number}::/80"))
    return NetworkSpec(Network(name, NetworkKind.BRIDGE, subnets), tuple(Block(name, "n1", each) for each in blocks))


FRONT, BACK = spec("front", 1), spec("back", 2)


@pytest.fixture
def card(host_netns: None) -> None:
    run("ip", "link", "add", "card", "type", "veth", "peer", "wire")
    run("ip", "addr", "add", f"{UNDERLAY}/24", "dev", "card")
    run("ip", "link", "set", "card", "up")
    run("ip", "link", "set", "wire", "up")


@asynccontextmanager
async def opened(state: Path) -> AsyncIterator[Networks]:
    async with Networks(state, "n1", "boot-1", UNDERLAY) as driver:
        await driver.configure(FRONT)
        await driver.configure(BACK)
        yield driver


@dataclass(frozen=True, slots=True)
class Two:
    """A container on both networks, one on each, and their addresses."""

    both: NetnsProcess
    front: NetnsProcess
    back: NetnsProcess
    addresses: dict[str, tuple[Address, ...]]


@pytest.fixture
async def two(card: None, tmp_path: Path, spawn: Spawn) -> Two:
    both, front, back = spawn(), spawn(), spawn()
    async with opened(tmp_path) as driver:
        addresses = {
            "eth0": await driver.attach(Attachment("both", "front", both.pid)),
            "eth1": await driver.attach(Attachment("both", "back", both.pid, "eth1")),
            "front": await driver.attach(Attachment("front", "front", front.pid)),
            "back": await driver.attach(Attachment("back", "back", back.pid)),
        }
        assert driver.addresses("both") == addresses["eth0"] + addresses["eth1"]
    return Two(both, front, back, addresses)


async def test_each_network_is_reached_with_its_own_address(two: Two, echo_server: Callable[[int], Echo]) -> None:
    for name, interface in (("front", "eth0"), ("back", "eth1")):
        port = echo_server(getattr(two, name).pid).port
        for own, address in zip(two.addresses[interface], two.addresses[name], strict=True):
            assert echo(two.both.pid, address, port, size=100_000) == str(own)
    routes = {route["dst"]: route["dev"] for route in two.both.ip("route")}
    assert (routes["default"], routes["10.2.0.0/16"]) == ("eth0", "eth1")


async def test_who_asked_at_a_link_is_answered_from_there(two: Two, echo_server: Callable[[int], Echo]) -> None:
    """The one that asks is on neither network, so by the container's routes the answer would leave by eth0."""
    port = echo_server(two.both.pid).port
    for address in (*two.addresses["eth0"], *two.addresses["eth1"]):
        assert echo(two.front.pid, address, port, size=100_000)
    before = counted(two.both, "eth1")
    for address in two.addresses["eth1"]:
        assert echo(two.front.pid, address, port)
    assert counted(two.both, "eth1") > before


def counted(container: NetnsProcess, interface: str) -> int:
    """Bytes that left by it."""
    return int(container.ip("-s", "link", "show", interface)[0]["stats64"]["tx"]["bytes"])


async def test_detach_takes_all_of_it(two: Two, tmp_path: Path) -> None:
    async with opened(tmp_path) as driver:
        assert driver.addresses("both") == two.addresses["eth0"] + two.addresses["eth1"]
        await driver.detach("both")
        assert driver.addresses("both") == ()
    assert [link["ifname"] for link in two.both.ip("link")] == ["lo"]
    assert not {link["ifname"] for link in ip("link")} & veth_names("both")


async def test_attached_again_after_a_restart_is_the_same(two: Two, tmp_path: Path) -> None:
    rules = two.both.ip("rule"), two.both.ip("-6", "rule")
    async with opened(tmp_path) as driver:
        assert await driver.attach(Attachment("both", "back", two.both.pid, "eth1")) == two.addresses["eth1"]
    assert (two.both.ip("rule"), two.both.ip("-6", "rule")) == rules
    assert len(two.both.ip("link")) == 3


async def test_gc_keeps_all_links_of_a_valid_container(two: Two, tmp_path: Path) -> None:
    ours = {veth_name("both"), veth_name("both", "eth1")}
    async with opened(tmp_path) as driver:
        await driver.gc(frozenset({"both"}))
        assert driver.addresses("front") == driver.addresses("back") == ()
    assert {link["ifname"] for link in ip("link") if link["ifname"].startswith("tv")} == ours
    async with opened(tmp_path) as driver:
        await driver.gc(frozenset())
    assert not [link for link in ip("link") if link["ifname"].startswith("tv")]


async def test_a_container_has_a_network_once_and_a_link_once(two: Two, tmp_path: Path) -> None:
    async with opened(tmp_path) as driver:
        for network, interface, problem in (
            ("back", "eth2", 'its eth1 is attached to "back"'),
            ("back", "eth0", 'its eth[01] is attached to "(front|back)"'),
            ("back", "eth8", 'interface: "eth8" is not one of eth0 to eth7'),
            ("back", "lo", 'interface: "lo" is not one of'),
        ):
            with pytest.raises(NetworkError, match=f'attach both to bridge "{network}": {problem}'):
                await driver.attach(Attachment("both", network, two.both.pid, interface))
    assert len(two.both.ip("link")) == 3


async def test_as_many_links_as_there_may_be(card: None, tmp_path: Path, spawn: Spawn) -> None:
    container = spawn()
    specs = [replace(spec(f"net{number}", number + 10)) for number in range(len(INTERFACES))]
    async with opened(tmp_path) as driver:
        for interface, each in zip(INTERFACES, specs, strict=True):
            await driver.configure(each)
            await driver.attach(Attachment("web", each.network.name, container.pid, interface))
        assert len(driver.addresses("web")) == 2 * len(INTERFACES)
    assert [link["ifname"] for link in container.ip("link")] == ["lo", *INTERFACES]
    assert {link["ifname"] for link in ip("link")} >= veth_names("web") and len(veth_names("web")) == 8
