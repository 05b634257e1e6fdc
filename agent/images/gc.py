"""Which images to remove when a node's disk runs full: those unused for the longest time, until there is room.

Pure. An image in use is never chosen, and what a removal frees is what no image left has.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

HIGH, LOW = 0.85, 0.75  # of the file system: above HIGH images go, until it would be LOW


@dataclass(frozen=True, slots=True)
class Kept:
    """An image in the store; `layers` are diff-ids."""

    reference: str
    used_at: float
    layers: tuple[str, ...]


def victims(
    images: Iterable[Kept], in_use: Collection[str], sizes: Mapping[str, int], needed_bytes: int
) -> tuple[Kept, ...]:
    """`in_use` are references, `sizes` is bytes by diff-id."""
    left = list(images)
    chosen: list[Kept] = []
    for image in sorted(left, key=lambda image: image.used_at):
        if needed_bytes <= 0:
            break
        if image.reference not in in_use:
            left.remove(image)
            chosen.append(image)
            needed_bytes -= freed(image, left, sizes)
    return tuple(chosen)


def freed(image: Kept, others: Iterable[Kept], sizes: Mapping[str, int]) -> int:
    held = {layer for other in others for layer in other.layers}
    return sum(sizes.get(layer, 0) for layer in set(image.layers) - held)


def pressure(directory: Path) -> int:
    """How many bytes have to go from the file system of `directory`; 0 when it is not full."""
    status = os.statvfs(directory)
    total = (status.f_blocks - status.f_bfree + status.f_bavail) * status.f_frsize
    used = total - status.f_bavail * status.f_frsize
    return int(used - LOW * total) if used > HIGH * total else 0
