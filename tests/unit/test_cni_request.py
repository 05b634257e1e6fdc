"""What runtimes ask of `tepui-cni`: what is refused, with which code, and what else it comes to."""

from __future__ import annotations

import json
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cni_request import Refused, Request, parse
from agent.cni_result import refuse_other, result
from agent.foreign import id_of
from cli import cni_plugin
from model.task import Port, Protocol
from netns.cni import conflist
from netns.container import Endpoint, Reach

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"CNI_CONTAINERID": "web", "CNI_NETNS": "/run/netns/web", "CNI_IFNAME": "eth0"}
BODY = {"cniVersion": "1.1.0", "name": "tepui", "type": "tepui-cni", "network": "overlay"}
V4, V6 = Reach(ip_address("10.1.1.2"), ip_address("10.1.1.1")), Reach(ip_address("fd00::2"), ip_address("fd00::1"))
ENDPOINT = Endpoint("cni-1", "eth0", (V4, V6), 1450, (ip_network("10.1.0.0/16"), ip_network("fd00::/64")))


def said(command: str, environment: Any = ENVIRONMENT, body: Any = BODY, **changes: Any) -> bytes:
    configuration = {**body, **changes} if isinstance(body, dict) else body
    return json.dumps({"command": command, "environment": environment, "configuration": configuration}).encode()


def test_add() -> None:
    runtime = {"portMappings": [{"hostPort": 53, "containerPort": 5353, "protocol": "UDP"}], "ips": ["10.1.1.9/24"]}
    request = parse(said("ADD", runtimeConfig=runtime, dns={"nameservers": ["192.0.2.1"]}))
    assert request == Request(
        "ADD",
        "1.1.0",
        "tepui",
        "overlay",
        "web",
        "eth0",
        "/run/netns/web",
        ip_address("10.1.1.9"),
        (Port(5353, protocols=(Protocol.UDP,), host=53),),
        {"nameservers": ["192.0.2.1"]},
    )
    plain = parse(said("ADD", runtimeConfig={"portMappings": None}, **{"cni.dev/x": 1}))
    assert (plain.address, plain.ports, plain.dns) == (None, (), {})


def test_what_undoing_needs_is_little() -> None:
    """The namespace may be gone, and what the configuration says of addresses may be wrong by now."""
    environment = {"CNI_CONTAINERID": "web", "CNI_IFNAME": "net7"}
    request = parse(said("DEL", environment, address="?", prevResult={"ips": 3}, more=1))
    assert (request.container, request.interface, request.netns) == ("web", "net7", "")


def test_gc_and_status_are_of_no_container() -> None:
    valid = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}]
    request = parse(said("GC", {}, **{"cni.dev/valid-attachments": valid}))
    assert request.valid == {("a", "eth0"), ("b", "eth1")}
    assert parse(said("GC", {}, **{"cni.dev/valid-attachments": None})).valid == frozenset()
    assert parse(said("STATUS", {})).container == ""


@pytest.mark.parametrize(
    ("command", "changes", "code", "text"),
    [
        ("GC", {"cni.dev/valid-attachments": [3]}, 7, "cni.dev/valid-attachments: must be a list of objects"),
        ("GC", {"cni.dev/valid-attachments": [{}]}, 7, "each has a containerID and an ifname"),
        ("STATUS", {"network": 3}, 7, "network: 3 is no name of a network"),
        ("STATUS", {"network": "a" * 1000}, 7, 'network: "aaa'),
        ("STATUS", {"name": None}, 7, "name: must match"),
        ("CHECK", {"prevResult": []}, 7, "prevResult: is missing"),
        ("CHECK", {"prevResult": 3}, 7, "prevResult: must be an object"),
        ("ADD", {"address": None}, 7, "address: null is no address"),
        ("ADD", {"address": "10.1.1.0/33"}, 7, 'address: "10.1.1.0/33" is no address'),
        ("ADD", {"mtu": 1400}, 2, "mtu: 1400: is not supported"),
        ("ADD", {"runtimeConfig": []}, 7, None),
        ("ADD", {"runtimeConfig": 3}, 7, "runtimeConfig: must be an object"),
        ("ADD", {"runtimeConfig": {"bandwidth": {}}}, 2, "runtimeConfig.bandwidth: {}: is not supported"),
        ("ADD", {"runtimeConfig": {"ips": "10.1.1.1"}}, 7, "runtimeConfig.ips: must be a list of one address"),
        ("ADD", {"runtimeConfig": {"ips": [3]}}, 7, "runtimeConfig.ips[0]: 3 is no address"),
        ("ADD", {"runtimeConfig": {"portMappings": {"hostPort": 1}}}, 7, "runtimeConfig.portMappings: must be a list"),
        ("ADD", {"runtimeConfig": {"portMappings": [3]}}, 7, "runtimeConfig.portMappings[0]: must be an object"),
    ],
)
def test_what_is_refused(command: str, changes: dict[str, Any], code: int, text: str | None) -> None:
    if text is None:
        assert parse(said(command, **changes)).ports == ()
        return
    with pytest.raises(Refused) as refused:
        parse(said(command, **changes))
    assert refused.value.code == code and text in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"hostPort": True}, 7, "hostPort: true is no port"),
        ({"hostPort": 65536}, 7, "hostPort: 65536 is no port"),
        ({"containerPort": "80"}, 7, 'containerPort: "80" is no port'),
        ({"protocol": "sctp"}, 7, 'protocol: "sctp" is not one of tcp, udp'),
        ({"hostIP": "127.0.0.1"}, 2, 'hostIP: "127.0.0.1": a port is all addresses\''),
    ],
)
def test_ports_that_are_refused(changes: dict[str, Any], code: int, text: str) -> None:
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "::", **changes}
    with pytest.raises(Refused) as refused:
        parse(said("ADD", runtimeConfig={"portMappings": [mapping]}))
    assert refused.value.code == code and str(refused.value) == f"runtimeConfig.portMappings[0].{text}"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("name", "network", "address", "runtimeConfig", "prevResult", "dns", "cni.dev/valid-attachments", "args")


@given(
    st.sampled_from(("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")) | anything,
    st.dictionaries(st.sampled_from((*ENVIRONMENT, "CNI_ARGS")), st.text(max_size=8)) | anything,
    st.dictionaries(st.sampled_from(KEYS), anything) | anything,
)
def test_whatever_is_said_is_a_request_or_refused(command: Any, environment: Any, changes: Any) -> None:
    wrong = json.dumps({"command": command, "environment": environment, "configuration": changes})
    near = {**ENVIRONMENT, **environment} if isinstance(environment, dict) else ENVIRONMENT
    body = {**BODY, **changes} if isinstance(changes, dict) else BODY
    for line in (wrong, json.dumps({"command": command, "environment": near, "configuration": body}), wrong[:-2]):
        try:
            assert isinstance(parse(line.encode()), Request)
        except Refused as refused:
            assert refused.code in range(2, 12)


def test_result() -> None:
    made = result(ENDPOINT, "/run/netns/web", "1.1.0", {"domain": "x"})
    assert made["interfaces"][1] == {"name": "eth0", "mac": ENDPOINT.mac, "sandbox": "/run/netns/web", "mtu": 1450}
    assert made["ips"] == [
        {"address": "10.1.1.2/32", "gateway": "10.1.1.1", "interface": 1},
        {"address": "fd00::2/128", "gateway": "fd00::1", "interface": 1},
    ]
    assert made["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.1.1"}, {"dst": "::/0", "gw": "fd00::1"}]
    assert "mtu" not in result(ENDPOINT, "/run/netns/web", "1.0.0", {})["interfaces"][1]
    refuse_other(made, ENDPOINT)
    more = {**made, "ips": [*made["ips"], {"address": "192.0.2.1/32"}], "interfaces": made["interfaces"][::-1]}
    refuse_other(more, ENDPOINT)
    for changed in ({"ips": made["ips"][:1]}, {"ips": [3]}, {"interfaces": made["interfaces"][:1]}):
        with pytest.raises(Refused, match="prevResult"):
            refuse_other({**made, **changed}, ENDPOINT)


def test_an_id_is_of_one_link_of_one_container() -> None:
    names = [("a", "eth0"), ("a", "eth1"), ("b", "eth0"), ("ae", "th0")]
    assert len({id_of(*name) for name in names}) == len(names)
    assert id_of("a", "eth0") == id_of("a", "eth0") and len(id_of("x" * 128, "eth0")) == 28


def test_the_plugin_starts_with_little() -> None:
    """What it imports is most of what it costs; the slow ones of the standard library are named."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import cli.cni_plugin\n"
        "print(*(name for name, module in sys.modules.items() if name not in before\n"
        "    and 'site-packages' in (getattr(module, '__file__', None) or '')\n"
        "    or name in ('asyncio', 'dataclasses', 'inspect', 'ipaddress', 'pathlib', 'subprocess', 'typing')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=30, check=True
    )
    assert done.stdout == "\n"


def test_the_conflist_that_comes_along_is_one() -> None:
    parsed = conflist.parse((ROOT / "packaging/cni/10-tepui.conflist").read_text())
    ours = parsed.plugins[0]
    assert ours.type == "tepui-cni" and set(parsed.versions) <= set(cni_plugin.VERSIONS)
    ports = {"portMappings": [{"hostPort": 80, "containerPort": 80}]}
    request = json.loads(conflist.request(parsed, ours, "1.0.0", capabilities=ports))
    assert parse(said("ADD", body=request)).network == "overlay"
    assert Path(cni_plugin.SOCKET).is_absolute()
