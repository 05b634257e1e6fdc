"""Which layers containers stand on: a file `image.json` in each container's directory, there before the mount and gone
with the directory, after the unmount. Nothing is counted, so no kill can make a count wrong."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agent.images.manifest import Image
from agent.images.reference import Reference
from model.codec import Codec, Damaged

FILE = "image.json"


@dataclass(frozen=True, slots=True)
class Use:
    task: str
    reference: str
    digest: str
    layers: tuple[str, ...]  # diff-ids


USE = Codec(Use)


def write(container: Path, task: str, reference: Reference, image: Image) -> None:
    """Whole for any reader; nobody needs it after the next boot, so it does not wait for the disk."""
    use = Use(task, str(reference), image.digest, tuple(layer.diff_id for layer in image.layers))
    temporary = container / f".{FILE}"
    temporary.write_bytes(USE.encode(use))
    os.rename(temporary, container / FILE)


def read_all(containers: Path) -> dict[str, Use]:
    """By the container's id. Raises Damaged: who can not tell what is in use must not remove anything."""
    uses = {}
    for path in containers.glob(f"*/{FILE}"):
        try:
            uses[path.parent.name] = USE.decode(path.read_bytes())
        except FileNotFoundError:
            continue  # it ended meanwhile
        except Damaged as error:
            raise Damaged(f"{path}: {error}") from error
    return uses
