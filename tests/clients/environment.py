"""The virtual environment of the clients: packages that Tepui has no use for, and that are older than its Python.

It is made once, beside the project's own, and anew when `requirements.txt` or the interpreter changes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".venv-clients"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
MADE_OF = HOME / "made-of"
INSTALL_DEADLINE_S = 300.0
# `marathon` was written for Pythons where `collections` still had the abstract classes, which went with 3.10. Python
# executes such a line of a .pth file before any program.
OLD_NAMES = "import collections, collections.abc; vars(collections).update(Iterable=collections.abc.Iterable)\n"


def python() -> Path:
    """The interpreter that has the clients."""
    wanted = hashlib.sha256(f"{sys.version}{OLD_NAMES}".encode() + REQUIREMENTS.read_bytes()).hexdigest()
    if not MADE_OF.exists() or MADE_OF.read_text() != wanted:
        _make()
        MADE_OF.write_text(wanted)
    return HOME / "bin/python"


def _make() -> None:
    shutil.rmtree(HOME, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(HOME))
    pip = [str(HOME / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    _run(*pip, "install", "--require-hashes", "--requirement", str(REQUIREMENTS))
    (packages,) = HOME.glob("lib/python*/site-packages")
    (packages / "old_names.pth").write_text(OLD_NAMES)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_DEADLINE_S)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
