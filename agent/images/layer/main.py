"""What the agent executes for one layer: `python -I -S main.py AGENT TARGET LENGTH BYTES ENTRIES`.

Standard input is the layer, from where it is open (`LENGTH` bytes of it; -1: to the end), compressed or not. Standard
output gets one line of JSON: what was unpacked into the empty directory `TARGET`, or why it was not. `BYTES` and
`ENTRIES` bound what a layer may unfold to. `AGENT` is the pid that this process ends with.

The layer is hostile until proven otherwise, so the work is done by a child that sees nothing but `TARGET`: see
agent/confine.py. With -I and -S nothing but the standard library is on the path, so the root of this installation is
put there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from agent import confine
from agent.images.layer import decompress, tree
from agent.launcher import syscalls as sc


def main() -> None:
    agent, target, length, most_bytes, most_entries = sys.argv[1:]
    confine.end_with(int(agent))
    opened = decompress.opened(0, int(length))  # before it is confined: it may need a library
    me = os.getpid()
    pid, _ = sc.clone3(confine.NAMESPACES)
    if pid == 0:
        confine.end_with_outer(me)
        confine.enter(target)
        confine.keep_file_rights()
        os._exit(_unpack(opened, int(most_bytes), int(most_entries)))
    _, status = os.waitpid(pid, 0)
    sys.exit(0 if status == 0 else 1)


def _unpack(layer: decompress.Layer, most_bytes: int, most_entries: int) -> int:
    try:
        result = tree.unpack(layer, most_bytes, most_entries)
    except tree.Refused as error:
        result = {"refused": str(error)}
    except OSError as error:
        result = {"failed": f"{error.filename or 'layer'}: {error.strerror}", "errno": error.errno}
    except MemoryError:
        result = {"refused": "it takes too much memory to read"}
    _write(json.dumps(result).encode())
    return 0


def _write(line: bytes) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    view = memoryview(line)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    main()
