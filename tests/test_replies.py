"""RST and ICMP unreachable as scapy reads them: addresses, sequence numbers, quotes, checksums."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrHopByHop
from scapy.packet import Packet, Raw

from dataplane.replies import RateLimit, tcp_reset, unreachable
from dataplane.routes import address_from_text
from tests.talk import dissect, recomputed

V4, V6 = ("10.1.0.2", "10.2.0.2"), ("fd00:1::2", "fd00:2::2")
OWN = {4: address_from_text("10.1.0.1"), 6: address_from_text("fd00:1::1")}


def header(ends: tuple[str, str]) -> Packet:
    kind = IPv6 if ":" in ends[0] else IP
    return kind(src=ends[0], dst=ends[1])


def offset(packet: Packet) -> int:
    """Of the TCP header."""
    return len(bytes(packet)) - len(bytes(packet[TCP]))


def reset(packet: Packet) -> Packet | None:
    """What refuses the packet, checked: turned round, every checksum but the kernel's right."""
    answer = tcp_reset(bytes(packet), offset(packet))
    if answer is None:
        return None
    parsed = dissect(answer)
    assert (parsed.src, parsed.dst) == (packet.dst, packet.src)
    assert (parsed[TCP].sport, parsed[TCP].dport) == (packet[TCP].dport, packet[TCP].sport)
    assert_checksums(answer)
    return parsed[TCP]


def refusal(packet: Packet, version: int) -> Packet:
    answer = unreachable(bytes(packet), OWN[version])
    assert answer is not None
    assert_checksums(answer)
    return dissect(answer)


def assert_checksums(answer: bytes) -> None:
    """scapy computes them anew; that of the IPv4 header is left to the kernel, which fills it in."""
    expected = bytearray(recomputed(answer))
    if answer[0] >> 4 == 4:
        expected[10:12] = answer[10:12]
    assert answer == bytes(expected)


@pytest.mark.parametrize("ends", [("10.1.0.2", "224.0.0.9"), ("224.0.0.9", "10.1.0.2"), ("fd00:1::2", "ff02::9")])
def test_a_group_of_hosts_is_neither_answered_nor_speaks(ends):
    """RFC 1122 section 3.2.2, for a RST as for an unreachable."""
    assert reset(header(ends) / TCP(sport=4000, dport=80, flags="A")) is None


@pytest.mark.parametrize("ends", [V4, V6])
def test_a_syn_is_refused_as_a_closed_port_would(ends):
    """RFC 9293 section 3.10.7.1: sequence 0, and an acknowledgement of the SYN."""
    answer = reset(header(ends) / TCP(sport=4000, dport=80, flags="S", seq=1000, options=[("MSS", 1460)]))
    assert answer is not None
    assert (answer.flags, answer.seq, answer.ack, answer.window) == ("RA", 0, 1001, 0)


@pytest.mark.parametrize("ends", [V4, V6])
def test_data_in_a_syn_is_acknowledged_with_it(ends):
    """Fast open: every sequence number that the segment takes counts, over the edge of 2**32 too."""
    answer = reset(header(ends) / TCP(sport=4000, dport=80, flags="S", seq=2**32 - 3) / Raw(b"12345"))
    assert answer is not None
    assert (answer.flags, answer.ack) == ("RA", 3)


def test_a_segment_with_an_acknowledgement_is_refused_at_it():
    """RFC 9293: the RST takes its sequence number from the segment and acknowledges nothing."""
    answer = reset(header(V4) / TCP(sport=4000, dport=80, flags="PA", seq=5, ack=777) / Raw(b"x"))
    assert answer is not None
    assert (answer.flags, answer.seq, answer.ack) == ("R", 777, 0)


@pytest.mark.parametrize("flags", ["R", "RA"])
def test_a_reset_is_not_answered(flags):
    """Two firewalls would talk to each other for ever."""
    assert reset(header(V4) / TCP(sport=4000, dport=80, flags=flags)) is None


def test_extension_headers_are_not_taken_for_payload():
    """The transport header is where the parser found it."""
    answer = reset(header(V6) / IPv6ExtHdrHopByHop() / TCP(sport=4000, dport=80, flags="S", seq=1))
    assert answer is not None
    assert answer.ack == 2


def test_padding_behind_the_datagram_is_not_payload():
    """The IP header says where the packet ends."""
    packet = header(V4) / TCP(sport=4000, dport=80, flags="S", seq=1)
    answer = tcp_reset(bytes(packet) + bytes(6), offset(packet))
    assert answer is not None
    assert dissect(answer)[TCP].ack == 2


def test_administratively_prohibited():
    """ICMP type 3 code 13, from the firewall to the client, with the refused packet inside."""
    refused = header(V4) / UDP(sport=4000, dport=53) / Raw(b"question")
    answer = refusal(refused, 4)
    assert (answer.src, answer.dst) == ("10.1.0.1", "10.1.0.2")
    assert (answer[ICMP].type, answer[ICMP].code) == (3, 13)
    assert bytes(answer[ICMP])[8:] == bytes(refused)


def test_administratively_prohibited_in_ipv6():
    """ICMPv6 type 1 code 1."""
    refused = header(V6) / UDP(sport=4000, dport=53) / Raw(b"question")
    answer = refusal(refused, 6)
    assert (answer.src, answer.dst) == ("fd00:1::1", "fd00:1::2")
    assert (answer[ICMPv6DestUnreach].type, answer[ICMPv6DestUnreach].code) == (1, 1)
    assert bytes(answer[ICMPv6DestUnreach])[8:] == bytes(refused)


@pytest.mark.parametrize(("ends", "version", "most"), [(V4, 4, 576), (V6, 6, 1280)])
@pytest.mark.parametrize("length", [1, 547, 1200, 1201, 1400])
def test_an_error_stays_within_its_bound(ends, version, most, length):
    """Whatever the length of what it quotes, an odd one too."""
    answer = refusal(header(ends) / UDP(sport=4000, dport=53) / Raw((bytes(range(256)) * 6)[:length]), version)
    assert len(bytes(answer)) <= most


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("0.0.0.0", "10.2.0.2"),
        ("10.1.0.2", "224.0.0.9"),
        ("10.1.0.2", "255.255.255.255"),
        ("::", "fd00:2::2"),
        ("fd00:1::2", "ff02::1"),
    ],
)
def test_nobody_in_particular_is_not_answered(source, destination):
    """RFC 1122 section 3.2.2, RFC 4443 section 2.4."""
    version = 6 if ":" in source else 4
    packet = header((source, destination)) / UDP(sport=4000, dport=53) / Raw(b"question")
    assert unreachable(bytes(packet), OWN[version]) is None


def test_no_address_of_the_packets_family_no_answer():
    """An IPv4 address cannot send an ICMPv6 error."""
    assert unreachable(bytes(header(V6) / UDP()), OWN[4]) is None


def test_answers_are_limited_and_saved_up_for_a_second(monkeypatch):
    """A flood of refused packets makes no flood of answers."""
    now = [100.0]
    monkeypatch.setattr("dataplane.replies.time.monotonic", lambda: now[0])
    limit = RateLimit(10)
    assert [limit.allows() for _ in range(11)] == [True] * 10 + [False]
    now[0] += 0.25
    assert [limit.allows() for _ in range(3)] == [True, True, False]
    now[0] += 3600
    assert sum(limit.allows() for _ in range(20)) == 10
