"""Containers on networks of CNI plug-ins, looked at from time to time: nobody but the plug-ins knows how such a network
should be, so they are asked (CHECK), and what they find wrong is said. To put it right is for who runs that network.
"""

from __future__ import annotations

import asyncio

import structlog

from netns.driver import NetworkError
from netns.networks import Networks

log = structlog.get_logger()

INTERVAL_S = 300.0  # each container costs the execution of all its plug-ins


async def keep_checked(networks: Networks, ready: asyncio.Event) -> None:
    """Until cancelled; for the first time when the node's networks are there."""
    await ready.wait()
    said: dict[str, str] = {}
    while True:
        said = {container: await _look(networks, container, said) for container in networks.plugged()}
        await asyncio.sleep(INTERVAL_S)


async def _look(networks: Networks, container: str, said: dict[str, str]) -> str:
    """What is wrong with it, which is said once. Empty: nothing is."""
    try:
        await networks.check(container)
    except NetworkError as error:
        if said.get(container) != str(error):
            log.error("network is not as it was made", container=container, reason=str(error))
        return str(error)
    if said.get(container):
        log.info("network is as it was made again", container=container)
    return ""
