"""A registry for tests: Debian's docker-registry on loopback, with TLS and a password, in the test's own network."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.images import Made, write_layout
from tests.kernel.namespaces import run

HOST = "localhost:5000"
DEADLINE_S = 20.0
# "secret", by bcrypt at its cheapest: the registry takes nothing else.
PASSWORDS = "user:$2b$04$jYpxmXbSXB5ramGOVDobZOnn1envT/ZB7is2AzhoyoLzWT8CmWuHK\n"
CONFIG = """version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {data}}}}}
http: {{addr: "127.0.0.1:5000", tls: {{certificate: {directory}/cert.pem, key: {directory}/key.pem}}}}
auth: {{htpasswd: {{realm: test, path: {directory}/passwords}}}}
"""


@dataclass
class Registry:
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def credentials(self) -> str:
        return credentials("secret")

    @property
    def certificate(self) -> Path:
        return self.directory / "cert.pem"

    def start(self) -> None:
        self.process = subprocess.Popen(["docker-registry", "serve", str(self.directory / "config.yml")])
        deadline = time.monotonic() + DEADLINE_S
        while "127.0.0.1:5000" not in run("ss", "-Hltn"):
            assert time.monotonic() < deadline and self.process.poll() is None, "the registry does not listen"
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(DEADLINE_S)
            self.process = None

    def push(self, name: str, made: Made) -> str:
        """Returns what to pull."""
        layout = write_layout(self.directory / "pushed" / made.digest[7:19], {"test": made})
        auth = self.directory / "auth.json"
        auth.write_text(self.credentials)
        options = ["--authfile", str(auth), "--dest-cert-dir", str(self.trusted(self.directory / "certs")), "-q"]
        run("skopeo", "--insecure-policy", "copy", *options, f"oci:{layout}:test", f"docker://{HOST}/{name}")
        return f"{HOST}/{name}"

    def trusted(self, directory: Path) -> Path:
        """A directory of authorities in which it is one."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "ca.crt").write_bytes(self.certificate.read_bytes())
        return directory

    def blob(self, digest: str) -> Path:
        """Where it keeps one."""
        name = digest.removeprefix("sha256:")
        return self.directory / "data/docker/registry/v2/blobs/sha256" / name[:2] / name / "data"


def credentials(password: str) -> str:
    """A Docker config.json."""
    token = base64.b64encode(f"user:{password}".encode()).decode()
    return json.dumps({"auths": {HOST: {"auth": token}}})


@contextmanager
def registry(directory: Path) -> Iterator[Registry]:
    directory.mkdir()
    subject = ["-subj", "/CN=registry", "-addext", "subjectAltName=DNS:localhost"]
    key = ["-keyout", f"{directory}/key.pem", "-out", f"{directory}/cert.pem", "-nodes"]
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2", *subject, *key)
    (directory / "passwords").write_text(PASSWORDS)
    (directory / "config.yml").write_text(CONFIG.format(data=directory / "data", directory=directory))
    made = Registry(directory)
    made.start()
    try:
        yield made
    finally:
        made.stop()
