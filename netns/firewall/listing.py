"""What the firewall's table lacks of what it should be, or has too much. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from netns.firewall.change import GuestElement, Ruleset
from netns.nft.listing import Listing, changed, elements, frame, lacking, plain


def differences(listing: Listing, remembered: Listing, ruleset: Ruleset, guests: Iterable[GuestElement]) -> list[str]:
    """In words; none when it is as it should be."""
    desired = {name: {plain(str(element)) for element in of.elements} for name, of in ruleset.sets.items()}
    for name, element in guests:
        desired[name].add(element)
    return sorted(changed(frame(listing), remembered) | lacking(desired, elements(listing)))
