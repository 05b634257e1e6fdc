"""The VIPs that a definition asks for, and what is against them beside the definition itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from frameworks.services.definition import Definition
from frameworks.services.fields import Location
from frameworks.services.pods.definition import PodDefinition
from master.rest.errors import ApiError, json_path
from model.vip import VipLabel, is_vip_label, parse_label

Asked = tuple[str, int]  # a name or an address, and the port


@dataclass(frozen=True, slots=True)
class Claim:
    """`place` is that of the port in the definition, and `key` that of the label."""

    place: Location
    key: str
    value: str
    label: VipLabel

    @property
    def asked(self) -> Asked:
        return self.label.name or str(self.label.address), self.label.port


def problems(
    definition: Definition | PodDefinition,
    others: Iterable[tuple[str, Definition | PodDefinition]],
    refusal: Callable[[VipLabel], str],
) -> Iterator[tuple[Location, str]]:
    """`others` are what is there already, by id; `refusal` is what the cluster says of a label (empty: nothing)."""
    owners = {claim.asked: app for app, other in others if app != definition.id for claim in claims(other)}
    first: dict[Asked, Location] = {}
    for claim in claims(definition):
        said = refusal(claim.label)
        if owner := owners.get(claim.asked):
            said = f"is that of {owner}"
        elif first.setdefault(claim.asked, claim.place) != claim.place:
            said = "is asked for by another port too"
        if said:
            yield (*claim.place, "labels", claim.key), f"label {claim.key}: {claim.value} {said}"


def refuse_bad(found: Mapping[Location, str]) -> None:
    """Raises ApiError that names the labels."""
    if found:
        raise ApiError(422, "Object is not valid", {json_path(place): [problem] for place, problem in found.items()})


def claims(definition: Definition | PodDefinition) -> Iterator[Claim]:
    for place, labels in _labels(definition):
        for key, value in sorted(labels.items()):
            if is_vip_label(key):
                yield Claim(place, key, value, parse_label(value))


def _labels(definition: Definition | PodDefinition) -> Iterator[tuple[Location, dict[str, str]]]:
    """Of every port."""
    if isinstance(definition, PodDefinition):
        for number, container in enumerate(definition.containers):
            for index, endpoint in enumerate(container.endpoints):
                yield ("containers", number, "endpoints", index), endpoint.labels
        return
    for index, mapping in enumerate(definition.container.portMappings):
        yield ("container", "portMappings", index), mapping.labels
    for index, port in enumerate(definition.portDefinitions or ()):
        yield ("portDefinitions", index), port.labels
