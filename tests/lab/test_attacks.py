"""Hostile packets against the live daemon, from both sides, while sessions with translation are there.

A packet that must not pass proves nothing if nobody would have delivered it: where plain forwarding delivers it, a
control run says so. What harms nobody is shown by controls before and after, by the sessions that go on, and by the
pid.
"""

import random
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Packet, Raw

from dataplane.rules import MARK_OWN
from tests.lab.capture import ones_complement
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, CLIENT6, IN0, IN06, OUT0, OUT06, SERVER, SERVER6, Lab, poll
from tests.lab.witness import (
    DENIED_PORT,
    SHORT_TIMEOUTS,
    Controls,
    Established,
    arrives,
    config,
    drop_counters,
    queues,
    quiet,
    received_packets,
    resident,
)

INSIDE, OUTSIDE = "10.1.0.200", "10.2.0.200"  # phantoms: only the test speaks for them
HOSTS = [f"10.1.0.{number}" for number in range(10, 18)]  # further addresses of the client
LIMIT = 20 << 20  # bytes of memory that an attack may leave behind
MIDDLE = 0x80000000  # half of the sequence numbers away


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(client_phantoms=[INSIDE], server_phantoms=[OUTSIDE], client_addresses=HOSTS) as made:
        yield made


@pytest.fixture(scope="module")
def controls(lab: Lab) -> Controls:
    return Controls(lab)


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(config({"tcp-time-wait": 1})) as made:
        yield made


@pytest.fixture
def established(lab: Lab, firewall: Firewall) -> Iterator[Established]:
    made = Established(lab)
    yield made
    made.close()


class Counted:
    """How much each drop counter has grown since the beginning."""

    def __init__(self, firewall: Firewall) -> None:
        self._firewall = firewall
        self._before = drop_counters(firewall)

    def grown(self) -> dict[str, int]:
        after = drop_counters(self._firewall)
        return {name: value - self._before[name] for name, value in after.items() if value != self._before[name]}

    def wait(self, **expected: int) -> None:
        """Until exactly these have grown, by so much; LabError otherwise."""
        poll(lambda: self.grown() == expected, 3, f"{expected}")


def assert_dropped(lab: Lab, firewall: Firewall, ns: str, packets: Sequence[Packet], **counters: int) -> None:
    """None of these packets reaches the other side, and each is counted where it should be."""
    other = "server" if ns == "client" else "client"
    counted = Counted(firewall)
    with lab.capture(other, "eth0", "ip or (ip6 and not ip6 multicast and not (icmp6 and ip6[40] >= 130))") as capture:
        lab.inject(ns, *packets)
        counted.wait(**counters)
        assert [frame.packet.summary() for frame in capture.received()] == []


# A connection under attack


class Connection:
    """The established stream as an attacker who can see it knows it: its tuples on both sides, its numbers."""

    def __init__(self, lab: Lab, established: Established) -> None:
        self.lab, self.established = lab, established
        stream = f"tcp port {established.server.getsockname()[1]}"
        with lab.capture("client", "eth0", stream) as here, lab.capture("server", "eth0", stream) as there:
            established.exchange_stream()
            frames = here.wait(3), there.wait(3)
            poll(lambda: quiet(established.client, established.server), 3, "the last acknowledgement")
        self.last = {
            "client": next(frame.packet for frame in reversed(frames[0]) if frame.outgoing),
            "server": next(frame.packet for frame in reversed(frames[1]) if frame.outgoing),
        }

    def forge(self, ns: str, flags: str, seq: int = 0, ack: int = 0, data: bytes = b"", **fields: Any) -> Packet:
        """A segment that claims to come from that end; seq, ack: distance from the next ones expected."""
        last = self.last[ns]
        numbers = {
            "seq": (last[TCP].seq + len(last[TCP].payload) + seq) % 2**32,
            "ack": (last[TCP].ack + ack) % 2**32,
        }
        addresses = IP(src=last[IP].src, dst=last[IP].dst)
        return (
            addresses
            / TCP(sport=last[TCP].sport, dport=last[TCP].dport, flags=flags, window=500, **numbers, **fields)
            / Raw(data)
        )


@pytest.fixture
def connection(lab: Lab, established: Established) -> Connection:
    return Connection(lab, established)


@pytest.mark.parametrize("ns", ["client", "server"])
def test_segments_outside_the_window_reach_nobody(lab, firewall, controls, connection, ns):
    """Blind resets, ends, data and acknowledgements are dropped and counted; the transfer goes on."""
    with controls.unharmed(firewall):
        far = (MIDDLE, -MIDDLE // 2, 1 << 30)
        resets = [connection.forge(ns, flags, seq=seq) for seq in far for flags in ("R", "RA")]
        assert_dropped(lab, firewall, ns, resets, tcp_drop_rst_out_of_wnd=len(resets))
        others = [connection.forge(ns, flags, seq=seq, data=b"evil") for seq in far for flags in ("A", "PA", "FA")]
        others += [connection.forge(ns, "A", ack=ack, data=b"evil") for ack in (1000, MIDDLE, -(1 << 30))]
        assert_dropped(lab, firewall, ns, others, tcp_drop_out_of_wnd=len(others))
        connection.established.exchange()


@pytest.mark.parametrize("ns", ["client", "server"])
def test_a_syn_on_a_connection_changes_nothing(lab, firewall, controls, connection, ns):
    """The host itself answers it with a challenge; numbers, timer and port stay."""
    with controls.unharmed(firewall):
        lab.inject(ns, *[connection.forge(ns, "S", seq=seq) for seq in (0, MIDDLE, 12345)])
        connection.established.exchange()
        (session,) = firewall.sessions(source_port=connection.established.client.getsockname()[1], protocol=6)
        assert session["timeout"] == 3600


@pytest.mark.parametrize("ns", ["client", "server"])
def test_a_reset_inside_the_window_ends_nothing(lab, firewall, controls, connection, ns):
    """The host challenges it; the session waits on a short timer until the next data."""
    port = connection.established.client.getsockname()[1]
    with controls.unharmed(firewall):
        before = firewall.counter("tcp_rst_unverified")
        lab.inject(ns, connection.forge(ns, "R", seq=100))
        poll(lambda: firewall.counter("tcp_rst_unverified") > before, 3, "the reset to be seen")
        connection.established.exchange()
        (session,) = firewall.sessions(source_port=port, protocol=6)
        assert session["timeout"] == 3600


@pytest.mark.parametrize("ns", ["client", "server"])
def test_a_segment_with_a_wrong_checksum_ends_nothing(lab, firewall, controls, connection, ns):
    """Resets and ends that the host would ignore do not close the session either."""
    with controls.unharmed(firewall):
        forged = [connection.forge(ns, flags, chksum=0x1234) for flags in ("R", "RA", "FA", "A")]
        assert_dropped(lab, firewall, ns, forged, flow_parse_l4_cksm=len(forged))
        connection.established.exchange()


def test_a_spoofed_end_from_the_wrong_side(lab, firewall, controls, connection):
    """The client's own exact reset, sent from outside: another zone is another flow."""
    with controls.unharmed(firewall):
        forged = [connection.forge("client", "R"), connection.forge("client", "FA")]
        assert_dropped(lab, firewall, "server", forged, flow_tcp_non_syn_drop=2)
        connection.established.exchange()


@pytest.mark.parametrize("ns", ["client", "server"])
def test_icmp_errors_end_nothing(lab, firewall, controls, connection, ns):
    """Unreachables with an exact quote reach the host and end neither session nor connection; those with a wrong
    quote, or from the wrong side, reach nobody."""
    other = {"client": "server", "server": "client"}[ns]
    seen = connection.last[other].copy()  # as it arrived at ns, after translation
    quote = IP(src=connection.last[ns][IP].dst, dst=connection.last[ns][IP].src) / TCP(
        sport=connection.last[ns][TCP].dport, dport=connection.last[ns][TCP].sport, seq=seen[TCP].seq
    )
    attacker = IP(src=quote[IP].dst, dst=quote[IP].src)
    with controls.unharmed(firewall):
        before = firewall.counter("pkt_icmp_error")
        lab.inject(ns, *[attacker / ICMP(type=3, code=code) / quote for code in (0, 1, 3, 13)])
        poll(lambda: firewall.counter("pkt_icmp_error") == before + 4, 3, "the errors to be delivered")
        wrong = [attacker / ICMP(type=3, code=1) / forged(quote, **fields) for fields in WRONG_QUOTES]
        assert_dropped(lab, firewall, ns, wrong, flow_icmp_error_no_session=len(wrong))
        mirrored = IP(src=quote[IP].src, dst=quote[IP].dst) / ICMP(type=3, code=1) / quote
        assert_dropped(lab, firewall, other, [mirrored], flow_icmp_error_no_session=1)
        connection.established.exchange()


WRONG_QUOTES: list[dict[str, Any]] = [
    {"sport": 1},
    {"dport": 1},
    {"src": "10.9.9.9"},
    {"dst": "10.9.9.9"},
    {"proto": 17},
]


def forged(quote: Packet, **fields: Any) -> Packet:
    """A copy with some fields of either header set."""
    made = quote.copy()
    for name, value in fields.items():
        setattr(made[IP] if name in ("src", "dst", "proto") else made[TCP], name, value)
    return made


# Packets of nobody's session


@pytest.mark.parametrize("ns", ["client", "server"])
def test_segments_that_begin_nothing(lab, firewall, controls, ns):
    """SYN-ACK, ACK, FIN, data and RST without a connection; no flag at all; flags that contradict each other."""
    source, target = (CLIENT, SERVER) if ns == "client" else (SERVER, CLIENT)
    packets = [IP(src=source, dst=target) / TCP(sport=5000, dport=80, flags=flags) for flags in FLAGS]
    with controls.unharmed(firewall):
        assert_dropped(lab, firewall, ns, packets, flow_tcp_non_syn_drop=6, tcp_flag_zero=1, tcp_flag_invalid=5)


FLAGS = ("SA", "A", "FA", "PA", "R", "RA", "F", "FPU", "", "SF", "SR", "SRFA")


@pytest.mark.parametrize("ns", ["client", "server"])
def test_a_packet_to_its_own_sender(lab, firewall, controls, ns):
    """The land attack in both families, on the firewall's own addresses, too."""
    packets: list[Packet] = [
        IP(src=host, dst=host) / TCP(sport=80, dport=80, flags="S") for host in (SERVER, OUT0, IN0)
    ]
    packets += [IPv6(src=host, dst=host) / UDP(sport=80, dport=80) for host in (SERVER6, CLIENT6)]
    with controls.unharmed(firewall):
        assert_dropped(lab, firewall, ns, packets, flow_parse_land=len(packets))


def test_spoofed_sources(lab, firewall, controls):
    """A source that lies behind another interface, or is the firewall's own, opens nothing."""
    from_outside = [
        IP(src=CLIENT, dst="10.1.0.10") / TCP(sport=4000, dport=80, flags="S"),
        IP(src="10.1.0.77", dst=CLIENT) / TCP(sport=4000, dport=80, flags="S"),
        IP(src=CLIENT, dst=OUT0) / ICMP(),
        IP(src=IN0, dst=CLIENT) / TCP(sport=4000, dport=80, flags="S"),
        IP(src=OUT0, dst=CLIENT) / TCP(sport=4000, dport=80, flags="S"),
        IP(src="10.2.0.255", dst=CLIENT) / TCP(sport=4000, dport=80, flags="S"),
        IPv6(src=CLIENT6, dst=SERVER6) / UDP(sport=4000, dport=53),
        IPv6(src=OUT06, dst=CLIENT6) / TCP(sport=4000, dport=80, flags="S"),
    ]
    from_inside = [
        IP(src=SERVER, dst="10.2.0.77") / UDP(sport=4000, dport=53),
        IP(src="10.2.0.77", dst=SERVER) / TCP(sport=4000, dport=80, flags="S"),
        IP(src=IN0, dst=SERVER) / UDP(sport=4000, dport=53),
        IP(src="192.0.2.77", dst=SERVER) / UDP(sport=4000, dport=53),  # no route leads there
        IPv6(src=IN06, dst=SERVER6) / UDP(sport=4000, dport=53),
        IPv6(src="2001:db8::77", dst=SERVER6) / UDP(sport=4000, dport=53),
    ]
    with controls.unharmed(firewall):
        before = len(firewall.sessions())
        assert_dropped(lab, firewall, "server", from_outside, flow_ip_spoof=len(from_outside))
        assert_dropped(lab, firewall, "client", from_inside, flow_ip_spoof=len(from_inside))
        assert len(firewall.sessions()) <= before


def test_a_port_scan_and_a_syn_flood(lab, firewall, controls, established):
    """Thousands of connections that are never made: nobody who is there notices, and nothing is left of them."""
    scan = syns([(CLIENT, 40000)] * 3000, SERVER, range(1, 3001))
    spoofed = [(f"10.1.0.{random.randrange(20, 250)}", random.randrange(1024, 65536)) for _ in range(10000)]
    with controls.unharmed(firewall):
        for packets in (scan, syns(spoofed, OUTSIDE, [443] * len(spoofed))):
            for first in range(0, len(packets), 500):
                lab.inject("client", *packets[first : first + 500])
                established.exchange()
    firewall.cli("clear", "session", "all", "filter", "destination-port", "443")
    poll(lambda: firewall.json("show", "session", "info")["num_tcp"] < 20, 20, "the attempts to expire")
    established.exchange()


def whole(packet: bytes) -> bytes:
    """An IPv4 packet with its length and header checksum as they should be."""
    header = packet[:2] + struct.pack("!H", len(packet)) + packet[4:10] + b"\0\0" + packet[12 : (packet[0] & 15) * 4]
    return header[:10] + struct.pack("!H", ~ones_complement(header) & 0xFFFF) + header[12:] + packet[len(header) :]


def syns(sources: Sequence[tuple[str, int]], destination: str, ports: Sequence[int]) -> list[bytes]:
    """A SYN of each source (address, port) to the port at the same place."""
    packets = []
    for (address, sport), dport in zip(sources, ports, strict=True):
        addresses = socket.inet_aton(address) + socket.inet_aton(destination)
        tcp = struct.pack("!HHIIBBHHH", sport, dport, random.getrandbits(32), 0, 5 << 4, 2, 1024, 0, 0)
        packets.append(whole(b"\x45" + bytes(7) + b"\x40\x06\0\0" + addresses + tcp))
    return packets


# Fragments


def test_nothing_of_a_denied_datagram_leaks(lab, firewall, controls):
    """Whole, in fragments of every size and order, with a fragment missing, twice, or another one laid over the
    header: not one byte of it reaches the server. Of an allowed one everything does, once."""
    marker = b"SECRET--" * 40
    denied = IP(src=CLIENT, dst=SERVER, id=7) / UDP(sport=4000, dport=DENIED_PORT) / marker
    allowed = IP(src=CLIENT, dst=SERVER, id=9) / UDP(sport=4000, dport=4001) / marker
    server = lab.udp("server", 4001)
    with controls.unharmed(firewall), lab.capture("server", "eth0", "ip proto 17") as capture:
        for number, variant in enumerate(mangled(denied)):
            lab.inject("client", *[renumbered(piece, 1000 + number) for piece in variant])
        lab.inject("client", *reversed(fragment(allowed, 64)))
        assert server.recv(1000) == marker
        assert {frame.packet[UDP].dport for frame in capture.received() if UDP in frame.packet} == {4001}
        assert sum(len(frame.data) for frame in capture.received()) < 2 * len(marker)


def mangled(datagram: Packet) -> list[list[Packet]]:
    """The datagram cut into fragments in the ways that have fooled firewalls."""
    small, tiny = fragment(datagram, 64), fragment(datagram, 8)
    harmless = IP(src=datagram.src, dst=datagram.dst, flags="MF") / Raw(bytes(UDP(sport=4000, dport=4001, len=328)))
    harmless.proto = 17
    return [
        small,
        tiny,
        small[::-1],
        tiny[::-1],
        small[1:],  # the header is missing
        small[:-1],
        small[:1] + small[2:],
        small + small,
        [harmless, *small],  # another header first
        [*small[:1], harmless, *small[1:]],
        [*small[1:], harmless, small[0]],
    ]


def renumbered(piece: Packet, number: int) -> Packet:
    made = piece.copy()
    made.id = number
    return made


def test_orphan_fragments_cost_nothing(lab, firewall, controls, established):
    """A thousand fragments whose rest never comes keep neither packets nor fragmented datagrams from passing."""
    last = bytes(IP(src=CLIENT, dst=SERVER, frag=100, proto=17) / Raw(bytes(64)))
    orphans = [last[:4] + struct.pack("!H", number) + last[6:] for number in range(1000)]
    with controls.unharmed(firewall):
        lab.inject("client", *[whole(packet) for packet in orphans])
        established.exchange()
        client, server = lab.udp("client"), lab.udp("server")
        client.sendto(bytes(4000), (SERVER, server.getsockname()[1]))
        assert len(server.recv(5000)) == 4000


# One host takes everything


def test_a_host_that_takes_every_port_harms_only_its_own_address():
    """Of two pool addresses it can exhaust the one that its own address leads to; others' ports are left."""
    settings = config()
    pool = {"type": "dynamic-ip-and-port", "addresses": ["10.2.0.100-10.2.0.101"], "port-range": "2000-2199"}
    settings["nat-rules"][0]["source-translation"] = pool
    with Lab(client_addresses=HOSTS) as lab, lab.firewall(settings) as firewall:
        server = lab.udp("server", 9)
        outside = {host: outside_address(lab, server, host) for host in HOSTS}
        assert set(outside.values()) == {"10.2.0.100", "10.2.0.101"}
        greedy = HOSTS[0]
        victim = next(host for host in HOSTS if outside[host] != outside[greedy])
        old = lab.udp("client", 0, greedy)
        assert arrives(old, server)
        counted = Counted(firewall)
        packets = [bytes(IP(src=greedy, dst=SERVER) / UDP(sport=port, dport=9)) for port in range(1024, 1424)]
        lab.inject("client", *packets)
        poll(lambda: counted.grown().get("nat_dipp_alloc_failure", 0) >= 200, 3, "the pool to be exhausted")
        assert not arrives(lab.udp("client", 0, greedy), server, 0.2)
        assert arrives(old, server)
        for _ in range(20):
            assert arrives(lab.udp("client", 0, victim), server)
        (shown,) = firewall.json("show", "running", "ippool")
        assert 200 < shown["used"] < 400


def outside_address(lab: Lab, server: socket.socket, host: str) -> str:
    """The address behind which the server sees a host of the client's side."""
    with lab.udp("client", 0, host) as client:
        client.sendto(b"?", (SERVER, server.getsockname()[1]))
        return str(server.recvfrom(10)[1][0])


# A corpus of broken packets

PER_SIDE = 100_000
BATCH = 500
WAITING = 2000  # packets in the slow queue at which the sender pauses, so that the corpus is decided and not lost
ERRORS = {"iptables": (3, 4, 5, 11, 12), "ip6tables": (1, 2, 3, 4)}  # that we look at when our own kernel makes them
INTERESTING = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 20, 39, 40, 41, 58, 63, 64, 127, 128, 129, 200, 254, 255)


@dataclass(frozen=True)
class Corpus:
    """Packets to be sent from one end."""

    ns: str
    packets: list[bytes]


def corpus(ns: str, whole_packets: Sequence[bytes], rng: random.Random) -> Corpus:
    """PER_SIDE mutated packets; one in a batch is whole."""
    packets = [mutated(rng, whole_packets) for _ in range(PER_SIDE)]
    packets[::BATCH] = [rng.choice(whole_packets) for _ in packets[::BATCH]]
    return Corpus(ns, packets)


def deliver(lab: Lab, corpora: Sequence[Corpus], established: Established) -> list[int]:
    """Send them, no faster than the slow path decides; what has arrived at the other end of each."""
    others = [{"client": "server", "server": "client"}[each.ns] for each in corpora]
    before = [received_packets(lab, ns) for ns in others]
    for first in range(0, PER_SIDE, BATCH):
        for each in corpora:
            lab.inject(each.ns, *each.packets[first : first + BATCH])
        poll(lambda: all(queue.waiting < WAITING for queue in queues(lab).values()), 10, "the queues to empty")
        established.exchange()
    return [received_packets(lab, ns) - count for ns, count in zip(others, before, strict=True)]


def idle_sessions(firewall: Firewall) -> int:
    return int(firewall.json("show", "session", "info")["num_active"])


def seeds(source: str, target: str, source6: str, target6: str, ports: tuple[int, int]) -> list[bytes]:
    """Whole packets of every kind that the firewall parses; ports are those of a live session."""
    sport, dport = ports
    v4, v6 = IP(src=source, dst=target), IPv6(src=source6, dst=target6)
    tcp, udp = TCP(sport=sport, dport=dport, seq=1000, ack=2000, flags="PA"), UDP(sport=sport, dport=dport)
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
    quoted = IP(src=target, dst=source) / UDP(sport=dport, dport=sport) / Raw(bytes(8))
    quoted6 = IPv6(src=target6, dst=source6) / UDP(sport=dport, dport=sport) / Raw(bytes(8))
    return [
        bytes(packet)
        for packet in (
            v4 / tcp / Raw(b"data" * 5),
            v4 / TCP(sport=sport, dport=80, flags="S", options=options),
            v4 / TCP(sport=sport, dport=DENIED_PORT, flags="S"),
            v4 / udp / Raw(b"data" * 5),
            v4 / ICMP(id=sport) / Raw(b"data" * 5),
            v4 / ICMP(type=3, code=3) / quoted,
            v4 / ICMP(type=11) / quoted,
            IP(src=source, dst=target, options=b"\x07\x07\x04\0\0\0\0\0") / udp / Raw(b"options"),
            IP(src=source, dst=target, flags="MF") / udp / Raw(b"fragment"),
            IP(src=source, dst=target, proto=50) / Raw(bytes(30)),
            IP(src=source, dst=target, proto=4) / v4 / udp,
            v6 / tcp / Raw(b"data" * 5),
            v6 / udp / Raw(b"data" * 5),
            v6 / ICMPv6EchoRequest(id=sport, data=b"data"),
            v6 / ICMPv6DestUnreach() / quoted6,
            v6 / ICMPv6PacketTooBig(mtu=1280) / quoted6,
            v6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / udp / Raw(b"headers"),
            v6 / IPv6ExtHdrRouting(addresses=[target6]) / udp / Raw(b"routing"),
            v6 / IPv6ExtHdrFragment(offset=0, m=1, id=5) / udp / Raw(b"fragment"),
            v6 / IPv6ExtHdrFragment(offset=100, m=0, id=6) / Raw(b"fragment"),
        )
    ]


def mutated(rng: random.Random, whole_packets: Sequence[bytes]) -> bytes:
    """One packet: cut, lengthened, overwritten, spliced or random; mended often enough to get past the first checks."""
    packet = bytearray(rng.choice(whole_packets))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(packet))
        packet[at] = rng.choice(INTERESTING) if rng.random() < 0.5 else rng.randrange(256)
    shape = rng.random()
    if shape < 0.15:
        del packet[rng.randrange(1, len(packet)) :]
    elif shape < 0.25:
        packet += rng.randbytes(rng.randrange(1, 200))
    elif shape < 0.35:
        other = rng.choice(whole_packets)
        packet = packet[: rng.randrange(1, len(packet))] + other[rng.randrange(len(other)) :]
    elif shape < 0.40:
        packet = bytearray(packet[:1] + rng.randbytes(rng.randrange(1, 120)))
    return mended(bytes(packet), checksum=rng.random() < 0.8) if rng.random() < 0.85 else bytes(packet)


def mended(packet: bytes, checksum: bool) -> bytes:
    """With the lengths and, if wanted, the checksums that kernel and parser look at first, where there is room."""
    if packet[0] >> 4 == 6 and len(packet) >= 40:
        packet = packet[:4] + struct.pack("!H", len(packet) - 40) + packet[6:]
        return with_checksum(packet, 40, packet[6], packet[8:40]) if checksum else packet
    header = (packet[0] & 15) * 4
    if packet[0] >> 4 != 4 or not 20 <= header <= len(packet):
        return packet
    return with_checksum(whole(packet), header, packet[9], packet[12:20]) if checksum else whole(packet)


def with_checksum(packet: bytes, header: int, protocol: int, addresses: bytes) -> bytes:
    """The transport checksum made right, for a transport header that follows the IP header of that length."""
    place = {6: 16, 17: 6, 1: 2, 58: 2}.get(protocol)
    if place is None or len(packet) < header + place + 2:
        return packet
    at, body = header + place, packet[header:]
    pseudo = b"" if protocol == 1 else addresses + struct.pack("!II", len(body), protocol)
    total = ones_complement(pseudo + body[:place] + b"\0\0" + body[place + 2 :])
    return packet[:at] + struct.pack("!H", ~total & 0xFFFF) + packet[at + 2 :]


def translated(packet: bytes, source: str, target: str) -> bytes:
    """An IPv4 packet to `source`, if it is one, sent to `target` instead."""
    if packet[0] >> 4 != 4 or packet[16:20] != socket.inet_aton(source):
        return packet
    changed = packet[:16] + socket.inet_aton(target) + packet[20:]
    return whole(changed) if len(changed) >= (changed[0] & 15) * 4 >= 20 else changed


def assert_every_packet_was_decided(lab: Lab, firewall: Firewall) -> None:
    """The kernel's count of what it queued is ours of what we took, and nothing waits for a verdict."""

    def settled() -> bool:
        kernel = queues(lab)
        *hot, slow = (kernel[number].packets for number in sorted(kernel))
        counted = firewall.counter("pkt_recv"), firewall.counter("pkt_punt")
        return counted == (sum(hot), slow) and not any(queue.waiting for queue in kernel.values())

    poll(settled, 5, "every packet to be decided")


@contextmanager
def counted_arrivals(lab: Lab) -> Iterator[None]:
    """Rules without a target in the table raw: a packet passes them before it comes to ours, and only once."""
    rules = []
    for tool, kinds in ERRORS.items():
        icmp = "icmp" if tool == "iptables" else "icmpv6"
        outward = ["-o in0", "-o out0", *(f"-o lo -p {icmp} --{icmp}-type {kind}" for kind in kinds)]
        rules += [(tool, f"PREROUTING -i {name}") for name in ("in0", "out0")]
        rules += [(tool, f"OUTPUT -m mark ! --mark {MARK_OWN:#x}/{MARK_OWN:#x} {match}") for match in outward]
    for tool, rule in rules:
        lab.run("firewall", [tool, "-t", "raw", "-A", *rule.split()], check=True)
    yield
    for tool, rule in rules:
        lab.run("firewall", [tool, "-t", "raw", "-D", *rule.split()], check=True)


def arrivals(lab: Lab) -> int:
    """Packets that these rules have counted."""
    total = 0
    for tool in ERRORS:
        lines = lab.run("firewall", [f"{tool}-save", "-c", "-t", "raw"], check=True).stdout.splitlines()
        rules = [line for line in lines if " -A " in line and " -j " not in line]
        total += sum(int(line[1:].split(":")[0]) for line in rules)
    return total


def links_without_strangers(lab: Lab) -> None:
    """Of each IPv6 link only the first four addresses are on it: the kernel has one table of neighbours for all
    namespaces, and each of a thousand invented ones that nobody answers for would keep others out of it."""
    links = {"client": {1: "eth0"}, "firewall": {1: "in0", 2: "out0"}, "server": {2: "eth0"}}
    for ns, devices in links.items():
        for number, device in devices.items():
            lab.run(ns, ["ip", "route", "add", "blackhole", f"fd00:{number}::/64", "metric", "1"], check=True)
            lab.run(ns, ["ip", "route", "add", f"fd00:{number}::/126", "dev", device], check=True)


def departures(firewall: Firewall) -> int:
    """Packets that were delivered, and that were dropped for one reason each."""
    return firewall.counter("pkt_sent") + sum(drop_counters(firewall).values())


def under_way(lab: Lab, firewall: Firewall) -> int:
    """Packets that have come and not gone, beside those from before the rules; once it is the same twice."""
    seen: list[int] = []

    def settled() -> bool:
        seen.append(arrivals(lab) - departures(firewall))
        return len(seen) > 1 and seen[-1] == seen[-2]

    poll(settled, 10, "quiet")
    return seen[-1]


def nat_port(lab: Lab, firewall: Firewall, packet: bytes) -> int:
    """The port behind which the session is known outside that this packet opens."""
    lab.inject("client", packet)
    (session,) = poll(lambda: firewall.sessions(source=INSIDE, protocol=17), 3, "the session")
    return int(session["s2c"]["dport"])


def test_a_corpus_of_broken_packets():
    """Two hundred thousand cut, contradictory, mutated and random packets from both sides: the daemon is the same and
    no larger, every packet was decided and has left by one counter, no session stays, and no more is delivered than by
    plain forwarding."""
    rng = random.Random(1)
    with Lab(client_phantoms=[INSIDE], server_phantoms=[OUTSIDE]) as lab:
        links_without_strangers(lab)
        controls = Controls(lab)
        good = bytes(IP(src=INSIDE, dst=OUTSIDE) / UDP(sport=5555, dport=6666) / b"good")
        with lab.firewall(config(SHORT_TIMEOUTS, max_sessions=20000)) as firewall:
            port = nat_port(lab, firewall, good)
            inside = seeds(INSIDE, OUTSIDE, CLIENT6, SERVER6, (5555, 6666))
            outside = seeds(OUTSIDE, OUT0, SERVER6, CLIENT6, (6666, port))
            corpora = [corpus("client", inside, rng), corpus("server", outside, rng)]
            with controls.unharmed(firewall), counted_arrivals(lab):
                established = Established(lab)
                before = under_way(lab, firewall)
                memory, sessions = resident(firewall.pid), idle_sessions(firewall)
                delivered = deliver(lab, corpora, established)
                poll(lambda: idle_sessions(firewall) <= sessions, 10, "the sessions to expire")
                assert_every_packet_was_decided(lab, firewall)
                poll(lambda: under_way(lab, firewall) == before, 10, "every packet to leave by a counter")
                assert resident(firewall.pid) - memory < LIMIT
                assert "Traceback" not in firewall.log()
                assert drop_counters(firewall)["flow_slowpath_error"] == 0
                established.exchange()
        corpora[1] = Corpus("server", [translated(packet, OUT0, INSIDE) for packet in corpora[1].packets])
        plain = deliver(lab, corpora, Established(lab))
    assert all(ours <= theirs for ours, theirs in zip(delivered, plain, strict=True))
    assert min(delivered) > 100
