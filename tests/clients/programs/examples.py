"""Every app among our examples: made, awaited, read, sent back as it was read, and removed."""

from __future__ import annotations

import json
from pathlib import Path

from marathon import MarathonClient, NotFoundError
from marathon.models import MarathonApp

from tests.clients.programs.session import connected, deployed, refused

EXAMPLES = Path(__file__).parents[3] / "examples"


def main() -> None:
    client = connected()
    apps = [app for app in (json.loads(path.read_text()) for path in sorted(EXAMPLES.glob("*.json"))) if is_app(app)]
    assert len(apps) >= 3
    for app in apps:
        there_and_back(client, app)


def is_app(definition: dict[str, object]) -> bool:
    return "cmd" in definition or "args" in definition


def there_and_back(client: MarathonClient, definition: dict[str, object]) -> None:
    app_id, instances = str(definition["id"]), definition["instances"]
    assert isinstance(instances, int)
    created = client.create_app(app_id, MarathonApp.from_json(definition))
    assert created.id == app_id and created.deployments
    read = deployed(client, app_id, instances)
    assert read.cmd == definition.get("cmd") and read.args == definition.get("args")
    client.update_app(app_id, client.get_app(app_id))
    again = deployed(client, app_id, instances)
    assert {task.id for task in again.tasks} == {task.id for task in read.tasks}, "nothing was to change"
    client.delete_app(app_id)
    refused(NotFoundError, lambda: client.get_app(app_id))


if __name__ == "__main__":
    main()
