"""Clears away what another OCI runtime noted of a container, and made for it in cgroups that are not ours.

Which runtime that is stands with the container: the agent's configuration may name another one by now.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from agent.launcher.oci import DIRECTORY, NAME_FILE, STATE, command
from isolators.base import IsolatorError

DELETE_DEADLINE_S = 15.0


async def delete(directory: Path, container_id: str) -> None:
    """Ends the container, too. Accepts one that no other runtime has made. Raises IsolatorError."""
    try:
        name = (directory / DIRECTORY / NAME_FILE).read_text()
    except FileNotFoundError:
        return
    if not (directory / DIRECTORY / STATE / container_id).exists():
        return
    argv = command(name, str(directory), "delete", "--force", container_id)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        raise IsolatorError(f"{name} delete {container_id}: {error.strerror}") from error
    try:
        said, _ = await asyncio.wait_for(process.communicate(), DELETE_DEADLINE_S)
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise IsolatorError(f"{name} delete {container_id}: not done after {DELETE_DEADLINE_S:g} s") from error
    if process.returncode != 0:
        raise IsolatorError(f"{name} delete {container_id}: {_last_words(directory, said)}")


def _last_words(directory: Path, said: bytes) -> str:
    try:
        lines = (directory / DIRECTORY / "log.json").read_text().splitlines()
        return str(json.loads(lines[-1])["msg"])
    except (OSError, ValueError, LookupError):
        return said.decode(errors="replace").strip()
