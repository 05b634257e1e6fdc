"""One instance of a pod: a task for each of its containers."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

from frameworks.services import networking
from frameworks.services.artifacts import fetches
from frameworks.services.confinement import bounded
from frameworks.services.pods.container import Container
from frameworks.services.pods.definition import PodDefinition
from frameworks.services.pods.volumes import mounts_of
from frameworks.services.ports import resolved, variable
from model.pod import Pod
from model.task import Port, TaskSpec


def new_instance(
    definition: PodDefinition,
    framework: str,
    version: str,
    labels: Mapping[str, str],
    host: str = "",
    chosen: Sequence[int] = (),
) -> tuple[TaskSpec, ...]:
    """In the order in which the definition has the containers. `labels` are the framework's own, for each of them.
    `host` is the node's address, and `chosen` are ports of it for those endpoints that want any."""
    instance = f"{definition.id[1:].replace('/', '_')}.instance-{uuid.uuid4()}"
    members = tuple(f"{instance}.{container.name}" for container in definition.containers)
    numbers = iter(chosen)
    ports = [resolved(container.ports, numbers) for container in definition.containers]
    told = _environment(definition, version, [port for each in ports for port in each]) | {"HOST": host}
    told |= definition.environment
    return tuple(
        _task(
            definition,
            container,
            TaskSpec(
                id=member,
                framework=framework,
                owner=definition.id,
                argv=container.words,
                resources=container.resources.resources,
                network=definition.network,
                env=tuple(sorted((told | {"MESOS_TASK_ID": member} | container.environment).items())),
                labels=tuple(sorted({**definition.labels, **container.labels, **labels}.items())),
                pod=_pod(definition, container, instance, members),
                ports=has,
                interfaces=networking.interfaces(definition.networks, ()),
                bandwidth=networking.bandwidth(definition.networks),
                patient=definition.unreachableStrategy is not None,
            ),
        )
        for member, container, has in zip(members, definition.containers, ports, strict=True)
    )


def _task(definition: PodDefinition, container: Container, plain: TaskSpec) -> TaskSpec:
    check, seccomp = container.healthCheck, container.linuxInfo.seccomp or definition.linuxInfo.seccomp
    image, fetch = container.image_of_task(definition.secrets), fetches(container.artifacts)
    task = replace(
        plain,
        user=container.user or definition.user or ("" if image else plain.user),
        image=image,
        fetch=fetch,
        volumes=mounts_of(container.volumeMounts, definition.volumes_by_name),
        kill_grace_s=container.lifecycle.killGracePeriodSeconds,
        health_checks=(check.of_task(plain.ports),) if check is not None else (),
        seccomp="unconfined" if seccomp is not None and seccomp.unconfined else plain.seccomp,
        shm=_shm(definition, container) or plain.shm,
    )
    task = replace(task, cwd="") if task.needs_provision else task  # the workspace, or what the image says
    return bounded(task, container.resourceLimits)


def _shm(definition: PodDefinition, container: Container) -> int | None:
    """What the pod says of it is for those that share it."""
    own, pods = container.linuxInfo.ipcInfo, definition.linuxInfo.ipcInfo
    if own is None or own.shmSize is not None or not own.shared:
        return own.shmSize if own is not None else None
    return pods.shmSize if pods is not None else None


def _pod(definition: PodDefinition, container: Container, instance: str, members: tuple[str, ...]) -> Pod:
    linux = container.linuxInfo
    return Pod(
        id=instance,
        container=container.name,
        members=members,
        share_ipc=linux.ipcInfo is not None and linux.ipcInfo.shared,
        share_pid=linux.pidInfo is not None and linux.pidInfo.shared,
        resources=definition.executorResources.resources,
    )


def _environment(definition: PodDefinition, version: str, ports: Sequence[Port]) -> dict[str, str]:
    """What Marathon tells each of a pod's containers: the endpoints of all of them, too. Where a port of the node leads
    to one, that is the port which is told."""
    told = {"MARATHON_APP_ID": definition.id, "MARATHON_APP_VERSION": version}
    for port in ports:
        told[f"ENDPOINT_{variable(port.name)}"] = str(port.number if port.host is None else port.host)
    return told
