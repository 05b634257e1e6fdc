"""What CNI plug-ins answer: addresses of the container, contradictions, and errors in one line."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest

from netns.cni.execute import Ended
from netns.cni.result import PluginError, added, addresses, refuse_failure, supported_versions

INTERFACES = [{"name": "cni0"}, {"name": "eth0", "sandbox": "/x"}, {"name": "eth1", "sandbox": "/x"}]
RESULT = {"cniVersion": "1.0.0", "interfaces": INTERFACES, "ips": [{"address": "10.1.0.2/24", "interface": 1}]}


def ended(body: Any, code: int = 0, stderr: bytes = b"") -> Ended:
    return Ended(code, body if isinstance(body, bytes) else json.dumps(body).encode(), stderr)


def test_addresses_are_those_of_the_interface_in_the_container() -> None:
    ips = [
        {"address": "10.1.0.1/24", "interface": 0},
        {"address": "10.1.0.2/24", "interface": 1},
        {"address": "fd00::2/64", "interface": 1},
        {"address": "10.2.0.2/24", "interface": 2},
        {"address": "10.3.0.2/24"},
    ]
    found = addresses(RESULT | {"ips": ips}, "eth0")
    assert found == tuple(map(ip_address, ("10.1.0.2", "fd00::2", "10.3.0.2")))
    assert addresses({"cniVersion": "1.0.0"}, "eth0") == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cniVersion": "1.1.0"}, "is of version 1.1.0 and not 1.0.0"),
        ({"cniVersion": None}, "is of version None"),
        ({"ips": [{"address": "10.1.0.2/24", "interface": 3}]}, "ips name interface 3 of 3"),
        ({"ips": [{"address": "10.1.0.2/24", "interface": -1}]}, "ips name interface -1 of 3"),
        ({"ips": [{"address": "10.1.0.2/24", "interface": True}]}, r"ips\[0\].interface: must be a number"),
        ({"ips": [{"address": "10.1.0.2/99"}]}, r"ips\[0\].address: "),
        ({"ips": [{}]}, r"ips\[0\].address: must be a string"),
        ({"ips": [1]}, "ips: must be a list of objects"),
        ({"ips": [{"address": "10.1.0.2/24"}] * 257}, "ips: more than 256"),
        ({"interfaces": {}, "ips": [{"address": "10.1.0.2/24", "interface": 0}]}, "ips name interface 0 of 0"),
        ({"interfaces": "eth0"}, "interfaces: must be a list of objects"),
    ],
)
def test_results_that_contradict(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PluginError, match=words):
        added(ended(RESULT | changes), "1.0.0", "eth0", None)


def test_a_later_plugin_may_change_addresses_and_not_lose_them() -> None:
    other = RESULT | {"ips": [{"address": "10.1.0.9/24", "interface": 1}]}
    assert added(ended(other), "1.0.0", "eth0", RESULT) == other
    with pytest.raises(PluginError, match="leaves out 10.1.0.2 of the plug-in before it"):
        added(ended(RESULT | {"ips": []}), "1.0.0", "eth0", RESULT)


@pytest.mark.parametrize(
    ("said", "words", "code"),
    [
        (ended({"code": 7, "msg": "bad", "details": "a\nb"}, 1), r"bad: a b \(code 7\)", 7),
        (ended(b"", 1, b'{"code": 7, "msg": "bad"}'), r"bad \(code 7\)", 7),
        (ended({"code": "7", "msg": "bad"}, 1), "exit 1: ", None),
        (ended(b"", 2, b"\x1b[31mno\x00\n"), r"exit 2: \[31mno", None),
        (ended(b"", -9), "ended by SIGKILL", None),
        (ended(b"", -99), "ended by signal 99", None),
        (ended(b"\xff", 1), "exit 1: \ufffd", None),
        (ended({"code": 1, "msg": "x" * 9999}, 1), r"x{300}\.\.\. \(code 1\)", 1),
    ],
)
def test_errors_in_one_line(said: Ended, words: str, code: int | None) -> None:
    with pytest.raises(PluginError, match=f"^{words}") as caught:
        refuse_failure(said)
    assert caught.value.code == code
    assert str(caught.value).isprintable()


def test_versions() -> None:
    assert supported_versions(ended({"supportedVersions": ["1.0.0", 2]})) == {"1.0.0"}
    with pytest.raises(PluginError, match="no supportedVersions"):
        supported_versions(ended(b"hello"))
