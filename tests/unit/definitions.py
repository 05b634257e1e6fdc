"""Hypothesis strategies for definitions of apps and pods, as JSON: all of them are sound."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]

words = st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True)
texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
labels = st.dictionaries(words, texts, max_size=3)
seconds = st.integers(0, 600) | st.floats(0, 600, allow_nan=False)
amounts = st.integers(1, 4096) | st.floats(0.001, 4096, allow_nan=False)
parts = st.floats(0, 1, allow_nan=False) | st.sampled_from([0, 1])
ports = st.integers(1, 65535)
protocols = st.sampled_from(["tcp", "udp", "udp,tcp"])


def fields(required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries(required, optional={name: value | st.none() for name, value in optional.items()})


mappings = fields(
    {"containerPort": ports},
    hostPort=st.integers(0, 65535),
    servicePort=st.integers(0, 65535),
    protocol=protocols,
    name=words,
    labels=labels,
)
definitions = fields({}, port=st.integers(0, 65535), protocol=protocols, name=words, labels=labels)
artifacts = fields(
    {"uri": st.sampled_from(["http://192.0.2.1/a.tgz", "file:///srv/a", "/srv/b.zip"])},
    extract=st.booleans(),
    executable=st.booleans(),
    cache=st.booleans(),
    destPath=words,
)
health_checks = fields(
    {"protocol": st.sampled_from(["HTTP", "HTTPS", "TCP", "MESOS_HTTP", "MESOS_HTTPS", "MESOS_TCP"]), "port": ports},
    path=words.map("/".__add__),
    gracePeriodSeconds=st.integers(0, 600),
    intervalSeconds=st.integers(0, 600),
    timeoutSeconds=st.integers(1, 600),
    delaySeconds=st.integers(0, 600),
    maxConsecutiveFailures=st.integers(0, 9),
    ignoreHttp1xx=st.booleans(),
    ipProtocol=st.sampled_from(["IPv4", "IPv6"]),
) | fields({"protocol": st.just("COMMAND"), "command": fields({"value": words})}, intervalSeconds=st.integers(0, 60))
volumes = fields({"containerPath": words}, hostPath=words, mode=st.sampled_from(["RO", "RW"])).map(
    lambda volume: {**volume, "hostPath": volume.get("hostPath") or "scratch"}
) | fields({"containerPath": words, "persistent": fields({"size": st.integers(1, 1024)})})
upgrades = fields({}, minimumHealthCapacity=parts, maximumOverCapacity=parts)
unreachables = st.sampled_from(["disabled", {"inactiveAfterSeconds": 5, "expungeAfterSeconds": 9}])
constraints = st.sampled_from([["hostname", "UNIQUE"], ["rack", "LIKE", "r[12]"], ["@zone", "GROUP_BY"]])
SHAPES: list[Json] = [
    {},
    {"networks": [{"mode": "host"}]},
    {"networks": [{"mode": "container/bridge", "labels": {"a": "b"}}]},
    {"networks": [{"name": "overlay"}, {"mode": "container", "name": "back"}]},
]


def _distinct(items: list[Json], *names: str) -> list[Json]:
    """Those of which none has what one before has."""
    kept: list[Json] = []
    for item in items:
        if not any(item.get(name) and item.get(name) == other.get(name) for other in kept for name in names):
            kept.append(item)
    return kept


@st.composite
def apps(draw: st.DrawFn) -> Json:
    body = draw(
        fields(
            {"id": words},
            user=words,
            env=st.dictionaries(words, texts, max_size=3),
            cpus=amounts,
            mem=amounts,
            disk=amounts,
            gpus=st.just(0),
            instances=st.integers(0, 9),
            labels=labels,
            executor=st.sampled_from(["", "//cmd"]),
            role=st.just("*"),
            acceptedResourceRoles=st.sampled_from([[], ["*"]]),
            taskKillGracePeriodSeconds=seconds,
            backoffSeconds=seconds,
            backoffFactor=st.floats(1, 10),
            maxLaunchDelaySeconds=seconds,
            healthChecks=st.lists(health_checks, max_size=2),
            constraints=st.lists(constraints, max_size=2),
            dependencies=st.lists(words.map("../x".__add__), max_size=2),
            killSelection=st.sampled_from(["YOUNGEST_FIRST", "OLDEST_FIRST"]),
            secrets=st.dictionaries(words, fields({"source": words}), max_size=2),
        )
    )
    shape = draw(st.sampled_from(SHAPES))
    body |= shape | draw(st.sampled_from([{"cmd": "true"}, {"args": ["a", "b"]}]))
    container: Json = draw(fields({}, type=st.just("MESOS"), volumes=st.lists(volumes, max_size=2)))
    container["volumes"] = _distinct(container.get("volumes") or [], "containerPath", "hostPath")
    if draw(st.booleans()):
        image = fields({"image": words}, forcePullImage=st.booleans(), privileged=st.just(False))
        container |= {"type": draw(st.sampled_from(["MESOS", "DOCKER"])), "docker": draw(image)}
    if shape.get("networks", SHAPES[1]["networks"]) == SHAPES[1]["networks"]:
        body |= draw(_of_host)
    else:
        container["portMappings"] = _distinct(draw(st.lists(mappings, max_size=3)), "containerPort", "hostPort", "name")
    if not any("persistent" in volume for volume in container["volumes"]):
        body |= draw(fields({}, upgradeStrategy=upgrades, unreachableStrategy=unreachables))
    return body | draw(st.sampled_from([{"container": container}])) | draw(_of_fetch)


_host_ports = st.lists(definitions, max_size=3).map(lambda given: _distinct(given, "port", "name"))
_of_host: st.SearchStrategy[Json] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"portDefinitions": _host_ports, "requirePorts": st.booleans()}),
    st.fixed_dictionaries({"ports": st.lists(ports, max_size=3, unique=True)}),
)
_of_fetch: st.SearchStrategy[Json] = st.one_of(
    st.fixed_dictionaries({"fetch": st.lists(artifacts, max_size=2)}),
    st.fixed_dictionaries({"uris": st.lists(st.sampled_from(["http://192.0.2.1/a.zip", "file:///b"]), max_size=2)}),
)

amounts_of_container = fields({"cpus": amounts, "mem": amounts}, disk=amounts, gpus=st.just(0))
endpoints = fields(
    {"name": words, "containerPort": ports}, protocol=st.sampled_from([["tcp"], ["udp", "tcp"]]), labels=labels
)
pod_checks = fields(
    {"exec": fields({"command": st.sampled_from([{"shell": "true"}, {"argv": ["true"]}])})},
    gracePeriodSeconds=st.integers(0, 600),
    intervalSeconds=st.integers(0, 600),
    maxConsecutiveFailures=st.integers(0, 9),
)
containers = fields(
    {"name": words, "resources": amounts_of_container, "exec": fields({"command": st.just({"shell": "true"})})},
    image=fields({"kind": st.just("DOCKER"), "id": words}, forcePull=st.booleans()),
    artifacts=st.lists(artifacts, max_size=2),
    environment=st.dictionaries(words, texts, max_size=2),
    user=words,
    healthCheck=pod_checks,
    labels=labels,
    lifecycle=fields({}, killGracePeriodSeconds=seconds),
    endpoints=st.lists(endpoints, max_size=1),
    linuxInfo=st.sampled_from(
        [{}, {"ipcInfo": {"mode": "SHARE_PARENT", "shmSize": 8}}, {"seccomp": {"unconfined": True}}]
    ),
    tty=st.just(False),
)


@st.composite
def pods(draw: st.DrawFn) -> Json:
    body = draw(
        fields(
            {
                "id": words,
                "containers": st.lists(containers, min_size=1, max_size=3, unique_by=lambda each: each["name"]),
            },
            environment=st.dictionaries(words, texts, max_size=2),
            labels=labels,
            user=words,
            role=st.just("*"),
            scaling=fields({"kind": st.just("fixed")}, instances=st.integers(0, 9)),
            executorResources=fields({}, cpus=amounts, mem=amounts, disk=amounts),
            linuxInfo=st.sampled_from(
                [{"ipcInfo": {"mode": "PRIVATE", "shmSize": 9}}, {"seccomp": {"unconfined": True}}]
            ),
            legacySharedCgroups=st.just(False),
        )
    )
    upgrade = fields({}, backoff=fields({}, backoff=seconds, backoffFactor=st.floats(1, 9)), upgrade=upgrades)
    body |= draw(fields({}, scheduling=upgrade)) | draw(st.sampled_from(SHAPES[2:]))
    taken: set[Any] = set()
    for container in body["containers"]:
        endpoints = container.get("endpoints") or []
        container["endpoints"] = [each for each in endpoints if taken.isdisjoint((each["name"], each["containerPort"]))]
        taken.update(value for each in container["endpoints"] for value in (each["name"], each["containerPort"]))
    return body
