"""The image that the tests' virtual machine starts from, made once: a disk, and a snapshot of the booted machine.

It is kept in `$XDG_CACHE_HOME/tepui` (`~/.cache/tepui`), by a digest of all that it is made of, so a change makes a new
one; those before it are removed. `python -m tests.vm.image` makes it if it is not there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.vm import machine
from tests.vm.machine import Boot, Machine

ROOT = Path(__file__).parents[2]
# What ends up in the image, or says how it is made.
SOURCES = (
    "vagrant/rootfs",
    "tests/vm/image.py",
    "requirements-dev.txt",
    "packaging/modules-load.d/tepui.conf",
)
DISK = "8G"
SNAPSHOT = "booted"
COMPLETE, USED = "complete", "used"  # files: there when all others are; locked by whose machine runs from it
# The address is QEMU's choice. Without a lease there is none to renew when the clock jumps after a resume.
NETWORK = """[Match]
Name=eth0

[Network]
Address=10.0.2.15/24
LinkLocalAddressing=no
"""
# In namespaces of its own: whatever it starts and mounts ends with it, also when it is ended.
ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# Read once before the snapshot, so that each run finds it in memory.
WARM = "import grpc, fastapi, pydantic_settings, pyroute2, cryptography.x509, structlog, httpx2, pytest, xdist"


@contextmanager
def kept() -> Iterator[Path]:
    """The image's directory, which nobody removes before the block ends. If somebody else makes it, this waits."""
    cache = _cache()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _locked(cache / "lock"):
            directory = _made(cache)
            stack.enter_context(_locked(directory / USED, fcntl.LOCK_SH))
        yield directory


@contextmanager
def resumed() -> Iterator[Machine]:
    """A machine like all others of this image, which has booted long ago; what it writes goes with it."""
    with kept() as image, tempfile.TemporaryDirectory(prefix="tepui-vm-", dir="/var/tmp") as directory:
        _copy(image / "disk.qcow2", Path(directory) / "disk.qcow2")
        with machine.started(_boot(image), Path(directory), SNAPSHOT) as resumed:
            resumed.set_clock()
            yield resumed


def _made(cache: Path) -> Path:
    directory = cache / f"vm-{_digest()}"
    if not (directory / COMPLETE).exists():
        for old in cache.glob("vm-*"):
            _remove(old)
        _make(directory)
        (directory / COMPLETE).touch()
    return directory


def _remove(image: Path) -> None:
    """Unless a machine runs from it."""
    with suppress(BlockingIOError), _locked(image / USED, fcntl.LOCK_EX | fcntl.LOCK_NB):
        shutil.rmtree(image)


def _make(directory: Path) -> None:
    directory.mkdir()
    _step(directory, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(directory / "key"))
    with tempfile.TemporaryDirectory(prefix="tepui-vm-", dir="/var/tmp") as root:
        _step(directory, *ALONE, str(ROOT / "vagrant/rootfs"), root)
        _finish(Path(root), (directory / "key.pub").read_text())
        for name in ("vmlinuz", "initrd.img"):
            shutil.copy(next(Path(root, "boot").glob(f"{name}-*")), directory / name)
        # No loop device is needed to fill a file system that is made from a directory.
        _step(directory, "mkfs.ext4", "-q", "-d", root, str(directory / "base.raw"), DISK)
    _step(
        directory, "qemu-img", "convert", "-O", "qcow2", *(str(directory / f"base.{kind}") for kind in ("raw", "qcow2"))
    )
    (directory / "base.raw").unlink()
    _freeze(directory)


def _finish(root: Path, public_key: str) -> None:
    root.chmod(0o755)
    (root / "etc/systemd/network/eth0.network").write_text(NETWORK)
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    (root / "root/.ssh/authorized_keys").write_text(public_key)
    (root / "etc/ssh/sshd_config.d/tests.conf").write_text("UseDNS no\nUsePAM no\n")


def _freeze(directory: Path) -> None:
    base = ("-b", str(directory / "base.qcow2"), "-F", "qcow2")
    _step(directory, "qemu-img", "create", "-q", "-f", "qcow2", *base, str(directory / "disk.qcow2"))
    with machine.started(_boot(directory), directory) as booted:
        booted.run("systemctl is-system-running --wait || systemctl --failed", machine.CONNECT_DEADLINE_S)
        booted.run(f"cd /opt/tepui && .venv/bin/python -c '{WARM}'", machine.CONNECT_DEADLINE_S)
        booted.run("sync")
        said = booted.monitor(f"savevm {SNAPSHOT}")
        assert not said.strip(), said


def _step(directory: Path, *argv: str) -> None:
    """With its output in the image's log."""
    with (directory / "log").open("a") as log:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    assert done.returncode == 0, f"{argv[0]} failed:\n{(directory / 'log').read_text()[-2000:]}"


def _copy(source: Path, target: Path) -> None:
    """Holes stay holes, and nothing is copied where files can share their blocks."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(source), str(target)], check=True)


def _boot(image: Path) -> Boot:
    return Boot(image / "vmlinuz", image / "initrd.img", image / "base.qcow2", image / "key")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tepui"


def _digest() -> str:
    """A snapshot is bound to the program that took it and to the devices that it had."""
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True).stdout
    parts = [(ROOT / name).read_bytes() for name in SOURCES]
    parts += [qemu, " ".join(machine.command(_boot(Path()), Path(), 0)).encode(), sys.version.encode()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


@contextmanager
def _locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, how)
        yield


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """As an exception, so that what is half made is removed."""
    sys.exit(f"ended by signal {number}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    with kept() as directory:
        print(directory)
