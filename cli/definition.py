"""What a person has written down in a file, for the master to judge."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cli.problem import Problem

STDIN = Path("-")


def read_definition(file: Path) -> Any:
    """Its JSON; `-` is standard input. Raises Problem."""
    try:
        return json.loads(sys.stdin.read() if file == STDIN else file.read_text())
    except OSError as error:
        raise Problem(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise Problem(f"{file}: not JSON: {error}") from error
