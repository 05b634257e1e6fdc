"""What the shell completes after Tab: ids of what there is, as the master knows it now.

A person waits for it with a half-typed line, so it asks with a short deadline, and says nothing when there is no
answer. The standard library's client is there sooner than the one that commands use.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote, urlsplit

from cli.admin import read_admin
from cli.problem import Problem

DEADLINE_S = 1.0  # to connect, and for each part of the answer

Complete = Callable[[str], list[str]]


def services(incomplete: str) -> list[str]:
    return _paths(incomplete, _ask(f"/v2/apps?id={quote(incomplete)}", lambda answer: answer["apps"]))


def pods(incomplete: str) -> list[str]:
    return _paths(incomplete, _ask("/v2/pods", lambda answer: answer))


def jobs(incomplete: str) -> list[str]:
    return _beginning(incomplete, _ask("/v1/jobs", lambda answer: answer))


def explained(incomplete: str) -> list[str]:
    """Whatever `tepui explain` knows of."""
    return [*services(incomplete), *pods(incomplete), *jobs(incomplete)]


def deployments(incomplete: str) -> list[str]:
    return _beginning(incomplete, _ask("/v2/deployments", lambda answer: answer))


def tasks(incomplete: str) -> list[str]:
    return _beginning(incomplete, _ask("/api/v1/tasks", lambda answer: answer["tasks"]))


def nodes(incomplete: str) -> list[str]:
    return _beginning(incomplete, _ask("/api/v1/nodes", lambda answer: answer["nodes"]))


def networks(incomplete: str) -> list[str]:
    return _beginning(incomplete, _ask("/api/v1/networks", lambda answer: answer["networks"], "name"))


def volumes(incomplete: str) -> list[str]:
    return _beginning(incomplete, _ask("/api/v1/volumes", lambda answer: answer["volumes"]))


def _ask(path: str, found: Callable[[Any], Iterable[dict[str, Any]]], field: str = "id") -> list[str]:
    """Nothing when anything is wrong: a message would stand in the middle of the person's line."""
    try:
        return [str(each[field]) for each in found(json.loads(_get(path)))]
    except (Problem, OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return []


def _get(path: str) -> bytes:
    admin = read_admin()
    url = urlsplit(admin.url)
    host, port = url.hostname or "", url.port or 443
    context = ssl.create_default_context(cadata=admin.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    connection = http.client.HTTPConnection(host, port)
    with (
        socket.create_connection((host, port), DEADLINE_S) as plain,
        context.wrap_socket(plain, server_hostname=admin.server_name) as connection.sock,
    ):
        connection.request("GET", path, headers={"Authorization": f"Bearer {admin.token}"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise ValueError(f"{path}: HTTP status {response.status}")
        return response.read()


def _beginning(incomplete: str, ids: Iterable[str]) -> list[str]:
    return [each for each in ids if each.startswith(incomplete)]


def _paths(incomplete: str, ids: Iterable[str]) -> list[str]:
    """People leave out the first slash."""
    if incomplete.startswith("/"):
        return _beginning(incomplete, ids)
    return _beginning(incomplete, (each if not incomplete else each.lstrip("/") for each in ids))
