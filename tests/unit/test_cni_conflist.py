"""CNI configuration lists: what is refused and how it is named, and the request that a plug-in gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns.cni.conflist import MAX_BYTES, parse, request
from netns.driver import NetworkError

GOOD: dict[str, Any] = {"cniVersion": "1.0.0", "name": "sdn", "plugins": [{"type": "bridge"}]}


def nested(depth: int) -> Any:
    return {"x": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": None}, "cni.name: must match"),
        ({"name": "../x"}, "cni.name: must match"),
        ({"Name": "x"}, 'cni.Name: is spelled "name"'),
        ({"cniVersion": "0.4.0"}, "cni.cniVersion: 0.4.0: must be 1.0.0 or 1.1.0"),
        ({"cniVersion": ["1.0.0"]}, "cni.cniVersion: "),
        ({"cniVersions": "1.0.0"}, "cni.cniVersions: must be a list"),
        ({"plugins": []}, "cni.plugins: must be a list of at least one"),
        ({"plugins": "bridge"}, "cni.plugins: must be a list"),
        ({"plugins": [{"type": "a"}] * 17}, "cni.plugins: at most 16"),
        ({"plugins": [{"type": "a"}, 1]}, r"cni.plugins\[1\]: must be an object"),
        ({"plugins": [{}]}, r"cni.plugins\[0\].type: is missing"),
        ({"plugins": [{"type": {"a": 1}}]}, r"cni.plugins\[0\].type: "),
        ({"plugins": [{"type": ["a"]}]}, r"cni.plugins\[0\].type: "),
        ({"plugins": [{"type": "../../bin/ls"}]}, r'cni.plugins\[0\].type: "../../bin/ls" is not the plain name'),
        ({"plugins": [{"type": "a", "ipam": {"type": "../b"}}]}, r"cni.plugins\[0\].ipam.type: "),
        ({"plugins": [{"type": "a", "x": [{"type": "b/c"}]}]}, r"cni.plugins\[0\].x\[0\].type: "),
        ({"plugins": [{"type": "a", "prevResult": {}}]}, r"cni.plugins\[0\].prevResult: is not for"),
        ({"plugins": [{"type": "a", "cni.dev/valid-attachments": []}]}, r"cni.plugins\[0\].cni.dev/valid"),
        ({"plugins": [{"type": "a", "capabilities": []}]}, r"cni.plugins\[0\].capabilities: must be an object"),
        ({"disableCheck": "yes"}, "cni.disableCheck: must be true or false"),
        ({"x": nested(20)}, "cni: is nested deeper than 16"),
        ({"x": float("nan")}, "cni: is not JSON: NaN"),
        ({"x": "y" * MAX_BYTES}, "cni: is larger than 64 KiB"),
    ],
)
def test_refused_by_field(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(NetworkError, match=f"^{words}"):
        parse(json.dumps(GOOD | changes))


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "is missing"), ("{", "is not JSON"), ("[]", "must be an object"), ("[" * 60000, "is not JSON")],
)
def test_what_is_no_document(text: str, words: str) -> None:
    with pytest.raises(NetworkError, match=f"^cni: {words}"):
        parse(text)


def test_versions_best_first() -> None:
    assert parse(json.dumps(GOOD)).versions == ("1.0.0",)
    several = parse(json.dumps(GOOD | {"cniVersion": "0.3.1", "cniVersions": ["1.0.0", "1.1.0", "9.0.0"]}))
    assert several.versions == ("1.1.0", "1.0.0")
    alone = {key: value for key, value in GOOD.items() if key != "cniVersion"} | {"cniVersions": ["1.1.0"]}
    assert parse(json.dumps(alone)).versions == ("1.1.0",)


def test_plugins_say_what_they_can_and_whom_they_execute() -> None:
    ports = {"type": "portmap", "capabilities": {"portMappings": True, "bandwidth": False}}
    found = parse(json.dumps(GOOD | {"plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, ports]}))
    assert [plugin.delegates for plugin in found.plugins] == [("host-local",), ()]
    assert found.capabilities == {"portMappings"}
    assert (found.disable_check, found.disable_gc) == (False, False)


def test_request_is_the_configuration_and_what_the_specification_adds() -> None:
    config = {"type": "portmap", "snat": True, "x": {"y": [1]}, "cniVersion": "0.1.0", "capabilities": {"mac": True}}
    found = parse(json.dumps(GOOD | {"plugins": [config]}))
    [plugin] = found.plugins
    base = {"type": "portmap", "snat": True, "x": {"y": [1]}, "cniVersion": "1.1.0", "name": "sdn"}
    assert json.loads(request(found, plugin, "1.1.0")) == base
    asked = request(found, plugin, "1.1.0", capabilities={"mac": "02::", "ips": []}, previous={"ips": []})
    assert json.loads(asked) == base | {"runtimeConfig": {"mac": "02::"}, "prevResult": {"ips": []}}
    collect = json.loads(request(found, plugin, "1.1.0", valid=[("web", "eth0")]))
    assert collect == base | {"cni.dev/valid-attachments": [{"containerID": "web", "ifname": "eth0"}]}


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text() | st.just("type"), children, max_size=3)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "cniVersions", "disableGC", "x"]), JSON), JSON)
def test_anything_is_accepted_or_refused(changes: dict[str, Any], plugin: Any) -> None:
    document = GOOD | {"plugins": [plugin]} | changes
    try:
        found = parse(json.dumps(document))
    except NetworkError as error:
        assert str(error).startswith("cni")
    else:
        assert all("/" not in plugin.type for plugin in found.plugins)
