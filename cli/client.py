"""Talks to the master's API with the administrator's credentials (`cli/admin.py`).

The HTTP client is imported with the first connection: a command's help and completion do not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cli.admin import ADMIN_FILE as ADMIN_FILE
from cli.admin import Admin as Admin
from cli.admin import read_admin
from cli.problem import Refused, Unreachable

if TYPE_CHECKING:
    import httpx2

REQUEST_DEADLINE_S = 30.0
DEPLOYMENT_HEADER = "Marathon-Deployment-Id"


@dataclass(frozen=True, slots=True)
class Change:
    """What the master answered, and the id of the deployment that has begun; empty when there is nothing to do."""

    answer: Any
    deployment: str


class Client:
    def __init__(self, admin: Admin) -> None:
        import ssl

        import httpx2

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
        return _json(self._send("GET", path, params=query))

    def post(self, path: str, body: object = None) -> Any:
        return _json(self._send("POST", path, json=body))

    def put(self, path: str, body: object) -> Any:
        return _json(self._send("PUT", path, json=body))

    def patch(self, path: str, body: object) -> Any:
        return _json(self._send("PATCH", path, json=body))

    def delete(self, path: str, **query: Any) -> Any:
        return _json(self._send("DELETE", path, params=query))

    def change(self, method: str, path: str, body: object = None, **query: Any) -> Change:
        """Of what has deployments."""
        response = self._send(method, path, json=body, params=query)
        return Change(_json(response), response.headers.get(DEPLOYMENT_HEADER, ""))

    @contextmanager
    def stream(
        self,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        silence_s: float | None = None,
        **query: Any,
    ) -> Iterator[Iterator[bytes]]:
        """The answer's body as it comes; after `silence_s` without a part of it, it is Unreachable. With a `body` it is
        a POST."""
        import httpx2

        timeout = httpx2.Timeout(REQUEST_DEADLINE_S, read=silence_s)
        options: dict[str, Any] = {"params": query, "timeout": timeout, "extensions": self._extensions()}
        verb = "GET" if body is None else "POST"
        with self._reachable(), self._http.stream(verb, path, json=body, headers=headers, **options) as response:
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

    def _send(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        with self._reachable():
            response = self._http.request(method, path, extensions=self._extensions(), **arguments)
        self._check(response)
        return response

    def _extensions(self) -> dict[str, str]:
        return {"sni_hostname": self._admin.server_name}

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        import httpx2

        try:
            yield
        except httpx2.TransportError as error:
            text = f"{self._admin.url}: {error}. Is the master running, and reachable from here?"
            raise Unreachable(text) from error

    def _check(self, response: httpx2.Response) -> None:
        if response.is_success:
            return
        text = f"{response.request.method} {response.request.url.path}: {describe(response)}"
        raise Refused(text, response.status_code, _body(response))


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
    return Client(read_admin())


def _json(response: httpx2.Response) -> Any:
    return response.json() if response.content else None


def _body(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None
