"""Where containers are connected that an earlier agent has started: what they were connected by is in the records of
their keepers.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.launcher import record
from isolators.base import Container
from isolators.network import UNCONNECTED
from netns.driver import Attachment


def attachments(living: Iterable[Container]) -> list[Attachment]:
    """A pod has one, its holder's. Those whose first process has ended have none."""
    places = {container.sandbox.holder or container.sandbox: container.sandbox.network for container in living}
    found = []
    for place, network in places.items():
        keeper = record.read_keeper(str(place.directory))
        process = keeper.container if keeper is not None else None
        if network not in UNCONNECTED and process is not None and record.identify(process.pid) == process:
            found.append(Attachment(place.id, network, process.pid))
    return found
