"""What must hold for any packet and any conversation, not only for those that somebody thought of."""

import ipaddress
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers import inet, inet6
from scapy.packet import Raw

from dataplane.ffi import lib
from tests.reference import adjusted, checksum, ones_sum, pseudo_header, transport_is_valid
from tests.talk import INSIDE, OUTSIDE, TCP, Error, Firewall, dissect, transport

PORTS = st.integers(1, 65535)
SIZES = st.one_of(st.integers(0, 80), st.sampled_from([1459, 1460, 1461, 4095, 65000, 65507]))


@st.composite
def addresses(draw, family):
    """Four different ones: client, server, pool, virtual address."""
    numbers = draw(st.lists(st.integers(0x01000000, 0xDFFFFFFF), min_size=4, max_size=4, unique=True))
    if family == 4:
        return [str(ipaddress.IPv4Address(n)) for n in numbers]
    prefix = draw(st.integers(0x2000, 0x3FFF)) << 112 | draw(st.integers(0, 2**64 - 1)) << 32
    return [str(ipaddress.IPv6Address(prefix | n)) for n in numbers]


@dataclass(frozen=True)
class Case:
    """A flow with its translation."""

    family: int
    client: str
    server: str
    pool: str
    virtual: str
    sport: int
    dport: int
    new_sport: int
    new_dport: int
    source: bool
    destination: bool

    def there(self):
        """((source, port), (destination, port)) as sent, and as it arrives at the server."""
        asked = (self.virtual, self.dport) if self.destination else (self.server, self.dport)
        seen = (self.pool, self.new_sport) if self.source else (self.client, self.sport)
        real = (self.server, self.new_dport) if self.destination else asked
        return ((self.client, self.sport), asked), (seen, real)

    def decided(self, firewall):
        return firewall.decides(
            source=self.pool if self.source else None,
            ports=(self.new_sport, self.new_sport) if self.source else None,
            destination=f"[{self.server}]:{self.new_dport}" if self.destination else None,
        )


@st.composite
def cases(draw):
    family = draw(st.sampled_from([4, 6]))
    client, server, pool, virtual = draw(addresses(family))
    sport, dport, new_sport, new_dport = (draw(PORTS) for _ in range(4))
    source, destination = draw(st.sampled_from([(True, False), (False, True), (True, True)]))
    return Case(family, client, server, pool, virtual, sport, dport, new_sport, new_dport, source, destination)


def packet_between(ends, layer, payload):
    (src, sport), (dst, dport) = ends
    layer.sport, layer.dport = sport, dport
    return bytes((inet6.IPv6 if ":" in src else inet.IP)(src=src, dst=dst) / layer / Raw(payload))


@settings(max_examples=200)
@given(case=cases(), size=SIZES, seed=st.integers(0, 2**32 - 1), udp=st.booleans(), partial=st.booleans())
def test_translation_equals_building_the_other_packet(case, size, seed, udp, partial):
    """What leaves is to the byte what scapy builds from the other tuple, and so is the way back."""
    payload = random.Random(seed).randbytes(min(size, 65507 if udp else 65495))
    before, after = case.there()
    layers = (
        [inet.UDP(), inet.UDP()]
        if udp
        else [inet.TCP(flags="S", seq=seed), inet.TCP(flags="SA", seq=seed, ack=seed + len(payload) + 1 & 0xFFFFFFFF)]
    )
    state = lib.CHECKSUM_PARTIAL if partial else lib.CHECKSUM_UNVERIFIED
    with Firewall(4) as firewall:
        case.decided(firewall)
        there = firewall.c2s(packet_between(before, layers[0], payload), checksum=state)
        assert there.after == packet_between(after, layers[0], payload)
        back = firewall.s2c(packet_between(after[::-1], layers[1], payload), checksum=state)
        assert back.after == packet_between(before[::-1], layers[1], payload)
    for outcome in (there, back):
        assert transport_is_valid(outcome.after, 20 if case.family == 4 else 40, 17 if udp else 6)


@settings(max_examples=150)
@given(
    case=cases(),
    size=st.integers(0, 600),
    cut=st.integers(8, 700),
    kind=st.sampled_from([3, 11, 12]),
    inside=st.booleans(),
)
def test_errors_are_translated_like_what_they_quote(case, size, cut, kind, inside):
    """The receiver finds its own packet in the quote, wherever that was cut, and a right checksum around it."""
    before, after = case.there()
    kind = kind if case.family == 4 else {3: 1, 11: 3, 12: 4}[kind]
    header = 20 if case.family == 4 else 40
    payload = bytes(size)
    with Firewall(4) as firewall:
        case.decided(firewall)
        firewall.c2s(packet_between(before, inet.UDP(), payload))
        sent, arrived = (packet_between(ends, inet.UDP(), payload) for ends in (before, after))
        if inside:
            arrived, sent = (packet_between(ends[::-1], inet.UDP(), payload) for ends in (before, after))
        quoting, receiver = (after, before) if not inside else (before[::-1], after[::-1])
        error = Error(quoting[1][0], quoting[0][0], arrived[: header + cut], kind)
        outcome = (firewall.c2s if inside else firewall.s2c)(error)
    assert outcome.left
    assert (outcome.packet.src, outcome.packet.dst) == (receiver[1][0], receiver[0][0])
    assert transport(outcome.packet).original[8:] == sent[: header + cut]
    assert transport_is_valid(outcome.after, header, 1 if case.family == 4 else 58)


@given(data=st.binary(min_size=0, max_size=300), state=st.sampled_from([lib.CHECKSUM_TRUSTED, lib.CHECKSUM_UNVERIFIED]))
def test_any_bytes_get_one_verdict(data, state):
    """The books are checked by Firewall.take(); nothing comes back changed."""
    with Firewall(4) as firewall:
        for ifindex in (INSIDE, OUTSIDE):
            firewall.take(data, ifindex, checksum=state)


@given(payload=st.binary(max_size=700), damage=st.integers(1, 65535), at=st.integers(0, 10**6))
def test_a_damaged_word_is_always_seen(payload, damage, at):
    """C's checksum and the reference agree on any payload, and on any payload with one word changed."""
    data = bytearray(packet_between((("10.0.0.5", 4000), ("8.8.8.8", 53)), inet.UDP(), payload))
    with Firewall(4) as firewall:
        firewall.take(bytes(data), INSIDE, checksum=lib.CHECKSUM_UNVERIFIED).is_punted()
        place = 28 + at % max(len(payload) - 1, 1) // 2 * 2
        word = int.from_bytes(data[place : place + 2].ljust(2, b"\0"))
        data[place : place + 2] = (word ^ damage).to_bytes(2)[: len(data[place : place + 2])]
        right = (
            ones_sum(pseudo_header(bytes(data[12:16]), bytes(data[16:20]), 17, len(data) - 20) + data[20:]) == 0xFFFF
        )
        outcome = firewall.take(bytes(data), INSIDE, checksum=lib.CHECKSUM_UNVERIFIED)
        assert (outcome.verdict == lib.VERDICT_PUNT) == right


@given(before=st.binary(min_size=2, max_size=40), after=st.binary(min_size=2, max_size=40), rest=st.binary(max_size=60))
def test_incremental_update_equals_summing_anew(before, after, rest):
    """Equation 3 of RFC 1624 on the reference; zero has two forms in one's complement."""
    n = min(len(before), len(after)) // 2 * 2
    old, new = before[:n], after[:n]
    updated, anew = adjusted(checksum(old + rest), old, new), checksum(new + rest)
    assert updated == anew or {updated, anew} == {0, 0xFFFF}


# ---- two hosts that keep to the rules ----


@dataclass
class Host:
    """A TCP end with a receive buffer, as seen from its segments; sequence numbers count from its first data byte."""

    name: int
    isn: int
    capacity: int
    scale: int
    sent: int = 0  # next to send
    acked: int = 0  # by the peer
    allowed: int = 0  # right edge that the peer has offered
    received: int = 0
    unread: int = 0
    early: dict[int, int] = field(default_factory=dict)  # segments behind a hole: start -> end

    def window(self):
        return (self.capacity - self.unread) >> self.scale

    def take(self, start, length, ack, window, peer_scale):
        """A segment from the peer: in order, behind a hole, or old."""
        self.acked = max(self.acked, ack)
        self.allowed = max(self.allowed, ack + (window << peer_scale))
        if length and start + length <= self.received + self.capacity - self.unread:
            self.early[start] = max(start + length, self.early.get(start, 0))
        while fitting := [s for s in self.early if s <= self.received]:
            end = self.early.pop(fitting[0])
            self.unread += max(end - self.received, 0)
            self.received = max(end, self.received)


class Network:
    """Two hosts, a firewall between them, losses and small delays on its far side."""

    def __init__(self, firewall, rng):
        scales = rng.choice([(0, 0), (7, 7), (2, 9), (14, 0)])
        self.firewall, self.rng = firewall, rng
        self.hosts = [
            Host(i, rng.choice([0, 2**32 - 5000, rng.randrange(2**32)]), rng.choice([4096, 65535, 1 << 20]), scales[i])
            for i in (0, 1)
        ]
        self.wires: tuple[deque[Any], deque[Any]] = (deque(), deque())  # towards each host, beyond the firewall
        for host in self.hosts:
            host.capacity = min(host.capacity, 65535 << host.scale)

    def segment(self, host, start, length, flags="A"):
        peer = self.hosts[1 - host.name]
        ends = ("10.0.0.5:4000", "8.8.8.8:80") if host.name == 0 else ("8.8.8.8:80", "10.0.0.5:4000")
        fields = {"seq": (host.isn + 1 + start) % 2**32, "ack": (peer.isn + 1 + host.received) % 2**32}
        packet = TCP(*ends, flags, bytes(length), window=min(host.window(), 65535), **fields)
        outcome = self.firewall.take(bytes(packet), (INSIDE, OUTSIDE)[host.name])
        assert outcome.left, f"a legal segment was dropped: {outcome.counted}"
        self.wires[peer.name].append((start, length, host.received, min(host.window(), 65535), host.scale))

    def send(self, host):
        length = min(self.rng.choice([1, 536, 1460, 1460 * 10]), host.allowed - host.sent)
        if length <= 0:
            self.segment(host, host.sent, 1 if host.acked == host.sent else 0)  # a probe of the closed window
            return
        self.segment(host, host.sent, length)
        host.sent += length

    def repeat(self, host):
        if host.sent > host.acked:
            self.segment(host, host.acked, min(1460, host.sent - host.acked))
        else:
            self.segment(host, host.sent - 1, 0)  # keep-alive

    def read(self, host):
        host.unread = self.rng.choice([0, host.unread // 2])
        self.segment(host, host.sent, 0)

    def deliver(self, host):
        wire = self.wires[host.name]
        if not wire:
            return
        at = self.rng.randrange(min(len(wire), 3))
        arrived = wire[at]
        del wire[at]
        if self.rng.random() < 0.9:
            host.take(*arrived)
            if arrived[1]:
                self.segment(host, host.sent, 0)

    def open(self):
        ends = ("10.0.0.5:4000", "8.8.8.8:80")
        client, server = self.hosts
        options = [[("WScale", host.scale)] for host in self.hosts]
        windows = [min(host.capacity, 65535) for host in self.hosts]
        syn = TCP(*ends, "S", seq=client.isn, window=windows[0], options=options[0])
        assert self.firewall.send(syn, INSIDE).left
        answer = TCP(
            *ends[::-1], "SA", seq=server.isn, ack=(client.isn + 1) % 2**32, window=windows[1], options=options[1]
        )
        assert self.firewall.send(answer, OUTSIDE).left
        client.allowed, server.allowed = windows[1], windows[0]
        self.segment(client, 0, 0)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_legal_segment_is_never_dropped(seed):
    """Losses, retransmissions, small reorderings, closed windows and probes between two hosts that obey each other."""
    rng = random.Random(seed)
    with Firewall(4) as firewall:
        network = Network(firewall.decides(), rng)
        network.open()
        for _ in range(120):
            step = rng.choice([network.send] * 3 + [network.deliver] * 5 + [network.repeat, network.read])
            step(rng.choice(network.hosts))
        assert firewall.tcp_state() == "ESTABLISHED"


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1), distance=st.integers(2_000_000, 2**31 - 2_000_000), sign=st.sampled_from([1, -1])
)
def test_a_blind_segment_is_always_dropped(seed, distance, sign):
    """Whoever does not know the sequence numbers gets neither data nor a RST through, and changes nothing."""
    rng = random.Random(seed)
    with Firewall(4) as firewall:
        network = Network(firewall.decides(), rng)
        network.open()
        for _ in range(20):
            rng.choice([network.send, network.deliver])(rng.choice(network.hosts))
        client = network.hosts[0]
        seq = (client.isn + 1 + client.sent + sign * distance) % 2**32
        for flags, counter in [
            ("PA", "tcp_drop_out_of_wnd"),
            ("R", "tcp_drop_rst_out_of_wnd"),
            ("FA", "tcp_drop_out_of_wnd"),
        ]:
            forged = TCP("10.0.0.5:4000", "8.8.8.8:80", flags, b"evil", seq=seq, ack=(network.hosts[1].isn + 1) % 2**32)
            firewall.c2s(forged).is_dropped(counter)
        assert firewall.tcp_state() == "ESTABLISHED"
        network.segment(client, client.sent, 0)


def test_dissection_is_the_inverse_of_building():
    """The oracle reads what it writes."""
    data = packet_between((("10.0.0.5", 4000), ("8.8.8.8", 53)), inet.UDP(), b"abc")
    assert bytes(dissect(data)) == data
