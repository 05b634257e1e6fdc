"""Makes in the upper layer where something is to be mounted, when the lower one is the node's own `/`.

There the container's root is nobody, and may not make a directory in one of the node's. So these are made before the
layers are put together: a missing directory is the container's root's; one that the node has keeps its owner and mode.
Where the node has a link, the launcher finds its own way, as in an image.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from isolators.base import Container
from model.volume import VolumeKind


def make_points(container: Container, node: Path = Path("/")) -> None:
    """In `upper`. The launcher refuses what may not be, so here that is only left out."""
    upper = container.layer / "upper"
    task = container.task
    for tmpfs in task.tmpfs:
        _make(upper, node, tmpfs.destination, container.id_base)
    for volume in task.volumes:
        # What it is when it is bound may be something else: then it can not be bound.
        file = volume.kind is VolumeKind.HOST and os.path.isfile(volume.source)
        _make(upper, node, volume.destination, container.id_base, file=file)


def _make(upper: Path, node: Path, destination: str, owner: int, file: bool = False) -> None:
    plain = PurePosixPath(destination)
    if not plain.is_absolute() or ".." in plain.parts:
        return
    above, *below = (*reversed(plain.parents), plain)
    for path in below:
        relative = path.relative_to(above)
        if not _made(upper / relative, node / relative, owner, file=file and path == plain):
            return


def _made(path: Path, below: Path, owner: int, *, file: bool) -> bool:
    """False where it leads no further."""
    try:
        status = below.lstat()
    except FileNotFoundError:
        if not path.exists():
            path.touch(0o644) if file else path.mkdir(0o755)
            os.chown(path, owner, owner)
        return True
    if not stat.S_ISDIR(status.st_mode):
        return False
    if not path.exists():
        path.mkdir()
        os.chown(path, status.st_uid, status.st_gid)
        path.chmod(stat.S_IMODE(status.st_mode))
    return True
