"""Puts back what others took from the node's network, within a second of the deed.

Each `Mender` is told what was touched, looks whether anything of its own is missing and puts it back: it is idempotent,
so being told of nothing costs a look. What was mended is said once, and what can't be mended is tried again, less and
less often. Legacy iptables tells nobody of its changes: virtual addresses are looked at from time to time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from netns.driver import NetworkError
from netns.vip.backend import Backend
from netns.watch import Touched, Watch

log = structlog.get_logger()

POLL_S, POLL_SHARE = 0.5, 0.05  # of one core at most
RETRY_S, LONGEST_RETRY_S = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class Mender:
    """`mend` returns what it did, in words. It is called when `concerns` says so, and again while it fails."""

    what: str
    concerns: Callable[[Touched], bool]
    mend: Callable[[Touched], Awaitable[list[str]]]


@dataclass(slots=True)
class _Retry:
    """What one mender still has to do, and from when on."""

    touched: Touched = field(default_factory=Touched)
    due: float = 0.0
    wait: float = RETRY_S


async def keep_mended(watch: Watch, menders: Sequence[Mender], first: Touched | None = None) -> None:
    """Runs until it is cancelled. `first` is what may have been touched before there was a watch."""
    loop = asyncio.get_running_loop()
    retries: dict[str, _Retry] = {}
    while True:
        touched = first or await _next(watch, min((retry.due for retry in retries.values()), default=None))
        first = None
        for mender in menders:
            retry = retries.get(mender.what)
            concerned = bool(touched) and mender.concerns(touched)
            if concerned or (retry is not None and retry.due <= loop.time()):
                left = (retry.touched if retry else Touched()) | (touched if concerned else Touched())
                if await mended(mender.what, mender.mend, left):
                    retries.pop(mender.what, None)
                else:
                    wait = min(2 * retry.wait, LONGEST_RETRY_S) if retry else RETRY_S
                    retries[mender.what] = _Retry(left, loop.time() + wait, wait)


async def keep_vips(vips: Backend) -> None:
    """Looks at virtual addresses every POLL_S, or less often where a look takes long. Runs until it is cancelled."""
    loop = asyncio.get_running_loop()
    wait, failed = POLL_S, RETRY_S
    while True:
        await asyncio.sleep(wait)
        began = loop.time()
        if await mended("virtual addresses", lambda _: vips.mend(), Touched()):
            wait, failed = max(POLL_S, (loop.time() - began) / POLL_SHARE), RETRY_S
        else:
            wait = failed = min(2 * failed, LONGEST_RETRY_S)


async def mended(what: str, mend: Callable[[Touched], Awaitable[list[str]]], touched: Touched) -> bool:
    """Whether it went well; else the log has why."""
    try:
        done = await mend(touched)
    except (NetworkError, OSError) as error:
        log.error("not mended", what=what, reason=str(error))
        return False
    if done:
        log.warning("mended", what=what, operations=done)
    return True


async def _next(watch: Watch, due: float | None) -> Touched:
    """What was touched; nothing when it is time to try again."""
    try:
        async with asyncio.timeout_at(due):
            return await watch.touched()
    except TimeoutError:
        return Touched()
