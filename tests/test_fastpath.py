"""The order of the steps that a packet takes, told as conversations."""

import socket

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import GRE

from dataplane.ffi import ffi, lib
from tests.talk import INSIDE, OUTSIDE, TCP, UDP, Connection, Echo, EchoReply, Error, Firewall

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
