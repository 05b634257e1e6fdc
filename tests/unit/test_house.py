"""The house rules, held by tools: formatting and lint, types, which package may import which, generated files."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))

# What forks stands alone: it is started with `python -I -S` and has nothing but the standard library.
STANDALONE = [
    *sorted((ROOT / "agent" / "launcher").glob("*.py")),
    *sorted((ROOT / "agent" / "images" / "layer").glob("*.py")),
    *sorted((ROOT / "agent" / "fetch" / "child").glob("*.py")),
    ROOT / "agent" / "confine.py",
    ROOT / "lab" / "init.py",
]
GENERATED = ["control_pb2.py", "control_pb2.pyi", "control_pb2_grpc.py", "control_pb2_grpc.pyi"]
SHELL = [*sorted((ROOT / "script").iterdir()), *(ROOT / "vagrant" / name for name in ("box", "provision", "rootfs"))]
REQUIREMENTS = ["requirements.txt", "requirements-dev.txt", "requirements-build.txt", "tests/clients/requirements.txt"]


@pytest.mark.parametrize(
    "argv",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports"]],
    ids=["ruff", "format", "mypy", "imports"],
)
def test_tool_has_no_complaints(argv: list[str]) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([SCRIPTS / argv[0], *argv[1:]], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


@pytest.mark.parametrize("path", STANDALONE, ids=lambda path: str(path.relative_to(ROOT)))
def test_standalone_programs_import_the_standard_library_only(path: Path) -> None:
    foreign = {name for name in imports(path) if name.partition(".")[0] not in sys.stdlib_module_names}
    own = ("agent.launcher", "agent.confine", "agent.images.layer", "agent.fetch.child")
    assert {name for name in foreign if name != "agent" and not name.startswith(own)} == set()


def test_only_standalone_programs_fork() -> None:
    guilty = [path for path in sources() if path not in STANDALONE and forks(path)]
    assert guilty == []


def test_generated_protocol_is_that_of_the_proto_file(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    subprocess.run([ROOT / "script" / "proto", tmp_path], env=environment, check=True)
    stale = [
        name for name in GENERATED if (tmp_path / "wire" / name).read_bytes() != (ROOT / "wire" / name).read_bytes()
    ]
    assert stale == [], "run script/proto"


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirements_are_pinned_and_say_nothing_about_an_index(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    lines = text.replace("\\\n", " ").splitlines()
    for requirement in [line for line in lines if line and not line.startswith("#")]:
        assert "==" in requirement and "--hash=sha256:" in requirement, requirement


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_scripts_parse_and_are_executable(path: Path) -> None:
    assert os.access(path, os.X_OK)
    subprocess.run(["sh", "-n", path], check=True)


def sources() -> list[Path]:
    packages = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    return [source for package in packages for source in package.rglob("*.py")]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def forks(path: Path) -> bool:
    """`os.fork`, and what does it for the caller: multiprocessing, and code run between fork and exec."""
    tree = ast.parse(path.read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    keywords = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    return bool(names & {"fork", "forkpty"}) or "preexec_fn" in keywords or "multiprocessing" in set(imports(path))
