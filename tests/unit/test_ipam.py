"""Leases: durable, unique, fair, and mended at start."""

from __future__ import annotations

import json
import tempfile
import time
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from model.network import MOST_ADDRESSES, Block
from netns.driver import NetworkError
from netns.ipam.leases import Leases

BOOT = "boot-1"
SMALL = Block("prod", "n1", ip_network("10.1.0.0/29"))  # five addresses: .2 to .6
LARGE = Block("prod", "n1", ip_network("10.2.0.0/18"))


def acquire(leases: Leases, container: str, block: Block = SMALL) -> str:
    return str(leases.acquire(container, "prod", [block]).address)


def test_lease_is_on_disk_and_the_same_when_asked_again(tmp_path: Path) -> None:
    leases = Leases(tmp_path, BOOT)
    assert acquire(leases, "web.1") == acquire(leases, "web.1") == "10.1.0.2"
    content = json.loads((tmp_path / "prod" / "10.1.0.2").read_text())
    assert (content["container"], content["boot_id"]) == ("web.1", BOOT)
    assert acquire(Leases(tmp_path, BOOT), "web.1") == "10.1.0.2"


def test_exhausted_block_names_network_block_and_counts(tmp_path: Path) -> None:
    leases = Leases(tmp_path, BOOT)
    assert [acquire(leases, f"c{n}") for n in range(5)] == [f"10.1.0.{n}" for n in range(2, 7)]
    with pytest.raises(NetworkError, match=r'network "prod": no address left in 10\.1\.0\.0/29: 5 of 5 in use, 0 held'):
        acquire(leases, "one-too-many")
    leases.release("c3")
    assert acquire(leases, "one-too-many") == "10.1.0.5"


def test_freed_address_rests_and_the_order_survives_a_restart(tmp_path: Path) -> None:
    leases = Leases(tmp_path, BOOT)
    for n in range(5):
        acquire(leases, f"c{n}")
    for n in (3, 0, 2):
        leases.release(f"c{n}")
    again = Leases(tmp_path, BOOT)
    assert [acquire(again, f"d{n}") for n in range(3)] == ["10.1.0.5", "10.1.0.2", "10.1.0.4"]


def test_freed_address_is_not_the_next(tmp_path: Path) -> None:
    leases = Leases(tmp_path, BOOT)
    first = acquire(leases, "a")
    leases.release("a")
    assert acquire(leases, "b") != first
    assert acquire(Leases(tmp_path, BOOT), "c") != first


def test_release_of_unknown_and_twice(tmp_path: Path) -> None:
    leases = Leases(tmp_path, BOOT)
    acquire(leases, "a")
    assert leases.release("never") == ()
    assert [str(lease.address) for lease in leases.release("a")] == ["10.1.0.2"]
    assert leases.release("a") == ()


def test_static_address(tmp_path: Path) -> None:
    leases = Leases(tmp_path, BOOT)
    assert str(leases.acquire("a", "prod", [SMALL], ip_address("10.1.0.4")).address) == "10.1.0.4"
    for refused in ("10.1.0.4", "10.1.0.0", "10.1.0.1", "10.1.0.7", "10.9.9.9"):
        with pytest.raises(NetworkError, match=refused):
            leases.acquire("b", "prod", [SMALL], ip_address(refused))
    assert [acquire(leases, f"c{n}") for n in range(4)] == ["10.1.0.2", "10.1.0.3", "10.1.0.5", "10.1.0.6"]


def test_static_address_that_is_taken_names_who_has_it(tmp_path: Path) -> None:
    leases = Leases(tmp_path, BOOT)
    leases.acquire("a", "prod", [SMALL], ip_address("10.1.0.4"))
    with pytest.raises(NetworkError, match='network "prod": address 10.1.0.4 is held by a'):
        leases.acquire("b", "prod", [SMALL], ip_address("10.1.0.4"))
    with pytest.raises(NetworkError, match='network "prod": a has 10.1.0.4 already, not 10.1.0.5'):
        leases.acquire("a", "prod", [SMALL], ip_address("10.1.0.5"))
    assert leases.acquire("a", "prod", [SMALL]).address == ip_address("10.1.0.4")


def test_single_address_is_only_for_who_asks_for_it(tmp_path: Path) -> None:
    leases = Leases(tmp_path, BOOT)
    single = ip_address("10.1.200.1")
    assert [str(leases.acquire(f"c{n}", "prod", [SMALL], singles=[single]).address) for n in range(5)][-1] == "10.1.0.6"
    with pytest.raises(NetworkError, match="no address left"):
        leases.acquire("d", "prod", [SMALL], singles=[single])
    assert leases.acquire("e", "prod", [SMALL], single, [single]).address == single
    with pytest.raises(NetworkError, match="held by e"):
        Leases(tmp_path, BOOT).acquire("f", "prod", [SMALL], single, [single])
    leases.release("e")
    assert leases.acquire("f", "prod", [SMALL], single, [single]).address == single
    with pytest.raises(NetworkError, match=r"10\.1\.200\.2 is held back or not one of 10\.1\.0\.0/29, 10\.1\.200\.1"):
        leases.acquire("g", "prod", [SMALL], ip_address("10.1.200.2"), [single])


def test_companion_and_interface_survive_a_restart(tmp_path: Path) -> None:
    six = Block("prod", "n1", ip_network("fd00::/80"))
    lease = Leases(tmp_path, BOOT).acquire("a", "prod", [SMALL], interface="eth1", companions=six)
    assert (lease.interface, str(lease.companion)) == ("eth1", "fd00::a01:2")
    assert lease.addresses == (lease.address, lease.companion)
    assert Leases(tmp_path, BOOT).of("a") == (lease,)


def test_leases_of_several_networks_are_in_the_order_of_the_interfaces(tmp_path: Path) -> None:
    leases = Leases(tmp_path, BOOT)
    for number, network in ((1, "a"), (0, "z"), (2, "m")):
        leases.acquire("web", network, [Block(network, "n1", SMALL.subnet)], interface=f"eth{number}")
    assert [lease.network for lease in Leases(tmp_path, BOOT).of("web")] == ["z", "a", "m"]
    assert len(leases.release("web")) == 3


def test_lease_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "prod").mkdir()
    (tmp_path / "prod" / "10.1.0.2").write_text(json.dumps({"container": "a", "boot_id": BOOT, "time": 0.0}))
    [lease] = Leases(tmp_path, BOOT).of("a")
    assert (lease.interface, lease.companion) == ("eth0", None)


def test_no_block_to_lease_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match='network "prod": no address left: this node has no block'):
        Leases(tmp_path, BOOT).acquire("a", "prod", [])


def test_block_of_ipv6_is_leased_as_far_as_leases_go(tmp_path: Path) -> None:
    """Of a block with 2 to the power of 48 addresses the first ones are given out, and no others."""
    leases = Leases(tmp_path, BOOT)
    six = Block("prod", "n1", ip_network("fd00:0:0:7::/80"))
    assert acquire(leases, "a", six) == "fd00:0:0:7::2"
    last = six.subnet.network_address + MOST_ADDRESSES - 1
    assert leases.acquire("b", "prod", [six], last).address == last
    with pytest.raises(NetworkError, match="not one of"):
        leases.acquire("c", "prod", [six], last + 1)


def test_several_blocks_are_used_in_turn(tmp_path: Path) -> None:
    leases = Leases(tmp_path, BOOT)
    more = Block("prod", "n1", ip_network("10.1.8.0/29"))
    addresses = [str(leases.acquire(f"c{n}", "prod", [SMALL, more]).address) for n in range(6)]
    assert addresses[-1] == "10.1.8.2"


def test_leases_of_another_boot_are_given_back_at_start(tmp_path: Path) -> None:
    before = Leases(tmp_path, "boot-0")
    acquire(before, "a")
    after = Leases(tmp_path, BOOT)
    assert after.of("a") == ()
    assert acquire(after, "b") == "10.1.0.3"  # the old one rests


def test_gc_gives_back_what_is_not_valid(tmp_path: Path) -> None:
    leases = Leases(tmp_path, BOOT)
    for name in ("a", "b", "c"):
        acquire(leases, name)
    assert {lease.container for lease in leases.gc(frozenset({"b"}))} == {"a", "c"}
    assert {lease.container for lease in Leases(tmp_path, BOOT).all()} == {"b"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"container": "a"}', b"\xff\xfe"])
def test_corrupt_lease_is_set_aside_and_its_address_held_back(tmp_path: Path, content: bytes) -> None:
    leases = Leases(tmp_path, BOOT)
    for name in ("a", "b"):
        acquire(leases, name)
    (tmp_path / "prod" / "10.1.0.2").write_bytes(content)
    for _ in range(2):
        again = Leases(tmp_path, BOOT)
        assert {lease.container for lease in again.all()} == {"b"}
        assert (tmp_path / ".corrupt" / f"prod_10.1.0.2_{BOOT}").read_bytes() == content
    assert [acquire(again, f"c{n}") for n in range(3)] == ["10.1.0.4", "10.1.0.5", "10.1.0.6"]
    with pytest.raises(NetworkError, match="1 held back"):
        acquire(again, "d")
    assert acquire(Leases(tmp_path, "boot-2"), "e") == "10.1.0.2"


def test_unfinished_file_is_swept(tmp_path: Path) -> None:
    (tmp_path / "prod").mkdir()
    (tmp_path / "prod" / ".new-10.1.0.2").write_text("{")
    assert acquire(Leases(tmp_path, BOOT), "a") == "10.1.0.2"
    assert [path.name for path in (tmp_path / "prod").iterdir()] == ["10.1.0.2"]


def test_disk_failure_names_the_file_and_frees_the_address(tmp_path: Path) -> None:
    leases = Leases(tmp_path, BOOT)
    acquire(leases, "a")
    (tmp_path / "prod" / "10.1.0.3").mkdir()  # stands in the way of the next lease
    with pytest.raises(NetworkError, match=r"lease 10\.1\.0\.3 to b: .*prod/10\.1\.0\.3: File exists"):
        acquire(leases, "b")
    assert leases.of("b") == ()
    (tmp_path / "prod" / "10.1.0.3").rmdir()
    assert [acquire(leases, f"c{n}") for n in range(4)][-1] == "10.1.0.3"


def test_allocation_stays_fast_with_5000_leases(tmp_path: Path) -> None:
    (tmp_path / "prod").mkdir()
    for number in range(5000):
        address = LARGE.subnet.network_address + 2 + number
        lease = {"container": f"c{number}", "boot_id": BOOT, "time": 0.0}
        (tmp_path / "prod" / str(address)).write_text(json.dumps(lease))
    leases = Leases(tmp_path, BOOT)
    acquire(leases, "first", LARGE)  # builds the pool
    took = []
    for n in range(50):
        started = time.perf_counter()
        acquire(leases, f"d{n}", LARGE)
        took.append(time.perf_counter() - started)
    assert sorted(took)[25] < 0.01, f"p50 {sorted(took)[25] * 1000:.2f} ms"


class LeaseMachine(RuleBasedStateMachine):
    """No address has two owners, whatever happens, and what is on disk is what is in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.leases = Leases(Path(self.directory.name), BOOT)
        self.owners: dict[str, str] = {}

    @rule(container=st.sampled_from("abcdefgh"))
    def acquire(self, container: str) -> None:
        if len(self.owners) == 5 and container not in self.owners:
            with pytest.raises(NetworkError):
                acquire(self.leases, container)
        else:
            address = acquire(self.leases, container)
            assert self.owners.setdefault(container, address) == address

    @rule(container=st.sampled_from("abcdefgh"))
    def release(self, container: str) -> None:
        self.leases.release(container)
        self.owners.pop(container, None)

    @rule()
    def restart(self) -> None:
        self.leases = Leases(Path(self.directory.name), BOOT)

    @invariant()
    def agrees(self) -> None:
        assert len(set(self.owners.values())) == len(self.owners)
        assert {lease.container: str(lease.address) for lease in self.leases.all()} == self.owners

    def teardown(self) -> None:
        self.directory.cleanup()


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=40, stateful_step_count=30)
