"""What a service is made of: its image, and files that are fetched (`marathon.raml: DockerContainer, Artifact`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from frameworks.services.confinement import Parameters
from frameworks.services.fields import STRICT, invalid
from model.fetch import Fetch, problem
from model.image import ImageSpec, Rules

REFERENCE_MOST = 1024
FETCHES_MOST = 100


def _reference(value: str) -> str:
    """What can be told without the node; the node says the rest."""
    if not value.isprintable() or " " in value or not value:
        raise invalid(f"{value!r} is no name of an image")
    return value


def _not_privileged(value: object) -> None:
    if value:
        raise invalid("privileged containers are not run, for they are none: ask for single capabilities instead")


def _no_pull_config(value: object) -> None:
    if value:
        raise invalid("is not supported by this version: fetch a .docker/config.json, or put it on the nodes")


def _no_network(value: object) -> None:
    if value:
        raise invalid("is from before Marathon 1.5: use networks and container/portMappings")


class DockerImage(BaseModel):
    model_config = STRICT

    image: Annotated[str, Field(max_length=REFERENCE_MOST), AfterValidator(_reference)] | None = None
    forcePullImage: bool = False
    privileged: Annotated[None, BeforeValidator(_not_privileged)] = None
    parameters: Parameters = []
    pullConfig: Annotated[None, BeforeValidator(_no_pull_config)] = None
    network: Annotated[None, BeforeValidator(_no_network)] = None
    portMappings: Annotated[None, BeforeValidator(_no_network)] = None

    def of_task(self, kind: Literal["MESOS", "DOCKER"], with_cmd: bool) -> ImageSpec | None:
        """`args` are the entrypoint's; `cmd` is all that is executed. None: the node's own file system."""
        if self.image is None:
            return None
        rules = Rules.DOCKER if kind == "DOCKER" else Rules.MESOS
        return ImageSpec(self.image, self.forcePullImage, rules, arguments=not with_cmd)


class Artifact(BaseModel):
    """`digest` is ours."""

    model_config = STRICT

    uri: Annotated[str, Field(min_length=1)]
    extract: bool = True
    executable: bool = False
    cache: bool = False
    destFile: str | None = None
    digest: str | None = None

    @model_validator(mode="after")
    def _sensible(self) -> Artifact:
        if wrong := problem(self.of_task()):
            raise invalid(wrong)
        return self

    def of_task(self) -> Fetch:
        return Fetch(self.uri, self.destFile or "", self.extract, self.executable, self.cache, self.digest or "")


def _sensible_uri(uri: str) -> str:
    if wrong := problem(Fetch(uri)):
        raise invalid(wrong)
    return uri


Artifacts = Annotated[list[Artifact], Field(max_length=FETCHES_MOST)]
Uris = Annotated[list[Annotated[str, AfterValidator(_sensible_uri)]], Field(max_length=FETCHES_MOST)]


def fetches(artifacts: Sequence[Artifact], uris: Sequence[str]) -> tuple[Fetch, ...]:
    """`uris` is how it was written before Marathon 0.15."""
    return (*(artifact.of_task() for artifact in artifacts), *map(Fetch, uris))
