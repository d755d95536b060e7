"""The rows of the RFCs that say most, asked of three devices: this firewall, the kernel's conntrack and NAT with the
same policy, and plain forwarding (devices.py).

Ours must give the first verdict.  What the other two gave stands beside it: where plain forwarding gives the same, the
row asks that nothing be spoilt; where it does not, the verdict is the device's own doing.
"""

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.packet import Packet, Raw

from tests.lab.capture import ones_complement
from tests.lab.devices import (
    ASIDE,
    EXEMPT,
    NAMES,
    NARROW,
    NEIGHBOUR,
    OTHER,
    POOLED,
    QUERY_TIMEOUT,
    SECOND,
    THIRD,
    TINY,
    Stream,
    Way,
    device,
    way_through,
)
from tests.lab.errors import V4, answer, hop
from tests.lab.lab import OUT0, LabError, poll

FLOWS = 300
IDENTIFICATION = 77  # of every datagram that comes in fragments
SILENCE = 6.0  # seconds that an unsolicited SYN must stay unanswered (RFC 5382 REQ-4)


# What the phantoms say


def datagram(way: Way, source: str = "", to: str = "", sport: int = 0, dport: int = 9) -> Packet:
    return IP(src=source or way.client, dst=to or way.server) / UDP(sport=sport or way.port(), dport=dport) / b"hello"


def opened(way: Way) -> tuple[Packet, Packet]:
    """A new UDP flow: its first datagram as sent, and as the server got it."""
    sent = datagram(way)
    (seen,) = way.cross("client", sent)
    return sent, seen


def lives(way: Way, sent: Packet, seen: Packet) -> bool:
    """Whether the flow still has its mapping: answers come in, and what goes out looks the same."""
    inward, outward = way.cross("server", answer(V4, seen)), way.cross("client", sent)
    return [(p.dst, p.dport) for p in inward] == [(sent.src, sent.sport)] and [p.sport for p in outward] == [seen.sport]


def error(way: Way, seen: Packet, quote: Packet | bytes, kind: int = 3, code: int = 3, **fields: int) -> Packet:
    """From the server, about what it has seen."""
    return IP(src=way.server, dst=seen.src) / ICMP(type=kind, code=code, **fields) / Raw(bytes(quote))


def fate(crossed: Sequence[Packet]) -> str:
    return "passes" if crossed else "dropped"


# RFC 4787: UDP


def mapping(way: Way) -> str:
    sport = way.port()
    seen = way.cross("client", *(datagram(way, sport=sport, dport=dport) for dport in range(1001, 1006)))
    return "one for all" if len({packet.sport for packet in seen}) == 1 else "one for each destination"


def pairing(way: Way) -> str:
    seen = way.cross("client", *(datagram(way, POOLED, to) for to in (way.server, SECOND, THIRD) for _ in range(20)))
    return "one address" if len({packet.src for packet in seen}) == 1 else "many addresses"


def same_port_same_destination(way: Way, first: Callable[[int], Packet]) -> str:
    """`first` makes a first packet from a source port."""
    hosts, sport = [way.client, NEIGHBOUR], way.port()
    seen = way.cross("client", *(IP(src=host, dst=way.server) / first(sport) for host in hosts))
    answered = way.cross("server", *(answer(V4, packet) for packet in seen))
    assert [(packet.dst, packet.dport) for packet in answered] == [(host, sport) for host in hosts]
    return "two ports" if len({packet.sport for packet in seen}) == 2 else "two addresses"


def two_hosts_udp(way: Way) -> str:
    return same_port_same_destination(way, lambda sport: UDP(sport=sport, dport=9) / b"hello")


def two_hosts_tcp(way: Way) -> str:
    return same_port_same_destination(way, lambda sport: TCP(sport=sport, dport=80, flags="S", seq=1))


def parity(way: Way) -> str:
    ports = [way.port() + odd for odd in (0, 1) for _ in range(8)]
    seen = way.cross("client", *(datagram(way, sport=port) for port in ports))
    return "kept" if [packet.sport % 2 for packet in seen] == [port % 2 for port in ports] else "lost"


def filtering(way: Way) -> str:
    """Who may answer: another port of the host that was asked, another host."""
    sent, seen = opened(way)
    back = UDP(sport=9, dport=seen.sport) / b"hello"
    port = way.cross("server", IP(src=way.server, dst=seen.src) / UDP(sport=10, dport=seen.sport) / b"hello")
    host = way.cross("server", IP(src=SECOND, dst=seen.src) / back)
    assert lives(way, sent, seen)
    return {(0, 0): "that port alone", (1, 0): "that host", (1, 1): "everybody"}[len(port), len(host)]


def icmp_ends_nothing(way: Way) -> str:
    """Every unreachable, source quench, time exceeded and parameter problem."""
    sent, seen = opened(way)
    assert all_errors_cross(way, seen)
    return "lives" if lives(way, sent, seen) else "ended"


def all_errors_cross(way: Way, seen: Packet) -> bool:
    kinds = [(3, code) for code in range(16) if code != 4] + [(4, 0), (11, 0), (11, 1), (12, 0)]
    told = way.cross("server", *(error(way, seen, seen, kind, code) for kind, code in kinds))
    return [(packet[ICMP].type, packet[ICMP].code) for packet in told] == kinds


def too_big_and_whole(way: Way) -> str:
    """What the client is told quotes its own datagram."""
    sent = IP(bytes(IP(src=way.client, dst=way.server, flags="DF") / UDP(sport=way.port(), dport=9) / bytes(1400)))
    crossed, told = way.returned("client", sent)
    assert crossed == []
    assert bytes(told[ICMP].payload)[:28] == bytes(sent)[:28]
    return f"type {told[ICMP].type} code {told[ICMP].code} mtu {told[ICMP].nexthopmtu}"


def too_big_in_pieces(way: Way) -> str:
    sent = long_datagram(way)
    pieces = way.cross("client", *cut(sent, 1480))
    assert max(piece.len for piece in pieces) <= NARROW
    places = [piece.frag for piece in pieces]
    return f"{wholeness(way, pieces, sent)}, {'in order' if places == sorted(places) else 'out of order'}"


def fragments_in_order(way: Way) -> str:
    return fragments(way, 1)


def fragments_out_of_order(way: Way) -> str:
    return fragments(way, -1)


def fragments(way: Way, step: int) -> str:
    sent = long_datagram(way)
    return wholeness(way, way.cross("client", *cut(sent, 512)[::step]), sent)


def two_hosts_one_identification(way: Way) -> str:
    """Their fragments come in turns and leave under one address."""
    sent = [long_datagram(way), long_datagram(way, NEIGHBOUR)]
    pairs = zip(*(cut(datagram, 512) for datagram in sent), strict=True)
    pieces = way.cross("client", *(piece for pair in pairs for piece in pair))
    return "whole" if assembled(pieces) == [datagram.load for datagram in sent] else "mixed up"


def long_datagram(way: Way, source: str = "") -> Packet:
    made = IP(src=source or way.client, dst=way.server, id=IDENTIFICATION) / UDP(sport=way.port(), dport=9)
    return IP(bytes(made / Raw(random.randbytes(2000))))


def cut(datagram: Packet, size: int) -> list[Packet]:
    """By hand: no code of anybody's has a say in it."""
    data = bytes(datagram.payload)
    header = {"src": datagram.src, "dst": datagram.dst, "proto": datagram.proto, "id": datagram.id}
    return [
        IP(**header, frag=first // 8, flags="MF" if first + size < len(data) else 0) / Raw(data[first : first + size])
        for first in range(0, len(data), size)
    ]


def assembled(pieces: Sequence[Packet]) -> list[bytes]:
    """What a host that gets the pieces in this order hands to its application."""
    waiting: dict[tuple[str, int], dict[int, bytes]] = {}
    lengths: dict[tuple[str, int], int] = {}
    done = []
    for piece in pieces:
        name, place, data = (piece.src, piece.id), piece.frag * 8, bytes(piece.payload)
        parts = waiting.setdefault(name, {})
        parts[place] = data
        if not piece.flags.MF:
            lengths[name] = place + len(data)
        if sum(map(len, parts.values())) == lengths.get(name):
            done.append(b"".join(parts[at] for at in sorted(parts))[8:])
            del waiting[name], lengths[name]
    return done


def wholeness(way: Way, pieces: Sequence[Packet], sent: Packet) -> str:
    assert {piece.src for piece in pieces} == {way.outside}
    return "whole" if assembled(pieces) == [sent.load] else "spoilt"


def randomness(way: Way) -> str:
    """Outside ports of many flows from neighbouring ports: the same, side by side, or from everywhere.

    Five standard deviations are allowed to each quarter of the ports and to the number of ascents.
    """
    ports = [way.port() for _ in range(FLOWS)]
    seen = [packet.sport for packet in way.cross("client", *(datagram(way, sport=port) for port in ports))]
    if seen == ports:
        return "the client's"
    quarters = [sum(1024 + 16128 * n <= port < 1024 + 16128 * (n + 1) for port in seen) for n in range(4)]
    ascents = sum(first < then for first, then in pairwise(seen))
    even = all(abs(count - FLOWS / 4) < 5 * (FLOWS * 3 / 16) ** 0.5 for count in quarters)
    return "random" if even and abs(ascents - FLOWS / 2) < 5 * (FLOWS / 12) ** 0.5 else "guessable"


# RFC 5382 and 7857: TCP


def simultaneous_open(way: Way) -> str:
    stream = Stream(way)
    syns = [stream.say("client", "S"), stream.say("server", "S")]
    answers = [stream.forge("client", "SA", seq=-1), stream.forge("server", "SA", seq=-1)]
    return "connects" if all([*syns, *answers, stream.works()]) else "fails"


def unsolicited_syn(way: Way) -> str:
    """To the firewall's own address, where a mapping might be."""
    way.send("server", IP(src=way.server, dst=OUT0) / TCP(sport=80, dport=4200, flags="S", seq=1))
    try:
        poll(lambda: way.arrived("server"), SILENCE, "an answer")
    except LabError:
        assert way.cross("server") == []
        return "silence"
    return "answered"


def icmp_ends_no_connection(way: Way) -> str:
    stream = Stream(way)
    assert stream.open()
    (seen,) = stream.say("client", "PA", b"question")
    assert all_errors_cross(way, seen)
    return "lives" if stream.works() else "ended"


def reset_then_data(way: Way) -> str:
    stream = Stream(way)
    assert stream.open()
    (reset,) = stream.forge("client", "R")
    assert reset.src == way.outside
    return "data passes" if stream.works() else "data dropped"


# RFC 5508: ICMP


def queries(way: Way) -> str:
    """One identifier, three servers."""
    number, servers = way.port(), (way.server, SECOND, THIRD)
    seen = way.cross("client", *(IP(src=way.client, dst=server) / ICMP(id=number) / b"hello" for server in servers))
    replies = way.cross("server", *(answer(V4, packet) for packet in seen))
    assert [(reply.src, reply.dst, reply[ICMP].id) for reply in replies] == [
        (server, way.client, number) for server in servers
    ]
    return "one identifier" if len({packet[ICMP].id for packet in seen}) == 1 else "one for each destination"


def spoilt_error(way: Way) -> str:
    _, seen = opened(way)
    return fate(way.cross("server", error(way, seen, seen, chksum=0x1234)))


def spoilt_quote(way: Way) -> str:
    _, seen = opened(way)
    quote = bytes(seen)
    return fate(way.cross("server", error(way, seen, quote[:10] + b"\x12\x34" + quote[12:])))


def spoilt_quoted_checksum(way: Way) -> str:
    _, seen = opened(way)
    quote = bytes(seen)
    return fate(way.cross("server", error(way, seen, quote[:26] + b"\x12\x34" + quote[28:])))


def quoted_options(way: Way) -> str:
    sent, seen = opened(way)
    quote = seen.copy()
    quote.options = [IPOption_NOP()] * 8
    del quote.ihl, quote.len, quote.chksum
    (told,) = way.cross("server", error(way, seen, quote))
    inner = IP(bytes(told[ICMP].payload))
    return "restored" if (inner.ihl, inner.src, inner.sport) == (7, sent.src, sent.sport) else "not restored"


def extended_error(way: Way) -> str:
    """The quote padded to 128 bytes, and an MPLS label stack behind it (RFC 4884, RFC 4950)."""
    sent, seen = opened(way)
    label = struct.pack("!HBBI", 8, 1, 1, 0x12345140)
    check = ~ones_complement(b"\x20\0\0\0" + label) & 0xFFFF
    extension = struct.pack("!BxH", 0x20, check) + label
    (told,) = way.cross("server", error(way, seen, bytes(seen).ljust(128, b"\0") + extension, 11, 0, length=32))
    expected = hop(V4, bytes(IP(bytes(sent)))).ljust(128, b"\0") + extension
    return "restored" if bytes(told)[28:] == expected else "not restored"


def stray_error(way: Way) -> str:
    """About a datagram that nobody has sent."""
    _, seen = opened(way)
    stranger = seen.copy()
    stranger.dport = 10
    del stranger[UDP].chksum
    return fate(way.cross("server", error(way, seen, stranger)))


def error_from_outside(way: Way) -> str:
    """From a router on the way: its address stays, the quote is what the client has sent."""
    sent, seen = opened(way)
    (told,) = way.cross("server", IP(src=SECOND, dst=seen.src) / ICMP(type=3, code=1) / seen)
    assert (told.src, told.dst, told[ICMP].type, told[ICMP].code) == (SECOND, sent.src, 3, 1)
    return "restored" if bytes(told)[28:] == hop(V4, bytes(IP(bytes(sent)))) else "not restored"


def error_from_inside(way: Way) -> str:
    """The client's port is closed by now."""
    _, seen = opened(way)
    reply = IP(bytes(answer(V4, seen)))
    (got,) = way.cross("server", reply)
    (told,) = way.cross("client", IP(src=way.client, dst=way.server) / ICMP(type=3, code=3) / got)
    assert told.src == way.outside
    return "restored" if bytes(told)[28:] == hop(V4, bytes(reply)) else "not restored"


def hop_limit(way: Way) -> str:
    """REQ-9: what the client is told quotes its own datagram."""
    sent = datagram(way)
    sent.ttl = 1
    crossed, told = way.returned("client", sent)
    assert crossed == []
    assert bytes(told[ICMP].payload)[12:28] == bytes(sent)[12:28]  # the kernel has counted the hop
    return f"type {told[ICMP].type} code {told[ICMP].code}"


def errors_prolong_nothing(way: Way) -> str:
    """One error every few milliseconds; the query goes on after the first, and no longer than it would have."""
    (seen,) = way.cross("client", IP(src=way.client, dst=way.server) / ICMP(id=7) / b"hello")
    message = bytes(error(way, seen, seen))
    assert len(way.cross("server", message)) == 1
    assert len(way.cross("server", answer(V4, seen))) == 1
    try:
        poll(lambda: way.cross("server", message) == [], 3 * QUERY_TIMEOUT, "the query to expire")
    except LabError:
        return "lives on"
    return "expires"


# RFC 5961: blind attacks on a connection


def attacked(way: Way, ns: str, flags: str, data: bytes = b"", **fields: int) -> str:
    """What becomes of a forged segment, of the victim's challenge ACK, and of the connection."""
    stream = Stream(way)
    assert stream.open()
    forged = stream.forge(ns, flags, data, **fields)
    challenged = not forged or stream.say(OTHER[ns], "A")
    return f"{fate(forged)}, {'goes on' if challenged and stream.works() else 'broken'}"


def reset_exact(way: Way) -> str:
    """It ends the connection: another one begins between the same ports with any numbers."""
    stream = Stream(way)
    assert stream.open()
    forged = stream.forge("server", "R")
    return f"{fate(forged)}, {'opens again' if stream.open() and stream.works() else 'stays shut'}"


def reset_in_window(way: Way) -> str:
    return attacked(way, "server", "R", seq=100)


def reset_out_of_window(way: Way) -> str:
    return attacked(way, "server", "R", seq=1 << 30)


def syn_from_inside(way: Way) -> str:
    return attacked(way, "client", "S", seq=1 << 30)


def syn_from_outside(way: Way) -> str:
    return attacked(way, "server", "S", seq=1 << 30)


def reset_with_wrong_checksum(way: Way) -> str:
    return attacked(way, "server", "R", chksum=0x1234)


def another_syn_ack(way: Way) -> str:
    """Before the right one is acknowledged."""
    stream = Stream(way)
    assert all([stream.say("client", "S"), stream.say("server", "SA")])
    forged = stream.forge("server", "SA", seq=12345)
    goes_on = stream.say("client", "A") and stream.works()
    return f"{fate(forged)}, {'goes on' if goes_on else 'broken'}"


def data_acknowledging_the_future(way: Way) -> str:
    return attacked(way, "server", "PA", b"evil", ack=1000)


def data_acknowledging_the_past(way: Way) -> str:
    return attacked(way, "server", "PA", b"evil", ack=-(1 << 30))


# RFC 6888: carriers


def exempt(way: Way) -> str:
    (seen,) = way.cross("client", datagram(way, to=EXEMPT))
    return "as himself" if seen.src == way.client else "translated"


def exhaustion(way: Way) -> str:
    """A source with four ports: what becomes of its fifth flow, and what it is told; the four go on."""
    sent = [datagram(way, TINY) for _ in range(4)]
    seen = way.cross("client", *sent)
    before = len(way.arrived("client"))
    fifth = way.cross("client", datagram(way, TINY))
    told = [f"{packet[ICMP].type}/{packet[ICMP].code}" for packet in way.arrived("client")[before:]]
    assert all(lives(way, *flow) for flow in zip(sent, seen, strict=True))
    return f"{fate(fifth)}, told {told[0] if told else 'nothing'}"


@dataclass(frozen=True)
class Row:
    """A requirement, its recipe, and the verdict on each device; `aside`: it takes seconds, beside the others."""

    name: str
    recipe: Callable[[Way], str]
    ours: str
    kernel: str
    plain: str
    aside: bool = False


def alike(name: str, recipe: Callable[[Way], str], verdict: str) -> Row:
    """The same of all three."""
    return Row(name, recipe, verdict, verdict, verdict)


ROWS: tuple[Row, ...] = (
    Row("4787-1 mapping", mapping, "one for each destination", "one for all", "one for all"),
    alike("4787-2 pairing", pairing, "one address"),
    Row("4787-3 same port same destination", two_hosts_udp, "two ports", "two ports", "two addresses"),
    alike("4787-4 parity", parity, "kept"),
    Row("4787-8 filtering", filtering, "that port alone", "that port alone", "everybody"),
    alike("4787-12 ICMP ends nothing", icmp_ends_nothing, "lives"),
    alike("4787-13 too big, DF", too_big_and_whole, "type 3 code 4 mtu 1280"),
    alike("4787-13 too big", too_big_in_pieces, "whole, in order"),
    alike("4787-14 fragments in order", fragments_in_order, "whole"),
    alike("4787-14 fragments out of order", fragments_out_of_order, "whole"),
    alike("7857 one IP identification", two_hosts_one_identification, "whole"),
    Row("7857 randomness", randomness, "random", "the client's", "the client's"),
    alike("5382-2 simultaneous open", simultaneous_open, "connects"),
    Row("5382-7 same port same destination", two_hosts_tcp, "two ports", "two ports", "two addresses"),
    alike("5382-10 ICMP ends nothing", icmp_ends_no_connection, "lives"),
    alike("7857 RST, then data", reset_then_data, "data passes"),
    Row("5508-1 queries", queries, "one for each destination", "one identifier", "one identifier"),
    Row("5508-3 ICMP checksum wrong", spoilt_error, "dropped", "dropped", "passes"),
    Row("5508-3a quoted IP checksum wrong", spoilt_quote, "dropped", "passes", "passes"),
    alike("5508-3c quoted UDP checksum wrong", spoilt_quoted_checksum, "passes"),
    alike("5508-3b quoted options", quoted_options, "restored"),
    alike("5508-3d extension", extended_error, "restored"),
    Row("5508-4a stray error", stray_error, "dropped", "dropped", "passes"),
    alike("5508-4 error from outside", error_from_outside, "restored"),
    alike("5508-5 error from inside", error_from_inside, "restored"),
    alike("5508-9 hop limit", hop_limit, "type 11 code 0"),
    alike("5961 RST exact", reset_exact, "passes, opens again"),
    alike("5961 RST in window", reset_in_window, "passes, goes on"),
    Row("5961 RST out of window", reset_out_of_window, "dropped, goes on", "dropped, goes on", "passes, goes on"),
    alike("5961 SYN from inside", syn_from_inside, "passes, goes on"),
    Row("5961 SYN from outside", syn_from_outside, "passes, goes on", "dropped, goes on", "passes, goes on"),
    Row("5961 RST spoilt", reset_with_wrong_checksum, "dropped, goes on", "dropped, goes on", "passes, goes on"),
    Row("5961 another SYN-ACK", another_syn_ack, "dropped, goes on", "passes, goes on", "passes, goes on"),
    Row("5961 future ACK", data_acknowledging_the_future, "dropped, goes on", "dropped, goes on", "passes, goes on"),
    Row("5961 past ACK", data_acknowledging_the_past, "dropped, goes on", "passes, goes on", "passes, goes on"),
    alike("6888-6 exempt", exempt, "as himself"),
    Row("6888-11 exhaustion", exhaustion, "dropped, told 3/13", "dropped, told nothing", "passes, told nothing"),
    Row("5382-4 unsolicited SYN", unsolicited_syn, "silence", "silence", "answered", aside=True),
    Row("5508-6 errors prolong nothing", errors_prolong_nothing, "expires", "expires", "lives on", aside=True),
)

Verdict = Callable[[Row, str], str]


@pytest.fixture(scope="module")
def verdict() -> Iterator[Verdict]:
    """Asks a row of a device; what is asked aside has begun already."""
    slow = dict(zip(ASIDE, (row for row in ROWS if row.aside), strict=False))
    with ExitStack() as stack:
        labs = {name: stack.enter_context(device(name)) for name in NAMES}
        main = {name: stack.enter_context(way_through(lab, name)) for name, lab in labs.items()}
        aside = {
            (row.name, name): (row.recipe, stack.enter_context(way_through(lab, name, number)))
            for name, lab in labs.items()
            for number, row in slow.items()
        }
        pool = stack.enter_context(ThreadPoolExecutor(len(aside)))
        begun = {asked: pool.submit(recipe, way) for asked, (recipe, way) in aside.items()}

        def ask(row: Row, name: str) -> str:
            return begun[row.name, name].result() if row.aside else row.recipe(main[name])

        yield ask


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(verdict, row, name):
    """The device does what the row says of it."""
    assert verdict(row, name) == getattr(row, name)
