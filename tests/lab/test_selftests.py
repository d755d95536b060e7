"""Topologies of the kernel's own netfilter selftests, once with the kernel's NAT in the middle and once with ours.

nft_nat (masquerade, redirect of a port), nf_nat_edemux (two ports that become one), conntrack_reverse_clash (both ends
begin at once), nft_flowtable (files over links of unequal MTU). What conntrack_icmp_related asks is in test_icmp.py.
"""

import hashlib
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.lab import CLIENT, CLIENT6, INSIDE, OUT0, OUT06, OUTSIDE, SERVER, SERVER6, Lab

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


V4 = Net("ipv4", CLIENT, SERVER, OUT0, "0.0.0.0", "ip")
V6 = Net("ipv6", CLIENT6, SERVER6, OUT06, "::", "ip6")
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
    with Lab() as made:
        yield made


@pytest.fixture(scope="module", params=["kernel", "ours"])
def middle(request: pytest.FixtureRequest, lab: Lab) -> Iterator[str]:
    """Who translates."""
    with kernel(lab) if request.param == "kernel" else lab.firewall(CONFIG):
        yield request.param


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
    """Of both links; what the ends have learnt of the path is forgotten."""
    for ends, mtu in zip((INSIDE, OUTSIDE), mtus, strict=True):
        for ns, interface in ends:
            lab.set_mtu(ns, interface, mtu)
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
