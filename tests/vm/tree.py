"""The working tree, as it is sent to a machine: what git knows of and what it does not ignore.

Compiled modules go with it, since the machine's Python is this one and compiling takes it 14 times as long.
"""

from __future__ import annotations

import compileall
import importlib.util
import io
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = "/opt/tepui"  # where the units of packaging/systemd expect it


def packed() -> bytes:
    """A tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in _files():
            tar.add(ROOT / name, name, recursive=False, filter=_roots)
            if name.endswith(".py"):
                compiled = _compiled(ROOT / name)
                tar.add(compiled, compiled.relative_to(ROOT), filter=_roots)
    return buffer.getvalue()


def _files() -> list[str]:
    """Less those that were removed but not yet from the index."""
    argv = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode()
    return sorted({name for name in listed.split("\0") if name and (ROOT / name).exists()})


def _compiled(source: Path) -> Path:
    assert compileall.compile_file(source, quiet=1), f"{source} does not compile"
    return Path(importlib.util.cache_from_source(source))


def _roots(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = int(entry.mtime)
    return entry
