"""Which containers are connected, and by which process their network namespace was found. It is kept in memory, for
when somebody removes the link of a container that runs: `broken` says which have to be connected again.

A process id may have been given to another process since. So the namespace is remembered by its inode, and not by a
descriptor, which would keep it and the container's links after the container's end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from netns.driver import Attachment
from netns.link import veth_name
from netns.netlink import link_exists


class Attachments:
    """`link_of` names the node's end of an attachment's link."""

    def __init__(self, link_of: Callable[[Attachment], str] = lambda each: veth_name(each.container)) -> None:
        self._link_of = link_of
        self._known: dict[tuple[str, str], tuple[Attachment, int | None]] = {}

    def remember(self, attachment: Attachment) -> None:
        key = (attachment.container, attachment.interface)
        self._known[key] = (attachment, _namespace(attachment.netns_pid))

    def forget(self, container: str, interface: str | None = None) -> None:
        """Without `interface`: all of the container's."""
        for key in [key for key in self._known if key[0] == container and interface in (None, key[1])]:
            del self._known[key]

    def holds(self, attachment: Attachment) -> bool:
        return (attachment.container, attachment.interface) in self._known

    def on(self, links: Iterable[str] | None) -> list[Attachment]:
        """Those whose link is one of `links`; None: any."""
        wanted = None if links is None else frozenset(links)
        return [each for each, _ in self._known.values() if wanted is None or self._link_of(each) in wanted]

    def broken(self) -> list[Attachment]:
        """Those whose link is gone, while their container is not."""
        return [each for each, _ in self._known.values() if self.is_broken(each)]

    def is_broken(self, attachment: Attachment) -> bool:
        _, namespace = self._known.get((attachment.container, attachment.interface), (None, None))
        lives = namespace is not None and _namespace(attachment.netns_pid) == namespace
        return lives and not link_exists(self._link_of(attachment))


def _namespace(pid: int) -> int | None:
    """The inode of a process's network namespace; None for a process that has ended."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None
