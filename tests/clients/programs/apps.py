"""Apps: made, read, listed, changed, scaled, started again, their versions, and removed."""

from __future__ import annotations

from datetime import UTC, datetime

from marathon import MarathonClient, MarathonHttpError, NotFoundError
from marathon.exceptions import ConflictError
from marathon.models import MarathonApp, MarathonConstraint
from marathon.models.container import MarathonContainer, MarathonContainerPortMapping

from tests.clients.programs.session import connected, deployed, refused, small

ID = "/team/shop"


def main() -> None:
    client = connected()
    create(client)
    lists(client)
    update(client)
    versions(client)
    scale(client)
    restart(client)
    replace_what_was_read(client)
    change_many(client)
    refuse(client)
    delete(client)


def create(client: MarathonClient) -> None:
    mapping = MarathonContainerPortMapping(name="http", container_port=8080, labels={"VIP_0": "/shop:80"})
    app = small(
        instances=2,
        env={"LEVEL": "high"},
        labels={"team": "sales", "tier": "web"},
        constraints=[MarathonConstraint("hostname", "UNIQUE")],
        container=MarathonContainer(type="MESOS", port_mappings=[mapping]),
        health_checks=[],
    )
    created = client.create_app(ID, app)
    assert isinstance(created, MarathonApp) and created.id == ID
    assert (created.cpus, created.mem, created.instances) == (0.05, 32, 2)
    assert created.deployments[0].id and created.tasks_running == 0
    found = deployed(client, ID, 2)
    assert found.env == {"LEVEL": "high"} and found.labels == {"team": "sales", "tier": "web"}
    assert found.container.port_mappings[0].container_port == 8080
    assert len({task.host for task in found.tasks}) == 2, "UNIQUE was not held"
    assert all(task.app_id == ID and task.state == "TASK_RUNNING" for task in found.tasks)
    assert found.version_info.last_config_change_at <= datetime.now(UTC)


def lists(client: MarathonClient) -> None:
    client.create_app("/other", small(cmd="exec sleep 4242", labels={"team": "stock"}))
    deployed(client, "/other", 1)

    def ids(**which: object) -> list[str]:
        return sorted(app.id for app in client.list_apps(**which))

    assert ids() == ["/other", ID]
    assert ids(cmd="4242") == ["/other"] and ids(app_id="shop") == [ID]
    assert ids(label="team==sales") == [ID] and ids(label="team!=sales") == ["/other"]
    assert ids(label="team in (sales, stock)") == ["/other", ID] and ids(label="tier") == [ID]
    assert ids(instances=2) == [ID]
    (plain,) = client.list_apps(app_id="shop")
    assert plain.tasks == []
    (full,) = client.list_apps(
        app_id="shop",
        embed_tasks=True,
        embed_counts=True,
        embed_deployments=True,
        embed_readiness=True,
        embed_last_task_failure=True,
        embed_failures=True,
        embed_task_stats=True,
    )
    assert len(full.tasks) == full.tasks_running == 2 and full.deployments == []
    alone = client.get_app(ID, embed_tasks=True, embed_counts=True, embed_deployments=True, embed_readiness=True)
    assert len(alone.tasks) == 2
    client.delete_app("/other")


def update(client: MarathonClient) -> None:
    """What the change does not say stays as it is."""
    before = client.get_app(ID)
    answer = client.update_app(ID, MarathonApp(env={"LEVEL": "low"}))
    assert set(answer) == {"deploymentId", "version"}
    after = deployed(client, ID, 2)
    assert after.env == {"LEVEL": "low"} and after.cmd == before.cmd and after.labels == before.labels
    assert after.version == answer["version"]
    assert not {task.id for task in before.tasks} & {task.id for task in after.tasks}


def versions(client: MarathonClient) -> None:
    newest, *_, oldest = client.list_versions(ID)
    assert client.get_version(ID, oldest).env == {"LEVEL": "high"}
    assert client.get_version(ID, newest).env == {"LEVEL": "low"}
    assert client.get_app(ID).version == newest
    client.update_app(ID, MarathonApp(labels={"team": "sales"}))
    deployed(client, ID, 2)
    assert len(client.list_versions(ID)) == 3


def scale(client: MarathonClient) -> None:
    before = client.get_app(ID)
    client.scale_app(ID, instances=3)
    assert {task.id for task in before.tasks} < {task.id for task in deployed(client, ID, 3).tasks}
    client.scale_app(ID, delta=-2, force=True)
    deployed(client, ID, 1)
    error = refused(MarathonHttpError, lambda: client.scale_app(ID, delta=-10))
    assert [detail["path"] for detail in error.error_details] == ["/instances"]
    client.scale_app(ID, instances=0)
    deployed(client, ID, 0)
    client.scale_app(ID, instances=2)
    deployed(client, ID, 2)


def restart(client: MarathonClient) -> None:
    before = client.get_app(ID)
    assert client.restart_app(ID, force=True)["deploymentId"]
    after = deployed(client, ID, 2)
    assert not {task.id for task in before.tasks} & {task.id for task in after.tasks} and after.env == before.env


def replace_what_was_read(client: MarathonClient) -> None:
    """With everything that only answers have in it, and everything that is empty."""
    before = client.get_app(ID)
    for minimal in True, False:
        client.update_app(ID, client.get_app(ID), minimal=minimal)
        after = deployed(client, ID, 2)
        assert {task.id for task in after.tasks} == {task.id for task in before.tasks}, "nothing was to change"


def change_many(client: MarathonClient) -> None:
    apps = [MarathonApp(id=ID, instances=1), small(id="/team/new", labels={"is": "new"})]
    assert client.update_apps(apps)["deploymentId"]
    deployed(client, ID, 1)
    assert deployed(client, "/team/new", 1).labels == {"is": "new"}
    client.delete_app("/team/new")


def refuse(client: MarathonClient) -> None:
    error = refused(MarathonHttpError, lambda: client.create_app("/bad", small(cpus=-1)))
    assert error.status_code == 422 and error.error_message == "Object is not valid"
    assert [detail["path"] for detail in error.error_details] == ["/cpus"]
    assert refused(ConflictError, lambda: client.create_app(ID, small())).status_code == 409
    for call in (
        lambda: client.get_app("/none"),
        lambda: client.restart_app("/none"),
        lambda: client.delete_app("/none"),
        lambda: client.list_versions("/none"),
        lambda: client.get_version(ID, "2015-02-11T09:31:50.021Z"),
    ):
        error = refused(NotFoundError, call)
        assert error.status_code == 404 and "/none" in error.error_message + "/none"


def delete(client: MarathonClient) -> None:
    assert set(client.delete_app(ID, force=True)) == {"deploymentId", "version"}
    refused(NotFoundError, lambda: client.get_app(ID))


if __name__ == "__main__":
    main()
