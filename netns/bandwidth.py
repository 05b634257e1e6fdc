"""How fast a container's links are: for each direction that is limited, one ifb device with a token bucket, and on the
node's end of each of the container's links a filter that leads its packets through it.

A bucket on the link itself would limit one direction of one link. Through the ifb the limit holds for all links of the
container together, and a packet comes back to where it was: from then on it is routed as any other. What comes back
skips the filters and nftables' netdev ingress hook of the link (net/core/dev.c: skip_classify), so who checks
containers' packets does it from prerouting on.

An ifb does not go with the link: it is removed on `detach` and, by its name, by `remove_strays`. Filters go before the
ifb that they lead to, because a filter that leads nowhere loses its packets.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from model.task import Bandwidth
from netns.driver import NetworkError
from netns.link import CreateLink, Link, RemoveLink, SetUp, read_link, read_names
from netns.netlink import Netlink, Operation, link_exists
from netns.queue import (
    RECEIVED,
    SENT,
    AddClsact,
    AddRedirect,
    Bucket,
    Redirect,
    RemoveClsact,
    SetBucket,
    read_bucket,
    read_redirects,
)
from netns.sysctl import Sysctl, write

# To and from a container. What it is sent is what the node's end of its link sends.
PREFIXES = {SENT: "ti", RECEIVED: "te"}
SHAPER = re.compile("t[ie][0-9a-f]{13}")
MTU = 1500  # of no effect: nothing is addressed to an ifb

LEAST, MOST = 8_000, 8 * (2**32 - 1)  # bit/s; struct tc_ratespec: rate, in bytes
# The bucket fills at each tick of the kernel at the latest (HZ of at least 100), so what a tick brings must fit; and
# so must the largest packet before it is cut for the wire (GSO, 64 KiB and its headers), or the kernel cuts it early.
TICKS_A_SECOND = 100
LARGEST_PACKET = 65536 + 256
LATENCY_S = 0.05  # what waits longer is dropped, and the sender's TCP slows down


@dataclass(frozen=True, slots=True)
class Shaping:
    """What is, or what should be: by direction the bucket of the ifb, and what leads through it."""

    buckets: frozenset[Bucket] = frozenset()
    redirects: frozenset[Redirect] = frozenset()


def shaper_name(container: str, direction: int) -> str:
    return PREFIXES[direction] + hashlib.sha256(container.encode()).hexdigest()[:13]


def refuse_bad_bandwidth(bandwidth: Bandwidth) -> None:
    """Raises NetworkError that names the field."""
    for field, bits in (("ingress", bandwidth.ingress), ("egress", bandwidth.egress)):
        if bits is not None and not LEAST <= bits <= MOST:
            raise NetworkError(f"bandwidth.{field}: {bits} bit/s: must be from {LEAST} to {MOST}")


async def limit(host: Netlink, container: str, links: Sequence[str], bandwidth: Bandwidth | None) -> list[str]:
    """Limits what goes through `links`, the node's ends of the container's, all together; None: as much as there is.
    Changes what is there in place, and nothing that is right. Returns what was done, in words."""
    bandwidth = bandwidth or Bandwidth()
    refuse_bad_bandwidth(bandwidth)
    missing = [link for link in links if not link_exists(link)]
    if missing:
        raise NetworkError(f"limit {container}: no link {missing[0]}")
    desired = _desired(container, links, bandwidth)
    actual = await _read(host, container, links)
    done = [*await _make_shapers(host, container, desired), *diff(desired, actual, links)]
    stale = [name for name in _names(container) if link_exists(name) and name not in _devices(desired)]
    operations = [*done, *(RemoveLink(name) for name in stale)]
    await host.apply(operations)
    return [operation.describe() for operation in operations]


async def unlimit(host: Netlink, container: str) -> None:
    """For a container whose links are gone or go with it. Accepts one that was never limited."""
    await host.apply([RemoveLink(name) for name in _names(container) if link_exists(name)])


async def remove_strays(host: Netlink, valid: frozenset[str]) -> None:
    """Removes ifb devices of ours that belong to no container of `valid`."""
    ours = {name for prefix in PREFIXES.values() for name in read_names(prefix) if SHAPER.fullmatch(name)}
    strays = ours - {name for container in valid for name in _names(container)}
    await host.apply([RemoveLink(name) for name in sorted(strays)])


def diff(desired: Shaping, actual: Shaping, links: Sequence[str]) -> list[Operation]:
    """Buckets first: what is led through an ifb is limited from its first packet. A link one of whose filters is wrong
    gets both anew."""
    operations: list[Operation] = []
    for bucket in sorted(desired.buckets - actual.buckets, key=repr):
        operations.append(SetBucket(bucket, burst(bucket.rate)))
    for link in links:
        wanted = sorted((r for r in desired.redirects if r.dev == link), key=repr)
        present = {r for r in actual.redirects if r.dev == link}
        if set(wanted) == present:
            continue
        if present:
            operations.append(RemoveClsact(link))
        if wanted:
            operations.append(AddClsact(link))
        operations += [AddRedirect(link, r.direction, r.through) for r in wanted if r.through]
    return operations


def burst(rate: int) -> int:
    """The size of a bucket, in bytes, for `rate` in bytes a second."""
    return min(max(rate // TICKS_A_SECOND, LARGEST_PACKET), 2**32 - 1)


def _bucket(dev: str, bits: int) -> Bucket:
    rate = bits // 8
    return Bucket(dev, rate, min(burst(rate) + int(rate * LATENCY_S), 2**32 - 1))


def _desired(container: str, links: Sequence[str], bandwidth: Bandwidth) -> Shaping:
    limits = {SENT: bandwidth.ingress, RECEIVED: bandwidth.egress}
    limited = {direction: bits for direction, bits in limits.items() if bits is not None}
    return Shaping(
        frozenset(_bucket(shaper_name(container, direction), bits) for direction, bits in limited.items()),
        frozenset(Redirect(dev, way, shaper_name(container, way)) for dev in links for way in limited),
    )


async def _read(host: Netlink, container: str, links: Sequence[str]) -> Shaping:
    buckets = [await read_bucket(host, name) for name in _names(container) if link_exists(name)]
    redirects = [redirect for dev in links for redirect in (await read_redirects(host, dev)).values()]
    return Shaping(frozenset(filter(None, buckets)), frozenset(redirects))


async def _make_shapers(host: Netlink, container: str, desired: Shaping) -> list[Operation]:
    """Makes those that are not there, with a bucket of their own only afterwards. Returns what is left to do."""
    up: list[Operation] = []
    for dev in sorted(_devices(desired)):
        link = await read_link(host, dev)
        if link is None:
            mac = (b"\x02" + hashlib.sha256(dev.encode()).digest()[:5]).hex(":")
            await host.apply([CreateLink(Link(dev, "ifb", mac, MTU))])
            write(Sysctl(f"ipv6/conf/{dev}/disable_ipv6", "1"))  # nobody is there to talk to
        if link is None or not link.up:
            up.append(SetUp(dev, alias=container))
    return up


def _devices(shaping: Shaping) -> set[str]:
    return {bucket.dev for bucket in shaping.buckets}


def _names(container: str) -> list[str]:
    return [shaper_name(container, direction) for direction in PREFIXES]
