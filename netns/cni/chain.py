"""The plug-ins of one conflist, executed one after the other for one command.

Source: containernetworking/cni SPEC.md 1.1.0, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from netns.cni.conflist import Conflist, Json, Plugin, request
from netns.cni.execute import LIMIT_S, Ended, execute, opened
from netns.cni.result import UNKNOWN_CONTAINER, PluginError, added, refuse_failure, supported_versions
from netns.driver import NetworkError


@dataclass(frozen=True, slots=True)
class Subject:
    """The attachment that a command is about. `namespace` is a path, or empty when there is none any more; `held` a
    descriptor that plug-ins inherit."""

    container: str
    interface: str
    namespace: str
    capabilities: Json
    held: int

    @property
    def variables(self) -> Mapping[str, str]:
        return {
            "CNI_CONTAINERID": self.container,
            "CNI_NETNS": self.namespace,
            "CNI_IFNAME": self.interface,
            "CNI_ARGS": "",
        }


@dataclass(frozen=True, slots=True)
class Chain:
    """Every verb raises NetworkError that names the plug-in and the command."""

    conflist: Conflist
    version: str
    directories: Sequence[Path]
    limit_s: float = LIMIT_S

    async def agree(self) -> str:
        """The best version that the configuration, all its plug-ins and we speak. Raises also for a plug-in that could
        not be executed, itself or by one that leaves addresses to it."""
        common = self.conflist.versions
        for plugin in self.conflist.plugins:
            ended = await self._run(plugin, "VERSION", request(self.conflist, plugin, self.version))
            with _naming(plugin, "VERSION"):
                spoken = supported_versions(ended)
                if not (common := tuple(version for version in common if version in spoken)):
                    words = ", ".join(sorted(spoken))[:100] or "none"
                    raise PluginError(f"speaks {words} and not {' or '.join(reversed(self.conflist.versions))}")
        return common[0]

    def refuse_unsafe(self) -> None:
        """Raises for a plug-in that can not be executed: before the first one is."""
        for plugin in self.conflist.plugins:
            with _naming(plugin, "ADD"), opened(plugin.type, self.directories):
                self._refuse_unsafe_delegates(plugin)

    async def status(self) -> None:
        for plugin in self.conflist.plugins:
            await self._succeed(plugin, "STATUS", request(self.conflist, plugin, self.version))

    async def add(self, subject: Subject, position: int, previous: Json | None) -> Json:
        """The result of the plug-in at `position`, given that of the one before it."""
        plugin = self.conflist.plugins[position]
        ended = await self._run(plugin, "ADD", self._request(plugin, subject, previous), subject)
        with _naming(plugin, "ADD"):
            return added(ended, self.version, subject.interface, previous)

    async def check(self, subject: Subject, result: Json | None) -> None:
        for plugin in self.conflist.plugins:
            await self._succeed(plugin, "CHECK", self._request(plugin, subject, result), subject)

    async def delete(self, subject: Subject, attempted: int, result: Json | None) -> list[NetworkError]:
        """Of the first `attempted` plug-ins, the last first, and of all of them, whatever fails."""
        errors = []
        for plugin in reversed(self.conflist.plugins[:attempted]):
            try:
                await self._succeed(plugin, "DEL", self._request(plugin, subject, result), subject)
            except NetworkError as error:
                if not (isinstance(error, PluginError) and error.code == UNKNOWN_CONTAINER):
                    errors.append(error)
        return errors

    async def collect(self, valid: Sequence[tuple[str, str]]) -> list[NetworkError]:
        """GC: of all plug-ins, whatever fails. `valid` are (container, interface) of what is attached."""
        errors = []
        for plugin in self.conflist.plugins:
            try:
                await self._succeed(plugin, "GC", request(self.conflist, plugin, self.version, valid=valid))
            except NetworkError as error:
                errors.append(error)
        return errors

    def _request(self, plugin: Plugin, subject: Subject, previous: Json | None) -> bytes:
        return request(self.conflist, plugin, self.version, capabilities=subject.capabilities, previous=previous)

    async def _succeed(self, plugin: Plugin, command: str, body: bytes, subject: Subject | None = None) -> None:
        ended = await self._run(plugin, command, body, subject)
        with _naming(plugin, command):
            refuse_failure(ended)

    async def _run(self, plugin: Plugin, command: str, body: bytes, subject: Subject | None = None) -> Ended:
        variables = {"CNI_COMMAND": command, **(subject.variables if subject else {})}
        held = (subject.held,) if subject else ()
        with _naming(plugin, command):
            self._refuse_unsafe_delegates(plugin)
            return await execute(plugin.type, self.directories, variables, body, held=held, limit_s=self.limit_s)

    def _refuse_unsafe_delegates(self, plugin: Plugin) -> None:
        """What `plugin` executes itself it looks up in the same directories, by name alone."""
        for name in plugin.delegates:
            try:
                with opened(name, self.directories):
                    pass
            except NetworkError as error:
                raise NetworkError(f"its plug-in {name}: {error}") from error.__cause__


@contextmanager
def _naming(plugin: Plugin, command: str) -> Iterator[None]:
    try:
        yield
    except PluginError as error:
        raise PluginError(f"plug-in {plugin.type}: {command}: {error}", error.code) from error.__cause__
    except NetworkError as error:
        raise NetworkError(f"plug-in {plugin.type}: {command}: {error}") from error.__cause__
