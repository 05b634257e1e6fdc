"""What an app waits for before it starts: the apps and groups that it, or a group that it is in, depends on
(`marathon.raml: dependencies`). Pure.

An app is held while one of those has a deployment under way, or has failed and is not yet as it was asked to be. What
does not exist holds nobody.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

Paths = Mapping[str, Sequence[str]]  # what depends on what, by absolute paths


def absolute(body: Any) -> Any:
    """A definition whose dependencies are relative to its id, as in Marathon (`../db`), with absolute ones."""
    if not isinstance(body, dict) or not isinstance(body.get("id"), str):
        return body
    given = body.get("dependencies")
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        return body
    return {**body, "dependencies": [resolved(each, body["id"]) for each in given]}


def resolved(path: str, base: str) -> str:
    return "/" + posixpath.normpath(posixpath.join("/" + base.strip("/"), path)).strip("/.")


def paths_of(app_id: str, own: Iterable[str], groups: Paths) -> list[str]:
    """What an app depends on, itself and by the groups that it is in."""
    inherited = [path for group in _ancestors(app_id) for path in groups.get(group, ())]
    return list(dict.fromkeys([*own, *inherited]))


def among(path: str, ids: Iterable[str]) -> list[str]:
    """The apps that a path stands for: the one of this id, and those in the group of this name."""
    below = f"{path.rstrip('/')}/"
    return [app_id for app_id in ids if app_id == path or app_id.startswith(below)]


def cycle(apps: Paths, groups: Paths) -> list[str]:
    """Apps that depend on each other, from one back to itself; empty when there are none."""
    ids = list(apps)
    some = {app_id: paths for app_id in ids if (paths := paths_of(app_id, apps[app_id], groups))}
    edges = {app_id: [each for path in paths for each in among(path, ids)] for app_id, paths in some.items()}
    done: set[str] = set()
    for app_id in edges:
        if app_id not in done and (found := _walk(app_id, edges, done)):
            return found
    return []


def _walk(start: str, edges: Mapping[str, Sequence[str]], done: set[str]) -> list[str]:
    """Depth first, without recursion: chains may be long."""
    path = {start: iter(edges.get(start, ()))}  # in the order in which it goes
    while path:
        last = next(reversed(path))
        following = next(path[last], None)
        if following is None:
            done.add(last)
            del path[last]
        elif following in path:
            names = list(path)
            return [*names[names.index(following) :], following]
        elif following not in done:
            path[following] = iter(edges.get(following, ()))
    return []


def _ancestors(app_id: str) -> Iterator[str]:
    while app_id != "/":
        app_id = posixpath.dirname(app_id)
        yield app_id


def sentence(names: Collection[str]) -> str:
    return f"waits for {', '.join(sorted(names))}, on which it depends"
