"""What single values in definitions of apps and pods may be, and which fields are not honoured, with the reason."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from frameworks.services.fields import Whole, invalid, refused_because

ANY_ROLE = "*"  # there are no others
BUILT_IN = ("", "//cmd")  # executors
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}|[0-9]{1,5}(:[0-9]{1,5})?")
MAX_ID = 65535  # of a container's own range
ENV_NAME = re.compile(r"[^=\x00]+")
LABELS_BYTES = 512 * 1024
STRING_BYTES = 128 * 1024 - 1  # execve(2): MAX_ARG_STRLEN, with the NUL


def _matches(pattern: re.Pattern[str], rule: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise invalid(f"{value!r} {rule}")
        return value

    return AfterValidator(check)


def _executable(value: str) -> str:
    if "\x00" in value:
        raise invalid("must not contain a NUL character")
    if len(value.encode()) > STRING_BYTES:
        raise invalid(f"is longer than the {STRING_BYTES} bytes that the kernel takes")
    return value


def _user(value: str) -> str:
    if any(int(part) > MAX_ID for part in value.split(":") if part.isdecimal()):
        raise invalid(f"{value!r}: ids go up to {MAX_ID}")
    return value


def _bounded(labels: dict[str, str]) -> dict[str, str]:
    """Every task has a copy."""
    size = sum(len(key.encode()) + len(value.encode()) for key, value in labels.items())
    if size > LABELS_BYTES:
        raise invalid(f"are {size} bytes together: more than {LABELS_BYTES} are not kept")
    return labels


def _no_secret(value: object) -> object:
    if isinstance(value, dict) and "secret" in value:
        raise invalid("secrets are not supported here by this version: nothing keeps their values but for pullConfig")
    return value


def _executor(value: str) -> str:
    if value not in BUILT_IN:
        raise invalid(f"{value!r} is not supported: the agent itself runs all tasks, which is what //cmd means")
    return value


def _role(value: str) -> str:
    if value not in ("", ANY_ROLE):
        raise invalid(f'{value!r} is not supported: resources have no roles, which is what "{ANY_ROLE}" means')
    return ANY_ROLE


def _roles(value: list[str]) -> list[str]:
    if value not in ([], [ANY_ROLE]):
        raise invalid(
            f'must be ["{ANY_ROLE}"]: resources have no roles; constraints say on which nodes, by their attributes'
        )
    return value


def _no_gpus(value: object) -> int:
    if value not in (0, "", [], {}):
        raise invalid("is not supported by this version: nodes tell of no GPUs")
    return 0


Text = Annotated[str, AfterValidator(_executable)]
Amount = Annotated[float, Field(ge=0, le=2**40, allow_inf_nan=False), Whole]
Positive = Annotated[float, Field(gt=0, le=2**40, allow_inf_nan=False), Whole]
Seconds = Annotated[float, Field(ge=0, le=7 * 86400, allow_inf_nan=False), Whole]
Factor = Annotated[float, Field(ge=1, le=1000, allow_inf_nan=False), Whole]
Count = Annotated[int, Field(ge=0, le=100_000)]
EnvName = Annotated[str, _matches(ENV_NAME, "must not be empty or contain = or NUL")]
Environment = dict[EnvName, Annotated[Text, BeforeValidator(_no_secret)]]
User = Annotated[str, _matches(USER, "must be a name or decimal uid:gid"), AfterValidator(_user)]
Executor = Annotated[str, AfterValidator(_executor)]
Role = Annotated[str, AfterValidator(_role)]
Roles = Annotated[list[str], AfterValidator(_roles)]
Bounded = AfterValidator(_bounded)
Gpus = Annotated[int, BeforeValidator(_no_gpus)]

NoCheck = Annotated[None, refused_because("healthChecks and readinessChecks are made")]
NoExecutor = Annotated[None, refused_because("the agent runs tasks itself, with none between")]
NoImageLabels = Annotated[None, refused_because("an image is found by its id alone")]
NoPersistence = Annotated[None, refused_because("apps have persistent volumes, pods have none")]
NoRateLimit = Annotated[None, refused_because("backoffSeconds and backoffFactor say how fast tasks are started")]
NoSecret = Annotated[None, refused_because("nothing keeps the values of secrets but for pullConfig")]
NoSharedCgroup = Annotated[None, refused_because("each container has limits of its own")]
NoTerminal = Annotated[None, refused_because("tepui task exec -t gives a terminal to a command in a container")]
