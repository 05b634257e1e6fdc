"""Packs files of this machine into an archive for a container, while it is sent."""

from __future__ import annotations

import os
import tarfile
import threading
from pathlib import Path

from cli.channel import CHUNK_BYTES, Channel
from cli.problem import Problem

ARCHIVED = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE)


class Packing:
    """A thread that sends, for the channel must be read meanwhile."""

    def __init__(self, source: Path, channel: Channel) -> None:
        """Raises Problem when there is no such file."""
        if not os.path.lexists(source):
            raise Problem(f"{source}: no such file or directory")
        self.left_out: list[str] = []
        self.failure: Exception | None = None
        self._source = source
        self._channel = channel
        self._room = threading.Event()
        channel.when_room(self._room.set)
        threading.Thread(target=self._send, daemon=True).start()

    def write(self, data: bytes) -> int:
        """As a file's, for tarfile; waits until the other end has room."""
        while not self._channel.has_room:
            self._room.wait()
            self._room.clear()
        self._channel.feed(data)
        return len(data)

    def _send(self) -> None:
        try:
            with tarfile.open(fileobj=self, mode="w|", bufsize=CHUNK_BYTES) as archive:  # type: ignore[call-overload]
                name = os.path.basename(os.path.abspath(self._source))
                archive.add(self._source, arcname=name or ".", filter=self._chosen)
            self._channel.tell(eof=True)
        except (OSError, tarfile.TarError) as error:
            self.failure = error
            self._channel.close()

    def _chosen(self, member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        """Hard links are files of their own in the container."""
        if member.type not in ARCHIVED:
            self.left_out.append(member.name)
            return None
        return member
