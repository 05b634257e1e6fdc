"""Tables of nftables that are ours alone, and the knowledge of whether somebody else has changed them.

The kernel counts everybody's transactions. As long as it has counted none but ours, our tables are as we left them, and
nothing needs to be read. So all of us that write to nftables in one network namespace share an `NftSession`, which
tells ours from others'; else each would take the other for a stranger.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from netns.driver import NetworkError
from netns.nft.libnftables import Nftables
from netns.nft.listing import Listing, frame
from netns.nft.netfilter import Netfilter


class NftSession:
    """For the network namespace of the thread that opens it. Whoever will have many files open does so early (see
    `libnftables`); else it is opened when first needed."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._nft: Nftables | None = None
        self._netfilter: Netfilter | None = None
        self._generation = 0
        self._strangers = 0

    def open(self) -> None:
        """Raises NetworkError."""
        with self.lock:
            if self._nft is None or self._netfilter is None:
                self._nft, self._netfilter = Nftables(), Netfilter()
                self._generation = self._netfilter.generation()
                self._strangers += 1  # who knows

    def close(self) -> None:
        with self.lock:
            if self._nft is not None and self._netfilter is not None:
                self._nft.close()
                self._netfilter.close()
            self._nft = self._netfilter = None

    def run(self, commands: str) -> None:
        """One transaction. Raises NetworkError."""
        with self.lock:
            self.strangers()
            assert self._nft is not None
            self._nft.run(commands)
            self._generation += 1
            self.strangers()

    def strangers(self) -> int:
        """How often others were found to have changed something, in whatever table."""
        with self.lock:
            self.open()
            assert self._netfilter is not None
            generation = self._netfilter.generation()
            if generation != self._generation:
                self._strangers += 1
                self._generation = generation
            return self._strangers

    def list(self, table: str, terse: bool) -> Listing | None:
        """None: there is no such table. `terse`: without elements. Raises NetworkError."""
        with self.lock:
            self.open()
            assert self._nft is not None
            try:
                return self._nft.read(f"list table {table}", terse)
            except NetworkError as error:
                if "No such file or directory" in str(error):
                    return None
                raise


class OwnTable:
    """A table by its family and name. The caller sees to it that calls do not overlap."""

    def __init__(self, name: str, session: NftSession) -> None:
        self._name = name
        self._session = session
        self._frame: Listing | None = None  # as the kernel says our rules; None: not known for certain
        self._seen: int | None = None  # of `NftSession.strangers`, when it was last found to be as it should

    def load(self, commands: str) -> None:
        """`commands` make the whole table, in the place of whatever is there. Raises NetworkError."""
        seen = self._session.strangers()
        self._session.run(self._dropped() + commands)
        self._remember(seen)

    def change(self, commands: str, whole: Callable[[], str], reshaped: bool = False) -> None:
        """As `commands` say; what can not be changed, because somebody removed or changed it, is put there anew, as
        `whole` says. `reshaped`: chains or rules of the table are others then. Raises NetworkError."""
        if not commands:
            return
        if reshaped and not self.untouched():  # what we would remember of it may be somebody else's
            return self.load(whole())
        try:
            self._session.run(commands)
        except NetworkError as error:
            try:
                self.load(whole())
            except NetworkError:
                raise error from None  # it says what the change was
            return
        if reshaped and self._seen is not None:
            self._remember(self._seen)

    def untouched(self) -> bool:
        """Nobody else has done anything since it was last found to be as it should."""
        return self._seen is not None and self._session.strangers() == self._seen

    def wrong(self, differences: Callable[[Listing, Listing], list[str]]) -> list[str]:
        """In words; none when the table is as it should be. `differences` compares what is listed now with the frame of
        what was, and is asked only if somebody else did something."""
        seen = self._session.strangers()
        if seen == self._seen:
            return []
        listing = self._session.list(self._name, terse=False)
        if listing is None:
            return [f"the table {self._name} was gone"]
        if self._frame is None:
            return [f"the table {self._name} was changed while we changed it"]
        wrong = differences(listing, self._frame)
        if not wrong:
            self._seen = seen
        return wrong

    def drop(self) -> None:
        """Also where there is none."""
        self._session.run(self._dropped())
        self._frame = self._seen = None

    def _dropped(self) -> str:
        return f"add table {self._name}\ndelete table {self._name}\n"

    def _remember(self, seen: int) -> None:
        """What the kernel made of our rules, if nobody else can have changed them since."""
        listing = self._session.list(self._name, terse=True)
        untouched = listing is not None and self._session.strangers() == seen
        self._frame, self._seen = (frame(listing), seen) if listing is not None and untouched else (None, None)
