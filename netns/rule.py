"""Rules: what comes from an address is routed by a table of its own, so that answers leave by the link that was asked.

A table has one rule for each version of IP, so a table is enough to say which rule to remove.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import ClassVar

from pyroute2.netlink.rtnl.fibmsg import fibmsg

from model.network import Address
from netns.address import family
from netns.netlink import NLM_F_CREATE, NLM_F_EXCL, IndexOf, Message, Operation, request

# linux/rtnetlink.h, linux/fib_rules.h
RTM_NEWRULE, RTM_DELRULE = 32, 33
FR_ACT_TO_TBL = 1


@dataclass(frozen=True, slots=True)
class AddRule(Operation):
    source: Address
    table: int
    tolerates: ClassVar[frozenset[int]] = frozenset({errno.EEXIST})

    def describe(self) -> str:
        return f"add rule from {self.source} lookup {self.table}"

    def message(self, index_of: IndexOf) -> Message:
        message = _message(family(self.source), self.table)
        message["src_len"] = self.source.max_prefixlen
        message["attrs"].append(("FRA_SRC", str(self.source)))
        return request(message, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL)


@dataclass(frozen=True, slots=True)
class RemoveRule(Operation):
    version: int
    table: int
    tolerates: ClassVar[frozenset[int]] = frozenset({errno.ENOENT})

    def describe(self) -> str:
        return f"remove rule lookup {self.table} of IPv{self.version}"

    def message(self, index_of: IndexOf) -> Message:
        return request(_message(socket.AF_INET if self.version == 4 else socket.AF_INET6, self.table), RTM_DELRULE, 0)


def _message(version: int, table: int) -> Message:
    message = fibmsg()
    message["family"] = version
    message["table"] = table
    message["action"] = FR_ACT_TO_TBL
    message["attrs"] = [("FRA_TABLE", table)]
    return message
