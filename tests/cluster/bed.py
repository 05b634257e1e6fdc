"""A cluster to test: a lab, the master's REST interface as seen from the master's node, and waiting with a deadline.

Requests go straight to the API, over one connection that was made in the network namespace of the master. What they
answer is JSON as the API documents it; tasks are told apart by their ids.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from uuid import uuid4

import httpx2

from lab.cluster import MASTER, Lab
from lab.daemons import NO_SETTINGS, Settings, admin_file, start_cluster, start_master
from tests.cluster import traces

ROOT = Path(__file__).parents[2]
WEB = ROOT / "examples/web.json"
REQUEST_DEADLINE_S = 10.0
DEADLINE_S = 30.0
ANSWER_DEADLINE_S = 2.0
POLL_S = 0.02

Json = dict[str, Any]
Tasks = dict[str, Json]  # by id
Result = TypeVar("Result")


class Unlike(Exception):
    """What was seen instead."""


def eventually(condition: Callable[[], Result | None], what: str, deadline_s: float = DEADLINE_S) -> Result:
    """What `condition` returns when it is true at last. A master that does not answer makes it false."""
    end = time.monotonic() + deadline_s
    reason = ""
    while True:
        try:
            if result := condition():
                return result
        except (httpx2.TransportError, Unlike) as error:
            reason = f" ({error!r})"
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}{reason}"
        time.sleep(POLL_S)


def stays(condition: Callable[[], object], what: str, for_s: float) -> None:
    """That something does not happen can only be seen by looking for a while."""
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        assert condition(), f"was not true for {for_s:g} s: {what}"
        time.sleep(POLL_S)


@contextmanager
def started(
    nodes: int, settings: Settings = NO_SETTINGS, agents: Mapping[str, Settings] = MappingProxyType({})
) -> Iterator[Cluster]:
    """A cluster of that many connected nodes, until the block ends. `settings` are variables of the master's, `agents`
    those of nodes' agents."""
    lab = Lab(new_name())
    try:
        start_cluster(lab, nodes, settings, agents)
        with _connected(lab) as cluster:
            yield cluster
    finally:
        lab.down()


@contextmanager
def without_agents(nodes: int, uses: int) -> Iterator[tuple[Cluster, str]]:
    """A master, nodes that have not joined, and a token for `uses` of them."""
    lab = Lab(new_name())
    try:
        lab.up(nodes)
        token = start_master(lab, uses)
        with _connected(lab) as cluster:
            yield cluster, token
    finally:
        lab.down()


def new_name() -> str:
    return f"c-{uuid4().hex[:10]}"


@dataclass(frozen=True, slots=True)
class Cluster:
    """`names` are the nodes', without the master's."""

    lab: Lab
    api: httpx2.Client = field(repr=False)
    server_name: str = field(repr=False)

    @property
    def names(self) -> list[str]:
        return [node.name for node in self.lab.nodes() if node.name != MASTER]

    def request(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        extensions = {"sni_hostname": self.server_name}
        send = partial(self.api.request, method, path, extensions=extensions, **arguments)
        return self.lab.within(MASTER, send)

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """The answer's body, of a request that must succeed."""
        response = self.request(method, path, **arguments)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json()

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def run(self, definition: Json) -> str:
        """Returns the app's id."""
        return str(self.call("POST", "/v2/apps", json=definition)["id"])

    def scale(self, app: str, instances: int) -> None:
        """Also while its last deployment is under way."""
        self.call("PUT", f"/v2/apps{app}?force=true", json={"instances": instances})

    def remove(self, app: str) -> None:
        self.call("DELETE", f"/v2/apps{app}?force=true")

    def tasks(self) -> Tasks:
        return {task["id"]: task for task in self.get("/api/v1/tasks")["tasks"]}

    def running(self, app: str) -> Tasks:
        """Those of the app that run and are to go on."""
        return {
            task["id"]: task
            for task in self.tasks().values()
            if task["owner"] == app and task["state"] == "RUNNING" and not task["killing"]
        }

    def await_running(self, app: str, instances: int, deadline_s: float = DEADLINE_S) -> Tasks:
        """The tasks of the app, when exactly that many run and none is on its way in or out."""

        def settled() -> Tasks | None:
            own = [task for task in self.tasks().values() if task["owner"] == app]
            running = self.running(app)
            return running if len(running) == len(own) == instances else None

        return eventually(settled, f"{instances} tasks of {app} run", deadline_s) or {}

    def await_replaced(self, app: str, victims: set[str], instances: int, deadline_s: float = DEADLINE_S) -> Tasks:
        """As `await_running`, with none of `victims` among them."""
        eventually(lambda: not victims & self.tasks().keys(), f"{app} has lost {len(victims)} tasks", deadline_s)
        return self.await_running(app, instances, deadline_s)

    def await_deployed(self, app: str, deadline_s: float = DEADLINE_S) -> None:
        """It is as it was asked to be, and locked no more."""
        path = f"/v2/apps{app}"
        eventually(lambda: self.get(path)["app"]["deployments"] == [], f"{app} is deployed", deadline_s)

    def vip(self, app: str) -> Json:
        """With its `address`, `port` and `backends`; empty when there is none."""
        for vip in self.get("/api/v1/vips")["vips"]:
            if vip["name"].endswith(app):
                return dict(vip)
        return {}

    def backends(self, app: str) -> set[str]:
        return {backend["task_id"] for backend in self.vip(app).get("backends", ())}

    def await_served(self, app: str, tasks: Tasks, nodes: Sequence[str] = ()) -> tuple[str, int]:
        """The address and port of the app's VIP, once all of the tasks, and no others, answer there on every node (or
        on these). That a task runs does not mean that it listens already."""
        vip = self.await_listening(app, tasks, nodes)
        target = vip["address"], vip["port"]
        for node in nodes or self.names:
            eventually(partial(self._answered_by, node, target, tasks), f"{node} reaches all backends at {target}")
        return target

    def await_listening(self, app: str, tasks: Tasks, nodes: Sequence[str] = ()) -> Json:
        """The app's VIP, once it has all of the tasks, and no others, and each node (or these) reaches them."""
        eventually(lambda: self.backends(app) == tasks.keys(), f"{app} is served by {len(tasks)} tasks")
        vip = self.vip(app)
        for node in nodes or self.names:
            eventually(partial(self._all_listen, node, vip), f"all backends listen for {node}")
        return vip

    def await_vips(self) -> None:
        """All nodes have all of them."""
        eventually(lambda: not any(vip["behind"] for vip in self.get("/api/v1/vips")["vips"]), "all nodes have them")

    def _all_listen(self, node: str, vip: Json) -> bool:
        targets = [(backend["address"], backend["port"]) for backend in vip["backends"]]
        return all(self.lab.within(node, partial(listens, target)) for target in targets)

    def _answered_by(self, node: str, target: tuple[str, int], tasks: Tasks) -> bool:
        """With so many tries, that one of the tasks is missed by chance happens once in thousands of times."""
        answers = [self.lab.within(node, partial(ask, target)) for _ in range(10 * len(tasks))]
        return set(answers) == tasks.keys()

    def nodes(self) -> dict[str, Json]:
        return {node["id"]: node for node in self.get("/api/v1/nodes")["nodes"]}

    def connected(self) -> set[str]:
        return {name for name, node in self.nodes().items() if node["connected"]}

    def log_of(self, task: str, stream: str = "stdout") -> str:
        """Empty while its node is away."""
        response = self.request("GET", f"/api/v1/tasks/{task}/log", params={"stream": stream})
        assert response.status_code in (200, 502), f"log of {task}: {response.status_code} {response.text}"
        return response.text if response.is_success else ""

    def ask_in_container(self, program: str, *arguments: str) -> Any:
        """What a Python program that runs in a container of its own prints, which must be JSON."""
        argv = ["/usr/bin/python3", "-c", program + "\nimport time; time.sleep(3600)", *arguments]
        app = self.run(app_json("/client", args=argv, cpus=0.5, mem=64))
        (task,) = self.await_running(app, 1)
        return json.loads(eventually(lambda: self.log_of(task), "the program in the container has an answer"))

    def await_traces(self, node: str) -> None:
        """Returns when there is on the node what belongs to the tasks that run there, and nothing else."""

        def compared() -> bool:
            tasks = frozenset(task["id"] for task in self.tasks().values() if task["node"] == node)
            seen = traces.read(self.lab, node)
            if seen != traces.of(tasks):
                raise Unlike(f"{node} should run {sorted(tasks)}: {seen}")
            return True

        eventually(compared, f"traces on {node}")

    def await_empty(self) -> None:
        """Remove every app. Returns when the nodes are all there, and nothing is left of any task."""
        eventually(lambda: self.connected() == set(self.names), "all nodes are connected")
        for app in self.get("/v2/apps")["apps"]:
            self.remove(app["id"])
        eventually(lambda: not self.tasks(), "no task is left")
        for name in self.names:
            self.await_traces(name)


@contextmanager
def _connected(lab: Lab) -> Iterator[Cluster]:
    """With the administrator's credentials."""
    who = admin(lab)
    with httpx2.Client(
        base_url=who["url"],
        verify=ssl.create_default_context(cadata=who["ca"]),
        trust_env=False,
        timeout=REQUEST_DEADLINE_S,
        headers={"Authorization": f"Bearer {who['token']}"},
    ) as api:
        yield Cluster(lab, api, who["server_name"])


def admin(lab: Lab) -> Json:
    """The administrator's credentials: `url`, `ca`, `server_name` and `token`."""
    return dict(json.loads(admin_file(lab).read_text()))


def web(instances: int, app: str = "/web", **fields: object) -> Json:
    """The example's HTTP server, which answers with the id of its task, behind a VIP of the app's name and port 80."""
    definition: Json = json.loads(WEB.read_text())
    definition["container"]["portMappings"][0]["labels"] = {"VIP_0": f"{app}:80"}
    return {**definition, "id": app, "instances": instances, **fields}


def checked(instances: int) -> Json:
    """As `web`; no task is behind the VIP before it listens."""
    check = {"protocol": "TCP", "portIndex": 0, "intervalSeconds": 1, "gracePeriodSeconds": 30}
    return web(instances, healthChecks=[check])


def command(app: str, line: str, instances: int = 1, **fields: object) -> Json:
    """An app that runs a line of shell."""
    return app_json(app, cmd=line, instances=instances, **fields)


def app_json(app: str, **fields: object) -> Json:
    """A small app without ports, which gets little time to end."""
    small: Json = {"cpus": 0.05, "mem": 32, "taskKillGracePeriodSeconds": 0.2}
    return {"id": app, "networks": [{"mode": "container", "name": "overlay"}], **small, **fields}


def ask(target: tuple[str, int]) -> str:
    """Which task answers there; empty when none does."""
    connection = http.client.HTTPConnection(*target, timeout=ANSWER_DEADLINE_S)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def listens(target: tuple[str, int]) -> bool:
    try:
        socket.create_connection(target, ANSWER_DEADLINE_S).close()
    except OSError:
        return False
    return True


def same(before: Tasks, after: Tasks) -> bool:
    """Whether no task came, went, or became another process at another address."""
    kept = ("node", "pid", "addresses")
    return before.keys() == after.keys() and all(
        before[task][field] == after[task][field] for task in before for field in kept
    )
