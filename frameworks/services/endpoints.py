"""Where apps are served, as text: what `GET /v2/tasks` and `GET /v2/apps/ID/tasks` answer to who accepts `text/plain`.
Scripts cut it into columns. Pure.

A line is for one port of an app, in columns that are separated by tabs: the app's id with `_` for slashes, its service
port, and each running task as `host:port`. Ports that are not published on nodes are those of the tasks' own addresses.
Of an app without ports there is the list of nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from frameworks.services.app import App
from frameworks.services.definition import Definition
from frameworks.services.wanted import Run


def endpoints(apps: Iterable[tuple[App, list[Run]]]) -> str:
    return "".join(line + "\n" for app, runs in apps for line in _lines(app, [run for run in runs if run.running]))


def _lines(app: App, runs: list[Run]) -> Iterator[str]:
    name = app.id[1:].replace("/", "_")
    service_ports = app.definition.service_ports if isinstance(app.definition, Definition) else ()
    if not service_ports:
        yield f"{name}\t \t" + "".join(f"{run.view.node} " for run in runs)
    for index, service_port in enumerate(service_ports):
        yield f"{name}\t{service_port}\t" + "".join(f"{_where(run, index)}\t" for run in runs)


def _where(run: Run, index: int) -> str:
    ports = run.view.spec.ports
    port = ports[index] if index < len(ports) else None  # of an older version
    if port is None or port.host is not None:
        return f"{run.view.node}:{port.host if port is not None else 0}"
    addresses = run.view.status.addresses
    return f"{addresses[0] if addresses else run.view.node}:{port.number}"
