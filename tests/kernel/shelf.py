"""Images in a directory of the node, and tasks of them, for an agent without a master."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.image import ImageSpec
from model.task import TaskSpec, TaskStatus
from tests import images as make
from tests.images import write_archive, write_layout
from tests.kernel.agent import Agent
from tests.kernel.sandbox import task


class Shelf:
    """Where tests put images."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def layout(self, *layers: bytes, name: str = "layout", **options: Any) -> str:
        write_layout(self.path / name, {"test": make.make(layers, **options)})
        return f"oci:{self.path / name}:test"

    def archive(self, *layers: bytes, config: dict[str, Any] | None = None) -> str:
        return f"docker-archive:{write_archive(self.path / 'image.tar', layers, config)}"


def of_image(reference: str, *argv: str, name: str = "web.1", arguments: bool = False, **changes: Any) -> TaskSpec:
    image = ImageSpec(reference, arguments=arguments, **changes.pop("image", {}))
    return task(name, *argv, **{"image": image, "user": "", "cwd": "", **changes})


async def run(node: Agent, spec: TaskSpec) -> tuple[TaskStatus, str]:
    status = await node.run(spec)
    logs = [node.directories.log(spec.id, stream) for stream in ("stdout", "stderr")]
    return status, "".join(log.read_text() for log in logs if log.exists())
