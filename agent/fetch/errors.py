"""Why a file can not be fetched: `Refused` when no other try will bring it, else `FetchError`. The text names it."""

from __future__ import annotations


class FetchError(Exception):
    pass


class Refused(FetchError):
    pass
