"""Policies over REST and by command: what is refused and by which field, and that what is answered can be sent back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cli import main, policy
from cli.client import describe
from cli.problem import Problem
from master.policies import PREFIX, Policies
from master.rest.app import create_app
from master.rest.policies import policies_router
from model.policy import MOST_PORTS, MOST_SOURCES
from tests.unit.control import Master, master

pytestmark = pytest.mark.anyio

GOOD: dict[str, Any] = {"app": "/db", "from": [{"app": "/shop"}], "ports": [{"protocol": "tcp", "port": 5432}]}
WHOLE: dict[str, Any] = {
    "name": "whole",
    "network": "overlay",
    "from": [{"network": "bridge"}, {"app": "jobs/a.B_c"}, {"subnet": "192.0.2.0/24"}, {"subnet": "2001:db8::/32"}],
    "ports": [{"protocol": "tcp", "port": 80}, {"protocol": "udp", "port": "8000-8010"}],
}
NO_PORTS: tuple[object, ...] = (0, -1, 65536, 10**30, 1.5, True, None, [], "", "http", "80-", "90-80", "1-70000", "²")


@dataclass(frozen=True, slots=True)
class Api:
    parts: Master
    policies: Policies
    http: httpx2.AsyncClient

    async def put(self, name: str, body: Any) -> httpx2.Response:
        return await self.http.put(f"/api/v1/policies/{name}", json=body)

    async def get(self, name: str = "") -> Any:
        return (await self.http.get(f"/api/v1/policies/{name}")).json()


@asynccontextmanager
async def api(directory: Path) -> AsyncIterator[Api]:
    async with master(directory) as parts:
        policies = Policies(parts.store, parts.tasks, parts.networks, parts.blocks, parts.desired)
        await policies.load()
        app = create_app(lambda token: True, [policies_router(policies, "services")])
        transport = httpx2.ASGITransport(app=app)
        headers = {"Authorization": "Bearer x"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://m", headers=headers) as http:
            yield Api(parts, policies, http)


async def test_set_show_replace_and_remove(tmp_path: Path) -> None:
    async with api(tmp_path) as asked:
        made = await asked.put("db", GOOD)
        shown = {
            "name": "db",
            "app": "services/db",
            "from": [{"app": "services/shop"}],
            "ports": [{"protocol": "tcp", "port": 5432}],
        }
        assert made.status_code == 201 and made.json() == {"policy": shown}
        assert await asked.get("db") == {"policy": shown} and await asked.get() == {"policies": [shown]}
        again = await asked.put("db", {"app": "services/db", "from": []})
        assert again.status_code == 200
        assert again.json() == {"policy": {"name": "db", "app": "services/db", "from": [], "ports": []}}
        removed = await asked.http.delete("/api/v1/policies/db")
        assert removed.status_code == 200 and removed.json() == again.json()
        assert await asked.get() == {"policies": []}
        for answer in (await asked.http.get("/api/v1/policies/db"), await asked.http.delete("/api/v1/policies/db")):
            assert answer.status_code == 404 and answer.json() == {"message": "Policy 'db' does not exist"}


async def test_what_is_answered_can_be_sent_back(tmp_path: Path) -> None:
    async with api(tmp_path) as asked:
        first = (await asked.put("whole", WHOLE)).json()["policy"]
        assert first == WHOLE
        again = await asked.put("whole", first)
        assert again.status_code == 200 and again.json()["policy"] == first


@pytest.mark.parametrize(
    ("given", "subnet"),
    [
        ("192.0.2.7", "192.0.2.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("192.0.2.0/255.255.255.0", "192.0.2.0/24"),
        ("2001:DB8:0::/32", "2001:db8::/32"),
        ("::/0", "::/0"),
    ],
)
async def test_subnets_are_said_in_one_way(tmp_path: Path, given: str, subnet: str) -> None:
    async with api(tmp_path) as asked:
        answer = await asked.put("db", GOOD | {"from": [{"subnet": given}]})
        assert answer.json()["policy"]["from"] == [{"subnet": subnet}]


@pytest.mark.parametrize("port", [1, 65535, "80", "1-65535", "80-80"])
async def test_ports_are_the_containers(tmp_path: Path, port: object) -> None:
    async with api(tmp_path) as asked:
        assert (await asked.put("db", GOOD | {"ports": [{"protocol": "udp", "port": port}]})).status_code == 201


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != field}


@pytest.mark.parametrize(
    ("body", "path", "says"),
    [
        ([], "/", "dictionary"),
        (None, "/", ""),
        (GOOD | {"colour": "red"}, "/colour", "is not a known field"),
        (GOOD | {"sources": []}, "/sources", "is not a known field"),
        (GOOD | {"network": "overlay"}, "/", "exactly one of network and app"),
        (without("app"), "/", "exactly one of network and app"),
        (without("from"), "/from", "is missing"),
        (GOOD | {"from": {"app": "/a"}}, "/from", "list"),
        (GOOD | {"from": [{}]}, "/from(0)", "exactly one of network, app and subnet"),
        (GOOD | {"from": [{"app": "/a"}, {"app": "/a", "subnet": "::/0"}]}, "/from(1)", "exactly one of network, app"),
        (GOOD | {"from": [{"address": "192.0.2.1"}]}, "/from(0)/address", "is not a known field"),
        (GOOD | {"from": ["overlay"]}, "/from(0)", "dictionary"),
        (GOOD | {"from": [{"network": "fro"}]}, "/from(0)/network", "network 'fro' does not exist"),
        (GOOD | {"from": [{"app": "/a"}, {"network": "host"}]}, "/from(1)/network", "'host' has no addresses of its"),
        (without("app") | {"network": "fro"}, "/network", "network 'fro' does not exist"),
        (without("app") | {"network": ""}, "/network", "at least 1 character"),
        (without("app") | {"network": "x" * 64}, "/network", "at most 63 characters"),
        (without("app") | {"network": 7}, "/network", "string"),
        (GOOD | {"from": [{"subnet": "192.0.2.1/24"}]}, "/from(0)/subnet", "has host bits set"),
        (GOOD | {"from": [{"subnet": "192.0.2.0/33"}]}, "/from(0)/subnet", "192.0.2.0/33"),
        (GOOD | {"from": [{"subnet": "fe80::%eth0/64"}]}, "/from(0)/subnet", "must be a subnet"),
        (GOOD | {"from": [{"subnet": "1" * 65}]}, "/from(0)/subnet", "must be a subnet, as in"),
        (GOOD | {"from": [{"subnet": 5}]}, "/from(0)/subnet", "must be a subnet"),
        (GOOD | {"from": [{"subnet": ""}]}, "/from(0)/subnet", "must be a subnet"),
        *((GOOD | {"app": app}, "/app", "must be an app") for app in ("db", "", "/", "/a b", "/db/", "a//b", "/{x}")),
        (GOOD | {"app": "/" + "x" * 300}, "/app", "must be an app"),
        (GOOD | {"from": [{"app": "overlay"}]}, "/from(0)/app", "must be an app"),
        (GOOD | {"ports": [{"protocol": "sctp", "port": 1}]}, "/ports(0)/protocol", "'tcp' or 'udp'"),
        (GOOD | {"ports": [{"protocol": "tcp"}]}, "/ports(0)/port", "is missing"),
        (GOOD | {"ports": [{"port": 80}]}, "/ports(0)/protocol", "is missing"),
        (GOOD | {"ports": [{"protocol": "tcp", "port": 80, "to": 90}]}, "/ports(0)/to", "is not a known field"),
        (GOOD | {"ports": [80]}, "/ports(0)", "dictionary"),
        (GOOD | {"name": "other"}, "/name", "is not 'db'"),
        *(
            (GOOD | {"ports": [{"protocol": "tcp", "port": port}]}, "/ports(0)/port", "must be a port from 1 to 65535")
            for port in NO_PORTS
        ),
        (GOOD | {"from": [{"app": "/a"}] * (MOST_SOURCES + 1)}, "/from", f"at most {MOST_SOURCES}"),
        (GOOD | {"ports": GOOD["ports"] * (MOST_PORTS + 1)}, "/ports", f"at most {MOST_PORTS}"),
    ],
)
async def test_bad_policies_name_their_field(tmp_path: Path, body: Any, path: str, says: str) -> None:
    async with api(tmp_path) as asked:
        answer = await asked.put("db", body)
        assert answer.status_code == 422 and answer.json()["message"] == "Object is not valid"
        (detail,) = answer.json()["details"]
        (error,) = detail["errors"]
        assert detail["path"] == path and says in error
        assert await asked.parts.store.range(PREFIX) == [] and asked.policies.all() == []


@pytest.mark.parametrize("name", ["Db", "-db", "db-", "d_b", "x" * 64, "%20", "d%00b", "%C3%A4"])
async def test_bad_names(tmp_path: Path, name: str) -> None:
    async with api(tmp_path) as asked:
        answer = await asked.put(name, GOOD)
        assert answer.status_code == 422 and answer.json()["details"][0]["path"] == "/name"
        assert (await asked.http.get(f"/api/v1/policies/{name}")).status_code == 404
        assert asked.policies.all() == []


async def test_every_field_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    async with api(tmp_path) as asked:
        answer = await asked.put("db", {"network": "x", "from": [{"network": "overlay"}, {"network": "x"}]})
        assert [detail["path"] for detail in answer.json()["details"]] == ["/network", "/from(1)/network"]


async def test_more_than_nodes_should_compile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("master.policies.MOST_PAIRS", 2)
    async with api(tmp_path) as asked:
        assert (await asked.put("one", GOOD)).status_code == 201
        answer = await asked.put("two", GOOD | {"from": [{"app": "/a"}, {"app": "/b"}]})
        assert answer.status_code == 409
        assert answer.json()["message"].startswith("Policy 'two' can not be set: 2 pairs of a source and a port")


async def test_a_store_that_is_full_is_said_and_changes_nothing(tmp_path: Path) -> None:
    async with api(tmp_path) as asked:
        asked.parts.store.full = (PREFIX,)
        assert (await asked.put("db", GOOD)).status_code == 503
        assert await asked.get() == {"policies": []}


class Stand:
    """Plays the client of a command: keeps what was sent, and answers like the master."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, Any]] = []

    def get(self, path: str) -> Any:
        self.sent.append(("GET", path, None))
        return {"policies": [WHOLE, {**GOOD, "name": "db", "from": [], "ports": []}], "policy": WHOLE}

    def put(self, path: str, body: Any) -> Any:
        self.sent.append(("PUT", path, body))
        return {"policy": WHOLE}

    def delete(self, path: str) -> Any:
        self.sent.append(("DELETE", path, None))
        return {"policy": WHOLE}


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    stand = Stand()
    monkeypatch.setattr(policy, "connect", lambda: stand)
    return stand


def tepui(*arguments: str) -> int:
    """The exit status of the command."""
    try:
        main.app(["policy", *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (
            "--network back --from network:front --port 8080/tcp",
            {"network": "back", "from": [{"network": "front"}], "ports": [{"protocol": "tcp", "port": "8080"}]},
        ),
        (
            "--app /db --from app:/shop --from subnet:2001:db8::/32 --port 1-9/udp --port tcp/80",
            {
                "app": "/db",
                "from": [{"app": "/shop"}, {"subnet": "2001:db8::/32"}],
                "ports": [{"protocol": "udp", "port": "1-9"}, {"protocol": "tcp", "port": "80"}],
            },
        ),
        ("--app jobs/a", {"app": "jobs/a", "from": [], "ports": []}),
    ],
)
def test_set_sends_what_is_asked_for(stand: Stand, arguments: str, body: dict[str, Any]) -> None:
    assert tepui("set", "db", *arguments.split()) == 0
    assert stand.sent == [("PUT", "/api/v1/policies/db", body)]


def test_set_sends_a_file_as_it_is(stand: Stand, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(WHOLE))
    assert tepui("set", "whole", "--file", str(file)) == 0
    assert stand.sent == [("PUT", "/api/v1/policies/whole", WHOLE)]
    with pytest.raises(Problem, match="no.json: No such file"):
        tepui("set", "whole", "--file", str(tmp_path / "no.json"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--app", "/db", "--from", "shop"], "--from: 'shop' is none of"),
        (["--app", "/db", "--from", "app:"], "--from: 'app:' is none of"),
        (["--app", "/db", "--from", "node:a"], "--from: 'node:a' is none of"),
        (["--app", "/db", "--port", "80"], "--port: '80' is not as in 80/tcp"),
        (["--app", "/db", "--port", "/tcp"], "--port: '/tcp' is not as in 80/tcp"),
        (["--app", "/db", "--port", "80/sctp"], "--port: '80/sctp' is not as in 80/tcp"),
        (["--app", "/db", "--file", "x"], "--file: it has all of the policy"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_sent(
    stand: Stand, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert tepui("set", "db", *arguments) == 2
    assert says in " ".join(capsys.readouterr().err.replace("│", " ").split()) and stand.sent == []


def test_a_name_stays_one_part_of_the_address(stand: Stand) -> None:
    assert tepui("remove", "../networks/a?b") == 0
    assert stand.sent == [("DELETE", "/api/v1/policies/..%2Fnetworks%2Fa%3Fb", None)]


def test_tables_and_json(stand: Stand, capsys: pytest.CaptureFixture[str]) -> None:
    assert tepui("list") == 0
    header, whole, db = capsys.readouterr().out.splitlines()
    assert header.split() == ["POLICY", "TO", "FROM", "PORTS"]
    sources = "network:bridge, app:jobs/a.B_c, subnet:192.0.2.0/24, subnet:2001:db8::/32"
    assert whole.split() == ["whole", "network:overlay", *sources.split(), "80/tcp,", "8000-8010/udp"]
    assert db.split() == ["db", "app:/db", "nobody", "any"]
    for arguments in (["show", "whole"], ["set", "whole", "--app", "/db"], ["remove", "whole"]):
        assert tepui(*arguments, "--json") == 0
        assert json.loads(capsys.readouterr().out) == WHOLE
        assert tepui(*arguments) == 0
        assert "whole" in capsys.readouterr().out


async def test_a_refusal_is_one_line_for_a_person(tmp_path: Path) -> None:
    async with api(tmp_path) as asked:
        answer = await asked.put("db", GOOD | {"from": [{"network": "fro"}]})
        assert describe(answer) == "Object is not valid; /from(0)/network: network 'fro' does not exist"
