"""The apps in the store (`services/apps/<id>`): read by everyone, changed by the REST API alone.

A change is complete when it is in the store; `framework.py` watches and makes the cluster follow.
"""

from __future__ import annotations

from datetime import UTC, datetime

from frameworks.services.app import CODEC, PREFIX, App, create, key, scale
from frameworks.services.definition import Definition
from master.store.base import Conflict, Delete, Entry, Put, Store


class AppExists(Exception):
    """An app has this id already."""


class UnknownApp(Exception):
    """No app has this id."""


async def add(store: Store, definition: Definition) -> App:
    app = create(definition, _now())
    try:
        await store.transaction(Put(key(app.id), CODEC.encode(app), expected=0))
    except Conflict as conflict:
        raise AppExists(app.id) from conflict
    return app


async def read(store: Store, app_id: str) -> App:
    return CODEC.decode((await _entry(store, app_id)).value)


async def read_all(store: Store) -> list[App]:
    return [CODEC.decode(entry.value) for entry in await store.range(PREFIX + "/")]


async def resize(store: Store, app_id: str, instances: int) -> App:
    """Raises Conflict when the app was changed at the same moment."""
    entry = await _entry(store, app_id)
    app = scale(CODEC.decode(entry.value), instances, _now())
    await store.transaction(Put(entry.key, CODEC.encode(app), expected=entry.revision))
    return app


async def shrink(store: Store, app_id: str, by: int) -> App:
    """However often it is changed at the same moment."""
    while True:
        app = await read(store, app_id)
        try:
            return await resize(store, app_id, max(0, app.instances - by))
        except Conflict:
            continue


async def remove(store: Store, app_id: str) -> App:
    """Its tasks end because no app wants them any more."""
    entry = await _entry(store, app_id)
    app = scale(CODEC.decode(entry.value), 0, _now())
    await store.transaction(Delete(entry.key, expected=entry.revision))
    return app


async def _entry(store: Store, app_id: str) -> Entry:
    entry = await store.get(key(app_id))
    if entry is None:
        raise UnknownApp(app_id)
    return entry


def _now() -> datetime:
    return datetime.now(UTC)
