"""Every field of Marathon's definitions is honoured or refused by its name, what is answered can be sent back, and the
strictest of clients can read it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from pydantic import BaseModel, TypeAdapter, ValidationError

from frameworks.services import artifacts, confinement, health, networking, old_forms, ports, values, volumes
from frameworks.services.answers import Shown, app_json
from frameworks.services.app import CODEC, create, new_task, new_tasks
from frameworks.services.definition import Container, Definition
from frameworks.services.fields import ANSWERED
from frameworks.services.picture import TaskFailure
from frameworks.services.pods import container, endpoints
from frameworks.services.pods import definition as pod
from frameworks.services.pods import health as pod_health
from frameworks.services.pods import volumes as pod_volumes
from frameworks.services.pods.status import pod_json
from frameworks.services.revision import revised
from frameworks.services.wanted import Run
from master.offers import TaskView
from master.rest.errors import json_path
from model.health import Health
from model.task import TaskState, TaskStatus
from tests.unit import definitions
from tests.unit.test_services_definition import LEAST, NOW, problems
from tests.unit.test_services_old_forms import WRITTEN

Json = dict[str, Any]
PAGE = Path(__file__).parents[2] / "docs" / "fields.md"

# marathon.raml: what each type has, and where it is here.
FIELDS: list[tuple[type[BaseModel], str]] = [
    (
        Definition,
        """id acceptedResourceRoles args backoffFactor backoffSeconds cmd constraints container cpus dependencies disk
        env executor executorResources fetch healthChecks check instances labels maxLaunchDelaySeconds mem gpus
        ipAddress networks ports portDefinitions readinessChecks residency resourceLimits requirePorts secrets
        taskKillGracePeriodSeconds upgradeStrategy uris user killSelection unreachableStrategy tty role storeUrls
        taskRateLimit""",
    ),
    (Container, "type docker linuxInfo volumes portMappings"),
    (artifacts.DockerImage, "credential pullConfig forcePullImage image network parameters portMappings privileged"),
    (ports.PortMapping, "containerPort hostPort labels name protocol servicePort networkNames"),
    (ports.PortDefinition, "port labels name protocol"),
    (networking.NetworkRef, "name mode labels"),
    (old_forms.IpAddress, "discovery groups labels networkName"),
    (old_forms.DiscoveryPort, "number name protocol labels"),
    (confinement.LinuxInfo, "seccomp ipcInfo"),
    (confinement.Seccomp, "profileName unconfined"),
    (confinement.IpcInfo, "mode shmSize"),
    (confinement.Parameter, "key value"),
    (confinement.ResourceLimits, "cpus mem"),
    (volumes.Volume, "containerPath hostPath mode persistent external secret"),
    (volumes.Persistent, "type size maxSize profileName constraints"),
    (volumes.Residency, "relaunchEscalationTimeoutSeconds taskLostBehavior"),
    (volumes.UpgradeStrategy, "maximumOverCapacity minimumHealthCapacity"),
    (artifacts.Artifact, "uri extract executable cache destPath"),
    (artifacts.SecretSource, "source"),
    (artifacts.PullConfig, "secret"),
    (
        health.HealthCheck,
        """command gracePeriodSeconds ignoreHttp1xx intervalSeconds maxConsecutiveFailures path port portIndex protocol
        ipProtocol timeoutSeconds delaySeconds""",
    ),
    (
        health.ReadinessCheck,
        "name protocol path portName intervalSeconds timeoutSeconds httpStatusCodesForReady preserveLastResponse",
    ),
    (
        pod.PodDefinition,
        """id labels version user environment containers secrets volumes networks scaling scheduling executorResources
        role linuxInfo legacySharedCgroups""",
    ),
    (pod.Scaling, "kind instances"),
    (pod.Scheduling, "backoff upgrade placement killSelection unreachableStrategy"),
    (pod.Backoff, "backoff backoffFactor maxLaunchDelay"),
    (pod.Placement, "constraints acceptedResourceRoles"),
    (pod.PodConstraint, "fieldName operator value"),
    (
        container.Container,
        """name exec resources resourceLimits endpoints linuxInfo image environment user healthCheck check volumeMounts
        artifacts labels lifecycle tty""",
    ),
    (container.Exec, "command overrideEntrypoint"),
    (container.Command, "shell argv"),
    (container.Image, "kind id pullConfig forcePull labels"),
    (container.Amounts, "cpus mem disk gpus"),
    (container.OwnAmounts, "cpus mem disk"),
    (container.Lifecycle, "killGracePeriodSeconds"),
    (endpoints.Endpoint, "name containerPort hostPort protocol labels networkNames"),
    (
        pod_health.HealthCheck,
        "http tcp exec gracePeriodSeconds intervalSeconds maxConsecutiveFailures timeoutSeconds delaySeconds",
    ),
    (pod_health.HttpCheck, "endpoint path scheme"),
    (pod_volumes.Volume, "name host persistent secret"),
    (pod_volumes.Mount, "name mountPath readOnly"),
]


@pytest.mark.parametrize(("model", "names"), FIELDS, ids=lambda each: getattr(each, "__qualname__", ""))
def test_each_of_marathons_fields_is_known_and_told_of(model: type[BaseModel], names: str) -> None:
    assert set(names.split()) - model.model_fields.keys() == set()
    told = set(re.findall(r"`([A-Za-z0-9]+)`", PAGE.read_text()))
    assert set(names.split()) - told == set(), f"in {PAGE.name}"


@pytest.mark.parametrize("name", sorted(name for name in vars(values) if name.startswith("No")))
def test_what_is_refused_says_why(name: str) -> None:
    reader: TypeAdapter[None] = TypeAdapter(getattr(values, name))
    with pytest.raises(ValidationError, match=r"is not supported by this version: remove it \(.+\)"):
        reader.validate_python({"a": 1})
    asking_nothing: list[Any] = [None, False, 0, "", [], {}]
    for nothing in asking_nothing:
        assert reader.validate_python(nothing) is None


# What the strictest of the clients builds its objects of; it fails on any other key.
APP = """
    acceptedResourceRoles args backoffFactor backoffSeconds cmd constraints container cpus dependencies deployments
    disk env executor fetch gpus healthChecks id instances ipAddress killSelection labels lastTaskFailure
    maxLaunchDelaySeconds mem networks portDefinitions ports readinessCheckResults readinessChecks requirePorts
    residency role secrets storeUrls taskKillGracePeriodSeconds taskRateLimit taskStats tasks tasksHealthy
    tasksRunning tasksStaged tasksUnhealthy unreachableStrategy upgradeStrategy uris user version versionInfo
"""
TASK = """
    appId healthCheckResults host id ipAddresses localVolumes ports region role servicePorts slaveId stagedAt
    startedAt state version zone
"""
RESULT = "alive consecutiveFailures firstSuccess instanceId lastFailure lastFailureCause lastSuccess taskId"
BELOW = {
    "container": "docker portMappings type volumes",
    "container/portMappings": "containerPort hostPort labels name protocol servicePort",
    "container/volumes": "containerPath external hostPath mode persistent",
    "portDefinitions": "labels name port protocol",
    "upgradeStrategy": "maximumOverCapacity minimumHealthCapacity",
    "unreachableStrategy": "expungeAfterSeconds inactiveAfterSeconds",
    "deployments": "id affectedApps affectedPods currentActions currentStep steps totalSteps version",
    "lastTaskFailure": "appId host instanceId message slaveId state taskId timestamp version",
    "tasks": TASK,
    "tasks/healthCheckResults": RESULT,
    "tasks/ipAddresses": "ipAddress protocol",
}


def foreign(value: object, keys: str, place: str = "") -> list[str]:
    """Keys that are not among those that may be there, at every depth of which something is known."""
    if isinstance(value, list):
        return [key for item in value for key in foreign(item, keys, place)]
    if not isinstance(value, dict):
        return []
    found = [f"{place}/{key}" for key in value.keys() - set(keys.split())] if keys else []
    for key, item in value.items():
        below = f"{place}/{key}".lstrip("/")
        found += foreign(item, BELOW.get(below, ""), below)
    return found


def answered(definition: Definition) -> Json:
    """Of an app with a task that runs, and one that has failed."""
    app = create(definition, NOW)
    spec = new_task(app, NOW)
    well = tuple(Health(1.0, 2.0, None) for _ in spec.health_checks)
    status = TaskStatus(spec.id, TaskState.RUNNING, healthy=True, health=well, addresses=("192.0.2.9", "2001:db8::9"))
    run = Run(TaskView(spec, "n1", status), started=1.0)
    services: Any = SimpleNamespace(
        sized=lambda app: app,
        runs=lambda app_id: [run],
        last_failure=lambda app_id: TaskFailure(TaskView(spec, "n1", status), app.version, 3.0),
    )
    return app_json(app, services, Shown())


@pytest.mark.parametrize("name", WRITTEN)
def test_answers_have_no_key_that_breaks_a_client(name: str) -> None:
    assert foreign(answered(Definition.model_validate(WRITTEN[name][0])), APP) == []


@given(definitions.apps())
def test_no_definition_gives_an_answer_that_breaks_a_client(body: Json) -> None:
    answer = answered(Definition.model_validate(body))
    assert foreign(answer, APP) == []
    assert answer["labels"] is not None and answer["env"] is not None and "fetch" in answer


def sent_back(answer: Json) -> Json:
    assert ANSWERED - answer.keys() <= {"readinessCheckResults", "taskStats", "tasksStats"}
    return answer


@given(definitions.apps())
def test_what_is_answered_can_be_sent_back_and_changes_nothing(body: Json) -> None:
    definition = Definition.model_validate(body)
    shown = sent_back(answered(definition))
    assert Definition.model_validate(shown) == definition
    for partial in True, False:
        assert revised(definition.id, definition, shown, partial=partial) == definition
        assert revised(definition.id, definition, body, partial=partial) == definition
    assert CODEC.decode(CODEC.encode(create(definition, NOW))).definition == definition


@given(definitions.pods())
def test_a_pod_can_be_sent_back(body: Json) -> None:
    definition = pod.PodDefinition.model_validate(body)
    app = create(definition, NOW)
    assert pod.PodDefinition.model_validate(pod_json(app)) == definition
    assert CODEC.decode(CODEC.encode(app)).definition == definition


def test_numbers_are_written_as_marathon_writes_them() -> None:
    answer = answered(Definition.model_validate({**LEAST, "cpus": 0.5, "mem": 64.0}))
    assert [str(answer[name]) for name in ("cpus", "mem", "backoffSeconds", "backoffFactor")] == [
        "0.5",
        "64",
        "1",
        "1.15",
    ]


def test_what_is_too_much_is_refused_and_what_is_much_is_taken() -> None:
    assert Definition.model_validate({**LEAST, "instances": 10_000}).instances == 10_000
    found = problems({**LEAST, "labels": {"a": "x" * (5 << 20)}})
    assert list(found) == ["/labels"] and "more than 524288 are not kept" in found["/labels"]


@pytest.mark.parametrize(
    ("own", "pods", "shm", "seccomp"),
    [
        ({}, {}, 64, ""),
        ({}, {"seccomp": {"unconfined": True}, "ipcInfo": {"mode": "PRIVATE", "shmSize": 9}}, 64, "unconfined"),
        ({"ipcInfo": {"mode": "SHARE_PARENT"}}, {"ipcInfo": {"mode": "PRIVATE", "shmSize": 9}}, 9, ""),
        ({"ipcInfo": {"mode": "SHARE_PARENT", "shmSize": 8}}, {"ipcInfo": {"mode": "PRIVATE", "shmSize": 9}}, 8, ""),
        ({"seccomp": {"profileName": "default"}}, {"seccomp": {"unconfined": True}}, 64, ""),
    ],
)
def test_what_a_pod_says_of_all_its_containers(own: Json, pods: Json, shm: int, seccomp: str) -> None:
    only = {"name": "a", "resources": {"cpus": 1, "mem": 32}, "exec": {"command": {"shell": "x"}}, "linuxInfo": own}
    body = {"id": "/pod", "containers": [only], "networks": LEAST["networks"], "linuxInfo": pods}
    (task,) = new_tasks(create(pod.PodDefinition.model_validate(body), NOW), NOW)
    assert (task.shm, task.seccomp) == (shm, seccomp)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"environment": {"A": {"secret": "s"}}}, "/containers(0)/environment/A"),
        ({"image": {"kind": "DOCKER", "id": "a", "labels": {"os": "linux"}}}, "/containers(0)/image/labels"),
        ({"resources": {"cpus": 1, "mem": 32, "gpus": 1}}, "/containers(0)/resources/gpus"),
    ],
)
def test_pods_say_what_is_refused(fields: Json, path: str) -> None:
    only = {"name": "a", "resources": {"cpus": 1, "mem": 32}, "exec": {"command": {"shell": "x"}}, **fields}
    with pytest.raises(ValidationError) as refused:
        pod.PodDefinition.model_validate({"id": "/pod", "containers": [only]})
    assert [json_path(problem["loc"]) for problem in refused.value.errors()] == [path]
