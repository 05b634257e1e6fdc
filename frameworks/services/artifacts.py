"""What a service is made of: its image, and files that are fetched (`marathon.raml: DockerContainer, Artifact`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from frameworks.services.confinement import Parameters
from frameworks.services.fields import STRICT, Location, invalid, refused_because
from frameworks.services.old_forms import DockerNetwork
from frameworks.services.ports import PortMapping
from model.fetch import Fetch, problem
from model.image import ImageSpec, Rules, may_use

REFERENCE_MOST = 1024
FETCHES_MOST = 100
SECRETS_MOST = 100
SOURCE_MOST = 256
SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


def _reference(value: str) -> str:
    """What can be told without the node; the node says the rest."""
    if not value.isprintable() or " " in value or not value:
        raise invalid(f"{value!r} is no name of an image")
    return value


def _source(value: str) -> str:
    if not SOURCE.fullmatch(value):
        raise invalid(f"{value!r} must be a name like team/registry: letters, digits, . _ - and single slashes")
    return value


def _not_privileged(value: object) -> object:
    if value:
        raise invalid("privileged containers are not run, for they are none: ask for single capabilities instead")
    return value


def _uri(value: str) -> str:
    """A path alone is one of the node's, as Mesos's fetcher has it."""
    return f"file://{quote(value)}" if value.startswith("/") and not value.startswith("//") else value


NoCredential = Annotated[None, refused_because("use pullConfig")]


class SecretSource(BaseModel):
    """What the nodes call it (`pull_secrets` in agent.toml)."""

    model_config = STRICT

    source: Annotated[str, Field(max_length=SOURCE_MOST), AfterValidator(_source)]


class PullConfig(BaseModel):
    """One of the definition's `secrets`."""

    model_config = STRICT

    secret: Annotated[str, Field(min_length=1)]


Reference = Annotated[str, Field(max_length=REFERENCE_MOST), AfterValidator(_reference)]
Secrets = Annotated[dict[str, SecretSource], Field(max_length=SECRETS_MOST)]


class DockerImage(BaseModel):
    model_config = STRICT

    image: Reference | None = None
    forcePullImage: bool = False
    privileged: Annotated[bool, BeforeValidator(_not_privileged)] = False
    parameters: Parameters = []
    pullConfig: PullConfig | None = None
    credential: NoCredential = None
    # As they were before Marathon 1.5: what is said in them is in `networks` and `container.portMappings` by now.
    network: DockerNetwork | None = Field(None, exclude=True)
    portMappings: list[PortMapping] | None = Field(None, exclude=True)

    @model_validator(mode="after")
    def _pulls_something(self) -> DockerImage:
        if self.pullConfig is not None and self.image is None:
            raise invalid("pullConfig needs an image")
        return self

    def of_task(self, kind: Literal["MESOS", "DOCKER"], with_cmd: bool, secrets: Secrets) -> ImageSpec | None:
        """`args` are the entrypoint's; `cmd` is all that is executed. None: the node's own file system."""
        if self.image is None:
            return None
        rules = Rules.DOCKER if kind == "DOCKER" else Rules.MESOS
        secret = secrets[self.pullConfig.secret].source if self.pullConfig else ""
        return ImageSpec(self.image, self.forcePullImage, rules, arguments=not with_cmd, pull_secret=secret)


class Artifact(BaseModel):
    """`digest` is ours."""

    model_config = STRICT

    uri: Annotated[str, Field(min_length=1), AfterValidator(_uri)]
    extract: bool = True
    executable: bool = False
    cache: bool = False
    destPath: str | None = None
    digest: str | None = None

    @model_validator(mode="after")
    def _sensible(self) -> Artifact:
        if wrong := problem(self.of_task()):
            raise invalid(wrong)
        return self

    def of_task(self) -> Fetch:
        return Fetch(self.uri, self.destPath or "", self.extract, self.executable, self.cache, self.digest or "")


Artifacts = Annotated[list[Artifact], Field(max_length=FETCHES_MOST)]


def fetches(artifacts: Sequence[Artifact]) -> tuple[Fetch, ...]:
    return tuple(artifact.of_task() for artifact in artifacts)


def pull_problems(
    image: Location, config: PullConfig | None, secrets: Secrets, owner: str
) -> Iterator[tuple[Location, str]]:
    """Why `owner` can not have the credentials for an image, each with its place; `image` is that of the image."""
    if config is None:
        return
    if config.secret not in secrets:
        yield (*image, "pullConfig", "secret"), f"{config.secret!r} is none of the definition's secrets"
    elif not may_use(owner, source := secrets[config.secret].source):
        yield ("secrets", config.secret, "source"), f"{source!r} is for apps below its path, which {owner} is not"
