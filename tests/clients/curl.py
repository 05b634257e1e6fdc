"""curl, on the master's node: a call as scripts make it, and the answer as it came."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.cluster import MASTER
from tests.cluster import bed
from tests.cluster.bed import Cluster

DEADLINE_S = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class Curl:
    """`below` is what stands before `/v2`. `token` is the header's whole value."""

    cluster: Cluster
    authority: Path
    below: str = ""
    token: str | None = None

    def __call__(
        self, method: str, path: str, *options: str, data: object = None, deadline_s: int = DEADLINE_S
    ) -> Answer:
        """`data` is sent as JSON, or as it is when it is a text."""
        body = data if isinstance(data, str) else json.dumps(data)
        sent = [] if data is None else ["--data-binary", "@-"]
        verb = ["--head"] if method == "HEAD" else ["--request", method]
        argv = [*self.command(path), "--max-time", str(DEADLINE_S), "--include", *verb, *sent, *options]
        done = self.cluster.lab.exec(MASTER, argv, stdin=body if data is not None else "", deadline_s=DEADLINE_S + 5)
        assert done.returncode == 0, f"{method} {path}: {done.stderr}"
        return parsed(done.stdout)

    def command(self, path: str) -> list[str]:
        admin = bed.admin(self.cluster.lab)
        token = f"token={admin['token']}" if self.token is None else self.token
        headers = ["--header", f"Authorization: {token}"] if token else []
        # Without a body of ours curl says what it is: a form.
        plain = ["curl", "--silent", "--show-error", "--globoff", "--path-as-is", "--header", "Content-Type:"]
        return [*plain, "--cacert", str(self.authority), *headers, f"{admin['url']}{self.below}{path}"]


def parsed(output: str) -> Answer:
    head, _, text = output.partition("\n\n")
    while head.split()[1] == "100":
        head, _, text = text.partition("\n\n")
    first, *lines = head.splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(first.split()[1]), headers, text)
