"""Names by which tasks and virtual addresses are found, as labels of DNS. Pure.

An app's label begins with its innermost name (`/group/app` is `app-group`), a VIP's has no slashes (`/group/app` is
`groupapp`), both as in DC/OS. Where that is longer than a label may be, its end is a hash of the whole, so that two
long names are never one.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from model.network import Address
from model.task import Port

DEFAULT_DOMAIN = "tepui.internal"
LABEL_MOST = 63  # octets: RFC 1035 section 2.3.4
HASH_DIGITS = 8


@dataclass(frozen=True, slots=True)
class NamedTask:
    """A task that may be asked. `addresses` are its own: none on the node's network, where its ports are the node's.
    `node` are those of its node."""

    id: str
    framework: str
    app: str
    addresses: tuple[Address, ...]
    node: tuple[Address, ...]
    ports: tuple[Port, ...] = ()


def app_label(app: str) -> str:
    return _host_label("-".join(reversed(app.strip("/").split("/"))))


def task_label(task_id: str) -> str:
    return _host_label(task_id)


def port_label(name: str) -> str:
    return fitting(name.lower(), LABEL_MOST - 1)  # an underscore comes before it: RFC 2782


def vip_name(name: str, domain: str) -> str:
    """Of a VIP (`<framework>/<name>`), in the cluster's own domain; empty when it has an address only."""
    framework, _, own = name.partition("/")
    return f"{vip_labels(own)}.{framework}.l4lb.{domain}" if own else ""


def vip_labels(name: str) -> str:
    """Of a VIP's name without slashes, one or more labels with dots between."""
    return ".".join(fitting(part) for part in name.lower().split(".") if part)


def fitting(text: str, most: int = LABEL_MOST) -> str:
    if len(text) <= most:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]
    return f"{text[: most - HASH_DIGITS - 1].rstrip('-')}-{digest}"


def _host_label(text: str) -> str:
    """Letters, digits and hyphens only: RFC 1123 section 2.1."""
    return fitting(re.sub("[^a-z0-9-]", "-", text.lower()).strip("-"))
