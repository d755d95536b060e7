"""The order of the steps that a packet takes, told as conversations."""

import socket

import pytest
from scapy.layers import inet
from scapy.layers.inet import IP
from scapy.layers.l2 import GRE

from dataplane.ffi import ffi, lib
from tests.talk import INSIDE, OUTSIDE, TCP, UDP, Connection, Echo, EchoReply, Error, Firewall, recomputed

QUESTION, ANSWER = UDP("10.0.0.5:4000", "8.8.8.8:69"), UDP("8.8.8.8:69", "192.0.2.1:1024")
NDP = b"\x60\0\0\0\0\x18\x3a\xff" + b"\xfe\x80" + bytes(14) + b"\xff\x02" + bytes(13) + b"\x01"


@pytest.fixture
def firewall():
    with Firewall() as firewall:
        yield firewall


def test_source_nat_is_undone_on_the_way_back(firewall):
    """The client never learns that its address was translated."""
    firewall.decides(source="192.0.2.1", ports=(1024, 1024))
    firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).leaves_as("192.0.2.1:1024", "8.8.8.8:53")
    firewall.s2c(UDP("8.8.8.8:53", "192.0.2.1:1024")).leaves_as("8.8.8.8:53", "10.0.0.5:4000")


def test_a_first_packet_goes_to_the_slow_path_and_a_second_one_does_not(firewall):
    """Python decides once."""
    firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).is_punted()
    firewall.decides().c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).passes()
    firewall.asks().c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).passes()
    firewall.s2c(UDP("8.8.8.8:53", "10.0.0.5:4000")).passes()


def test_a_packet_that_the_slow_path_has_seen_is_not_bounced_again(firewall):
    """A marked miss is dropped, or two queues would play ping-pong."""
    firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53"), mark=lib.MARK_SEEN).is_dropped("flow_marked_miss")


def test_an_interface_without_a_zone_is_dropped(firewall):
    """No zone, no policy."""
    firewall.send(UDP("10.0.0.5:4000", "8.8.8.8:53"), 7).is_dropped("flow_no_interface")
    assert firewall.look(UDP("10.0.0.5:4000", "8.8.8.8:53"), 7)[0] == lib.VERDICT_DROP


def test_the_zone_is_part_of_the_key(firewall):
    """The same tuple from another zone is another flow: a spoofed answer does not find the session."""
    firewall.decides(egress_zone=OUTSIDE).c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).passes()
    firewall.asks().s2c(UDP("10.0.0.5:4000", "8.8.8.8:53")).is_punted()
    firewall.c2s(UDP("8.8.8.8:53", "10.0.0.5:4000")).is_punted()


@pytest.mark.parametrize("flags", ["SA", "A", "R", "RA", "FA", "PA"])
def test_a_connection_begins_with_a_syn(firewall, flags):
    """PAN-OS: tcp-reject-non-syn is on by default."""
    firewall.c2s(TCP("10.0.0.5:4000", "8.8.8.8:80", flags)).is_dropped("flow_tcp_non_syn_drop")


def test_mid_stream_packets_are_decided_where_non_syn_is_allowed(firewall):
    """An answer or a RST without a session stays dropped: nothing can begin with it."""
    firewall.configure(reject_non_syn=False)
    firewall.c2s(TCP("10.0.0.5:4000", "8.8.8.8:80", "A")).is_punted()
    firewall.c2s(TCP("10.0.0.5:4000", "8.8.8.8:80", "SA")).is_dropped("flow_tcp_non_syn_drop")
    firewall.c2s(TCP("10.0.0.5:4000", "8.8.8.8:80", "R")).is_dropped("flow_tcp_non_syn_drop")


@pytest.mark.parametrize("flags", ["SA", "A", "FA", "PA"])
def test_the_slow_path_resets_what_belongs_to_no_session_where_the_zone_says_so(firewall, flags):
    """`non-syn: reset`: a RST is never answered, nor is anything from another zone."""
    firewall.configure(reset_non_syn=[INSIDE])
    stray = TCP("10.0.0.5:4000", "8.8.8.8:80", flags)
    firewall.c2s(stray).is_punted()
    assert firewall.look(stray)[0] == lib.VERDICT_RESET
    firewall.s2c(stray).is_dropped("flow_tcp_non_syn_drop")
    assert firewall.look(stray, OUTSIDE)[0] == lib.VERDICT_DROP
    firewall.c2s(TCP("10.0.0.5:4000", "8.8.8.8:80", "R")).is_dropped("flow_tcp_non_syn_drop")
    firewall.c2s(TCP("10.0.0.5:4000", "8.8.8.8:80", "RA")).is_dropped("flow_tcp_non_syn_drop")
    firewall.c2s(stray, mark=lib.MARK_SEEN).is_dropped("flow_marked_miss")


def test_a_zone_that_resets_still_picks_up_where_non_syn_is_allowed(firewall):
    """What may begin a session does; only an answer to nothing is reset."""
    firewall.configure(reject_non_syn=False, reset_non_syn=[INSIDE])
    assert firewall.look(TCP("10.0.0.5:4000", "8.8.8.8:80", "A"))[0] == lib.VERDICT_PUNT
    assert firewall.look(TCP("10.0.0.5:4000", "8.8.8.8:80", "SA"))[0] == lib.VERDICT_RESET


def test_a_denied_flow_dies_in_the_fast_path(firewall):
    """Hits on a DISCARD session are dropped, counted by the session, and do not keep it alive."""
    firewall.refuses()
    firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).is_dropped("flow_policy_deny")
    for _ in range(5):
        firewall.wait(11)
        firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).is_dropped("flow_discard_hit")
    assert list(firewall.session().packets) == [6, 0]
    assert list(firewall.session().bytes) == [6 * 36, 0]
    assert firewall.state() == "DISCARD"
    firewall.wait(6)
    assert [ended.reason for ended in firewall.expire()] == ["aged-out"]


def test_what_was_refused_outside_does_not_keep_the_same_connection_from_inside_out(firewall):
    """RFC 5382 REQ-4a: an unsolicited SYN from outside, then the client's own between the same two ports."""
    firewall.decision = {"egress_zone": INSIDE, "ingress": OUTSIDE, "egress": INSIDE, "discard": 1}
    firewall.s2c(TCP("8.8.8.8:80", "10.0.0.5:4000", "S", seq=1)).is_dropped("flow_policy_deny")
    refused = firewall.installed
    Connection(firewall.decides()).open()
    assert [ended.id for ended in firewall.expire()] == [refused]
    assert (firewall.state(), firewall.stats()["discard"], firewall.stats()["tcp"]) == ("ACTIVE", 0, 1)


def test_each_direction_is_refused_by_a_session_of_its_own(firewall):
    """Denied both ways: two DISCARD sessions, and neither ends the other."""
    firewall.decision = {"egress_zone": INSIDE, "ingress": OUTSIDE, "egress": INSIDE, "discard": 1}
    firewall.s2c(UDP("8.8.8.8:80", "10.0.0.5:4000")).is_dropped("flow_policy_deny")
    firewall.refuses().c2s(UDP("10.0.0.5:4000", "8.8.8.8:80")).is_dropped("flow_policy_deny")
    firewall.s2c(UDP("8.8.8.8:80", "10.0.0.5:4000")).is_dropped("flow_discard_hit")
    firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:80")).is_dropped("flow_discard_hit")
    assert firewall.stats()["discard"] == 2


def test_a_discarded_connection_is_not_tracked(firewall):
    """DISCARD sessions keep list links where others keep sequence numbers."""
    firewall.refuses()
    firewall.c2s(TCP("10.0.0.5:4000", "8.8.8.8:80")).is_dropped("flow_policy_deny")
    firewall.c2s(TCP("10.0.0.5:4001", "8.8.8.8:80")).is_dropped("flow_policy_deny")
    firewall.c2s(TCP("10.0.0.5:4000", "8.8.8.8:80", "R", seq=5)).is_dropped("flow_discard_hit")
    firewall.s2c(TCP("8.8.8.8:80", "10.0.0.5:4000", "SA", seq=5)).is_dropped("flow_tcp_non_syn_drop")
    assert firewall.stats()["discard"] == 2


def test_a_closing_session_is_not_seen_any_more(firewall):
    """The next packet of a cleared flow is a first packet."""
    firewall.decides().c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).passes()
    old = firewall.installed
    assert firewall.end(old)
    firewall.asks().c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).is_punted()
    firewall.decides().c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).passes()
    assert firewall.installed != old
    assert [(ended.id, ended.reason) for ended in firewall.expire()] == [(old, "unknown")]
    firewall.asks().c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).passes()


def test_a_session_counts_what_arrived(firewall):
    """IP bytes and packets by direction, padding after the datagram left out."""
    firewall.decides().c2s(bytes(UDP("10.0.0.5:4000", "8.8.8.8:53", b"12345678")) + bytes(10)).passes()
    firewall.s2c(UDP("8.8.8.8:53", "10.0.0.5:4000", bytes(1000))).passes()
    session = firewall.session()
    assert list(session.packets) == [1, 1]
    assert list(session.bytes) == [36, 1028]


def test_a_translated_port_is_not_for_what_has_none(firewall):
    """A destination rule for any service sends a ping and a tunnel on by its address alone, and back."""
    firewall.decides(destination="10.3.0.80:8080")
    firewall.c2s(Echo("10.0.0.5:77", "8.8.8.8")).leaves_as("10.0.0.5:77", "10.3.0.80")
    firewall.s2c(EchoReply("10.3.0.80", "10.0.0.5:77")).leaves_as("8.8.8.8", "10.0.0.5:77")
    tunnel = IP(src="10.0.0.5", dst="8.8.8.8") / GRE() / b"inside"
    assert firewall.c2s(tunnel).after[20:] == bytes(tunnel)[20:]


def test_echo_and_reply_are_one_session(firewall):
    """The identifier is the client's port."""
    firewall.decides().c2s(Echo("10.0.0.5:77", "8.8.8.8")).passes()
    firewall.asks().s2c(EchoReply("8.8.8.8", "10.0.0.5:77")).passes()
    firewall.s2c(EchoReply("8.8.8.8", "10.0.0.5:78")).is_punted()


def test_the_firewalls_own_packets_come_from_the_host_zone(firewall):
    """Seen in OUTPUT; its answers arrive from outside."""
    firewall.decides(flags=lib.FLAG_HOST)
    firewall.own(UDP("192.0.2.254:4000", "8.8.8.8:53")).passes()
    assert firewall.session().key[0].zone == lib.ZONE_HOST
    firewall.asks().s2c(UDP("8.8.8.8:53", "192.0.2.254:4000")).passes()


def test_an_error_without_a_session_is_dropped(firewall):
    """RFC 5508 REQ-4: it would be a way in."""
    quoted = bytes(UDP("10.0.0.5:4000", "8.8.8.8:53"))
    firewall.s2c(Error("8.8.8.8", "10.0.0.5", quoted, 3, 3)).is_dropped("flow_icmp_error_no_session")


def test_an_error_about_a_denied_flow_is_dropped(firewall):
    """What policy denies does not come back as an error."""
    quoted = bytes(UDP("10.0.0.5:4000", "8.8.8.8:53"))
    firewall.refuses().c2s(quoted).is_dropped("flow_policy_deny")
    firewall.s2c(Error("8.8.8.8", "10.0.0.5", quoted, 3, 3)).is_dropped("flow_icmp_error_no_session")


def test_an_error_neither_refreshes_nor_ends_a_session(firewall):
    """RFC 5508 REQ-6."""
    quoted = bytes(UDP("10.0.0.5:4000", "8.8.8.8:53"))
    firewall.decides().c2s(quoted).passes()
    for _ in range(3):
        firewall.wait(9)
        outcome = firewall.s2c(Error("8.8.8.8", "10.0.0.5", quoted, 3, 3)).passes()
        assert outcome.counted["pkt_icmp_error"] == 1
    assert firewall.expire() == []
    firewall.wait(3.2)
    assert [ended.packets for ended in firewall.expire()] == [(1, 0)]


def test_an_error_of_our_own_kernel_finds_its_session_in_any_zone(firewall):
    """TTL exceeded of a translated packet is addressed to our own pool: it is for the client."""
    firewall.decides(source="192.0.2.1", ports=(1024, 1024))
    sent = firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).after
    outcome = firewall.own(Error("198.51.100.1", "192.0.2.1", sent, 11))
    assert outcome.packet.dst == "10.0.0.5"
    assert outcome.packet.src == "198.51.100.1"
    inner = outcome.packet["IPerror"]
    assert (inner.src, inner["UDPerror"].sport) == ("10.0.0.5", 4000)


def test_neighbour_discovery_passes_without_a_session(firewall):
    """It never leaves the link, so no policy is asked."""
    advertisement = b"\x86\0\0\0" + bytes(20)
    outcome = firewall.c2s(NDP + advertisement).passes()
    assert outcome.counted["pkt_link_control"] == 1
    assert firewall.stats()["allocated"] == 0


def test_forwarded_neighbour_discovery_is_no_link_control(firewall):
    """With a hop limit that a router has touched it is an ordinary packet."""
    touched = bytearray(NDP + b"\x86\0\0\0" + bytes(20))
    touched[7] = 254
    firewall.c2s(bytes(touched)).is_punted()


def test_discovery_over_a_virtual_wire_is_for_any_address(firewall):
    """Both ends are on one link; routed, the same would be on its way to another."""
    to_one_host = NDP[:24] + socket.inet_pton(socket.AF_INET6, "2001:db8::1") + b"\x87\0\0\0" + bytes(20)
    firewall.c2s(to_one_host, hook=lib.HOOK_FORWARD).passes()
    firewall.c2s(to_one_host).is_dropped("flow_link_control_transit")


def test_the_slow_path_is_told_when_somebody_was_faster(firewall):
    """Two first packets of one flow: the second is sent round."""
    packet = UDP("10.0.0.5:4000", "8.8.8.8:53")
    assert firewall.look(packet)[0] == lib.VERDICT_PUNT
    firewall.decides().install(packet)
    assert firewall.look(packet)[0] == lib.VERDICT_ACCEPT
    assert firewall.look(UDP("8.8.8.8:53", "10.0.0.5:4000"), OUTSIDE)[0] == lib.VERDICT_ACCEPT


def test_the_slow_path_decides_no_errors(firewall):
    """The fast path has the last word on them; one that comes here is lost, and counted."""
    error = Error("8.8.8.8", "10.0.0.5", bytes(UDP("10.0.0.5:4000", "8.8.8.8:53")), 3, 3)
    assert firewall.look(error, OUTSIDE)[0] == lib.VERDICT_DROP
    assert firewall.counters()["flow_slowpath_error"] == 1


@pytest.mark.parametrize("reject", [True, False])
def test_a_connection_is_found_by_both_its_directions(firewall, reject):
    """From SYN to FIN no packet of a permitted connection is punted twice."""
    firewall.configure(reject_non_syn=reject)
    firewall.decides()
    connection = Connection(firewall).open()
    firewall.asks()
    connection.c2s("PA", b"GET /").passes()
    connection.s2c("PA", b"200").passes()
    connection.shut()
    assert firewall.stats()["tcp"] == 1


# ---- what an ALG reads takes the way through the slow path ----


@pytest.fixture
def inspecting(firewall):
    return firewall.decides(source="192.0.2.1", ports=(1024, 1024), flags=lib.FLAG_INSPECTED)


def test_each_packet_of_an_inspected_session_is_read_and_then_translated(inspecting):
    """Both directions, from the first packet on."""
    inspecting.c2s(QUESTION).leaves_as("192.0.2.1:1024", "8.8.8.8:69")
    inspecting.asks().take(bytes(QUESTION), INSIDE).is_inspected()
    inspecting.take(bytes(ANSWER), OUTSIDE).is_inspected()
    inspecting.read(bytes(ANSWER), OUTSIDE).leaves_as("8.8.8.8:69", "10.0.0.5:4000")


def test_what_comes_round_is_not_counted_again(inspecting):
    """Neither as a packet of the session, nor as a sign of life: it has been both."""
    inspecting.c2s(QUESTION)
    counted, seen = list(inspecting.session().bytes), inspecting.session().last_seen
    assert (list(inspecting.session().packets), counted) == ([1, 0], [len(bytes(QUESTION)), 0])
    inspecting.wait(5)
    inspecting.read(bytes(QUESTION), INSIDE)
    assert (list(inspecting.session().packets), list(inspecting.session().bytes)) == ([1, 0], counted)
    assert inspecting.session().last_seen == seen


def test_what_comes_round_is_not_tracked_again(firewall):
    """It may bear other numbers than those that were judged: an edit of an ALG, sent again from its beginning."""
    connection = Connection(firewall.decides(flags=lib.FLAG_INSPECTED)).open()
    fin = bytes(connection.segment(0, "FA", b"QUIT", 0))
    firewall.take(fin, INSIDE).is_inspected()
    assert firewall.tcp_state() == "HALF_CLOSED"
    firewall.read(bytes(connection.segment(0, "FA", b"QUIT", -200000)), INSIDE).passes()
    firewall.take(bytes(connection.segment(0, "A", b"QUIT", -200000)), INSIDE).is_dropped("tcp_drop_out_of_wnd")
    assert list(firewall.session().packets) == [3, 1]


def test_a_packet_that_tracking_drops_is_not_read(firewall):
    """An ALG sees nothing that its receiver does not."""
    connection = Connection(firewall.decides(flags=lib.FLAG_INSPECTED)).open()
    connection.c2s("PA", b"PORT", ahead=200000).is_dropped("tcp_drop_out_of_wnd")
    firewall.c2s(TCP("10.0.0.5:4000", "8.8.8.8:80", "SF")).is_dropped("tcp_flag_invalid")


def test_a_reset_needs_no_reading(firewall):
    """It carries nothing, and must come in time."""
    connection = Connection(firewall.decides(flags=lib.FLAG_INSPECTED)).open()
    firewall.take(bytes(connection.segment(0, "R", b"", 0)), INSIDE).passes()
    assert firewall.tcp_state() == "TIME_WAIT"


@pytest.mark.parametrize(("dropped", "counter"), [(False, "alg_oversize_pass"), (True, "alg_oversize_drop")])
def test_a_datagram_that_is_too_large_to_be_read(firewall, dropped, counter):
    """It passes unread, or not at all, as the configuration says; the next one is read."""
    firewall.configure(drop_oversize=dropped)
    largest = UDP("10.0.0.5:4000", "8.8.8.8:69", bytes(lib.INSPECT_MAX - 28))
    firewall.decides(flags=lib.FLAG_INSPECTED).c2s(largest).passes()
    outcome = firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:69", bytes(lib.INSPECT_MAX - 27)))
    assert (outcome.left, outcome.counted[counter]) == (not dropped, 1)
    firewall.take(bytes(largest), INSIDE).is_inspected()


def test_a_segment_that_is_too_large_ends_the_reading(firewall):
    """Of a connection of which not everything was seen nothing is understood any more."""
    connection = Connection(firewall.decides(flags=lib.FLAG_INSPECTED)).open()
    outcome = connection.c2s("PA", bytes(lib.INSPECT_MAX)).passes()
    assert outcome.counted["alg_oversize_pass"] == 1
    assert not firewall.session().flags & lib.FLAG_INSPECTED
    firewall.take(bytes(connection.segment(0, "PA", b"more", 0)), INSIDE).passes()


def test_a_segment_that_is_too_large_is_sent_again_where_that_is_dropped(firewall):
    """The connection is read on."""
    firewall.configure(drop_oversize=True)
    connection = Connection(firewall.decides(flags=lib.FLAG_INSPECTED)).open()
    connection.c2s("PA", bytes(lib.INSPECT_MAX), ahead=0).is_dropped("alg_oversize_drop")
    firewall.take(bytes(connection.segment(0, "PA", bytes(1000), 0)), INSIDE).is_inspected()


def test_the_kernel_cuts_a_super_packet_for_the_reader(firewall):
    """However large, it is tracked as one; its segments come round as tracked."""
    connection = Connection(firewall.decides(flags=lib.FLAG_INSPECTED)).open()
    whole = bytes(connection.segment(0, "PA", bytes(20000), 0))
    firewall.take(whole, INSIDE, checksum=lib.CHECKSUM_SUPER).is_inspected()
    assert list(firewall.session().packets) == [3, 1]
    firewall.read(bytes(connection.segment(0, "A", bytes(1460), 0)), INSIDE).passes()
    assert connection.s2c("A", ack=21001).left


def test_reading_ends_when_nothing_more_is_to_be_read(inspecting):
    """Of that life of a session alone."""
    inspecting.c2s(QUESTION)
    session, generation = inspecting.installed, inspecting.session().generation
    assert not lib.session_end_inspection(inspecting.table, session, generation + 1)
    inspecting.take(bytes(QUESTION), INSIDE).is_inspected()
    assert lib.session_end_inspection(inspecting.table, session, generation)
    inspecting.take(bytes(QUESTION), INSIDE).leaves_as("192.0.2.1:1024", "8.8.8.8:69")
    inspecting.end(session)
    assert not lib.session_end_inspection(inspecting.table, session, generation)


@pytest.mark.parametrize(
    ("offered", "left"),
    [(1460, 1460 - lib.INSPECT_ROOM), (9000, 9000 - lib.INSPECT_ROOM), (536, 280), (511, 511), (0, 0)],
)
@pytest.mark.parametrize("translated", [False, True])
def test_text_that_may_grow_is_left_room(firewall, offered, left, translated):
    """Only where addresses in it are translated, and not where segments are small already."""
    public = {"source": "192.0.2.1", "ports": (1024, 1024)} if translated else {}
    firewall.decides(flags=lib.FLAG_INSPECTED, **public)
    there, back = ("10.0.0.5:4000", "8.8.8.8:21"), ("8.8.8.8:21", "192.0.2.1:1024" if translated else "10.0.0.5:4000")
    for outcome in (
        firewall.c2s(TCP(*there, "S", options=[("MSS", offered)])),
        firewall.s2c(TCP(*back, "SA", ack=1, options=[("MSS", offered)])),
    ):
        assert outcome.after == recomputed(outcome.after)
        assert outcome.packet[inet.TCP].options == [("MSS", left if translated else offered)]


def test_a_session_that_nobody_reads_offers_what_it_did(firewall):
    """Translation alone does not make text longer."""
    firewall.decides(source="192.0.2.1", ports=(1024, 1024))
    syn = TCP("10.0.0.5:4000", "8.8.8.8:21", "S", options=[("MSS", 1460)])
    firewall.c2s(syn).leaves_as("192.0.2.1:1024", "8.8.8.8:21")


def test_the_reader_is_told_whose_packet_it_is(inspecting):
    """Session, life and direction, of a packet before translation."""
    inspecting.c2s(QUESTION)
    generation = inspecting.session().generation
    for packet, ifindex, direction in ((QUESTION, INSIDE, 0), (ANSWER, OUTSIDE, 1)):
        verdict, parsed = inspecting.look(packet, ifindex, mark=lib.MARK_TRACKED)
        assert verdict == lib.VERDICT_ACCEPT
        assert (parsed.session, parsed.generation, parsed.dir) == (inspecting.installed, generation, direction)


def test_what_was_to_be_read_is_dropped_when_its_session_has_ended(inspecting):
    """It is no first packet: an unmarked one would be."""
    inspecting.c2s(QUESTION)
    inspecting.end(inspecting.installed)
    assert inspecting.look(QUESTION, mark=lib.MARK_TRACKED)[0] == lib.VERDICT_DROP
    assert inspecting.counters()["flow_marked_miss"] == 1
    verdict, parsed = inspecting.look(QUESTION)
    assert (verdict, parsed.session) == (lib.VERDICT_PUNT, 0)
    inspecting.read(bytes(QUESTION), INSIDE).is_dropped("flow_marked_miss")


# ---- the whole of it ----


def test_a_redefined_zone_map_holds_from_the_next_packet_on(firewall):
    """Replacing the map does not touch sessions; their keys keep the zone they were made with."""
    firewall.decides().c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).passes()
    lib.table_set_zones(firewall.table, [INSIDE, OUTSIDE], bytes([3, OUTSIDE]), 2)
    firewall.asks().c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).is_punted()
    firewall.s2c(UDP("8.8.8.8:53", "10.0.0.5:4000")).passes()


def test_shards_are_summed(firewall):
    """A counter is what all threads have counted together."""
    for shard in range(lib.MAX_SHARDS):
        lib.table_count(firewall.table, shard, lib.LOG_RECORD_LOST, 2)
    assert firewall.counters()["log_record_lost"] == 2 * lib.MAX_SHARDS
    assert ffi.typeof("enum counter").elements[lib.COUNTERS] == "COUNTERS"
