"""Yes or no in a query: clients write `?force=true`, `?force=True` and `?force`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BeforeValidator

Flag = Annotated[bool, Query(), BeforeValidator(lambda value: True if value == "" else value)]
