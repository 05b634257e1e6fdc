"""Join tokens in the store: minting, and redeeming exactly as often as a token allows."""

from __future__ import annotations

import time

from master.store.base import Conflict, Put, Store
from pki.token import Token, new_record, record_from_json, record_to_json, redeem


class Tokens:
    def __init__(self, store: Store, fingerprint: bytes) -> None:
        self._store = store
        self._fingerprint = fingerprint

    async def mint(self, ttl_s: float, uses: int | None) -> Token:
        token = Token.mint(self._fingerprint)
        await self._store.transaction(
            Put(token.key, record_to_json(new_record(token, time.time(), ttl_s, uses)), expected=0)
        )
        return token

    async def redeem(self, token: Token) -> None:
        """Takes one use off the token, on disk when it returns. Raises TokenRefused."""
        while True:
            entry = await self._store.get(token.key)
            record = record_from_json(entry.value) if entry is not None else None
            after = redeem(record, token.secret, time.time())
            assert entry is not None  # an unknown token was refused
            try:
                await self._store.transaction(Put(token.key, record_to_json(after), expected=entry.revision))
            except Conflict:
                continue  # another node took a use at the same time: look again
            return
