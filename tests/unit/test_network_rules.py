"""What a network must be, alone and beside others: refused by its field, and by what is in its way."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from master.network_rules import (
    ANY_SUBNET,
    Refused,
    any_subnet,
    any_vni,
    fitting_prefix,
    last_part,
    refuse_bad,
    refuse_conflicts,
)
from master.networks import DEFAULTS
from model.network import Network, NetworkKind, Subnet, free_subnet, overlap
from tests.unit.cluster import node

POOL = ip_network("100.127.0.0/16")
GOOD = Network("prod", NetworkKind.OVERLAY, (ip_network("10.20.0.0/16"), ip_network("fd20::/64")), vni=2000)
CNI = Network("site", NetworkKind.CNI, cni=json.dumps({"name": "site", "plugins": [{"type": "bridge"}]}))


def subnets(*texts: str) -> tuple[Subnet, ...]:
    return tuple(map(ip_network, texts))


@pytest.mark.parametrize("network", [GOOD, CNI, *(each for each in DEFAULTS if each.subnets)])
def test_these_are_good(network: Network) -> None:
    refuse_bad(network)
    refuse_conflicts(network, [each for each in DEFAULTS if each.name != network.name], [node("n1")], (POOL,))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "Prod"}, "name: lower-case letters"),
        ({"kind": NetworkKind.HOST}, "kind: a cluster has one network of kind host"),
        ({"kind": NetworkKind.BRIDGE}, "vni: a network of kind bridge has none"),
        ({"vni": 0}, "vni: 0 is not from 1 to 16777215"),
        ({"vni": 1 << 24}, "vni: 16777216 is not from"),
        ({"subnets": ()}, "subnets: there must be one"),
        ({"subnets": subnets("10.20.0.0/25")}, "subnets: 10.20.0.0/25 is too small for a block of a node"),
        ({"subnets": subnets("10.20.0.0/16", "10.20.4.0/24")}, "subnets: 10.20.4.0/24 overlaps 10.20.0.0/16"),
        ({"subnets": subnets("169.254.0.0/17")}, "subnets: 169.254.0.0/17 overlaps 169.254.0.0/16"),
        ({"subnets": subnets("fe80::/64")}, "subnets: fe80::/64 overlaps fe80::/10"),
        ({"subnets": subnets(*(f"10.{n}.0.0/16" for n in range(9)))}, "subnets: 9 are more than 8"),
        ({"block_prefix": 31}, "block_prefix: a /31 has no room for a container: /30 or larger"),
        ({"block_prefix6": 97}, "block_prefix6: a /97 has no room"),
        ({"mtu": 1279}, "mtu: 1279 is less than the 1280"),
        ({"cni": "{}"}, "cni: a network of kind overlay has no plug-ins"),
        ({"static": subnets("10.21.0.0/24")}, "static: 10.21.0.0/24 is not part of 10.20.0.0/16, fd20::/64"),
        ({"static": subnets("10.20.0.0/28")}, "static: 10.20.0.0/28 is less than a block"),
        ({"static": subnets("10.20.0.0/16")}, "static: 10.20.0.0/16 is all of a subnet"),
        (
            {"static": subnets("fd20::/80")},
            "static: fd20::/80: what a task of this network asks for is an IPv4 address",
        ),
    ],
)
def test_these_are_bad(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as refused:
        refuse_bad(replace(GOOD, **changes))
    assert str(refused.value).startswith(says)
    assert not refused.value.conflict


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cni": "{"}, "cni: is no JSON"),
        ({"cni": "[]"}, "cni: must be a configuration list"),
        ({"cni": '{"plugins": []}'}, "cni: plugins: there must be one"),
        ({"subnets": subnets("10.20.0.0/16")}, "subnets: that of a network of kind cni"),
        ({"mtu": 1400}, "mtu: that of a network of kind cni"),
    ],
)
def test_of_plug_ins(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused, match=says):
        refuse_bad(replace(CNI, **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "overlay"}, 'name: there is a network "overlay" already'),
        ({"vni": 1024}, 'vni: 1024 is that of network "overlay"'),
        ({"subnets": subnets("100.80.0.0/16")}, 'subnets: 100.80.0.0/16 overlaps 100.64.0.0/11 of network "overlay"'),
        ({"subnets": subnets("fd01::/16")}, 'subnets: fd01::/16 overlaps fd01:b::/64 of network "overlay"'),
        ({"subnets": subnets("100.127.4.0/24")}, "subnets: 100.127.4.0/24 overlaps 100.127.0.0/16, the pool of"),
        ({"subnets": subnets("10.0.0.0/16")}, "subnets: 10.0.0.0/16 has in it 10.0.0.1, the address of node n1"),
    ],
)
def test_what_is_in_its_way_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as refused:
        refuse_conflicts(replace(GOOD, **changes), DEFAULTS, [node("n1")], (POOL,))
    assert str(refused.value).startswith(says)
    assert refused.value.conflict


def test_what_is_chosen_is_free() -> None:
    others = list(DEFAULTS)
    for number in range(15):
        subnet = any_subnet(others, (POOL,))
        network = Network(f"n{number}", NetworkKind.OVERLAY, (subnet,), vni=any_vni(others))
        refuse_conflicts(network, others, [node("n1")], (POOL,))
        others.append(network)
    assert overlap(others[-1].subnets[0], ANY_SUBNET)
    with pytest.raises(Refused, match="subnets: no /16 of 100.112.0.0/12 is left: say which"):
        any_subnet(others, (POOL,))


@given(st.integers(8, 30), st.integers(0, 2**32 - 1))
def test_what_is_left_out_fits(prefix: int, bits: int) -> None:
    subnet = IPv4Network((bits, prefix), strict=False)
    chosen = fitting_prefix([subnet], 4)
    network = Network("n", NetworkKind.BRIDGE, (subnet,), chosen)
    static = last_part(network)
    assert subnet.prefixlen <= chosen <= 30
    assert all(part != subnet and overlap(part, subnet) and part.prefixlen <= chosen for part in static)
    assert bool(static) == (chosen > subnet.prefixlen)
    assert free_subnet(subnet, chosen, static) is not None
    assert ip_address(int(subnet.network_address)) not in (static or (ip_network("::/128"),))[0]
