"""What is asked of the server itself, and who may ask."""

from __future__ import annotations

import os

from marathon import MarathonHttpError
from marathon.exceptions import ConflictError, NoResponseError
from marathon.models.info import MarathonInfo

from tests.clients.programs.session import connected, refused


def main() -> None:
    client = connected()
    assert client.ping() == b"pong"
    leader = client.get_leader()["leader"]
    assert leader in os.environ["MARATHON_URL"]
    info = client.get_info()
    assert isinstance(info, MarathonInfo) and info.name == "marathon" and info.elected is True
    assert info.version.startswith("1.") and info.framework_id and info.leader == leader
    assert info.http_config.https_port and info.marathon_config.checkpoint is True
    metrics = client.get_metrics()
    assert metrics["gauges"]["tepui_sessions"]["value"] == 3 and metrics["counters"] is not None
    # There is one master: nobody could take over from it.
    assert "no other" in refused(ConflictError, client.delete_leader).error_message
    strangers()


def strangers() -> None:
    for token in "wrong", None:
        error = refused(MarathonHttpError, connected(auth_token=token).list_apps)
        assert error.status_code == 401 and "token" in error.error_message
    assert connected(auth_token=None).ping() == b"pong"
    down = connected()
    down.servers = ["https://127.0.0.1:9", *down.servers]
    assert down.ping() == b"pong", "the next server is asked when one does not answer"
    down.servers = ["https://127.0.0.1:9"]
    refused(NoResponseError, down.list_apps)


if __name__ == "__main__":
    main()
