"""What resolvers read in a container (resolv.conf(5)): to ask the node's name server, and how short names may be. Pure.

`web` means the VIP of that name, or else the app; both of the task's own framework. What the node itself searches, and
how, is kept: names that are found there are found in containers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from model.network import Address

MOST_SERVERS = 3  # that resolvers read
OWN_SEARCH = ("l4lb", "autoip")


def resolv_conf(servers: Iterable[Address], framework: str, domain: str, node: str) -> str:
    """`node` is the node's own resolv.conf."""
    search = [*(f"{framework}.{kind}.{domain}" for kind in OWN_SEARCH), *_node_search(node)]
    lines = [f"nameserver {server}" for server in list(servers)[:MOST_SERVERS]]
    lines += [f"search {' '.join(search)}", *(line for line in node.splitlines() if line.startswith("options "))]
    return "\n".join(lines) + "\n"


def _node_search(node: str) -> Iterator[str]:
    """The last line counts."""
    lines = [line.split() for line in node.splitlines() if line.startswith(("search ", "domain "))]
    yield from lines[-1][1:] if lines else ()
