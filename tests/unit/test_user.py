"""Users and groups by number and by name, as the files of an image say, which may be hostile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isolators.base import IsolatorError, Unsupported
from isolators.user import User, find_user, parse_ids

PASSWD = """root:x:0:0::/:/bin/sh
web:x:1000:100::/:/bin/sh
1001:x:0:0:a number for a name:/:/bin/sh
large:x:4294967296:0::/:/bin/sh
negative:x:-1:0::/:/bin/sh
short:x:5:5
"""
GROUP = "root:x:0:\nusers:x:100:web\naudio:x:29:other,web\nvideo:x:44:other\nlarge:x:70000:web\n"


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("web", User(1000, 100, (29,))),
        ("1000", User(1000, 100, (29,))),
        ("web:audio", User(1000, 29)),
        ("web:7", User(1000, 7)),
        ("2000", User(2000, 2000)),
        ("1001", User(1001, 1001)),
        ("65535:1", User(65535, 1)),
        ("0:users", User(0, 100)),
    ],
)
def test_users_are_what_the_files_say(rootfs: Path, text: str, user: User) -> None:
    assert find_user(text, rootfs) == user


def test_numbers_need_no_files(tmp_path: Path) -> None:
    assert parse_ids("5:6") == User(5, 6)
    assert parse_ids("5") is None and parse_ids("web:6") is None
    assert find_user("5", tmp_path) == User(5, 5)


@pytest.mark.parametrize("text", ["nobody", "large", "negative", "short", "web:nobody", "web:large", "root:video2"])
def test_who_is_not_there_is_refused(rootfs: Path, text: str) -> None:
    with pytest.raises(Unsupported, match="is not in the container's"):
        find_user(text, rootfs)


@pytest.mark.parametrize(
    "text",
    [
        "-1:0",
        "0:0:0",
        "00:0",
        "+0",
        " 0",
        "70000",
        "0:65536",
        "\u0660",
        "a b",
        "",
        "0x0",
        "../x",
        ":0",
        "0:",
        "4294967296",
    ],
)
def test_what_is_no_user_is_refused(rootfs: Path, text: str) -> None:
    for parse in (parse_ids, lambda user: find_user(user, rootfs)):
        with pytest.raises(Unsupported, match="user"):
            parse(text)


def test_files_are_looked_up_inside(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").symlink_to("/../../../../../../etc/passwd")
    with pytest.raises(IsolatorError):  # the link leads to itself inside, and to the node's file outside
        find_user("daemon", tmp_path)


def test_a_fifo_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    with pytest.raises(Unsupported, match="not a file"):
        find_user("daemon", tmp_path)
