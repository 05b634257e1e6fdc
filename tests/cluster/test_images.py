"""Services of images: through the API to a node, and back with the reason when the image can not be had."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

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
        eventually(lambda: made.connected() == {node.name}, "the node is back")
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


def says(cluster: Cluster, task: str, text: str) -> bool:
    written = cluster.log_of(task) + cluster.log_of(task, "stderr")
    if written != text:
        raise Unlike(written)
    return True


def failed(cluster: Cluster, app: str) -> Json:
    failure: Json = cluster.get(f"/v2/apps{app}")["app"].get("lastTaskFailure") or {}
    return failure
