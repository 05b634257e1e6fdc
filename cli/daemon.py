"""What the master's and the agent's `run` share: logging, signals, and how a start that fails is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine

import structlog

from cli.problem import Problem


def set_up_logging() -> None:
    """One event a line on stderr: for people on a terminal, JSON otherwise."""
    people = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if people else [structlog.processors.format_exc_info]),
            structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def run(daemon: Coroutine[object, object, None]) -> None:
    """Until it ends or SIGTERM or SIGINT comes. A Problem is one line and exit status 1."""
    os.umask(0o077)
    set_up_logging()
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_until_told(daemon))


async def _until_told(daemon: Coroutine[object, object, None]) -> None:
    work = asyncio.create_task(daemon)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except* Problem as group:
        raise _first(group) from group
    except* OSError as group:
        raise Problem(str(_first(group))) from group


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
