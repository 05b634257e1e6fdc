"""The apps in the store (`services/apps/<id>`): read by everyone, changed by the REST API alone.

A change is complete when it is in the store; `framework.py` watches and makes the cluster follow. Apps and pods have
one set of ids; who asks for the one kind does not see the other. The last definitions of each are kept too
(`services/versions/<id>::<version>`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from frameworks.services.app import CODEC, PREFIX, App, create, key, restart, scale, update
from frameworks.services.definition import Definition
from frameworks.services.pods.definition import PodDefinition
from master.store.base import Conflict, Delete, Entry, Put, Store
from model.codec import Damaged

VERSIONS = "services/versions"
VERSIONS_KEPT = 25

Kind = type[Definition] | type[PodDefinition]


class AppExists(Exception):
    """An app or a pod has this id already."""


class UnknownApp(Exception):
    """No app of this kind has this id."""


async def refuse_taken(store: Store, app_id: str) -> None:
    """Raises AppExists."""
    if await store.get(key(app_id)) is not None:
        raise AppExists(app_id)


async def add(store: Store, definition: Definition | PodDefinition) -> App:
    app = create(definition, _now())
    try:
        await store.transaction(Put(key(app.id), CODEC.encode(app), expected=0), *await _remembered(store, app))
    except Conflict as conflict:
        raise AppExists(app.id) from conflict
    return app


async def read(store: Store, app_id: str, kind: Kind = Definition) -> App:
    return (await _entry(store, app_id, kind))[1]


async def read_all(store: Store, kind: Kind = Definition) -> list[App]:
    """Without those that can not be read, of which `framework.py` tells in the log."""
    apps = [_readable(entry) for entry in await store.range(PREFIX + "/")]
    return [app for app in apps if app is not None and isinstance(app.definition, kind)]


async def resize(store: Store, app_id: str, instances: int, kind: Kind = Definition) -> App:
    """Raises Conflict when the app was changed at the same moment."""
    return await _change(store, app_id, kind, lambda before: scale(before, instances, _now()))


async def shrink(store: Store, app_id: str, by: int) -> App:
    """However often it is changed at the same moment."""
    while True:
        app = await read(store, app_id)
        try:
            return await resize(store, app_id, max(0, app.instances - by))
        except Conflict:
            continue


async def replace(store: Store, definition: Definition | PodDefinition) -> App:
    """Raises Conflict as `resize` does."""
    return await _change(store, definition.id, type(definition), lambda before: update(before, definition, _now()))


async def start_again(store: Store, app_id: str) -> App:
    """All its tasks are replaced by others of the same definition. Raises Conflict as `resize` does."""
    return await _change(store, app_id, Definition, lambda before: restart(before, _now()))


async def _change(store: Store, app_id: str, kind: Kind, change: Callable[[App], App]) -> App:
    entry, before = await _entry(store, app_id, kind)
    app = change(before)
    await store.transaction(Put(entry.key, CODEC.encode(app), expected=entry.revision), *await _remembered(store, app))
    return app


def _readable(entry: Entry) -> App | None:
    try:
        return CODEC.decode(entry.value)
    except Damaged:
        return None


async def remove(store: Store, app_id: str, kind: Kind = Definition) -> App:
    """Its tasks end because no app wants them any more."""
    entry, before = await _entry(store, app_id, kind)
    app = scale(before, 0, _now())
    forgotten = [Delete(version.key) for version in await store.range(_versions(app_id))]
    await store.transaction(Delete(entry.key, expected=entry.revision), *forgotten)
    return app


async def versions(store: Store, app_id: str, kind: Kind) -> dict[str, App]:
    """The newest first. Raises UnknownApp."""
    await read(store, app_id, kind)
    entries = await store.range(_versions(app_id))
    return {entry.key.rpartition("::")[2]: CODEC.decode(entry.value) for entry in reversed(entries)}


async def _remembered(store: Store, app: App) -> list[Put | Delete]:
    """What is to be written of this version beside it, and which is forgotten for it."""
    before = await store.range(_versions(app.id))
    forgotten: list[Put | Delete] = [Delete(entry.key) for entry in before[: max(0, len(before) + 1 - VERSIONS_KEPT)]]
    return [Put(_versions(app.id) + app.version, CODEC.encode(app)), *forgotten]


def _versions(app_id: str) -> str:
    return f"{VERSIONS}{app_id}::"


async def _entry(store: Store, app_id: str, kind: Kind) -> tuple[Entry, App]:
    entry = await store.get(key(app_id))
    app = CODEC.decode(entry.value) if entry is not None else None
    if entry is None or app is None or not isinstance(app.definition, kind):
        raise UnknownApp(app_id)
    return entry, app


def _now() -> datetime:
    return datetime.now(UTC)
