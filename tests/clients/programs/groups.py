"""Groups: made with apps in them and in groups in them, read, changed, scaled and removed."""

from __future__ import annotations

from marathon import MarathonClient, NotFoundError
from marathon.exceptions import ConflictError
from marathon.models import MarathonGroup

from tests.clients.programs.session import connected, deployed, refused, small, until


def main() -> None:
    client = connected()
    create(client)
    read(client)
    change(client)
    scale(client)
    refused(NotFoundError, lambda: client.get_group("/none"))
    refused(NotFoundError, lambda: client.delete_group("/none"))
    assert client.delete_group("/shop", force=True)["deploymentId"]
    until(lambda: client.list_apps() == [], "the apps of the group are gone")
    refused(NotFoundError, lambda: client.get_group("/shop"))


def group() -> MarathonGroup:
    inner = MarathonGroup(id="store", apps=[small(id="db")])
    return MarathonGroup(id="/shop", apps=[small(id="front", instances=2), small(id="/shop/back")], groups=[inner])


def create(client: MarathonClient) -> None:
    answer = client.create_group(group())
    assert answer["version"] and answer["deploymentId"]
    for app_id, running in ("/shop/front", 2), ("/shop/back", 1), ("/shop/store/db", 1):
        deployed(client, app_id, running)
    refused(ConflictError, lambda: client.create_group(group()))


def read(client: MarathonClient) -> None:
    found = client.get_group("/shop")
    assert sorted(app.id for app in found.apps) == ["/shop/back", "/shop/front"] and found.id == "/shop"
    assert [each.id for each in found.groups] == ["/shop/store"] and found.groups[0].apps[0].id == "/shop/store/db"
    assert [each.id for each in client.list_groups()] == ["/shop"] and client.list_groups(id="/none") == []


def change(client: MarathonClient) -> None:
    """What was read goes back; then an app is changed and another one is not there any more."""
    tasks = {task.id for task in client.list_tasks()}
    client.update_group("shop", client.get_group("shop"))
    deployed(client, "/shop/front", 2)
    assert {task.id for task in client.list_tasks()} == tasks, "nothing was to change"
    wanted = client.get_group("shop")
    wanted.apps = [app for app in wanted.apps if app.id == "/shop/front"]
    wanted.apps[0].env = {"COLOUR": "blue"}
    assert client.update_group("shop", wanted, force=True)["deploymentId"]
    assert deployed(client, "/shop/front", 2).env == {"COLOUR": "blue"}
    refused(NotFoundError, lambda: client.get_app("/shop/back"))
    deployed(client, "/shop/store/db", 1)


def scale(client: MarathonClient) -> None:
    client.scale_group("/shop", 2)
    for app_id, running in ("/shop/front", 4), ("/shop/store/db", 2):
        deployed(client, app_id, running)
    client.scale_group("/shop", 0.5)
    for app_id, running in ("/shop/front", 2), ("/shop/store/db", 1):
        deployed(client, app_id, running)


if __name__ == "__main__":
    main()
