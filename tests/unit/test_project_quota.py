"""Where project quotas are enforced, from tables of mounts; and what the kernel is handed."""

from __future__ import annotations

from pathlib import Path

import pytest

from isolators import project_quota
from isolators.mount import parse_mountinfo

TABLE = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
28 27 254:16 / /var/lib/tepui rw,relatime - xfs /dev/vdb rw,attr2,inode64,prjquota
29 27 254:32 / /srv rw,relatime - xfs /dev/vdc rw,attr2,noquota
"""


@pytest.mark.parametrize(
    ("directory", "expected"), [("/var/lib/tepui/agent", True), ("/var/lib", False), ("/srv/agent", False)]
)
def test_the_nearest_mount_decides(directory: str, expected: bool) -> None:
    assert project_quota.enforced(Path(directory), parse_mountinfo(TABLE)) is expected


def test_structures_are_as_long_as_the_kernels() -> None:
    assert project_quota.FS_DISK_QUOTA.size == 112
    assert project_quota.FSXATTR.size == 28


def test_a_limit_is_in_blocks_of_512_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[bytes] = []

    def take(directory: Path, command: int, project: int, quota: bytes) -> bytes:
        handed.append(quota)
        return quota

    monkeypatch.setattr(project_quota, "_quotactl", take)
    project_quota.limit(Path("/x"), 7, 1 << 20)
    version, kind, mask, project, hard, soft, *_ = project_quota.FS_DISK_QUOTA.unpack(handed[0])
    assert (version, kind, mask, project, hard, soft) == (1, 2, 12, 7, 2048, 2048)
