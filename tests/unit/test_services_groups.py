"""Groups: what apps' ids have in common."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.unit.cluster import Cluster, until
from tests.unit.test_services_rest import WEB, client, cluster, has_only

pytestmark = pytest.mark.anyio
__all__ = ["client", "cluster"]

Json = dict[str, Any]


def app(name: str, **fields: object) -> Json:
    return {"id": name, "cmd": "serve", "cpus": 0.1, "networks": WEB["networks"], **fields}


TREE: Json = {
    "id": "/prod",
    "apps": [app("front")],
    "groups": [{"id": "db", "apps": [app("main", instances=2), app("/prod/db/spare")]}, {"id": "/prod/empty"}],
}


async def settled(cluster: Cluster, count: int) -> None:
    await until(lambda: len(cluster.active()) == count and not cluster.deploying())


async def ids(client: httpx2.AsyncClient) -> set[str]:
    return {each["id"] for each in (await client.get("/v2/apps")).json()["apps"]}


async def test_a_tree_of_apps_is_made_shown_and_removed(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    made = await client.post("/v2/groups", json=TREE)
    assert made.status_code == 201 and set(made.json()) == {"version", "deploymentId"}
    assert await ids(client) == {"/prod/front", "/prod/db/main", "/prod/db/spare"}
    await settled(cluster, 4)
    root = (await client.get("/v2/groups")).json()
    assert has_only(root, "apps dependencies groups id pods version")
    (prod,) = root["groups"]
    assert (prod["id"], [each["id"] for each in prod["apps"]]) == ("/prod", ["/prod/front"])
    assert {each["id"] for each in prod["groups"][0]["apps"]} == {"/prod/db/main", "/prod/db/spare"}
    assert (await client.get("/v2/groups/prod")).json() == prod
    assert (await client.post("/v2/groups", json=TREE)).status_code == 409
    assert (await client.delete("/v2/groups/prod/db")).status_code == 200
    assert await ids(client) == {"/prod/front"}
    assert (await client.get("/v2/groups/prod/db")).status_code == 404
    assert (await client.get("/v2/groups/prod/empty")).json()["apps"] == []
    assert (await client.delete("/v2/groups/?force=true")).status_code == 200
    await settled(cluster, 0)
    assert (await client.delete("/v2/groups/prod")).status_code == 404


async def test_what_is_not_said_of_a_group_stays(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/groups", json=TREE)
    await settled(cluster, 4)
    await client.put("/v2/groups/prod", json={"apps": [app("back")]})
    await settled(cluster, 4)
    assert await ids(client) == {"/prod/back", "/prod/db/main", "/prod/db/spare"}
    await client.put("/v2/groups/prod/db", json={"id": "/prod/db", "apps": [app("main", cpus=0.2)]})
    assert await ids(client) == {"/prod/back", "/prod/db/main"}
    assert (await client.get("/v2/apps/prod/db/main")).json()["app"]["cpus"] == 0.2
    plan = (await client.put("/v2/groups/prod?dryRun=true", json={"groups": [], "apps": [app("new")]})).json()
    said = {(each["action"], each["app"]) for each in plan["steps"][0]["actions"]}
    assert said == {
        ("StopApplication", "/prod/back"),
        ("StopApplication", "/prod/db/main"),
        ("ScaleApplication", "/prod/new"),
    }
    assert await ids(client) == {"/prod/back", "/prod/db/main"}


async def test_a_group_is_scaled_as_a_whole(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/groups", json=TREE)
    await settled(cluster, 4)
    assert (await client.put("/v2/groups/prod", json={"scaleBy": 2})).status_code == 200
    await settled(cluster, 8)
    assert (await client.put("/v2/groups/prod", json={"scaleBy": -1})).status_code == 422


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"id": "/g", "colour": "red"}, "/colour"),
        ({"id": "/g", "dependencies": "/x"}, "/dependencies"),
        ({"id": "/g", "apps": [app("a")], "dependencies": ["/g/a"]}, "/dependencies"),
        ({"id": "/g", "apps": [app("a", dependencies=["../b"]), app("b", dependencies=["/g/a"])]}, "/dependencies"),
        ({"id": "/g", "apps": [{"cmd": "x"}]}, "/apps(0)/id"),
        ({"id": "/g", "apps": [app("/other/a")]}, "/apps(0)/id"),
        ({"id": "/g", "groups": [{"id": "a", "apps": "b"}]}, "/groups(0)/apps"),
        ({"id": "/g", "groups": [{"apps": []}]}, "/groups(0)/id"),
        ({"id": 5}, "/id"),
        ({"id": "/g", "apps": [app("a"), app("b", cpus=-1)]}, "/cpus"),
    ],
)
async def test_a_bad_group_changes_nothing(client: httpx2.AsyncClient, body: Json, path: str) -> None:
    answer = await client.post("/v2/groups", json=body)
    assert (answer.status_code, answer.json()["details"][0]["path"]) == (422, path)
    assert await ids(client) == set()


async def test_groups_as_deep_as_one_likes_do_no_harm(client: httpx2.AsyncClient) -> None:
    body: Json = {"id": "g"}
    for _ in range(200):
        body = {"id": "g", "groups": [body]}
    assert (await client.post("/v2/groups", json={**body, "id": "/g"})).status_code == 422
