"""Leases on disk: an address belongs to a container of this boot before the kernel knows it, and until it forgot it.

A lease is a file `<directory>/<network>/<address>` that says whose it is. It is made whole or not at all, by linking a
finished file to its name, and is on the disk when `acquire` returns. One that was given back stays as an empty file
`<address>.rested` whose time is when that was: so the order in which addresses are used again survives a restart.
Leases of an earlier boot have no containers any more and are given back at start. A file that can not be read is moved
to `<directory>/.corrupt`, and its address is not given out before the next boot: a container may still have it.

Everything is read once, at start, and kept in memory. Writing waits for the disk: call `acquire`, `release` and `gc`
from a thread when there is a loop that must go on.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import structlog

from model.network import Address, Block, Lease, Subnet, paired
from netns.driver import NetworkError
from netns.durable import sync_directory, write_synced
from netns.ipam.pool import Pool

RESTED = ".rested"
CORRUPT = ".corrupt"
UNFINISHED = ".new-"

log = structlog.get_logger()


class Leases:
    """The leases of one node. Safe to call from threads. Raises NetworkError when the disk fails."""

    def __init__(self, directory: Path, boot_id: str) -> None:
        self._directory = directory
        self._boot_id = boot_id
        self._lock = threading.Lock()
        self._leases: dict[tuple[str, Address], Lease] = {}
        self._owned: defaultdict[str, set[tuple[str, Address]]] = defaultdict(set)
        self._rested: defaultdict[str, list[tuple[float, Address]]] = defaultdict(list)
        self._held: defaultdict[str, set[Address]] = defaultdict(set)
        self._pools: dict[tuple[str, Subnet], Pool] = {}
        try:
            self._load()
        except OSError as error:
            raise _failed("read leases in", directory, error) from error

    def acquire(
        self,
        container: str,
        network: str,
        blocks: Sequence[Block],
        wanted: Address | None = None,
        singles: Sequence[Address] = (),
        interface: str = "eth0",
        companions: Block | None = None,
    ) -> Lease:
        """An address of one of `blocks`, or of `singles` if it is `wanted`; the same one each time for the same
        container and network. Its companion is of the block of IPv6 `companions`. Raises NetworkError when there is
        none, or `wanted` is not free."""
        with self._lock:
            if (lease := self._held_by(container, network)) is not None:
                if wanted in (None, *lease.addresses):
                    return lease
                raise NetworkError(f'network "{network}": {container} has {lease.address} already, not {wanted}')
            pool, address = self._take(network, blocks, wanted, singles)
            companion = paired(companions, address) if companions is not None else None
            lease = Lease(address, network, container, self._boot_id, interface, companion)
            try:
                self._write(lease)
            except OSError as error:
                if pool is not None:
                    pool.give_back(address)
                raise _failed(f"lease {address} to {container}:", self._path(lease), error) from error
            self._remember(lease)
            return lease

    def of(self, container: str) -> tuple[Lease, ...]:
        """In the order of its interfaces."""
        leases = [self._leases[key] for key in self._owned.get(container, ())]
        return tuple(sorted(leases, key=lambda lease: (lease.interface, lease.network)))

    def all(self) -> tuple[Lease, ...]:
        return tuple(self._leases.values())

    def release(self, container: str) -> tuple[Lease, ...]:
        """Give back all that a container has. Accepts one that has nothing."""
        with self._lock:
            leases = self.of(container)
            for lease in leases:
                self._give_back(lease)
            return leases

    def gc(self, valid: frozenset[str]) -> tuple[Lease, ...]:
        """Give back what belongs to containers that are not in `valid`."""
        return tuple(lease for container in tuple(self._owned.keys() - valid) for lease in self.release(container))

    def _held_by(self, container: str, network: str) -> Lease | None:
        return next((self._leases[key] for key in self._owned.get(container, ()) if key[0] == network), None)

    def _take(
        self, network: str, blocks: Sequence[Block], wanted: Address | None, singles: Sequence[Address]
    ) -> tuple[Pool | None, Address]:
        pools = [self._pool(network, block) for block in blocks]
        if wanted is None:
            return _take_any(network, pools)
        if (network, wanted) in self._leases:
            raise NetworkError(
                f'network "{network}": address {wanted} is held by {self._leases[network, wanted].container}'
            )
        if wanted in singles and wanted not in self._held[network]:
            return None, wanted
        for pool in pools:
            if pool.take_this(wanted):
                return pool, wanted
        free = ", ".join(str(each) for each in (*(pool.block.subnet for pool in pools), *singles))
        raise NetworkError(f'network "{network}": address {wanted} is held back or not one of {free} for containers')

    def _give_back(self, lease: Lease) -> None:
        try:
            _rest(self._path(lease))
        except OSError as error:
            raise _failed(f"release {lease.address} of {lease.container}:", self._path(lease), error) from error
        self._forget(lease)

    def _pool(self, network: str, block: Block) -> Pool:
        key = (network, block.subnet)
        if key not in self._pools:
            used = {address for name, address in self._leases if name == network}
            rested = [address for _, address in sorted(self._rested[network], key=lambda entry: entry[0])]
            self._pools[key] = Pool(block, used, rested, self._held[network])
        return self._pools[key]

    def _remember(self, lease: Lease) -> None:
        self._leases[lease.network, lease.address] = lease
        self._owned[lease.container].add((lease.network, lease.address))

    def _forget(self, lease: Lease) -> None:
        key = (lease.network, lease.address)
        del self._leases[key]
        self._owned[lease.container].discard(key)
        if not self._owned[lease.container]:
            del self._owned[lease.container]
        pools = [pool for (network, _), pool in self._pools.items() if network == lease.network]
        if not any(pool.give_back(lease.address) for pool in pools):
            self._rested[lease.network].append((time.time(), lease.address))

    def _path(self, lease: Lease) -> Path:
        return self._directory / lease.network / str(lease.address)

    def _write(self, lease: Lease) -> None:
        path = self._path(lease)
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, parents=True)
            sync_directory(path.parent.parent)
        unfinished = path.with_name(UNFINISHED + path.name)
        content = {
            "container": lease.container,
            "boot_id": lease.boot_id,
            "time": time.time(),
            "interface": lease.interface,
            "companion": str(lease.companion or ""),
        }
        try:
            write_synced(unfinished, json.dumps(content).encode())
            os.link(unfinished, path)  # unlike rename, it fails when there is a lease already
        finally:
            unfinished.unlink(missing_ok=True)
        path.with_name(path.name + RESTED).unlink(missing_ok=True)
        sync_directory(path.parent)

    def _load(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._load_held()
        for network in (entry for entry in os.scandir(self._directory) if entry.name != CORRUPT and entry.is_dir()):
            for entry in sorted(os.scandir(network), key=lambda entry: entry.name):
                self._load_file(network.name, Path(entry.path))

    def _load_file(self, network: str, path: Path) -> None:
        if path.name.startswith(UNFINISHED):
            path.unlink()
        elif path.name.endswith(RESTED):
            self._load_rested(network, path)
        else:
            self._load_lease(network, path)

    def _load_rested(self, network: str, path: Path) -> None:
        try:
            self._rested[network].append((path.stat().st_mtime, ip_address(path.name.removesuffix(RESTED))))
        except ValueError:
            self._quarantine(network, path, "its name is not an address")

    def _load_lease(self, network: str, path: Path) -> None:
        try:
            content = json.loads(path.read_bytes())
            lease = _lease(ip_address(path.name), network, content)
        except (ValueError, KeyError, TypeError) as error:
            self._quarantine(network, path, str(error))
            return
        if lease.boot_id == self._boot_id:
            self._remember(lease)
        else:
            self._rested[network].append((_rest(path), lease.address))

    def _quarantine(self, network: str, path: Path, why: str) -> None:
        target = self._directory / CORRUPT / f"{network}_{path.name}_{self._boot_id}"
        target.parent.mkdir(mode=0o700, exist_ok=True)
        path.rename(target)
        log.warning("lease can not be read; its address is not given out until the next boot", file=target, why=why)
        self._hold(network, path.name)

    def _load_held(self) -> None:
        for path in _files(self._directory / CORRUPT):
            network, address, boot_id = path.name.split("_", 2)
            if boot_id == self._boot_id:
                self._hold(network, address)

    def _hold(self, network: str, name: str) -> None:
        with suppress(ValueError):  # a file that was named after no address puts none in doubt
            self._held[network].add(ip_address(name))


def _lease(address: Address, network: str, content: dict[str, object]) -> Lease:
    """Interface and companion are missing in files of an earlier version: there was neither."""
    container, boot_id = str(content["container"]), str(content["boot_id"])
    companion = str(content.get("companion") or "")
    interface = str(content.get("interface") or "eth0")
    return Lease(address, network, container, boot_id, interface, ip_address(companion) if companion else None)


def _take_any(network: str, pools: Sequence[Pool]) -> tuple[Pool, Address]:
    for pool in pools:
        if (address := pool.take()) is not None:
            return pool, address
    blocks = ", ".join(str(pool.block.subnet) for pool in pools)
    if not pools:
        raise NetworkError(f'network "{network}": no address left: this node has no block to lease from')
    used, held, size = (sum(counts) for counts in zip(*((p.used, p.held, p.size) for p in pools), strict=True))
    raise NetworkError(f'network "{network}": no address left in {blocks}: {used} of {size} in use, {held} held back')


def _rest(path: Path) -> float:
    """Mark the address of a lease as given back now. Returns the time."""
    rested = path.with_name(path.name + RESTED)
    now = time.time()
    with suppress(FileNotFoundError):  # a release that failed half way is repeated
        path.rename(rested)
    rested.write_bytes(b"")
    os.utime(rested, (now, now))
    return now


def _files(directory: Path) -> Iterator[Path]:
    return directory.iterdir() if directory.is_dir() else iter(())


def _failed(operation: str, path: Path, error: OSError) -> NetworkError:
    return NetworkError(f"{operation} {path}: {error.strerror}")
