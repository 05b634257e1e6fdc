"""The VIP back end for nftables: brings the kernel's table to what `nft_table.py` says, by the elements that differ.

The kernel is read only when somebody else has changed something (`netns/nft/own.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading

from netns.driver import NetworkError
from netns.nft.listing import Listing, changed, elements, frame, lacking
from netns.nft.own import NftSession, OwnTable
from netns.vip.backend import Table
from netns.vip.nft_table import CLIENTS, TABLE, NftTable, compile_table, desired, diff, load


class NftVips:
    """Implements `netns.vip.backend.Backend`, for the network namespace of the thread that opens the session.

    The kernel and what is known of it change together in a thread, whether or not the caller is cancelled."""

    def __init__(self, session: NftSession | None = None) -> None:
        self._session = session or NftSession()
        self._own = OwnTable(TABLE, self._session)
        self._lock = threading.Lock()
        self._applied: NftTable | None = None

    async def apply(self, table: Table) -> None:
        """What was removed or changed since by others is put back by `mend`. Raises NetworkError."""
        self._session.open()
        await asyncio.to_thread(self._apply, table)

    async def installed(self) -> str | None:
        """Of all rules and elements; of what the kernel numbers them by, nothing."""
        self._session.open()
        listing = await asyncio.to_thread(self._session.list, TABLE, False)
        return None if listing is None else _digest(listing)

    async def mend(self) -> list[str]:
        if self._applied is None or self._own.untouched():
            return []
        return await asyncio.to_thread(self._mend)

    async def remove(self) -> None:
        self._session.open()
        with self._lock:
            self._own.drop()
            self._applied = None

    async def close(self) -> None:
        """The rules stay, and so does the session, which others use."""

    def _apply(self, table: Table) -> None:
        with self._lock:
            try:
                wanted = compile_table(table, self._applied)
            except ValueError as error:
                raise NetworkError(f"apply VIP table: {error}") from error
            try:
                if self._applied is None or self._applied.subnets != wanted.subnets:
                    self._own.load(load(wanted))
                else:
                    chains = self._applied.chains() != wanted.chains()
                    self._own.change(diff(self._applied, wanted), lambda: load(wanted), reshaped=chains)
            except NetworkError as error:
                raise NetworkError(f"apply VIP table: {error}") from error
            self._applied = wanted

    def _mend(self) -> list[str]:
        with self._lock:
            applied = self._applied
            if applied is None:
                return []
            wrong = self._own.wrong(lambda listing, remembered: _differences(listing, remembered, applied))
            if wrong:
                self._own.load(load(applied))
            return wrong


def _differences(listing: Listing, remembered: Listing, applied: NftTable) -> list[str]:
    return sorted(changed(frame(listing), remembered) | lacking(desired(applied), elements(listing)))


def _digest(listing: Listing) -> str:
    sets = {name: sorted(of) for name, of in sorted(elements(listing).items()) if not name.startswith(CLIENTS)}
    rules = [
        {kind: {key: said for key, said in of.items() if key != "handle"}}
        for each in frame(listing)
        for kind, of in each.items()
    ]
    words = json.dumps([sets, sorted(json.dumps(rule, sort_keys=True) for rule in rules)])
    return hashlib.sha256(words.encode()).hexdigest()
