"""Translation written into packets: exact to the byte, with checksums that scapy and RFC 1071 agree with."""

from collections.abc import Callable

import pytest
from scapy.layers import inet, inet6
from scapy.packet import Packet, Raw

from dataplane.ffi import lib
from tests.reference import adjusted, checksum, ones_sum, pseudo_header, transport_is_valid
from tests.talk import (
    TCP,
    UDP,
    Echo,
    EchoReply,
    Error,
    Firewall,
    dissect,
    endpoint,
    endpoints,
    normal,
    recomputed,
    transport,
    without_translation,
)

# client, server, translated source, virtual address
ADDRESSES = {
    4: ("10.0.0.5", "8.8.8.8", "192.0.2.1", "203.0.113.1"),
    6: ("fd00::5", "2001:db8::8", "2001:db8:1::1", "2001:db8:f::1"),
}
PAYLOADS = [b"", b"x", b"odd", b"\xff" * 100, bytes(range(256)) * 5 + b"!"]
TRANSLATIONS = ["source", "static", "destination", "both"]
CHECKSUMS = [lib.CHECKSUM_TRUSTED, lib.CHECKSUM_UNVERIFIED, lib.CHECKSUM_PARTIAL]


@pytest.fixture
def firewall():
    with Firewall() as firewall:
        yield firewall


def at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Path:
    """What client and server see of one translated flow: each end's own address and what it takes for the other's."""

    def __init__(self, firewall, family, translation, ports=True):
        client, server, pool, virtual = ADDRESSES[family]
        sport, dport, new_sport, new_dport = (4000, 53, 1024, 5353) if ports else (4000, 0, 1024, 0)
        changes_source, changes_destination = translation != "destination", translation in ("destination", "both")
        if translation == "static":
            new_sport = sport
        self.client = at(client, sport)
        self.asked = at(virtual, dport) if changes_destination else at(server, dport)
        self.server = at(server, new_dport) if changes_destination else at(server, dport)
        self.seen = at(pool, new_sport) if changes_source else at(client, sport)
        firewall.decides(
            source=pool if changes_source else None,
            ports=(1024, 1024) if translation in ("source", "both") else None,
            destination=at(server, new_dport) if changes_destination else None,
        )


def with_partial_checksum(packet):
    """As a local sender leaves it to the hardware: only the pseudo header is summed, and not inverted."""
    data = bytearray(bytes(packet))
    layer = transport(dissect(bytes(data)))
    l4 = len(data) - len(layer.original)
    place = l4 + (6 if isinstance(layer, inet.UDP) else 16)
    addresses = (data[12:16], data[16:20]) if data[0] >> 4 == 4 else (data[8:24], data[24:40])
    proto = 17 if isinstance(layer, inet.UDP) else 6
    data[place : place + 2] = ones_sum(
        pseudo_header(bytes(addresses[0]), bytes(addresses[1]), proto, len(data) - l4)
    ).to_bytes(2)
    return bytes(data)


def check_reference(outcome, proto):
    """The reference's opinion of what scapy has accepted already."""
    data = outcome.after
    l4 = 20 if data[0] >> 4 == 4 else 40
    assert transport_is_valid(data, l4, proto)
    if l4 == 20:
        assert ones_sum(data[:20]) == 0xFFFF


@pytest.mark.parametrize("checksum_state", CHECKSUMS)
@pytest.mark.parametrize("translation", TRANSLATIONS)
@pytest.mark.parametrize("family", [4, 6])
def test_a_datagram_changes_its_endpoints_and_nothing_else(firewall, family, translation, checksum_state):
    """Both directions, payloads of odd and even length, with every checksum state that the kernel hands us."""
    path = Path(firewall, family, translation)
    prepare = with_partial_checksum if checksum_state == lib.CHECKSUM_PARTIAL else bytes
    for payload in PAYLOADS:
        there, back = UDP(path.client, path.asked, payload), UDP(path.server, path.seen, payload)
        outcome = firewall.c2s(prepare(there), checksum=checksum_state).leaves_as(path.seen, path.server)
        check_reference(outcome, 17)
        outcome = firewall.s2c(prepare(back), checksum=checksum_state).leaves_as(path.asked, path.client)
        check_reference(outcome, 17)


@pytest.mark.parametrize("checksum_state", CHECKSUMS)
@pytest.mark.parametrize("translation", TRANSLATIONS)
@pytest.mark.parametrize("family", [4, 6])
def test_a_segment_changes_its_endpoints_and_nothing_else(firewall, family, translation, checksum_state):
    """The same for TCP, after a handshake whose numbers begin at 0."""
    path = Path(firewall, family, translation)
    prepare = with_partial_checksum if checksum_state == lib.CHECKSUM_PARTIAL else bytes
    firewall.c2s(TCP(path.client, path.asked, "S")).leaves_as(path.seen, path.server)
    firewall.s2c(TCP(path.server, path.seen, "SA", ack=1)).leaves_as(path.asked, path.client)
    for payload in PAYLOADS:
        there = TCP(path.client, path.asked, "PA", payload, seq=1, ack=1)
        back = TCP(path.server, path.seen, "PA", payload, seq=1, ack=1)
        outcome = firewall.c2s(prepare(there), checksum=checksum_state).leaves_as(path.seen, path.server)
        check_reference(outcome, 6)
        outcome = firewall.s2c(prepare(back), checksum=checksum_state).leaves_as(path.asked, path.client)
        check_reference(outcome, 6)


@pytest.mark.parametrize("translation", TRANSLATIONS)
@pytest.mark.parametrize("family", [4, 6])
def test_echo_is_translated_with_its_identifier(firewall, family, translation):
    """ICMPv6 has a pseudo header in its checksum, ICMP has none."""
    path = Path(firewall, family, translation, ports=False)
    for payload in PAYLOADS:
        outcome = firewall.c2s(Echo(path.client, path.asked, payload)).leaves_as(path.seen, path.server)
        check_reference(outcome, 1 if family == 4 else 58)
        outcome = firewall.s2c(EchoReply(path.server, path.seen, payload)).leaves_as(path.asked, path.client)
        check_reference(outcome, 1 if family == 4 else 58)


@pytest.mark.parametrize("family", [4, 6])
def test_a_udp_checksum_of_zero_stays_zero(firewall, family):
    """There was none, and there will be none."""
    path = Path(firewall, family, "both")
    outcome = firewall.c2s(UDP(path.client, path.asked, chksum=0)).leaves_as(path.seen, path.server)
    assert outcome.packet["UDP"].chksum == 0


@pytest.mark.parametrize("checksum_state", CHECKSUMS)
@pytest.mark.parametrize("family", [4, 6])
def test_a_udp_checksum_that_becomes_zero_is_sent_as_ffff(firewall, family, checksum_state):
    """RFC 768: zero would say that there is none."""
    path = Path(firewall, family, "both")
    probe = firewall.c2s(UDP(path.client, path.asked, b"\0\0")).packet["UDP"].chksum
    packet = UDP(path.client, path.asked, probe.to_bytes(2))
    data = with_partial_checksum(packet) if checksum_state == lib.CHECKSUM_PARTIAL else bytes(packet)
    assert firewall.c2s(data, checksum=checksum_state).leaves_as(path.seen, path.server).packet["UDP"].chksum == 0xFFFF


def test_a_checksum_over_nothing_stays_as_it_is(firewall):
    """Bytes that are all 0 have the checksum 0xffff, and a translation that changes none of them must not make it 0."""
    firewall.decides(source="192.0.2.1")
    firewall.c2s(EchoReply("10.0.0.5", "8.8.8.8", bytes(56))).leaves_as("192.0.2.1", "8.8.8.8")


def test_a_tcp_checksum_may_be_zero(firewall):
    """Only UDP reads a meaning into it."""
    path = Path(firewall, 4, "both")
    probe = firewall.c2s(TCP(path.client, path.asked, "S", b"\0\0")).packet["TCP"].chksum
    outcome = firewall.c2s(TCP(path.client, path.asked, "S", probe.to_bytes(2))).leaves_as(path.seen, path.server)
    assert outcome.packet["TCP"].chksum == 0


def test_incremental_and_full_checksums_are_the_same():
    """RFC 1624 against RFC 1071, on the reference itself."""
    words = [0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF]
    for a in words:
        for b in words:
            old, new = b"\x12\x34" + a.to_bytes(2), b"\x12\x34" + b.to_bytes(2)
            assert adjusted(checksum(old), old, new) == checksum(new)


def test_ip_options_and_extension_headers_are_left_alone(firewall):
    """The transport header is found behind them."""
    firewall.decides(source="192.0.2.1", ports=(1024, 1024))
    options = inet.IP(src="10.0.0.5", dst="8.8.8.8", options=[inet.IPOption_RR(routers=["1.2.3.4"])])
    firewall.c2s(options / inet.UDP(sport=4000, dport=53) / Raw(b"x")).leaves_as("192.0.2.1:1024", "8.8.8.8:53")
    firewall.decides(source="2001:db8:1::1", ports=(1024, 1024))
    chain = inet6.IPv6(src="fd00::5", dst="2001:db8::8") / inet6.IPv6ExtHdrDestOpt(
        options=[inet6.PadN(optdata=bytes(4))]
    )
    firewall.c2s(chain / inet.UDP(sport=4000, dport=53) / Raw(b"x")).leaves_as(
        "[2001:db8:1::1]:1024", "[2001:db8::8]:53"
    )


def test_a_protocol_without_ports_changes_its_addresses(firewall):
    """GRE and ESP sum no pseudo header: only the IP header changes."""
    firewall.decides(source="192.0.2.1", ports=(1024, 1024))
    body = b"\0\0\x08\0" + bytes(range(100))
    outcome = firewall.c2s(inet.IP(src="10.0.0.5", dst="8.8.8.8", proto=47) / Raw(body))
    assert (outcome.packet.src, outcome.after[20:]) == ("192.0.2.1", body)
    assert outcome.after == recomputed(outcome.after)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("size", [1, 1473, 9000, 65480])
def test_a_partial_checksum_is_completed(firewall, family, size):
    """The kernel forgets that it was partial once we hand the payload back (design.md section 3)."""
    path = Path(firewall, family, "both")
    packet = TCP(path.client, path.asked, "S", (b"\xa5\x5a\xff" * 30000)[:size])
    outcome = firewall.c2s(with_partial_checksum(packet), checksum=lib.CHECKSUM_PARTIAL)
    outcome.leaves_as(path.seen, path.server)
    check_reference(outcome, 6)


@pytest.mark.parametrize("build", [TCP, UDP])
@pytest.mark.parametrize("family", [4, 6])
def test_a_super_packet_that_goes_on_keeps_a_partial_checksum(firewall, build, family):
    """The kernel cuts it later, and each segment's checksum begins with the pseudo header's sum of the new tuple."""
    path = Path(firewall, family, "both")
    sent = with_partial_checksum(build(path.client, path.asked, payload=bytes(range(250)) * 250))
    outcome = firewall.c2s(sent, checksum=lib.CHECKSUM_SUPER)
    expected = with_partial_checksum(build(path.seen, path.server, payload=bytes(range(250)) * 250))
    assert outcome.after == expected


@pytest.mark.parametrize("build", [TCP, UDP])
@pytest.mark.parametrize("family", [4, 6])
def test_a_super_packet_for_the_firewall_itself_is_summed_whole(firewall, build, family):
    """It is delivered as it is: nobody cuts it any more."""
    path = Path(firewall, family, "destination")
    assert firewall.decision is not None
    firewall.decision |= {"flags": lib.FLAG_HOST, "egress_zone": lib.ZONE_HOST}
    sent = with_partial_checksum(build(path.client, path.asked, payload=bytes(range(250)) * 250))
    outcome = firewall.c2s(sent, checksum=lib.CHECKSUM_SUPER).leaves_as(path.seen, path.server)
    check_reference(outcome, 17 if build is UDP else 6)


def test_an_untranslated_flow_is_never_handed_back(firewall):
    """A verdict without payload is much cheaper, and keeps the partial checksum."""
    firewall.decides()
    data = with_partial_checksum(TCP("10.0.0.5:4000", "8.8.8.8:80", "S", bytes(1000)))
    firewall.c2s(data, checksum=lib.CHECKSUM_PARTIAL).passes()


# ---- ICMP errors, in their receiver's view ----

KINDS = {
    4: [(3, 0), (3, 3), (3, 4), (3, 13), (4, 0), (11, 0), (11, 1), (12, 0)],
    6: [(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)],
}
BUILDERS: dict[str, Callable[..., Packet]] = {"udp": UDP, "tcp": TCP, "echo": Echo}
CASES = [(family, kind, code) for family, kinds in KINDS.items() for kind, code in kinds]
ROUTER = {4: "198.51.100.9", 6: "2001:db8:9::9"}


def quoted_in(outcome):
    """The quoted packet, as bytes."""
    layer = transport(outcome.packet)
    return layer.original[8:]


def host(text):
    return normal(endpoint(text)[0])


def check_error(outcome, source, destination, quoted):
    """Outer addresses, outer checksum, and a quote that is the receiver's own packet to the byte."""
    assert (normal(outcome.packet.src), normal(outcome.packet.dst)) == (host(source), host(destination))
    data = outcome.after
    assert data == recomputed(data)
    assert transport_is_valid(data, 20 if data[0] >> 4 == 4 else 40, 1 if data[0] >> 4 == 4 else 58)
    assert quoted_in(outcome) == quoted


def aged(data, hops=3):
    """After some routers: the hop limit is lower, and the IPv4 checksum follows."""
    packet = dissect(data)
    if packet.version == 6:
        packet.hlim -= hops
        return bytes(packet)
    packet.ttl -= hops
    packet.chksum = None
    return bytes(packet)


@pytest.mark.parametrize("translation", TRANSLATIONS)
@pytest.mark.parametrize(("family", "kind", "code"), CASES)
@pytest.mark.parametrize("protocol", ["udp", "tcp", "echo"])
def test_an_error_from_outside_shows_the_client_its_own_packet(firewall, protocol, family, kind, code, translation):
    """From the server, and from a router, which hides behind the virtual address too; whole and cut to 8 bytes."""
    path = Path(firewall, family, translation, ports=protocol != "echo")
    sent = bytes(BUILDERS[protocol](path.client, path.asked))
    arrived = aged(firewall.c2s(sent).leaves_as(path.seen, path.server).after)
    header = 20 if family == 4 else 40
    for end in {len(sent), header + 8}:
        error = Error(ROUTER[family], host(path.seen), arrived[:end], kind, code)
        router = path.asked if translation in ("destination", "both") else ROUTER[family]
        check_error(firewall.s2c(error), router, path.client, aged(sent)[:end])
        error = Error(host(path.server), host(path.seen), arrived[:end], kind, code)
        check_error(firewall.s2c(error), path.asked, path.client, aged(sent)[:end])


@pytest.mark.parametrize("translation", TRANSLATIONS)
@pytest.mark.parametrize(("family", "kind", "code"), CASES)
def test_an_error_from_inside_shows_the_server_its_own_packet(firewall, family, kind, code, translation):
    """RFC 5508 REQ-5: what the client or a router before it says appears to come from the translated source."""
    path = Path(firewall, family, translation)
    firewall.c2s(UDP(path.client, path.asked))
    sent = bytes(UDP(path.server, path.seen, b"answer"))
    arrived = aged(firewall.s2c(sent).leaves_as(path.asked, path.client).after)
    error = Error(host(path.client), host(path.asked), arrived, kind, code)
    check_error(firewall.c2s(error), path.seen, path.server, aged(sent))
    router = ROUTER[family]
    error = Error(router, host(path.asked), arrived, kind, code)
    check_error(firewall.c2s(error), router if translation == "destination" else path.seen, path.server, aged(sent))


@pytest.mark.parametrize("end", range(28, 41))
def test_a_quoted_segment_may_be_cut_within_its_header(firewall, end):
    """Its checksum is translated if it is all there, and nothing behind the quote is touched."""
    path = Path(firewall, 4, "both")
    sent = bytes(TCP(path.client, path.asked))
    arrived = firewall.c2s(sent).after
    error = bytes(Error(host(path.server), host(path.seen), arrived[:end], 11))
    outcome = firewall.s2c(error + b"pad!")
    assert outcome.after[len(error) :] == b"pad!"
    whole = sent[: min(end, 36)] + arrived[36:end] if end < 38 else sent[:end]
    assert outcome.after[28 : len(error)] == whole


def test_a_quoted_udp_checksum_of_zero_stays_zero(firewall):
    """The quote is not improved either."""
    path = Path(firewall, 4, "both")
    sent = bytes(UDP(path.client, path.asked, chksum=0))
    arrived = firewall.c2s(sent).after
    check_error(firewall.s2c(Error(ROUTER[4], host(path.seen), arrived, 3, 3)), path.asked, path.client, sent)


def test_options_in_a_quote_are_walked(firewall):
    """RFC 5508 REQ-3: the quoted transport header stands behind them."""
    firewall.decides(source="192.0.2.1", ports=(1024, 1024))
    header = inet.IP(src="10.0.0.5", dst="8.8.8.8", options=[inet.IPOption_RR(routers=["1.2.3.4"])])
    sent = bytes(header / inet.UDP(sport=4000, dport=53) / Raw(b"x"))
    arrived = firewall.c2s(sent).after
    check_error(firewall.s2c(Error(ROUTER[4], "192.0.2.1", arrived, 3, 3)), ROUTER[4], "10.0.0.5:0", sent)


def test_rfc_4884_extensions_are_carried_along(firewall):
    """What follows the quote is not looked at (RFC 5508 REQ-3d), but summed."""
    path = Path(firewall, 4, "source")
    sent = bytes(UDP(path.client, path.asked)).ljust(128, b"\0")
    arrived = firewall.c2s(sent).after
    extension = b"\x20\0\xab\xcd\0\x08\x01\x01\x00\x10\x01\x01"
    error = Error(ROUTER[4], host(path.seen), arrived + extension, 11)
    check_error(firewall.s2c(error), ROUTER[4], path.client, sent + extension)


def test_hairpin_errors_reach_the_inside(firewall):
    """Client and server share a zone and are both translated."""
    firewall.decides(source="192.0.2.1", ports=(1024, 1024), destination="10.0.0.9:53", egress_zone=1)
    sent = bytes(UDP("10.0.0.5:4000", "203.0.113.1:53"))
    arrived = firewall.c2s(sent).leaves_as("192.0.2.1:1024", "10.0.0.9:53").after
    error = Error("10.0.0.9", "192.0.2.1", arrived, 3, 3)
    check_error(firewall.c2s(error), "203.0.113.1:0", "10.0.0.5:0", sent)


def test_blanking_hides_only_what_translation_changes():
    """The oracle's own tool: one byte elsewhere is a difference."""
    data = bytes(UDP("10.0.0.5:4000", "8.8.8.8:53", b"abc"))
    other = bytes(UDP("192.0.2.1:1024", "9.9.9.9:54", b"abc"))
    assert without_translation(data) == without_translation(other)
    for i in [*range(1), 1, 8, 9, 24, 28, 30]:
        changed = bytearray(data)
        changed[i] ^= 1 if i else 0
        assert (without_translation(bytes(changed)) == without_translation(data)) == (i == 0)
    assert endpoints(dissect(data)) == (("10.0.0.5", 4000), ("8.8.8.8", 53))
