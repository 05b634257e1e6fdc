"""An app as it is stored: its definition, the versions it has, and the deployment that last changed it. A pod is an
app too, whose instances are of several tasks each.

`version` names the last change of any kind, `config_version` the last one that makes tasks of older versions wrong:
scaling does not. Versions are times, as in Marathon; scaling makes them grow whatever the clock does.

Every change begins a deployment, which is under way until it has an `outcome`. What happens to the app's tasks after
that is no deployment any more. A change may be tried first, by a canary: some instances are of the new version, and the
others stay what they are until it is promoted, or taken back.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from frameworks.services import networking
from frameworks.services.definition import Definition
from frameworks.services.fields import TIME
from frameworks.services.pods.definition import PodDefinition
from frameworks.services.pods.tasks import new_instance
from frameworks.services.ports import environment, resolved
from model.codec import Codec
from model.task import Port, TaskSpec

FRAMEWORK = "services"
READ_KEPT = 1 << 14  # apps
PREFIX, GROUPS = "services/apps", "services/groups"  # ids and paths begin with a slash
VERSION_LABEL = "tepui/version"
STAGED_LABEL = "tepui/staged"
PLACE_LABEL = "tepui/place/"
SERVICE_PORTS_LABEL = "tepui/service-ports"


@dataclass(frozen=True, slots=True)
class Place:
    """What is known of a run when it is known where it runs: the address of the node (`host`), the `ports` that were
    chosen there, the `instance` that it continues, which addresses other runs have (`used`), and what the node has in
    the fields of the app's constraints (`noted`)."""

    host: str = ""
    ports: tuple[int, ...] = ()
    instance: str = ""
    used: frozenset[str] = frozenset()
    noted: tuple[tuple[str, str], ...] = ()


ANYWHERE = Place()
SUCCEEDED = "succeeded"


@dataclass(frozen=True, slots=True)
class Canary:
    """So many instances are of the app's version; the others of the one before, `config_version`."""

    instances: int
    before: Definition | PodDefinition
    config_version: str


@dataclass(frozen=True, slots=True)
class App:
    """`created` is the version with which this life of it began. `outcome` of its last deployment: SUCCEEDED, or why it
    failed; empty while it is under way. `undoes` is the deployment that this one takes back, and why."""

    definition: Definition | PodDefinition
    version: str
    config_version: str
    scaled: str
    deployment: str
    created: str = ""
    outcome: str = ""
    canary: Canary | None = None
    undoes: str = ""

    @property
    def id(self) -> str:
        return self.definition.id

    @property
    def instances(self) -> int:
        return self.definition.instances

    @property
    def before(self) -> App | None:
        """The app as those of its instances are that a canary leaves as they were."""
        if self.canary is None:
            return None
        definition = self.canary.before.scaled(self.instances)
        return replace(self, definition=definition, config_version=self.canary.config_version, canary=None)


@dataclass(frozen=True, slots=True)
class Group:
    """What apps whose ids begin alike have in common; it may be empty. `dependencies` are absolute paths."""

    path: str
    dependencies: tuple[str, ...] = ()
    version: str = ""


CODEC, GROUP_CODEC = Codec(App), Codec(Group)


@lru_cache(READ_KEPT)
def decoded(value: bytes) -> App:
    """Of the same bytes the same app: what is asked for was read before. Raises Damaged."""
    return CODEC.decode(value)


def key(app_id: str) -> str:
    return PREFIX + app_id


def create(definition: Definition | PodDefinition, now: datetime, deployment: str = "") -> App:
    version = format_time(now)
    return App(definition, version, version, version, deployment or new_deployment(), version)


def scale(app: App, instances: int, now: datetime, deployment: str = "") -> App:
    """A canary stays what it is, beside more or fewer others."""
    version = _next_version(app, now)
    return replace(
        app,
        definition=app.definition.scaled(instances),
        version=version,
        scaled=version,
        deployment=deployment or new_deployment(),
        outcome="",
        undoes="",
    )


def update(app: App, definition: Definition | PodDefinition, now: datetime, deployment: str = "") -> App:
    """To another definition. When all that changed is the number of instances, this is scaling."""
    if definition == app.definition.scaled(definition.instances):
        return scale(app, definition.instances, now, deployment)
    version = _next_version(app, now)
    return App(definition, version, version, version, deployment or new_deployment(), app.created)


def try_out(app: App, definition: Definition | PodDefinition, instances: int, now: datetime) -> App:
    """`instances` of another definition, beside those that there are."""
    stable = app.before or app
    canary = Canary(instances, stable.definition, stable.config_version)
    version = _next_version(app, now)
    return App(definition, version, version, version, new_deployment(), app.created, canary=canary)


def promote(app: App, now: datetime) -> App:
    """What was tried out is right for all of its instances."""
    return replace(app, version=_next_version(app, now), deployment=new_deployment(), outcome="", canary=None)


def take_back(app: App, earlier: App, why: str, now: datetime, deployment: str = "") -> App:
    """To what it was. Tasks that are of then are right again as they are."""
    version, deployment = _next_version(app, now), deployment or new_deployment()
    return replace(earlier, version=version, scaled=version, deployment=deployment, outcome="", canary=None, undoes=why)


def restart(app: App, now: datetime) -> App:
    """The same definition, and tasks of another version."""
    version = _next_version(app, now)
    return App(app.definition, version, version, app.scaled, new_deployment(), app.created)


def new_deployment() -> str:
    return str(uuid.uuid4())


def new_tasks(app: App, now: datetime, place: Place = ANYWHERE) -> tuple[TaskSpec, ...]:
    """Another run of the app: of the instance that has persistent volumes already, or of a new one."""
    if isinstance(app.definition, PodDefinition):
        return new_instance(
            app.definition,
            FRAMEWORK,
            app.config_version,
            {**_own_labels(app, now), **_notes(place)},
            place.host,
            place.ports,
        )
    return (new_task(app, now, place),)


def new_task(app: App, now: datetime, place: Place = ANYWHERE) -> TaskSpec:
    """Another run of an app that is no pod, under an id of its own, after which a new instance is named."""
    definition = app.definition
    assert isinstance(definition, Definition)
    task_id = f"{app.id[1:].replace('/', '_')}.{uuid.uuid4()}"
    labels = {**definition.labels, **_own_labels(app, now), **_service_ports(definition), **_notes(place)}
    ports = resolved(definition.task_ports, iter(place.ports))
    plain = TaskSpec(
        id=task_id,
        framework=FRAMEWORK,
        owner=app.id,
        argv=definition.argv,
        resources=definition.resources,
        network=definition.network,
        env=tuple(sorted((_marathon_env(app, task_id, ports, place.host) | definition.env).items())),
        ports=ports,
        user=definition.user or ("" if definition.image else "0:0"),
        cwd="" if definition.image or definition.fetches else "/",
        labels=tuple(sorted(labels.items())),
        kill_grace_s=definition.taskKillGracePeriodSeconds,
        health_checks=tuple(check.of_task(ports) for check in definition.healthChecks),
        readiness_checks=tuple(check.of_task(ports) for check in definition.readinessChecks),
        image=definition.image,
        fetch=definition.fetches,
        address=networking.own_address(definition.networks, place.used),
        interfaces=networking.interfaces(definition.networks, place.used),
        bandwidth=networking.bandwidth(definition.networks),
        # What has volumes waits for their node in any case, and says so.
        patient=definition.unreachableStrategy is not None and not definition.kept_in_place,
    )
    return definition.confined(plain, place.instance or task_id)


def label(spec: TaskSpec, name: str) -> str:
    for key, value in spec.labels:
        if key == name:
            return value
    return ""


def place_noted(spec: TaskSpec, field: str) -> str | None:
    """What the node, on which it was placed, had in this field of a constraint."""
    return dict(spec.labels).get(PLACE_LABEL + field)


def _notes(place: Place) -> dict[str, str]:
    return {PLACE_LABEL + field: value for field, value in place.noted}


def format_time(at: datetime) -> str:
    # Microseconds, where Marathon shows three digits: two versions of one app must differ.
    return at.strftime(TIME)


def parse_time(text: str) -> datetime:
    return datetime.strptime(text, TIME).replace(tzinfo=UTC)


def _own_labels(app: App, now: datetime) -> dict[str, str]:
    return {VERSION_LABEL: app.config_version, STAGED_LABEL: format_time(now)}


def _service_ports(definition: Definition) -> dict[str, str]:
    numbers = definition.service_ports
    return {SERVICE_PORTS_LABEL: ",".join(map(str, numbers))} if any(numbers) else {}


def _next_version(app: App, now: datetime) -> str:
    return format_time(max(now, parse_time(app.version) + timedelta(microseconds=1)))


def _marathon_env(app: App, task_id: str, ports: tuple[Port, ...], host: str) -> dict[str, str]:
    """What Marathon tells its tasks."""
    definition = app.definition
    assert isinstance(definition, Definition)
    told = {
        "MARATHON_APP_ID": app.id,
        "MARATHON_APP_VERSION": app.config_version,
        "MARATHON_APP_RESOURCE_CPUS": str(definition.cpus),
        "MARATHON_APP_RESOURCE_MEM": str(definition.mem),
        "MARATHON_APP_RESOURCE_DISK": str(definition.disk),
        "MESOS_TASK_ID": task_id,
        "HOST": host,
    }
    return told | environment(definition.task_ports, ports, definition.service_ports)
