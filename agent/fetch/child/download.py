"""What the agent executes to download a file: `python -I -S download.py AGENT UID OUTPUT MOST_BYTES`.

Standard input has the URI (an argument could be seen by all who may list processes, and a URI may bear a password).
`OUTPUT` is an open file to write to. Standard output gets one line of JSON: how many bytes there were, or why there
were none. Runs as `UID`, which owns nothing. `AGENT` is the pid that this process ends with.

Only http and https are spoken, also after a redirect, and never to the node itself: an address of loopback or of the
link could be a service that trusts whoever reaches it.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
import sys
import urllib.error
import urllib.request
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from agent import confine
from agent.launcher import syscalls as sc

ANSWER_DEADLINE_S = 30.0  # for each step of the network
CHUNK = 256 * 1024
REDIRECTS = 10
WORTH_A_TRY = (408, 425, 429, 500, 502, 503, 504)


class Refused(Exception):
    """No other try will bring it."""


class Failed(Exception):
    """Another try may bring it."""


def main() -> None:
    agent, uid, output, most_bytes = map(int, sys.argv[1:])
    confine.end_with(agent)
    uri = sys.stdin.read()
    me = os.getpid()
    pid, _ = sc.clone3(confine.CONNECTED)
    if pid == 0:
        confine.end_with_outer(me)
        tls = ssl.create_default_context()  # reads the node's authorities
        confine.become(uid)
        print(json.dumps(_answer(uri, output, most_bytes, tls)), flush=True)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    sys.exit(0 if status == 0 else 1)


def _answer(uri: str, output: int, most_bytes: int, tls: ssl.SSLContext) -> dict[str, Any]:
    try:
        return {"bytes": _download(uri, output, most_bytes, tls)}
    except Refused as error:
        return {"refused": str(error)}
    except Failed as error:
        return {"failed": str(error)}
    except OSError as error:
        return {"failed": error.strerror or str(error), "errno": error.errno}
    except (http.client.HTTPException, ValueError, MemoryError) as error:
        return {"refused": f"{type(error).__name__} {error}"}


def _download(uri: str, output: int, most_bytes: int, tls: ssl.SSLContext) -> int:
    with _opened(uri, tls) as response:
        size = 0
        while data := response.read(CHUNK):
            size += len(data)
            if size > most_bytes:
                raise Refused(f"it is larger than {most_bytes} bytes")
            view = memoryview(data)
            while view:
                view = view[os.write(output, view) :]
        expected = response.headers.get("Content-Length", "")
        if expected.isdecimal() and int(expected) != size:
            raise Failed(f"it ended after {size} of {expected} bytes")
        return size


def _opened(uri: str, tls: ssl.SSLContext) -> Any:
    opener = urllib.request.OpenerDirector()
    errors = (urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler())
    for handler in (_Http(), _Https(context=tls), _Redirects(), *errors):
        opener.add_handler(handler)
    try:
        return opener.open(_request(uri), timeout=ANSWER_DEADLINE_S)
    except urllib.error.HTTPError as error:
        text = f"HTTP {error.code} {error.reason}"
        raise (Failed if error.code in WORTH_A_TRY else Refused)(text) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Refused(f"bad certificate: {error.reason.verify_message}") from error
        raise Failed(str(getattr(error.reason, "strerror", None) or error.reason)) from error


def _request(uri: str) -> urllib.request.Request:
    """User and password are for this server, and for none that it redirects to."""
    parts = urlsplit(uri)
    userinfo, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), headers={"User-Agent": "tepui"})
    if at:
        token = base64.b64encode(unquote(userinfo).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


class _Plain(http.client.HTTPConnection):
    def connect(self) -> None:
        _check_name(self)
        super().connect()
        _check_peer(self)


class _Tls(http.client.HTTPSConnection):
    def connect(self) -> None:
        _check_name(self)
        super().connect()
        _check_peer(self)


class _Http(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Plain, request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._tls = context

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Tls, request, context=self._tls)


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = REDIRECTS

    def redirect_request(
        self, request: urllib.request.Request, file: IO[bytes], code: int, text: str, headers: Any, url: str
    ) -> urllib.request.Request | None:
        schemes = ("https",) if request.type == "https" else ("http", "https")
        if not url.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise Refused(f"it is redirected to {url[:100]!r}, and only {' and '.join(schemes)} are followed")
        return super().redirect_request(request, file, code, text, headers, url)


def _check_name(connection: http.client.HTTPConnection) -> None:
    """Before a connection is tried: whether there is a listener would be told otherwise."""
    for *_, address in socket.getaddrinfo(connection.host, connection.port, type=socket.SOCK_STREAM):
        _check(str(address[0]), connection.host)


def _check_peer(connection: http.client.HTTPConnection) -> None:
    """Of the address that was really reached: a name may lead elsewhere the second time."""
    _check(connection.sock.getpeername()[0], connection.host)


def _check(text: str, host: str) -> None:
    address = ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
        raise Refused(f"{host} is {address}, an address of the node itself or of its link")


if __name__ == "__main__":
    main()
