"""Names of signals, as people, Docker and image configurations write them."""

from __future__ import annotations

import re
import signal

REAL_TIME = re.compile(r"(?:SIG)?(RTMIN|RTMAX)([+-]\d{1,2})?")


def parse_signal(text: str) -> int:
    """`SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`. Raises ValueError."""
    name = text.upper()
    if match := REAL_TIME.fullmatch(name):
        number = int(signal.Signals[f"SIG{match[1]}"]) + int(match[2] or 0)
    elif name.isascii() and name.isdecimal():
        number = int(name)
    else:
        number = getattr(signal.Signals, f"SIG{name.removeprefix('SIG')}", 0)
    if number not in signal.valid_signals():
        raise ValueError(f"{text!r} is no signal")
    return number


def signal_name(number: int) -> str:
    """`SIGTERM`; of the real-time signals only the first and the last have a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
