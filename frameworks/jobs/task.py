"""The task of a run. What is the same for a whole group of runs is made once: there may be thousands of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from frameworks.jobs.run import FRAMEWORK, Run
from frameworks.services import networking
from frameworks.services.place import Demand
from model.rights import needed
from model.task import TaskSpec


@dataclass(frozen=True, slots=True)
class Template:
    """Of the tasks of a group of runs: all but what is each one's own, and what one needs of a node."""

    task: TaskSpec
    env: dict[str, str]
    demand: Demand


def template(run: Run) -> Template:
    spec = run.definition.run
    plain = TaskSpec(
        id="template",
        framework=FRAMEWORK,
        owner=run.job,
        argv=spec.argv,
        resources=spec.resources,
        network=spec.network,
        user=spec.user or ("" if spec.image else "0:0"),
        cwd="" if spec.image or spec.fetches else "/",
        labels=tuple(sorted(run.definition.labels.items())),
        image=spec.image,
        fetch=spec.fetches,
        interfaces=networking.interfaces(spec.networks, ()),
        bandwidth=networking.bandwidth(spec.networks),
    )
    if spec.taskKillGracePeriodSeconds is not None:
        plain = replace(plain, kill_grace_s=spec.taskKillGracePeriodSeconds)
    task = spec.confined(plain)
    demand = Demand(
        run.group,
        spec.resources,
        networking.names_of(spec.networks),
        1,
        needed(task),
        constraints=spec.constraints,
    )
    told = {
        "MARATHON_APP_RESOURCE_CPUS": str(spec.cpus),
        "MARATHON_APP_RESOURCE_MEM": str(spec.mem),
        "MARATHON_APP_RESOURCE_DISK": str(spec.disk),
    }
    return Template(task, told | spec.env, demand)


def task_of(run: Run, made: Template, host: str) -> TaskSpec:
    """`host` is the address of its node. Its environment says what Metronome, which stood on Marathon, told tasks."""
    told = {
        "MARATHON_APP_ID": f"/{run.job.replace('.', '/')}/{run.id}",
        "MESOS_TASK_ID": run.task,
        "HOST": host,
    }
    return replace(made.task, id=run.task, env=tuple(sorted((told | made.env).items())))
