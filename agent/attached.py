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
    """Of each of their links. A pod has its holder's. Those whose first process has ended have none."""
    places = {container.sandbox.holder or container.sandbox: container.task for container in living}
    found = []
    for place, task in places.items():
        keeper = record.read_keeper(str(place.directory))
        process = keeper.container if keeper is not None else None
        if task.network in UNCONNECTED or process is None or record.identify(process.pid) != process:
            continue
        networks = (task.network, *(each.network for each in task.interfaces))
        found += [Attachment(place.id, name, process.pid, f"eth{number}") for number, name in enumerate(networks)]
    return found
