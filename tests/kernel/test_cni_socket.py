"""`tepui-cni` as it is installed, with real namespaces: what another runtime's containers get, whom the socket serves,
and that nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from agent import cni_socket
from agent.foreign import Foreign, id_of
from model.network import Block, Network, NetworkKind
from netns.driver import Attachment, NetworkSpec
from netns.firewall.nftables import NftFirewall
from netns.link import veth_name, veth_names
from netns.networks import Networks
from tests.kernel.cni import DEBIAN
from tests.kernel.foreign import NULL, Door, Runtime, door, netns_of, until
from tests.kernel.namespaces import Echo, NetnsProcess, echo, ip, run

pytestmark = pytest.mark.anyio

Spawn = Callable[..., NetnsProcess]
UNDERLAY = ip_address("192.0.2.1")
ID = id_of("web", "eth0")
VETH = veth_name(ID)


def spec(name: str, number: int) -> NetworkSpec:
    subnets = (ip_network(f"10.{number}.0.0/16"), ip_network(f"fd00:{number}::/64"))
    blocks = (ip_network(f"10.{number}.1.0/24"), ip_network(f"fd00:{number}::/80"))
    return NetworkSpec(Network(name, NetworkKind.BRIDGE, subnets), tuple(Block(name, "n1", each) for each in blocks))


@pytest.fixture
async def networks(host_netns: None, tmp_path: Path) -> AsyncIterator[Networks]:
    for words in ("link add card type veth peer wire", f"addr add {UNDERLAY}/24 dev card", "link set card up"):
        run("ip", *words.split())
    async with Networks(tmp_path, "n1", "boot-1", UNDERLAY) as driver:
        await driver.configure(spec("prod", 1))
        await driver.configure(spec("back", 2))
        yield driver


@pytest.fixture
async def node(networks: Networks, tmp_path: Path) -> AsyncIterator[Door]:
    async with door(tmp_path, networks, NftFirewall()) as opened:
        yield opened


def links(process: NetnsProcess | None = None) -> set[str]:
    return {link["ifname"] for link in (process.ip("link") if process else ip("link"))}


def untouched(node: Door) -> bool:
    """The node has nothing of any container."""
    leases = [path for path in (node.state / "leases").glob("*/*") if path.suffix != ".rested"]
    return node.records() == [] == leases and not any(name.startswith("tv") for name in links())


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
async def test_a_container_is_attached_and_the_result_is_what_the_kernel_has(
    node: Door, spawn: Spawn, echo_server: Callable[[int], Echo], version: str
) -> None:
    web, own = spawn(), spawn()
    runtime = replace(node.runtime, version=version)
    result = await runtime.add(web.pid, dns={"nameservers": ["192.0.2.53"]})
    [mine] = await asyncio.gather(node.networks.attach(Attachment("own", "prod", own.pid)))
    assert (result["cniVersion"], result["dns"]) == (version, {"nameservers": ["192.0.2.53"]})
    here, inside = result["interfaces"]
    assert (here["name"], inside["name"], inside["sandbox"]) == (VETH, "eth0", netns_of(web.pid))
    for said, [link] in ((here, ip("link", "show", VETH)), (inside, web.ip("link", "show", "eth0"))):
        assert said["mac"] == link["address"] and "UP" in link["flags"]
        assert said.get("mtu") == (link["mtu"] if version == "1.1.0" else None)
    [link] = web.ip("addr", "show", "eth0")
    has = {f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if each["scope"] == "global"}
    assert has == {each["address"] for each in result["ips"]} and len(has) == 2
    assert [each["gateway"] for each in result["ips"]] == ["10.1.1.1", "fd00:1::1"]
    assert {each["interface"] for each in result["ips"]} == {1}
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.1.1"}, {"dst": "::/0", "gw": "fd00:1::1"}]
    port = echo_server(own.pid).port
    for address, entry in zip(mine, result["ips"], strict=True):
        assert f"{echo(web.pid, address, port)}/{ip_address(address).max_prefixlen}" == entry["address"]
    assert (await runtime.call("CHECK", netns_of(web.pid), prevResult=result)).result is None


async def test_del_leaves_nothing_and_add_works_again_at_once(node: Door, spawn: Spawn) -> None:
    web = spawn()
    before = web.ip("addr"), web.ip("route"), web.ip("rule"), web.ip("-6", "rule")
    seen = set()
    web.run("ip", "link", "set", "lo", "up")
    for _ in range(3):
        result = await node.runtime.add(web.pid)
        seen.add(result["ips"][0]["address"])
        await node.runtime.delete(web.pid)
        assert links(web) == {"lo"} and untouched(node)
    assert len(seen) == 3  # an address is used again as late as possible
    web.run("ip", "link", "set", "lo", "down")
    assert (web.ip("addr")[0]["ifname"], *before[1:]) == (before[0][0]["ifname"], [], *before[2:])
    await node.runtime.delete(web.pid)


async def test_del_when_the_namespace_is_gone_or_was_never_told(node: Door, spawn: Spawn) -> None:
    web, other = spawn(), spawn()
    await node.runtime.add(web.pid)
    await node.runtime.add(other.pid, "other")
    web.stop()
    other.stop()
    assert (await node.runtime.call("DEL", netns_of(web.pid))).result is None
    assert (await node.runtime.call("DEL", None, "other")).result is None
    await until(lambda: untouched(node))


async def test_a_second_link_reaches_its_own_network_and_leaves_no_rule(node: Door, spawn: Spawn) -> None:
    web = spawn()
    rules = web.ip("rule"), web.ip("-6", "rule")
    second = replace(node.runtime, network="back", environment={"CNI_IFNAME": "eth1"})
    await node.runtime.add(web.pid)
    result = await second.add(web.pid)
    assert result["routes"] == [{"dst": "10.2.0.0/16", "gw": "10.2.1.1"}, {"dst": "fd00:2::/64", "gw": "fd00:2::1"}]
    assert {route["dst"]: route["dev"] for route in web.ip("route")}["10.2.0.0/16"] == "eth1"
    assert (await second.call("CHECK", netns_of(web.pid), prevResult=result)).result is None
    assert len(web.ip("rule")) == len(rules[0]) + 1
    await second.delete(web.pid)
    assert links(web) == {"lo", "eth0"} and (web.ip("rule"), web.ip("-6", "rule")) == rules
    await node.runtime.delete(web.pid)
    assert links(web) == {"lo"} and untouched(node)


async def test_add_again_is_the_same_and_another_one_is_refused(node: Door, spawn: Spawn) -> None:
    web, successor = spawn(), spawn()
    result = await node.runtime.add(web.pid)
    assert await node.runtime.add(web.pid) == result
    taken = (4, 'eth0 of container web is attached to "prod" already')
    assert (await node.runtime.call("ADD", netns_of(successor.pid))).error == taken
    assert (await node.runtime.call("ADD", netns_of(web.pid), network="back")).error == taken
    code, text = (await node.runtime.call("ADD", netns_of(web.pid), "other")).error
    assert (code, text) == (100, f'attach {id_of("other", "eth0")} to bridge "prod": create veth '
                            f"{veth_name(id_of('other', 'eth0'))} to eth0: File exists")  # fmt: skip
    assert node.records() == [ID] and links(web) == {"lo", "eth0"}
    assert (await node.runtime.call("CHECK", netns_of(web.pid), prevResult=result)).result is None
    web.stop()  # its runtime was killed, and has lost it
    await until(lambda: VETH not in links())
    assert (await node.runtime.add(successor.pid))["interfaces"][1]["sandbox"] == netns_of(successor.pid)


async def test_an_address_that_is_asked_for(node: Door, spawn: Spawn) -> None:
    pids = [spawn().pid for _ in range(3)]
    runtime = node.runtime
    arguments = replace(runtime, environment={"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.1.1.22"})
    said = [
        await runtime.add(pids[0], "a", address="10.1.1.20"),
        await runtime.add(pids[1], "b", runtimeConfig={"ips": ["10.1.1.21/24"]}),
        await arguments.add(pids[2], "c"),
    ]
    assert [result["ips"][0]["address"] for result in said] == ["10.1.1.20/32", "10.1.1.21/32", "10.1.1.22/32"]
    code, text = (await runtime.call("ADD", netns_of(spawn().pid), "d", address="10.1.1.20")).error
    assert code == 100 and f"address 10.1.1.20 is held by {id_of('a', 'eth0')}" in text
    assert node.records() == sorted(id_of(name, "eth0") for name in "abc")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (["{web}", "ip", "addr", "del", "{v4}", "dev", "eth0"], "inside: add address"),
        (["{web}", "ip", "-6", "addr", "flush", "dev", "eth0"], "inside: add address fd00:1::"),
        (["{web}", "ip", "route", "del", "default"], "inside: add route 0.0.0.0/0 via 10.1.1.1 dev eth0"),
        (["{web}", "ip", "neigh", "del", "10.1.1.1", "dev", "eth0"], "inside: add neighbour 10.1.1.1"),
        (["{web}", "ip", "link", "set", "eth0", "down"], "inside: set eth0 up"),
        (["", "ip", "link", "set", VETH, "down"], f"set {VETH} up"),
        (["", "ip", "route", "del", "{v4}"], f"add route {{v4}} dev {VETH}"),
        (["", "ip", "link", "del", VETH], f"link {VETH} is gone"),
    ],
)
async def test_check_finds_what_somebody_changed(node: Door, spawn: Spawn, damage: list[str], found: str) -> None:
    web = spawn()
    result = await node.runtime.add(web.pid)
    v4 = result["ips"][0]["address"]
    where, *argv = [word.format(web="web", v4=v4) for word in damage]
    (web.run if where else run)(*argv)
    code, text = (await node.runtime.call("CHECK", netns_of(web.pid), prevResult=result)).error
    assert code == 100 and text.startswith(f"check {ID}: ") and found.format(v4=v4) in text
    await node.runtime.delete(web.pid)
    assert links(web) == {"lo"} and untouched(node)


async def test_check_compares_with_what_the_runtime_was_told(node: Door, spawn: Spawn) -> None:
    web, other = spawn(), spawn()
    netns = netns_of(web.pid)
    result = await node.runtime.add(web.pid)
    for changes, code, text in (
        ({"ips": result["ips"][:1]}, 7, "prevResult.ips: fd00:1::"),
        ({"interfaces": []}, 7, "prevResult.interfaces: eth0 is not there"),
        ({"ips": 3}, 7, "prevResult.ips: must be a list of objects"),
    ):
        said = (await node.runtime.call("CHECK", netns, prevResult={**result, **changes})).error
        assert said[0] == code and said[1].startswith(text)
    assert (await node.runtime.call("CHECK", netns)).error == (7, "prevResult: is missing")
    code, text = (await node.runtime.call("CHECK", netns_of(other.pid), prevResult=result)).error
    assert (code, text) == (4, "CNI_NETNS: eth0 of container web was attached in another namespace")
    code, text = (await node.runtime.call("CHECK", netns, "nobody", prevResult=result)).error
    assert (code, text) == (3, 'eth0 of container nobody is not attached to "prod"')


async def test_gc_detaches_what_is_not_valid_and_only_of_its_configuration(node: Door, spawn: Spawn) -> None:
    kept, gone, ended, foreign = spawn(), spawn(), spawn(), spawn()
    for name, process in (("kept", kept), ("gone", gone), ("ended", ended)):
        await node.runtime.add(process.pid, name)
    await node.runtime.add(foreign.pid, "foreign", name="another")
    ended.stop()
    valid = [{"containerID": "kept", "ifname": "eth0"}]
    assert (await node.runtime.call("GC", valid=valid)).result is None
    assert node.records() == sorted(id_of(name, "eth0") for name in ("kept", "foreign"))
    assert (links(kept), links(gone), links(foreign)) == ({"lo", "eth0"}, {"lo"}, {"lo", "eth0"})
    code, text = (await node.runtime.call("GC")).error
    assert (code, text) == (7, "cni.dev/valid-attachments: is missing")
    assert (await node.runtime.call("GC", valid=NULL)).result is None  # of no attachment, as libcni says it
    assert node.records() == [id_of("foreign", "eth0")]


async def test_status_and_version(node: Door, spawn: Spawn) -> None:
    version = (await node.runtime.call("VERSION", cniVersion="1.0.0", socket=None)).result
    assert version == {"cniVersion": "1.0.0", "supportedVersions": ["1.0.0", "1.1.0"]}
    assert (await node.runtime.call("STATUS")).result is None
    netns = netns_of(spawn().pid)
    await node.networks.configure(NetworkSpec(Network("host", NetworkKind.HOST), ()))
    for network in ("nowhere", "host"):
        unknown = f'network "{network}": gives no link on this node; what does: back, prod'
        assert (await node.runtime.call("STATUS", network=network)).error == (50, unknown)
        assert (await node.runtime.call("ADD", netns, network=network)).error == (100, unknown)
    node.ready.clear()
    early = "the agent is starting, and does not know its networks yet"
    assert (await node.runtime.call("STATUS")).error == (50, early)
    assert (await node.runtime.call("ADD", netns)).error == (11, early)
    assert (await node.runtime.call("DEL", netns)).result is None
    assert untouched(node)


@pytest.mark.parametrize(
    ("command", "version", "known"),
    [
        ("ADD", "0.4.0", "1.0.0 or 1.1.0"),
        ("ADD", "1.2.0", "1.0.0 or 1.1.0"),
        ("DEL", None, "1.0.0 or 1.1.0"),
        ("GC", "1.0.0", "1.1.0"),
        ("STATUS", "1.0.0", "1.1.0"),
    ],
)
async def test_other_versions_are_refused(command: str, version: str | None, known: str) -> None:
    runtime = Runtime(Path("/nonexistent"))
    said = json.dumps(version)
    answer = await runtime.call(command, "/proc/1/ns/net", cniVersion=version)
    assert answer.error == (1, f"cniVersion: {said}: {command} needs {known}")


async def test_without_an_agent_the_runtime_is_to_try_again(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"
    runtime = Runtime(path)
    for command in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
        answer = await runtime.call(command, "/proc/1/ns/net")
        assert answer.error == (11, f"the agent does not answer at {path}")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert (await runtime.call("DEL")).error[0] == 11


async def test_an_agent_that_ends_before_it_answers(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async with await asyncio.start_unix_server(hang_up, path):
        assert (await Runtime(path).call("ADD", "/proc/1/ns/net")).error[0] == 11


async def test_what_is_not_json_is_refused_by_the_plugin(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path / "cni.sock")
    for text in (b"", b"{", b"[]", b'"a"', b"[" * 100_000, b" " * (2 << 20), b"\xff"):
        answer = await runtime.execute(text, {"CNI_COMMAND": "ADD"})
        assert answer.error == (6, "the configuration is not JSON")
    answer = await runtime.call("EAT", cniVersion="1.1.0")
    assert answer.error == (4, 'CNI_COMMAND: "EAT" is not one of ADD, DEL, CHECK, GC, STATUS, VERSION')


async def test_bad_input_changes_nothing(node: Door, spawn: Spawn, tmp_path: Path) -> None:
    web = spawn()
    netns = netns_of(web.pid)
    variables: list[tuple[dict[str, str | None], str]] = [
        ({"CNI_CONTAINERID": None}, "CNI_CONTAINERID: must match"),
        ({"CNI_CONTAINERID": "../web"}, "CNI_CONTAINERID: must match"),
        ({"CNI_IFNAME": None}, "CNI_IFNAME: is missing"),
        ({"CNI_IFNAME": "net1"}, 'CNI_IFNAME: "net1" is not one of eth0 to eth7'),
        ({"CNI_NETNS": None}, "CNI_NETNS: must be the path of a network namespace"),
        ({"CNI_NETNS": "/proc/self/ns/net"}, "CNI_NETNS: network namespace /proc/self/ns/net"),
        ({"CNI_NETNS": f"/proc/{os.getpid()}/ns/net"}, "it is the node's own"),
        ({"CNI_NETNS": f"/proc/{web.pid}/ns/mnt"}, "CNI_NETNS: network namespace"),
        ({"CNI_NETNS": "/etc/hostname"}, "it is no namespace"),
        ({"CNI_NETNS": "/run/netns/none-such"}, "No such file or directory"),
        ({"CNI_ARGS": "IP=me"}, 'CNI_ARGS: IP: "me" is no address'),
    ]
    for environment, text in variables:
        runtime = replace(node.runtime, environment=environment)
        code, said = (await runtime.call("ADD", netns)).error
        assert code == 4 and text in said, said
    configurations: list[tuple[dict[str, Any], int, str]] = [
        ({"name": "a/b"}, 7, "name: must match"),
        ({"network": None}, 7, "network: is missing"),
        ({"network": "../x"}, 7, 'network: "../x" is no name of a network'),
        ({"adress": "10.1.1.9"}, 2, 'adress: "10.1.1.9": is not supported'),
        ({"ipam": {"type": "host-local"}}, 2, "ipam: "),
        ({"address": "10.1.1.300"}, 7, 'address: "10.1.1.300" is no address'),
        ({"address": "10.3.1.1"}, 100, "10.3.1.1"),
        ({"prevResult": {}}, 7, "prevResult: tepui-cni has to be the first plug-in of a list"),
        ({"dns": 3}, 7, "dns: must be an object"),
        ({"runtimeConfig": {"mac": "02:00:00:00:00:01"}}, 2, "runtimeConfig.mac: "),
        ({"runtimeConfig": {"ips": ["10.1.1.1", "10.1.1.2"]}}, 7, "runtimeConfig.ips: must be a list of one"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 80}]}}, 7, "hostPort: 0 is no port"),
    ]
    for changes, code, text in configurations:
        found, said = (await node.runtime.call("ADD", netns, **changes)).error
        assert (found, text in said) == (code, True), (changes, said)
    assert links(web) == {"lo"} and untouched(node)


async def test_named_namespaces(node: Door, spawn: Spawn, host_mounts: None) -> None:
    """As `ip netns` and most runtimes keep them. Whoever could change the way to it could have another one meant."""
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/run")
    run("ip", "netns", "add", "pod")
    result = (await node.runtime.call("ADD", "/var/run/netns/pod")).result
    assert result["interfaces"][1]["sandbox"] == "/var/run/netns/pod"
    assert {link["ifname"] for link in json.loads(run("ip", "-n", "pod", "-j", "link"))} == {"lo", "eth0"}
    again = (await node.runtime.call("ADD", "/run/netns/pod")).result
    assert (again["ips"], again["interfaces"][1]["sandbox"]) == (result["ips"], "/run/netns/pod")
    assert (await node.runtime.call("DEL", "/run/netns/pod")).result is None
    assert {link["ifname"] for link in json.loads(run("ip", "-n", "pod", "-j", "link"))} == {"lo"}
    attacks = {
        "mkdir /run/open && chmod 0777 /run/open && ln -s /run/netns/pod /run/open/x": "/run/open/x",
        "mkdir /run/user && chown 1000 /run/user && ln -s /run/netns/pod /run/user/x": "/run/user/x",
        "mkdir /run/way && ln -s /run/open /run/way/open": "/run/way/open/x",
    }
    for made, path in attacks.items():
        run("sh", "-c", made)
        code, text = (await node.runtime.call("ADD", path)).error
        assert code == 4 and f"CNI_NETNS: network namespace {path}: others than root can change the way to" in text
    run("sh", "-c", "ln -s /run/loop /run/loop; mkfifo /run/fifo; touch /run/netns/mnt")
    run("mount", "--bind", f"/proc/{spawn('-U', '-r').pid}/ns/user", "/run/netns/mnt")
    for path, said in (
        ("/run/loop", "symbolic links"),
        ("/run/fifo", "no namespace"),
        ("/run/netns/mnt", "another kind"),
    ):
        code, text = (await node.runtime.call("ADD", path)).error
        assert code == 4 and said in text
    assert untouched(node)
    run("ip", "netns", "del", "pod")


async def test_in_a_chain_with_debians_tuning(node: Door, spawn: Spawn) -> None:
    """What comes after it changes the link and a setting, and has its own say at CHECK."""
    web = spawn()
    netns = netns_of(web.pid)
    ours = replace(node.runtime, version="1.0.0")
    tuning = replace(ours, plugin=DEBIAN / "tuning")
    settings: dict[str, Any] = {
        "type": "tuning", "mtu": 1300, "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"},
        "network": None, "socket": None, "dataDir": str(node.state / "tuning"),
    }  # fmt: skip
    first = await ours.add(web.pid)
    both = (await tuning.call("ADD", netns, prevResult=first, **settings)).result
    assert web.ip("link", "show", "eth0")[0]["mtu"] == 1300
    assert web.run("cat", "/proc/sys/net/ipv4/conf/eth0/arp_filter") == "1\n"
    assert both["ips"] == first["ips"]
    for runtime, more in ((ours, {}), (tuning, settings)):
        assert (await runtime.call("CHECK", netns, prevResult=both, **more)).result is None
    for runtime, more in ((tuning, settings), (ours, {})):
        assert (await runtime.call("DEL", netns, prevResult=both, **more)).status == 0
    assert links(web) == {"lo"} and untouched(node)


async def test_many_at_once(node: Door, spawn: Spawn) -> None:
    processes = {f"c{number}": spawn() for number in range(12)}
    results = await asyncio.gather(*(node.runtime.add(each.pid, name) for name, each in processes.items()))
    assert len({result["ips"][0]["address"] for result in results}) == len(processes)
    await asyncio.gather(*(node.runtime.delete(each.pid, name) for name, each in processes.items()))
    assert untouched(node) and all(links(each) == {"lo"} for each in processes.values())


async def test_add_and_del_of_one_container_at_once_come_one_after_the_other(node: Door, spawn: Spawn) -> None:
    web = spawn()
    calls = [node.runtime.call(command, netns_of(web.pid)) for command in ("ADD", "DEL") * 5]
    assert all(answer.status == 0 for answer in await asyncio.gather(*calls))
    await node.runtime.delete(web.pid)
    assert links(web) == {"lo"} and untouched(node) and not links() & veth_names(ID)


async def conversation(path: Path, *parts: bytes, end: bool = True) -> Any:
    """What the agent answers to these bytes."""
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 22)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        if end:
            writer.write_eof()
        async with asyncio.timeout(20):
            return json.loads(await reader.readline())["error"]
    finally:
        writer.close()


async def test_garbage_is_answered_and_forgotten(node: Door) -> None:
    path = node.runtime.socket
    for garbage in (
        b"\n",
        b"GET / HTTP/1.1\r\n",
        b"\x00" * 1000 + b"\n",
        b"[" * 200_000 + b"\n",
        b'{"command": 3, "environment": {}, "configuration": {}}\n',
        b'{"command": "ADD", "environment": {"CNI_IFNAME": 3}, "configuration": {}}\n',
        b'{"command": "ADD", "environment": [], "configuration": {}}\n',
        b'{"command": "ADD", "environment": {}, "configuration": []}\n',
        b'{"command": "ADD"',
    ):
        assert (await conversation(path, garbage))["code"] == 6
    body = b'{"command": "X", "environment": {}, "configuration": {"name": "a", "network": "prod"}}\n'
    assert (await conversation(path, body))["code"] == 4
    assert (await node.runtime.call("STATUS")).status == 0


async def test_a_huge_request_is_not_read_to_its_end(node: Door) -> None:
    _, writer = await asyncio.open_unix_connection(node.runtime.socket)
    sent = 0
    with pytest.raises(OSError):
        async with asyncio.timeout(20):
            while sent < 1 << 30:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536
    assert sent < 4 * cni_socket.MAX_REQUEST
    writer.close()
    assert (await node.runtime.call("STATUS")).status == 0


async def test_a_slow_writer_is_told_and_holds_nobody_up(node: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni_socket, "REQUEST_S", 1.0)
    slow = asyncio.create_task(conversation(node.runtime.socket, b'{"command"', end=False))
    assert (await node.runtime.call("STATUS")).status == 0
    assert not slow.done()
    assert await slow == {"code": 5, "msg": "the request did not come within 1 s", "details": ""}


async def test_who_leaves_or_does_not_read_costs_nothing(node: Door, spawn: Spawn) -> None:
    """What a client had asked for is done all the same: its runtime calls DEL for what it does not know of."""
    web = spawn()
    _, writer = await asyncio.open_unix_connection(node.runtime.socket)
    configuration = {"cniVersion": "1.1.0", "name": "tepui", "network": "prod"}
    variables = {"CNI_CONTAINERID": "web", "CNI_IFNAME": "eth0", "CNI_NETNS": netns_of(web.pid)}
    request = {"command": "ADD", "environment": variables, "configuration": configuration}
    writer.write(json.dumps(request).encode() + b"\n")
    await writer.drain()
    writer.transport.abort()
    await until(lambda: "eth0" in links(web))
    await node.runtime.delete(web.pid)
    assert links(web) == {"lo"} and untouched(node)


async def test_more_than_so_many_clients_are_turned_away(node: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni_socket, "MOST_CLIENTS", 3)
    waiting = [await asyncio.open_unix_connection(node.runtime.socket) for _ in range(3)]
    answer = await node.runtime.call("STATUS")
    assert answer.error == (11, "3 requests are under way already")
    for _, writer in waiting:
        writer.close()

    async def served() -> bool:
        return (await node.runtime.call("STATUS")).status == 0

    async with asyncio.timeout(20):
        while not await served():
            pass


ASK = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
except OSError as error:
    sys.exit(f"connect: {error.strerror}")
try:
    s.sendall(b"{}\\n")
except BrokenPipeError:
    pass  # it has answered already
print(s.makefile().readline())
"""


async def asked_by(*prefix: str, path: Path) -> str:
    argv = [*prefix, sys.executable, "-I", "-S", "-c", ASK, str(path)]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=20)
    return done.stdout or done.stderr


async def test_only_root_may_ask(node: Door, tmp_path: Path) -> None:
    """First by the socket's mode; and should somebody have opened that, because the kernel says who asks."""
    path = node.runtime.socket
    assert (path.stat().st_mode & 0o777, path.stat().st_uid) == (0o600, 0)
    os.chmod(tmp_path, 0o755)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    assert await asked_by(*nobody, path=path) == "connect: Permission denied\n"
    path.chmod(0o666)
    assert "user 65534 (process" in await asked_by(*nobody, path=path)
    inner = (*nobody, "unshare", "--user", "--map-root-user")  # root, but only there
    assert "user 65534 (process" in await asked_by(*inner, path=path)
    path.chmod(0o600)
    assert "no JSON object of command" in await asked_by(path=path)


async def test_a_directory_that_others_can_change_is_not_used(networks: Networks, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    foreign = Foreign(tmp_path / "foreign", "boot-1", networks, NftFirewall())
    path = tmp_path / "open" / "cni.sock"
    await cni_socket.CniSocket(path, foreign, networks, asyncio.Event()).run()
    assert not path.exists()


async def test_the_socket_of_an_agent_that_lives_is_not_taken_and_that_of_a_dead_one_is(
    node: Door, networks: Networks, tmp_path: Path
) -> None:
    await cni_socket.CniSocket(node.runtime.socket, node.foreign, networks, node.ready).run()
    assert (await node.runtime.call("STATUS")).status == 0
    dead = tmp_path / "other" / "cni.sock"
    dead.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
    async with door(tmp_path / "second", networks, NftFirewall(), socket=dead) as successor:
        assert (await successor.runtime.call("STATUS")).status == 0
