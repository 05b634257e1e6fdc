"""Definitions as they were written over the years: each is taken, means what it meant, and can be sent back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frameworks.services.answers import definition_json
from frameworks.services.app import Place, create, new_task
from frameworks.services.definition import Definition
from frameworks.services.revision import revised
from model.image import Rules
from model.task import Port, TaskSpec
from tests.unit.test_services_definition import LEAST, NOW, docker, problems

Json = dict[str, Any]
CMD: Json = {"id": "/web", "cmd": "true"}
KEYS = (
    "ports", "uris", "ipAddress", "container", "portDefinitions", "fetch", "networks", "docker", "network", "image",
    "portMappings", "discovery", "labels", "networkName", "number", "name", "mode", "containerPort", "hostPort",
    "servicePort", "port", "uri", "type",
)  # fmt: skip
HOST: Json = {"networks": [{"mode": "host"}]}
BRIDGE: Json = {"networks": [{"mode": "container/bridge"}]}
OVERLAY: Json = {"networks": LEAST["networks"]}
MESOS_VOLUME = {"containerPath": "data", "mode": "RW", "persistent": {"size": 512}}


def in_docker(image: str = "registry.example/shop/web:1.4", **of_container: Any) -> Json:
    of_docker = of_container.pop("docker", {})
    return {"container": {"type": "DOCKER", "docker": {"image": image, **of_docker}, **of_container}}


def mapping(port: int, **fields: Any) -> Json:
    return {"containerPort": port, **fields}


# What was written, and what of today's fields it has to be read back as.
WRITTEN: dict[str, tuple[Json, Json]] = {
    "a command alone": (
        CMD,
        {"portDefinitions": [{"port": 0, "protocol": "tcp", "name": "default", "labels": {}}], "ports": [0]},
    ),
    "ports that are required": (
        {**CMD, "ports": [9042, 0], "requirePorts": True},
        {"requirePorts": True, "ports": [9042, 0]},
    ),
    "no ports at all": ({**CMD, "ports": []}, {"portDefinitions": [], "ports": []}),
    "docker on the bridge, behind a balancer": (
        {
            "id": "shop/front",
            "instances": 3,
            "cpus": 0.25,
            "mem": 256,
            "ports": [10101],
            "labels": {"HAPROXY_GROUP": "external", "HAPROXY_0_VHOST": "shop.example", "HAPROXY_0_MODE": "http"},
            "healthChecks": [{"protocol": "HTTP", "path": "/health", "portIndex": 0, "maxConsecutiveFailures": 5}],
            "upgradeStrategy": {"minimumHealthCapacity": 0.5, "maximumOverCapacity": 0.2},
            **in_docker(
                docker={
                    "network": "BRIDGE",
                    "privileged": False,
                    "forcePullImage": True,
                    "parameters": [{"key": "ulimit", "value": "nofile=65536:65536"}],
                    "portMappings": [mapping(8080, hostPort=0, servicePort=10101, protocol="tcp")],
                }
            ),
        },
        {
            "id": "/shop/front",
            **BRIDGE,
            "container": {
                "type": "DOCKER",
                "docker": {
                    "image": "registry.example/shop/web:1.4",
                    "forcePullImage": True,
                    "privileged": False,
                    "parameters": [{"key": "ulimit", "value": "nofile=65536:65536"}],
                },
                "portMappings": [mapping(8080, hostPort=0, servicePort=10101, protocol="tcp", labels={})],
                "volumes": [],
            },
        },
    ),
    "docker on the bridge, with no port of the node named": (
        {"id": "/web", **in_docker(docker={"network": "BRIDGE", "portMappings": [mapping(80)]})},
        BRIDGE,
    ),
    "docker in the node's network": (
        {"id": "/agent", "args": ["--verbose"], "ports": [9100], **in_docker(docker={"network": "HOST"})},
        HOST,
    ),
    "docker without a network": (
        {"id": "/job", "cmd": "sleep 1", **in_docker(docker={"network": "NONE"})},
        {"networks": [{"mode": "container", "name": "none"}]},
    ),
    "docker on a network of one's own": (
        {
            "id": "/db",
            "ipAddress": {"networkName": "back", "labels": {"tier": "db"}},
            **in_docker(
                docker={"network": "USER", "portMappings": [mapping(5432, name="pg", labels={"VIP_0": "/db:5432"})]}
            ),
        },
        {"networks": [{"mode": "container", "name": "back", "labels": {"tier": "db"}}]},
    ),
    "an address of its own, found by its ports": (
        {
            **CMD,
            "ipAddress": {
                "groups": [],
                "networkName": "overlay",
                "discovery": {"ports": [{"number": 7000, "name": "rpc", "protocol": "tcp", "labels": {"a": "b"}}]},
            },
        },
        {
            **OVERLAY,
            "container": {
                "type": "MESOS",
                "portMappings": [mapping(7000, name="rpc", protocol="tcp", labels={"a": "b"})],
                "volumes": [],
            },
        },
    ),
    "Marathon's own bridge by its name": ({**CMD, "ipAddress": {"networkName": "mesos-bridge"}}, BRIDGE),
    "files by their addresses alone": (
        {**CMD, "uris": ["https://files.example/site.tar.gz", "https://files.example/site.conf"]},
        {
            "fetch": [
                {"uri": "https://files.example/site.tar.gz", "extract": True, "executable": False, "cache": False},
                {"uri": "https://files.example/site.conf", "extract": False, "executable": False, "cache": False},
            ]
        },
    ),
    "a private registry, by a file of the node's": (
        {"id": "/web", "uris": ["file:///etc/docker.tar.gz"], **in_docker(docker={"network": "HOST"})},
        {"fetch": [{"uri": "file:///etc/docker.tar.gz", "extract": True, "executable": False, "cache": False}]},
    ),
    "one on each node": (
        {**CMD, **HOST, "instances": 3, "constraints": [["hostname", "UNIQUE"]], "acceptedResourceRoles": ["*"]},
        {"constraints": [["hostname", "UNIQUE"]], "acceptedResourceRoles": ["*"]},
    ),
    "a store that keeps what it has": (
        {
            **CMD,
            **OVERLAY,
            "container": {"type": "MESOS", "volumes": [MESOS_VOLUME]},
            "residency": {"taskLostBehavior": "WAIT_FOREVER"},
            "upgradeStrategy": {"minimumHealthCapacity": 0, "maximumOverCapacity": 0},
        },
        {"residency": {"taskLostBehavior": "WAIT_FOREVER", "relaunchEscalationTimeoutSeconds": 3600}},
    ),
    "files of the node, and what is asked before it is used": (
        {
            "id": "/web",
            **BRIDGE,
            "readinessChecks": [
                {"name": "up", "portName": "http", "path": "/ready", "httpStatusCodesForReady": [200, 204]}
            ],
            **in_docker(
                portMappings=[mapping(80, hostPort=0, name="http")],
                volumes=[{"containerPath": "/etc/ssl", "hostPath": "/etc/ssl", "mode": "RO"}],
            ),
        },
        BRIDGE,
    ),
    "what is asked by the node, in all ways": (
        {
            **CMD,
            "portDefinitions": [{"port": 0, "name": "http", "protocol": "tcp", "labels": {"VIP_0": "/web:80"}}],
            "healthChecks": [
                {"protocol": "MESOS_HTTP", "path": "/", "portIndex": 0, "delaySeconds": 5, "ipProtocol": "IPv4"},
                {"protocol": "COMMAND", "command": {"value": "test -f ready"}, "gracePeriodSeconds": 10},
                {"protocol": "TCP", "port": 8080, "ignoreHttp1xx": False},
            ],
        },
        {"ports": [0]},
    ),
    "all that an empty form sends": (
        {
            **CMD,
            "args": [],
            "user": None,
            "executor": "//cmd",
            "gpus": 0,
            "role": "*",
            "acceptedResourceRoles": [],
            "storeUrls": [],
            "uris": [],
            "fetch": [],
            "secrets": {},
            "residency": None,
            "taskRateLimit": None,
            "ipAddress": None,
            "container": None,
            "tty": False,
            "version": "2016-05-05T10:20:30.000Z",
            "versionInfo": {"lastScalingAt": "2016-05-05T10:20:30.000Z"},
            "tasksStaged": 0,
            "deployments": [],
        },
        {"executor": "//cmd", "role": "*", "gpus": 0},
    ),
}


def run(definition: Definition) -> TaskSpec:
    return new_task(create(definition, NOW), NOW, Place("192.0.2.1", (31007, 31008)))


@pytest.mark.parametrize("name", WRITTEN)
def test_it_is_taken_and_read_back_in_the_words_of_today(name: str) -> None:
    written, wanted = WRITTEN[name]
    definition = Definition.model_validate(written)
    shown = definition_json(create(definition, NOW))
    assert {key: shown[key] for key in wanted} == wanted
    assert "ipAddress" not in shown and "uris" not in shown
    assert Definition.model_validate(shown) == definition
    for partial in True, False:
        assert revised(definition.id, definition, shown, partial=partial) == definition
        assert revised(definition.id, definition, written, partial=partial) == definition


@pytest.mark.parametrize(
    ("fields", "path", "says"),
    [
        ({"ipAddress": {}}, "/ipAddress/networkName", "is missing"),
        (docker(network="USER"), "/ipAddress/networkName", "is missing"),
        ({"ipAddress": {"networkName": "a", "groups": ["x"]}}, "/ipAddress/groups", "policies"),
        ({"ipAddress": {"colour": "red"}}, "/ipAddress/colour", "Extra"),
        ({"ipAddress": 7}, "/ipAddress", ""),
        ({"ipAddress": {"networkName": "a"}, **OVERLAY}, "/ipAddress", "together with networks"),
        (
            docker(portMappings=[mapping(80)])
            | {"ipAddress": {"networkName": "a", "discovery": {"ports": [{"name": "x"}]}}},
            "/ipAddress/discovery/ports",
            "containers of type MESOS",
        ),
        (
            {
                "container": {"portMappings": [mapping(80)]},
                "ipAddress": {"networkName": "a", "discovery": {"ports": [{"name": "x"}]}},
            },
            "/ipAddress/discovery/ports",
            "together with container.portMappings",
        ),
        (
            in_docker(docker={"network": "HOST", "portMappings": [mapping(80)]}),
            "/container/portMappings",
            "portDefinitions",
        ),
        (
            in_docker(docker={"portMappings": [mapping(80)]}, portMappings=[mapping(81)]),
            "/container/docker/portMappings",
            "together with others",
        ),
        (
            in_docker(docker={"portMappings": [{"containerPort": "80"}]}) | BRIDGE,
            "/container/portMappings(0)/containerPort",
            "",
        ),
        ({"ports": [80], "portDefinitions": [{"port": 81}]}, "/ports", "the numbers of portDefinitions"),
        ({"ports": "80"}, "/ports", "list"),
        ({"ports": [80], **OVERLAY}, "/portDefinitions", "use container.portMappings"),
        (
            {"portDefinitions": [{"port": 80, "labels": {"VIP_0": "/w:80"}}], **BRIDGE},
            "/portDefinitions",
            "use container.portMappings",
        ),
        (
            {"ports": [10001], **BRIDGE, "container": {"portMappings": [mapping(80, servicePort=10002)]}},
            "/portDefinitions",
            "10001 is not the servicePort",
        ),
        ({"uris": ["http://a/b"], "fetch": [{"uri": "http://a/c"}]}, "/uris", "together with fetch"),
        ({"uris": [7]}, "/uris(0)", "string"),
    ],
)
def test_what_says_two_things_is_refused_by_its_name(fields: Json, path: str, says: str) -> None:
    found = problems({**CMD, **fields})
    assert list(found) == [path] and says in found[path], found


def test_on_the_bridge_who_says_nothing_of_ports_has_one() -> None:
    spec = run(Definition.model_validate({**CMD, **BRIDGE}))
    assert spec.ports == (Port(31007, "default", host=31007),) and dict(spec.env)["PORT0"] == "31007"
    assert run(Definition.model_validate({**CMD, **BRIDGE, "container": {"portMappings": []}})).ports == ()
    assert run(Definition.model_validate({**CMD, **OVERLAY})).ports == ()
    without = Definition.model_validate({**CMD, **BRIDGE, "container": {"portMappings": []}})
    assert Definition.model_validate(definition_json(create(without, NOW))) == without


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70_000) | st.sampled_from(["HOST", "USER", "host", "a", "http://a/b"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(KEYS[:6]), JSON, max_size=5), st.sampled_from([HOST, BRIDGE, OVERLAY, {}]))
def test_any_mixture_of_forms_is_taken_or_refused(body: Json, networks: Json) -> None:
    for whole in ({**CMD, **networks, **body}, {**CMD, **body, **networks}):
        if not problems(whole):
            definition = Definition.model_validate(whole)
            assert Definition.model_validate(definition_json(create(definition, NOW))) == definition


def test_on_the_bridge_more_ports_are_more_mappings() -> None:
    spec = run(Definition.model_validate({**CMD, **BRIDGE, "ports": [10001, 0]}))
    assert [(port.number, port.host) for port in spec.ports] == [(31007, 31007), (31008, 31008)]
    assert dict(spec.env)["PORT_10001"] == "31007"


def test_a_container_without_a_type_is_dockers_if_it_has_an_image() -> None:
    assert Definition.model_validate({"id": "/web", "container": {"docker": {"image": "a"}}}).container.type == "DOCKER"
    image = run(Definition.model_validate({"id": "/web", "container": {"docker": {"image": "a"}}})).image
    assert image is not None and image.rules is Rules.DOCKER
    assert Definition.model_validate({**CMD, "container": {"volumes": []}}).container.type == "MESOS"


def changed(before: Json, said: Json, partial: bool = True) -> Json:
    definition = Definition.model_validate({**CMD, **before})
    return definition_json(create(revised("/web", definition, said, partial=partial), NOW))


def test_a_change_in_the_old_words_takes_the_place_of_the_new_ones() -> None:
    assert changed({"portDefinitions": [{"port": 80}]}, {"ports": [81]})["ports"] == [81]
    assert (
        changed({"networks": [{"mode": "host"}]}, {"ipAddress": {"networkName": "back"}})["networks"][0]["name"]
        == "back"
    )
    assert [each["uri"] for each in changed({"uris": ["http://a/b"]}, {"uris": ["http://a/c"]})["fetch"]] == [
        "http://a/c"
    ]
    mapped = in_docker(docker={"network": "BRIDGE", "portMappings": [mapping(80)]})
    assert changed({"networks": [{"mode": "host"}]}, mapped)["networks"] == BRIDGE["networks"]


@pytest.mark.parametrize("partial", [True, False])
def test_who_changes_what_was_read_need_not_change_the_ports_beside_it(partial: bool) -> None:
    before = Definition.model_validate({**CMD, "portDefinitions": [{"port": 80}]})
    shown = definition_json(create(before, NOW)) | {"portDefinitions": [{"port": 81}]}
    assert revised("/web", before, shown, partial=partial).shown_ports == [81]
