"""Pipelines: a run of a job, and of all that depend on it. Pure.

The graph is fixed when the run of it begins. `advance` says what becomes of the jobs that wait, `begin` and `rerun`
which there are. Nothing here is done twice: a node that was started, blocked or skipped stays so until somebody asks
for the failed ones to be run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from frameworks.jobs.run import FAILED, KILLED, SUCCESS
from model.codec import Codec

WAITING, RUNNING, BLOCKED, SKIPPED = "WAITING", "RUNNING", "BLOCKED", "SKIPPED"
UNSUCCESSFUL = (FAILED, KILLED, BLOCKED)
RUNS_KEPT = 20  # of pipelines that begin with one job

Graph = Mapping[str, Iterable[str]]


@dataclass(frozen=True, slots=True)
class Node:
    """`dependencies` are nodes of the same pipeline, `outside` are jobs that are not. `run` is the last one's id."""

    job: str
    dependencies: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    state: str = WAITING
    run: str = ""
    reason: str = ""
    started: float | None = None
    completed: float | None = None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """`nodes` come before those that depend on them. `stopped` says why it was; times are seconds since the epoch."""

    id: str
    job: str
    created: float
    nodes: tuple[Node, ...]
    completed: float | None = None
    schedule: str = ""
    due: float | None = None
    reruns: int = 0
    stopped: str = ""

    @property
    def over(self) -> bool:
        return all(node.state not in (WAITING, RUNNING) for node in self.nodes)

    @property
    def state(self) -> str:
        if not self.over:
            return "ACTIVE"
        if self.stopped:
            return KILLED
        return FAILED if any(node.state in UNSUCCESSFUL for node in self.nodes) else SUCCESS

    @property
    def run(self) -> str:
        """The id of the runs that it makes now."""
        return f"{self.id}-{self.reruns + 1}" if self.reruns else self.id

    def node(self, job: str) -> Node | None:
        return next((node for node in self.nodes if node.job == job), None)

    def with_node(self, node: Node) -> Pipeline:
        return replace(self, nodes=tuple(node if each.job == node.job else each for each in self.nodes))


CODEC = Codec(Pipeline)


def nodes_of(root: str, dependencies: Graph, dependents: Graph) -> tuple[Node, ...]:
    """The job and all that depend on it, in an order in which they can be run. That the first one has dependencies of
    its own does not matter: it is what somebody asked for."""
    order: list[str] = []
    seen: set[str] = set()
    stack = [(root, iter(sorted(dependents.get(root, ()))))]
    seen.add(root)
    while stack:  # depth first, without recursion: chains may be long
        job, rest = stack[-1]
        following = next((each for each in rest if each not in seen), None)
        if following is None:
            order.append(job)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(sorted(dependents.get(following, ())))))
    return tuple(_node(job, root, seen, dependencies) for job in reversed(order))


def _node(job: str, root: str, members: set[str], dependencies: Graph) -> Node:
    named = () if job == root else tuple(dependencies.get(job, ()))
    inside = tuple(each for each in named if each in members)
    return Node(job, inside, tuple(each for each in named if each not in members))


def cycle(job: str, depends_on: Iterable[str], dependencies: Graph) -> list[str]:
    """A way from the job back to itself, were it to depend on these; empty when there is none."""
    ways: dict[str, str] = {}
    waiting = [(each, job) for each in depends_on]
    while waiting:
        at, source = waiting.pop()
        if at == job:
            way = [job]
            while source != job:
                way.append(source)
                source = ways[source]
            return [job, *reversed(way[1:]), job]
        if at not in ways:
            ways[at] = source
            waiting += [(each, at) for each in dependencies.get(at, ())]
    return []


def ended(pipeline: Pipeline, job: str, run: str, status: str, reason: str, now: float) -> Pipeline:
    """A run of it is over. One that is not the node's last says nothing any more."""
    node = pipeline.node(job)
    if node is None or node.run != run or node.state != RUNNING:
        return pipeline
    return pipeline.with_node(replace(node, state=status, reason=reason, completed=now))


# Why a node whose dependencies succeeded does not start: its state then, and the reason; None: it does.
Obstacle = Callable[[Node], tuple[str, str] | None]


def advance(pipeline: Pipeline, obstacle: Obstacle, now: float) -> tuple[Pipeline, list[str]]:
    """What becomes of the nodes that wait, and the jobs that are to be started now."""
    starting: list[str] = []
    known = {node.job: node for node in pipeline.nodes}
    for node in pipeline.nodes:
        if node.state == WAITING:
            known[node.job] = _advanced(node, known, pipeline, obstacle, now)
            if known[node.job].state == RUNNING:
                starting.append(node.job)
    advanced = replace(pipeline, nodes=tuple(known.values()))
    return replace(advanced, completed=now if advanced.over else None), starting


def _advanced(node: Node, known: Mapping[str, Node], pipeline: Pipeline, obstacle: Obstacle, now: float) -> Node:
    before = [known[each] for each in node.dependencies]
    if pipeline.stopped:
        return replace(node, state=BLOCKED, reason=pipeline.stopped)
    for each in before:
        if each.state in UNSUCCESSFUL:
            return replace(node, state=BLOCKED, reason=_because_of(each))
    for each in before:
        if each.state == SKIPPED:
            return replace(node, state=SKIPPED, reason=f"{each.job} was skipped")
    if any(each.state != SUCCESS for each in before):
        return node
    if (found := obstacle(node)) is not None:
        return replace(node, state=found[0], reason=found[1])
    return replace(node, state=RUNNING, run=pipeline.run, started=now, reason="", completed=None)


def _because_of(node: Node) -> str:
    words = {FAILED: "failed", KILLED: "was killed", BLOCKED: "did not start"}[node.state]
    return f"{node.job} {words}"


def again(pipeline: Pipeline) -> Pipeline | None:
    """With all that did not succeed waiting once more; None when there is nothing of the kind."""
    if not any(node.state in UNSUCCESSFUL for node in pipeline.nodes):
        return None
    nodes = tuple(
        replace(node, state=WAITING, reason="", started=None, completed=None) if node.state in UNSUCCESSFUL else node
        for node in pipeline.nodes
    )
    return replace(pipeline, nodes=nodes, reruns=pipeline.reruns + 1, stopped="", completed=None)


def stopped(pipeline: Pipeline, reason: str) -> Pipeline:
    """Nothing of it is started any more."""
    return replace(pipeline, stopped=reason)


def waits_for(node: Node, pipeline: Pipeline) -> list[str]:
    """In sentences."""
    if node.state != WAITING:
        return []
    known = {each.job: each for each in pipeline.nodes}
    return [f"waits for {each} to succeed" for each in node.dependencies if known[each].state != SUCCESS]
