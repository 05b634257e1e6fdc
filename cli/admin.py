"""The administrator's credentials: `admin.json`, written by `tepui master init`.

It is looked for in TEPUI_ADMIN, then in the state directory of a master on this machine.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from cli.paths import MASTER_STATE
from cli.problem import Problem

ADMIN_FILE = "admin.json"


@dataclass(frozen=True, slots=True)
class Admin:
    """Where the master is, who vouches for it (PEM), what name its certificate bears, and what proves who we are."""

    url: str
    ca: str
    server_name: str
    token: str = field(repr=False)


def read_admin() -> Admin:
    """Raises Problem when there are no credentials to be found."""
    path = Path(os.environ.get("TEPUI_ADMIN", MASTER_STATE / ADMIN_FILE))
    try:
        return Admin(**json.loads(path.read_text()))
    except OSError as error:
        raise Problem(
            f"{path}: {error.strerror}. Copy {ADMIN_FILE} from the master's state directory, or set TEPUI_ADMIN"
        ) from error
    except (ValueError, TypeError) as error:
        raise Problem(f"{path}: not an {ADMIN_FILE}: {error}") from error
