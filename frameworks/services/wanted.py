"""What should change, as pure functions of an app and its tasks: how many are missing, which are too many.

A task that is being killed still counts: it may run for its whole grace period, and an app never has more tasks than
it asks for because of something this framework started. But for those on nodes that are to have none: another one comes
first, and when it serves, the one there goes. Where that can not be, because there is only one of its address, it goes
first; and what has volumes on its node stays, for there is no other place for it.

A task on a node that has been away for longer than its app waits is `inactive`: another one takes its place, and should
the node come back, there is one too many.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor

from frameworks.services.app import VERSION_LABEL, App, label
from frameworks.services.backoff import NEVER
from master.offers import TaskView
from model.health import given_up
from model.task import Interface, TaskSpec, TaskState
from model.volume import persistent


@dataclass(frozen=True, slots=True)
class Run:
    """A task that is not over. `launched_at` and `running_at` are on the monotonic clock: NEVER when that was before
    this master's time. `started` is what the node said, in seconds since the epoch. `inactive`: it counts no more, for
    as long as its node is away."""

    view: TaskView
    launched_at: float = NEVER
    running_at: float | None = None
    started: float | None = None
    inactive: bool = False

    @property
    def id(self) -> str:
        return self.view.spec.id

    @property
    def running(self) -> bool:
        return self.view.status.state == TaskState.RUNNING

    @property
    def serving(self) -> bool:
        """It runs, is well if that is checked, and ready for others if that is."""
        spec, status = self.view.spec, self.view.status
        well = status.healthy is True or not spec.health_checks
        ready = len(spec.readiness_checks) == sum(readiness.ready for readiness in status.readiness)
        return self.running and well and ready and not self.inactive


def missing(app: App, runs: Iterable[Run]) -> int:
    """How many instances to start: those that lack, as long as with those of other versions they are not too many."""
    known, old = _counted(app, runs)
    return max(0, min(_share(app) - known + old, most(app) - known))


def missing_before(app: App, runs: Iterable[Run]) -> int:
    """How many to start of those that a canary leaves as they were."""
    if app.canary is None:
        return 0
    _, old = _counted(app, runs)
    return max(0, app.instances - _share(app) - old)


def _counted(app: App, runs: Iterable[Run]) -> tuple[int, int]:
    """How many instances have a place of the app's, and how many of them are of other versions."""
    those = list(runs)
    if all(_is_plain(app, run) for run in those):
        return len(those), 0
    known = [each for each in instances(those) if not _is_moving(each) and not _is_inactive(each)]
    return len(known), sum(any(_is_obsolete(app, run) for run in instance) for instance in known)


def _share(app: App) -> int:
    """How many instances are to be of the app's version."""
    return app.instances if app.canary is None else min(app.canary.instances, app.instances)


def least(app: App) -> int:
    """So many serve while the app changes to another version (`marathon.raml: upgradeStrategy`)."""
    fewest = ceil(app.instances * app.definition.upgrade.minimumHealthCapacity)
    return min(fewest, _ceiling(app) - 1) if app.definition.kept_in_place else fewest


def most(app: App) -> int:
    """So many there are meanwhile. One more than have to serve, or nothing could begin."""
    return _ceiling(app) if app.definition.kept_in_place else max(_ceiling(app), least(app) + 1)


def _ceiling(app: App) -> int:
    return floor(app.instances * (1 + app.definition.upgrade.maximumOverCapacity))


def surplus(app: App | None, runs: Iterable[Run], chosen: Collection[str] = ()) -> list[Run]:
    """Which to kill: those that their checks gave up, or that are left of another life of the app; of other versions
    as many as are not needed, those that others replace, then as many as are too many: those with a `chosen` id, then
    the worst first. An instance goes as a whole, and when part of it is gone."""
    living = [run for run in runs if not run.view.killing]
    if app is None:
        return living
    if len(living) <= _share(app) and all(_is_plain(app, run) for run in living):
        return []
    good: list[list[Run]] = []
    bad: list[list[Run]] = []
    for instance in instances(living):
        if not _is_inactive(instance):
            (good if all(_is_good(app, run) for run in instance) and _is_whole(instance) else bad).append(instance)
    oldest_first = app.definition.killSelection == "OLDEST_FIRST"
    good.sort(key=lambda instance: min(_worth(run, oldest_first) for run in instance))
    good.sort(key=lambda instance: not any(run.id in chosen for run in instance))
    old, new = (
        [each for each in good if any(_is_obsolete(app, run) for run in each) is obsolete] for obsolete in (True, False)
    )
    moving, staying = ([each for each in new if _is_moving(each) is moves] for moves in (True, False))
    gone = _needless(app, old, new, sum(map(_serves, good)))
    gone += moving[: max(0, len(moving) + sum(map(_serves, staying)) - _share(app))]
    gone += staying[: max(0, len(staying) - _share(app))]
    return [run for instance in bad + gone for run in instance]


def _needless(app: App, old: list[list[Run]], new: list[list[Run]], serving: int) -> list[list[Run]]:
    """Those of other versions that may go now: who does not serve, and as many others as leave enough that do. First
    those on nodes where one of the new version serves, and those that are to leave their node."""
    taken_over = {instance[0].view.node for instance in new if _serves(instance)}
    idle = [instance for instance in old if not _serves(instance)]
    busy = [instance for instance in old if _serves(instance)]
    busy.sort(key=lambda instance: not _is_moving(instance) and instance[0].view.node not in taken_over)
    too_many = len(old) - (app.instances - _share(app))
    return [*idle, *busy[: max(0, serving - least(app))]][: max(0, too_many)]


def _serves(instance: Iterable[Run]) -> bool:
    return all(run.serving for run in instance)


def settled(app: App, runs: Iterable[Run]) -> bool:
    """The app is as it was asked to be: nothing is left of its deployment."""
    known = [instance for instance in instances(runs) if not _is_inactive(instance)]
    whole = len(known) == app.instances and all(map(_is_whole, known)) and app.canary is None
    return whole and all(current(app, run) and run.serving for instance in known for run in instance)


def tried(app: App, runs: Iterable[Run]) -> bool:
    """The app's canary serves, beside as many others as there should be: somebody is to say what becomes of it."""
    known = [instance for instance in instances(runs) if not _is_inactive(instance)]
    new = sum(all(current(app, run) for run in instance) for instance in known)
    complete = new == _share(app) and len(known) == app.instances and all(map(_serves, known))
    return app.canary is not None and complete


def instances(runs: Iterable[Run]) -> list[list[Run]]:
    """Those of one pod instance together; any other run is one by itself."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        pod = run.view.spec.pod
        found.setdefault(pod.id if pod is not None else run.id, []).append(run)
    return list(found.values())


def _is_plain(app: App, run: Run) -> bool:
    """There is nothing to think about: an instance by itself, as the app wants it. Thousands are looked at again and
    again, and nearly all of them are."""
    view = run.view
    special = run.inactive or view.leaving or view.status.health or view.spec.pod is not None
    return not special and current(app, run)


def _is_obsolete(app: App, run: Run) -> bool:
    """Of another version, but of this life of the app."""
    return not current(app, run) and not _is_earlier(app, run)


def _is_earlier(app: App, run: Run) -> bool:
    return label(run.view.spec, VERSION_LABEL) < app.created


def _is_good(app: App, run: Run) -> bool:
    stuck = run.view.leaving and _is_only_one(run.view.spec)
    return not _is_earlier(app, run) and not illness(run.view) and not stuck


def _is_moving(instance: Iterable[Run]) -> bool:
    """Another one comes before it goes."""
    runs = tuple(instance)
    leaving = any(run.view.leaving for run in runs)
    return leaving and not any(_is_only_one(run.view.spec) or persistent(run.view.spec.volumes) for run in runs)


def _is_inactive(instance: Iterable[Run]) -> bool:
    return any(run.inactive for run in instance)


def _is_only_one(spec: TaskSpec) -> bool:
    """It has an address that nobody else can have meanwhile."""
    return any(attachment.address for attachment in (Interface(spec.network, spec.address), *spec.interfaces))


def _is_whole(instance: Sequence[Run]) -> bool:
    pod = instance[0].view.spec.pod
    return pod is None or len(instance) == len(pod.members)


def current(app: App, run: Run) -> bool:
    return label(run.view.spec, VERSION_LABEL) == app.config_version


def illness(view: TaskView) -> str:
    """Why its checks gave the task up; empty when they did not."""
    return given_up(view.spec.health_checks, view.status.health)


def _worth(run: Run, oldest_first: bool) -> tuple[bool, bool, float, float, str]:
    """Unhealthy before healthy, not yet running before running, the newest or the oldest first."""
    began = run.view.status.at if run.started is None else run.started
    sign = 1 if oldest_first else -1
    return run.view.status.healthy is not False, run.running, sign * run.launched_at, sign * began, run.id
