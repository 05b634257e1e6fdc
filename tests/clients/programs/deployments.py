"""Deployments that do not end by themselves, the queue that says why, and how they are called off."""

from __future__ import annotations

from functools import partial

from marathon import MarathonClient, NotFoundError
from marathon.models import MarathonApp, MarathonDeployment
from marathon.models.queue import MarathonQueueItem

from tests.clients.programs.session import connected, deployed, refused, small, until

ID = "/shop"
TOO_MUCH = 64.0  # CPUs: no node has as many


def main() -> None:
    client = connected()
    assert client.list_deployments() == [] and client.list_queue() == []
    new_app_that_fits_nowhere(client)
    change_that_fits_nowhere(client)
    crashes(client)
    refused(NotFoundError, lambda: client.delete_deployment("none"))


def new_app_that_fits_nowhere(client: MarathonClient) -> None:
    created = client.create_app(ID, small(cpus=TOO_MUCH))
    (found,) = until(client.list_deployments, "there is a deployment")
    assert isinstance(found, MarathonDeployment) and found.id == created.deployments[0].id
    assert found.affected_apps == [ID] and found.affected_pods == [] and found.version == created.version
    assert found.current_step == 1 and found.total_steps == len(found.steps)
    assert found.current_actions[0].app == ID and found.current_actions[0].action == "ScaleApplication"
    queued(client)
    assert client.delete_deployment(found.id)["deploymentId"]
    until(lambda: client.list_deployments() == [], "the deployment is over")
    refused(NotFoundError, lambda: client.get_app(ID))


def queued(client: MarathonClient) -> None:
    def refusals() -> list[str]:
        (item,) = client.list_queue(embed_last_unused_offers=True)
        assert isinstance(item, MarathonQueueItem) and item.app.id == ID and item.count == 1
        assert item.delay.overdue is True and item.delay.time_left_seconds == 0
        summary = item.processed_offers_summary
        return [each["reason"] for each in summary["rejectSummaryLastOffers"] if each["declined"]]

    assert until(refusals, "it is said why offers were refused") == ["InsufficientCpus"]
    (offer, *_) = client.list_queue(embed_last_unused_offers=True)[0].last_unused_offers
    assert offer["offer"]["hostname"] and offer["reason"] == ["InsufficientCpus"]
    assert client.list_queue()[0].last_unused_offers is None


def change_that_fits_nowhere(client: MarathonClient) -> None:
    """To cancel it is to have what was there before."""
    client.create_app(ID, small(env={"LEVEL": "good"}))
    before = deployed(client, ID, 1)
    for force in False, True:
        changed = client.update_app(ID, MarathonApp(cpus=TOO_MUCH, env={"LEVEL": "bad"}))
        until(partial(is_under_way, client, changed["deploymentId"]), "the deployment has begun")
        answer = client.delete_deployment(changed["deploymentId"], force=force)
        assert answer == {} if force else set(answer) == {"deploymentId", "version"}
        after = deployed(client, ID, 1)
        assert after.env == {"LEVEL": "good"} and after.cpus == before.cpus
        assert [task.id for task in after.tasks] == [task.id for task in before.tasks], "it was to go on"
    client.delete_app(ID)


def is_under_way(client: MarathonClient, deployment: str) -> bool:
    return deployment in [each.id for each in client.list_deployments()]


def crashes(client: MarathonClient) -> None:
    """What fails is started more and more slowly, and at once after its delay was reset."""
    client.create_app("/crash", small(cmd="exit 3", backoff_seconds=3600, max_launch_delay_seconds=3600))
    (item,) = until(lambda: [each for each in client.list_queue() if each.delay.time_left_seconds], "it is held back")
    assert item.app.id == "/crash" and item.delay.overdue is False and item.delay.time_left_seconds > 3000
    failure = client.get_app("/crash", embed_failures=True).last_task_failure
    assert failure.app_id == "/crash" and failure.state == "TASK_FAILED" and "3" in failure.message
    client.reset_delay("/crash")
    until(lambda: client.get_app("/crash").last_task_failure.task_id != failure.task_id, "it was started again")
    client.delete_app("/crash", force=True)
    until(lambda: client.list_queue() == [], "nothing waits any more")


if __name__ == "__main__":
    main()
