"""Datagrams and connections that the kernel forwards by itself: what the labs of the offload talk with.

A packet that has come to the queues is one more in `pkt_recv`, one that the kernel has forwarded one in `pkt_offload`.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from tests.lab.console import IN_ORDER, rule, session_of, zones
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, CLIENT6, OUT0, OUT06, SERVER, SERVER6, Lab, poll

HIDDEN, PUBLIC, BOTH, PLAIN = 5000, 5001, 5002, 5003  # ports: source translated, destination translated, both, neither
VIRTUAL, VIRTUAL6 = "10.2.0.60", "fd00:2::60"
HEADERS = {4: 28, 6: 48}  # bytes of IP and UDP
PAYLOAD = 30  # bytes of a datagram


@dataclass(frozen=True)
class Net:
    """One family's names for the same places."""

    version: int
    client: str
    server: str
    virtual: str
    outside: str
    any: str

    def ip(self, source: str, destination: str, **fields: Any) -> Packet:
        return (IP if self.version == 4 else IPv6)(src=source, dst=destination, **fields)


V4 = Net(4, CLIENT, SERVER, VIRTUAL, OUT0, "0.0.0.0")
V6 = Net(6, CLIENT6, SERVER6, VIRTUAL6, OUT06, "::")


def nat(net: Net) -> list[dict[str, Any]]:
    """A rule for each kind."""
    kind = {"nat-type": "ipv4" if net is V4 else "ipv6", "from": ["trust"], "to": "untrust"}
    hide = {"source-translation": {"type": "dynamic-ip-and-port", "interface": "out0"}}
    turn = {"destination": [net.virtual], "destination-translation": {"address": net.server}}
    return [
        {**kind, "name": f"both-{net.version}", "service": ["both-tcp", "both-udp"], **hide, **turn},
        {**kind, "name": f"public-{net.version}", **turn},
        {**kind, "name": f"plain-{net.version}", "service": ["plain-tcp", "plain-udp"]},
        {**kind, "name": f"hidden-{net.version}", **hide},
    ]


def config(**settings: object) -> dict[str, Any]:
    """Trust may go out."""
    return {
        "zones": zones(),
        "services": {
            f"{name}-{protocol}": {"protocol": protocol, "destination-port": number}
            for name, number in (("both", BOTH), ("plain", PLAIN))
            for protocol in ("tcp", "udp")
        },
        "security-rules": [rule("out", from_=["trust"], to=["untrust"])],
        "nat-rules": nat(V4) + nat(V6),
        "settings": {**IN_ORDER, **settings},
    }


class Talk:
    """Datagrams to and fro between two sockets; the client's calls `to`."""

    def __init__(self, firewall: Firewall, client: socket.socket, server: socket.socket, to: tuple[str, int]) -> None:
        self._firewall = firewall
        self.client, self.server = client, server
        client.connect(to)
        self.exchanges = 0
        self.outside = ("", 0)

    def exchange(self) -> None:
        """One each way."""
        question = b"%*d" % (PAYLOAD, self.exchanges)
        self.client.send(question)
        received, peer = self.server.recvfrom(100)
        self.server.sendto(received, peer)
        assert self.client.recv(100) == received == question
        self.exchanges += 1
        self.outside = peer[0], peer[1]

    def session(self) -> dict[str, Any]:
        """The one that is alive."""
        return session_of(self._firewall, self.client, state="active")

    def offloaded(self) -> Self:
        """Until the kernel has it."""
        poll(self._is_offloaded, 5, "the session to be offloaded")
        return self

    def _is_offloaded(self) -> bool:
        self.exchange()
        return bool(self.session()["offload"])

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Datagrams(Talk):
    """Between the client and the server, as the port says."""

    def __init__(self, lab: Lab, firewall: Firewall, net: Net, port: int = HIDDEN) -> None:
        self.net = net
        self.to = net.virtual if port in (PUBLIC, BOTH) else net.server
        super().__init__(firewall, lab.udp("client", 0, net.any), lab.udp("server", port, net.any), (self.to, port))

    def datagram(self, **fields: Any) -> Packet:
        """Another of the client's, to be injected."""
        port, back = self.client.getsockname()[1], self.client.getpeername()[1]
        return self.net.ip(self.net.client, self.to, **fields) / UDP(sport=port, dport=back)

    def answer(self, **fields: Any) -> Packet:
        """Another of the server's."""
        address, port = self.outside
        return self.net.ip(self.net.server, address, **fields) / UDP(sport=self.server.getsockname()[1], dport=port)


@contextmanager
def datagrams(lab: Lab, firewall: Firewall, net: Net, port: int = HIDDEN) -> Iterator[Datagrams]:
    made = Datagrams(lab, firewall, net, port)
    with made.client, made.server:
        yield made.offloaded()


def send_nothing_twice(lab: Lab) -> None:
    """Client and server take what is late for late, not for lost, where their kernel can be told so.

    A FIN that has waited in the firewall, and that its sender has repeated meanwhile, is acknowledged twice: the second
    time to a socket that is gone, which answers with a RST, and that stands above tcp-fin.
    """
    for namespace in ("client", "server"):
        lab.run(namespace, ["sysctl", "-qew", "net.ipv4.tcp_rto_min_us=3000000", "net.ipv4.tcp_early_retrans=0"])


@contextmanager
def connection(
    lab: Lab, firewall: Firewall, net: Net, port: int = HIDDEN
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """An offloaded connection."""
    with lab.listener("server", port, net.any) as listening:
        client = lab.connect("client", (net.virtual if port in (PUBLIC, BOTH) else net.server, port))
        server, _ = listening.accept()
    server.settimeout(3)
    with client, server:
        until_offloaded(firewall, client, server)
        yield client, server


def until_offloaded(firewall: Firewall, client: socket.socket, server: socket.socket) -> None:
    """They talk until the kernel has their connection."""

    def is_offloaded() -> bool:
        assert_stream(client, server)
        return bool(session_of(firewall, client)["offload"])

    poll(is_offloaded, 5, "the connection to be offloaded")


def assert_stream(client: socket.socket, server: socket.socket) -> None:
    """A byte each way."""
    for sender, receiver in ((client, server), (server, client)):
        sender.sendall(b"x")
        assert receiver.recv(1) == b"x"
