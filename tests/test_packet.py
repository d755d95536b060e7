"""Bytes to struct packet: every protocol, every length, and what scapy thinks of the same bytes."""

import socket

import pytest
from scapy.layers import inet, inet6
from scapy.packet import Raw

from dataplane.ffi import ffi, lib
from tests.reference import checksum
from tests.talk import (
    INSIDE,
    OUTSIDE,
    TCP,
    UDP,
    Echo,
    EchoReply,
    Error,
    Firewall,
    dissect,
    endpoints,
    mapped,
    transport,
)

C4, S4 = "10.0.0.5", "8.8.8.8"
C6, S6 = "2001:db8::5", "2001:4860::8888"
HEADERS = {
    "hop-by-hop": lambda: inet6.IPv6ExtHdrHopByHop(options=[inet6.PadN(optdata=b"\0\0\0\0")]),
    "routing": lambda: inet6.IPv6ExtHdrRouting(type=4, segleft=0),
    "destination": lambda: inet6.IPv6ExtHdrDestOpt(options=[inet6.PadN(optdata=bytes(12))]),
}


@pytest.fixture
def firewall():
    with Firewall() as firewall:
        yield firewall


def parsed(firewall, data, **how):
    """What C made of a packet that begins nothing: the slow path's view of it."""
    verdict, packet = firewall.look(data, **how)
    assert verdict == lib.VERDICT_PUNT, firewall.counters()
    return packet


def key_of(packet):
    """As talk.endpoints() gives them, with protocol and zone."""
    key = packet.key
    sides = [(bytes(key.src), socket.ntohs(key.sport)), (bytes(key.dst), socket.ntohs(key.dport))]
    return sides, key.proto, key.zone


def key_of_scapy(data, zone=INSIDE):
    packet = dissect(data)
    (src, sport), (dst, dport) = endpoints(packet)
    layer = packet
    while isinstance(layer.payload, inet6.IPv6) or "ExtHdr" in type(layer.payload).__name__:
        layer = layer.payload
    return [(mapped(src), sport), (mapped(dst), dport)], layer.proto if packet.version == 4 else layer.nh, zone


def corpus():
    """One packet of every kind that becomes a flow."""
    for c, s in [(C4, S4), (f"[{C6}]", f"[{S6}]")]:
        yield UDP(f"{c}:4000", f"{s}:53")
        yield UDP(f"{c}:4000", f"{s}:53", b"")
        yield TCP(f"{c}:4000", f"{s}:80", "S", options=[("MSS", 1460), ("SAckOK", b""), ("WScale", 7)])
        yield TCP(f"{c}:4000", f"{s}:80", "S", b"fast open")
        yield Echo(f"{c}:77", s)
        yield EchoReply(c, f"{s}:77")
    yield inet.IP(src=C4, dst=S4, options=[inet.IPOption_RR(routers=["1.2.3.4"])]) / inet.UDP(sport=1, dport=2)
    yield inet.IP(src=C4, dst=S4, proto=47) / Raw(b"\0\0\x08\0" + bytes(20))
    yield inet.IP(src=C4, dst=S4, proto=50) / Raw(bytes(40))
    yield inet.IP(src=C4, dst=S4) / inet.ICMP(type=13, ts_ori=1, ts_rx=2, ts_tx=3) / Raw(bytes(12))
    yield inet6.IPv6(src=C6, dst=S6, nh=59)
    yield inet6.IPv6(src=C6, dst=S6, nh=132) / Raw(bytes(40))
    for make in HEADERS.values():
        yield inet6.IPv6(src=C6, dst=S6) / make() / inet.UDP(sport=4000, dport=53) / Raw(b"x")
    yield inet6.IPv6(src=C6, dst=S6, nh=51) / Raw(b"\x11\x04" + bytes(22)) / inet.UDP(sport=4000, dport=53, chksum=0)


CORPUS = [bytes(packet) for packet in corpus()]


@pytest.mark.parametrize("data", CORPUS, ids=range(len(CORPUS)))
def test_a_key_is_what_scapy_reads(firewall, data):
    """Addresses, ports, protocol and zone, for every protocol."""
    if data[6] == 51:  # scapy does not look behind an authentication header
        assert key_of(parsed(firewall, data)) == ([(mapped(C6), 4000), (mapped(S6), 53)], 17, INSIDE)
        return
    assert key_of(parsed(firewall, data)) == key_of_scapy(data)


@pytest.mark.parametrize("data", CORPUS, ids=range(len(CORPUS)))
def test_a_packet_cut_anywhere_is_dropped_or_means_the_same(firewall, data):
    """No offset at which half a header is believed, be the length in the header the old one or a corrected one."""
    whole = key_of(parsed(firewall, data))
    for end in range(len(data)):
        for cut in {data[:end], with_length(data[:end])}:
            verdict, packet = firewall.look(cut)
            assert verdict == lib.VERDICT_DROP or key_of(packet) == whole
            firewall.take(cut, INSIDE)
    assert firewall.take(data[: len(data) - 1], INSIDE).verdict == lib.VERDICT_DROP or len(data) == 0


def with_length(data):
    """The header's length field says what is really there."""
    if len(data) < 20:
        return data
    if data[0] >> 4 == 4:
        return data[:2] + len(data).to_bytes(2) + data[4:]
    return data[:4] + max(len(data) - 40, 0).to_bytes(2) + data[6:]


@pytest.mark.parametrize("data", CORPUS, ids=range(len(CORPUS)))
def test_padding_behind_a_packet_is_not_part_of_it(firewall, data):
    """Ethernet pads to 60 bytes."""
    packet = parsed(firewall, data + bytes(46))
    assert packet.ip_len == len(data)


def test_offsets_and_numbers_of_a_tcp_segment(firewall):
    """What tracking works with."""
    packet = parsed(
        firewall, TCP(f"{C4}:1", f"{S4}:2", "SPU", b"abc", seq=2**32 - 1, ack=7, window=4096, options=[("WScale", 9)])
    )
    assert (packet.l4, packet.l4_checksum, packet.ip_len) == (20, 36, 20 + 24 + 3)
    assert packet.tcp_flags == lib.TCP_FLAG_SYN | lib.TCP_FLAG_PSH | lib.TCP_FLAG_URG
    assert (packet.seq, packet.ack, packet.window, packet.seq_len) == (2**32 - 1, 7, 4096, 4)
    assert packet.window_scale == 9


def test_nothing_at_all_is_dropped(firewall):
    """An empty packet, and one of no version."""
    for data in [b"", b"\x00" * 60, b"\x50" + bytes(59), b"\xff" * 60]:
        firewall.c2s(data).is_dropped("flow_parse_ip_hdr")


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 0x44), (0, 0x40), (0, 0x4F), (2, 0xFF), (3, 19)],
    ids=["ihl4", "ihl0", "ihl15", "long", "short"],
)
def test_a_broken_ipv4_header_is_dropped(firewall, offset, value):
    """Header length and total length against each other and against what is there."""
    data = bytearray(bytes(UDP(f"{C4}:1", f"{S4}:2", b"")))
    data[offset] = value
    outcome = firewall.c2s(bytes(data))
    assert outcome.verdict == lib.VERDICT_DROP
    assert {"flow_parse_ip_hdr", "flow_parse_ext_hdr"} & outcome.counted.keys()


# ---- extension headers ----


@pytest.mark.parametrize("n", range(9))
def test_eight_extension_headers_are_followed(firewall, n):
    """RFC 8504 section 5.3 asks for a limit; ours is eight."""
    packet = inet6.IPv6(src=C6, dst=S6)
    for i in range(n):
        packet /= list(HEADERS.values())[i % 3]()
    data = bytes(packet / inet.TCP(sport=4000, dport=80, flags="S"))
    assert key_of(parsed(firewall, data)) == ([(mapped(C6), 4000), (mapped(S6), 80)], 6, INSIDE)


@pytest.mark.parametrize("n", [9, 10, 100])
def test_a_ninth_extension_header_is_dropped(firewall, n):
    """With a transport header behind it, or with nothing."""
    packet = inet6.IPv6(src=C6, dst=S6)
    for _ in range(n):
        packet /= HEADERS["destination"]()
    firewall.c2s(packet / inet.UDP(sport=1, dport=2)).is_dropped("flow_parse_ext_hdr")


def test_an_extension_header_that_reaches_beyond_the_packet_is_dropped(firewall):
    """Its length is hostile."""
    data = bytearray(bytes(inet6.IPv6(src=C6, dst=S6) / HEADERS["destination"]() / inet.UDP(sport=1, dport=2)))
    data[41] = 255
    assert firewall.c2s(bytes(data)).verdict == lib.VERDICT_DROP


@pytest.mark.parametrize(("kind", "left"), [(0, 0), (0, 1), (2, 1), (3, 1), (4, 2)])
@pytest.mark.parametrize("before", [[], ["hop-by-hop"], ["destination", "routing"]])
def test_a_packet_that_names_further_stops_is_dropped(firewall, kind, left, before):
    """Routing headers with segments left, and any of type 0 (RFC 5095): no rule has judged where they lead."""
    packet = inet6.IPv6(src=C6, dst=S6)
    for name in before:
        packet /= HEADERS[name]()
    packet /= inet6.IPv6ExtHdrRouting(type=kind, addresses=[C6, S6], segleft=left)
    firewall.c2s(packet / inet.UDP(sport=1, dport=2)).is_dropped("flow_parse_ext_hdr")


def test_headers_in_the_padding_are_not_read(firewall):
    """The packet ends where its length says, whatever lies behind."""
    data = bytearray(bytes(inet6.IPv6(src=C6, dst=S6) / HEADERS["destination"]() / inet.UDP(sport=1, dport=2)))
    data[4:6] = (8).to_bytes(2)
    firewall.c2s(bytes(data)).is_dropped("flow_parse_ext_hdr")


# ---- fragments, land ----


@pytest.mark.parametrize(("flags", "offset"), [("MF", 0), ("MF", 100), (0, 100), (0, 8191)])
def test_ipv4_fragments_are_dropped(firewall, flags, offset):
    """The kernel has reassembled what it could."""
    packet = inet.IP(src=C4, dst=S4, flags=flags, frag=offset) / inet.UDP(sport=1, dport=2) / Raw(bytes(24))
    firewall.c2s(packet).is_dropped("flow_parse_ip_frag")


def test_dont_fragment_is_no_fragment(firewall):
    """And the evil bit is none either."""
    for flags in ["DF", "evil", "DF+evil"]:
        parsed(firewall, inet.IP(src=C4, dst=S4, flags=flags) / inet.UDP(sport=1, dport=2))


@pytest.mark.parametrize(("more", "offset"), [(1, 0), (1, 10), (0, 10)])
def test_ipv6_fragments_are_dropped(firewall, more, offset):
    """Also behind other extension headers."""
    fragment = inet6.IPv6ExtHdrFragment(m=more, offset=offset) / inet.UDP(sport=1, dport=2) / Raw(bytes(8))
    firewall.c2s(inet6.IPv6(src=C6, dst=S6) / fragment).is_dropped("flow_parse_ip_frag")
    chained = inet6.IPv6(src=C6, dst=S6) / HEADERS["hop-by-hop"]() / fragment
    firewall.c2s(chained).is_dropped("flow_parse_ip_frag")


def test_an_atomic_fragment_is_a_whole_packet(firewall):
    """RFC 6946: offset 0, nothing follows."""
    data = inet6.IPv6(src=C6, dst=S6) / inet6.IPv6ExtHdrFragment() / inet.UDP(sport=1, dport=2)
    assert key_of(parsed(firewall, data))[0] == [(mapped(C6), 1), (mapped(S6), 2)]


@pytest.mark.parametrize("address", [C4, f"[{C6}]"])
def test_land_is_dropped(firewall, address):
    """Nobody else sends to himself through us; the firewall's own packets may."""
    land = TCP(f"{address}:80", f"{address}:80")
    for hook in (lib.HOOK_PREROUTING, lib.HOOK_FORWARD):
        firewall.c2s(land, hook=hook).is_dropped("flow_parse_land")
    firewall.own(UDP(f"{address}:1", f"{address}:2")).is_punted()


# ---- transport headers ----


@pytest.mark.parametrize("length", [0, 7, 17, 65535])
def test_a_udp_length_that_cannot_be_is_dropped(firewall, length):
    """Shorter than its header, or longer than the packet."""
    firewall.c2s(UDP(f"{C4}:1", f"{S4}:2", b"12345678", len=length)).is_dropped("flow_parse_l4_hdr")


def test_a_udp_datagram_may_be_shorter_than_its_packet(firewall):
    """Odd, but legal; the checksum covers the datagram."""
    data = bytes(UDP(f"{C4}:1", f"{S4}:2", b"12345678"))
    short = inet.IP(src=C4, dst=S4, proto=17) / Raw(bytes(UDP(f"{C4}:1", f"{S4}:2", b"1234"))[20:] + b"tail")
    firewall.c2s(short, checksum=lib.CHECKSUM_UNVERIFIED).is_punted()
    assert len(bytes(short)) == len(data)


@pytest.mark.parametrize("words", [0, 4, 7, 15])
def test_a_tcp_header_length_that_cannot_be_is_dropped(firewall, words):
    """Shorter than 20 bytes, or longer than the packet."""
    firewall.c2s(TCP(f"{C4}:1", f"{S4}:2", dataofs=words)).is_dropped("flow_parse_l4_hdr")


def test_icmp_of_the_other_family_is_dropped(firewall):
    """ICMP in IPv6 and ICMPv6 in IPv4 mean nothing."""
    firewall.c2s(inet6.IPv6(src=C6, dst=S6, nh=1) / Raw(bytes(8))).is_dropped("flow_parse_l4_hdr")
    firewall.c2s(inet.IP(src=C4, dst=S4, proto=58) / Raw(bytes(8))).is_dropped("flow_parse_l4_hdr")


# ---- checksums ----


@pytest.mark.parametrize("data", [d for d in CORPUS if not isinstance(transport(dissect(d)), Raw)], ids=str)
def test_a_wrong_checksum_is_dropped_if_nobody_has_looked_yet(firewall, data):
    """And believed where kernel or NIC have verified it, or it is not complete yet."""
    packet = parsed(firewall, data)
    if not packet.l4_checksum or data[6] == 51:
        return
    firewall.c2s(data, checksum=lib.CHECKSUM_UNVERIFIED).is_punted()
    wrong = bytearray(data)
    wrong[packet.l4_checksum] ^= 0x55
    firewall.c2s(bytes(wrong), checksum=lib.CHECKSUM_UNVERIFIED).is_dropped("flow_parse_l4_cksm")
    firewall.c2s(bytes(wrong), checksum=lib.CHECKSUM_TRUSTED).is_punted()
    firewall.c2s(bytes(wrong), checksum=lib.CHECKSUM_PARTIAL).is_punted()
    firewall.c2s(bytes(wrong), checksum=lib.CHECKSUM_SUPER).is_punted()


def test_a_udp_checksum_of_zero_means_none(firewall):
    """RFC 768."""
    firewall.c2s(UDP(f"{C4}:1", f"{S4}:2", chksum=0), checksum=lib.CHECKSUM_UNVERIFIED).is_punted()


@pytest.mark.parametrize("n", range(40))
def test_payloads_of_every_length_are_summed(firewall, n):
    """Odd bytes, and every remainder of the loop that sums blocks."""
    firewall.c2s(UDP(f"{C4}:1", f"{S4}:2", bytes(range(200, 200 + n))), checksum=lib.CHECKSUM_UNVERIFIED).is_punted()


# ---- ICMP errors ----

QUOTES = {
    "udp": UDP(f"{C4}:4000", f"{S4}:53"),
    "tcp": TCP(f"{C4}:4000", f"{S4}:80", "A", b"data"),
    "echo": Echo(f"{C4}:77", S4),
    "options": inet.IP(src=C4, dst=S4, options=[inet.IPOption_RR(routers=["1.2.3.4"])])
    / inet.UDP(sport=4000, dport=53),
    "first fragment": inet.IP(src=C4, dst=S4, flags="MF") / inet.UDP(sport=4000, dport=53, len=3000) / Raw(bytes(64)),
    "gre": inet.IP(src=C4, dst=S4, proto=47) / Raw(bytes(20)),
    "udp6": UDP(f"[{C6}]:4000", f"[{S6}]:53"),
    "echo6": Echo(f"[{C6}]:77", S6),
    "headers6": inet6.IPv6(src=C6, dst=S6)
    / HEADERS["hop-by-hop"]()
    / HEADERS["destination"]()
    / inet.UDP(sport=4000, dport=53),
}
ERRORS4 = [(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (4, 0), (5, 1), (11, 0), (11, 1), (12, 0)]
ERRORS6 = [(1, 0), (1, 4), (2, 0), (3, 0), (3, 1), (4, 1)]


def error_about(quoted, kind=None, code=0, family=None):
    """As a router behind the server would send it."""
    if (family or quoted[0] >> 4) == 4:
        return Error("198.51.100.9", C4, quoted, 3 if kind is None else kind, code)
    return Error("2001:db8:9::9", C6, quoted, 1 if kind is None else kind, code)


def raw_parse(firewall, data, ifindex=OUTSIDE):
    """The parse of a packet that cannot be punted."""
    memory = ffi.new("uint8_t[]", bytes(data))
    packet = ffi.new("struct packet *", {"data": memory, "len": len(bytes(data)), "ifindex": ifindex})
    lib.fastpath_take(firewall.table, 0, packet, firewall.now)
    return packet


def quoted_key(firewall, data):
    packet = raw_parse(firewall, data)
    return bytes(ffi.buffer(ffi.addressof(packet, "quoted")))


@pytest.mark.parametrize("name", QUOTES)
def test_an_error_is_known_by_what_it_quotes(firewall, name):
    """The quoted tuple, whatever stands between its IP header and its ports."""
    quoted = bytes(QUOTES[name])
    firewall.s2c(error_about(quoted)).is_dropped("flow_icmp_error_no_session")
    packet = raw_parse(firewall, error_about(quoted))
    assert packet.kind == lib.PACKET_ICMP_ERROR
    sides, proto, _ = key_of_scapy(quoted)
    found = packet.quoted
    assert [(bytes(found.src), socket.ntohs(found.sport)), (bytes(found.dst), socket.ntohs(found.dport))] == sides
    assert (found.proto, found.zone) == (proto, 0)


@pytest.mark.parametrize("name", QUOTES)
def test_a_quote_cut_anywhere_is_dropped_or_means_the_same(firewall, name):
    """IP header and 8 bytes are enough (RFC 792); less is nothing."""
    quoted = bytes(QUOTES[name])
    whole = quoted_key(firewall, error_about(quoted))
    enough = {"options": 28 + 8, "headers6": 40 + 8 + 16 + 8}.get(name, (20 if quoted[0] >> 4 == 4 else 40) + 8)
    for end in range(len(quoted)):
        error = error_about(quoted[:end], family=quoted[0] >> 4)
        if end < enough:
            firewall.s2c(error).is_dropped("flow_parse_icmp_quote")
            continue
        firewall.s2c(error).is_dropped("flow_icmp_error_no_session")
        assert quoted_key(firewall, error) == whole


@pytest.mark.parametrize(("kind", "code"), ERRORS4)
def test_every_icmp_error_is_recognised(firewall, kind, code):
    """Unreachable, quench, redirect, time exceeded, parameter problem."""
    firewall.s2c(error_about(bytes(QUOTES["udp"]), kind, code)).is_dropped("flow_icmp_error_no_session")


@pytest.mark.parametrize(("kind", "code"), ERRORS6)
def test_every_icmpv6_error_is_recognised(firewall, kind, code):
    """Unreachable, too big, time exceeded, parameter problem."""
    firewall.s2c(error_about(bytes(QUOTES["udp6"]), kind, code)).is_dropped("flow_icmp_error_no_session")


def test_an_error_about_an_error_is_dropped(firewall):
    """RFC 1122 section 3.2.2: there are none."""
    for name in ["udp", "udp6"]:
        inner = bytes(error_about(bytes(QUOTES[name])))
        firewall.s2c(error_about(inner)).is_dropped("flow_parse_icmp_quote")


def test_a_quote_with_a_wrong_ip_checksum_is_dropped(firewall):
    """RFC 5508 REQ-3b."""
    quoted = bytearray(bytes(QUOTES["udp"]))
    quoted[8] -= 1
    firewall.s2c(error_about(bytes(quoted))).is_dropped("flow_parse_icmp_quote")
    quoted[10:12] = bytes(2)
    quoted[10:12] = checksum(bytes(quoted[:20])).to_bytes(2)
    firewall.s2c(error_about(bytes(quoted))).is_dropped("flow_icmp_error_no_session")


@pytest.mark.parametrize("name", ["udp", "tcp", "udp6"])
def test_the_transport_checksum_of_a_quote_is_not_looked_at(firewall, name):
    """RFC 5508 REQ-3c: the quote may be cut, so it cannot be verified."""
    packet = QUOTES[name].copy()
    transport(packet).chksum = 0x1234
    firewall.s2c(error_about(bytes(packet))).is_dropped("flow_icmp_error_no_session")


@pytest.mark.parametrize("state", ["CHECKSUM_TRUSTED", "CHECKSUM_UNVERIFIED"])
@pytest.mark.parametrize("name", ["udp", "udp6"])
def test_an_error_with_a_wrong_checksum_of_its_own_is_dropped(firewall, name, state):
    """RFC 5508 REQ-3a; it is made anew when the quote is translated, which must not launder it."""
    error = bytearray(bytes(error_about(bytes(QUOTES[name]))))
    error[-1] ^= 1
    firewall.s2c(bytes(error), checksum=getattr(lib, state)).is_dropped("flow_parse_l4_cksm")


def test_a_quote_of_the_other_family_is_dropped(firewall):
    """An IPv4 error quotes IPv4."""
    firewall.s2c(Error("198.51.100.9", C4, bytes(QUOTES["udp6"]), 3)).is_dropped("flow_parse_icmp_quote")
    firewall.s2c(Error("2001:db8:9::9", C6, bytes(QUOTES["udp"]), 1)).is_dropped("flow_parse_icmp_quote")


def test_a_later_fragment_in_a_quote_is_dropped(firewall):
    """It has no ports to be known by."""
    for fragment in [
        inet.IP(src=C4, dst=S4, frag=100, proto=17) / Raw(bytes(40)),
        inet6.IPv6(src=C6, dst=S6) / inet6.IPv6ExtHdrFragment(offset=10, nh=17) / Raw(bytes(40)),
    ]:
        firewall.s2c(error_about(bytes(fragment))).is_dropped("flow_parse_icmp_quote")


# ---- link control ----


@pytest.mark.parametrize(
    ("kind", "hop_limit", "passes"),
    [
        (133, 255, 1),
        (134, 255, 1),
        (135, 255, 1),
        (136, 255, 1),
        (135, 254, 0),
        (130, 1, 1),
        (131, 1, 1),
        (132, 1, 1),
        (143, 1, 1),
        (143, 2, 0),
    ],
)
def test_link_control_is_known_by_its_hop_limit(firewall, kind, hop_limit, passes):
    """RFC 4861 section 6.1, RFC 3810 section 5."""
    packet = inet6.IPv6(src="fe80::1", dst="ff02::1", hlim=hop_limit) / inet6.ICMPv6Unknown(
        type=kind, msgbody=bytes(20)
    )
    outcome = firewall.c2s(packet)
    assert outcome.verdict == (lib.VERDICT_ACCEPT if passes else lib.VERDICT_PUNT)
