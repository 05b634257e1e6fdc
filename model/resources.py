"""Resources of a node, an offer or a task.

Quantities are whole numbers of the smallest unit that we hand out, so that sums and differences are exact:
0.1 CPU taken ten times is one CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of each kind. `cpus` counts thousandths of a CPU, `mem` and `disk` MiB, `gpus` devices."""

    cpus: int = 0
    mem: int = 0
    disk: int = 0
    gpus: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpus + other.cpus, self.mem + other.mem, self.disk + other.disk, self.gpus + other.gpus)

    def __sub__(self, other: Resources) -> Resources:
        return Resources(self.cpus - other.cpus, self.mem - other.mem, self.disk - other.disk, self.gpus - other.gpus)

    def __or__(self, other: Resources) -> Resources:
        """The greater amount of each kind."""
        return Resources(*(max(getattr(self, kind), getattr(other, kind)) for kind in KINDS))

    def covers(self, demand: Resources) -> bool:
        return not self.shortage(demand)

    def shortage(self, demand: Resources) -> dict[str, int]:
        """What is missing here to satisfy `demand`: kind -> amount, empty when it fits."""
        lacking = {kind: getattr(demand, kind) - getattr(self, kind) for kind in KINDS}
        return {kind: amount for kind, amount in lacking.items() if amount > 0}


KINDS: tuple[str, ...] = tuple(field.name for field in fields(Resources))
UNITS = {"cpus": "CPU", "mem": "MiB memory", "disk": "MiB disk", "gpus": "GPU"}


def describe(kind: str, amount: int) -> str:
    """`1.5 CPU`, `64 MiB memory`."""
    return f"{amount / 1000:g} {UNITS[kind]}" if kind == "cpus" else f"{amount} {UNITS[kind]}"
