"""Which names tasks and VIPs have, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.names import LABEL_MOST, NamedTask, app_label, fitting, task_label, vip_labels
from model.network import Address
from model.task import Port, Protocol
from netns.dns.dcos import Domains
from netns.dns.table import from_wire, to_wire
from netns.dns.zone import NamedVip, Service, Zone, records

OWN = "tepui.internal"
ONLY_OWN, BOTH = Domains(OWN, compat=False), Domains(OWN)
NODE = ip_address("192.0.2.7")
HTTP = Port(8080, "http", (Protocol.TCP,))


def addresses(*texts: str) -> tuple[Address, ...]:
    return tuple(map(ip_address, texts))


def web(number: int = 1, ports: tuple[Port, ...] = (HTTP,), own: Iterable[str] | None = None) -> NamedTask:
    own = (f"100.64.0.{number}", f"fd01:b::{number}") if own is None else own
    return NamedTask(f"group_web.{number}", "services", "/group/web", addresses(*own), (NODE,), ports)


def found(thing: NamedTask | NamedVip) -> dict[tuple[str, str], set[str]]:
    said: dict[tuple[str, str], set[str]] = {}
    for record in records(thing, OWN):
        value = record.value
        text = f"{value.target} {value.port}" if isinstance(value, Service) else str(value)
        said.setdefault((record.name, record.type), set()).add(text)
    return said


def test_an_app_is_called_from_its_innermost_name_on() -> None:
    assert app_label("/group/sub/App.one") == "app-one-sub-group"
    assert task_label("group_web.3f2a") == "group-web-3f2a"
    assert vip_labels("My.web_1") == "my.web_1"


@given(st.text(st.characters(codec="ascii"), min_size=1, max_size=300), st.integers(20, LABEL_MOST))
def test_long_names_end_in_a_hash_and_stay_different(text: str, most: int) -> None:
    label = fitting(text, most)
    assert len(label) <= most
    assert (label == text) == (len(text) <= most)
    assert len(text) <= most or fitting(text + "x", most) != label


def test_a_task_with_an_address_of_its_own() -> None:
    said = found(web())
    both = {"100.64.0.1"}
    task = "group-web-1.web-group.services"
    assert said[f"web-group.services.containerip.{OWN}", "A"] == both
    assert said[f"web-group.services.containerip.{OWN}", "AAAA"] == {"fd01:b::1"}
    assert said[f"{task}.containerip.{OWN}", "A"] == both
    assert said[f"web-group.services.agentip.{OWN}", "A"] == {str(NODE)}
    assert said[f"web-group.services.autoip.{OWN}", "A"] == both
    assert said[f"_http._tcp.web-group.services.autoip.{OWN}", "SRV"] == {f"{task}.autoip.{OWN} 8080"}
    assert (f"_http._tcp.web-group.services.agentip.{OWN}", "SRV") not in said  # nothing leads there
    assert said["1.0.64.100.in-addr.arpa", "PTR"] == {f"{task}.containerip.{OWN}"}


def test_a_task_whose_port_is_mapped_is_found_at_its_node() -> None:
    said = found(web(ports=(Port(8080, "http", (Protocol.TCP, Protocol.UDP), host=31080),)))
    assert said[f"web-group.services.containerip.{OWN}", "A"] == {"100.64.0.1"}
    assert said[f"web-group.services.autoip.{OWN}", "A"] == {str(NODE)}
    for protocol in ("tcp", "udp"):
        assert {value.split()[1] for value in said[f"_http._{protocol}.web-group.services.autoip.{OWN}", "SRV"]} == {
            "31080"
        }
    assert {value.split()[1] for value in said[f"_http._tcp.web-group.services.containerip.{OWN}", "SRV"]} == {"8080"}


def test_a_task_on_the_nodes_network_has_its_nodes_address_and_ports() -> None:
    said = found(web(own=()))
    for kind in ("containerip", "agentip", "autoip"):
        assert said[f"web-group.services.{kind}.{OWN}", "A"] == {str(NODE)}
        (service,) = said[f"_http._tcp.web-group.services.{kind}.{OWN}", "SRV"]
        assert service == f"group-web-1.web-group.services.{kind}.{OWN} 8080"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("groupapp.marathon.l4lb.thisdcos.directory", "groupapp.services.l4lb"),
        ("my.web.kafka.l4lb.thisdcos.directory", "my.web.kafka.l4lb"),
        ("app-group.marathon.containerip.dcos.thisdcos.directory", "app-group.services.containerip"),
        ("_http._tcp.app.metronome.agentip.dcos.thisdcos.directory", "_http._tcp.app.jobs.agentip"),
        ("marathon.autoip.dcos.thisdcos.directory", "services.autoip"),
        ("l4lb.thisdcos.directory", "l4lb"),
        ("app-group.marathon.mesos", "app-group.services.autoip"),
        ("app.marathon.slave.mesos", "app.services.agentip"),
        ("_http._app-group._tcp.marathon.mesos", "_http._tcp.app-group.services.autoip"),
        ("_app-group._udp.marathon.mesos", "_udp.app-group.services.autoip"),
        ("leader.mesos", "master"),
        ("marathon.mesos", "master"),
    ],
)
def test_names_of_dcos_are_other_words(theirs: str, ours: str) -> None:
    assert BOTH.canonical(theirs) == f"{ours}.{OWN}"
    assert ONLY_OWN.canonical(theirs) == theirs


LABELS = ("a", "_tcp", "_x", "slave", "marathon", "mesos", "dcos", "thisdcos", "directory", "")


@given(st.lists(st.sampled_from(LABELS)))
def test_whatever_is_asked_for_means_something(labels: list[str]) -> None:
    for name in (".".join(labels), ".".join([*labels, "mesos"]), ".".join([*labels, "thisdcos", "directory"])):
        assert isinstance(BOTH.canonical(name), str)
        Zone(BOTH).exists(name)


def test_tasks_and_vips_are_found_by_names_of_dcos() -> None:
    zone = Zone(BOTH)
    zone.put("name/1", web())
    zone.put("vip/1", NamedVip("services/groupweb", ip_address("100.127.0.1")))
    assert zone.find("web-group.marathon.mesos", "A") == [*addresses("100.64.0.1")]
    assert zone.find("web-group.marathon.slave.mesos", "A") == [NODE]
    assert zone.find("groupweb.marathon.l4lb.thisdcos.directory", "A") == [*addresses("100.127.0.1")]
    (service,) = zone.find("_web-group._tcp.marathon.mesos", "SRV")
    assert isinstance(service, Service) and service.port == 8080
    assert zone.find(service.target, "A") == [*addresses("100.64.0.1")]
    assert zone.find("_http._web-group._tcp.marathon.mesos", "SRV") == [service]
    for name in ("mesos", "thisdcos.directory", "marathon.containerip.dcos.thisdcos.directory"):
        assert zone.exists(name)
    assert not zone.exists("moon.marathon.mesos")


def test_names_of_vips() -> None:
    vip = NamedVip("services/groupweb", ip_address("100.127.0.1"))
    assert found(vip) == {
        (f"groupweb.services.l4lb.{OWN}", "A"): {"100.127.0.1"},
        ("1.0.127.100.in-addr.arpa", "PTR"): {f"groupweb.services.l4lb.{OWN}"},
    }
    assert found(NamedVip("", ip_address("10.1.2.3"))) == {}


def test_the_master_has_names() -> None:
    zone = Zone(Domains(OWN, master=(NODE,)))
    for name in (f"master.{OWN}", "leader.mesos", "marathon.mesos"):
        assert zone.find(name, "A") == [NODE]


def test_names_between_names_exist() -> None:
    zone = Zone(ONLY_OWN)
    zone.put("name/1", web())
    for name in (OWN, f"services.autoip.{OWN}", f"autoip.{OWN}", f"_tcp.web-group.services.autoip.{OWN}"):
        assert zone.exists(name) and zone.find(name, "A") == []
    assert not zone.exists(f"l4lb.{OWN}") and zone.owns(f"l4lb.{OWN}") and not zone.owns(f"not{OWN}")
    zone.remove("name/1")
    assert zone.exists(OWN) and not zone.exists(f"autoip.{OWN}")


THINGS = (web(1), web(2), web(1, own=()), web(3, (Port(1, "X", (Protocol.UDP,), host=2),)), NamedVip("s/a", NODE))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from((None, *THINGS))), max_size=20))
def test_a_zone_has_what_the_things_in_it_have_now(history: list[tuple[str, NamedTask | NamedVip | None]]) -> None:
    zone, things = Zone(BOTH), dict[str, NamedTask | NamedVip]()
    for key, thing in history:
        if thing is None:
            zone.remove(key)
            things.pop(key, None)
        else:
            zone.put(key, thing)
            things[key] = thing
    assert zone.keys() == things.keys()
    fresh = Zone(BOTH)
    for key, thing in things.items():
        fresh.put(key, thing)
    assert (zone._records, zone._above) == (fresh._records, fresh._above)


@given(st.sampled_from(THINGS))
def test_what_is_told_arrives(thing: NamedTask | NamedVip) -> None:
    assert from_wire(to_wire(thing)) == thing
