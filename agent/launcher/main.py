"""What the agent executes: `python -I -S main.py FD`, FD being the launcher's end of a SOCK_SEQPACKET socket pair.

With -I and -S nothing but the standard library is on the path, so the root of this installation is put there.
"""

from __future__ import annotations

import os
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from agent.launcher import server


def main() -> None:
    agent = socket.socket(fileno=int(sys.argv[1]))
    agent.set_inheritable(False)
    server.serve(agent)


if __name__ == "__main__":
    main()
