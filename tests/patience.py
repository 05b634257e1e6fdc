"""How many times longer than usual tests wait: a machine that is translated, instruction by instruction, is slow."""

from __future__ import annotations

import os

PATIENCE = float(os.environ.get("TEPUI_TEST_PATIENCE", "1"))
