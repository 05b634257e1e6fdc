"""Talks to the master's API with the administrator's credentials: `admin.json`, written by `tepui master init`.

It is looked for in TEPUI_ADMIN, then in the state directory of a master on this machine.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from cli.paths import MASTER_STATE
from cli.problem import Problem

ADMIN_FILE = "admin.json"
REQUEST_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Admin:
    """Where the master is, who vouches for it (PEM), what name its certificate bears, and what proves who we are."""

    url: str
    ca: str
    server_name: str
    token: str = field(repr=False)


class Client:
    def __init__(self, admin: Admin) -> None:
        context = ssl.create_default_context(cadata=admin.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._admin = admin
        self._context = context
        self._http = httpx2.Client(
            base_url=admin.url,
            verify=context,
            trust_env=False,
            timeout=REQUEST_DEADLINE_S,
            headers={"Authorization": f"Bearer {admin.token}"},
        )

    def get(self, path: str, **query: Any) -> Any:
        return self._send("GET", path, params=query)

    def post(self, path: str, body: object = None) -> Any:
        return self._send("POST", path, json=body)

    def put(self, path: str, body: object) -> Any:
        return self._send("PUT", path, json=body)

    def patch(self, path: str, body: object) -> Any:
        return self._send("PATCH", path, json=body)

    def delete(self, path: str) -> Any:
        return self._send("DELETE", path)

    @contextmanager
    def stream(self, path: str, body: object = None, **query: Any) -> Iterator[Iterator[bytes]]:
        """The answer's body as it comes, without a deadline between its parts. With a `body` it is a POST."""
        timeout = httpx2.Timeout(REQUEST_DEADLINE_S, read=None)
        options: dict[str, Any] = {"params": query, "timeout": timeout, "extensions": self._extensions()}
        verb = "GET" if body is None else "POST"
        with self._reachable(), self._http.stream(verb, path, json=body, **options) as response:
            if response.is_error:
                response.read()
            self._check(response)
            yield response.iter_bytes()

    @property
    def url(self) -> str:
        return self._admin.url

    def websocket(self, path: str) -> dict[str, Any]:
        """What it takes to open a WebSocket at the same master, with the same proofs: arguments for `websockets`."""
        return {
            "uri": self._admin.url.replace("https://", "wss://", 1) + path,
            "ssl": self._context,
            "server_hostname": self._admin.server_name,
            "additional_headers": {"Authorization": f"Bearer {self._admin.token}"},
        }

    def _send(self, method: str, path: str, **arguments: Any) -> Any:
        with self._reachable():
            response = self._http.request(method, path, extensions=self._extensions(), **arguments)
        self._check(response)
        return response.json() if response.content else None

    def _extensions(self) -> dict[str, str]:
        return {"sni_hostname": self._admin.server_name}

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except httpx2.TransportError as error:
            raise Problem(f"{self._admin.url}: {error}. Is the master running, and reachable from here?") from error

    def _check(self, response: httpx2.Response) -> None:
        if response.is_success:
            return
        raise Problem(f"{response.request.method} {response.request.url.path}: {describe(response)}")


def describe(response: httpx2.Response) -> str:
    """The master's error in one line: its message, and each field with what is wrong with it."""
    try:
        body = response.json()
        details = [f"{detail['path']}: {', '.join(detail['errors'])}" for detail in body.get("details", [])]
        return "; ".join([str(body["message"]), *details])
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"HTTP status {response.status_code}"


def connect() -> Client:
    """Raises Problem when there are no credentials to be found."""
    path = Path(os.environ.get("TEPUI_ADMIN", MASTER_STATE / ADMIN_FILE))
    try:
        return Client(Admin(**json.loads(path.read_text())))
    except OSError as error:
        raise Problem(
            f"{path}: {error.strerror}. Copy {ADMIN_FILE} from the master's state directory, or set TEPUI_ADMIN"
        ) from error
    except (ValueError, TypeError) as error:
        raise Problem(f"{path}: not an {ADMIN_FILE}: {error}") from error
