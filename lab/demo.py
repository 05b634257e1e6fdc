"""The demonstration: what Tepui is for, done and checked on a lab of three nodes.

Every figure that is shown was read from where it is true (the kernel's cgroup files, the answers to requests), and
every step raises LabError when what it shows did not happen.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lab.cluster import Lab
from lab.daemons import connected, start_cluster, tepui, wait_until
from lab.errors import LabError

NAME = "demo"
NODES = 3
REQUESTS = 200
RUNNING_DEADLINE_S = 30.0
VIP_DEADLINE_S = 1.0  # for a dead backend to leave
WEB = Path(__file__).parents[1] / "examples/web.json"

# Runs in a container and on a node: REQUESTS requests, each on a new connection, counted by who answered.
CLIENT = """
import collections, http.client, json, sys
counts, failures = collections.Counter(), 0
for _ in range(int(sys.argv[3])):
    connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=5)
    try:
        connection.request("GET", "/")
        counts[connection.getresponse().read().decode()] += 1
    except OSError:
        failures += 1
    finally:
        connection.close()
print(json.dumps({"counts": counts, "failures": failures}), flush=True)
"""

console = Console(highlight=False, emoji=False, soft_wrap=True)
Tasks = dict[str, dict[str, Any]]  # by id


def run(lab: Lab, keep: bool) -> None:
    """Raises LabError, or ends with "demo: ok". Whatever an earlier one left is removed first."""
    begin = time.monotonic()
    lab.down()
    try:
        _step(f"start a master and {NODES} nodes", lambda: start_cluster(lab, NODES))
        _show(lab)
    except BaseException:
        lab.down()
        raise
    if not keep:
        lab.down()
    console.print(f"[bold green]demo: ok[/] ({time.monotonic() - begin:.0f} s)")


def _show(lab: Lab) -> None:
    _step("deploy examples/web.json: 4 instances behind the virtual address /web:80", lambda: _deploy(lab))
    tasks = running(lab, "/web")
    _print_tasks(tasks)
    _check_limits(lab, tasks)
    vip = _vip(lab)
    address, port = vip["address"], vip["port"]
    node, counts = _requests_of_container(lab, address, port)
    _print_counts(f"{REQUESTS} requests to {address}:{port} from a container on {node}", counts, tasks)
    counts = requests_from_node(lab, "n1", address, port)
    _print_counts(f"{REQUESTS} requests to it from node n1 itself", counts, tasks)
    _kill_container(lab, tasks)
    _kill_agent(lab, address, port)


def running(lab: Lab, owner: str) -> Tasks:
    """The tasks of `owner` that run and are to go on."""
    return {
        task["id"]: task
        for task in tepui(lab, "task", "list")
        if task["owner"] == owner and task["state"] == "RUNNING" and not task["killing"]
    }


def requests_from_node(lab: Lab, node: str, address: str, port: int, count: int = REQUESTS) -> Counter[str]:
    """Who answered how often. Raises LabError when a request failed."""
    done = lab.exec(node, ["/usr/bin/python3", "-c", CLIENT, address, str(port), str(count)])
    if done.returncode != 0:
        raise LabError(f"requests from {node}: {done.stderr}")
    return _counts(f"requests from {node}", done.stdout)


def backends(lab: Lab) -> set[str]:
    return {backend["task_id"] for backend in _vip(lab)["backends"]}


def _deploy(lab: Lab) -> None:
    tepui(lab, "service", "run", str(WEB))
    wait_until(lambda: len(running(lab, "/web")) == 4, "4 instances of /web run", RUNNING_DEADLINE_S)
    wait_until(lambda: backends(lab) == running(lab, "/web").keys(), "all of them are backends", RUNNING_DEADLINE_S)


def _check_limits(lab: Lab, tasks: Tasks) -> None:
    """What the table says must be what the definition asks for, and what the kernel says once more, by itself."""
    wanted = {"cpus": 0.1, "mem_bytes": 64 * 2**20}
    for task in tasks.values():
        limits = {key: task["limits"][key] for key in wanted}
        if limits != wanted:
            raise LabError(f"{task['id']}: the kernel's limits are {limits}, asked for was {wanted}")
        if task["limits"]["pids"] is None:
            raise LabError(f"{task['id']}: the kernel does not limit its processes")
    console.print("  limits: as read back from the kernel's cgroup files, and as asked for")


def _requests_of_container(lab: Lab, address: str, port: int) -> tuple[str, Counter[str]]:
    """The node that the client was placed on, and who answered it how often."""
    definition = {
        "id": "/client",
        "args": ["/usr/bin/python3", "-c", CLIENT + "import time; time.sleep(3600)", address, str(port), str(REQUESTS)],
        "cpus": 0.1,
        "mem": 64,
        "networks": [{"mode": "container", "name": "overlay"}],
    }
    path = lab.node("master").state / "client.json"
    path.write_text(json.dumps(definition))
    tepui(lab, "service", "run", str(path))
    wait_until(lambda: len(running(lab, "/client")) == 1, "the client runs", RUNNING_DEADLINE_S)
    (client,) = running(lab, "/client").values()
    wait_until(lambda: output(lab, client["id"]) != "", "the client has finished", RUNNING_DEADLINE_S)
    counts = _counts("requests from a container", output(lab, client["id"]))
    tepui(lab, "service", "remove", "/client")
    return client["node"], counts


def output(lab: Lab, task: str) -> str:
    """What the task wrote to its stdout, fetched through the master."""
    return str(tepui(lab, "task", "log", task)["output"])


def _kill_container(lab: Lab, before: Tasks) -> None:
    victim = min(before.values(), key=lambda task: str(task["id"]))
    console.print(f"\n[bold]kill container[/] {_short(victim['id'])} (pid {victim['pid']} on {victim['node']})")
    lab.exec(victim["node"], ["kill", "-9", str(victim["pid"])])
    begin = time.monotonic()
    wait_until(lambda: victim["id"] not in backends(lab), "the dead container is no backend", VIP_DEADLINE_S)
    console.print(f"  no backend any more after {time.monotonic() - begin:.2f} s")
    wait_until(lambda: len(running(lab, "/web")) == 4, "4 instances of /web run again", RUNNING_DEADLINE_S)
    after = running(lab, "/web")
    _same_pids(before, after, but=victim["id"])
    (replacement,) = after.keys() - before.keys()
    console.print(
        f"  replaced by {_short(replacement)} after {time.monotonic() - begin:.1f} s; the other 3 keep their pids"
    )


def _kill_agent(lab: Lab, address: str, port: int) -> None:
    before = running(lab, "/web")
    console.print("\n[bold]kill the agent[/] of n1 with SIGKILL")
    lab.kill_daemon("n1", "agent")
    counts = requests_from_node(lab, "n1", address, port)
    wait_until(lambda: "n1" in connected(lab), "n1 has a session again", RUNNING_DEADLINE_S)
    after = running(lab, "/web")
    if after.keys() != before.keys():
        raise LabError(f"tasks changed with the agent: {sorted(before)} became {sorted(after)}")
    _same_pids(before, after)
    console.print(f"  restarted and connected again; all {len(after)} containers keep their pids")
    _print_counts(f"{REQUESTS} requests meanwhile, none failed", counts, after)


def _same_pids(before: Tasks, after: Tasks, but: str = "") -> None:
    for task_id in before.keys() - {but}:
        now = after.get(task_id, {}).get("pid")
        if now != before[task_id]["pid"]:
            raise LabError(f"{task_id}: was pid {before[task_id]['pid']}, now {now}")


def _vip(lab: Lab) -> Any:
    for vip in tepui(lab, "vip", "list"):
        if vip["name"].endswith("/web"):
            return vip
    raise LabError("there is no virtual address for /web")


def _counts(what: str, printed: str) -> Counter[str]:
    answer = json.loads(printed)
    if answer["failures"]:
        raise LabError(f"{what}: {answer['failures']} failed")
    return Counter(answer["counts"])


def _step(what: str, step: Callable[[], None]) -> None:
    console.print(f"\n[bold]{what}[/]")
    begin = time.monotonic()
    step()
    console.print(f"  done in {time.monotonic() - begin:.1f} s")


def _print_tasks(tasks: Tasks) -> None:
    table = Table("TASK", "NODE", "ADDRESS", "PID", "CPUS", "MEM", "PIDS", box=None, header_style="bold")
    for task_id, task in tasks.items():
        limits = task["limits"]
        memory = f"{limits['mem_bytes'] // 2**20} MiB"
        address = ", ".join(task["addresses"])
        table.add_row(
            _short(task_id), task["node"], address, str(task["pid"]), f"{limits['cpus']:g}", memory, str(limits["pids"])
        )
    console.print(table)


def _print_counts(what: str, counts: Counter[str], tasks: Tasks) -> None:
    console.print(f"\n[bold]{what}[/]")
    for task_id, count in sorted(counts.items()):
        console.print(f"  {count:4} by {_short(task_id)} on {tasks[task_id]['node']}")


def _short(task_id: str) -> str:
    """Enough to tell tasks apart: the app and the beginning of the rest."""
    return task_id[: task_id.index("-")]
