"""Networks of kind `cni`: plug-ins from the node's directories attach containers, and undo it.

It reads and writes `<state>/cni` (`netns/cni/cache.py`): what a plug-in is about to do is on disk before, and what it
answered afterwards. An attachment that was begun and not finished is undone before it is made once more; one that is
complete is left alone. What the plug-ins make for a network as such (a bridge, say) CNI has no verb to remove.

The network namespace of a container is kept as long as its attachment (`netns/cni/namespace.py`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from model.network import NETWORK_NAME, Address, Block, Network, NetworkKind
from netns.cni import conflist
from netns.cni.cache import Cache, Record, Setting
from netns.cni.chain import Chain, Subject
from netns.cni.conflist import Conflist, Json
from netns.cni.execute import LIMIT_S
from netns.cni.gate import Gate
from netns.cni.namespace import identity, keep, kept
from netns.cni.result import addresses
from netns.driver import Attachment, NetworkError, NetworkSpec
from netns.namespace import namespace_of

WITH_STATUS_AND_GC = "1.1.0"
ADDRESSES = "ips"  # the capability, CONVENTIONS.md
INTERFACE = re.compile(r"[^/:\s\0]{1,15}")  # net/core/dev.c: dev_valid_name

log = structlog.get_logger()


class CniDriver:
    """Implements `netns.driver.Driver` for the node whose namespaces the event loop's thread is in. `limit_s` is how
    long a plug-in may take."""

    def __init__(self, state_dir: Path, directories: Sequence[Path], limit_s: float = LIMIT_S) -> None:
        self._directories = tuple(directories)
        self._limit_s = limit_s
        self._cache = Cache(state_dir)
        self._networks: dict[str, Network] = {}
        self._gate = Gate()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def validate(self, spec: NetworkSpec) -> None:
        name = spec.network.name
        with _naming(name):
            if not NETWORK_NAME.fullmatch(name):
                raise NetworkError("name: lower-case letters, digits and hyphens, at most 63")
            if spec.network.kind is not NetworkKind.CNI:
                raise NetworkError(f"kind: {spec.network.kind} is not one of this driver's")
            parsed = conflist.parse(spec.network.cni)
            for other in self._cache.settings.values():
                if other.network != name and conflist.parse(other.cni).name == parsed.name:
                    raise NetworkError(f'cni.name: "{parsed.name}" is that of network "{other.network}"')

    async def configure(self, spec: NetworkSpec) -> None:
        self.validate(spec)
        with _naming(spec.network.name):
            parsed = conflist.parse(spec.network.cni)
            version = await self._chain(parsed, parsed.versions[0]).agree()
            await self._cache.configure(Setting(spec.network.name, spec.network.cni, version))
            self._networks[spec.network.name] = spec.network

    def known(self) -> frozenset[str]:
        return frozenset(self._cache.settings)

    async def remove(self, network: str) -> None:
        """What is attached to it still is detached first."""
        records = [record for record in self._cache.records.values() if record.setting.network == network]
        await _all(f'remove network "{network}"', self.detach, {record.container for record in records})
        await self._cache.remove(network)
        self._networks.pop(network, None)

    async def attach(self, attachment: Attachment, capabilities: Json | None = None) -> tuple[Address, ...]:
        """`capabilities` are arguments of the plug-ins that declare them: `portMappings`, `bandwidth`, `mac`, ...
        (CONVENTIONS.md of CNI)."""
        with _naming(attachment.network, f"attach {attachment.container} to "):
            setting = self._cache.settings.get(attachment.network)
            if setting is None:
                raise NetworkError("is not configured on this node")
            _refuse_bad_names(attachment)
            wanted = dict(capabilities or {}) | self._static(attachment)
            _refuse_unsupported(conflist.parse(setting.cni), wanted)
            with namespace_of(attachment.netns_pid) as namespace:
                record = Record(
                    attachment.container, attachment.interface, setting, identity(namespace), capabilities=wanted
                )
                async with self._turn(record.container):
                    return await self._attach(record, attachment, namespace)

    def addresses(self, container: str) -> tuple[Address, ...]:
        complete = [record for record in self._cache.of(container) if record.complete]
        return tuple(address for record in complete for address in addresses(record.result or {}, record.interface))

    def containers(self) -> list[str]:
        """That are attached, or were begun to be."""
        return sorted({container for container, _ in self._cache.records})

    async def check(self, container: str) -> None:
        """Raises NetworkError when a plug-in finds that what it made is not as it was. Nothing is changed."""
        async with self._turn(container):
            for record in self._cache.of(container):
                with _naming(record.setting.network, f"check {container} on "):
                    chain = self._chain_of(record)
                    if record.complete and not chain.conflist.disable_check:
                        async with self._cache.hold(record) as held:
                            await chain.check(self._subject(record, held), record.result)

    async def detach(self, container: str) -> None:
        if not self._cache.of(container):
            return
        async with self._turn(container):
            for record in reversed(self._cache.of(container)):
                with _naming(record.setting.network, f"detach {container} from "):
                    async with self._cache.hold(record) as held:
                        await self._undo(record, held)

    async def gc(self, valid: frozenset[str]) -> None:
        gone = {container for container, _ in self._cache.records} - valid
        for container in sorted(gone):
            log.info("detaching a container that is gone from its networks", container=container)
        await _all("gc", self.detach, gone)
        await _all("gc", self._collect, set(self._cache.settings))

    def released(self) -> tuple[Block, ...]:
        return ()  # addresses are the plug-ins' own

    async def _attach(self, record: Record, attachment: Attachment, namespace: int) -> tuple[Address, ...]:
        async with self._cache.hold(record) as held:
            before = self._cache.records.get((record.container, record.interface))
            if before is not None:
                if before.complete and before.namespace == record.namespace:
                    if before.setting.network != record.setting.network:
                        raise NetworkError(f'{record.interface} is attached to "{before.setting.network}"')
                    self._keep(before, attachment, namespace)
                    return addresses(before.result or {}, record.interface)
                await self._undo(before, held)
        async with self._cache.hold(record) as held:  # undoing removed the directory
            return await self._add(record, attachment, namespace, held)

    async def _add(self, record: Record, attachment: Attachment, namespace: int, held: int) -> tuple[Address, ...]:
        chain = self._chain_of(record)
        chain.refuse_unsafe()
        if chain.version >= WITH_STATUS_AND_GC:
            with _explaining("is not ready"):
                await chain.status()
        await self._cache.put(record)
        try:
            self._keep(record, attachment, namespace)
            for position in range(len(chain.conflist.plugins)):
                record = replace(record, attempted=position + 1)
                await self._cache.put(record)
                result = await chain.add(self._subject(record, held), position, record.result)
                record = replace(record, result=result)
            found = addresses(record.result or {}, record.interface)
            if attachment.address is not None and attachment.address not in found:
                raise NetworkError(
                    f"was asked for {attachment.address} and gave {', '.join(map(str, found)) or 'none'}"
                )
            await self._cache.put(replace(record, complete=True))
        except NetworkError as error:
            try:
                await self._undo(record, held)
            except NetworkError as further:  # the record stays, and `detach` tries again
                raise NetworkError(f"{error}; and then {further}") from error.__cause__
            raise
        return found

    async def _undo(self, record: Record, held: int) -> None:
        """The record stays until every plug-in has done its part."""
        chain = self._chain_of(record)
        errors = await chain.delete(self._subject(record, held), record.attempted, record.result)
        if errors:
            raise NetworkError("; ".join(map(str, errors))) from ExceptionGroup("DEL", errors)
        await self._cache.drop(record)

    async def _collect(self, network: str) -> None:
        setting = self._cache.settings[network]
        chain = self._chain(conflist.parse(setting.cni), setting.version)
        if setting.version < WITH_STATUS_AND_GC or chain.conflist.disable_gc:
            return
        async with self._gate.exclusive():
            valid = [key for key, record in self._cache.records.items() if record.setting.network == network]
            errors = await chain.collect(sorted(valid))
        if errors:
            raise NetworkError(f'network "{network}": {"; ".join(map(str, errors))}') from ExceptionGroup("GC", errors)

    def _static(self, attachment: Attachment) -> dict[str, object]:
        """The prefix is that of the network's subnet, where it has been told one."""
        if attachment.address is None:
            return {}
        network = self._networks.get(attachment.network)
        subnets = network.subnets if network else ()
        prefix = next((s.prefixlen for s in subnets if attachment.address in s), attachment.address.max_prefixlen)
        return {ADDRESSES: [f"{attachment.address}/{prefix}"]}

    def _keep(self, record: Record, attachment: Attachment, namespace: int) -> None:
        keep(self._cache.namespace(record.container, record.interface), attachment.netns_pid, namespace)

    def _subject(self, record: Record, held: int) -> Subject:
        path = self._cache.namespace(record.container, record.interface)
        namespace = str(path) if kept(path) == record.namespace else ""
        return Subject(record.container, record.interface, namespace, record.capabilities, held)

    def _chain_of(self, record: Record) -> Chain:
        return self._chain(conflist.parse(record.setting.cni), record.setting.version)

    def _chain(self, parsed: Conflist, version: str) -> Chain:
        return Chain(parsed, version, self._directories, self._limit_s)

    @asynccontextmanager
    async def _turn(self, container: str) -> AsyncIterator[None]:
        """One operation on a container at a time, and none beside garbage collection."""
        turn = self._turns.setdefault(container, asyncio.Lock())
        async with self._gate.shared(), turn:
            yield


def _refuse_bad_names(attachment: Attachment) -> None:
    if not conflist.NAME.fullmatch(attachment.container):
        raise NetworkError(f"container: must match {conflist.NAME.pattern}")
    if not INTERFACE.fullmatch(attachment.interface) or attachment.interface in (".", ".."):
        raise NetworkError(f"interface: {attachment.interface!r} can not be the name of one")


def _refuse_unsupported(parsed: Conflist, wanted: Mapping[str, object]) -> None:
    for capability in sorted(wanted.keys() - parsed.capabilities):
        raise NetworkError(f'no plug-in of it has the capability "{capability}"')


async def _all(operation: str, work: Callable[[str], Awaitable[None]], items: set[str]) -> None:
    errors: list[NetworkError] = []
    for item in sorted(items):
        try:
            await work(item)
        except NetworkError as error:  # the others get theirs all the same
            errors.append(error)
    if errors:
        raise NetworkError(f"{operation}: {'; '.join(map(str, errors))}") from ExceptionGroup(operation, errors)


@contextmanager
def _naming(network: str, operation: str = "") -> Iterator[None]:
    with _explaining(f'{operation}cni "{network}"' if operation else f'network "{network}"'):
        yield


@contextmanager
def _explaining(words: str) -> Iterator[None]:
    try:
        yield
    except NetworkError as error:
        raise NetworkError(f"{words}: {error}") from error.__cause__
    except OSError as error:
        raise NetworkError(f"{words}: {error}") from error
