"""The VIPs that a definition asks for, and what is against them beside the definition itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


class Claimed:
    """What apps ask for, so that a look at one does not cost a look at all."""

    def __init__(self) -> None:
        self._asked: dict[str, set[Asked]] = {}  # by app
        self._owners: dict[Asked, dict[str, None]] = {}

    def put(self, app_id: str, definition: Definition | PodDefinition | None) -> None:
        """The app is this one now; None: there is none."""
        for asked in self._asked.pop(app_id, ()):
            del self._owners[asked][app_id]
            if not self._owners[asked]:
                del self._owners[asked]
        if definition is not None and (found := {claim.asked for claim in claims(definition)}):
            self._asked[app_id] = found
            for asked in found:
                self._owners.setdefault(asked, {})[app_id] = None

    def owner(self, asked: Asked, but: str) -> str:
        """Another app than `but` that asks for it; empty: none does."""
        return next((app_id for app_id in self._owners.get(asked, ()) if app_id != but), "")


def problems(
    definition: Definition | PodDefinition,
    known: Claimed,
    refusal: Callable[[VipLabel], str],
) -> Iterator[tuple[Location, str]]:
    """`refusal` is what the cluster says of a label (empty: nothing)."""
    first: dict[Asked, Location] = {}
    for claim in claims(definition):
        said = refusal(claim.label)
        if owner := known.owner(claim.asked, definition.id):
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
