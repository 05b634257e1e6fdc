"""What nft says that there is, compared with what there should be. Pure.

Handles make the comparison of rules simple: the kernel gives each rule a number that no other of the table ever has, so
a list of rules that was remembered with their handles says of every change that there was one. Elements have none, and
are compared with those that should be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from netns.firewall.change import GuestElement, Ruleset

Listing = list[dict[str, Any]]  # libnftables-json(5)


def frame(listing: Listing) -> Listing:
    """All but the elements of the sets."""
    return [_without_elements(each) for each in listing if "metainfo" not in each]


def differences(listing: Listing, remembered: Listing, ruleset: Ruleset, guests: Iterable[GuestElement]) -> list[str]:
    """In words; none when it is as it should be."""
    found = frame(listing)
    words = {_describe(each) for each in _unequal(found, remembered)}
    desired = {name: {_plain(str(element)) for element in of.elements} for name, of in ruleset.sets.items()}
    for name, element in guests:
        desired[name].add(element)
    present = {of["name"]: set(map(_element, of.get("elem", ()))) for of in _sets(listing)}
    for name, elements in desired.items():
        if name in present and (missing := len(elements - present[name])):
            words.add(f"{name} lacked {missing} of {len(elements)} elements")
        if name in present and (strange := len(present[name] - elements)):
            words.add(f"{name} had {strange} elements that are not ours")
    return sorted(words)


def _unequal(one: Listing, other: Listing) -> Listing:
    return [each for each in one if each not in other] + [each for each in other if each not in one]


def _describe(item: dict[str, Any]) -> str:
    [(kind, of)] = item.items()
    return f"chain {of['chain']} was changed" if kind == "rule" else f"{kind} {of['name']} was changed"


def _without_elements(item: dict[str, Any]) -> dict[str, Any]:
    return {kind: {key: value for key, value in of.items() if key != "elem"} for kind, of in item.items()}


def _sets(listing: Listing) -> list[Mapping[str, Any]]:
    return [of for item in listing for kind, of in item.items() if kind in ("set", "map")]


def _plain(element: str) -> str:
    """As nft says it: a single address without the length of its prefix, a name without quotes."""
    key, colon, value = element.partition(" : ")
    key = key.strip('"')
    if key.endswith("/32" if "." in key else "/128"):
        key = key.partition("/")[0]
    return key + colon + value


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
