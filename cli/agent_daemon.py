"""An agent, put together from its parts."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import grpc.aio
import structlog

from agent import metrics, preflight
from agent.attached import attachments
from agent.checkpoint import Checkpoint
from agent.cni_socket import CniSocket
from agent.commands import Commands
from agent.containers import Containers, Directories
from agent.exec import ExecFeed
from agent.fetch.fetcher import Fetcher
from agent.files import FileFeed
from agent.foreign import Foreign
from agent.images.feed import ImageFeed
from agent.images.images import Images, Places
from agent.images.secrets import PullSecrets
from agent.instance import InUse, alone_in
from agent.launcher.client import Launcher
from agent.launcher.pump import Limits
from agent.launcher.record import age, identify
from agent.log_limits import MIB, LogPolicy
from agent.log_retention import Retention, keep_bounded
from agent.logs import LogFeed
from agent.node_network import NodeNetwork
from agent.plugged import keep_checked
from agent.ports import PortFeed
from agent.provision import Provision
from agent.reconciler import Reconciler
from agent.renewal import keep_renewed
from agent.sandboxes import Sandboxes
from agent.session import Session
from agent.streams import Streams
from agent.underlay import NoUnderlay, underlay_address
from agent.usage import Sampler
from agent.volumes import VolumeRemovals
from cli.problem import Problem
from cli.settings import AgentSettings, SettingsError, load, machine_resources
from isolators.persistent import PersistentVolumes
from isolators.rights import Rights
from isolators.standard import standard_isolators
from model.network import Address
from model.node import Node
from model.resources import Resources
from netns.dns.client import NameServer
from netns.driver import NetworkError
from netns.firewall.nftables import NftFirewall
from netns.mend import Mender, keep_mended, keep_vips
from netns.networks import Networks
from netns.nft.own import NftSession
from netns.node_mend import menders, watch_of
from netns.vip.node import NodeVips
from netns.watch import Touched, Watch
from pki.credentials import CredentialError, load_credentials
from pki.enrolment import EnrolmentError, enrol
from pki.files import PRIVATE, write_atomic
from pki.identity import Identity
from pki.key import KeyFileError
from pki.token import parse_token
from wire.tls import channel

log = structlog.get_logger()
SETTINGS_FILE = "agent.toml"
VERSION = "0.1.0"
POLL_S = 1.0


def join(state: Path, enrolment: str, control_port: int, token: str, name: str) -> str:
    """Returns the node's new identity. Raises Problem."""
    try:
        identity = asyncio.run(enrol(enrolment, parse_token(token), name, pki_directory(state)))
        master = f"{enrolment.rpartition(':')[0]}:{control_port}"
        write_atomic(state / SETTINGS_FILE, f'master = "{master}"\n'.encode(), PRIVATE)
    except (EnrolmentError, KeyFileError, ValueError, OSError) as error:
        raise Problem(str(error)) from error
    return identity.uri


def refuse_unfit_machine() -> None:
    try:
        preflight.check()
    except preflight.NotFit as error:
        raise Problem(str(error)) from error


def _refuse_missing_runtime(name: str) -> None:
    try:
        preflight.check_runtime(name)
    except preflight.NotFit as error:
        raise Problem(str(error)) from error


def pki_directory(state: Path) -> Path:
    return state / "pki"


async def run(state: Path) -> None:
    structlog.contextvars.bind_contextvars(daemon="agent")
    try:
        with alone_in(state):
            await _run(state)
    except InUse as error:
        raise Problem(str(error)) from error


async def _run(state: Path) -> None:
    identity = await _joined(state)
    name = identity.name
    structlog.contextvars.bind_contextvars(node=name)
    settings = _settings(state)
    _refuse_missing_runtime(settings.runtime)
    rights = Rights(
        frozenset(settings.capabilities),
        settings.unconfined_seccomp,
        settings.host_network,
        frozenset(settings.devices),
        frozenset(settings.host_volumes),
    )
    address = await _address(settings, state)
    node = replace(_node(name, settings, state, address), rights=rights.names)
    directories = Directories(state)
    directories.mount_run()
    directories.make()
    async with AsyncExitStack() as stack:
        driver = Networks(
            state,
            name,
            node.boot_id,
            node.address,
            cni_path=settings.cni_path,
            checksum_offload=settings.vxlan_checksum_offload,
        )
        networks = await stack.enter_async_context(driver)
        nft = NftSession()
        with suppress(NetworkError):  # whoever needs it will say so
            nft.open()
        vips, firewall = NodeVips(nft, settings.vip_backend), NftFirewall(nft)
        stack.push_async_callback(vips.close)
        watch = await stack.enter_async_context(watch_of(networks))
        launcher = Launcher(settings.runtime)
        await launcher.start()
        stack.push_async_callback(launcher.stop)
        ready = asyncio.Event()
        await networks.configure_vip_route(settings.vip_pools)
        volumes = PersistentVolumes(state)
        foreign = Foreign(state / "foreign", node.boot_id, networks, firewall)
        guests = foreign.guests
        isolators = standard_isolators(
            state, networks, firewall, volumes, settings.cgroup, rights, guests, identity.domain
        )
        names = NameServer(
            directories.run,
            identity.domain,
            compat=settings.compat_domains,
            master=_addresses_of(settings.master),
            upstreams=settings.name_servers,
        )
        local = tuple(settings.local_sources)
        images = Images(Places(state / "images", directories.bundles, state / "registries", local))
        await images.open()
        stack.push_async_callback(images.close)
        fetcher = Fetcher(state / "fetch", local)
        fetcher.open()
        provision = Provision(images, fetcher, PullSecrets(settings.pull_secrets))
        containers = Containers(directories, isolators, launcher, _log_policy(settings), provision)
        sandboxes = Sandboxes(containers, ready)
        pools, drop = tuple(settings.vip_pools), sandboxes.drop
        network = NodeNetwork(name, networks, vips, firewall, names, pools, drop, external=settings.external)
        dial = partial(_dial, state, settings.master)
        session = Session(node, dial, network, ready)
        removals = VolumeRemovals(volumes, session.wake)
        checkpoint = Checkpoint(directories.tasks)
        report = session.report
        reconciler = Reconciler(containers, sandboxes, checkpoint, node.boot_id, node.resources, report, ready)
        commands = Commands(containers, launcher)
        streams = Streams(
            {
                "log": LogFeed(directories.log, reconciler.books.over).serve,
                "exec": ExecFeed(commands, reconciler.running).serve,
                "files": FileFeed(commands, reconciler.running).serve,
                "port": PortFeed(containers, reconciler.running, reconciler.books.addresses).serve,
                "images": ImageFeed(images).serve,
            }
        )
        stack.push_async_callback(streams.close)
        stack.push_async_callback(sandboxes.close)
        stack.push_async_callback(reconciler.close)
        await foreign.recover()
        await reconciler.recover()
        # Not before: until here nobody knows whether anything lives that asks for names.
        stack.push_async_callback(lambda: names.close(needed=bool(reconciler.living() or guests())))
        for misfit in reconciler.books.misfits(node.resources, node.rights):
            log.warning("tasks no longer fit this node", reason=misfit)
        networks.recall(attachments(reconciler.living()))
        sandboxes.begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(_tell_when_reconciled(ready, reconciler))
            group.create_task(_keep_mended(ready, watch, menders(networks, firewall)))
            group.create_task(keep_vips(vips))
            group.create_task(names.keep())
            group.create_task(keep_checked(networks, ready))
            group.create_task(CniSocket(settings.cni_socket, foreign, networks, ready).run())
            group.create_task(session.run(reconciler, removals, streams))
            group.create_task(removals.run())
            group.create_task(images.keep_tidy())
            group.create_task(keep_renewed(pki_directory(state), dial))
            retention = Retention(3600 * settings.log_keep_h, MIB * settings.log_keep_mib)
            sampler = Sampler(reconciler.living, containers.usage)
            group.create_task(sampler.run(session.report_usages))
            render = partial(metrics.render, reconciler, sampler, state)
            group.create_task(metrics.serve(settings.metrics_port, render))
            group.create_task(keep_bounded(directories.logs, retention, reconciler.books.over))


async def _tell_when_reconciled(ready: asyncio.Event, reconciler: Reconciler) -> None:
    """How long it took from the start of this process until the node was as the master wants it."""
    await ready.wait()
    me = identify(os.getpid())
    assert me is not None
    cpu_s = round(time.process_time(), 3)
    log.info("reconciled", tasks=len(reconciler.living()), after_s=round(age(me), 3), cpu_s=cpu_s)


async def _keep_mended(ready: asyncio.Event, watch: Watch, menders: list[Mender]) -> None:
    """Before, there is no network to mend. What was taken while no agent was here is found then."""
    await ready.wait()
    await keep_mended(watch, menders, first=Touched(everything=True))


async def _joined(state: Path) -> Identity:
    """Who the node is, once it is somebody. Waits, and says why, for as long as there are no credentials. What changes
    from one look to the next is somebody who is just writing them."""
    said = seen = ""
    while True:
        try:
            return load_credentials(pki_directory(state)).identity
        except CredentialError as error:
            if str(error) != said and (not said or str(error) == seen):
                said = str(error)
                log.error("waiting for credentials", reason=said)
            seen = str(error)
        await asyncio.sleep(POLL_S)


def _settings(state: Path) -> AgentSettings:
    try:
        settings = load(AgentSettings, state / SETTINGS_FILE)
    except SettingsError as error:
        raise Problem(str(error)) from error
    if not settings.master:
        raise Problem(f"{state / SETTINGS_FILE}: master: is missing: run 'tepui agent join'")
    return settings


def _log_policy(settings: AgentSettings) -> LogPolicy:
    return LogPolicy(Limits(MIB * settings.log_file_mib, settings.log_files), MIB * settings.log_stream_mib)


async def _address(settings: AgentSettings, state: Path) -> Address:
    try:
        return await underlay_address(settings.address, settings.master)
    except NoUnderlay as error:
        raise Problem(f"{state / SETTINGS_FILE}: {error}") from error


def _addresses_of(master: str) -> tuple[Address, ...]:
    """Empty when it is called by a name: that has addresses of its own."""
    try:
        return (ip_address(master.rpartition(":")[0].strip("[]")),)
    except ValueError:
        return ()


def _node(name: str, settings: AgentSettings, state: Path, address: Address) -> Node:
    cpus, mem, disk = machine_resources(state)
    resources = Resources(settings.cpus or cpus, settings.mem or mem, disk if settings.disk is None else settings.disk)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    attributes = tuple(sorted(settings.attributes.items()))
    hostname, ports = os.uname().nodename, settings.host_ports
    return Node(name, hostname, boot_id, address, resources, attributes, VERSION, ports=ports)


def _dial(state: Path, master: str) -> grpc.aio.Channel:
    """With the credentials as they are now: a node that joins again needs no restart."""
    return channel(master, load_credentials(pki_directory(state)))
