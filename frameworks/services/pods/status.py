"""How a pod is, in Marathon's shape (`podStatus.raml: PodStatus`): pure functions of the app and its tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from frameworks.services.app import VERSION_LABEL, App, format_time, label
from frameworks.services.picture import TaskFailure, describe_end
from frameworks.services.wanted import Run, instances, settled
from model.pod import Pod
from model.resources import Resources
from model.task import MESOS_STATES, TaskState

Json = dict[str, Any]


def pod_json(app: App) -> Json:
    """As `GET /v2/pods/ID` has it."""
    return {**app.definition.model_dump(exclude_none=True), "version": app.version}


def status_json(app: App, runs: Sequence[Run], waiting: Sequence[str], failure: TaskFailure | None) -> Json:
    """`runs` are all tasks of the pod, `waiting` says why it is not as it should be, and `failure` is the last one."""
    shown = [instance_json(app, instance) for instance in instances(runs)]
    since = max([app.version, *(instance["statusSince"] for instance in shown)])
    answer: Json = {
        "id": app.id,
        "spec": pod_json(app),
        "status": _status(app, runs, shown),
        "statusSince": since,
        "instances": shown,
        "terminationHistory": [_termination(failure)] if failure is not None and failure.view.spec.pod else [],
        "lastUpdated": format_time(datetime.now(UTC)),
        "lastChanged": since,
    }
    return answer | ({"message": "; ".join(waiting)} if waiting else {})


def instance_json(app: App, runs: Sequence[Run]) -> Json:
    """`runs` are the tasks of one instance. One that is gone already is not among them."""
    pod, node = _pod(runs[0]), runs[0].view.node
    runs = sorted(runs, key=lambda run: pod.members.index(run.id))
    changed = max(_since(run) for run in runs)
    total = sum((run.view.spec.held for run in runs), Resources())
    return {
        "id": pod.id,
        "status": _instance_status(pod, runs),
        "statusSince": changed,
        "agentId": node,
        "agentHostname": node,
        "resources": _resources_json(total),
        "networks": _networks(runs),
        "containers": [_container(app, run) for run in runs],
        "specReference": f"/v2/pods{app.id}::versions/{label(runs[0].view.spec, VERSION_LABEL)}",
        "localVolumes": [],
        "lastUpdated": changed,
        "lastChanged": changed,
    }


def _status(app: App, runs: Sequence[Run], shown: Sequence[Json]) -> str:
    if app.instances == 0 and runs:
        return "TERMINAL"
    stable = settled(app, runs) and all(instance["status"] == "STABLE" for instance in shown)
    return "STABLE" if stable else "DEGRADED"


def _instance_status(pod: Pod, runs: Sequence[Run]) -> str:
    if any(run.view.killing or run.view.status.state is TaskState.KILLING for run in runs):
        return "TERMINAL"
    if all(run.view.status.state < TaskState.RUNNING for run in runs):
        return "STAGING"
    return "STABLE" if len(runs) == len(pod.members) and all(run.serving for run in runs) else "DEGRADED"


def _container(app: App, run: Run) -> Json:
    spec, status = run.view.spec, run.view.status
    since = _since(run)
    answer: Json = {
        "name": _pod(run).container,
        "containerId": spec.id,
        "status": MESOS_STATES[status.state],
        "statusSince": since,
        "resources": _resources_json(spec.resources),
        "endpoints": [_endpoint(run, port.name) for port in spec.ports],
        "conditions": _conditions(run, since),
        "lastUpdated": since,
        "lastChanged": since,
    }
    if said := status.reason or status.message:
        answer["message"] = said
    return answer


def _endpoint(run: Run, name: str) -> Json:
    """Whether it is well is known of the one that is checked."""
    checked = {check.port for check in run.view.spec.health_checks}
    port = next(port for port in run.view.spec.ports if port.name == name)
    healthy = run.view.status.healthy
    return {"name": name, **({"healthy": healthy} if port.number in checked and healthy is not None else {})}


def _conditions(run: Run, since: str) -> list[Json]:
    healthy = run.view.status.healthy
    if healthy is None:
        return []
    value = "true" if healthy else "false"
    return [{"name": "healthy", "value": value, "lastChanged": since, "lastUpdated": since}]


def _networks(runs: Sequence[Run]) -> list[Json]:
    """All containers have the same."""
    addresses: Iterable[str] = next((run.view.status.addresses for run in runs if run.view.status.addresses), ())
    return [{"name": runs[0].view.spec.network, "addresses": list(addresses)}]


def _termination(failure: TaskFailure) -> Json:
    """That of the container which ended its instance."""
    view = failure.view
    pod, ended = view.spec.pod, _time(failure.at)
    assert pod is not None
    state: Json = {"exitCode": view.status.exit_code} if view.status.exit_code is not None else {}
    reason = describe_end(view)
    return {
        "instanceID": pod.id,
        "terminatedAt": ended,
        "startedAt": _time(view.status.since),
        "message": f"{pod.container}: {reason}",
        "containers": [
            {
                "containerId": view.spec.id,
                "lastKnownState": MESOS_STATES[view.status.state],
                "termination": {**state, "message": reason},
            }
        ],
    }


def _pod(run: Run) -> Pod:
    assert run.view.spec.pod is not None
    return run.view.spec.pod


def _since(run: Run) -> str:
    return _time(run.view.status.since or run.view.status.at)


def _resources_json(resources: Resources) -> Json:
    return {"cpus": resources.cpus / 1000, "mem": resources.mem, "disk": resources.disk, "gpus": resources.gpus}


def _time(seconds: float) -> str:
    return format_time(datetime.fromtimestamp(seconds, UTC))
