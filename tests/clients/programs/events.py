"""The event stream, as load balancers read it: typed events, as they happen, of the types that were asked for."""

from __future__ import annotations

import json
import threading
from queue import SimpleQueue
from typing import Any

from marathon import MarathonClient
from marathon.models import MarathonApp
from marathon.models.events import (
    MarathonApiPostEvent,
    MarathonAppTerminatedEvent,
    MarathonDeploymentInfo,
    MarathonDeploymentSuccess,
    MarathonEvent,
    MarathonHealthStatusChangedEvent,
    MarathonStatusUpdateEvent,
)

from tests.clients.programs.session import DEADLINE_S, connected, deployed, small

ID = "/watched"


def main() -> None:
    client = connected()
    all_events, chosen, raw = Reader(), Reader([MarathonDeploymentSuccess]), Reader(["status_update_event"], raw=True)
    check = {"protocol": "COMMAND", "command": {"value": "true"}, "intervalSeconds": 1, "delaySeconds": 0}
    created = client.create_app(ID, small(health_checks=[]))
    deployed(client, ID, 1)
    for event in begun(all_events, created):
        assert event.timestamp
    running = all_events.next_of(MarathonStatusUpdateEvent, task_status="TASK_RUNNING")
    assert running.app_id == ID and running.host and running.slave_id and running.version == created.version
    assert running.ip_addresses[0].ip_address
    assert all_events.next_of(MarathonDeploymentSuccess).id == created.deployments[0].id
    assert chosen.next().id == created.deployments[0].id, "only those that were asked for"
    text = json.loads(raw.next())
    assert text["eventType"] == "status_update_event" and text["appId"] == ID

    version = client.update_app(ID, json_app(check), minimal=True)["version"]
    well = all_events.next_of(MarathonHealthStatusChangedEvent)
    assert well.app_id == ID and well.alive is True and well.task_id
    assert chosen.next().event_type == "deployment_success"
    assert all_events.next_of(MarathonStatusUpdateEvent, task_status="TASK_KILLED").version != version
    client.delete_app(ID)
    assert all_events.next_of(MarathonAppTerminatedEvent).app_id == ID


def begun(events: Reader, created: MarathonApp) -> tuple[MarathonEvent, ...]:
    posted = events.next_of(MarathonApiPostEvent)
    assert posted.client_ip and posted.uri.endswith("/v2/apps") and posted.app_definition["id"] == ID
    info = events.next_of(MarathonDeploymentInfo)
    assert info.plan.id == created.deployments[0].id and info.plan.version == created.version
    assert info.plan.steps[0].actions[0].app == ID
    return posted, info


def json_app(check: dict[str, Any]) -> MarathonApp:
    return MarathonApp.from_json({"healthChecks": [check]})


class Reader:
    """Reads events in a thread: the client gives them one by one, and waits for the next one without end."""

    def __init__(self, types: list[Any] | None = None, raw: bool = False) -> None:
        self._events: SimpleQueue[Any] = SimpleQueue()
        client: MarathonClient = connected()
        attached = threading.Event()
        threading.Thread(target=self._read, args=(client, types, raw, attached), daemon=True).start()
        assert attached.wait(DEADLINE_S), "the stream was not opened"

    def _read(self, client: MarathonClient, types: list[Any] | None, raw: bool, attached: threading.Event) -> None:
        get = client.sse_session.get

        def opened(*arguments: Any, **options: Any) -> Any:
            response = get(*arguments, **options)
            attached.set()
            return response

        client.sse_session.get = opened
        try:
            for event in client.event_stream(raw=raw, event_types=types):
                self._events.put(event)
        except BaseException as error:
            self._events.put(error)
            raise

    def next(self) -> Any:
        event = self._events.get(timeout=DEADLINE_S)
        if isinstance(event, BaseException):
            raise event
        return event

    def next_of(self, kind: type[MarathonEvent], **fields: object) -> Any:
        """The next one of this kind with these fields; those before it are passed over."""
        while True:
            event = self.next()
            if isinstance(event, kind) and all(getattr(event, key) == value for key, value in fields.items()):
                return event


if __name__ == "__main__":
    main()
