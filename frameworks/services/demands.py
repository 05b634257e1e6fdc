"""What an app that lacks instances asks of offers. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from frameworks.services import options
from frameworks.services.app import FRAMEWORK, App, new_tasks
from frameworks.services.constraints import Constraint
from frameworks.services.instances import Instance
from frameworks.services.networking import names_of
from frameworks.services.place import Demand
from frameworks.services.system import ONE_A_NODE, is_system
from model.resources import Resources
from model.rights import needed
from model.task import sockets


def demand(app: App, count: int) -> Demand:
    """Of instances that may begin anywhere."""
    definition = app.definition
    tasks = new_tasks(app, datetime.now(UTC))
    disk = sum(volume.size for volume in definition.kept(FRAMEWORK, tasks[0].id))
    rights = frozenset[str]().union(*map(needed, tasks))
    ports = [port for task in tasks for port in task.ports]
    return Demand(
        app.id,
        definition.resources + Resources(disk=disk),
        names_of(definition.networks),
        count,
        rights,
        sockets=tuple(socket for socket in sockets(ports) if socket[1]),
        chosen=tuple(tuple(protocol.value for protocol in port.protocols) for port in ports if port.host == 0),
        static=frozenset(each.network for task in tasks for each in task.attachments if each.address),
        constraints=constraints_of(app),
        packed=options.is_packed(definition.labels),
        version=app.config_version,
    )


def constraints_of(app: App) -> tuple[Constraint, ...]:
    return (*app.definition.placement, *[ONE_A_NODE] * is_system(app))


def pinned(app: App, instance: Instance) -> Demand:
    """Of an instance that has volumes. It needs no disk for those."""
    lacking = [each for each in app.definition.kept(FRAMEWORK, instance.id) if each.id not in instance.volumes]
    resources = app.definition.resources + Resources(disk=sum(volume.size for volume in lacking))
    return replace(demand(app, 1), resources=resources, instance=instance.id, node=instance.node)
