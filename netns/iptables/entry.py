"""A rule as the kernel takes it (linux/netfilter_ipv4/ip_tables.h): `struct ipt_entry`, the matches, the target.

python-iptables makes each part and checks its values. A whole `Rule` object of it takes 330 us though, nearly all of it
for matches and targets that repeat in thousands of rules. So parts are kept as bytes and put together here.
A value that libxtables rejects is an exception (see `worker.py` for what must follow).
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import iptc
from iptc.ip4tc import ipt_entry
from iptc.xtables import xt_align

from netns.iptables.rule import Extension, Rule, is_ours

# Bounds the worker's memory. What repeats is few: matches, verdicts, the addresses of VIPs that change often.
PARTS_KEPT = 512


def entry(rule: Rule) -> bytes:
    matches = b"".join(_match(match, rule.protocol) for match in rule.matches)
    header = ipt_entry.from_buffer_copy(_header(rule.src, rule.dst, rule.protocol))
    target = _jump(rule.target.name) if is_ours(rule.target.name) else _target(rule.target, rule.protocol)
    header.target_offset = ctypes.sizeof(header) + len(matches)
    header.next_offset = header.target_offset + len(target)
    return bytes(header) + matches + target


@lru_cache(PARTS_KEPT)
def _header(src: str, dst: str, protocol: str) -> bytes:
    rule = _blank(protocol)
    if src:
        rule.src = src
    if dst:
        rule.dst = dst
    return bytes(rule.entry)


@lru_cache(PARTS_KEPT)
def _match(extension: Extension, protocol: str) -> bytes:
    match = _blank(protocol).create_match(extension.name)
    for option, value in extension.options:
        match.set_parameter(option, value)
    match._final_check()
    return _aligned(bytes(match.match_buf))


@lru_cache(PARTS_KEPT)
def _target(extension: Extension, protocol: str) -> bytes:
    target = _mould(extension.name, protocol)
    target.reset()
    for option, value in extension.options:
        target.set_parameter(option, value)
    # The extension's last word: some set fields only here. The public final_check() also prints and parses the options
    # again first, which doubles the time.
    target._final_check()
    return _aligned(ctypes.string_at(ctypes.byref(target.target), target.size))


@lru_cache(PARTS_KEPT)
def _mould(name: str, protocol: str) -> iptc.Target:
    """Used again and again: most DNAT targets are like no other, and making the object is half of the time."""
    return _blank(protocol).create_target(name)


def _jump(chain: str) -> bytes:
    """libiptc finds the chain by name when it takes the entry; until then the name stands where a verdict would."""
    header, name = _verdict_parts()
    return header + chain.encode().ljust(len(name), b"\0") + _target(Extension("RETURN"), "")[len(header) + len(name) :]


@lru_cache(1)
def _verdict_parts() -> tuple[bytes, bytes]:
    """The size field of a standard target, and the name that follows it."""
    user = type(iptc.Rule().create_target("RETURN").target.u.user)
    raw = _target(Extension("RETURN"), "")
    return raw[: user.name.offset], raw[user.name.offset : user.name.offset + user.name.size]


def _blank(protocol: str) -> iptc.Rule:
    # Options such as --dport and --to-destination with a port are only valid beside a protocol.
    rule = iptc.Rule()
    if protocol:
        rule.protocol = protocol
    return rule


def _aligned(part: bytes) -> bytes:
    return part.ljust(xt_align(len(part)), b"\0")
