"""The layers of an image as lower layers of an overlay, each as an idmapped clone, so that ids in the image mean ids in
the container and no file is copied or changed for it.

They are attached below one directory that is a mount itself: taking that away, as may be done once the overlay has
copies of its own, takes all of them. Paths of 125 layers do not fit into the page that mount(2) passes on, so the
overlay is told descriptors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from isolators import mount


@contextmanager
def attached(layers: Sequence[Path], point: Path, userns: int) -> Iterator[str]:
    """What to write for `lowerdir=`, until the block ends. `point` is an empty directory, and to be unmounted."""
    with ExitStack() as stack:
        mount.move_mount(_opened(point, stack), point)
        yield ":".join(f"/proc/self/fd/{_attach(*pair, userns, stack)}" for pair in _targets(layers, point))


def _targets(layers: Sequence[Path], point: Path) -> Iterator[tuple[Path, Path]]:
    for index, layer in enumerate(layers):
        target = point / str(index)
        target.mkdir(mode=0o700, exist_ok=True)
        yield layer, target


def _attach(layer: Path, target: Path, userns: int, stack: ExitStack) -> int:
    tree = _opened(layer, stack)
    mount.set_idmap(tree, userns, layer)
    mount.move_mount(tree, target)
    return tree


def _opened(path: Path, stack: ExitStack) -> int:
    tree = mount.open_tree(path)
    stack.callback(os.close, tree)
    return tree
