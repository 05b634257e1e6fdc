"""Addresses that tasks ask for: one by name, or the one that was theirs before."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from master.networks import NETWORK_CODEC, NETWORKS
from master.store.base import Put, StoreError
from model.network import Network, NetworkKind
from model.task import KEEP, Interface, TaskSpec, TaskState
from model.volume import PersistentVolume, VolumeKind, VolumeMount
from tests.unit.cluster import node, until
from tests.unit.control import Master, master, task
from tests.unit.test_allocator import Framework, running

pytestmark = pytest.mark.anyio

SITE = Network("site", NetworkKind.BRIDGE, (ip_network("10.9.0.0/24"),), 28, static=(ip_network("10.9.0.240/28"),))
PLAIN = Network("plain", NetworkKind.BRIDGE, (ip_network("10.8.0.0/24"),), 28)


def asking(task_id: str, address: str, owner: str = "/web") -> TaskSpec:
    return replace(task(task_id), owner=owner, network="site", address=address)


async def make(parts: Master) -> None:
    for network in SITE, PLAIN:
        await parts.store.transaction(Put(NETWORKS + network.name, NETWORK_CODEC.encode(network)))
    await parts.networks.load()
    await parts.nodes.connected(node("n1", cpus=64000))


async def accept(framework: Framework, *tasks: TaskSpec) -> None:
    offer = await framework.offer()
    framework.offers.pop(offer.id)
    try:
        await framework.subscription.accept(offer.id, tasks)
    except ValueError:
        framework.offers[offer.id] = offer  # is good still
        raise


def address(parts: Master, task_id: str) -> str:
    record = parts.tasks.get(task_id)
    assert record is not None
    return record.spec.address


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (asking("a", "10.9.0.5"), "task a: 10.9.0.5 is not among the static addresses of site: 10.9.0.240/28"),
        (asking("a", "10.9.0.255"), "10.9.0.255 is not among the static addresses of site"),
        (asking("a", "there"), "task a: 'there' is no address"),
        (asking("a", "10.9.0.241"), "task a: address 10.9.0.241 of network site is taken by task first"),
        (asking("a", "10.9.0.242"), "task a: address 10.9.0.242 of network site is kept for /db"),
        (replace(asking("a", KEEP), network="plain"), "task a: network 'plain' has no static addresses"),
        (replace(asking("a", KEEP), network="none"), "task a: network 'none' has no static addresses"),
        (
            replace(asking("a", ""), interfaces=(Interface("site", "10.9.0.241"),), network="plain"),
            "task a: address 10.9.0.241 of network site is taken by task first",
        ),
        (asking("a", "10.9.0.243"), "address 10.9.0.243 of network site is taken by task twin"),
    ],
)
async def test_what_can_not_be_had_is_refused_by_name(tmp_path: Path, spec: TaskSpec, says: str) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await make(parts)
        framework = subscribe()
        await accept(framework, asking("first", "10.9.0.241"), asking("db", KEEP, "/db"))
        assert address(parts, "db") == "10.9.0.240"
        await accept(framework, asking("db2", KEEP, "/db"))
        await parts.tasks.end("db2", TaskState.FAILED, "")
        assert address(parts, "db2") == "10.9.0.242"
        twins = [asking("twin", "10.9.0.243"), spec] if "twin" in says else [spec]
        with pytest.raises(ValueError, match=says.replace("(", r"\(")):
            await accept(framework, *twins)
        assert parts.tasks.get("a") is None
        assert ip_address("10.9.0.243") not in parts.addresses.users("site")


async def test_it_is_free_again_when_its_task_is_over(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await make(parts)
        framework = subscribe()
        await accept(framework, asking("a", "10.9.0.241"))
        await parts.tasks.end("a", TaskState.FAILED, "")
        await accept(framework, asking("b", "10.9.0.241"))
        assert parts.addresses.users("site") == {ip_address("10.9.0.241"): "b"}
    async with master(tmp_path) as again:
        assert again.addresses.users("site") == {ip_address("10.9.0.241"): "b"}
        share = again.blocks.share(SITE, "n1")
        assert (share.singles, len(share.blocks)) == ((ip_address("10.9.0.241"),), 1)


async def test_who_keeps_its_address_has_it_again_until_it_is_forgotten(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await make(parts)
        framework = subscribe()
        await accept(framework, asking("a", KEEP), asking("b", KEEP))
        assert [address(parts, name) for name in "ab"] == ["10.9.0.240", "10.9.0.241"]
        await parts.tasks.end("a", TaskState.FAILED, "")
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1", cpus=64000))
        framework = subscribe()
        await accept(framework, asking("c", KEEP, "/db"), asking("d", KEEP))
        assert [address(parts, name) for name in "cd"] == ["10.9.0.242", "10.9.0.240"]
        assert framework.subscription.owners() == {"/web", "/db"}
        await framework.subscription.forget("/web")
        assert [kept.owner for kept in parts.addresses.kept("site")] == ["/db"]
        for name in "bd":
            await parts.tasks.end(name, TaskState.FAILED, "")
        await accept(framework, asking("e", KEEP, "/db"))
        assert address(parts, "e") == "10.9.0.240"


async def test_an_instance_has_its_own(tmp_path: Path) -> None:
    def with_volume(task_id: str, instance: str) -> TaskSpec:
        return replace(
            asking(task_id, KEEP), volumes=(VolumeMount("/d", VolumeKind.PERSISTENT, f"{instance}.data", size=1),)
        )

    async with master(tmp_path) as parts, running(parts) as subscribe:
        await make(parts)
        framework = subscribe()
        offer = await framework.offer()
        volumes = [PersistentVolume(f"{name}.data", "services", "/web", name, "data", 1) for name in ("i1", "i2")]
        await framework.subscription.accept(offer.id, [with_volume("a", "i1"), with_volume("b", "i2")], volumes)
        for name in "ab":
            await parts.tasks.end(name, TaskState.FAILED, "")
        framework.offers.pop(offer.id, None)
        await accept(framework, with_volume("c", "i2"))
        assert address(parts, "c") == address(parts, "b") != address(parts, "a")


async def test_what_could_not_be_written_is_not_taken(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await make(parts)
        framework = subscribe()
        parts.store.full = ("tasks/",)
        with pytest.raises(StoreError):
            await accept(framework, asking("a", KEEP), asking("b", "10.9.0.245"))
        assert parts.addresses.kept("site") == [] and parts.addresses.users("site") == {}


async def test_all_that_are_static_may_be_taken(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await make(parts)
        framework = subscribe()
        await accept(framework, *(asking(f"t{number}", KEEP) for number in range(15)))
        with pytest.raises(ValueError, match="task t: all static addresses of network site are taken"):
            await accept(framework, asking("t", KEEP))


async def test_a_network_that_fills_up_is_offered_as_far_as_it_goes(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        tiny = replace(PLAIN, subnets=(ip_network("10.8.0.0/28"),))
        await make(parts)
        await parts.store.transaction(Put(NETWORKS + "plain", NETWORK_CODEC.encode(tiny)))
        await parts.networks.load()
        framework = subscribe()
        await accept(framework, *(replace(task(f"t{number}"), network="plain") for number in range(12)))
        await until(lambda: any(offer.addresses["plain"] == 1 for offer in framework.offers.values()))
        both = [replace(task(name), network="plain") for name in ("x", "y")]
        offer = await framework.offer(lambda offer: offer.addresses["plain"] == 1)
        with pytest.raises(ValueError, match="all its /28 blocks are taken"):
            await framework.subscription.accept(offer.id, both)
        assert parts.tasks.get("x") is None
