"""What an app's tasks have yet to do before it is as it was asked to be, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from frameworks.services.wanted import Run


def waits_for(runs: Sequence[Run]) -> list[str]:
    living = [run for run in runs if not run.view.killing and not run.inactive]
    running = [run for run in living if run.running]
    ill = [run for run in running if run.view.spec.health_checks and run.view.status.healthy is not True]
    counts = (
        ("to start", len(living) - len(running)),
        ("to be healthy", len(ill)),
        ("to be ready", sum(not run.serving for run in running) - len(ill)),
        ("to end", sum(run.view.killing for run in runs)),
    )
    return [f"waits for {_tasks(count)} {what}" for what, count in counts if count > 0]


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"
