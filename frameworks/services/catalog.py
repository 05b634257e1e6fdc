"""The apps in the store (`services/apps/<id>`): read by everyone, changed by the REST API, and by the framework when a
deployment is over.

A change is complete when it is in the store; `framework.py` watches and makes the cluster follow. Apps and pods have
one set of ids; who asks for the one kind does not see the other. The last definitions of each are kept too
(`services/versions/<id>::<version>`).

While its deployment is under way an app is locked: another change has to be forced upon it. No other app is. Who comes
second of two at the same moment is told that it is locked, for so it is by then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from frameworks.services.app import (
    CODEC,
    GROUP_CODEC,
    GROUPS,
    PREFIX,
    App,
    Group,
    create,
    decoded,
    key,
    new_deployment,
    promote,
    restart,
    scale,
    take_back,
    try_out,
    update,
)
from frameworks.services.definition import Definition
from frameworks.services.pods.definition import PodDefinition
from master.store.base import Conflict, Delete, Entry, Put, Store
from master.store.damaged import readable
from model.codec import Damaged

VERSIONS = "services/versions"
VERSIONS_KEPT = 25

Kind = type[Definition] | type[PodDefinition]


class AppExists(Exception):
    """An app or a pod has this id already."""


class UnknownApp(Exception):
    """No app of this kind has this id."""


class Locked(Exception):
    """By a deployment."""

    def __init__(self, app_id: str, deployment: str) -> None:
        super().__init__(f"{app_id} is locked by deployment {deployment}")
        self.deployment = deployment


async def refuse_taken(store: Store, app_id: str) -> None:
    """Raises AppExists."""
    if await store.get(key(app_id)) is not None:
        raise AppExists(app_id)


async def add(store: Store, definition: Definition | PodDefinition, deployment: str = "") -> App:
    app = create(definition, _now(), deployment)
    try:
        await store.transaction(Put(key(app.id), CODEC.encode(app), expected=0), _version_of(app))  # it has no other
    except Conflict as conflict:
        raise AppExists(app.id) from conflict
    return app


async def read(store: Store, app_id: str, kind: Kind = Definition) -> App:
    return (await _entry(store, app_id, kind))[1]


async def read_all(store: Store, kind: Kind = Definition) -> list[App]:
    """Without those that can not be read, of which `framework.py` tells in the log."""
    apps = [_readable(entry) for entry in await store.range(PREFIX + "/")]
    return [app for app in apps if app is not None and isinstance(app.definition, kind)]


async def resize(store: Store, app_id: str, instances: int, kind: Kind = Definition, force: bool = True) -> App:
    return await _change(store, app_id, kind, lambda before: scale(before, instances, _now()), force)


async def shrink(store: Store, app_id: str, by: int, force: bool = True) -> App:
    """However often it is changed at the same moment."""
    return await _change(
        store, app_id, Definition, lambda before: scale(before, max(0, before.instances - by), _now()), force
    )


async def replace(
    store: Store, definition: Definition | PodDefinition, force: bool = True, since: str = "", deployment: str = ""
) -> App:
    """`since`: the version that the definition was made of. When that is not the latest, it is Locked."""
    kind = type(definition)
    return await _change(
        store, definition.id, kind, lambda before: update(before, definition, _now(), deployment), force, since
    )


async def start_again(store: Store, app_id: str, force: bool = True) -> App:
    """All its tasks are replaced by others of the same definition."""
    return await _change(store, app_id, Definition, lambda before: restart(before, _now()), force)


async def begin_canary(
    store: Store, definition: Definition, instances: int, force: bool = True, since: str = ""
) -> App:
    change = partial(_tried_out, definition, instances)
    return await _change(store, definition.id, Definition, change, force, since)


async def end_canary(store: Store, app_id: str, kind: Kind = Definition) -> App:
    """What it tried is for all instances. Raises ValueError when there is none."""
    return await _change(store, app_id, kind, _promoted, force=True)


async def go_back(store: Store, app: App, why: str, deployment: str = "") -> App | None:
    """To what it was before its last change; None when it is new. Raises Conflict when `app` is not the latest."""
    earlier = app.before or await _earlier(store, app)
    if earlier is None:
        return None
    entry, latest = await _entry(store, app.id, type(app.definition))
    if latest.version != app.version:
        raise Conflict(entry.key)
    return await _put(store, entry, take_back(latest, earlier, why, _now(), deployment))


async def conclude(store: Store, app: App, outcome: str) -> None:
    """What became of the deployment that is under way. No change when that is not `app`'s any more."""
    with suppress(UnknownApp, Conflict, Damaged):
        entry, latest = await _entry(store, app.id, type(app.definition))
        if latest.deployment == app.deployment and not latest.outcome:
            concluded = dataclasses.replace(latest, outcome=outcome)
            await store.transaction(Put(entry.key, CODEC.encode(concluded), expected=entry.revision))


async def _change(
    store: Store, app_id: str, kind: Kind, change: Callable[[App], App], force: bool, since: str = ""
) -> App:
    """Raises UnknownApp or, without `force` or when there is a newer version than `since`, Locked."""
    while True:
        entry, before = await _entry(store, app_id, kind)
        if (not before.outcome and not force) or since not in ("", before.version):
            raise Locked(app_id, before.deployment)
        with suppress(Conflict):  # then it is looked at again
            return await _put(store, entry, change(before))


async def _put(store: Store, entry: Entry, app: App) -> App:
    await store.transaction(Put(entry.key, CODEC.encode(app), expected=entry.revision), *await _remembered(store, app))
    return app


async def _earlier(store: Store, app: App) -> App | None:
    known = await versions(store, app.id, type(app.definition))
    found = next((each for version, each in known.items() if app.created <= version < app.version), None)
    return None if found is None else found.before or found


def _tried_out(definition: Definition, instances: int, before: App) -> App:
    return try_out(before, definition, instances, _now())


def _promoted(before: App) -> App:
    if before.canary is None:
        raise ValueError(f"{before.id} has no canary")
    return promote(before, _now())


def _readable(entry: Entry) -> App | None:
    try:
        return decoded(entry.value)
    except Damaged:
        return None


async def remove(store: Store, app_id: str, kind: Kind = Definition, force: bool = True, deployment: str = "") -> App:
    """Its tasks end because no app wants them any more. Raises as `_change` does."""
    while True:
        entry, before = await _entry(store, app_id, kind)
        if not before.outcome and not force:
            raise Locked(app_id, before.deployment)
        forgotten = [Delete(version.key) for version in await store.range(_versions(app_id))]
        with suppress(Conflict):
            await store.transaction(Delete(entry.key, expected=entry.revision), *forgotten)
            return scale(before, 0, _now(), deployment or new_deployment())


async def versions(store: Store, app_id: str, kind: Kind) -> dict[str, App]:
    """The newest first. Raises UnknownApp."""
    await read(store, app_id, kind)
    entries = await store.range(_versions(app_id))
    return {entry.key.rpartition("::")[2]: CODEC.decode(entry.value) for entry in reversed(entries)}


async def groups(store: Store) -> dict[str, Group]:
    """By their paths, in order, without those that can not be read. A group that only apps make is not among them."""
    return {group.path: group for _, group in await readable(store, GROUPS + "/", GROUP_CODEC.decode)}


async def replace_groups(store: Store, made: Iterable[Group], gone: Iterable[str] = ()) -> None:
    """Paths of those that are `gone` need not exist."""
    puts = [Put(GROUPS + group.path, GROUP_CODEC.encode(group)) for group in made]
    deletions = [Delete(GROUPS + path) for path in gone]
    if puts or deletions:
        await store.transaction(*puts, *deletions)


async def _remembered(store: Store, app: App) -> list[Put | Delete]:
    """What is to be written of this version beside it, and which is forgotten for it."""
    before = await store.range(_versions(app.id))
    forgotten: list[Put | Delete] = [Delete(entry.key) for entry in before[: max(0, len(before) + 1 - VERSIONS_KEPT)]]
    return [_version_of(app), *forgotten]


def _version_of(app: App) -> Put:
    return Put(_versions(app.id) + app.version, CODEC.encode(app))


def _versions(app_id: str) -> str:
    return f"{VERSIONS}{app_id}::"


async def _entry(store: Store, app_id: str, kind: Kind) -> tuple[Entry, App]:
    entry = await store.get(key(app_id))
    app = decoded(entry.value) if entry is not None else None
    if entry is None or app is None or not isinstance(app.definition, kind):
        raise UnknownApp(app_id)
    return entry, app


def _now() -> datetime:
    return datetime.now(UTC)
