"""Where things are when nobody says otherwise."""

from __future__ import annotations

from pathlib import Path

MASTER_STATE = Path("/var/lib/tepui/master")
AGENT_STATE = Path("/var/lib/tepui/agent")
