"""What happens to services, as Marathon's event stream tells it (`GET /v2/events`): load balancers and dashboards live
by it. Events are numbered, in order, and can be read on from where a reader was (`master/event_log.py`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from frameworks.services.app import VERSION_LABEL, App, format_time, label
from frameworks.services.pods.definition import PodDefinition
from master.event_log import EventLog
from master.offers import TaskView
from model.task import MESOS_STATES

Json = dict[str, Any]


CONDITIONS = {
    "TASK_STAGING": "Staging",
    "TASK_STARTING": "Starting",
    "TASK_RUNNING": "Running",
    "TASK_KILLING": "Killing",
    "TASK_FINISHED": "Finished",
    "TASK_FAILED": "Failed",
    "TASK_KILLED": "Killed",
    "TASK_ERROR": "Error",
    "TASK_LOST": "Unreachable",
    "TASK_GONE": "Gone",
}


class ServiceEvents(EventLog):
    def status(self, view: TaskView) -> None:
        spec, status = view.spec, view.status
        version = label(spec, VERSION_LABEL)
        addresses = [
            {"ipAddress": address, "protocol": "IPv6" if ":" in address else "IPv4"} for address in status.addresses
        ]
        self._tell(
            "status_update_event",
            slaveId=view.node,
            taskId=spec.id,
            taskStatus=MESOS_STATES[status.state],
            message=status.message or status.reason,
            appId=spec.owner,
            host=view.node,
            ipAddresses=addresses,
            ports=[port.host for port in spec.ports if port.host is not None],
            version=version,
        )
        self._tell(
            "instance_changed_event",
            instanceId=_instance(view),
            condition=CONDITIONS[MESOS_STATES[status.state]],
            runSpecId=spec.owner,
            agentId=view.node,
            host=view.node,
            runSpecVersion=version,
        )

    def health(self, view: TaskView) -> None:
        healthy, version = view.status.healthy is True, label(view.spec, VERSION_LABEL)
        about = {"appId": view.spec.owner, "taskId": view.spec.id, "version": version}
        self._tell("health_status_changed_event", **about, instanceId=_instance(view), alive=healthy)
        self._tell(
            "instance_health_changed_event",
            instanceId=_instance(view),
            runSpecId=view.spec.owner,
            runSpecVersion=version,
            healthy=healthy,
        )

    def failed_check(self, view: TaskView) -> None:
        """One of its checks has failed once more."""
        about = {"appId": view.spec.owner, "taskId": view.spec.id, "instanceId": _instance(view)}
        self._tell("failed_health_check_event", **about, healthCheck={}, version=label(view.spec, VERSION_LABEL))

    def given_up(self, view: TaskView, reason: str) -> None:
        """It ends because it is ill."""
        about = {"appId": view.spec.owner, "taskId": view.spec.id, "version": label(view.spec, VERSION_LABEL)}
        where = {"instanceId": _instance(view), "host": view.node, "slaveId": view.node}
        self._tell("unhealthy_task_kill_event", **about, **where, reason=reason)

    def asked(self, app: App, uri: str, client: str, is_new: bool = True) -> None:
        """Somebody has made or changed it."""
        definition = app.definition.model_dump(exclude_none=True) | {"version": app.version}
        if isinstance(app.definition, PodDefinition):
            kind = "pod_created_event" if is_new else "pod_updated_event"
            self._tell(kind, clientIp=client, uri=uri, podDefinition=definition)
        else:
            self._tell("api_post_event", clientIp=client, uri=uri, appDefinition=definition)

    def pod_removed(self, pod_id: str, uri: str, client: str) -> None:
        self._tell("pod_deleted_event", clientIp=client, uri=uri, podId=pod_id)

    def group_changed(self, path: str, version: str) -> None:
        self._tell("group_change_success", groupId=path, version=version)

    def gone(self, app_id: str) -> None:
        self._tell("app_terminated_event", appId=app_id)

    def deployment(self, kind: str, app: App) -> None:
        """`kind`: `deployment_info` when it begins, then `deployment_success`, or `deployment_failed` when another one
        has taken its place."""
        of_pod = isinstance(app.definition, PodDefinition)
        action = {"action": "ScaleApplication", "pod" if of_pod else "app": app.id}
        step = {"actions": [action]}
        plan = {"id": app.deployment, "version": app.version, "steps": [step], "original": {}, "target": {}}
        if kind == "deployment_info":
            self._tell(kind, plan=plan, currentStep=step)
            return
        if kind == "deployment_success":
            self._tell("deployment_step_success", plan=plan, currentStep=step)
        self._tell(kind, id=app.deployment, plan=plan)

    def _tell(self, kind: str, **said: Any) -> None:
        self.publish(kind, {"eventType": kind, "timestamp": format_time(datetime.now(UTC)), **said})


def _instance(view: TaskView) -> str:
    """An instance of a pod is of several tasks; any other one is a task."""
    return view.spec.pod.id if view.spec.pod is not None else view.spec.id
