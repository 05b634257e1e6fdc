"""What nft says that there is (libnftables-json(5)), so that it can be compared with what there should be. Pure.

Handles make the comparison of rules simple: the kernel gives each rule a number that no other of the table ever has, so
a list of rules that was remembered with their handles says of every change that there was one. Elements have none, and
are compared with those that should be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Any

from model.network import Subnet

Listing = list[dict[str, Any]]


def frame(listing: Listing) -> Listing:
    """All but the elements of the sets."""
    return [_without_elements(each) for each in listing if "metainfo" not in each]


def elements(listing: Listing) -> dict[str, set[str]]:
    """By set or map, as texts: `key : value` of a map."""
    return {of["name"]: set(map(_element, of.get("elem", ()))) for of in _sets(listing)}


def changed(one: Listing, other: Listing) -> set[str]:
    """In which parts two frames differ, in words."""
    unequal = [each for each in one if each not in other] + [each for each in other if each not in one]
    return set(map(_describe, unequal))


def lacking(desired: Mapping[str, set[str]], present: Mapping[str, set[str]]) -> set[str]:
    """What sets that are there lack or have too much, in words."""
    words = set()
    for name, of in desired.items():
        if name in present and (missing := len(of - present[name])):
            words.add(f"{name} lacked {missing} of {len(of)} elements")
        if name in present and (strange := len(present[name] - of)):
            words.add(f"{name} had {strange} elements that are not ours")
    return words


def collapsed(subnets: Iterable[Subnet], version: int) -> list[Subnet]:
    """Those of a version of IP, without what others contain: nft refuses intervals that overlap."""
    if version == 4:
        return list(collapse_addresses(subnet for subnet in subnets if isinstance(subnet, IPv4Network)))
    return list(collapse_addresses(subnet for subnet in subnets if isinstance(subnet, IPv6Network)))


def plain(element: str) -> str:
    """As nft says it: a single address without the length of its prefix, a name without quotes."""
    key, colon, value = element.partition(" : ")
    key = key.strip('"')
    if key.endswith("/32" if "." in key else "/128"):
        key = key.partition("/")[0]
    return key + colon + value


def _describe(item: dict[str, Any]) -> str:
    [(kind, of)] = item.items()
    return f"chain {of['chain']} was changed" if kind == "rule" else f"{kind} {of['name']} was changed"


def _without_elements(item: dict[str, Any]) -> dict[str, Any]:
    return {kind: {key: value for key, value in of.items() if key != "elem"} for kind, of in item.items()}


def _sets(listing: Listing) -> list[Mapping[str, Any]]:
    return [of for item in listing for kind, of in item.items() if kind in ("set", "map")]


def _element(said: Any) -> str:
    match said:
        case [key, value]:
            return f"{_element(key)} : {_element(value)}"
        case {"concat": parts}:
            return " . ".join(map(_element, parts))
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"elem": {"val": value}}:
            return _element(value)
        case {"goto": {"target": chain}}:
            return f"goto {chain}"
    return str(said)
