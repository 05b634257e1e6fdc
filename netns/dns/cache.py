"""What others' servers have answered, for as long as they say that it holds. Of many answers the least used goes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from dnslib import QTYPE, RCODE, RR, DNSRecord

LONGEST_S, LONGEST_NEGATIVE_S = 3600, 300
MOST = 10_000

Key = tuple[str, int, bool, bool]  # name, type, with signatures, unchecked


@dataclass(frozen=True, slots=True)
class Kept:
    record: DNSRecord
    at: float
    until: float


class Cache:
    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._kept: OrderedDict[Key, Kept] = OrderedDict()

    def put(self, key: Key, record: DNSRecord) -> None:
        seconds = lifetime(record)
        if seconds <= 0:
            return
        now = time.monotonic()
        self._kept[key] = Kept(record, now, now + seconds)
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def get(self, key: Key) -> tuple[DNSRecord, int] | None:
        """With its age in seconds."""
        kept = self._kept.get(key)
        now = time.monotonic()
        if kept is None or now >= kept.until:
            self._kept.pop(key, None)
            return None
        self._kept.move_to_end(key)
        return kept.record, int(now - kept.at)

    def __len__(self) -> int:
        return len(self._kept)


def lifetime(record: DNSRecord) -> int:
    """Seconds; 0 for what is not to be kept. Of what does not exist RFC 2308 section 5 says it."""
    if record.header.tc or record.header.rcode not in (RCODE.NOERROR, RCODE.NXDOMAIN):
        return 0
    if record.rr and record.header.rcode == RCODE.NOERROR:
        return min(LONGEST_S, *(int(rr.ttl) for rr in record.rr))
    negative = [min(int(rr.ttl), int(rr.rdata.times[4])) for rr in record.auth if rr.rtype == QTYPE.SOA]
    return min(LONGEST_NEGATIVE_S, *negative) if negative else 0


def aged(records: Iterable[RR], seconds: int) -> list[RR]:
    """Without what belongs to one exchange only."""
    return [
        RR(rr.rname, rr.rtype, rr.rclass, max(0, rr.ttl - seconds), rr.rdata)
        for rr in records
        if rr.rtype not in (QTYPE.OPT, QTYPE.TSIG)
    ]
