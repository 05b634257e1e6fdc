"""What the tests of `tests/kernel` stand on."""

from __future__ import annotations

from tests.kernel.conftest import host_mounts, host_netns, tmp_path

__all__ = ["host_mounts", "host_netns", "tmp_path"]
