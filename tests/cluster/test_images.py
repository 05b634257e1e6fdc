"""Services of images: through the API to a node, and back with the reason when the image can not be had."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.daemons import tepui
from lab.errors import LabError
from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, Unlike, eventually
from tests.images import Entry, busybox, layer, make, write_layout


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Of one node, that permits images below `tmp_path`."""
    with bed.started(1) as made:
        node = made.lab.node(made.names[0])
        with open(node.state / "agent.toml", "a", encoding="utf-8") as settings:
            settings.write(f'local_sources = ["{tmp_path}"]\n')
        made.lab.kill_daemon(node.name, "agent")
        eventually(partial(images_known, made), "the node is back")
        yield made
        made.await_empty()


def test_a_service_of_an_image_runs_with_what_was_fetched(cluster: Cluster, tmp_path: Path) -> None:
    made = make([layer(busybox()), layer([Entry("hello", b"hello")])], {"WorkingDir": "/srv", "User": "web"})
    write_layout(tmp_path / "layout", {"1": made})
    (tmp_path / "extra").write_text("extra")
    docker = {"image": f"oci:{tmp_path}/layout:1", "forcePullImage": True}
    look = "cat /hello $MESOS_SANDBOX/extra; pwd; id -u; exec sleep 3600"
    fetch = [{"uri": f"file://{tmp_path}/extra"}]
    container = {"type": "DOCKER", "docker": docker}
    cluster.run(bed.command("/image", look, instances=2, container=container, fetch=fetch))
    for task in cluster.await_running("/image", 2):
        eventually(partial(says, cluster, task, "helloextra/srv\n1000\n"), "it says what it sees")
    cluster.remove("/image")


def test_why_an_image_can_not_be_had_is_told(cluster: Cluster, tmp_path: Path) -> None:
    reasons = {
        f"oci:{tmp_path}/nothing:1": "no OCI layout",
        "oci:/etc:1": "not authorised",
        "registry.invalid/web:1@sha256:x": "is no digest",
    }
    for number, (image, reason) in enumerate(reasons.items()):
        app = f"/fails{number}"
        cluster.run(bed.command(app, "true", container={"docker": {"image": image}}))
        failure = eventually(partial(failed, cluster, app), "a failure is told")
        assert failure["state"] == "TASK_ERROR" and reason in failure["message"]
        cluster.remove(app)


def test_a_pod_of_images_shares_a_volume_and_keeps_it_when_its_agent_is_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    write_layout(tmp_path / "layout", {"1": make([layer(busybox())], {"Entrypoint": ["sh", "-c"], "User": "web"})})
    (tmp_path / "extra").write_text("extra")
    write = "cat $MESOS_SANDBOX/extra > /work/note; sleep 3600"
    read = "until [ -s /work/note ]; do sleep 0.1; done; cat /work/note; id -u; touch /work/x || sleep 3600"
    pod = {
        "id": "/pod",
        "networks": [{"mode": "container", "name": "overlay"}],
        "volumes": [{"name": "work"}],
        "containers": [
            container(tmp_path, "writer", write, artifacts=[{"uri": f"file://{tmp_path}/extra"}]),
            container(tmp_path, "reader", read, read_only=True),
        ],
    }
    cluster.call("POST", "/v2/pods", json=pod)
    tasks = cluster.await_running("/pod", 2)
    (reader,) = (task for task in tasks if task.endswith(".reader"))
    says_all = partial(says, cluster, reader, "extra1000\ntouch: /work/x: Read-only file system\n")
    eventually(says_all, "it says what it sees")
    (node,) = cluster.names
    cluster.lab.kill_daemon(node, "agent")
    eventually(lambda: cluster.connected() == {node}, "the agent is back")
    assert bed.same(tasks, cluster.await_running("/pod", 2))
    cluster.call("DELETE", "/v2/pods/pod?force=true")
    eventually(lambda: not cluster.tasks(), "the pod is gone")


def container(images: Path, name: str, script: str, read_only: bool = False, **fields: Any) -> Json:
    """Of a pod: what its image's entrypoint is given, and the volume."""
    return {
        "name": name,
        "image": {"kind": "DOCKER", "id": f"oci:{images}/layout:1"},
        "exec": {"command": {"argv": [script]}},
        "resources": {"cpus": 0.1, "mem": 32},
        "volumeMounts": [{"name": "work", "mountPath": "/work", "readOnly": read_only}],
        **fields,
    }


def images_known(cluster: Cluster) -> bool:
    """The node answers: its agent has begun anew, for the session with the old one is over."""
    answer = cluster.request("GET", "/api/v1/images")
    return answer.is_success and not answer.json()["errors"]


def says(cluster: Cluster, task: str, text: str) -> bool:
    written = cluster.log_of(task) + cluster.log_of(task, "stderr")
    if written != text:
        raise Unlike(written)
    return True


def failed(cluster: Cluster, app: str) -> Json:
    failure: Json = cluster.get(f"/v2/apps{app}")["app"].get("lastTaskFailure") or {}
    return failure


def test_images_are_pulled_listed_removed_and_pruned_on_nodes(cluster: Cluster, tmp_path: Path) -> None:
    made = make([layer(busybox())], {"Cmd": ["sleep", "3600"]})
    write_layout(tmp_path / "layout", {"1": made, "2": make([layer([Entry("b", b"b")])])})
    names = [f"oci:{tmp_path}/layout:{tag}" for tag in ("1", "2")]
    for name in names:
        (pulled,) = tepui(cluster.lab, "image", "pull", name)
        assert pulled["done"]["image"]["reference"] == name
    cluster.run(bed.app_json("/image", container={"docker": {"image": names[0]}}))
    (task,) = cluster.await_running("/image", 1)
    listed = {image["reference"]: image["tasks"] for image in tepui(cluster.lab, "image", "list")}
    assert listed == {names[0]: [task], names[1]: []}
    with pytest.raises(LabError, match=f"is in use by {task}"):
        tepui(cluster.lab, "image", "remove", names[0])
    with pytest.raises(LabError, match="no OCI layout"):
        tepui(cluster.lab, "image", "pull", f"oci:{tmp_path}/nothing:1")
    tepui(cluster.lab, "image", "prune")
    assert [image["reference"] for image in tepui(cluster.lab, "image", "list")] == names[:1]
    cluster.remove("/image")
    eventually(lambda: not cluster.tasks(), "the task is gone")
    tepui(cluster.lab, "image", "remove", names[0])
    assert tepui(cluster.lab, "image", "list") == []
