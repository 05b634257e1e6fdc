"""Containers of other runtimes on this node's networks: attached, detached and found again for `tepui-cni`.

Reads and writes `<state>/foreign/<id>`, a record of each. It is on disk before the container is attached and until it
is detached; `complete` is what it is in between. So an agent that starts knows whose addresses and links are not to be
collected, and undoes what was only begun. The other runtime's containers need no agent to go on: those whose network
namespace is gone by then have ended, and what they had is given back.

To the driver and the firewall such a container is one like any other, with an id of our own for each of its links, and
of no app: no policy speaks of it, but those of its network.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from agent.cni_request import INVALID_ENVIRONMENT, UNKNOWN_CONTAINER, Refused, Request
from agent.cni_result import refuse_other
from model.codec import Codec, Damaged
from model.task import Port
from netns.container import Endpoint
from netns.driver import Attachment, NetworkError
from netns.durable import write_durably
from netns.firewall.table import Firewall, Guest
from netns.link import veth_names
from netns.namespace import NoNamespace, identity_at
from netns.netlink import link_exists
from netns.networks import Networks

PREFIX = "cni-"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Record:
    """`container` and `interface` are the runtime's words, `configuration` the name that its network has. `namespace`
    is the inode of what was at `netns`."""

    id: str
    boot_id: str
    container: str = ""
    interface: str = ""
    configuration: str = ""
    network: str = ""
    netns: str = ""
    namespace: int = 0
    ports: tuple[Port, ...] = ()
    complete: bool = False

    @property
    def words(self) -> str:
        return f"{self.interface} of container {self.container}"


CODEC = Codec(Record)


def id_of(container: str, interface: str) -> str:
    return PREFIX + hashlib.sha256(f"{container}\0{interface}".encode()).hexdigest()[:24]


class Foreign:
    """Of one link of a container one thing is done at a time."""

    def __init__(self, directory: Path, boot_id: str, networks: Networks, firewall: Firewall) -> None:
        self._directory = directory
        self._boot_id = boot_id
        self._networks = networks
        self._firewall = firewall
        self._records: dict[str, Record] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def recover(self) -> None:
        """Once, before anything is collected. What can not be undone stays, and is undone by the runtime or the next
        agent."""
        for path in sorted(self._directory.glob(f"{PREFIX}*")):
            record = _read(path, self._boot_id)
            if record.boot_id == self._boot_id:
                self._records[record.id] = record
                if record.complete and not _is_gone(record):
                    continue
            log.info("releasing what a container of another runtime had", container=record.container, id=record.id)
            try:
                await self._undo(record)
            except (NetworkError, OSError) as error:
                log.error("not released", container=record.container, id=record.id, reason=str(error))
        self._networks.recall(map(_attachment, self._records.values()))

    def guests(self) -> tuple[Guest, ...]:
        """All that are here, for the firewall; and nobody but these has what is in their names."""
        return tuple(map(self._guest, self._records.values()))

    async def add(self, request: Request) -> Endpoint:
        """Attach it, or find that it is so already. Raises Refused, NetworkError or OSError; then nothing is left."""
        wanted = Record(
            id_of(request.container, request.interface),
            self._boot_id,
            request.container,
            request.interface,
            request.configuration,
            request.network,
            request.netns,
            _namespace(request.netns),
            request.ports,
        )
        async with self._turn(wanted.id):
            before = self._records.get(wanted.id)
            if before is not None and not await self._is_same(before, wanted, request):
                await self._undo(before)
                before = None
            if before is None:
                await self._attach(wanted, request)
            [endpoint] = self._networks.endpoints(wanted.id)
            return endpoint

    async def remove(self, request: Request) -> None:
        """Accepts what was never attached, and that the namespace is gone."""
        await self._remove(id_of(request.container, request.interface))

    async def check(self, request: Request) -> None:
        """Raises Refused or NetworkError when it is not as ADD left it."""
        async with self._turn(id_of(request.container, request.interface)) as name:
            record = self._records.get(name)
            if record is None or not record.complete or record.network != request.network:
                what = f'{request.interface} of container {request.container} is not attached to "{request.network}"'
                raise Refused(UNKNOWN_CONTAINER, what)
            if _namespace(request.netns) != record.namespace:
                raise Refused(INVALID_ENVIRONMENT, f"CNI_NETNS: {record.words} was attached in another namespace")
            for endpoint in self._networks.endpoints(name):
                refuse_other(request.previous, endpoint)
            await self._networks.check(name)

    async def collect(self, request: Request) -> None:
        """Detach what belongs to the configuration and is not among what is valid."""
        errors: list[NetworkError] = []
        for record in tuple(self._records.values()):
            mine = record.configuration == request.configuration
            if mine and (record.container, record.interface) not in request.valid:
                try:
                    await self._remove(record.id)
                except NetworkError as error:  # what the others have is given back all the same
                    errors.append(error)
        if errors:
            raise NetworkError("; ".join(map(str, errors))) from ExceptionGroup("GC", errors)

    async def _is_same(self, before: Record, wanted: Record, request: Request) -> bool:
        """False: what is left of it is to be undone. Raises Refused when it is there, and is not what is wanted."""
        if not before.complete or _is_gone(before):
            return False
        same = replace(before, netns=wanted.netns, complete=False) == wanted
        if not same or request.address not in (None, *self._networks.addresses(before.id)):
            raise Refused(INVALID_ENVIRONMENT, f'{before.words} is attached to "{before.network}" already')
        return True

    async def _attach(self, wanted: Record, request: Request) -> None:
        await self._put(wanted)
        try:
            await self._networks.attach(replace(_attachment(wanted), address=request.address))
            await self._firewall.admit(self._guest(wanted))
            await self._put(replace(wanted, complete=True))
        except (NetworkError, OSError) as error:
            try:
                await self._undo(wanted)
            except NetworkError as further:  # the record stays, and whoever comes next tries again
                raise NetworkError(f"{error}; and then {further}") from error
            raise

    async def _remove(self, name: str) -> None:
        async with self._turn(name):
            if (record := self._records.get(name)) is not None:
                await self._put(replace(record, complete=False))
            await self._undo(record or Record(name, self._boot_id))

    async def _undo(self, record: Record) -> None:
        """The record goes last: while it is there, this is done again."""
        await self._firewall.dismiss(record.id)
        await self._networks.detach(record.id)
        await asyncio.to_thread((self._directory / record.id).unlink, missing_ok=True)
        self._records.pop(record.id, None)

    async def _put(self, record: Record) -> None:
        await asyncio.to_thread(write_durably, self._directory / record.id, CODEC.encode(record))
        self._records[record.id] = record

    def _guest(self, record: Record) -> Guest:
        return Guest(record.id, "", self._networks.addresses(record.id), record.ports)

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[str]:
        async with self._turns.setdefault(name, asyncio.Lock()):
            yield name


def _attachment(record: Record) -> Attachment:
    return Attachment(record.id, record.network, 0, record.interface, netns_path=record.netns)


def _namespace(path: str) -> int:
    try:
        return identity_at(path)
    except NoNamespace as error:
        raise Refused(INVALID_ENVIRONMENT, f"CNI_NETNS: {error}") from error


def _is_gone(record: Record) -> bool:
    """The path may lead nowhere while processes keep the namespace; but with that the link goes, and nothing else takes
    both."""
    if any(map(link_exists, veth_names(record.id))):
        return False
    try:
        return identity_at(record.netns) != record.namespace
    except NoNamespace:
        return True


def _read(path: Path, boot_id: str) -> Record:
    """Files are made whole: one that can not be read is of a disk that failed. Whose link it is says its name, and that
    is enough to keep what the container has, and to undo it."""
    try:
        return CODEC.decode(path.read_bytes())
    except (Damaged, OSError) as error:
        log.error("record can not be read: its container's ports are not led to it", file=str(path), reason=str(error))
        return Record(path.name, boot_id, complete=True)
