"""What `/v2/apps` and `/v2/tasks` answer of an app and its tasks, in Marathon's words. Pure.

Default answers keep to the keys that Marathon's have: clients exist that fail on any other.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from frameworks.services.app import SERVICE_PORTS_LABEL, STAGED_LABEL, VERSION_LABEL, App, format_time, label
from frameworks.services.definition import Container, Definition
from frameworks.services.framework import Services
from frameworks.services.health import health_results
from frameworks.services.picture import TaskFailure, describe_end
from frameworks.services.wanted import Run
from model.task import MESOS_STATES, TaskState
from model.volume import WORKSPACE, VolumeKind

Json = dict[str, Any]
NO_CONTAINER = Container()
SHOWN_KEPT = 10_000


class Shown:
    """What is answered of tasks, kept until they change: of a thousand, few have when they are asked for again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Run, Json]] = {}

    def task_json(self, run: Run) -> Json:
        """Nobody may change it."""
        known = self._known.get(run.id)
        if known is None or known[0] is not run:
            if len(self._known) >= SHOWN_KEPT:
                self._known.clear()
            known = self._known[run.id] = run, task_json(run)
        return known[1]


def app_json(app: App, services: Services, shown: Shown | None = None) -> Json:
    """With its tasks, if they are to be `shown`."""
    app, runs = services.sized(app), services.runs(app.id)
    statuses = [run.view.status for run in runs]
    running = [status for status in statuses if status.state is TaskState.RUNNING]
    answer: Json = definition_json(app) | {
        "version": app.version,
        "versionInfo": version_info(app),
        "tasksStaged": sum(status.state < TaskState.RUNNING for status in statuses),
        "tasksRunning": len(running),
        "tasksHealthy": sum(status.healthy is True for status in running),
        "tasksUnhealthy": sum(status.healthy is False for status in running),
        "deployments": [] if app.outcome else [{"id": app.deployment}],
    }
    if shown is not None:
        answer["tasks"] = [shown.task_json(run) for run in runs]
    failure = services.last_failure(app.id)
    if shown is not None and failure is not None:
        answer["lastTaskFailure"] = failure_json(failure)
    return answer


def definition_json(app: App) -> Json:
    """It can be sent back. The `ports` are those of the node, as Marathon had them until it called them deprecated."""
    definition = app.definition
    answer: Json = definition.model_dump(exclude_none=True)
    if not isinstance(definition, Definition) or definition.shown_ports is None:
        return answer
    if definition.container == NO_CONTAINER:
        del answer["container"]
    return answer | {"ports": definition.shown_ports}


def version_info(app: App) -> Json:
    return {"lastScalingAt": app.scaled, "lastConfigChangeAt": app.config_version}


def task_json(run: Run) -> Json:
    spec, status = run.view.spec, run.view.status
    published = [port.host for port in spec.ports if port.host is not None]
    services = [int(port) for port in label(spec, SERVICE_PORTS_LABEL).split(",") if port]
    task: Json = {
        "id": spec.id,
        "appId": spec.owner,
        "host": run.view.node,
        "slaveId": run.view.node,
        "ipAddresses": [
            {"ipAddress": address, "protocol": "IPv6" if ":" in address else "IPv4"} for address in status.addresses
        ],
        "ports": published,
        # Clients take the one for each of the `ports`; 0: it has none.
        "servicePorts": services or [0] * len(published),
        "stagedAt": label(spec, STAGED_LABEL),
        "state": MESOS_STATES[status.state],
        "version": label(spec, VERSION_LABEL),
    }
    if spec.health_checks:
        task["healthCheckResults"] = health_results(run.view)
    if kept := [mount for mount in spec.volumes if mount.kind is VolumeKind.PERSISTENT]:
        task["localVolumes"] = [
            {"containerPath": mount.destination.removeprefix(f"{WORKSPACE}/"), "persistenceId": mount.source}
            for mount in kept
        ]
    if run.started is not None:
        task["startedAt"] = _time(run.started)
    return task


def failure_json(failure: TaskFailure) -> Json:
    spec, status = failure.view.spec, failure.view.status
    return {
        "appId": spec.owner,
        "taskId": spec.id,
        "host": failure.view.node,
        "slaveId": failure.view.node,
        "state": MESOS_STATES[status.state],
        "message": describe_end(failure.view),
        "timestamp": _time(failure.at),
        "version": failure.version,
    }


def _time(seconds: float) -> str:
    return format_time(datetime.fromtimestamp(seconds, UTC))
