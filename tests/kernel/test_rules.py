"""What the documentation says that there is in a kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_rules_in_the_documentation_are_those_in_the_kernel() -> None:
    argv = [sys.executable, "-m", "lab.rules", "--check"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
