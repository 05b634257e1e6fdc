"""What the programs have in common: a client for the cluster that the environment names, small apps, and waiting."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import requests
from marathon import MarathonClient
from marathon.models import MarathonApp

DEADLINE_S = 30.0
POLL_S = 0.05


def connected(**options: Any) -> MarathonClient:
    """With a token as DC/OS has them. The client leaves it out where it reads events, so that session has it too."""
    token = os.environ["MARATHON_TOKEN"]
    events = requests.Session()
    events.headers["Authorization"] = f"token={token}"
    options = {"auth_token": token, "sse_session": events, **options}
    return MarathonClient(os.environ["MARATHON_URL"], verify=os.environ["MARATHON_CA"], **options)


def small(**fields: Any) -> MarathonApp:
    """An app that sleeps, unless it is said what it does."""
    plain: dict[str, Any] = {
        "cmd": "exec sleep 3600",
        "cpus": 0.05,
        "mem": 32,
        "networks": [{"mode": "container", "name": "overlay"}],
        "task_kill_grace_period_seconds": 0.2,
    }
    return MarathonApp(**{**plain, **fields})


def until(condition: Callable[[], Any], what: str) -> Any:
    """What `condition` returns when it is true at last."""
    end = time.monotonic() + DEADLINE_S
    while not (result := condition()):
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(POLL_S)
    return result


def deployed(client: MarathonClient, app_id: str, running: int) -> MarathonApp:
    """The app, when it is as it was asked to be."""

    def settled() -> MarathonApp | None:
        app = client.get_app(app_id)
        return app if not app.deployments and app.tasks_running == running == len(app.tasks) else None

    return until(settled, f"{running} tasks of {app_id} run, and nothing else")


def refused(kind: type[Exception], call: Callable[[], Any]) -> Any:
    """The error of this very kind that the call fails with."""
    try:
        answer = call()
    except kind as error:
        assert type(error) is kind, repr(error)
        return error
    raise AssertionError(f"not refused: {answer}")
