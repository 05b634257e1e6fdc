"""A web server for tests, on an address of the test's own network that is not the loopback's."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.kernel.namespaces import run

ADDRESS = "192.0.2.80"


Page = bytes | Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Web:
    """`pages` by path: bytes, or what answers by itself."""

    port: int
    scheme: str
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def uri(self, path: str) -> str:
        return f"{self.scheme}://{ADDRESS}:{self.port}{path}"


def redirect(location: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", location)
        request.end_headers()

    return answer


def status(code: int) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda request: request.send_error(code)


def cut(request: BaseHTTPRequestHandler) -> None:
    """Promises more than it sends."""
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"x" * 10)


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(bytes(1 << 20))
    except OSError:
        return


@contextmanager
def web(certificate: Path | None = None) -> Iterator[Web]:
    """With TLS when there is a directory with `cert.pem` and `key.pem`."""
    if ADDRESS not in run("ip", "-o", "addr", "show", "lo"):
        run("ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo")
    made = Web(0, "https" if certificate else "http")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            page = made.pages.get(self.path)
            if isinstance(page, bytes):
                self.send_response(200)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)
            else:
                (page or status(404))(self)

        def log_message(self, format: str, *arguments: object) -> None:
            return

    with ThreadingHTTPServer(("0.0.0.0", 0), Handler) as server:
        made.port = server.server_port
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        # A thread, for it must answer while the test's event loop waits.
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()
