"""Bulk data through the firewall: byte for byte what was sent, counted as the kernel counts it, without the slow path.

Sessions to ports from 5000 on are source-translated, others are not.  Super-packets (GSO) exist only while the devices'
offloads are on; without them every segment is a packet of its own.
"""

import hashlib
import json
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.capture import ETHERNET, Capture
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, CLIENT6, OUT0, OUT06, SERVER, SERVER6, Lab, poll

TRANSLATED, ROUTED = 5000, 4000  # the first port of each kind
OWN = 3000  # of the firewall itself
BLOCK = 1 << 20  # bytes
BLOCKS = 200
PATIENCE = 30  # seconds for one transfer
HANDFUL = 4  # slow-path packets of one flow
MTU = 1500  # bytes
UDP_SEGMENT = 103  # linux/udp.h; Python's socket module lacks it
DATAGRAM = 1200  # bytes


@dataclass(frozen=True)
class Net:
    """One family's addresses, and those that its packets leave with."""

    family: str
    client: str
    server: str
    outside: str
    virtual: str  # becomes the firewall's own
    any: str


V4 = Net("ipv4", CLIENT, SERVER, OUT0, "10.2.0.60", "0.0.0.0")
V6 = Net("ipv6", CLIENT6, SERVER6, OUT06, "fd00:2::60", "::")
BOTH = (V4, V6)


def rules(net: Net) -> list[dict[str, Any]]:
    """NAT of one family."""
    outward = {"nat-type": net.family, "from": ["trust"], "to": "untrust"}
    return [
        {
            **outward,
            "name": f"own-{net.family}",
            "destination": [net.virtual],
            "destination-translation": {"address": net.outside},
        },
        {
            **outward,
            "name": f"snat-{net.family}",
            "service": ["translated-tcp", "translated-udp"],
            "source-translation": {"type": "dynamic-ip-and-port", "interface": "out0"},
        },
    ]


CONFIG = {
    "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
    "services": {
        "translated-tcp": {"protocol": "tcp", "destination-port": f"{TRANSLATED}-65535"},
        "translated-udp": {"protocol": "udp", "destination-port": f"{TRANSLATED}-65535"},
        "own": {"protocol": "tcp", "destination-port": OWN},
    },
    "security-rules": [{"name": "out", "from": ["trust"], "to": ["untrust"], "action": "allow"}],
    "nat-rules": [rule for net in BOTH for rule in rules(net)],
    "host-inbound": {"trust": ["own"]},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(CONFIG) as running:
        yield running


@pytest.fixture(params=BOTH, ids=lambda net: net.family)
def net(request: pytest.FixtureRequest) -> Net:
    chosen: Net = request.param
    return chosen


@pytest.fixture(params=[True, False], ids=["offload", "no-offload"])
def offload(request: pytest.FixtureRequest, lab: Lab) -> Iterator[bool]:
    """Of every device."""
    lab.set_offloads(request.param)
    yield request.param
    lab.set_offloads(True)


@pytest.fixture
def cut_on_the_way_out(lab: Lab) -> Iterator[None]:
    """The firewall gets super-packets from the client, and out0 takes none: the kernel cuts them."""
    features = ("tx", "tso", "gso", "tx-udp-segmentation")
    lab.run("firewall", ["ethtool", "-K", "out0", *(word for name in features for word in (name, "off"))], check=True)
    yield
    lab.set_offloads(True)


class Data:
    """Blocks that all differ, cut from one source that is a little longer, and the digest of them all."""

    def __init__(self, seed: int) -> None:
        self._source = memoryview(random.Random(seed).randbytes(BLOCK + BLOCKS))
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        self.digest = digest.digest()

    def blocks(self) -> Iterator[memoryview]:
        return (self._source[number : number + BLOCK] for number in range(BLOCKS))


@pytest.fixture(scope="module")
def up() -> Data:
    return Data(1)


@pytest.fixture(scope="module")
def down() -> Data:
    return Data(2)


def send(through: socket.socket, data: Data) -> None:
    """Everything, and then the end of it."""
    for block in data.blocks():
        through.sendall(block)
    through.shutdown(socket.SHUT_WR)


def receive(through: socket.socket) -> bytes:
    """The digest of what comes until the end."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK))
    while size := through.recv_into(buffer):
        digest.update(buffer[:size])
    return digest.digest()


@contextmanager
def connected(lab: Lab, ns: str, net: Net, to: tuple[str, int]) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection of the client's, which ends in that namespace: both of its ends."""
    with lab.listener(ns, to[1], net.any) as listening, lab.connect("client", to) as client:
        accepted, _ = listening.accept()
        with accepted:
            yield client, accepted


def transfer(client: socket.socket, server: socket.socket, up: Data, down: Data) -> tuple[bytes, bytes]:
    """Both directions at once; the digests of what the server and the client got. A transfer that crawls is ended."""
    ends = (client, server)
    for end in ends:
        end.settimeout(PATIENCE)
    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(send, client, up), pool.submit(send, server, down)]
        received = pool.submit(receive, server), pool.submit(receive, client)
        if wait(received, PATIENCE).not_done:
            for end in ends:
                end.shutdown(socket.SHUT_RDWR)
        for future in sent:
            future.result()
        return received[0].result(), received[1].result()


@dataclass(frozen=True)
class Traffic:
    """IP packets and bytes; a super-packet is one."""

    packets: int
    bytes: int

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.packets - other.packets, self.bytes - other.bytes)


def received_by(lab: Lab, interface: str) -> Traffic:
    """What an interface of the firewall has received, as the kernel counts it."""
    shown = lab.run("firewall", ["ip", "-j", "-s", "link", "show", interface], check=True).stdout
    received = json.loads(shown)[0]["stats64"]["rx"]
    return Traffic(received["packets"], received["bytes"] - ETHERNET * received["packets"])


def other_than_tcp(capture: Capture) -> Traffic:
    """Neighbour and listener discovery, which belong to no session."""
    frames = capture.received()
    return Traffic(len(frames), sum(len(frame.data) - ETHERNET for frame in frames))


Accounts = tuple[Traffic, Traffic]  # c2s, s2c


def accounts_of(firewall: Firewall, port: int, net: Net) -> Accounts:
    """What the firewall has counted for the one session to that port."""
    sessions = firewall.sessions(destination_port=port, protocol=6, ip6="yes" if net is V6 else "no")
    assert len(sessions) == 1
    c2s, s2c = (Traffic(sessions[0][f"packets_{side}"], sessions[0][f"bytes_{side}"]) for side in ("c2s", "s2c"))
    return c2s, s2c


translated_or_not = pytest.mark.parametrize("first_port", [TRANSLATED, ROUTED], ids=["snat", "routed"])


@translated_or_not
def test_two_hundred_megabytes_each_way(
    lab: Lab, firewall: Firewall, net: Net, offload: bool, first_port: int, up: Data, down: Data
) -> None:
    """They arrive unchanged, cost a handful of slow-path packets, and are counted to the byte and the packet."""
    port = first_port + offload
    punted = firewall.counter("pkt_punt")
    with lab.capture("firewall", "in0", "not tcp") as inside, lab.capture("firewall", "out0", "not tcp") as outside:
        before = received_by(lab, "in0"), received_by(lab, "out0")
        with connected(lab, "server", net, (net.server, port)) as (client, server):
            assert server.getpeername()[0] == (net.outside if first_port == TRANSLATED else net.client)
            assert transfer(client, server, up, down) == (up.digest, down.digest)

        def by_the_kernel() -> Accounts:
            c2s = received_by(lab, "in0") - before[0] - other_than_tcp(inside)
            return c2s, received_by(lab, "out0") - before[1] - other_than_tcp(outside)

        poll(
            lambda: accounts_of(firewall, port, net) == by_the_kernel(), 5, "the session to count what the kernel does"
        )
    assert firewall.counter("pkt_punt") - punted <= HANDFUL
    for counted in accounts_of(firewall, port, net):
        assert counted.bytes > BLOCK * BLOCKS
        assert (counted.bytes / counted.packets > MTU) == offload


def cut(data: bytes) -> list[bytes]:
    return [data[at : at + DATAGRAM] for at in range(0, len(data), DATAGRAM)]


def send_segmented(sender: socket.socket, receiver: socket.socket, to: tuple[str, int]) -> tuple[str, int]:
    """One send that the kernel cuts into 41 datagrams, each of which must arrive as it was; whom the receiver saw."""
    data = random.randbytes(DATAGRAM * 40 + 100)
    sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, DATAGRAM)
    sender.sendto(data, to)
    received = [receiver.recvfrom(1 << 16) for _ in range(41)]
    assert sorted(datagram for datagram, _ in received) == sorted(cut(data))
    assert len({peer for _, peer in received}) == 1
    peer = received[0][1]
    return peer[0], peer[1]


def udp_both_ways(lab: Lab, net: Net, port: int) -> str:
    """Segmented sends to and fro, twice, the first packet of the flow among them; the client's address outside."""
    with lab.udp("server", port, net.any) as server, lab.udp("client", 0, net.any) as client:
        for _ in range(2):
            peer = send_segmented(client, server, (net.server, port))
            send_segmented(server, client, peer)
    return peer[0]


@translated_or_not
def test_udp_senders_may_leave_the_cutting_to_the_kernel(
    lab: Lab, firewall: Firewall, net: Net, offload: bool, first_port: int
) -> None:
    """UDP_SEGMENT: what was one super-packet on the way arrives as the datagrams that it stands for."""
    outside = udp_both_ways(lab, net, first_port + offload)
    assert outside == (net.outside if first_port == TRANSLATED else net.client)


def test_super_packets_are_cut_after_translation(
    lab: Lab, firewall: Firewall, net: Net, cut_on_the_way_out: None, up: Data, down: Data
) -> None:
    """A device without offloads behind a translation: the segments' checksums are made from what we hand back."""
    assert udp_both_ways(lab, net, TRANSLATED + 2) == net.outside
    with connected(lab, "server", net, (net.server, TRANSLATED + 2)) as ends:
        assert transfer(*ends, up, down) == (up.digest, down.digest)


def test_super_packets_to_the_firewall_itself(lab: Lab, firewall: Firewall, net: Net, up: Data, down: Data) -> None:
    """A destination translated to the firewall's own address: no device is on the way that would cut them."""
    with connected(lab, "firewall", net, (net.virtual, OWN)) as ends:
        assert transfer(*ends, up, down) == (up.digest, down.digest)
