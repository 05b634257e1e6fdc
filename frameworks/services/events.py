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


class ServiceEvents(EventLog):
    def status(self, view: TaskView) -> None:
        spec, status = view.spec, view.status
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
            version=label(spec, VERSION_LABEL),
        )

    def health(self, view: TaskView) -> None:
        self._tell(
            "health_status_changed_event",
            appId=view.spec.owner,
            taskId=view.spec.id,
            instanceId=view.spec.id,
            version=label(view.spec, VERSION_LABEL),
            alive=view.status.healthy is True,
        )

    def asked(self, app: App, uri: str, client: str) -> None:
        """Somebody has made or changed it."""
        if isinstance(app.definition, PodDefinition):
            return
        definition = app.definition.model_dump(exclude_none=True) | {"version": app.version}
        self._tell("api_post_event", clientIp=client, uri=uri, appDefinition=definition)

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
        else:
            self._tell(kind, id=app.deployment, plan=plan)

    def _tell(self, kind: str, **said: Any) -> None:
        self.publish(kind, {"eventType": kind, "timestamp": format_time(datetime.now(UTC)), **said})
