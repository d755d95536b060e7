"""Conversations replayed packet by packet over a virtual wire: some written here, others recorded elsewhere.

     client                 firewall                 server
    +------+      +--------------------------+      +------+
    | eth0 |------| in0  left | right   out0 |------| eth0 |      lab.py, bridge=True
    +------+      +--------------------------+      +------+
    who opens a control connection        who answers it

Only control ports are in the policy. A packet is sent when the one before it has come out at the other end, or nothing
more is to be waited for; no kernel has the addresses, so nobody answers but the conversation itself. Each is replayed
three times: over a plain bridge, whose losses prove nothing, with the ALGs, and without them.

What may pass is read from the text a second time here (Reader), by rules that know nothing of windows, held bytes or
limits. Written conversations say it of each packet themselves, by which the reader is measured too.

DATAPLANE_CAPTURES names a directory of recordings (pcap) that are replayed as well. Checksums that the recording host
had left to its hardware are made: a firewall drops a wrong one, and rightly.
"""

import os
import re
import select
import socket
import struct
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap

from tests.lab.capture import ETH_P_ALL, ETHERNET, PACKET_OUTGOING, SO_RCVBUFFORCE, Datagram, Frame
from tests.lab.console import IN_ORDER, ask, counters, info, port, rule
from tests.lab.firewall import Firewall
from tests.lab.lab import MACS, Lab, poll
from tests.lab.lab import SERVER as SERVER_ADDRESS
from tests.lab.witness import CONTROL_PORT, Controls, resident

CLIENT, SERVER = 0, 1
ROLES = ("client", "server")
ENDS = (bytes.fromhex("020000000901"), bytes.fromhex("020000000902"))  # MAC addresses that no kernel knows
KERNELS = {bytes.fromhex(mac.replace(":", "")) for (role, _), mac in MACS.items() if role != "firewall"}
SOON, PATIENCE = 0.01, 0.15  # seconds for a packet to come out
PACE = 0.001  # seconds, where none needs to
LARGEST = 65000  # MTU: recordings have super-packets, which the recording host has cut later
BUFFER = 32 << 20
LIMIT = 20 << 20  # bytes of memory that a conversation may leave behind
PER_PARENT = 64  # predictions
TIMEOUTS = {"tcp-time-wait": 1, "discard-tcp": 1, "discard-udp": 1}  # seconds
FIN, SYN, ACK = 1, 2, 16

TCP_NUMBER, UDP_NUMBER = 6, 17
FTP, TFTP, SIP = (21,), (69,), (5060, 5061, 5062)
CONTROL = {(TCP_NUMBER, number) for number in (*FTP, *SIP)} | {(UDP_NUMBER, number) for number in (*TFTP, *SIP)}
CAPTURES = os.environ.get("DATAPLANE_CAPTURES")
HOST, NEIGHBOUR, HOST6 = "10.1.0.50", "10.1.0.51", "fd00:1::50"
FOLLOWER, FOLLOWED, FOLLOWED_PORT = "10.1.0.60", "10.2.0.60", 9
SERVES, STRANGER, SERVES6 = "10.2.0.50", "10.2.0.51", "fd00:2::50"
ITSELF, SECOND = "127.0.0.1", "127.0.0.2"
Address = tuple[str, int]


class Kind(Enum):
    """What a packet belongs to."""

    CONTROL = "a control connection"
    DATA = "a connection that was announced"
    HOLED = "a connection of which the recording has lost packets"
    OTHER = "anything else"


class Flow(NamedTuple):
    """From whom to whom; ports are 0 where there are none."""

    proto: int
    source: Address
    destination: Address

    @property
    def ends(self) -> frozenset[Address]:
        return frozenset((self.source, self.destination))


class Turn(NamedTuple):
    """One packet of a conversation, and who sends it."""

    side: int
    datagram: bytes
    kind: Kind

    @property
    def frame(self) -> bytes:
        return ENDS[1 - self.side] + ENDS[self.side] + ethertype(self.datagram) + self.datagram


# What may pass


@dataclass
class Connection:
    """A connection, or an exchange of datagrams, as its first packet has begun it."""

    flow: Flow
    kind: Kind
    side: int  # of whoever began it
    begun: int = 0  # sequence number of its SYN
    _ends: list[int | None] = field(default_factory=lambda: [None, None])  # by side, the number that comes next
    _unread: list[bytes] = field(default_factory=lambda: [b"", b""])  # by side, a line that has not ended

    def hear(self, side: int, segment: Datagram) -> bytes:
        """What is new in a segment. Where packets are missing, nothing can be said of the connection any more."""
        seq, ack = struct.unpack("!II", segment.payload[4:12])
        flags, data, end = segment.payload[13], payload_of(segment), self._ends[side]
        theirs = self._ends[1 - side]
        ahead = 0 if end is None else distance(seq, end)
        if ahead > 0 or (flags & ACK and theirs is not None and distance(ack, theirs) > 0):
            self.kind = Kind.HOLED
        length = len(data) + bool(flags & SYN) + bool(flags & FIN)
        if ahead + length > 0:
            self._ends[side] = (seq + length) % (1 << 32)
        return data[-ahead:] if ahead <= 0 else b""

    def lines(self, side: int, data: bytes) -> list[bytes]:
        *whole, self._unread[side] = (self._unread[side] + data).split(b"\n")
        return [line.rstrip(b"\r") for line in whole]


class Reader:
    """Says of each packet of a recording who sends it and what it belongs to."""

    def __init__(self) -> None:
        self._connections: dict[tuple[int, frozenset[Address]], Connection] = {}
        self._announced: dict[tuple[int, Address, str], int] = {}  # protocol, who is called, by whom -> side called
        self._sides: dict[str, set[int]] = defaultdict(set)  # host -> where it is

    def read(self, datagrams: Sequence[bytes]) -> list[Turn]:
        """All of them, in their order."""
        judged = [(datagram, *self._judge(parsed(datagram))) for datagram in datagrams]
        return [
            Turn(self._place(parsed(datagram)) if side is None else side, datagram, kind)
            for datagram, side, kind in judged
        ]

    def _judge(self, datagram: Datagram) -> tuple[int | None, Kind]:
        flow = flow_of(datagram)
        connection = self._connections.get((flow.proto, flow.ends))
        if connection is None or is_another(datagram, connection):
            connection = self._connections[flow.proto, flow.ends] = self._begin(flow, datagram)
        if connection.kind is Kind.OTHER:
            return None, Kind.OTHER
        side = connection.side if flow.source == connection.flow.source else 1 - connection.side
        said = connection.hear(side, datagram) if flow.proto == TCP_NUMBER else payload_of(datagram)
        if (flow.proto, connection.flow.destination[1]) in CONTROL:
            self._listen(connection, flow, side, said)
        return side, connection.kind

    def _begin(self, flow: Flow, first: Datagram) -> Connection:
        """A connection whose beginning is missing is nobody's, though it tells who is where."""
        caller, callee = flow.source, flow.destination
        control = (flow.proto, callee[1]) in CONTROL
        if control or (flow.proto, caller[1]) in CONTROL:
            self._sides[caller[0]].add(CLIENT if control else SERVER)
            self._sides[callee[0]].add(SERVER if control else CLIENT)
        if flow.proto == TCP_NUMBER and not is_syn(first):
            return Connection(flow, Kind.OTHER, CLIENT)
        begun = sequence_of(first) if flow.proto == TCP_NUMBER else 0
        if control:
            return Connection(flow, Kind.CONTROL, CLIENT, begun)
        called = self._announced.pop((flow.proto, callee, caller[0]), None)
        if called is None:
            return Connection(flow, Kind.OTHER, CLIENT, begun)
        return Connection(flow, Kind.DATA, 1 - called, begun)

    def _place(self, datagram: Datagram) -> int:
        """Who sends it, by what control connections have told of either host; else the first to speak is a client."""
        flow = flow_of(datagram)
        here, there = self._sides[flow.source[0]], self._sides[flow.destination[0]]
        if not here:
            here.add(1 - min(there, default=SERVER))
        if not there:
            there.add(1 - min(here))
        return min(here)

    def _listen(self, connection: Connection, flow: Flow, side: int, said: bytes) -> None:
        number = connection.flow.destination[1]
        if number in TFTP and said[:2] in (b"\0\1", b"\0\2"):
            self._announce(flow, side, UDP_NUMBER, *flow.source)
        elif number in SIP:
            self._media(flow, side, said)
        elif number in FTP:
            for line in connection.lines(side, said):
                self._data(flow, side, line)

    def _announce(self, flow: Flow, side: int, proto: int, address: str, number: int) -> None:
        """Nobody may speak for others, and no port of a service is opened."""
        called = (proto, (address, number), flow.destination[0])
        if address == flow.source[0] and 1024 <= number < 65536:
            self._announced[called] = side

    def _data(self, flow: Flow, side: int, line: bytes) -> None:
        address, number = transfer(line) if side == CLIENT else answer(line, flow.source[0])
        self._announce(flow, side, TCP_NUMBER, address, number)

    def _media(self, flow: Flow, side: int, message: bytes) -> None:
        front, *media = message.split(b"\r\nm=")
        for medium in media:
            where = CONNECTION.search(medium) or CONNECTION.search(front)
            first = re.match(rb"\w+ (\d+) RTP/", medium)
            if where and first:
                for number in (int(first[1]), int(first[1]) + 1):
                    self._announce(flow, side, UDP_NUMBER, where[1].decode(), number)


NOWHERE = ("", 0)
CONNECTION = re.compile(rb"\r\nc=IN IP[46] (\S+)")


def six(text: bytes) -> Address:
    numbers = [int(number) for number in text.split(b",")]
    return ".".join(map(str, numbers[:4])), numbers[4] * 256 + numbers[5]


def transfer(line: bytes) -> Address:
    """Where a client wants to be called."""
    if port_line := re.fullmatch(rb"(?i)PORT (\d+(?:,\d+){5})", line):
        return six(port_line[1])
    extended = re.fullmatch(rb"(?i)EPRT \|[12]\|([0-9a-f.:]+)\|(\d+)\|", line)
    return (str(ip_address(extended[1].decode())), int(extended[2])) if extended else NOWHERE


def answer(line: bytes, own: str) -> Address:
    """Where a server does."""
    if passive := re.match(rb"227 .*?(\d+(?:,\d+){5})", line):
        return six(passive[1])
    extended = re.match(rb"229 .*\(\|\|\|(\d+)\|\)", line)
    return (own, int(extended[1])) if extended else NOWHERE


def is_another(first: Datagram, known: Connection) -> bool:
    """A SYN with another number begins another connection between the same ends."""
    return is_syn(first) and sequence_of(first) != known.begun


def sequence_of(segment: Datagram) -> int:
    return int.from_bytes(segment.payload[4:8], "big")


def distance(number: int, base: int) -> int:
    """How far a sequence number lies ahead of another one."""
    return (number - base + (1 << 31)) % (1 << 32) - (1 << 31)


def is_syn(datagram: Datagram) -> bool:
    return datagram.protocol == TCP_NUMBER and datagram.payload[13] & (SYN | ACK) == SYN


def ethertype(datagram: bytes) -> bytes:
    return b"\x86\xdd" if datagram[0] >> 4 == 6 else b"\x08\x00"


def parsed(datagram: bytes) -> Datagram:
    read = Frame(bytes(12) + ethertype(datagram) + datagram, False, False).datagram
    assert read is not None
    return read


def flow_of(datagram: Datagram) -> Flow:
    has_ports = datagram.protocol in (TCP_NUMBER, UDP_NUMBER) and len(datagram.payload) >= 4
    ports = struct.unpack("!HH", datagram.payload[:4]) if has_ports else (0, 0)
    source, destination = (str(ip_address(address)) for address in (datagram.source, datagram.destination))
    return Flow(datagram.protocol, (source, ports[0]), (destination, ports[1]))


def payload_of(datagram: Datagram) -> bytes:
    header = 8 if datagram.protocol == UDP_NUMBER else (datagram.payload[12] >> 4) * 4
    return datagram.payload[header:]


def recorded(path: Path) -> list[bytes]:
    """The IP datagrams of a recording without what links have padded them with, and without what goes to a group or to
    everybody, which passes a wire without policy."""
    layers = [packet.getlayer(IP) or packet.getlayer(IPv6) for packet in rdpcap(str(path))]
    return [mended(unpadded(layer)) for layer in layers if layer and not is_for_many(layer.dst)]


def is_for_many(address: str) -> bool:
    return ip_address(address).is_multicast or address == "255.255.255.255"


def unpadded(layer: Packet) -> bytes:
    length = layer.len if layer.version == 4 else 40 + layer.plen
    return bytes(layer)[:length]


def mended(datagram: bytes) -> bytes:
    """With the checksum of its TCP or UDP made anew where it is wrong."""
    wrong = Frame(bytes(12) + ethertype(datagram) + datagram, False, False).wrong_checksums()
    return made_anew(layers_of(datagram)) if wrong else datagram


def layers_of(datagram: bytes) -> Packet:
    return (IPv6 if datagram[0] >> 4 == 6 else IP)(datagram)


def made_anew(packet: Packet) -> bytes:
    """With right checksums."""
    for layer in packet.layers():
        if layer in (IP, TCP, UDP):
            del packet[layer].chksum
    return bytes(packet)


def parted(turn: Turn) -> Turn:
    """A host that talked to itself as two, for no wire carries such a packet: the client becomes SECOND."""
    packet = layers_of(turn.datagram)
    if packet.src != packet.dst:
        return turn
    assert packet.src == ITSELF, "only the one address is known to be replaced"
    payload = bytes(packet.payload.payload)
    if turn.side == CLIENT:
        packet.src = SECOND
        for mark in (".", ","):
            payload = payload.replace(ITSELF.replace(".", mark).encode(), SECOND.replace(".", mark).encode())
    else:
        packet.dst = SECOND
    packet.payload.remove_payload()
    return turn._replace(datagram=made_anew(packet / Raw(payload)))


# The wire


class Replayed:
    """Which packets came out, by their places in the conversation, and frames that nobody had sent."""

    def __init__(self) -> None:
        self.delivered: set[int] = set()
        self.strange: list[str] = []
        self._under_way: dict[tuple[int, bytes], deque[int]] = defaultdict(deque)

    def expect(self, place: int, turn: Turn) -> None:
        self._under_way[1 - turn.side, turn.frame].append(place)

    def note(self, side: int, frame: bytes) -> None:
        if places := self._under_way[side, frame]:
            self.delivered.add(places.popleft())
        elif frame[6:12] not in KERNELS:
            self.strange.append(Frame(frame, False, False).packet.summary())


class Wire:
    """Both ends of it."""

    def __init__(self, lab: Lab) -> None:
        self._ends = []
        for role in ROLES:
            with lab.inside(role):
                self._ends.append(listening())

    def close(self) -> None:
        for end in self._ends:
            end.close()

    def replay(self, turns: Sequence[Turn]) -> Replayed:
        """Every packet in its turn. After one that does not come out soon goes another one that must, and with it all
        is said that there is to say: the firewall keeps their order."""
        replayed = Replayed()
        for _ in self._arrivals():
            pass  # of what was said before
        for place, turn in enumerate(turns):
            judged = turn.kind is not Kind.HOLED
            if not self._comes_out(place, turn, replayed, SOON if judged else PACE) and judged:
                self._comes_out(-1 - place, follower(turn.side, place), replayed, PATIENCE)
        assert self._comes_out(-1 - len(turns), follower(CLIENT, len(turns)), replayed, 10 * PATIENCE)
        replayed.delivered = {place for place in replayed.delivered if place >= 0}
        return replayed

    def _comes_out(self, place: int, turn: Turn, replayed: Replayed, seconds: float) -> bool:
        replayed.expect(place, turn)
        self._ends[turn.side].send(turn.frame)
        deadline = time.monotonic() + seconds
        while place not in replayed.delivered and (left := deadline - time.monotonic()) > 0:
            select.select(self._ends, [], [], left)
            for arrival in self._arrivals():
                replayed.note(*arrival)
        return place in replayed.delivered

    def _arrivals(self) -> Iterator[tuple[int, bytes]]:
        for side, end in enumerate(self._ends):
            while True:
                try:
                    frame, address = end.recvfrom(LARGEST + ETHERNET)
                except BlockingIOError:
                    break
                if address[2] != PACKET_OUTGOING:
                    yield side, frame


def listening() -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    end.bind(("eth0", ETH_P_ALL))
    end.setblocking(False)
    return end


def follower(side: int, number: int) -> Turn:
    """A first packet that the policy allows."""
    return datagram(side, (FOLLOWER, 1024 + number), (FOLLOWED, FOLLOWED_PORT), b"all is decided", Kind.OTHER)


@dataclass
class Guarded:
    """A wire with the daemon on it."""

    firewall: Firewall
    wire: Wire
    controls: Controls

    def replay(self, turns: Sequence[Turn]) -> tuple[Replayed, Counter[str]]:
        """Every packet in its turn, and by how much each counter has grown."""
        with self.watched():
            before = Counter(counters(self.firewall))
            replayed = self.wire.replay(turns)
            grown = Counter(counters(self.firewall)) - before
        return replayed, grown

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The daemon is as well afterwards as before, and nothing stays of what is cleared."""
        before, said, memory = self.slots, self.firewall.log(), resident(self.firewall.pid)
        with self.controls.unharmed(self.firewall):
            yield
        ask(self.firewall, "clear session all", filter={})
        self.await_slots(before, 3)
        assert resident(self.firewall.pid) - memory < LIMIT
        assert self.firewall.log() == said

    @property
    def slots(self) -> int:
        """Of sessions of every kind that are in use."""
        return int(info(self.firewall)["num_active"])

    def await_slots(self, count: int, seconds: float) -> None:
        poll(lambda: self.slots <= count, seconds, f"all but {count} sessions to be gone")


def config(algs: bool) -> dict[str, Any]:
    """Control connections either way, and from left to right what Controls asks for."""
    return {
        "zones": [{"name": "left", "interfaces": ["in0"]}, {"name": "right", "interfaces": ["out0"]}],
        "virtual-wires": [{"name": "vw0", "interfaces": ["in0", "out0"]}],
        "applications": {
            "sip": {"default-ports": [f"{name}/{number}" for name in ("udp", "tcp") for number in SIP]},
            "follower": {"default-ports": [f"udp/{FOLLOWED_PORT}"], "timeout": 1},
        },
        "services": {"controls": port(CONTROL_PORT)},
        "security-rules": [
            rule("control", from_=["left", "right"], to=["left", "right"], application=["ftp", "tftp", "sip"]),
            rule(
                "follower", from_=["left", "right"], to=["left", "right"], source=[FOLLOWER], application=["follower"]
            ),
            rule("ping", from_=["left"], to=["right"], destination=[SERVER_ADDRESS], application=["ping"]),
            rule("controls", from_=["left"], to=["right"], destination=[SERVER_ADDRESS], service=["controls"]),
        ],
        "settings": {
            "alg": {"ftp": algs, "tftp": algs, "sip": algs},
            "session": {"timeouts": TIMEOUTS},
            **IN_ORDER,
        },
    }


@contextmanager
def guarded(algs: bool) -> Iterator[Guarded]:
    with Lab(bridge=True, mtu=LARGEST) as lab, lab.firewall(config(algs)) as firewall, closing(Wire(lab)) as wire:
        yield Guarded(firewall, wire, Controls(lab))


@pytest.fixture(scope="module")
def plain() -> Iterator[Wire]:
    """A bridge of the kernel's own, which shows its packets to netfilter as the daemon's does."""
    with Lab(bridge=True, mtu=LARGEST) as lab:
        for words in ("add br0 up type bridge", "set in0 master br0", "set out0 master br0"):
            lab.run("firewall", ["ip", "link", *words.split()], check=True)
        lab.sysctl("firewall", {f"bridge/bridge-nf-call-{tables}": "1" for tables in ("iptables", "ip6tables")})
        with closing(Wire(lab)) as wire:
            yield wire


@pytest.fixture(scope="module")
def reading() -> Iterator[Guarded]:
    with guarded(True) as made:
        yield made


@pytest.fixture(scope="module")
def unread() -> Iterator[Guarded]:
    with guarded(False) as made:
        yield made


# What is written here


def packet(source: Address, destination: Address, layer: Packet, data: bytes) -> bytes:
    (src, sport), (dst, dport) = source, destination
    layer.sport, layer.dport = sport, dport
    return bytes((IPv6 if ":" in src else IP)(src=src, dst=dst) / layer / Raw(data))


def datagram(side: int, source: Address, destination: Address, data: bytes, kind: Kind = Kind.CONTROL) -> Turn:
    return Turn(side, packet(source, destination, UDP(), data), kind)


class Spoken:
    """A TCP connection as it is written down; who: 0 the caller, who is on `side`, 1 the one who is called."""

    def __init__(self, side: int, caller: Address, callee: Address, kind: Kind) -> None:
        self._side, self._ends, self._kind = side, (caller, callee), kind
        self._next = [1000, 9000]

    def segment(self, who: int, flags: str, data: bytes = b"") -> Turn:
        numbers = {"seq": self._next[who], "ack": self._next[1 - who] if "A" in flags else 0}
        self._next[who] += len(data) + ("S" in flags) + ("F" in flags)
        said = packet(self._ends[who], self._ends[1 - who], TCP(flags=flags, window=30000, **numbers), data)
        return Turn(self._side ^ who, said, self._kind)

    def opened(self) -> list[Turn]:
        return [self.segment(0, "S"), self.segment(1, "SA"), self.segment(0, "A")]

    def said(self, who: int, data: bytes) -> list[Turn]:
        return [self.segment(who, "PA", data), self.segment(1 - who, "A")]

    def closed(self, who: int = 0) -> list[Turn]:
        return [self.segment(who, "FA"), self.segment(1 - who, "FA"), self.segment(who, "A")]

    def whole(self) -> list[Turn]:
        return [*self.opened(), *self.said(0, b"up" * 500), *self.said(1, b"down" * 250), *self.closed()]


class Transfers:
    """A control connection of FTP and what is opened for it."""

    def __init__(self, client: str, server: str) -> None:
        self.client, self.server = client, server
        self._control = Spoken(CLIENT, (client, 40000), (server, FTP[0]), Kind.CONTROL)
        self.turns = self._control.opened()
        self.answer(b"220 ready")
        self.order(b"USER anonymous", b"230 welcome")

    def answer(self, line: bytes) -> None:
        self.turns += self._control.said(SERVER, line + b"\r\n")

    def order(self, line: bytes, answer: bytes) -> None:
        self.turns += self._control.said(CLIENT, line + b"\r\n")
        self.answer(answer)

    def called(self, source: Address, destination: Address, kind: Kind = Kind.DATA) -> None:
        """Somebody on the server's side calls, and goes on as if he had been heard."""
        call = Spoken(SERVER, source, destination, kind)
        self.turns += call.whole() if kind is Kind.DATA else call.opened()

    def quit(self) -> list[Turn]:
        self.order(b"QUIT", b"221 bye")
        return self.turns + self._control.closed()


def port_line(address: str, number: int) -> bytes:
    return f"PORT {address.replace('.', ',')},{number >> 8},{number & 255}".encode()


def active() -> list[Turn]:
    """The server calls, from port 20 or any."""
    old, new = Transfers(HOST, SERVES), Transfers(HOST6, SERVES6)
    for number, source in ((41001, 20), (41002, 20), (41003, 50123)):
        old.order(port_line(HOST, number), b"200 fine")
        old.called((SERVES, source), (HOST, number))
        new.order(f"EPRT |2|{HOST6}|{number}|".encode(), b"200 fine")
        new.called((SERVES6, source), (HOST6, number))
    return old.quit() + new.quit()


def passive() -> list[Turn]:
    """The client calls."""
    old, new = Transfers(HOST, SERVES), Transfers(HOST6, SERVES6)
    for number in (42001, 42002):
        numbers = port_line(SERVES, number).removeprefix(b"PORT ")
        old.order(b"PASV", b"227 Entering Passive Mode (" + numbers + b").")
        old.turns += Spoken(CLIENT, (HOST, number + 100), (SERVES, number), Kind.DATA).whole()
        new.order(b"EPSV", f"229 Entering Extended Passive Mode (|||{number}|)".encode())
        new.turns += Spoken(CLIENT, (HOST6, number + 100), (SERVES6, number), Kind.DATA).whole()
    return old.quit() + new.quit()


def abused() -> list[Turn]:
    """Nothing is opened for others, to a service, beside the port that was announced, or twice."""
    made = Transfers(HOST, SERVES)
    made.order(port_line(NEIGHBOUR, 43001), b"200 fine")
    for address in (NEIGHBOUR, HOST):
        made.called((SERVES, 20), (address, 43001), Kind.OTHER)
    made.order(port_line(HOST, 80), b"200 fine")
    made.called((SERVES, 20), (HOST, 80), Kind.OTHER)
    made.answer(b"227 Entering Passive Mode (10,2,0,51,168,17)")
    for address in (STRANGER, SERVES):
        made.turns += Spoken(CLIENT, (HOST, 43100), (address, 43025), Kind.OTHER).opened()
    made.order(port_line(HOST, 43002), b"200 fine")
    made.called((STRANGER, 20), (HOST, 43002), Kind.OTHER)
    made.called((SERVES, 20), (HOST, 43003), Kind.OTHER)
    made.called((SERVES, 20), (HOST, 43002))
    made.called((SERVES, 50124), (HOST, 43002), Kind.OTHER)
    made.order(port_line(HOST, 43004), b"200 fine")
    return made.quit()


def trivial() -> list[Turn]:
    """TFTP: one file down, one up, and a stranger who answers too."""
    turns = []
    for number, opcode in ((44001, 1), (44002, 2)):
        client, server = (HOST, number), (SERVES, number + 1000)
        request = struct.pack("!H", opcode) + b"file\0octet\0"
        turns += [
            datagram(CLIENT, client, (SERVES, TFTP[0]), request),
            datagram(SERVER, (STRANGER, 45000), client, b"\0\3\0\1evil", Kind.OTHER),
            datagram(SERVER, server, client, b"\0\4\0\0", Kind.DATA),
            datagram(CLIENT, client, server, b"\0\3\0\1content", Kind.DATA),
            datagram(SERVER, server, client, b"\0\4\0\1", Kind.DATA),
        ]
    return turns


def message(start: str, cseq: str, own: str = "", media: int = 0) -> bytes:
    """One of a call between HOST and SERVES, with a description if it has media."""
    lines = ["v=0", f"o=- 1 1 IN IP4 {own}", "s=-", f"c=IN IP4 {own}", "t=0 0", f"m=audio {media} RTP/AVP 0", ""]
    body = "\r\n".join(lines) if media else ""
    headers = [
        f"Via: SIP/2.0/UDP {HOST}:5060;branch=z9hG4bK{cseq[0]}",
        f"From: <sip:alice@{HOST}>;tag=1",
        f"To: <sip:bob@{SERVES}>;tag=2",
        f"Call-ID: 1@{HOST}",
        f"CSeq: {cseq}",
        *(["Content-Type: application/sdp"] if media else []),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([start, *headers, "", body]).encode()


def called_by_sip() -> list[Turn]:
    """A call: media flow both ways when both ends have described theirs, and nowhere else."""
    ends = ((HOST, 5060), (SERVES, 5060))
    media = ((HOST, 46000), (SERVES, 47000))
    control = ((HOST, 46001), (SERVES, 47001))
    to_bob, to_alice = (CLIENT, *ends), (SERVER, *ends[::-1])
    return [
        datagram(*to_bob, message(f"INVITE sip:bob@{SERVES} SIP/2.0", "1 INVITE", *media[0])),
        datagram(*to_alice, message("SIP/2.0 200 OK", "1 INVITE", *media[1])),
        datagram(*to_bob, message(f"ACK sip:bob@{SERVES} SIP/2.0", "1 ACK")),
        datagram(SERVER, (STRANGER, 47000), media[0], b"\x80evil", Kind.OTHER),
        datagram(SERVER, media[1], (HOST, 46002), b"\x80beside", Kind.OTHER),
        *(
            datagram(side, pair[side], pair[1 - side], b"\x80" + bytes(99), Kind.DATA)
            for pair in (media, control)
            for side in (SERVER, CLIENT, SERVER)
        ),
        datagram(*to_alice, message(f"BYE sip:alice@{HOST} SIP/2.0", "2 BYE")),
        datagram(*to_bob, message("SIP/2.0 200 OK", "2 BYE")),
    ]


WRITTEN = {"active": active, "passive": passive, "abused": abused, "tftp": trivial, "sip": called_by_sip}


# The tests


def judge(turns: Sequence[Turn], plain: Wire, reading: Guarded, unread: Guarded) -> None:
    """What has to pass has passed, and nothing else."""
    bridged = plain.replay(turns)
    assert bridged.strange == []
    read, grown = reading.replay(turns)
    passed, _ = unread.replay(turns)
    judged = {place for place in bridged.delivered if turns[place].kind is not Kind.HOLED}
    for replayed, kinds in ((read, (Kind.CONTROL, Kind.DATA)), (passed, (Kind.CONTROL,))):
        wanted = {place for place in judged if turns[place].kind in kinds}
        missing, extra = wanted - replayed.delivered, (replayed.delivered - wanted) & judged
        assert (summaries(turns, missing), summaries(turns, extra)) == ([], [])
        assert replayed.delivered <= bridged.delivered
        assert replayed.strange == []
    print(f"plain {len(bridged.delivered)}, read {len(read.delivered)}, unread {len(passed.delivered)} of {len(turns)};"
          f" {grown['session_predicted']} predicted, {grown['session_predict_matched']} matched")  # fmt: skip


def summaries(turns: Sequence[Turn], places: set[int]) -> list[str]:
    return [f"{place}: {layers_of(turns[place].datagram).summary()}" for place in sorted(places)]


@pytest.mark.parametrize("name", WRITTEN)
def test_what_was_announced_passes_and_nothing_else(plain, reading, unread, name):
    """Byte for byte what a bridge would have delivered of control and announced connections; without ALGs only the
    former."""
    turns = WRITTEN[name]()
    judge(turns, plain, reading, unread)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_reader_reads_what_was_written(name):
    """It finds the sides and the kinds by itself."""
    turns = WRITTEN[name]()
    read = Reader().read([turn.datagram for turn in turns])
    assert [(turn.side, turn.kind) for turn in read] == [(turn.side, turn.kind) for turn in turns]


def test_a_flood_of_announcements_keeps_the_newest(plain, reading):
    """A thousand lines leave PER_PARENT ways open: the last is among them, the first is not."""
    made = Transfers(HOST, SERVES)
    lines = [port_line(HOST, 50000 + number) for number in range(1000)]
    for start in range(0, len(lines), 40):
        made.order(b"\r\n".join(lines[start : start + 40]), b"200 fine")
    made.called((SERVES, 20), (HOST, 50000), Kind.OTHER)
    made.called((SERVES, 20), (HOST, 50999))
    bridged = plain.replay(made.turns)
    with reading.watched():
        replayed = reading.wire.replay(made.turns)
        assert info(reading.firewall)["num_predict"] == PER_PARENT - 1
    wanted = {place for place in bridged.delivered if made.turns[place].kind is not Kind.OTHER}
    assert (replayed.delivered, replayed.strange) == (wanted, [])
    assert len(bridged.delivered) == len(made.turns)


def test_everything_ends_by_itself(reading):
    """Nobody waits for what was announced when the control connection is over."""
    before = reading.slots
    reading.wire.replay(abused())
    assert reading.slots > before
    reading.await_slots(before, max(TIMEOUTS.values()) + 5)


@pytest.mark.skipif(CAPTURES is None, reason="DATAPLANE_CAPTURES names no directory of recordings")
@pytest.mark.parametrize(
    "path", sorted(Path(CAPTURES).glob("*")) if CAPTURES else [None], ids=lambda path: path and path.stem
)
def test_recordings_pass_as_far_as_they_announce(plain, reading, unread, path):
    """Whatever else is in them reaches nobody, and harms nobody."""
    turns = [parted(turn) for turn in Reader().read(recorded(path))]
    judge(turns, plain, reading, unread)
