"""Why something is not as it should be, from what the API says of it. Pure.

Facts are pairs of a word and a sentence. What holds it up comes first, then what happened last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cli import deployment, pipeline
from cli.duration import duration, epoch
from cli.job_run import causes, how
from cli.schedule import next_due
from cli.task_show import state
from cli.task_table import short

Object = dict[str, Any]
Fact = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Explanation:
    """`summary` says how it is. It is well when nothing is `wrong`; `last` is what went wrong before."""

    kind: str
    id: str
    summary: str
    wrong: tuple[Fact, ...]
    last: tuple[Fact, ...] = ()

    @property
    def fine(self) -> bool:
        return not self.wrong


def of_service(
    view: Object, app: Object, changes: Sequence[Object], item: Object | None, words: str, now: float
) -> Explanation:
    """`view` is our own of it, `app` Marathon's, `changes` are its deployments, `item` is what the queue has of it, and
    `words` are the last that its last failed task wrote."""
    wrong = (*_waiting(view), *_deployments(changes, now), *_refusals(item), *_tasks(view["tasks"], now))
    summary = f"{app['tasksRunning']} of {app['instances']} running"
    last = _failure(app["lastTaskFailure"], words, now) if "lastTaskFailure" in app else ()
    return Explanation("service", app["id"], summary, wrong, tuple(last))


def of_pod(view: Object, changes: Sequence[Object], item: Object | None, words: str, now: float) -> Explanation:
    status = view["status"]
    wrong = (*_waiting(view), *_deployments(changes, now), *_refusals(item), *_tasks(view["tasks"], now))
    stable = sum(instance["status"] == "STABLE" for instance in status["instances"])
    summary = f"{stable} of {status['spec']['scaling']['instances']} stable"
    last = [fact for ended in status["terminationHistory"][-1:] for fact in _ended_instance(ended, words, now)]
    return Explanation("pod", status["id"], summary, wrong, tuple(last))


def of_job(view: Object, last_failed: Object | None, words: str, now: float) -> Explanation:
    """`last_failed` is the last run that did not succeed."""
    runs, job = view["runs"], view["job"]
    wrong = [("waiting", sentence) for sentence in view["waiting"]]
    wrong += [("run", f"{run['id']}: {why}") for run in runs for why in causes(run)]
    wrong += list(_in_pipeline(view["pipeline"], job["id"]))
    last = [("passed over", f"schedule {each['id']}: {each['skipped']['reason']}") for each in _skipped(view)]
    if last_failed is not None:
        last += _failed_run(last_failed, words, now)
    return Explanation("job", job["id"], _when(view, now), tuple(wrong), tuple(last))


def _waiting(view: Object) -> Iterator[Fact]:
    return (("waiting", sentence) for sentence in view["waiting"])


def _deployments(changes: Sequence[Object], now: float) -> Iterator[Fact]:
    for found in changes:
        since = duration(now - epoch(found["since"]))
        yield "deployment", f"{found['id']}: {deployment.far(found)} after {since}"
        if found["canary"] is not None:
            yield "canary", "until it is promoted or cancelled"
        if found["deadline"] is not None:
            yield "deadline", f"in {duration(epoch(found['deadline']) - now)}: then it is rolled back"


def _refusals(item: Object | None) -> Iterator[Fact]:
    """The last word of each node."""
    offers = item.get("lastUnusedOffers", ()) if item is not None else ()
    said = {each["offer"]["agentId"]: each["message"] for each in offers}
    return (("refused", f"by {node}: {message}") for node, message in sorted(said.items()))


def _tasks(tasks: Sequence[Object], now: float) -> Iterator[Fact]:
    """Those that do not just run."""
    for task in tasks:
        ill = next((health for health in task["health"] if health["alive"] is False), None)
        unready = any(not each["ready"] for each in task["readiness"])
        if task["state"] != "RUNNING" or task["killing"] or ill or unready or task["paused"]:
            words = [state(task, now), *([f"ill: {ill['cause']}"] if ill else [])]
            words += ["not ready"] * unready + ["paused"] * bool(task["paused"])
            yield "task", f"{short(task['id'])} on {task['node']}: {'; '.join(words)}"


def _failure(failure: Object, words: str, now: float) -> Iterator[Fact]:
    ago = duration(now - epoch(failure["timestamp"]))
    yield "last failure", f"{ago} ago: {short(failure['taskId'])} on {failure['host']}: {failure['message']}"
    if words:
        yield "last words", words


def _ended_instance(ended: Object, words: str, now: float) -> Iterator[Fact]:
    yield (
        "last failure",
        f"{duration(now - epoch(ended['terminatedAt']))} ago: {ended['instanceID']}: {ended['message']}",
    )
    if words:
        yield "last words", words


def _failed_run(run: Object, words: str, now: float) -> Iterator[Fact]:
    ago = duration(now - epoch(run["completedAt"] or run["createdAt"]))
    yield "last failure", f"{ago} ago: {how(run)}"
    if words:
        yield "last words", words


def _in_pipeline(found: Object | None, job: str) -> Iterator[Fact]:
    """Why it was not its turn, in the last pipeline that it is part of."""
    if found is None or found["id"] is None:
        return
    for node in found["nodes"]:
        if node["job"] == job and node["state"] in ("WAITING", "BLOCKED", "SKIPPED", "FAILED"):
            why = pipeline.because(node) if node["reason"] else pipeline.word(node)
            yield "pipeline", ": ".join([str(found["id"]), "; ".join([why, *node["waiting"]])])


def _skipped(view: Object) -> list[Object]:
    return [each for each in view["schedules"] if each["skipped"]]


def _when(view: Object, now: float) -> str:
    runs = f"{len(view['runs'])} under way" if view["runs"] else "no run under way"
    dues = [f"{each['id']} {next_due(each, now)}" for each in view["schedules"]]
    return "; ".join([runs, *dues])
