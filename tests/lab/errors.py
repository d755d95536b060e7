"""Flows between phantoms and the ICMP errors about them: how they are made, and what they quote when they arrive."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.packet import Packet, Raw

from tests.lab.capture import ETHERNET, Capture, Frame
from tests.lab.lab import CLIENT, CLIENT6, IN0, IN06, OUT0, OUT06, SERVER, SERVER6, Lab

BRIEF = 7200  # a UDP port whose sessions end after two seconds


@dataclass(frozen=True)
class Net:
    """One family's names, headers and error messages."""

    family: str
    client: str
    server: str
    inside: str
    outside: str
    phantom_client: str
    phantom_server: str
    near_router: str  # before the client
    far_router: str  # before the server
    any: str
    header: int  # bytes

    def ip(self, source: str, destination: str) -> Packet:
        return (IP if self is V4 else IPv6)(src=source, dst=destination)

    def ip_of(self, packet: bytes) -> Packet:
        return (IP if self is V4 else IPv6)(packet)

    def errors(self) -> list[Packet]:
        """The kinds that mean most: unreachable (port, administratively), too big, time exceeded."""
        if self is V4:
            unreachable = [ICMP(type=3, code=code) for code in (3, 13)]
            return [*unreachable, ICMP(type=3, code=4, nexthopmtu=1300), ICMP(type=11)]
        return [
            ICMPv6DestUnreach(code=4),
            ICMPv6DestUnreach(code=1),
            ICMPv6PacketTooBig(mtu=1300),
            ICMPv6TimeExceeded(),
        ]


V4 = Net("ipv4", CLIENT, SERVER, IN0, OUT0, "10.1.0.200", "10.2.0.200", "10.1.0.201", "10.2.0.201", "0.0.0.0", 20)
V6 = Net("ipv6", CLIENT6, SERVER6, IN06, OUT06, "fd00:1::200", "fd00:2::200", "fd00:1::201", "fd00:2::201", "::", 40)
BOTH = (V4, V6)


@dataclass(frozen=True)
class Talk:
    """A flow between the phantoms: one packet each way, on both sides of the firewall."""

    inner: bytes  # the client's, as sent
    outer: bytes  # the same as the server got it
    answer: bytes  # the server's, as sent
    answered: bytes  # the same as the client got it


@contextmanager
def arriving(lab: Lab, net: Net, ns: str, server: str = "") -> Iterator[Capture]:
    """What reaches a phantom."""
    address = net.phantom_client if ns == "client" else server or net.phantom_server
    with lab.capture(ns, "eth0", f"dst host {address} and (tcp or udp or icmp or icmp6)") as capture:
        yield capture


def question(net: Net, protocol: str, port: int, to: str = "") -> Packet:
    """A first packet of the phantom client's, to the phantom server or another address; `port` stands in the ICMP id
    too."""
    payload = {
        "udp": UDP(sport=port, dport=BRIEF) / Raw(b"question"),
        "tcp": TCP(sport=port, dport=BRIEF, flags="S", seq=100, options=[("MSS", 1200)]),
        "echo": ICMP(id=port) / Raw(b"odd") if net is V4 else ICMPv6EchoRequest(id=port, data=b"odd"),
    }
    return net.ip(net.phantom_client, to or net.phantom_server) / payload[protocol]


def answer(net: Net, packet: Packet) -> Packet:
    """What the phantom server says to a packet as it got it."""
    back = net.ip(packet.dst, packet.src)
    if TCP in packet:
        return back / TCP(sport=packet.dport, dport=packet.sport, flags="SA", seq=900, ack=packet.seq + 1)
    if UDP in packet:
        return back / UDP(sport=packet.dport, dport=packet.sport) / Raw(b"answer")
    if ICMP in packet:
        return back / ICMP(type=0, id=packet[ICMP].id) / Raw(b"odd")
    return back / ICMPv6EchoReply(id=packet[ICMPv6EchoRequest].id, data=b"odd")


def talk(lab: Lab, net: Net, protocol: str, port: int, to: str = "", server: str = "") -> Talk:
    """Open a flow and answer it; `server` is the phantom that it reaches, asked as `to`."""
    asked = question(net, protocol, port, to)
    with arriving(lab, net, "server", server) as at_server, arriving(lab, net, "client") as at_client:
        lab.inject("client", asked)
        outer = at_server.wait(1)[0].packet.payload
        said = answer(net, outer)
        lab.inject("server", said)
        answered = at_client.wait(1)[0].packet.payload
    return Talk(bytes(asked), bytes(outer), bytes(said), bytes(answered))


def error(net: Net, source: str, destination: str, message: Packet, quote: bytes) -> Packet:
    return net.ip(source, destination) / message / Raw(quote)


def quoted(net: Net, frame: Frame) -> bytes:
    """What an error that has arrived quotes."""
    return frame.data[ETHERNET + net.header + 8 :]


def hop(net: Net, packet: bytes) -> bytes:
    """The packet after one router, with its checksum made anew."""
    passed = net.ip_of(packet)
    if net is V4:
        passed.ttl -= 1
        del passed.chksum
    else:
        passed.hlim -= 1
    return bytes(passed)
