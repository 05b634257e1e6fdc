"""What bodies and answers of the API have in them, for its description alone (`master/rest/description.py`).

Whatever is here is held against real answers by `tests/unit/test_openapi.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from frameworks.services.definition import Definition
from frameworks.services.pods.definition import PodDefinition
from master.rest.description import DeploymentReference, Shown

Json = dict[str, Any]
Time = Annotated[str, Field(examples=["2026-11-30T15:56:49.465689Z"])]


class Answer(BaseModel):
    """Has no keys but these: clients exist that fail on any other."""

    model_config = ConfigDict(extra="forbid")


class VersionInfo(Answer):
    lastScalingAt: Time
    lastConfigChangeAt: Time


class TaskAddress(Answer):
    ipAddress: str
    protocol: Literal["IPv4", "IPv6"]


class HealthCheckResult(Answer):
    alive: bool
    consecutiveFailures: int
    firstSuccess: Time | None
    lastSuccess: Time | None
    lastFailure: Time | None
    lastFailureCause: str | None
    taskId: str
    instanceId: str


class LocalVolume(Answer):
    containerPath: str
    persistenceId: str


class Task(Answer):
    id: str
    appId: str
    host: str
    slaveId: str
    ipAddresses: list[TaskAddress]
    ports: list[int]
    servicePorts: list[int]
    stagedAt: Time
    startedAt: Time | None = None
    state: Annotated[str, Field(examples=["TASK_RUNNING"])]
    version: Time
    healthCheckResults: list[HealthCheckResult] = []
    localVolumes: list[LocalVolume] = []
    region: str | None = None
    zone: str | None = None
    role: str | None = None


class TaskFailure(Answer):
    appId: str
    taskId: str
    host: str
    slaveId: str
    state: str
    message: str
    timestamp: Time
    version: Time


class ReadinessResponse(Answer):
    status: int
    contentType: str
    body: str


class ReadinessResult(Answer):
    name: str
    taskId: str
    ready: bool
    lastResponse: ReadinessResponse | None = None


class AppStatus(BaseModel):
    """What an app has that its definition has not."""

    version: Time = ""
    versionInfo: VersionInfo | None = None
    ports: list[int] | None = None
    tasksStaged: int = 0
    tasksRunning: int = 0
    tasksHealthy: int = 0
    tasksUnhealthy: int = 0
    deployments: list[DeploymentReference] = []
    tasks: list[Task] = []
    lastTaskFailure: TaskFailure | None = None
    readinessCheckResults: list[ReadinessResult] = []


def _fields(*models: type[BaseModel]) -> Json:
    """All of them may be left out, or be null."""
    fields = {name: field for model in models for name, field in model.model_fields.items()}
    return {name: (_annotated(field) | None, None) for name, field in fields.items()}


def _annotated(field: FieldInfo) -> Any:
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


App = create_model("App", __base__=Definition, __doc__="An app and how it is.", **_fields(AppStatus))
AppUpdate = create_model(
    "AppUpdate",
    __config__=ConfigDict(extra="forbid"),
    __doc__="What an app is to be. What is not said stays as it is, and what only answers have is overlooked.",
    **_fields(Definition, AppStatus),
)
Pod = create_model("Pod", __base__=PodDefinition, __doc__="A pod and which version of it this is.", version=(str, ""))


class Apps(Answer):
    apps: list[App]


class OneApp(Answer):
    app: App


class Tasks(Answer):
    tasks: list[Task]


class Deployed(Answer):
    """Something was changed, and the deployment makes it so."""

    version: Time
    deploymentId: str


class KilledTask(Answer):
    """The task, or the deployment that makes its app smaller."""

    task: Task | None = None
    version: Time | None = None
    deploymentId: str | None = None


class KilledTasks(Answer):
    """The tasks, or the deployment that makes their app smaller."""

    tasks: list[Task] | None = None
    version: Time | None = None
    deploymentId: str | None = None


class Versions(Answer):
    versions: list[Time]


class Group(Answer):
    id: str
    apps: list[App]
    pods: list[Pod]
    groups: list[Group]
    dependencies: list[str]
    version: str


class GroupUpdate(BaseModel):
    """What apps there are to be in a group and in those in it, or by how much all of them are to be scaled."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = None
    apps: list[AppUpdate] | None = None
    pods: list[Pod] | None = None
    groups: list[GroupUpdate] | None = None
    dependencies: list[str] | None = None
    version: str | None = None
    scaleBy: Annotated[float, Field(ge=0, le=1000)] | None = None
    enforceRole: bool | None = None


class Leader(Answer):
    leader: str


class Info(Answer):
    name: str
    version: str
    buildref: str
    elected: bool
    frameworkId: str
    leader: str
    httpConfig: Json
    marathonConfig: Json
    zookeeperConfig: Json


class Plugins(Answer):
    plugins: list[Json]


class Action(Answer):
    action: str
    app: str | None = None
    pod: str | None = None
    readinessCheckResults: list[ReadinessResult] = []


class Step(Answer):
    actions: list[Action]


class Deployment(Answer):
    id: str
    version: Time
    affectedApps: list[str]
    affectedPods: list[str]
    steps: list[Step]
    currentActions: list[Action]
    currentStep: int
    totalSteps: int


class Delay(Answer):
    overdue: bool
    timeLeftSeconds: int


class Reason(Answer):
    reason: str
    declined: int
    processed: int


class OffersSummary(Answer):
    processedOffersCount: int
    unusedOffersCount: int
    lastUnusedOfferAt: Time | None = None
    rejectSummaryLastOffers: list[Reason]
    rejectSummaryLaunchAttempt: list[Reason]


class UnusedOffer(Answer):
    """`reason` has Marathon's names, `message` says it in a sentence."""

    offer: Json
    timestamp: Time
    reason: list[str]
    message: str


class QueueItem(Answer):
    """`app` or `pod`: which one waits for a place, and for how many instances."""

    app: App | None = None
    pod: Pod | None = None
    count: int
    delay: Delay
    since: Time
    processedOffersSummary: OffersSummary
    lastUnusedOffers: list[UnusedOffer] = []


class Queue(Answer):
    queue: list[QueueItem]


class GroupChange(Answer):
    """The deployment, or, of a dry run, what it would do."""

    version: str | None = None
    deploymentId: str | None = None
    steps: list[Step] | None = None


AppJson = Annotated[Json, Shown(App)]
AppUpdateJson = Annotated[Json, Shown(AppUpdate)]
AppsJson = Annotated[Json, Shown(Apps)]
OneAppJson = Annotated[Json, Shown(OneApp)]
TasksJson = Annotated[Json, Shown(Tasks)]
KilledTaskJson = Annotated[Json, Shown(KilledTask)]
KilledTasksJson = Annotated[Json, Shown(KilledTasks)]
DeployedJson = Annotated[Json, Shown(Deployed)]
VersionsJson = Annotated[Json, Shown(Versions)]
GroupJson = Annotated[Json, Shown(Group)]
GroupUpdateJson = Annotated[Json, Shown(GroupUpdate)]
GroupChangeJson = Annotated[Json, Shown(GroupChange)]
LeaderJson = Annotated[Json, Shown(Leader)]
InfoJson = Annotated[Json, Shown(Info)]
PluginsJson = Annotated[Json, Shown(Plugins)]
DeploymentJson = Annotated[Json, Shown(Deployment)]
QueueJson = Annotated[Json, Shown(Queue)]
PodJson = Annotated[Json, Shown(Pod)]
