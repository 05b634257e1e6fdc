"""Tasks: listed, and killed one by one, by id, by node, and with their app shrinking by as many."""

from __future__ import annotations

from marathon import MarathonClient, NotFoundError
from marathon.models import MarathonTask
from marathon.models.container import MarathonContainer, MarathonContainerPortMapping

from tests.clients.programs.session import connected, deployed, refused, small, until

ID = "/group/worker"


def main() -> None:
    client = connected()
    mapping = MarathonContainerPortMapping(container_port=8080, host_port=0, name="http")
    published = MarathonContainer(type="MESOS", port_mappings=[mapping])
    client.create_app(ID, small(instances=4, container=published, health_checks=[]))
    deployed(client, ID, 4)
    lists(client)
    endpoints(client)
    kill_one(client)
    kill_given(client)
    kill_on_a_node(client)
    kill_all_in_batches(client)
    refused(NotFoundError, lambda: client.kill_task(ID, "none"))
    client.delete_app(ID)
    until(lambda: client.list_tasks() == [], "no task is left")


def lists(client: MarathonClient) -> None:
    of_app, all_tasks = client.list_tasks(ID), client.list_tasks()
    assert {task.id for task in of_app} == {task.id for task in all_tasks} and len(of_app) == 4
    task = of_app[0]
    assert isinstance(task, MarathonTask) and task.app_id == ID and task.state == "TASK_RUNNING"
    assert task.host == task.slave_id and task.staged_at < task.started_at
    assert [address.protocol for address in task.ip_addresses] == ["IPv4", "IPv6"]
    assert [each.id for each in client.list_tasks(ID, id=task.id)] == [task.id]
    assert client.list_tasks(ID, host="nowhere") == []


def endpoints(client: MarathonClient) -> None:
    """Where a load balancer sends connections."""
    found = client.list_endpoints()
    assert {each.task_id for each in found} == {task.id for task in client.list_tasks(ID)}
    assert all(each.app_id == ID and each.host and each.task_port > 1024 for each in found)


def kill_one(client: MarathonClient) -> None:
    victim = client.list_tasks(ID)[0].id
    killed = client.kill_task(ID, victim)
    assert isinstance(killed, MarathonTask) and killed.id == victim
    until(lambda: victim not in ids(client), "the task is gone")
    assert victim not in {task.id for task in deployed(client, ID, 4).tasks}
    victim = client.list_tasks(ID)[0].id
    assert client.kill_task(ID, victim, scale=True, wipe=True)["deploymentId"]
    assert victim not in {task.id for task in deployed(client, ID, 3).tasks} and client.get_app(ID).instances == 3


def kill_given(client: MarathonClient) -> None:
    first = min(ids(client))
    assert client.kill_given_tasks([first]) is True
    until(lambda: first not in ids(client), "the task is gone")
    deployed(client, ID, 3)
    victims = sorted(ids(client))[:2]
    assert client.kill_given_tasks(victims, scale=True, force=True) is True
    assert not set(victims) & {task.id for task in deployed(client, ID, 1).tasks}
    client.scale_app(ID, instances=4)
    deployed(client, ID, 4)


def kill_on_a_node(client: MarathonClient) -> None:
    node = client.list_tasks(ID)[0].host
    there = {task.id for task in client.list_tasks(ID) if task.host == node}
    assert {task.id for task in client.kill_tasks(ID, host=node)} == there
    until(lambda: not there & ids(client), "those on the node are gone")
    deployed(client, ID, 4)
    answer = client.kill_tasks(ID, scale=True)
    assert answer["deploymentId"] and client.get_app(ID).instances == 0
    deployed(client, ID, 0)


def kill_all_in_batches(client: MarathonClient) -> None:
    """The client waits for each batch to be gone. After the last one it fails on Pythons from 3.7 on: of itself."""
    client.scale_app(ID, instances=2)
    before = {task.id for task in deployed(client, ID, 2).tasks}
    refused(RuntimeError, lambda: client.kill_tasks(ID, batch_size=1, batch_delay=0.1))
    assert not before & ids(client)
    deployed(client, ID, 2)


def ids(client: MarathonClient) -> set[str]:
    return {task.id for task in client.list_tasks(ID)}


if __name__ == "__main__":
    main()
