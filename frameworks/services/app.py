"""An app as it is stored: its definition, the versions it has, and the deployment that last changed it. A pod is an
app too, whose instances are of several tasks each.

`version` names the last change of any kind, `config_version` the last one that makes tasks of older versions wrong:
scaling does not. Versions are times, as in Marathon; scaling makes them grow whatever the clock does.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from frameworks.services.definition import Definition
from frameworks.services.fields import TIME
from frameworks.services.pods.definition import PodDefinition
from frameworks.services.pods.tasks import new_instance
from model.codec import Codec
from model.task import TaskSpec

FRAMEWORK = "services"
PREFIX = "services/apps"  # an app's id begins with a slash
VERSION_LABEL = "tepui/version"
STAGED_LABEL = "tepui/staged"


@dataclass(frozen=True, slots=True)
class App:
    definition: Definition | PodDefinition
    version: str
    config_version: str
    scaled: str
    deployment: str

    @property
    def id(self) -> str:
        return self.definition.id

    @property
    def instances(self) -> int:
        return self.definition.instances


CODEC = Codec(App)


def key(app_id: str) -> str:
    return PREFIX + app_id


def create(definition: Definition | PodDefinition, now: datetime) -> App:
    version = format_time(now)
    return App(definition, version, version, version, str(uuid.uuid4()))


def scale(app: App, instances: int, now: datetime) -> App:
    version = _next_version(app, now)
    definition = app.definition.scaled(instances)
    return replace(app, definition=definition, version=version, scaled=version, deployment=str(uuid.uuid4()))


def update(app: App, definition: PodDefinition, now: datetime) -> App:
    """To another definition. When all that changed is the number of instances, this is scaling."""
    if definition == app.definition.scaled(definition.instances):
        return scale(app, definition.instances, now)
    version = _next_version(app, now)
    return App(definition, version, version, version, str(uuid.uuid4()))


def new_tasks(app: App, now: datetime, instance: str = "") -> tuple[TaskSpec, ...]:
    """Another run of the app: of the `instance` that has persistent volumes already, or of a new one."""
    if isinstance(app.definition, PodDefinition):
        return new_instance(app.definition, FRAMEWORK, app.config_version, _own_labels(app, now))
    return (new_task(app, now, instance),)


def new_task(app: App, now: datetime, instance: str = "") -> TaskSpec:
    """Another run of an app that is no pod, under an id of its own, after which a new instance is named."""
    definition = app.definition
    assert isinstance(definition, Definition)
    task_id = f"{app.id[1:].replace('/', '_')}.{uuid.uuid4()}"
    labels = {**definition.labels, **_own_labels(app, now)}
    plain = TaskSpec(
        id=task_id,
        framework=FRAMEWORK,
        owner=app.id,
        argv=definition.argv,
        resources=definition.resources,
        network=definition.network,
        env=tuple(sorted((_marathon_env(app, task_id) | definition.env).items())),
        ports=definition.task_ports,
        user=definition.user or ("" if definition.image else "0:0"),
        cwd="" if definition.image or definition.fetches else "/",
        labels=tuple(sorted(labels.items())),
        kill_grace_s=definition.taskKillGracePeriodSeconds,
        health_checks=tuple(check.of_task(definition.task_ports) for check in definition.healthChecks),
        readiness_checks=tuple(check.of_task(definition.task_ports) for check in definition.readinessChecks),
        image=definition.image,
        fetch=definition.fetches,
    )
    return definition.confined(plain, instance or task_id)


def label(spec: TaskSpec, name: str) -> str:
    return dict(spec.labels).get(name, "")


def format_time(at: datetime) -> str:
    # Microseconds, where Marathon shows three digits: two versions of one app must differ.
    return at.strftime(TIME)


def parse_time(text: str) -> datetime:
    return datetime.strptime(text, TIME).replace(tzinfo=UTC)


def _own_labels(app: App, now: datetime) -> dict[str, str]:
    return {VERSION_LABEL: app.config_version, STAGED_LABEL: format_time(now)}


def _next_version(app: App, now: datetime) -> str:
    return format_time(max(now, parse_time(app.version) + timedelta(microseconds=1)))


def _marathon_env(app: App, task_id: str) -> dict[str, str]:
    """What Marathon tells its tasks, as far as it does not depend on the node."""
    definition = app.definition
    assert isinstance(definition, Definition)
    told = {
        "MARATHON_APP_ID": app.id,
        "MARATHON_APP_VERSION": app.config_version,
        "MARATHON_APP_RESOURCE_CPUS": str(definition.cpus),
        "MARATHON_APP_RESOURCE_MEM": str(definition.mem),
        "MARATHON_APP_RESOURCE_DISK": str(definition.disk),
        "MESOS_TASK_ID": task_id,
    }
    for index, port in enumerate(definition.task_ports):
        told[f"PORT{index}"] = told[f"PORT_{port.number}"] = str(port.number)
        if port.name:
            told[f"PORT_{port.name.upper().replace('-', '_')}"] = str(port.number)
    if definition.task_ports:
        told["PORT"] = told["PORT0"]
        told["PORTS"] = ",".join(str(port.number) for port in definition.task_ports)
    return told
