"""The free and the used addresses of one block, in memory.

An address that was never used comes first, then the one that was given back longest ago: an address rests as long as
the block allows, so that what still sends to its last owner does not reach the next. Only what was ever used takes
memory, so a block may be as large as IPv6 makes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from model.network import Address, Block


class Pool:
    """`rested` are the addresses given back, the longest ago first; `held` are never given out."""

    def __init__(self, block: Block, used: set[Address], rested: list[Address], held: set[Address]) -> None:
        self.block = block
        self._used = {address for address in used if address in block.subnet}
        self._held = {address for address in held if address in block.subnet}
        self._rested = OrderedDict.fromkeys(a for a in rested if a in block.subnet and a not in self._used)
        self._fresh: Iterator[int] = iter(block.leasable())

    @property
    def used(self) -> int:
        return len(self._used)

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def size(self) -> int:
        return len(self.block.leasable())

    def take(self) -> Address | None:
        """The address that has rested longest; None when the block is exhausted."""
        for number in self._fresh:
            address = self.block.subnet.network_address + number
            if self._free(address) and address not in self._rested:
                self._used.add(address)
                return address
        while self._rested:
            address, _ = self._rested.popitem(last=False)
            if address not in self._held:
                self._used.add(address)
                return address
        return None

    def take_this(self, address: Address) -> bool:
        """False when it is in use, held back, or not one that a container may have."""
        number = int(address) - int(self.block.subnet.network_address)
        if number not in self.block.leasable() or not self._free(address):
            return False
        self._rested.pop(address, None)
        self._used.add(address)
        return True

    def give_back(self, address: Address) -> bool:
        """False when it is not one of this pool's."""
        if address not in self._used:
            return False
        self._used.remove(address)
        self._rested[address] = None
        return True

    def _free(self, address: Address) -> bool:
        return address not in self._used and address not in self._held
