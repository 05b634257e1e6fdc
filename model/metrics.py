"""Metrics in Prometheus' text format or as JSON, and what a container's are called.

Names of containers' metrics are cAdvisor's, and of a node's those of the node exporter, so that dashboards and alerts
that people have go on working. Format: prometheus.io/docs/instrumenting/exposition_formats, "Text-based format".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from model.task import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Family:
    """All samples of one name."""

    name: str
    kind: Kind
    help: str
    samples: tuple[tuple[Labels, float], ...]


def gauge(name: str, help: str, value: float, **labels: str) -> Family:
    return Family(name, Kind.GAUGE, help, ((tuple(labels.items()), value),))


def expose(families: Iterable[Family]) -> str:
    return "".join(line for family in families for line in _lines(family))


def as_json(families: Iterable[Family]) -> dict[str, Any]:
    """As Marathon's `/metrics` has them (Dropwizard's JSON): gauges have a `value`, counters a `count`."""
    shown: dict[str, Any] = {
        "version": "4.0.0",
        "gauges": {},
        "counters": {},
        "histograms": {},
        "meters": {},
        "timers": {},
    }
    for family in families:
        kind, value = ("gauges", "value") if family.kind is Kind.GAUGE else ("counters", "count")
        shown[kind] |= {_sample(family, labels): {value: number} for labels, number in family.samples}
    return {"version": "4.0.0", **shown}


COUNTER, GAUGE = Kind
# Name, kind, help, and the field of `Usage` that it is.
CONTAINER_METRICS = (
    ("container_cpu_usage_seconds_total", COUNTER, "CPU time.", "cpu_s"),
    (
        "container_cpu_cfs_throttled_seconds_total",
        Kind.COUNTER,
        "Time for which its quota held it.",
        "cpu_throttled_s",
    ),
    ("container_spec_cpu_limit", GAUGE, "CPUs that it may have.", "cpu_limit"),
    ("container_memory_usage_bytes", GAUGE, "Memory, with the page cache that is charged to it.", "mem_bytes"),
    ("container_memory_max_usage_bytes", GAUGE, "The most memory that it has taken.", "mem_peak_bytes"),
    ("container_spec_memory_limit_bytes", GAUGE, "Memory that it may have.", "mem_limit_bytes"),
    ("container_fs_reads_bytes_total", COUNTER, "Bytes read from block devices.", "io_read_bytes"),
    ("container_fs_writes_bytes_total", COUNTER, "Bytes written to block devices.", "io_write_bytes"),
    ("container_fs_usage_bytes", GAUGE, "Disk that its private layer takes.", "disk_bytes"),
    ("container_fs_limit_bytes", GAUGE, "Disk that its private layer may take.", "disk_limit_bytes"),
    ("container_threads", GAUGE, "Processes and threads.", "pids"),
    ("container_threads_max", GAUGE, "Processes and threads that it may have.", "pids_limit"),
    ("container_network_receive_bytes_total", COUNTER, "Bytes received.", "net_received_bytes"),
    ("container_network_transmit_bytes_total", COUNTER, "Bytes sent.", "net_sent_bytes"),
    ("container_network_receive_packets_total", COUNTER, "Packets received.", "net_received_packets"),
    ("container_network_transmit_packets_total", COUNTER, "Packets sent.", "net_sent_packets"),
    (
        "container_network_receive_packets_dropped_total",
        Kind.COUNTER,
        "Packets to it, lost.",
        "net_received_dropped",
    ),
    (
        "container_network_transmit_packets_dropped_total",
        Kind.COUNTER,
        "Packets from it, lost.",
        "net_sent_dropped",
    ),
)


def container_families(usages: Iterable[tuple[Labels, Usage]]) -> Iterator[Family]:
    """Of each container, named by its labels. What has no limit has no sample of it."""
    rows = list(usages)
    for name, kind, help, field in CONTAINER_METRICS:
        values = ((labels, getattr(usage, field)) for labels, usage in rows)
        yield Family(name, kind, help, tuple((labels, value) for labels, value in values if value is not None))


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n"
    for labels, value in family.samples:
        yield f"{_sample(family, labels)} {value}\n"


def _sample(family: Family, labels: Labels) -> str:
    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{family.name}{{{inner}}}" if inner else family.name


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
