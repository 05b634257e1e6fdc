"""Whoever runs something in a container."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tests.kernel.sandbox import Sandbox, task

HERE = Path(__file__).parent
INSIDE = (HERE / "inside.py").read_text()
SWEEP = re.sub(r"^from (__future__|tests).*\n", "", (HERE / "sweep.py").read_text(), flags=re.MULTILINE)


@dataclass
class Attacker:
    node: Sandbox

    def __post_init__(self) -> None:
        self._numbers = count(1)

    async def find(self, script: str, **changes: Any) -> Any:
        """Runs a program for Python, after `inside.py`, in a container. What it calls `found` is the answer."""
        program = f"{INSIDE}\nimport json\n{script}\nprint(json.dumps(found))"
        ended, text = await self.node.run(self._task("python3", "-I", "-S", "-c", program, **changes))
        assert ended.code == 0, (ended, text)
        return json.loads(text.splitlines()[-1])

    async def shell(self, script: str, **changes: Any) -> str:
        """What a shell script writes. Commands that fail are to be expected."""
        _, text = await self.node.run(self._task("sh", "-c", script, **changes))
        return text

    def _task(self, *argv: str, **changes: Any) -> Any:
        return task(f"attacker.{next(self._numbers)}", *argv, **changes)
