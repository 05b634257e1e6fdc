"""How long a service waits before it starts another task, as a pure function of its failures.

Only failures make the delay grow, and a failure counts once: when a node takes ten tasks with it, or all instances
fail in the same second, that is one step, because none of them was started after the delay had grown.
"""

from __future__ import annotations

from dataclasses import dataclass

from frameworks.services.definition import Definition
from frameworks.services.pods.definition import PodDefinition

STABLE_S = 60.0  # a task that ran this long was no failed start
NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Times are on the monotonic clock."""

    failures: int = 0  # in a row
    counted_at: float = NEVER
    until: float = NEVER
    reason: str = ""

    def remaining(self, now: float) -> float:
        return max(0.0, self.until - now)


@dataclass(frozen=True, slots=True)
class Failure:
    started_at: float
    ran_s: float
    reason: str


def failed(backoff: Backoff, policy: Definition | PodDefinition, failure: Failure, now: float) -> Backoff:
    streak = 0 if failure.ran_s >= STABLE_S else backoff.failures
    if failure.started_at < backoff.counted_at and streak:
        return backoff
    return Backoff(streak + 1, now, now + delay(policy, streak + 1), failure.reason)


def waits(backoff: Backoff, policy: Definition | PodDefinition, now: float) -> Backoff:
    """A task finished well: the next one begins after the first delay, and that is no failure."""
    return Backoff(0, backoff.counted_at, now + delay(policy, 1), "finished")


def delay(policy: Definition | PodDefinition, failures: int) -> float:
    """Seconds before the next start after so many failures in a row."""
    try:
        grown = policy.backoffSeconds * policy.backoffFactor ** (failures - 1)
    except OverflowError:
        return policy.maxLaunchDelaySeconds
    return min(grown, policy.maxLaunchDelaySeconds)
