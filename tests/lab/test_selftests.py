"""Topologies of the kernel's own netfilter selftests, once with the kernel's NAT in the middle and once with ours.

nft_nat (masquerade, redirect of a port), nf_nat_edemux (two ports that become one), conntrack_reverse_clash (both ends
begin at once), conntrack_icmp_related (errors of a router in the path), nft_flowtable (files over links of unequal
MTU).

For conntrack_icmp_related the server is that router, and what it cannot deliver is for a host behind it or for nobody:

    server far0 ---------- MTU 1280 ---------- eth0 far          10.5.0.0/16, fd00:5::/32 unreachable
           10.4.0.1/24           10.4.0.2/24
           fd00:4::1/64          fd00:4::2/64
"""

import hashlib
import random
import re
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.console import counters
from tests.lab.firewall import Firewall
from tests.lab.lab import (
    CLIENT,
    CLIENT6,
    FORWARDING,
    INSIDE,
    OUT0,
    OUT06,
    OUTSIDE,
    SERVER,
    SERVER6,
    Lab,
    remove_namespace,
)

PUBLIC, PRIVATE = 8080, 8081  # of the client: what the outside asks for, what listens
COLLAPSING, REAL = 5222, 5223  # of the server
FILE = random.Random(5).randbytes(2 << 20)
MTUS = [(1500, 1500), (9000, 1500), (1500, 9000), (1280, 2000), (2000, 1280)]  # in0's link, out0's link


@dataclass(frozen=True)
class Net:
    """One family's addresses."""

    family: str
    client: str
    server: str
    outside: str
    any: str
    nft: str  # nft's name
    beyond: tuple[str, str]  # the server's and far's address on their link, with prefix length
    nowhere: str  # an address that the server has no way to
    unreachable: str  # its network

    @property
    def far(self) -> str:
        return self.beyond[1].partition("/")[0]


V4 = Net("ipv4", CLIENT, SERVER, OUT0, "0.0.0.0", "ip", ("10.4.0.1/24", "10.4.0.2/24"), "10.5.0.9", "10.5.0.0/16")
V6 = Net("ipv6", CLIENT6, SERVER6, OUT06, "::", "ip6", ("fd00:4::1/64", "fd00:4::2/64"), "fd00:5::9", "fd00:5::/32")
BOTH = (V4, V6)


def rules(net: Net) -> list[dict[str, Any]]:
    """Ours of one family: the outside may ask for PUBLIC; COLLAPSING becomes REAL; whoever goes out is hidden."""
    outward = {"nat-type": net.family, "from": ["trust"], "to": "untrust"}
    inward = {"nat-type": net.family, "from": ["untrust"], "to": "untrust", "destination": [net.outside]}
    hidden = {"source-translation": {"type": "dynamic-ip-and-port", "interface": "out0"}}
    return [
        inward
        | {"name": f"redirect-{net.family}", "service": "public"}
        | {"destination-translation": {"address": net.client, "port": PRIVATE}},
        outward
        | hidden
        | {"name": f"collapse-{net.family}", "service": "collapsing"}
        | {"destination-translation": {"address": net.server, "port": REAL}},
        outward | hidden | {"name": f"hide-{net.family}", "service": "hidden"},
        outward | hidden | {"name": f"beyond-{net.family}", "destination": [net.far, net.nowhere]},
    ]


CONFIG: dict[str, Any] = {
    "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
    "services": {
        "public": {"protocol": "tcp", "destination-port": PUBLIC},
        "collapsing": {"protocol": "tcp", "destination-port": COLLAPSING},
        "hidden": {"protocol": "tcp", "destination-port": "1-65535"},
    },
    "security-rules": [
        {"name": "all", "from": ["trust", "untrust"], "to": ["trust", "untrust"], "action": "allow"},
    ],
    "nat-rules": [rule for net in BOTH for rule in rules(net)],
}

# The same for the kernel.
RULESET = "\n".join(
    f"""
    table {net.nft} nat {{
        chain before {{
            type nat hook prerouting priority dstnat
            iifname out0 {net.nft} daddr {net.outside} tcp dport {PUBLIC} dnat to {at(net.client)}:{PRIVATE}
            iifname in0 tcp dport {COLLAPSING} dnat to {at(net.server)}:{REAL}
        }}
        chain after {{
            type nat hook postrouting priority srcnat
            oifname out0 meta l4proto tcp masquerade
            oifname out0 {net.nft} daddr {{ {net.far}, {net.nowhere} }} masquerade
        }}
    }}"""
    for at in (lambda address: f"[{address}]" if ":" in address else address,)
    for net in BOTH
)


@contextmanager
def kernel(lab: Lab) -> Iterator[None]:
    path = lab.directory / "ruleset"
    path.write_text(RULESET)
    lab.run("firewall", ["nft", "-f", str(path)], check=True)
    yield
    lab.run("firewall", ["nft", "flush", "ruleset"], check=True)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made, far(made):
        yield made


@contextmanager
def far(lab: Lab) -> Iterator[None]:
    """The host behind the server, and the ways to it."""
    name = lab.names["far"] = f"{lab.names['server']}-far"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        peer = ["type", "veth", "peer", "name", "eth0", "mtu", "1280", "netns", name]
        ip(lab, "server", "link", "add", "far0", "mtu", "1280", *peer)
        lab.sysctl("server", FORWARDING)
        for net in BOTH:
            lead(lab, net)
        yield
    finally:
        remove_namespace(name)


def lead(lab: Lab, net: Net) -> None:
    """One family's addresses and routes behind the server."""
    router = net.beyond[0].partition("/")[0]
    for ns, device, address in (("server", "far0", net.beyond[0]), ("far", "eth0", net.beyond[1])):
        ip(lab, ns, "address", "add", address, "dev", device, *(["nodad"] if net is V6 else []))
        ip(lab, ns, "link", "set", device, "up")
    ip(lab, "far", "route", "add", "default", "via", router)
    ip(lab, "server", "route", "add", "unreachable", net.unreachable)
    for prefix in (net.far, net.nowhere):
        ip(lab, "firewall", "route", "add", prefix, "via", net.server)


def ip(lab: Lab, ns: str, *words: str) -> None:
    lab.run(ns, ["ip", *words], check=True)


@pytest.fixture(scope="module", params=["kernel", "ours"])
def middle(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Firewall | None]:
    """Who translates: the daemon, or the kernel if it is None."""
    with kernel(lab) if request.param == "kernel" else lab.firewall(CONFIG) as firewall:
        yield firewall


@pytest.fixture(params=BOTH, ids=lambda net: net.family)
def net(request: pytest.FixtureRequest) -> Net:
    chosen: Net = request.param
    return chosen


def exchange(one: socket.socket, other: socket.socket) -> None:
    for sender, receiver, word in ((one, other, b"question"), (other, one, b"answer")):
        sender.sendall(word)
        assert receiver.recv(100) == word


def test_masquerade(lab, middle, net):
    """The server sees the address of the firewall's interface."""
    with lab.listener("server", 0, net.any) as listening:
        client = lab.connect("client", (net.server, listening.getsockname()[1]))
        accepted, peer = listening.accept()
        assert peer[0] == net.outside
        exchange(client, accepted)


def test_a_redirected_port(lab, middle, net):
    """The outside asks the firewall, and the client behind it answers and sees who asks."""
    with lab.listener("client", PRIVATE, net.any) as listening:
        asking = lab.connect("server", (net.outside, PUBLIC))
        accepted, peer = listening.accept()
        assert peer[:2] == asking.getsockname()[:2]
        exchange(asking, accepted)


def test_two_ports_become_one(lab, middle, net):
    """One source port towards both: the second connection gets another one on its way out."""
    with lab.listener("server", REAL, net.any) as listening:
        one = lab.connect("client", (net.server, REAL), 0)
        accepted_one, peer_one = listening.accept()
        two = lab.connect("client", (net.server, COLLAPSING), one.getsockname()[1])
        accepted_two, peer_two = listening.accept()
        assert peer_one[0] == peer_two[0] == net.outside
        assert peer_one[1] != peer_two[1]
        exchange(one, accepted_one)
        exchange(two, accepted_two)


def test_both_ends_begin_at_once(lab, middle, net):
    """Datagrams of one tuple from both sides, untranslated: whoever is first, both arrive as what they are."""
    for _ in range(20):
        client, server = lab.udp("client", 0, net.any), lab.udp("server", 0, net.any)
        client.connect((net.server, server.getsockname()[1]))
        server.connect((net.client, client.getsockname()[1]))
        with ThreadPoolExecutor(2) as both:
            list(both.map(lambda end: end.send(b"first"), (client, server)))
        assert client.recv(100) == server.recv(100) == b"first"
        exchange(client, server)
        client.close()
        server.close()


ABOUT_ERRORS = ("pkt_icmp_error", "flow_icmp", "flow_parse")
WATCH = """
table inet watch {
    counter sent { }
    counter related { }
    counter invalid { }
    chain in {
        type filter hook input priority 0
        ct state related counter name related
        ct state invalid counter name invalid
    }
    chain out {
        type filter hook output priority 0
        ct state related counter name sent
        ct state invalid counter name invalid
    }
    chain through {
        type filter hook forward priority 0
        ct state related counter name related
        ct state invalid counter name invalid
    }
}
"""


@pytest.fixture
def watched(lab: Lab, middle: Firewall | None) -> Iterator[None]:
    """The ends and the router count by what their own connection tracking makes of a packet."""
    ends = ("client", "server", "far")
    path = lab.directory / "watch"
    path.write_text(WATCH)
    forget_paths(lab)
    for ns in ends:
        lab.run(ns, ["nft", "-f", str(path)], check=True)
    yield
    for ns in ends:
        lab.run(ns, ["nft", "delete", "table", "inet", "watch"], check=True)


def counted(lab: Lab, ns: str) -> dict[str, int]:
    shown = lab.run(ns, ["nft", "list", "counters", "table", "inet", "watch"], check=True).stdout
    return {name: int(packets) for name, packets in re.findall(r"counter (\w+) {\s+packets (\d+)", shown)}


def ping(lab: Lab, to: str, count: int, size: int) -> str:
    """The summary of a ping that may not be cut."""
    done = lab.run("client", ["ping", "-n", "-c", f"{count}", "-i", "0.05", "-W", "2", "-M", "do", "-s", f"{size}", to])
    return next(line for line in done.stdout.splitlines() if "transmitted" in line)


def test_errors_of_a_router_are_related(lab, middle, net, watched):
    """Too big for the last link, or for nobody: each of the pings hears of its own packet, and whoever tracks
    connections takes every error for related."""
    assert "3 received" in ping(lab, net.far, 3, 1000)
    before = counters(middle) if middle else {}
    assert "0 received, +1 errors" in ping(lab, net.far, 1, 1300)
    with ThreadPoolExecutor() as pings:  # two: the kernel makes five in a burst at most (error_burst of ip-sysctl)
        for summary in pings.map(lambda size: ping(lab, net.nowhere, 1, size), (100, 101)):
            assert "0 received, +1 errors" in summary
    assert counted(lab, "server") == {"sent": 3, "related": 0, "invalid": 0}
    assert counted(lab, "client") == {"sent": 0, "related": 3, "invalid": 0}
    assert counted(lab, "far") == {"sent": 0, "related": 0, "invalid": 0}
    if middle:
        changed = {name: count - before[name] for name, count in counters(middle).items() if count != before[name]}
        assert {name: by for name, by in changed.items() if name.startswith(ABOUT_ERRORS)} == {"pkt_icmp_error": 3}


@pytest.fixture(params=[(mtus, offload) for mtus in MTUS for offload in (True, False)], ids=str)
def links(request: pytest.FixtureRequest, lab: Lab) -> Iterator[None]:
    """MTUs and offloads, for one test."""
    mtus, offload = request.param
    lab.set_offloads(offload)
    set_mtus(lab, mtus)
    yield
    set_mtus(lab, MTUS[0])
    lab.set_offloads(True)


def set_mtus(lab: Lab, mtus: tuple[int, int]) -> None:
    """Of both links."""
    for ends, mtu in zip((INSIDE, OUTSIDE), mtus, strict=True):
        for ns, interface in ends:
            lab.set_mtu(ns, interface, mtu)
    forget_paths(lab)


def forget_paths(lab: Lab) -> None:
    """What the ends have learnt of the path's MTU."""
    for ns in ("client", "server"):
        for family in ("-4", "-6"):
            lab.run(ns, ["ip", family, "route", "flush", "cache"], check=True)


def test_files_over_unequal_links(lab, middle, net, links):
    """Both ways at once, whole, whoever has to learn the path's MTU."""
    with lab.listener("server", 0, net.any) as listening:
        client = lab.connect("client", (net.server, listening.getsockname()[1]))
        accepted, _ = listening.accept()
    ends = (client, accepted)
    for end in ends:
        end.settimeout(10)
    with ThreadPoolExecutor(4) as threads:
        sent = [threads.submit(send, end) for end in ends]
        digests = [threads.submit(digest, end) for end in ends]
        for future in sent:
            future.result()
        assert [future.result() for future in digests] == [hashlib.sha256(FILE).digest()] * 2


def send(end: socket.socket) -> None:
    end.sendall(FILE)
    end.shutdown(socket.SHUT_WR)


def digest(end: socket.socket) -> bytes:
    """Of all that comes until the other side is done."""
    received = hashlib.sha256()
    while data := end.recv(1 << 16):
        received.update(data)
    return received.digest()
