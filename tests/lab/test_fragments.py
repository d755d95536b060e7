"""Fragments: the firewall judges datagrams, and its kernel puts them together before it is asked.

The control of each test is the same machine without a daemon, which forwards fragments as they come; then it is the
server that puts them together. What a test sends is made by hand, so that no kernel has a say in how it is cut.

    client --- mtu 1500 --- firewall --- mtu 1400 --- server
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw

from tests.lab.capture import Frame, ones_complement
from tests.lab.console import IN_ORDER, counters
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, CLIENT6, OUT0, OUT06, SERVER, SERVER6, Lab

DENIED, ALLOWED = 23, 4001
NARROW = 1400  # MTU between firewall and server
PAYLOAD = random.Random(3).randbytes(3000)
MARKER = b"SECRET--" * 60
PIECE = 512  # bytes of a fragment, unless a test says otherwise
ORPHANS, ORPHAN_BYTES, BATCH = 3000, 1400, 500  # more than the kernel keeps for reassembly (ipfrag_high_thresh, 4 MiB)


@dataclass(frozen=True)
class Net:
    """One family's addresses; `others`: a second host beside the client."""

    family: str
    client: str
    other: str
    server: str
    outside: str
    any: str
    icmp: str  # tcpdump's name


V4 = Net("ipv4", CLIENT, "10.1.0.3", SERVER, OUT0, "0.0.0.0", "icmp")
V6 = Net("ipv6", CLIENT6, "fd00:1::3", SERVER6, OUT06, "::", "icmp6")
BOTH = (V4, V6)

CONFIG: dict[str, Any] = {
    "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
    "services": {"denied": {"protocol": "udp", "destination-port": DENIED}},
    "security-rules": [
        {"name": "no", "from": ["trust"], "to": ["untrust"], "service": ["denied"], "action": "deny"},
        {"name": "out", "from": ["trust"], "to": ["untrust"], "action": "allow"},
    ],
    "nat-rules": [
        {
            "name": f"hide-{net.family}",
            "nat-type": net.family,
            "from": ["trust"],
            "to": "untrust",
            "source-translation": {"type": "dynamic-ip-and-port", "interface": "out0"},
        }
        for net in BOTH
    ],
    "settings": IN_ORDER,
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(client_addresses=[net.other for net in BOTH], mtu=(1500, NARROW)) as made:
        yield made


@pytest.fixture(scope="module", params=["plain", "ours"])
def firewall(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Firewall | None]:
    """What stands in the middle; None: the kernel alone."""
    if request.param == "plain":
        yield None
        return
    with lab.firewall(CONFIG) as running:
        yield running


@pytest.fixture(params=BOTH, ids=lambda net: net.family)
def net(request: pytest.FixtureRequest) -> Net:
    chosen: Net = request.param
    return chosen


class Server:
    """A UDP socket at the server, and the datagrams that tests send it."""

    def __init__(self, lab: Lab, net: Net) -> None:
        self._lab, self._net = lab, net
        self._socket = lab.udp("server", 0, net.any)
        self.port = int(self._socket.getsockname()[1])

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def receives(self, payload: bytes) -> str:
        """The next datagram is this one; who sent it."""
        received, peer = self._socket.recvfrom(10000)
        assert received == payload
        return str(peer[0])

    def receives_nothing_before(self, payload: bytes = b"control") -> None:
        """A whole datagram that is sent now is the first to arrive."""
        self._lab.inject("client", datagram(self._net, self.port, payload, sport=4999))
        self.receives(payload)


@pytest.fixture
def server(lab: Lab, net: Net) -> Iterator[Server]:
    with Server(lab, net) as made:
        yield made


# What is sent


def datagram(net: Net, dport: int, payload: bytes, source: str = "", sport: int = 4000) -> Packet:
    ip = IP(src=source or net.client, dst=net.server) if net is V4 else IPv6(src=source or net.client, dst=net.server)
    return type(ip)(bytes(ip / UDP(sport=sport, dport=dport) / Raw(payload)))


def piece(whole: Packet, number: int, first: int, data: bytes, more: bool) -> Packet:
    """One fragment of `whole`: `data` lies `first` bytes behind the IP header."""
    if isinstance(whole, IP):
        flags = "MF" if more else 0
        header = IP(src=whole.src, dst=whole.dst, proto=whole.proto, id=number, frag=first // 8, flags=flags)
        return header / Raw(data)
    fragment = IPv6ExtHdrFragment(nh=whole.nh, id=number, offset=first // 8, m=more)
    return IPv6(src=whole.src, dst=whole.dst) / fragment / Raw(data)


def cut(whole: Packet, number: int, size: int = PIECE, head: int = 0) -> list[Packet]:
    """`whole` in fragments of `size` bytes, the first one of `head` if given; both multiples of eight."""
    body = bytes(whole.payload)
    starts = [0, *range(head or size, len(body), size)]
    return [
        piece(whole, number, start, body[start:end], end < len(body))
        for start, end in zip(starts, [*starts[1:], len(body)], strict=True)
    ]


def shuffled(pieces: Sequence[Packet]) -> list[Packet]:
    return random.Random(1).sample(pieces, len(pieces))


Mangle = Callable[[list[Packet]], list[Packet]]

ORDERS: dict[str, Mangle] = {
    "in-order": lambda pieces: pieces,
    "backwards": lambda pieces: pieces[::-1],
    "shuffled": shuffled,
    "each-twice": lambda pieces: [twin for piece in pieces for twin in (piece, piece)],
    "last-first": lambda pieces: [pieces[-1], *pieces[:-1]],
}


def missing(index: int) -> Mangle:
    return lambda pieces: pieces[:index] + pieces[index + 1 :]


def overlapping(at: int, position: int) -> Mangle:
    """A piece that lies over the bytes from `at` on, sent in that place."""

    def mangle(pieces: list[Packet]) -> list[Packet]:
        first = pieces[0]
        if isinstance(first, IP):
            whole, number = IP(src=first.src, dst=first.dst, proto=17), first.id
        else:
            whole, number = IPv6(src=first.src, dst=first.dst, nh=17), first[IPv6ExtHdrFragment].id
        over = piece(whole, number, at, b"OVERLAP!" * 16, True)
        return [*pieces[:position], over, *pieces[position:]]

    return mangle


BROKEN: dict[str, Mangle] = {
    "no-first": missing(0),
    "no-middle": missing(2),
    "no-last": lambda pieces: pieces[:-1],
    "overlap-behind": overlapping(PIECE - 64, 1),
    "overlap-before": lambda pieces: overlapping(PIECE - 64, len(pieces) - 1)(pieces[::-1]),
}
COVERED: dict[str, Mangle] = {
    "header-again": overlapping(8, 1),
    "middle-again": overlapping(PIECE + 64, 2),
    "two-again": overlapping(PIECE - 64, 2),
}


def fragments(frames: Sequence[Frame]) -> list[Frame]:
    return [frame for frame in frames if IPv6ExtHdrFragment in frame.packet or is_fragment4(frame.packet)]


def is_fragment4(packet: Packet) -> bool:
    return IP in packet and bool(packet[IP].flags.MF or packet[IP].frag)


# Tests


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("size", "head"), [(PIECE, 0), (1352, 0), (PIECE, 8), (8, 0)])
def test_an_allowed_datagram_arrives_whole(lab, firewall, net, server, order, size, head):
    """In whatever order and size its pieces come, tiny ones that split the transport header included."""
    payload = PAYLOAD if size > 8 else PAYLOAD[:200]
    pieces = ORDERS[order](cut(datagram(net, server.port, payload), 1, size, head))
    lab.inject("client", *pieces)
    assert server.receives(payload) == (net.outside if firewall else net.client)


@pytest.mark.parametrize("flaw", BROKEN)
def test_a_datagram_that_is_not_whole_does_not_arrive(lab, firewall, net, server, flaw):
    """With a piece missing, or one laid over others (RFC 5722, and the kernel's own choice for IPv4); nothing of it
    crosses the firewall, and the next datagram with that number is itself again."""
    whole = datagram(net, server.port, PAYLOAD)
    number = 100 + list(BROKEN).index(flaw)
    with lab.capture("server", "eth0", f"src not {net.server} and (udp or ip6[6] = 44)") as capture:
        lab.inject("client", *BROKEN[flaw](cut(whole, number)))
        server.receives_nothing_before()
        if firewall:
            assert len(capture.received()) == 1
    lab.inject("client", *cut(whole, number + 500))
    server.receives(PAYLOAD)


@pytest.mark.parametrize("other", COVERED)
def test_what_has_come_is_not_overwritten(lab, firewall, net, server, other):
    """A piece that lies wholly in what has come is what the kernel calls a duplicate: the first one counts."""
    lab.inject("client", *COVERED[other](cut(datagram(net, server.port, PAYLOAD), 150)))
    server.receives(PAYLOAD)


@pytest.mark.parametrize("order", [*ORDERS, *BROKEN, *COVERED])
def test_nothing_of_a_denied_datagram_leaks(lab, firewall, net, server, order):
    """Neither whole nor in pieces, tiny ones included; plain forwarding lets them pass."""
    whole = datagram(net, DENIED, MARKER)
    with lab.capture("server", "eth0", "udp or ip proto 17 or ip6") as capture:
        for number, (size, head) in enumerate([(PIECE // 4, 0), (PIECE // 4, 8), (8, 0)]):
            pieces = cut(whole, 200 + number, size, head)
            lab.inject("client", whole, *(ORDERS | BROKEN | COVERED)[order](pieces))
        server.receives_nothing_before()
        leaked = [frame for frame in capture.received() if b"SECRET" in frame.data or b"OVERLAP" in frame.data]
        assert bool(leaked) == (firewall is None)


def test_two_hosts_with_the_same_number_at_once(lab, firewall, net, server):
    """Behind one translated address, their pieces interleaved: both datagrams stay themselves."""
    ours, theirs = PAYLOAD, PAYLOAD[::-1]
    for number in range(300, 320):
        one = cut(datagram(net, server.port, ours), number)
        two = cut(datagram(net, server.port, theirs, net.other), number)
        lab.inject("client", *(piece for pair in zip(one, two, strict=True) for piece in pair))
        server.receives(ours)
        server.receives(theirs)


def test_a_big_datagram_leaves_in_pieces_that_fit(lab, firewall, net, server):
    """What came in pieces goes in pieces, none larger than the way out takes, nor (IPv6) than it came."""
    with lab.capture("server", "eth0", f"dst {net.server}") as capture:
        lab.inject("client", *cut(datagram(net, server.port, PAYLOAD), 400, 1352))
        server.receives(PAYLOAD)
        pieces = fragments(capture.received())
    assert len(pieces) >= 3
    assert max(len(frame.data) for frame in pieces) <= NARROW + 14


def test_an_uncut_datagram_is_cut_where_it_may_be(lab, firewall, server, net):
    """1,480 bytes without DF cross a link of 1,400 in two pieces; IPv6 routers cut nothing."""
    if net is V6:
        pytest.skip("no router cuts IPv6")
    payload = PAYLOAD[:1452]
    lab.inject("client", datagram(net, server.port, payload))
    server.receives(payload)


def may_not_be_cut(packet: Packet) -> Packet:
    made = IP(bytes(packet))
    made.flags, made.chksum = int(made.flags) | 2, None
    return made


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "in-pieces"])
def test_who_may_not_be_cut_is_told(lab, firewall, net, server, pieces):
    """DF, and all of IPv6: the error names the narrow link and quotes what the sender sent."""
    whole = datagram(net, server.port, PAYLOAD if pieces else PAYLOAD[:1400])
    sent = cut(whole, 401, 1440) if pieces else [whole]
    if net is V4:
        sent = [may_not_be_cut(part) for part in sent]
    with lab.capture("client", "eth0", f"{net.icmp} and dst {net.client}") as capture:
        lab.inject("client", *sent)
        error = capture.wait(1)[0].packet
    if net is V4:
        assert (error[ICMP].type, error[ICMP].code, error[ICMP].nexthopmtu) == (3, 4, NARROW)
    else:
        assert error[ICMPv6PacketTooBig].mtu == NARROW
    quoted = bytes(error[ICMP].payload if net is V4 else error[ICMPv6PacketTooBig].payload)
    assert bytes(whole)[12:20] in quoted if net is V4 else bytes(whole)[8:40] in quoted
    server.receives_nothing_before()


# Last: the kernel keeps orphans for up to a minute, and takes no other pieces once they fill its memory.


def test_orphans_do_not_hurt_whole_packets(lab, firewall, net, server):
    """More fragments than the kernel keeps, none of which will ever be whole; they do not cross either."""
    if firewall is None:
        pytest.skip("forwarding alone keeps no fragments")
    orphans = list(orphan_fragments(datagram(net, server.port, bytes(ORPHAN_BYTES))))
    before = counters(firewall)["flow_parse_ip_frag"]
    with lab.capture("server", "eth0", "ip[6:2] & 0x1fff != 0 or ip6[6] = 44") as capture:
        for first in range(0, ORPHANS, BATCH):
            lab.inject("client", *orphans[first : first + BATCH])
            server.receives_nothing_before()
        assert capture.received() == []
    assert counters(firewall)["flow_parse_ip_frag"] == before


def orphan_fragments(whole: Packet) -> Iterator[bytes]:
    """A second fragment of each of ORPHANS datagrams."""
    sample = bytes(piece(whole, 0, 8, bytes(whole.payload)[8:], True))
    for number in range(ORPHANS):
        if sample[0] >> 4 == 6:
            yield sample[:44] + number.to_bytes(4, "big") + sample[48:]
            continue
        header = sample[:4] + number.to_bytes(2, "big") + sample[6:10] + bytes(2) + sample[12:20]
        checksum = ~ones_complement(header) & 0xFFFF
        yield header[:10] + checksum.to_bytes(2, "big") + header[12:] + sample[20:]
