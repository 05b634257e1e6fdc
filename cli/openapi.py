"""`script/openapi`: prints the OpenAPI description of a master's API as JSON, for `docs/openapi.json`.

It is that of a real master, which is made for the purpose and never runs.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from cli.master_daemon import described, init

ADDRESS = "192.0.2.1"  # of documents: RFC 5737


def main() -> None:
    with TemporaryDirectory() as directory:
        state = Path(directory) / "master"
        init(state, ADDRESS, "tepui.internal", ttl_s=1, uses=1)
        print(json.dumps(asyncio.run(described(state)), indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
