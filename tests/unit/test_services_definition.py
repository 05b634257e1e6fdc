"""Which definitions are taken, what they mean, and that every other one is refused with the field's name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from frameworks.services.app import create, new_task, parse_time, scale
from frameworks.services.definition import APP_ID_LENGTH, Definition
from frameworks.services.revision import revised
from master.rest.errors import json_path
from model.fetch import Fetch
from model.image import ImageSpec, Rules
from model.resources import Resources
from model.task import TASK_ID, Protocol

LEAST: dict[str, Any] = {"id": "/web", "cmd": "true", "networks": [{"mode": "container", "name": "overlay"}]}
MAPPING: dict[str, Any] = {"containerPort": 8080}
NOW = parse_time("2026-01-01T00:00:00.000000Z")


def problems(body: object) -> dict[str, str]:
    try:
        Definition.model_validate(body)
    except ValidationError as error:
        return {json_path(problem["loc"]): problem["msg"] for problem in error.errors()}
    return {}


def with_mapping(**fields: object) -> dict[str, Any]:
    return {**LEAST, "container": {"portMappings": [{**MAPPING, **fields}]}}


def secret(source: str) -> dict[str, Any]:
    return {"secrets": {"x": {"source": source}}}


def docker(**fields: object) -> dict[str, Any]:
    return {"container": {"type": "DOCKER", "docker": {"image": "nginx", **fields}}}


def test_defaults_are_marathons() -> None:
    least = Definition.model_validate(LEAST)
    assert (least.cpus, least.mem, least.disk, least.instances) == (1.0, 128.0, 0.0, 1)
    assert (least.backoffSeconds, least.backoffFactor, least.maxLaunchDelaySeconds) == (1.0, 1.15, 300.0)
    assert least.argv == ("/bin/sh", "-c", "true") and least.network == "overlay"


@pytest.mark.parametrize(
    ("fields", "path", "says"),
    [
        ({"cpus": -1}, "/cpus", "greater than 0"),
        ({"cpus": 0}, "/cpus", "greater than 0"),
        ({"cpus": "1"}, "/cpus", "number"),
        ({"cpus": True}, "/cpus", "number"),
        ({"cpus": float("nan")}, "/cpus", ""),
        ({"cpus": float("inf")}, "/cpus", ""),
        ({"cpus": 1e300}, "/cpus", "less than"),
        ({"mem": -1}, "/mem", "greater than 0"),
        ({"disk": -0.5}, "/disk", "greater than or equal to 0"),
        ({"instances": -1}, "/instances", "greater than or equal to 0"),
        ({"instances": 1.5}, "/instances", "integer"),
        ({"instances": 10**9}, "/instances", "less than"),
        ({"colour": "red"}, "/colour", "Extra"),
        ({"dependencies": "/db"}, "/dependencies", "list"),
        ({"unreachableStrategy": {"inactiveAfterSeconds": 9}}, "/unreachableStrategy", "must not be less"),
        ({"unreachableStrategy": "enabled"}, "/unreachableStrategy", "disabled"),
        ({"unreachableStrategy": {"disabled": True}}, "/unreachableStrategy", "is a word"),
        ({"killSelection": "SOME"}, "/killSelection", "YOUNGEST_FIRST"),
        ({"labels": {"tepui/system": "yes"}}, "/labels", "true or false"),
        ({"labels": {"tepui/deadline": "soon"}}, "/labels", "number of seconds"),
        ({"labels": {"tepui/version": "1"}}, "/labels", "reserved"),
        ({"constraints": [["hostname", "NEAR"]]}, "/constraints(0)", "must be one of"),
        ({"acceptedResourceRoles": ["slave_public"]}, "/acceptedResourceRoles", "resources have no roles"),
        ({"upgradeStrategy": {"minimumHealthCapacity": 2}}, "/upgradeStrategy/minimumHealthCapacity", "less than"),
        ({"gpus": 1}, "/gpus", "not supported"),
        ({"requirePorts": 1}, "/requirePorts", "boolean"),
        ({"role": "prod"}, "/role", "resources have no roles"),
        ({"executor": "/opt/mine"}, "/executor", "the agent itself runs all tasks"),
        ({"executorResources": {"cpus": 0.1}}, "/executorResources", "the agent runs tasks itself"),
        ({"check": {"tcp": {"port": 80}}}, "/check", "healthChecks and readinessChecks are made"),
        ({"tty": True}, "/tty", "tepui task exec -t"),
        ({"taskRateLimit": 1}, "/taskRateLimit", "backoffSeconds"),
        ({"storeUrls": ["http://192.0.2.1/x"]}, "/storeUrls", "not supported by this version"),
        ({"id": "/a/../b"}, "/id", "path segments"),
        ({"id": "/A"}, "/id", "lower-case"),
        ({"id": "/a_b"}, "/id", "path segments"),
        ({"id": "/-a"}, "/id", "path segments"),
        ({"id": "/a//b"}, "/id", "path segments"),
        ({"id": "/"}, "/id", "path segments"),
        ({"id": ""}, "/id", "path segments"),
        ({"id": "/a\n"}, "/id", "path segments"),
        ({"id": "/" + "a" * APP_ID_LENGTH}, "/id", "longer than"),
        ({"id": "/a/tasks"}, "/id", "must not end in"),
        ({"id": 7}, "/id", "string"),
        ({"args": ["true"]}, "/", "exactly one of cmd and args"),
        ({"cmd": None}, "/", "exactly one of cmd and args"),
        ({"cmd": ""}, "/cmd", "at least 1"),
        ({"cmd": None, "args": []}, "/", "exactly one of cmd and args"),
        ({"cmd": "a\x00b"}, "/cmd", "NUL"),
        ({"cmd": "x" * 200_000}, "/cmd", "kernel"),
        ({"cmd": "\ud800"}, "/cmd", ""),
        ({"user": "root;id"}, "/user", "uid:gid"),
        ({"env": {"A": 1}}, "/env/A", "string"),
        ({"env": {"A": {"secret": "s"}}}, "/env/A", "nothing keeps their values"),
        ({"env": {"A": {"b": "s"}}}, "/env/A", "string"),
        ({"env": {"A=B": "x"}}, "/env/A=B/[key]", "must not be empty or contain ="),
        ({"env": {"A": "\x00"}}, "/env/A", "NUL"),
        ({"labels": {"tepui/version": "x"}}, "/labels", "reserved"),
        ({"networks": [{"mode": "container"}]}, "/networks(0)", "needs a name"),
        ({"networks": [{"mode": "container", "name": "../x"}]}, "/networks(0)/name", "no name of a network"),
        ({"networks": [{"mode": "container/bridge", "name": "x"}]}, "/networks(0)", "takes no name"),
        ({"networks": LEAST["networks"] * 2}, "/networks", "overlay occurs more than once"),
        ({"container": {"type": "DOCKER"}}, "/container", "needs docker"),
        ({"container": {"type": "APPC"}}, "/container/type", "MESOS"),
        ({"container": {"docker": {"image": "a b"}}}, "/container/docker/image", "no name of an image"),
        (docker(privileged=True), "/container/docker/privileged", "ask for single capabilities"),
        (docker(pullConfig={"secret": "x"}), "/container/docker/pullConfig/secret", "none of the definition's secrets"),
        ({"container": {"docker": {"pullConfig": {"secret": "x"}}}}, "/container/docker", "needs an image"),
        (docker(pullConfig={"secret": "x"}) | secret("other/pull"), "/secrets/x/source", "for apps below its path"),
        (secret("a//b"), "/secrets/x/source", "must be a name"),
        (secret("../b"), "/secrets/x/source", "must be a name"),
        (docker(network="BRIDGE"), "/container/docker/network", "together with networks"),
        (docker(network="bridge"), "/container/docker/network", "'BRIDGE'"),
        (docker(credential={"principal": "me"}), "/container/docker/credential", "use pullConfig"),
        (docker() | {"args": ["x"]}, "/", "exactly one of cmd and args"),
        ({"fetch": [{"uri": "ftp://a/b"}]}, "/fetch(0)", "must begin with one of"),
        ({"fetch": [{"uri": "file:///a", "destPath": "../b"}]}, "/fetch(0)", "without . and .."),
        ({"fetch": [{"uri": "http://a/"}]}, "/fetch(0)", "must be the name of a file"),
        ({"fetch": [{"uri": "http://a/b", "digest": "md5:0"}]}, "/fetch(0)", "64 hexadecimal digits"),
        ({"uris": ["ftp://a/b"]}, "/fetch(0)", "must begin with one of"),
        ({"uris": ["file:///x"], "fetch": [{"uri": "file:///y"}]}, "/uris", "together with fetch"),
        (
            {"container": {"volumes": [{"containerPath": "/c", "secret": "s"}]}},
            "/container/volumes(0)/secret",
            "nothing keeps the values of secrets",
        ),
        (
            {"container": {"volumes": [{"containerPath": "/c", "external": {"name": "v"}}]}},
            "/container/volumes(0)/external",
            "no providers of volumes",
        ),
        ({"container": {"volumes": [{}]}}, "/container/volumes(0)/containerPath", "required"),
        ({"container": {"portMappings": [MAPPING, MAPPING]}}, "/container", "8080/tcp occurs more than once"),
        ({"taskKillGracePeriodSeconds": -1}, "/taskKillGracePeriodSeconds", "greater than or equal"),
        ({"backoffFactor": 0.5}, "/backoffFactor", "greater than or equal to 1"),
    ],
)
def test_refused_with_the_fields_path(fields: dict[str, Any], path: str, says: str) -> None:
    found = problems({**LEAST, **fields})
    assert list(found) == [path] and says in found[path]


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"containerPort": -1}, "containerPort", "greater than or equal to 0"),
        ({"containerPort": 0}, "containerPort", "0 means the same as hostPort"),
        ({"containerPort": 65536}, "containerPort", "less than or equal to 65535"),
        ({"protocol": "sctp"}, "protocol", "'tcp'"),
        ({"name": "a b"}, "name", "letters, digits and hyphens"),
        ({"hostPort": 70000}, "hostPort", "less than or equal to 65535"),
        ({"networkNames": ["moon"]}, "networkNames", "moon is none of the definition's networks"),
        ({"labels": {"VIP_0": "/web"}}, "labels", "label VIP_0: '/web' must end in :port"),
        ({"labels": {"vip1": "/{x}:99999"}}, "labels", "label vip1: '/{x}:99999' must end in :port"),
        ({"labels": {"tepui/affinity": "1h"}}, "labels", "label tepui/affinity: '1h' must be seconds, from 0 to 86400"),
        ({"labels": {"tepui/prefer-local": "yes"}}, "labels", "label tepui/prefer-local: 'yes' must be true or false"),
    ],
)
def test_port_mappings(fields: dict[str, Any], field: str, says: str) -> None:
    found = problems(with_mapping(**fields))
    assert list(found) == [f"/container/portMappings(0)/{field}"] and says in next(iter(found.values()))


def test_nothing_asked_is_nothing_refused() -> None:
    empty: dict[str, Any] = {"dependencies": [], "constraints": [], "secrets": {}, "gpus": 0, "requirePorts": False}
    nulls = {"container": {"docker": None, "portMappings": [{**MAPPING, "name": None, "labels": {"a": None}}]}}
    app = Definition.model_validate({**LEAST, **empty, **nulls, "user": None})
    assert app.task_ports[0].labels == ()
    assert app.placement == ()
    assert app.model_dump(exclude_none=True)["dependencies"] == []


def test_ids_may_be_relative() -> None:
    assert Definition.model_validate({**LEAST, "id": "group/web.v2"}).id == "/group/web.v2"


def test_both_protocols() -> None:
    app = Definition.model_validate(with_mapping(protocol="udp,tcp", name="dns"))
    assert app.task_ports[0].protocols == (Protocol.UDP, Protocol.TCP)


def test_bridge_mode_is_the_network_bridge() -> None:
    assert Definition.model_validate({**LEAST, "networks": [{"mode": "container/bridge"}]}).network == "bridge"


@pytest.mark.parametrize(("cpus", "thousandths"), [(0.1, 100), (0.57, 570), (0.0001, 1), (2, 2000), (1.0005, 1001)])
def test_cpus_are_rounded_up_to_thousandths(cpus: float, thousandths: int) -> None:
    assert Definition.model_validate({**LEAST, "cpus": cpus, "mem": 63.2}).resources == Resources(thousandths, 64)


def test_scaling_makes_a_version_but_leaves_tasks_right() -> None:
    app = create(Definition.model_validate(LEAST), NOW)
    scaled = scale(app, 3, NOW)
    assert scaled.version > app.version and scaled.config_version == app.version
    assert scaled.deployment != app.deployment and scaled.instances == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(Definition.model_fields)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4) | JSON)
def test_any_json_is_taken_or_refused(body: object) -> None:
    problems({**LEAST, **body} if isinstance(body, dict) else body)


@given(st.from_regex(r"(/[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?){1,5}", fullmatch=True))
def test_every_app_id_gives_task_ids(app_id: str) -> None:
    if not problems({**LEAST, "id": app_id}):
        task = new_task(create(Definition.model_validate({**LEAST, "id": app_id}), NOW), NOW)
        assert TASK_ID.fullmatch(task.id)


IMAGE = {"id": "/web", "networks": LEAST["networks"]}


@pytest.mark.parametrize(
    ("fields", "argv", "image"),
    [
        (docker(), (), ImageSpec("nginx", arguments=True)),
        (docker(forcePullImage=True) | {"args": ["-v"]}, ("-v",), ImageSpec("nginx", True, arguments=True)),
        (docker(privileged=False, parameters=[]) | {"cmd": "x"}, ("/bin/sh", "-c", "x"), ImageSpec("nginx")),
        (
            {"container": {"type": "MESOS", "docker": {"image": "a"}}, "args": ["b"]},
            ("b",),
            ImageSpec("a", False, Rules.MESOS, True),
        ),
        (
            docker(pullConfig={"secret": "x"}) | secret("pull"),
            (),
            ImageSpec("nginx", arguments=True, pull_secret="pull"),
        ),
    ],
)
def test_a_service_of_an_image(fields: dict[str, Any], argv: tuple[str, ...], image: ImageSpec) -> None:
    """What is not said is left to the image."""
    spec = new_task(create(Definition.model_validate({**IMAGE, **fields}), NOW), NOW)
    assert (spec.argv, spec.image, spec.user, spec.cwd) == (argv, image, "", "")


def test_what_is_to_be_fetched() -> None:
    fetch = [{"uri": "https://a/b.tgz", "cache": True, "destPath": "d/c", "digest": "sha256:" + "0" * 64}]
    fetch.append({"uri": "/etc/docker tar"})
    spec = new_task(create(Definition.model_validate({**LEAST, "fetch": fetch}), NOW), NOW)
    assert spec.fetch == (
        Fetch("https://a/b.tgz", "d/c", cache=True, digest="sha256:" + "0" * 64),
        Fetch("file:///etc/docker%20tar"),
    )
    assert (spec.user, spec.cwd) == ("0:0", "")


FULL: dict[str, Any] = {
    "env": {"A": "b"},
    "labels": {"team": "web"},
    "fetch": [{"uri": "http://192.0.2.1/file"}],
    "healthChecks": [{"protocol": "TCP", "port": 80}],
    "constraints": [["hostname", "UNIQUE"]],
    "upgradeStrategy": {"minimumHealthCapacity": 0.5},
    "container": {
        "type": "DOCKER",
        "docker": {"image": "nginx:1.25", "parameters": [{"key": "cap-drop", "value": "ALL"}]},
        "portMappings": [{"containerPort": 80, "hostPort": 0, "name": "http", "labels": {"VIP_0": "/web:80"}}],
        "volumes": [{"containerPath": "/data", "hostPath": "/srv/data", "mode": "RO"}],
    },
}


@pytest.mark.parametrize("fields", [{}, FULL, {"networks": [{"mode": "host"}]}, {"args": ["x"], "cmd": None}])
def test_a_change_of_nothing_changes_nothing(fields: dict[str, Any]) -> None:
    before = Definition.model_validate({**LEAST, **fields})
    for body in ({}, before.model_dump(exclude_none=True)):
        assert revised(before.id, before, body, partial=True) == before
