"""A master, put together from its parts: a new cluster (`init`), and the coordinator itself (`run`).

`run` looks at all three ports before it writes anything, so that a port in use changes nothing.
"""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import grpc.aio
import structlog
from fastapi import FastAPI

from cli.client import ADMIN_FILE, Admin
from cli.problem import Problem
from cli.settings import MasterSettings, SettingsError, load
from frameworks.jobs import metrics as job_metrics
from frameworks.jobs.framework import Jobs
from frameworks.jobs.rest import PUBLIC as JOBS_PUBLIC
from frameworks.jobs.rest import routers as job_routers
from frameworks.jobs.run import FRAMEWORK as JOBS
from frameworks.services import metrics as service_metrics
from frameworks.services.app import FRAMEWORK
from frameworks.services.app import PREFIX as APPS
from frameworks.services.framework import Services
from frameworks.services.rest import PUBLIC, routers
from master.addresses import Addresses
from master.adjustments import Adjustments
from master.allocator import Allocator
from master.auth import token as admin_token
from master.blocks import Blocks
from master.certificates import Certificates
from master.desired import Desired
from master.discovery import Discovery
from master.dispatcher import Dispatcher
from master.events import Events
from master.logs import Logs
from master.names import Names
from master.networks import Networks
from master.nodes import Nodes
from master.policies import Policies
from master.rest.adjustments import adjustments_router
from master.rest.app import create_app
from master.rest.cluster import cluster_router
from master.rest.images import images_router
from master.rest.networks import NetworkParts, network_families, networks_router
from master.rest.nodes import nodes_router
from master.rest.observe import observe_router
from master.rest.policies import policies_router
from master.rest.server import ServerError, listen, serving
from master.rest.streams import streams_router
from master.rest.vips import vips_router
from master.rest.volumes import volumes_router
from master.store import metrics as store_metrics
from master.store.base import StoreError
from master.store.remembered import Remembered
from master.store.sqlite import SqliteStore
from master.tasks import Tasks
from master.tokens import Tokens
from master.vip_names import VipNames
from master.volumes import Volumes
from pki.authority import Authority, AuthorityError
from pki.credentials import (
    CERTIFICATE_FILE,
    KEY_FILE,
    CredentialError,
    Credentials,
    issue_to,
    load_credentials,
    renewal_due,
    server_context,
)
from pki.enrolment_server import enrolment_app
from pki.files import PRIVATE, write_atomic
from pki.identity import Identity, Role
from pki.key import KeyFileError
from wire.control_pb2_grpc import add_CertificatesServicer_to_server
from wire.service import add_control
from wire.tls import SERVER_OPTIONS, server_credentials

log = structlog.get_logger()

NAME = "master"
SETTINGS_FILE = "master.toml"
TOKEN_FILE = "admin.digest"
STORE_FILE = "store.db"
# Of Python's collector of cycles. By default it looks at all objects whenever there are a quarter more: with 5,000
# tasks that is a pause of 0.2 s. Hardly anything that lives long here is in a cycle.
GC_THRESHOLDS = 1_000, 10, 1_000
STOP_DEADLINE_S = 2.0
RENEWAL_INTERVAL_S = 3600.0
OLDEST_TLS = ssl.TLSVersion.TLSv1_2  # of clients of the API; our own speak 1.3
Failures = (AuthorityError, CredentialError, KeyFileError, ServerError, StoreError, OSError)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What `init` made: the administrator's credentials, a join token, and where (host:port) nodes join with it."""

    admin: Path
    token: str
    enrolment: str


def init(state: Path, address: str, domain: str, ttl_s: float, uses: int) -> Cluster:
    """Raises Problem; there is a cluster in `state` already, or it can not be written to."""
    settings = _settings(state)
    try:
        authority = Authority.create(pki_directory(state), domain)
        master = issue_to(pki_directory(state), authority, Identity(Role.MASTER, NAME, domain), (address,))
        write_atomic(state / SETTINGS_FILE, f'names = ["{address}"]\n'.encode(), PRIVATE)
        admin = _new_admin(state, f"https://{address}:{settings.api_port}", master)
        token = asyncio.run(_first_token(state, authority, ttl_s, uses))
    except Failures as error:
        raise Problem(str(error)) from error
    return Cluster(admin, token, f"{address}:{settings.enrol_port}")


async def run(state: Path) -> None:
    structlog.contextvars.bind_contextvars(daemon=NAME)
    async with _made(state) as master:
        await master.run()


async def described(state: Path) -> dict[str, Any]:
    """The OpenAPI description of what a master serves."""
    async with _made(state) as master:
        return master.api().openapi()


@asynccontextmanager
async def _made(state: Path) -> AsyncIterator[_Master]:
    """Raises Problem, also for what fails in the block."""
    settings = _settings(state)
    try:
        authority = Authority.load(pki_directory(state))
        credentials = MasterCredentials(state, authority, settings.names)
        digest = (state / TOKEN_FILE).read_text()
        store = await SqliteStore.open(state / STORE_FILE)
    except Failures as error:
        raise Problem(str(error)) from error
    try:
        yield _Master(settings, authority, credentials, digest, store)
    except Failures as error:
        raise Problem(str(error)) from error
    finally:
        await store.close()


class MasterCredentials:
    """The master's certificate. The authority is at hand, so it never has to expire; ports that are open follow."""

    def __init__(self, state: Path, authority: Authority, names: Sequence[str]) -> None:
        """Raises CredentialError, KeyFileError or OSError."""
        self._directory = pki_directory(state)
        self._authority = authority
        self._names = names
        self._contexts: list[ssl.SSLContext] = []
        try:
            self._credentials = load_credentials(self._directory, Role.MASTER)
        except CredentialError as error:
            log.warning("issuing a new certificate to this master", reason=str(error))
            self._credentials = self._issue()
        self.renew_if_due(datetime.now(UTC))

    def current(self) -> Credentials:
        return self._credentials

    def context(self, minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        """For a port whose clients have no certificate. Later handshakes get the certificate of then."""
        context = server_context(self._directory, minimum)
        self._contexts.append(context)
        return context

    async def keep_renewed(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(RENEWAL_INTERVAL_S)
            self.renew_if_due(datetime.now(UTC))

    def renew_if_due(self, now: datetime) -> None:
        if not renewal_due(self._credentials, now):
            return
        self._credentials = self._issue()
        for context in self._contexts:
            context.load_cert_chain(self._directory / CERTIFICATE_FILE, self._directory / KEY_FILE)
        log.info("certificate renewed", until=self._credentials.not_after.isoformat())

    def _issue(self) -> Credentials:
        identity = Identity(Role.MASTER, NAME, self._authority.domain)
        return issue_to(self._directory, self._authority, identity, self._names)


class _Master:
    """The parts of a master and how they hang together."""

    def __init__(
        self,
        settings: MasterSettings,
        authority: Authority,
        credentials: MasterCredentials,
        digest: str,
        store: SqliteStore,
    ) -> None:
        self.settings = settings
        self.authority = authority
        self.credentials = credentials
        self.digest = digest
        self.store = store
        self.tasks = Tasks(store)
        self.nodes = Nodes(store, settings.unreachable_after_s, settings.lost_after_s)
        self.networks = Networks(store)
        self.blocks = Blocks(store, self.networks, self.tasks, self.nodes)
        self.addresses = Addresses(store, self.networks, self.tasks)
        self.volumes = Volumes(store, self.tasks)
        self.events = Events(self.tasks, self.nodes, self.networks)
        self.tokens = Tokens(store, authority.fingerprint)
        desired = self.desired = Desired()
        names = VipNames(store, settings.vip_pools)
        ranges = tuple(settings.vip_ranges)
        self.discovery = Discovery(self.tasks, self.nodes, self.networks, desired, names, ranges)
        self.names = Names(self.tasks, self.nodes, desired)
        self.policies = Policies(store, self.tasks, self.networks, self.blocks, desired)
        self.policies.listen(self.events.policy_changed)
        self.dispatcher = Dispatcher(self.tasks, self.nodes, self.networks, self.blocks, self.volumes, desired)
        self.logs = Logs(self.dispatcher.streams)
        self.allocator = Allocator(
            self.tasks, self.nodes, self.networks, self.blocks, self.addresses, self.volumes, self.discovery
        )
        self.apps = Remembered(store, f"{APPS}/")
        self.services = Services(self.apps, self.allocator.subscribe(FRAMEWORK))
        self.jobs = Jobs(store, self.allocator.subscribe(JOBS))

    async def run(self) -> None:
        """Until cancelled."""
        gc.set_threshold(*GC_THRESHOLDS)
        self.refuse_ports_in_use()
        loaded = (self.tasks, self.volumes, self.networks, self.nodes, self.blocks, self.addresses)
        for part in (*loaded, self.discovery, self.policies, self.dispatcher):
            await part.load()
        self.names.load()
        await self.jobs.load()
        gc.freeze()
        host = str(self.settings.listen)
        enrolment = enrolment_app(self.authority, self.tokens.redeem)
        try:
            async with (
                serving(self.api(), host, self.settings.api_port, self.credentials.context(OLDEST_TLS)),
                serving(enrolment, host, self.settings.enrol_port, self.credentials.context()),
                self.control(self.settings.listen),
                asyncio.TaskGroup() as group,
            ):
                log.info("master runs", listen=host, api=self.settings.api_port, control=self.settings.control_port)
                group.create_task(self.credentials.keep_renewed())
                group.create_task(self.allocator.run())
                group.create_task(self.services.run())
                group.create_task(self.jobs.run())
        finally:
            await self.dispatcher.close()
            self.nodes.close()

    def refuse_ports_in_use(self) -> None:
        """Raises ServerError. Looked at before anything is written; a port that is taken later fails all the same."""
        for port in (self.settings.api_port, self.settings.control_port, self.settings.enrol_port):
            listen(str(self.settings.listen), port).close()

    def api(self) -> FastAPI:
        cluster = cluster_router(
            self.tasks,
            self.nodes,
            self.allocator,
            self.logs,
            self.tokens,
        )
        streams = streams_router(self.tasks, self.dispatcher.streams)
        networks = self.network_parts()
        others = (
            partial(service_metrics.families, self.services),
            partial(job_metrics.families, self.jobs),
            partial(store_metrics.families, self.store),
            partial(network_families, networks),
        )
        observe = observe_router(self.tasks, self.nodes, self.events, others)
        adjustments = adjustments_router(self.tasks, Adjustments(self.tasks, self.allocator))
        images = images_router(self.nodes, self.dispatcher.streams)
        volumes = volumes_router(self.volumes, self.nodes)
        removal = nodes_router(self.nodes, self.dispatcher)
        parts = [cluster, streams, observe, adjustments, images, volumes, networks_router(networks), removal]
        parts.append(vips_router(self.discovery, self.nodes, self.desired, self.authority.domain))
        policies = policies_router(self.policies, FRAMEWORK)
        everything = [*parts, policies, *routers(self.apps, self.services, [observe]), *job_routers(self.jobs)]
        return create_app(lambda token: admin_token.matches(token, self.digest), everything, (*PUBLIC, *JOBS_PUBLIC))

    def network_parts(self) -> NetworkParts:
        return NetworkParts(
            self.networks,
            self.blocks,
            self.addresses,
            self.tasks,
            self.nodes,
            self.dispatcher,
            tuple(self.settings.vip_pools),
            lambda name: [f"policy {policy}" for policy in self.policies.uses(name)],
        )

    @asynccontextmanager
    async def control(self, listen: IPv4Address | IPv6Address) -> AsyncIterator[None]:
        """The port for agents."""
        server = grpc.aio.server(options=SERVER_OPTIONS)
        add_control(self.dispatcher, server)
        add_CertificatesServicer_to_server(Certificates(self.authority), server)
        host = f"[{listen}]" if listen.version == 6 else str(listen)
        target = f"{host}:{self.settings.control_port}"
        try:
            server.add_secure_port(target, server_credentials(self.credentials.current))
        except RuntimeError as error:
            raise ServerError(f"listen on {target}: address already in use") from error
        await server.start()
        try:
            yield
        finally:
            await self.dispatcher.close()
            await server.stop(STOP_DEADLINE_S)


def pki_directory(state: Path) -> Path:
    return state / "pki"


def _settings(state: Path) -> MasterSettings:
    try:
        return load(MasterSettings, state / SETTINGS_FILE)
    except SettingsError as error:
        raise Problem(str(error)) from error


def _new_admin(state: Path, url: str, master: Credentials) -> Path:
    token, digest = admin_token.mint()
    write_atomic(state / TOKEN_FILE, digest.encode(), PRIVATE)
    admin = Admin(url, master.ca.decode(), master.identity.server_name, token)
    write_atomic(state / ADMIN_FILE, json.dumps(asdict(admin), indent=2).encode(), PRIVATE)
    return state / ADMIN_FILE


async def _first_token(state: Path, authority: Authority, ttl_s: float, uses: int) -> str:
    store = await SqliteStore.open(state / STORE_FILE)
    try:
        return str(await Tokens(store, authority.fingerprint).mint(ttl_s, uses))
    finally:
        await store.close()
