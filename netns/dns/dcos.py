"""The domains of the cluster's names: its own, and those in which the same names are called as DC/OS called them. Pure.

    groupapp.marathon.l4lb.thisdcos.directory                  groupapp.services.l4lb.tepui.internal
    app-group.marathon.containerip.dcos.thisdcos.directory     app-group.services.containerip.tepui.internal
    app-group.marathon.mesos                                   app-group.services.autoip.tepui.internal
    app-group.marathon.slave.mesos                             app-group.services.agentip.tepui.internal
    _http._app-group._tcp.marathon.mesos                       _http._tcp.app-group.services.autoip.tepui.internal
    _app-group._tcp.marathon.mesos                             _tcp.app-group.services.autoip.tepui.internal
    leader.mesos, master.mesos, marathon.mesos                 master.tepui.internal

Source: docs.d2iq.com/dcos, service naming and discovery; mesos-dns, naming.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.network import Address

DCOS, MESOS = "thisdcos.directory", "mesos"
BELOW = (f"dcos.{DCOS}", DCOS)
FRAMEWORKS = {"marathon": "services", "metronome": "jobs"}
MASTER = "master"
MASTERS = ("leader", "master", *FRAMEWORKS)


@dataclass(frozen=True, slots=True)
class Domains:
    """`master` are the addresses of the cluster's master, if they are known."""

    own: str
    compat: bool = True
    master: tuple[Address, ...] = ()

    @property
    def apexes(self) -> tuple[str, ...]:
        """All below these is the cluster's to answer, and nobody else's."""
        return (self.own, DCOS, MESOS) if self.compat else (self.own,)

    def canonical(self, name: str) -> str:
        """What it is called in the cluster's own domain. Any other name is itself."""
        if not self.compat or not name.endswith((DCOS, MESOS)):
            return name
        for suffix in BELOW:
            if name.endswith(f".{suffix}"):
                *rest, kind = name.removesuffix(f".{suffix}").split(".")
                return ".".join((*_translated(rest), kind, self.own))
        if name.endswith(f".{MESOS}"):
            return f"{_of_mesos(name.removesuffix(f'.{MESOS}').split('.'))}.{self.own}"
        return name


def _of_mesos(labels: list[str]) -> str:
    if len(labels) == 1 and labels[0] in MASTERS:
        return MASTER
    kind = "autoip"
    if labels[-1] == "slave":
        kind = "agentip"
        labels = labels[:-1]
    if len(labels) >= 3 and labels[-2] in ("_tcp", "_udp") and labels[-3].startswith("_"):
        *port, app, protocol, framework = labels
        labels = [*port, protocol, app[1:], framework]
    return ".".join((*_translated(labels), kind))


def _translated(labels: list[str]) -> list[str]:
    """The framework comes last."""
    return [*labels[:-1], FRAMEWORKS.get(labels[-1], labels[-1])] if labels else []
