"""Images without a disk: names, manifests, the table of overrides, what skopeo says, and what to remove."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.images import errors, manifest
from agent.images.command import resolve
from agent.images.errors import Hostile, ImageError, NotFound, Refused, WrongArchitecture, WrongDigest
from agent.images.gc import Kept, victims
from agent.images.manifest import Config
from agent.images.reference import parse
from agent.images.registry import reason
from model.image import ImageSpec, Rules
from model.resources import Resources
from model.task import TaskSpec
from tests.images import digest, layer, make

DIGEST = "sha256:" + "0123456789abcdef" * 4
HOSTILE = ["", "UPPER", "a b", "../x", "/x", "x:", "x:-tag", f"x@{DIGEST[:-1]}", "x@md5:00", "x//y"]
HOSTILE += [
    "oci:/a/../b:x",
    "oci:/a//b",
    "a\nb",
    "-x",
    "http://x/y",
    "x" * 300,
    "reg:99999999/x",
    "oci:/a:b c",
    "x:" + "t" * 129,
]
TABLE = [
    # argv, arguments, rules, entrypoint, cmd -> what is executed, or None
    ((), False, Rules.DOCKER, (), (), None),
    ((), False, Rules.DOCKER, (), ("c", "d"), ("c", "d")),
    ((), False, Rules.MESOS, ("e", "f"), (), ("e", "f")),
    ((), False, Rules.MESOS, ("e",), ("c",), ("e", "c")),
    (("sh", "-c", "x"), False, Rules.DOCKER, ("e",), ("c",), ("sh", "-c", "x")),
    (("sh", "-c", "x"), False, Rules.MESOS, ("e",), ("c",), ("sh", "-c", "x")),
    (("a", "b"), True, Rules.DOCKER, (), (), ("a", "b")),
    (("a", "b"), True, Rules.DOCKER, (), ("c", "d"), ("a", "b")),
    (("a", "b"), True, Rules.DOCKER, ("e", "f"), ("c",), ("e", "f", "a", "b")),
    (("a", "b"), True, Rules.MESOS, (), (), None),
    (("a", "b"), True, Rules.MESOS, (), ("c", "d"), ("c", "a", "b")),
    (("a", "b"), True, Rules.MESOS, ("e", "f"), ("c",), ("e", "f", "a", "b")),
]


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.25", "docker.io/library/nginx:1.25"),
        ("team/web", "docker.io/team/web:latest"),
        ("docker://team/web:1", "docker.io/team/web:1"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
        ("localhost/web", "localhost/web:latest"),
        ("registry:5000/x/y:1", "registry:5000/x/y:1"),
        (f"registry:5000/x@{DIGEST}", f"registry:5000/x@{DIGEST}"),
        (f"registry:5000/x:1@{DIGEST}", f"registry:5000/x:1@{DIGEST}"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("oci:/srv/layout:1.2", "oci:/srv/layout:1.2"),
        ("oci:/srv/layout", "oci:/srv/layout"),
        ("docker-archive:/srv/a.tar:web:1", "docker-archive:/srv/a.tar:web:1"),
    ],
)
def test_names_are_dockers(text: str, full: str) -> None:
    assert str(parse(text)) == full
    assert parse(full) == parse(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(Refused, match="image "):
        parse(text)


@given(st.text())
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        assert parse(str(parse(text))) == parse(text)
    except Refused:
        return


@pytest.mark.parametrize(("argv", "arguments", "rules", "entrypoint", "command", "executed"), TABLE)
def test_the_table_of_overrides(
    argv: tuple[str, ...],
    arguments: bool,
    rules: Rules,
    entrypoint: tuple[str, ...],
    command: tuple[str, ...],
    executed: tuple[str, ...] | None,
) -> None:
    task = spec(argv, ImageSpec("x", rules=rules, arguments=arguments))
    config = Config(entrypoint, command)
    if executed is None:
        with pytest.raises(Refused, match="neither ENTRYPOINT nor CMD"):
            resolve(task, config, "/sandbox")
    else:
        assert resolve(task, config, "/sandbox").argv == executed


@pytest.mark.parametrize(
    ("rules", "of_task", "of_image", "user", "cwd"),
    [
        (Rules.DOCKER, ("", ""), ("", ""), "0:0", "/"),
        (Rules.MESOS, ("", ""), ("", ""), "0:0", "/sandbox"),
        (Rules.MESOS, ("", ""), ("web:", "srv/../app/"), "web", "/app"),
        (Rules.DOCKER, ("7:8", "/t"), ("web", "/srv"), "7:8", "/t"),
    ],
)
def test_user_and_directory_are_the_tasks_else_the_images(
    rules: Rules, of_task: tuple[str, str], of_image: tuple[str, str], user: str, cwd: str
) -> None:
    task = spec(("x",), ImageSpec("x", rules=rules), *of_task)
    resolved = resolve(task, Config(user=of_image[0], cwd=of_image[1]), "/sandbox")
    assert (resolved.user, resolved.cwd) == (user, cwd)


def test_the_environment_of_the_task_outranks_the_images() -> None:
    config = Config(env=(("A", "image"), ("B", "image")))
    assert dict(resolve(spec(("x",), ImageSpec("x")), config, "/").env) == {"A": "image", "B": "task"}


def test_an_image_is_read_from_manifest_and_configuration() -> None:
    made = make([layer([])], {"Entrypoint": ["e"], "Env": ["A=b=c", "EMPTY=", "=x"], "User": None, "Cmd": None})
    image = manifest.image_of(made.manifest, made.config)
    assert image.digest == made.digest
    assert [found.diff_id for found in image.layers] == [digest(layer([]))]
    assert image.config == Config(entrypoint=("e",), env=(("A", "b=c"), ("EMPTY", "")))


NO_MANIFESTS = [b"", b"[]", b"null", b"{}", b"[" * 100_000, b'{"config": {}, "layers": []}']
NO_MANIFESTS += [b" " * (manifest.MOST_BYTES + 1), b'{"config": {"digest": "sha256:../../x", "size": 1}, "layers": []}']


@pytest.mark.parametrize("data", NO_MANIFESTS, ids=range(len(NO_MANIFESTS)))
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(Hostile):
        manifest.parse_manifest(data)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_json_is_read_or_refused(value: object) -> None:
    data = json.dumps(value).encode()
    for read in (manifest.parse_manifest, manifest.parse_config, manifest.choose, manifest.is_index):
        try:
            read(data)
        except ImageError:
            continue


def test_a_configuration_must_be_the_manifests() -> None:
    made, other = make([layer([])]), make([layer([])], {"Cmd": ["x"]})
    with pytest.raises(WrongDigest, match="configuration should be"):
        manifest.image_of(made.manifest, other.config)


def test_an_index_has_one_image_for_each_kind_of_machine() -> None:
    def index(*architectures: str) -> bytes:
        entries = [
            {"digest": digest(name.encode()), "size": 1, "platform": {"architecture": name, "os": "linux"}}
            for name in architectures
        ]
        return json.dumps({"manifests": entries}).encode()

    assert manifest.choose(index("mips", manifest.MACHINE)) == digest(manifest.MACHINE.encode())
    with pytest.raises(WrongArchitecture, match="it is for linux/mips, and this node is linux/"):
        manifest.choose(index("mips"))
    with pytest.raises(NotFound):
        manifest.choose(index("mips"), tag="other")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("reading manifest 9 in registry:5000/x: manifest unknown: manifest unknown", errors.NotFound),
        ("name unknown: repository name not known to registry", errors.NotFound),
        ("unable to retrieve auth token: invalid username/password: unauthorized", errors.NotPermitted),
        ("reading manifest: unauthorized: authentication required", errors.NotPermitted),
        ("Get https://r/v2/: x509: certificate signed by unknown authority", errors.BadCertificate),
        ("http: server gave HTTP response to HTTPS client", errors.BadCertificate),
        ("dial tcp 127.0.0.1:5000: connect: connection refused", errors.Unreachable),
        ("dial tcp: lookup r on 127.0.0.1:53: no such host", errors.Unreachable),
        ("received unexpected HTTP status: 503 Service Unavailable", errors.Unreachable),
        ("toomanyrequests: You have reached your pull rate limit", errors.Unreachable),
        ("write /x/oci-put-blob1: no space left on device", errors.DiskFull),
        ("Digest did not match, expected sha256:a, got sha256:b", errors.WrongDigest),
    ],
)
def test_what_skopeo_says_is_told_by_kind(said: str, kind: type[ImageError]) -> None:
    found = reason(f'time="2026-01-01T00:00:00Z" level=fatal msg="Error parsing image name: {said}"\n')
    assert type(found) is kind
    assert said[-20:] in str(found)


def test_nothing_that_skopeo_says_is_unbounded_or_unprintable() -> None:
    assert str(reason("\x1b[2J" + "x" * 10_000)).isprintable()
    assert len(str(reason("x" * 10_000))) < 400


SIZES = {"base": 100, "a": 10, "b": 20, "c": 30}
IMAGES = [Kept("a", 3.0, ("base", "a")), Kept("b", 1.0, ("base", "b")), Kept("c", 2.0, ("c",))]


@pytest.mark.parametrize(
    ("in_use", "needed", "chosen"),
    [
        ((), 0, ""),
        ((), 1, "b"),
        ((), 20, "b"),
        ((), 21, "bc"),
        ((), 51, "bca"),
        (("b",), 1, "c"),
        (("a", "b", "c"), 1, ""),
        (("c",), 130, "ba"),
    ],
)
def test_unused_images_go_the_longest_unused_first(in_use: tuple[str, ...], needed: int, chosen: str) -> None:
    """What two images share is freed with the second."""
    assert "".join(image.reference for image in victims(IMAGES, in_use, SIZES, needed)) == chosen


def spec(argv: tuple[str, ...], image: ImageSpec, user: str = "", cwd: str = "") -> TaskSpec:
    return TaskSpec(
        "web.1", "services", "/web", argv, Resources(), "none", env=(("B", "task"),), user=user, cwd=cwd, image=image
    )
