"""Networks and ports of definitions: what is taken, what tasks get of it, and what they are told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from frameworks.services.app import Place, create, new_task, new_tasks, parse_time
from frameworks.services.definition import Definition
from frameworks.services.pods.definition import PodDefinition
from model.rights import HOST_NETWORK, needed
from model.task import Bandwidth, Interface, Port, Protocol, TaskSpec
from tests.unit.test_services_definition import LEAST, NOW, docker, problems

EXAMPLES = Path(__file__).parents[2] / "examples"
OVERLAY, BACK = LEAST["networks"][0], {"mode": "container", "name": "back"}
THERE = Place("192.0.2.1")
HOST: dict[str, Any] = {"networks": [{"mode": "host"}]}


def labelled(**labels: str) -> dict[str, Any]:
    return {"networks": [{**OVERLAY, "labels": {f"tepui/{key}": value for key, value in labels.items()}}]}


def mapped(*mappings: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"container": {"portMappings": list(mappings)}, **fields}


def run(place: Place = THERE, **fields: Any) -> TaskSpec:
    app = create(Definition.model_validate({**LEAST, **fields}), NOW)
    again = Definition.model_validate(app.definition.model_dump(exclude_none=True))
    assert again == app.definition, "as it is stored, and as clients send it back"
    return new_task(app, NOW, place)


def refused(fields: dict[str, Any], path: str, says: str) -> None:
    found = problems({**LEAST, **fields})
    assert list(found) == [path] and says in found[path], found


@pytest.mark.parametrize(
    ("fields", "path", "says"),
    [
        (labelled(address="10.0.0.300"), "/networks(0)/labels", "must be keep, or addresses with commas"),
        (labelled(address="10.0.0.3,10.0.0.3"), "/networks(0)/labels", "occurs more than once"),
        (labelled(address="10.0.0.3") | {"instances": 2}, "/networks(0)/labels", "for each of the 2 instances, not 1"),
        (labelled(colour="red"), "/networks(0)/labels", "label tepui/colour is not known: tepui/address"),
        (labelled(ingress="fast"), "/networks(0)/labels", "must be bits a second from 10k to 1000G"),
        (labelled(egress="1"), "/networks(0)/labels", "must be bits a second"),
        ({"networks": [{"mode": "host", "name": "x"}]}, "/networks(0)", "mode host takes no name"),
        ({"networks": [{"mode": "host", "labels": {"tepui/egress": "1M"}}]}, "/networks(0)", "an address of its own"),
        ({"networks": [{"name": "host"}]}, "/networks(0)", "for which the mode is host"),
        ({"networks": [OVERLAY, {"mode": "host"}]}, "/networks", "all be of containers"),
        ({"networks": [OVERLAY, {"mode": "container", "name": "none"}]}, "/networks", "all be of containers"),
        ({"networks": [OVERLAY, {**BACK, "labels": {"tepui/egress": "1M"}}]}, "/networks(1)/labels", "with the first"),
        ({"networks": [OVERLAY, {**BACK, "labels": {"tepui/address": "keep"}}]}, "/networks(1)/labels", "can be kept"),
        (HOST | mapped({"containerPort": 80}), "/container/portMappings", "use portDefinitions"),
        ({"networks": []} | mapped({"containerPort": 80}), "/container/portMappings", "are not for host networking"),
        ({"portDefinitions": [{"port": 80}]}, "/portDefinitions", "use container.portMappings"),
        ({"ports": [80]}, "/portDefinitions", "use container.portMappings"),
        (HOST | {"ports": [80], "portDefinitions": [{"port": 81}]}, "/ports", "remove it"),
        (HOST | {"ports": [70000]}, "/portDefinitions(0)/port", "less than or equal to 65535"),
        (HOST | {"ports": [80, 80], "requirePorts": True}, "/portDefinitions", "80/tcp occurs more than once"),
        (HOST | {"portDefinitions": [{"name": "a"}, {"name": "a"}]}, "/portDefinitions", "a occurs more than once"),
        (
            mapped({"containerPort": 1, "hostPort": 80}, {"containerPort": 2, "hostPort": 80}),
            "/container/portMappings",
            "hostPort 80/tcp occurs more than once",
        ),
        (
            mapped({"containerPort": 1, "hostPort": 80, "networkNames": ["back"]}, networks=[OVERLAY, BACK]),
            "/container/portMappings(0)/networkNames",
            "reached on the first network, overlay",
        ),
        (
            mapped({"containerPort": 1, "hostPort": 0}, networks=[{"mode": "container", "name": "none"}]),
            "/container/portMappings(0)/hostPort",
            "leads nowhere",
        ),
    ],
)
def test_refused_with_the_fields_path(fields: dict[str, Any], path: str, says: str) -> None:
    refused(fields, path, says)


def test_several_networks_addresses_and_bandwidth() -> None:
    first = {**OVERLAY, "labels": {"tepui/address": "100.64.9.1, 100.64.9.2", "tepui/egress": "10M", "site": "x"}}
    second = {**BACK, "labels": {"tepui/address": "fd00::1,fd00::2"}}
    used = frozenset({"100.64.9.1", "fd00::1"})
    fields: dict[str, Any] = {"networks": [first, second, {"mode": "container", "name": "third"}], "instances": 2}
    spec, other = run(**fields), run(Place("192.0.2.1", used=used), **fields)
    assert (spec.network, spec.address, spec.bandwidth) == ("overlay", "100.64.9.1", Bandwidth(None, 10**7))
    assert spec.interfaces == (Interface("back", "fd00::1"), Interface("third"))
    assert (other.address, other.interfaces[0]) == ("100.64.9.2", Interface("back", "fd00::2"))
    kept = run(**labelled(address="keep", ingress="1G"), instances=5)
    assert (kept.address, kept.bandwidth) == ("keep", Bandwidth(10**9))
    assert (run().address, run().interfaces, run().bandwidth) == ("", (), None)


@pytest.mark.parametrize("networks", [[], None, [{"mode": "host"}]])
def test_the_nodes_network_needs_its_right(networks: Any) -> None:
    spec = run(networks=networks)
    assert spec.network == "host" and needed(spec) == {HOST_NETWORK}
    assert [port.name for port in spec.ports] == ["default"]
    assert run(networks=networks, portDefinitions=[]).ports == ()


def test_ports_in_the_nodes_network_are_chosen_unless_they_are_required() -> None:
    definitions = [
        {"port": 8080, "name": "http-main"},
        {"port": 0, "protocol": "udp,tcp", "labels": {"VIP_0": "/w:80"}},
    ]
    spec = run(Place("192.0.2.1", (31007, 31008)), **HOST, portDefinitions=definitions)
    both = (Protocol.UDP, Protocol.TCP)
    assert spec.ports == (
        Port(31007, "http-main", host=31007),
        Port(31008, protocols=both, labels=(("VIP_0", "/w:80"),), host=31008),
    )
    env = dict(spec.env)
    assert env["PORT"] == env["PORT0"] == env["PORT_8080"] == env["PORT_HTTP_MAIN"] == "31007"
    assert env["PORT1"] == "31008" and env["PORTS"] == "31007,31008" and env["HOST"] == "192.0.2.1"
    required = run(Place("192.0.2.1", (31007,)), **HOST, portDefinitions=definitions, requirePorts=True)
    assert [port.host for port in required.ports] == [8080, 31007] and dict(required.env)["PORT0"] == "8080"


def test_the_old_form_of_ports() -> None:
    new, old = (
        {**LEAST, **HOST, key: value}
        for key, value in (("portDefinitions", [{"port": 9}, {"port": 0}]), ("ports", [9, 0]))
    )
    assert Definition.model_validate(old) == Definition.model_validate(new)
    assert Definition.model_validate(new | {"ports": [9, 0]}) == Definition.model_validate(new)
    assert Definition.model_validate(LEAST | {"ports": [], "portDefinitions": [], "requirePorts": False})


def test_ports_of_the_node_lead_to_those_of_the_container() -> None:
    mappings = (
        {"containerPort": 80, "hostPort": 8080, "name": "web", "servicePort": 10080},
        {"containerPort": 81, "hostPort": 0},
        {"containerPort": 0, "hostPort": 0, "protocol": "udp"},
        {"containerPort": 82},
    )
    spec = run(Place("192.0.2.1", (31007, 31008)), **mapped(*mappings))
    assert [(port.number, port.host) for port in spec.ports] == [(80, 8080), (81, 31007), (31008, 31008), (82, None)]
    env = dict(spec.env)
    assert env["PORTS"] == "8080,31007,31008,82" and env["PORT_80"] == env["PORT_WEB"] == "8080"
    assert env["PORT_81"] == "31007" and env["PORT_82"] == "82"


def test_on_the_bridge_every_port_is_published() -> None:
    spec = run(Place("192.0.2.1", (31007,)), **mapped({"containerPort": 80}), networks=[{"mode": "container/bridge"}])
    assert spec.ports == (Port(80, host=31007),)


def test_checks_ask_the_port_that_was_chosen() -> None:
    spec = run(Place("192.0.2.1", (31007,)), **HOST, healthChecks=[{"protocol": "HTTP", "portIndex": 0}])
    assert [check.port for check in spec.health_checks] == [31007]


def pod(**fields: Any) -> dict[str, Any]:
    endpoints = [
        [{"name": "web", "containerPort": 80, "hostPort": 0}],
        [{"name": "db-1", "containerPort": 81, "hostPort": 82}],
    ]
    containers = [
        {"name": name, "exec": {"command": {"shell": "true"}}, "resources": {"cpus": 0.1, "mem": 32}, "endpoints": has}
        for name, has in zip("ab", endpoints, strict=True)
    ]
    return {"id": "/pod", "containers": containers, "networks": [OVERLAY, BACK], **fields}


def test_endpoints_of_pods() -> None:
    tasks = new_tasks(create(PodDefinition.model_validate(pod()), NOW), NOW, Place("192.0.2.1", (31007,)))
    assert [task.ports for task in tasks] == [(Port(80, "web", host=31007),), (Port(81, "db-1", host=82),)]
    assert {task.interfaces for task in tasks} == {(Interface("back"),)}
    for task in tasks:
        env = dict(task.env)
        assert (env["ENDPOINT_WEB"], env["ENDPOINT_DB_1"], env["HOST"]) == ("31007", "82", "192.0.2.1")


@pytest.mark.parametrize(
    ("networks", "says"),
    [
        (labelled(address="keep")["networks"], "address is not supported for pods"),
        ([{"mode": "host"}], "containerPort\n  is not for host networking"),
        ([], "containerPort\n  is not for host networking"),
    ],
)
def test_what_pods_can_not_have(networks: list[Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        PodDefinition.model_validate(pod(networks=networks))


@pytest.mark.parametrize("networks", [[], [{"mode": "host"}]])
def test_a_pod_in_the_nodes_network(networks: list[Any]) -> None:
    body = pod(networks=networks)
    body["containers"][0]["endpoints"] = [{"name": "web"}, {"name": "metrics", "hostPort": 9100}]
    body["containers"][1]["endpoints"] = []
    body["containers"][0]["healthCheck"] = {"tcp": {"endpoint": "web"}}
    definition = PodDefinition.model_validate(body)
    assert PodDefinition.model_validate(definition.model_dump(exclude_none=True)) == definition
    tasks = new_tasks(create(definition, NOW), NOW, Place("192.0.2.1", (31007,)))
    assert [task.network for task in tasks] == ["host", "host"] and HOST_NETWORK in needed(tasks[1])
    assert tasks[0].ports == (Port(31007, "web", host=31007), Port(9100, "metrics", host=9100))
    assert [check.port for check in tasks[0].health_checks] == [31007]
    assert dict(tasks[1].env)["ENDPOINT_WEB"] == "31007"


def test_on_the_bridge_every_endpoint_is_published() -> None:
    body = pod(networks=[{"mode": "container/bridge"}])
    del body["containers"][0]["endpoints"][0]["hostPort"]
    tasks = new_tasks(create(PodDefinition.model_validate(body), NOW), NOW, Place("192.0.2.1", (31007,)))
    assert [port.host for task in tasks for port in task.ports] == [31007, 82]


def test_an_option_of_docker_is_still_told_where_it_belongs() -> None:
    refused(
        docker(parameters=[{"key": "publish", "value": "80:80"}]), "/container/docker/parameters(0)/key", "portMappings"
    )


def test_the_example_of_a_published_port() -> None:
    definition = Definition.model_validate(json.loads((EXAMPLES / "published.json").read_text()))
    assert parse_time("2026-01-01T00:00:00.000000Z") == NOW
    (port,) = new_task(create(definition, NOW), NOW).ports
    assert (port.number, port.host) == (8080, 80)
