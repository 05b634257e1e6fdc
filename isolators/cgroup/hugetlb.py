"""Huge pages: none of any size, unless the task names it. They are taken from what the node has set aside, and are no
part of the memory limit. Both versions have a file for each size (cgroup-v2.rst, "HugeTLB Interface Files").
"""

from __future__ import annotations

import errno
from pathlib import Path

from isolators.cgroup.controller import Controller
from isolators.cgroup.limits import Limits


class Hugetlb(Controller):
    name = "hugetlb"

    def __init__(self, suffix: str) -> None:
        """What follows the size in the file's name: `limit_in_bytes` on version 1, `max` on version 2."""
        self._suffix = suffix

    def limit(self, directory: Path, limits: Limits) -> None:
        wanted = dict(limits.huge_pages)
        files = {_size(path): path for path in directory.glob(f"hugetlb.*.{self._suffix}")}
        files = {size: path for size, path in files.items() if "." not in size}  # not of reservations (`2MB.rsvd`)
        if unknown := wanted.keys() - files.keys():
            sizes = ", ".join(sorted(files)) or "none"
            reason = f"huge pages of {', '.join(sorted(unknown))}: this node has {sizes}"
            raise OSError(errno.EINVAL, reason, str(directory))
        for size, path in files.items():
            path.write_text(str(wanted.get(size, 0)))


def _size(path: Path) -> str:
    return path.name.removeprefix("hugetlb.").rpartition(".")[0]
