"""Queues of links (tc): a token bucket that sends no faster than a rate, and filters that lead all packets of a link
through another one.

The options are packed here, not by pyroute2, which does not know a bucket's size in bytes (TCA_TBF_BURST) and would
add a table of transmission times that kernels since 3.8 compute themselves.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from typing import ClassVar

from pyroute2.netlink import nlmsg
from pyroute2.netlink.rtnl import tcmsg as parsed

from netns.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, IndexOf, Message, Netlink, Operation, dump, request

# linux/rtnetlink.h, linux/netlink.h
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_GETTFILTER = 44, 46
NLM_F_ECHO = 0x8
NLA_F_NESTED = 0x8000
# linux/pkt_sched.h: parents of queues and filters
TC_H_ROOT, TC_H_CLSACT = 0xFFFFFFFF, 0xFFFFFFF1
RECEIVED, SENT = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_MIN_INGRESS, TC_H_MIN_EGRESS below TC_H_CLSACT
CLSACT_HANDLE, BUCKET_HANDLE = 0xFFFF0000, 0x00010000
TC_LINKLAYER_ETHERNET = 1
TCA_TBF_PARMS, TCA_TBF_BURST = 1, 6
# linux/pkt_cls.h, linux/tc_act/tc_mirred.h
TCA_U32_SEL, TCA_U32_ACT = 5, 7
TCA_ACT_KIND, TCA_ACT_OPTIONS = 1, 2
TCA_MIRRED_PARMS = 2
TC_U32_TERMINAL = 1
TC_ACT_STOLEN, TCA_EGRESS_REDIR = 4, 1
ETH_P_ALL = 3
# Filters of both directions are listed under each (net/sched/cls_u32.c: tc_u_common_ptr), but for other priorities'.
PRIORITIES = {RECEIVED: 1, SENT: 2}

ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
RATE = struct.Struct("=BBHhHI")  # struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate
BUCKET = struct.Struct("=III")  # the rest of struct tc_tbf_qopt: limit, buffer, mtu
SELECTOR = struct.Struct("=BBBxHHhhI")  # struct tc_u32_sel: flags, offshift, nkeys, offmask, off, offoff, hoff, hmask
KEY = struct.Struct("=IIii")  # struct tc_u32_key: mask, val, off, offmask
MIRRED = struct.Struct("=IIiiiiI")  # struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex


class tcmsg(nlmsg):  # type: ignore[misc]
    """struct tcmsg, with options as they are."""

    prefix = "TCA_"
    fields = (
        ("family", "B"),
        ("pad1", "B"),
        ("pad2", "H"),
        ("index", "i"),
        ("handle", "I"),
        ("parent", "I"),
        ("info", "I"),
    )
    nla_map = (("TCA_UNSPEC", "none"), ("TCA_KIND", "asciiz"), ("TCA_OPTIONS", "cdata"))


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket filter at the root of `dev`: `rate` in bytes a second; `limit` are the bytes that may wait. After
    silence `burst` bytes go out at once; the kernel tells it in ticks only, so it is not compared."""

    dev: str
    rate: int
    limit: int


@dataclass(frozen=True, slots=True)
class Redirect:
    """All that `dev` has received (or is about to send) goes through `through` first. `through` is None when it led
    through a link that is gone: then the packets are lost."""

    dev: str
    direction: int  # RECEIVED, SENT
    through: str | None


async def read_bucket(netlink: Netlink, dev: str) -> Bucket | None:
    """The token bucket at the root of `dev`; None when there is another queue or none."""
    question = _message(netlink.index_of(dev), parent=TC_H_ROOT)
    # Until 6.7 kernels answer only those who ask to be told (NLM_F_ECHO).
    for message in await netlink.read(
        request(question, RTM_GETQDISC, NLM_F_ECHO), f"queue of {dev}", kind=parsed.tcmsg
    ):
        if message.get_attr("TCA_KIND") == "tbf":
            parameters = message.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")
            return Bucket(dev, parameters["rate"], parameters["limit"])
    return None


async def read_redirects(netlink: Netlink, dev: str) -> dict[int, Redirect]:
    """By direction. Empty when `dev` has no place for filters (clsact)."""
    found = {}
    for direction in (RECEIVED, SENT):
        question = _message(netlink.index_of(dev), parent=direction)
        for message in await netlink.read(dump(question, RTM_GETTFILTER), f"filters of {dev}", kind=parsed.tcmsg):
            options = message.get_attr("TCA_OPTIONS")
            if message.get_attr("TCA_KIND") == "u32" and options and (actions := options.get_attr("TCA_U32_ACT")):
                found[direction] = Redirect(dev, direction, _target(actions))
    return found


@dataclass(frozen=True, slots=True)
class SetBucket(Operation):
    """Makes it, or changes it in place: what waits in it stays."""

    bucket: Bucket
    burst: int

    def describe(self) -> str:
        return f"limit {self.bucket.dev} to {8 * self.bucket.rate} bit/s"

    def message(self, index_of: IndexOf) -> Message:
        rate = RATE.pack(0, TC_LINKLAYER_ETHERNET, 0, 0, 0, self.bucket.rate)
        parameters = rate + RATE.pack(0, 0, 0, 0, 0, 0) + BUCKET.pack(self.bucket.limit, 0, 0)
        options = _attribute(TCA_TBF_PARMS, parameters) + _attribute(TCA_TBF_BURST, struct.pack("=I", self.burst))
        message = _message(index_of(self.bucket.dev), parent=TC_H_ROOT, handle=BUCKET_HANDLE)
        message["attrs"] = [("TCA_KIND", "tbf"), ("TCA_OPTIONS", options)]
        return request(message, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE)


@dataclass(frozen=True, slots=True)
class AddClsact(Operation):
    """The place for filters of what `dev` receives and sends."""

    dev: str
    tolerates: ClassVar[frozenset[int]] = frozenset({errno.EEXIST})

    def describe(self) -> str:
        return f"add clsact to {self.dev}"

    def message(self, index_of: IndexOf) -> Message:
        message = _message(index_of(self.dev), parent=TC_H_CLSACT, handle=CLSACT_HANDLE)
        message["attrs"] = [("TCA_KIND", "clsact")]
        return request(message, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL)


@dataclass(frozen=True, slots=True)
class RemoveClsact(Operation):
    """Takes its filters along: from now on packets go straight through."""

    dev: str
    tolerates: ClassVar[frozenset[int]] = frozenset({errno.ENOENT, errno.EINVAL, errno.ENODEV})

    def describe(self) -> str:
        return f"remove clsact from {self.dev}"

    def message(self, index_of: IndexOf) -> Message:
        return request(_message(index_of(self.dev), parent=TC_H_CLSACT, handle=CLSACT_HANDLE), RTM_DELQDISC, 0)


@dataclass(frozen=True, slots=True)
class AddRedirect(Operation):
    """A filter that matches everything: u32 with a key whose mask is empty, since not every kernel has matchall."""

    dev: str
    direction: int
    through: str

    def describe(self) -> str:
        return f"lead what {self.dev} {'receives' if self.direction == RECEIVED else 'sends'} through {self.through}"

    def message(self, index_of: IndexOf) -> Message:
        mirred = MIRRED.pack(0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, index_of(self.through))
        options = _attribute(TCA_ACT_OPTIONS | NLA_F_NESTED, _attribute(TCA_MIRRED_PARMS, mirred))
        action = _attribute(1, _attribute(TCA_ACT_KIND, b"mirred\0") + options)
        selector = SELECTOR.pack(TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + KEY.pack(0, 0, 0, 0)
        filter_options = _attribute(TCA_U32_SEL, selector) + _attribute(TCA_U32_ACT | NLA_F_NESTED, action)
        message = _message(index_of(self.dev), parent=self.direction)
        message["info"] = PRIORITIES[self.direction] << 16 | socket.htons(ETH_P_ALL)
        message["attrs"] = [("TCA_KIND", "u32"), ("TCA_OPTIONS", filter_options)]
        return request(message, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL)


def _message(index: int, parent: int, handle: int = 0) -> Message:
    message = tcmsg()
    message["index"], message["parent"], message["handle"] = index, parent, handle
    return message


def _attribute(kind: int, value: bytes) -> bytes:
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _target(actions: Message) -> str | None:
    action = actions.get_attr("TCA_ACT_PRIO_1")
    if action is None or action.get_attr("TCA_ACT_KIND") != "mirred":
        return None
    try:
        return socket.if_indextoname(action.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")["ifindex"])
    except OSError:
        return None
