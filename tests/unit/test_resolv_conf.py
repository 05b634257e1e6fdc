"""What a container's resolver reads."""

from __future__ import annotations

from ipaddress import ip_address

from isolators.resolv_conf import resolv_conf

SERVERS = tuple(map(ip_address, ("100.64.0.1", "fd01:b::1")))
OWN = "services.l4lb.tepui.internal services.autoip.tepui.internal"


def test_it_asks_the_node_and_searches_what_the_node_searches() -> None:
    node = "domain old.example\nnameserver 192.0.2.53\nsearch a.example b.example\noptions ndots:2 rotate\n"
    assert resolv_conf(SERVERS, "services", "tepui.internal", node).splitlines() == [
        "nameserver 100.64.0.1",
        "nameserver fd01:b::1",
        f"search {OWN} a.example b.example",
        "options ndots:2 rotate",
    ]


def test_a_node_without_any_is_enough() -> None:
    for node in ("", "search \n", "nameserver 192.0.2.53\n"):
        lines = resolv_conf(SERVERS * 2, "services", "tepui.internal", node).splitlines()
        assert lines[-1] == f"search {OWN}" and len(lines) == 4  # no more servers than are read
