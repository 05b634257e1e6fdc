"""What a job's definition may say, what it makes of a task, and how what is wrong is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from frameworks.jobs import job, starts
from frameworks.jobs.bodies import JobBody
from frameworks.jobs.definition import Definition, Overrides
from frameworks.jobs.schedule import ScheduleDefinition
from frameworks.jobs.task import task_of, template
from master.rest.errors import json_path
from model.image import ImageSpec, Rules
from model.task import TaskSpec
from model.volume import VolumeKind
from tests.unit.jobs import NOON, definition

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN: dict[str, Any] = {"cpus": 0.1, "mem": 32, "disk": 0, "cmd": "true"}


def problems(model: type[Definition] | type[ScheduleDefinition], body: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    return {json_path(each["loc"]): each["msg"] for each in caught.value.errors()}


def of_run(**run: Any) -> dict[str, str]:
    return problems(Definition, {"id": "job", "run": RUN | run})


def task(**run: Any) -> TaskSpec:
    known = job.new(definition(**run))
    made = starts.asked_for(known, NOON)
    return task_of(made, template(made), "10.0.0.1")


@pytest.mark.parametrize("path", [EXAMPLES / "job.json", *sorted((EXAMPLES / "pipeline").glob("*.json"))])
def test_examples(path: Path) -> None:
    body = JobBody.model_validate(json.loads(path.read_text()))
    assert body.definition.run.network == "overlay"


def test_defaults_are_metronomes() -> None:
    said = Definition.model_validate({"id": "job", "run": RUN}).model_dump(exclude_none=True)
    assert said == {
        "id": "job",
        "dependencies": [],
        "labels": {},
        "run": {
            "cpus": 0.1,
            "mem": 32.0,
            "disk": 0.0,
            "gpus": 0,
            "cmd": "true",
            "env": {},
            "placement": {"constraints": []},
            "artifacts": [],
            "maxLaunchDelay": 3600,
            "volumes": [],
            "restart": {"policy": "NEVER"},
            "secrets": {},
            "networks": [],
        },
    }


def test_a_null_is_absent_at_every_depth() -> None:
    run = {**RUN, "user": None, "docker": None, "restart": {"policy": "NEVER", "activeDeadlineSeconds": None}}
    body = {"id": "job", "description": None, "run": {**run, "placement": {"constraints": None}}}
    assert Definition.model_validate(body) == Definition.model_validate({"id": "job", "run": RUN})


def test_what_was_read_can_be_sent_back() -> None:
    known = Definition.model_validate({"id": "job", "run": RUN})
    read = known.model_dump(exclude_none=True) | {
        "schedules": [],
        "activeRuns": [{"id": "x"}],
        "historySummary": {"successCount": 1},
        "history": {},
    }
    assert JobBody.model_validate(read).definition == known


@pytest.mark.parametrize(
    ("run", "path", "said"),
    [
        ({"gpus": 1}, "/run/gpus", "is not supported by this version"),
        ({"env": {"A": {"secret": "s"}}}, "/run/env/A", "secrets are not supported here"),
        ({"volumes": [{"containerPath": "/s", "secret": "s"}]}, "/run/volumes(0)/secret", "is not supported"),
        (
            {"volumes": [{"containerPath": "d", "persistent": {"size": 1}}]},
            "/run/volumes(0)/persistent",
            "is not supported by this version for jobs",
        ),
        ({"secrets": {"s": {"source": "x"}}}, "/run/secrets/s", "is not used: docker/pullConfig is what can use it"),
        ({"docker": {"image": "a", "privileged": True}}, "/run/docker/privileged", "privileged containers are not"),
        ({"docker": {}}, "/run/docker", "needs an image"),
        ({"ucr": {"image": {"id": "a", "kind": "appc"}}}, "/run/ucr/image/kind", "'appc' is not supported"),
        ({"ucr": {"image": {"id": "a"}, "privileged": True}}, "/run/ucr/privileged", "privileged containers are not"),
        ({"docker": {"image": "a"}, "ucr": {"image": {"id": "a"}}}, "/run", "at most one of docker and ucr"),
        ({"args": ["x"]}, "/run", "exactly one of cmd and args must be given"),
        ({"cmd": None}, "/run", "exactly one of cmd and args must be given, without an image"),
        ({"mem": 31}, "/run/mem", "greater than or equal to 32"),
        ({"cpus": 0}, "/run/cpus", "greater than or equal to 0.01"),
        ({"cpus": "1"}, "/run/cpus", "valid number"),
        ({"restart": {"policy": "ALWAYS"}}, "/run/restart/policy", "'NEVER' or 'ON_FAILURE'"),
        (
            {"placement": {"constraints": [{"attribute": "rack", "operator": "LIKE", "value": "("}]}},
            "/run/placement/constraints(0)",
            "is no regular expression",
        ),
        (
            {"placement": {"constraints": [{"attribute": "rack", "operator": "UNIQUE"}]}},
            "/run/placement/constraints(0)/operator",
            "'IS', 'LIKE' or 'UNLIKE'",
        ),
        (
            {"networks": [{"mode": "container", "name": "overlay", "labels": {"tepui/address": "10.0.0.1"}}]},
            "/run/networks(0)/labels",
            "tepui/address: several runs can not have one address",
        ),
        ({"docker": {"image": "a", "parameters": [{"key": "memory", "value": "1"}]}}, None, "mem"),
        ({"shell": True}, "/run/shell", "Extra inputs are not permitted"),
    ],
)
def test_what_can_not_be_honoured_is_refused_by_its_name(run: dict[str, Any], path: str | None, said: str) -> None:
    found = of_run(**run)
    assert len(found) in (1, 2)
    where = path or "/run/docker/parameters(0)/key"
    assert where in found and said in found[where], found


@pytest.mark.parametrize("name", ["a", "a-b.c--d", "prod.email.summary", "0"])
def test_ids_of_jobs(name: str) -> None:
    assert Definition.model_validate({"id": name, "run": RUN}).id == name


@pytest.mark.parametrize("name", ["", "/a", "A", "a.", ".a", "a..b", "-a", "a-", "a b", "a/b", "a" * 129, "events"])
def test_what_is_no_id_of_a_job(name: str) -> None:
    assert "/id" in problems(Definition, {"id": name, "run": RUN})


def test_dependencies_are_named_once() -> None:
    body = {"id": "job", "run": RUN, "dependencies": [{"id": "a"}, {"id": "b"}, {"id": "a"}]}
    assert problems(Definition, body) == {"/dependencies": "a occurs more than once"}


def test_labels_with_our_prefix_mean_nothing_of_a_job() -> None:
    (problem,) = problems(Definition, {"id": "job", "run": RUN, "labels": {"tepui/deadline": "60"}}).items()
    assert problem[0] == "/labels" and "tepui/deadline" in problem[1]


def test_eq_is_read_as_is() -> None:
    constraint = {"attribute": "rack", "operator": "EQ", "value": "r1"}
    known = definition(placement={"constraints": [constraint]})
    assert known.model_dump()["run"]["placement"] == {"constraints": [constraint | {"operator": "IS"}]}
    assert [str(each) for each in known.run.constraints] == ["rack IS r1"]


def test_images() -> None:
    assert task(docker={"image": "busybox", "forcePullImage": True}).image == ImageSpec(
        "busybox", True, Rules.DOCKER, arguments=False, pull_secret=""
    )
    of_entrypoint = task(cmd=None, args=["x"], ucr={"image": {"id": "busybox"}})
    assert of_entrypoint.image == ImageSpec("busybox", False, Rules.MESOS, arguments=True)
    assert of_entrypoint.argv == ("x",) and of_entrypoint.user == "" and of_entrypoint.cwd == ""
    assert task(cmd=None, docker={"image": "busybox"}).argv == ()


def test_pull_secrets_are_for_what_is_below_their_path() -> None:
    docker = {"image": "registry.example/a", "pullConfig": {"secret": "pull"}}
    secrets = {"pull": {"source": "team/pull"}}
    made = JobBody.model_validate({"id": "team.job", "run": {**RUN, "docker": docker, "secrets": secrets}})
    image = made.run.image
    assert image is not None and image.pull_secret == "team/pull"
    found = problems(Definition, {"id": "other.job", "run": {**RUN, "docker": docker, "secrets": secrets}})
    assert "/run/secrets/pull/source" in found


def test_what_confines_a_task() -> None:
    parameters = [{"key": "cap-add", "value": "NET_RAW"}]
    spec = task(
        docker={"image": "busybox", "parameters": parameters},
        volumes=[{"containerPath": "/data", "hostPath": "/srv/data", "mode": "RO"}],
        user="nobody",
        taskKillGracePeriodSeconds=7.5,
        artifacts=[{"uri": "https://example.org/a.tgz"}],
    )
    assert spec.capabilities_add == ("CAP_NET_RAW",) and spec.user == "nobody" and spec.kill_grace_s == 7.5
    (volume,) = spec.volumes
    assert (volume.kind, volume.source, volume.read_only) == (VolumeKind.HOST, "/srv/data", True)
    assert [each.uri for each in spec.fetch] == ["https://example.org/a.tgz"]


def test_overrides() -> None:
    known = definition(env={"A": "1"}, args=["x"], cmd=None)
    assert Overrides().applied(known) is known
    different = Overrides.model_validate({"cmd": "y", "env": {"B": "2"}, "cpus": 1.5, "mem": None}).applied(known)
    assert (different.run.cmd, different.run.args, different.run.env) == ("y", None, {"A": "1", "B": "2"})
    assert (different.run.cpus, different.run.mem) == (1.5, 32.0) and known.run.env == {"A": "1"}
    with pytest.raises(ValidationError, match="instances"):
        Overrides.model_validate({"instances": 2})
    with pytest.raises(ValidationError, match="exactly one"):
        Overrides.model_validate({"cmd": "x", "args": ["y"]})


@pytest.mark.parametrize(
    ("fields", "path", "said"),
    [
        ({"cron": "0 0 30 2 *"}, "/cron", "Bad day-of-month"),
        ({"cron": "0 0 31 4,6 *"}, "/cron", "Bad day-of-month"),
        ({"cron": "0 0 31 4,6 1"}, "/cron", "is never due"),
        ({"cron": "* * * * * *"}, "/cron", "must have five fields"),
        ({"cron": "@daily"}, "/cron", "must have five fields"),
        ({"cron": "61 * * * *"}, "/cron", "Bad minute"),
        ({"cron": ""}, "/cron", "must have five fields"),
        ({"cron": "0 0 1 1 *" + " " * 2000}, "/cron", "is longer than"),
        ({"timezone": "Europe/Atlantis"}, "/timezone", "'Europe/Atlantis' is no time zone"),
        ({"timezone": "../../etc/passwd"}, "/timezone", "is no time zone"),
        ({"timezone": ""}, "/timezone", "is no time zone"),
        ({"concurrencyPolicy": "MAYBE"}, "/concurrencyPolicy", "'ALLOW', 'FORBID' or 'REPLACE'"),
        ({"startingDeadlineSeconds": 0}, "/startingDeadlineSeconds", "greater than or equal to 1"),
        ({"enabled": "yes"}, "/enabled", "valid boolean"),
        ({"id": "No"}, "/id", "'No' must be"),
        ({"every": "day"}, "/every", "Extra inputs"),
    ],
)
def test_what_is_wrong_with_a_schedule(fields: dict[str, Any], path: str, said: str) -> None:
    found = problems(ScheduleDefinition, {"id": "s", "cron": "* * * * *", **fields})
    assert list(found) == [path] and said in found[path], found


def test_schedules_as_clients_write_them() -> None:
    body = {"id": "s", "cron": "0 1 * * *", "timeZone": "Europe/Berlin", "nextRunAt": "whenever", "enabled": None}
    said = ScheduleDefinition.model_validate(body).model_dump(exclude_none=True)
    assert said == {
        "id": "s",
        "cron": "0 1 * * *",
        "timezone": "Europe/Berlin",
        "startingDeadlineSeconds": 900,
        "concurrencyPolicy": "ALLOW",
        "enabled": True,
    }
    assert list(problems(ScheduleDefinition, {**body, "timezone": "UTC"})) == ["/"]
