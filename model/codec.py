"""Model objects as JSON, for what is kept on disk: the master's store and the agent's checkpoint.

Readable on purpose: at night, an operator opens these with `cat`.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


class Damaged(ValueError):
    """The bytes are not what `encode` wrote."""


class Codec(Generic[T]):
    """`encode` and `decode` for one dataclass, nested ones included."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._adapter: TypeAdapter[T] = TypeAdapter(kind)

    def encode(self, value: T) -> bytes:
        return self._adapter.dump_json(value)

    def decode(self, data: bytes) -> T:
        """Raises Damaged."""
        try:
            return self._adapter.validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise Damaged(f"{self._kind.__name__}: {where}: {first['msg']}") from error
