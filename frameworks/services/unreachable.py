"""What becomes of a task whose node is away (`marathon.raml: unreachableStrategy`, `killSelection`). Pure.

Without a strategy it is LOST after as long as the master waits for any node. With one its app decides: after
`inactiveAfterSeconds` another one is started elsewhere, and after `expungeAfterSeconds` it is given up: should its node
come back, it ends. Both count from when the node is unreachable. With "disabled" it is waited for until its node is
removed.
"""

from __future__ import annotations

from math import inf
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from frameworks.services.fields import STRICT, invalid

LONGEST_S = 365 * 86400
DISABLED = "disabled"

KillSelection = Literal["YOUNGEST_FIRST", "OLDEST_FIRST"]


class UnreachableStrategy(BaseModel):
    model_config = STRICT

    inactiveAfterSeconds: Annotated[int, Field(ge=0, le=LONGEST_S)] = 0
    expungeAfterSeconds: Annotated[int, Field(ge=0, le=LONGEST_S)] = 0
    disabled: bool = False

    @model_validator(mode="before")
    @classmethod
    def _word_or_object(cls, value: object) -> object:
        if value == DISABLED:
            return {"disabled": True}
        if not isinstance(value, dict):
            raise invalid(f'must be "{DISABLED}", or have inactiveAfterSeconds and expungeAfterSeconds')
        if "disabled" in value:
            raise invalid(f'"{DISABLED}" is a word in the place of the object, not a field of it')
        return value

    @model_validator(mode="after")
    def _in_order(self) -> UnreachableStrategy:
        if self.expungeAfterSeconds < self.inactiveAfterSeconds:
            raise invalid("expungeAfterSeconds must not be less than inactiveAfterSeconds")
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, fields: SerializerFunctionWrapHandler) -> Any:
        return DISABLED if self.disabled else {key: each for key, each in fields(self).items() if key != "disabled"}

    @property
    def inactive_after_s(self) -> float:
        return inf if self.disabled else float(self.inactiveAfterSeconds)

    @property
    def expunged_after_s(self) -> float:
        return inf if self.disabled else float(self.expungeAfterSeconds)


def _nothing_is_absent(value: object) -> object:
    return None if value in (None, 0, "", [], {}) else value


Unreachable = Annotated[UnreachableStrategy | None, BeforeValidator(_nothing_is_absent)]


def times(strategy: UnreachableStrategy | None) -> tuple[float, float]:
    """After how many seconds a task counts no more, and after how many it is given up."""
    return (inf, inf) if strategy is None else (strategy.inactive_after_s, strategy.expunged_after_s)
