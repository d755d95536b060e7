"""Packets that are diagnosed: who is meant, what is copied at which stage, what is said about it, and when it ends.

The reader of the ring stands beside the fast path, as the daemon's thread does; a naive list stands beside the ring and
a naive match beside the filters.
"""

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from scapy.packet import Packet

from dataplane.diag.record import CAPTURED, STAGES, Record, records_in
from dataplane.ffi import ffi, lib
from tests.talk import (
    COUNTERS,
    INSIDE,
    OUTSIDE,
    TCP,
    UDP,
    Connection,
    Echo,
    EchoReply,
    Error,
    Firewall,
    endpoint,
    mapped,
)

POOL, PORTS = "192.0.2.1", (1024, 1024)
PLENTY = (1_000_000, 1 << 40, 65535, 0)
BUFFER = 1 << 20
QUESTION = "10.0.0.5:4000", "8.8.8.8:53"
ANSWER = "8.8.8.8:53", "192.0.2.1:1024"
STRESS_PACKETS = 3000  # of each worker
ANY = (bytes(16), b"\xff" * 16)


class Watched(Firewall):
    """A firewall whose packets are diagnosed."""

    def watches(self, *filters: dict[str, Any]) -> "Watched":
        """source and destination are networks; with no filter at all nothing is meant."""
        made = ffi.new(f"struct diag_filter[{lib.DIAG_FILTERS}]")
        for target, fields in zip(made, filters, strict=False):
            fill(target, **fields)
        assert lib.diag_begin(self.table, made)
        return self

    def takes(self, *stages: str, limit: tuple[int, int, int, int] = PLENTY) -> "Watched":
        for stage in stages or STAGES:
            lib.diag_set_stage(self.table, STAGES.index(stage), ffi.new("struct diag_limit *", limit))
        return self

    def records(self) -> list[Record]:
        """What waits in the ring, all of it."""
        buffer, found = ffi.new("uint8_t[]", BUFFER), list[Record]()
        while n := lib.diag_read(self.table, buffer, BUFFER):
            found += records_in(ffi.buffer(buffer, n))
        return found

    def stages(self) -> list[str]:
        return [record.stage for record in self.records() if record.stage != "trace"]

    def status(self) -> Any:
        self._status = ffi.new("struct diag_status *")
        lib.diag_read_status(self.table, self._status)
        return self._status

    def counted(self) -> dict[str, int]:
        """Of the packets that are meant."""
        counter = self.status().counter
        return {name: counter[i] for i, name in enumerate(COUNTERS) if counter[i]}

    def is_watched(self, session_id: int = 0) -> bool:
        return bool(self.session(session_id).flags & lib.FLAG_WATCHED)


def fill(target: Any, **fields: Any) -> None:
    for side in ("source", "destination"):
        network = ip_network(fields[side]) if side in fields else None
        ends = ANY if network is None else (mapped(str(network[0])), mapped(str(network[-1])))
        for i, end in enumerate(ends):
            getattr(target, side)[i] = end
    target.sport, target.dport = (socket.htons(fields.get(port, 0)) for port in ("sport", "dport"))
    target.proto, target.ifindex = fields.get("proto", 0), fields.get("ifindex", 0)
    target.family = fields.get("family", 0)
    target.used = 1


@pytest.fixture
def firewall() -> Iterator[Watched]:
    with Watched() as firewall:
        yield firewall.decides(source=POOL, ports=PORTS)


# ---- stages ----


def test_a_translated_packet_is_seen_at_three_stages(firewall):
    """As it came, as it came with its session, as it left."""
    firewall.watches({"source": "10.0.0.0/24"}).takes()
    firewall.c2s(UDP(*QUESTION)).leaves_as("192.0.2.1:1024", "8.8.8.8:53")
    received, claimed, transmitted = [record for record in firewall.records() if record.stage != "trace"]
    assert (received.stage, claimed.stage, transmitted.stage) == ("receive", "firewall", "transmit")
    assert received.data == claimed.data == bytes(UDP(*QUESTION))
    assert (received.session, received.verdict) == (None, "")
    assert (claimed.session, claimed.filter, claimed.verdict) == (firewall.installed, 1, "accept")
    assert ip_address(transmitted.data[12:16]) == ip_address(POOL)
    assert [record.ifindex for record in (received, claimed, transmitted)] == [INSIDE, INSIDE, OUTSIDE]


def test_answers_are_meant_though_no_filter_names_them(firewall):
    """The session is watched, whatever its addresses are on the other side."""
    firewall.watches({"source": "10.0.0.5"})
    firewall.c2s(UDP(*QUESTION))
    firewall.takes()
    firewall.s2c(UDP(*ANSWER))
    answers = [record for record in firewall.records() if record.stage != "trace"]
    assert [record.stage for record in answers] == ["receive", "firewall", "transmit"]
    assert {(record.filter, record.direction, record.session) for record in answers} == {(0, 1, firewall.installed)}


def test_others_are_not_meant(firewall):
    """Neither copied nor counted, and their verdicts are the same."""
    firewall.watches({"source": "10.0.0.99"}).takes()
    firewall.c2s(UDP(*QUESTION)).leaves_as("192.0.2.1:1024", "8.8.8.8:53")
    assert firewall.records() == []
    assert firewall.counted() == {}


def test_a_drop_names_its_reason(firewall):
    """The counter that was counted for this very packet."""
    connection = Connection(firewall.watches({"proto": 6}), public="192.0.2.1:1024").open()
    firewall.takes("receive", "drop", "transmit")
    connection.c2s(ahead=1 << 30).is_dropped("tcp_drop_out_of_wnd")
    received, dropped = firewall.records()
    assert (dropped.stage, dropped.reason, dropped.session) == ("drop", "tcp_drop_out_of_wnd", firewall.installed)
    assert dropped.data == received.data


def test_a_packet_of_a_discard_session_is_dropped_and_not_claimed(firewall):
    """It has a session, and no stage `firewall`."""
    firewall.refuses().watches({"dport": 53})
    firewall.c2s(UDP(*QUESTION))
    firewall.takes()
    firewall.c2s(UDP(*QUESTION)).is_dropped("flow_discard_hit")
    assert firewall.stages() == ["receive", "drop"]


@pytest.mark.parametrize(
    ("packet", "reason"),
    [(bytes(UDP(*QUESTION))[:25], "flow_parse_ip_hdr"), (bytes(TCP(*QUESTION, flags="")), "tcp_flag_zero")],
    ids=["cut", "no flags"],
)
def test_a_malformed_packet_is_meant_as_far_as_it_can_be_read(firewall, packet, reason):
    """By its interface always, by its addresses if they could be read."""
    firewall.watches({"ifindex": INSIDE}).takes()
    firewall.c2s(packet).is_dropped(reason)
    assert [record.reason for record in firewall.records() if record.stage == "drop"] == [reason]


def test_an_error_about_a_watched_session_is_seen(firewall):
    """What a router says about a packet belongs to the packet's session; its own addresses are nobody's."""
    firewall.watches({"source": "10.0.0.5"})
    sent = firewall.c2s(UDP(*QUESTION)).after
    firewall.takes()
    firewall.s2c(Error("198.51.100.1", "192.0.2.1", sent, 11))
    stages = [record for record in firewall.records() if record.stage != "trace"]
    assert [record.stage for record in stages] == ["receive", "firewall", "transmit"]
    assert all(record.session == firewall.installed and record.kind == lib.PACKET_ICMP_ERROR for record in stages)


def test_an_error_that_a_filter_means_watches_no_session(firewall):
    """It is nobody's own packet: the session that it quotes goes on being offloaded."""
    firewall.watches({"source": "198.51.100.1"})
    sent = firewall.c2s(UDP(*QUESTION)).after
    firewall.s2c(Error("198.51.100.1", "192.0.2.1", sent, 11))
    assert not firewall.is_watched()
    assert firewall.counted()["pkt_icmp_error"] == 1


def test_what_comes_round_from_an_alg_is_received_once(firewall):
    """It crosses the queue twice, and is one packet."""
    firewall.decides(flags=lib.FLAG_INSPECTED).watches({"proto": 17}).takes()
    firewall.c2s(UDP(*QUESTION)).passes()
    assert firewall.stages() == ["receive", "firewall", "transmit"]


def test_a_trace_tells_what_tracking_did(firewall):
    """State before and after."""
    firewall.watches({"proto": 6}).takes("trace")
    Connection(firewall, public="192.0.2.1:1024").open()
    steps = [(r.tcp_before, r.tcp_state) for r in firewall.records() if r.session is not None]
    assert steps == [("new", "syn-sent"), ("syn-sent", "syn-received"), ("syn-received", "established")]


# ---- the slow path ----


def test_a_refused_first_packet_is_dropped_where_it_was_decided(firewall):
    """The slow path has counted the reason in its own shard, and tells a story."""
    firewall.refuses().watches({"source": "10.0.0.5"}).takes("drop", "trace")
    packet = ffi.new("struct packet *")
    assert lib.diag_slow_begin(firewall.table, packet)
    firewall.c2s(UDP(*QUESTION))
    memory = ffi.from_buffer("uint8_t[]", bytes(UDP(*QUESTION)))
    packet.data, packet.len, packet.ifindex = memory, len(memory), INSIDE
    lib.diag_slow_end(firewall.table, packet, False, b"once\nupon", 9)
    told, dropped = [record for record in firewall.records() if record.slow]
    assert (told.stage, told.data, dropped.stage, dropped.reason) == (
        "trace",
        b"once\nupon",
        "drop",
        "flow_policy_deny",
    )
    assert (dropped.session, dropped.state, dropped.begun) == (firewall.installed, "DISCARD", True)


def test_the_slow_path_is_not_asked_while_nothing_is_watched(firewall):
    """Then there is nothing to be told either."""
    assert not lib.diag_slow_begin(firewall.table, ffi.new("struct packet *"))


# ---- sessions ----


def test_sessions_that_are_there_are_watched_and_let_go(firewall):
    """By the key of either direction, as packets of it would be meant."""
    firewall.c2s(UDP(*QUESTION))
    for means in ({"source": "10.0.0.5"}, {"destination": "192.0.2.1"}, {"ifindex": OUTSIDE}, {"proto": 17}):
        firewall.watches(means)
        assert firewall.is_watched(), means
        assert lib.diag_mark(firewall.table) == 1
    firewall.watches({"proto": 6})
    assert not firewall.is_watched()
    firewall.watches({"proto": 17})
    lib.diag_end(firewall.table)
    assert not firewall.is_watched()
    assert lib.diag_mark(firewall.table) == 0


def test_a_watched_session_suits_no_offload(firewall):
    """It would not be seen there."""
    firewall.c2s(UDP(*QUESTION))
    assert not firewall.session().flags & lib.FLAG_WATCHED
    firewall.watches({"proto": 17})
    assert lib.session_offload(firewall.table, firewall.installed, 0, ffi.NULL, ffi.NULL) == lib.OFFLOAD_UNSUITED
    assert firewall.is_watched()


# ---- counters ----


def test_counters_of_the_packets_that_are_meant(firewall):
    """Beside the global ones, which count everybody."""
    firewall.watches({"source": "10.0.0.5"})
    before = firewall.counters()
    firewall.c2s(UDP(*QUESTION))
    firewall.s2c(UDP(*ANSWER))
    firewall.c2s(Echo("10.0.0.6:7", "8.8.8.8"))
    assert firewall.counted()["pkt_recv"] == 3  # the first one came round
    assert firewall.counted()["pkt_sent"] == 2
    assert firewall.counters()["pkt_recv"] - before["pkt_recv"] == 5
    assert firewall.counters()["pkt_sent"] == 0  # which the worker counts, when it answers
    lib.diag_end(firewall.table)
    firewall.watches({"source": "10.0.0.5"})
    assert firewall.counted() == {}


# ---- bounds ----


def test_a_stage_stops_at_its_packets(firewall):
    """The others go on, and traffic does not notice."""
    firewall.watches({"proto": 17}).takes("receive", limit=(2, 1 << 20, 65535, 0)).takes("transmit")
    firewall.c2s(UDP(*QUESTION))
    for _ in range(4):
        firewall.c2s(UDP(*QUESTION)).leaves_as("192.0.2.1:1024", "8.8.8.8:53")
    assert sorted(firewall.stages()) == ["receive"] * 2 + ["transmit"] * 5
    receive, transmit = STAGES.index("receive"), STAGES.index("transmit")
    assert (firewall.status().packets[receive], firewall.status().stopped[receive]) == (2, 1)
    assert firewall.status().stopped[transmit] == 0


def test_a_stage_stops_at_its_bytes(firewall):
    """Before the packet that would be too much."""
    firewall.watches({"proto": 17}).takes("receive", limit=(100, 100, 65535, 0))
    for _ in range(4):
        firewall.c2s(UDP(*QUESTION))  # 36 bytes
    assert firewall.stages() == ["receive"] * 2
    assert firewall.status().bytes[STAGES.index("receive")] == 72


def test_a_copy_is_cut(firewall):
    """The record knows how long the packet was."""
    firewall.watches({"proto": 17}).takes("receive", limit=(100, 1 << 20, 64, 0))
    firewall.c2s(UDP(*QUESTION, payload=bytes(1000)))
    (record,) = firewall.records()
    assert (len(record.data), record.length) == (64, 1028)
    assert record.data == bytes(UDP(*QUESTION, payload=bytes(1000)))[:64]


def test_a_stage_that_is_stopped_keeps_its_counts(firewall):
    """Until it begins anew."""
    firewall.watches({"proto": 17}).takes("receive")
    firewall.c2s(UDP(*QUESTION))
    firewall.takes("receive", limit=(0, 0, 0, 0))
    firewall.c2s(UDP(*QUESTION))
    assert firewall.status().packets[0] == len(firewall.records()) == 1
    firewall.takes("receive")
    assert firewall.status().packets[0] == 0


def test_what_nobody_reads_is_lost_and_traffic_goes_on(firewall):
    """A full ring is no reason to wait."""
    firewall.watches({"proto": 17}).takes("receive")
    large = UDP(*QUESTION, payload=bytes(60000))
    for _ in range(400):
        assert firewall.c2s(large).left
    status = firewall.status()
    kept = status.packets[0]
    assert (kept + status.lost[0], status.lost[0] > 0) == (400, True)
    assert len(firewall.records()) == kept
    firewall.c2s(UDP(*QUESTION))
    assert firewall.stages() == ["receive"]


# ---- beside naive models ----

ADDRESSES = ["10.0.0.5", "10.0.0.6", "10.0.1.7", "8.8.8.8", "fd00::5", "fd00::6", "2001:db8::8"]
NETWORKS = ["0.0.0.0/0", "10.0.0.0/24", "10.0.0.5", "8.8.0.0/16", "::/0", "fd00::/64", "fd00::6"]
FIELDS = {
    "source": st.sampled_from(NETWORKS),
    "destination": st.sampled_from(NETWORKS),
    "sport": st.integers(1, 3),
    "dport": st.integers(1, 3),
    "proto": st.sampled_from([1, 6, 17, 58]),
    "ifindex": st.sampled_from([INSIDE, OUTSIDE]),
    "family": st.sampled_from([4, 6]),
}
MAKERS: dict[str, Callable[..., Packet]] = {"udp": UDP, "tcp": TCP, "echo": Echo, "reply": EchoReply}


def naive_match(means: dict[str, Any], source: str, destination: str, proto: int, ifindex: int) -> bool:
    """A filter as one would explain it. `source` and `destination` are endpoints."""
    (src, sport), (dst, dport) = endpoint(source), endpoint(destination)
    inside = {"source": src, "destination": dst}
    family = ip_address(src).version
    equal = {"sport": sport, "dport": dport, "proto": proto, "ifindex": ifindex, "family": family}
    networks = all(in_network(ip, means[side]) for side, ip in inside.items() if side in means)
    return networks and all(means[field] == value for field, value in equal.items() if field in means)


def in_network(address: str, network: str) -> bool:
    """::/0 is the whole line, IPv4 with it."""
    ip, wanted = ip_address(address), ip_network(network)
    return ip in wanted if ip.version == wanted.version else network == "::/0"


@settings(max_examples=300)
@given(
    filters=st.lists(st.fixed_dictionaries({}, optional=FIELDS), max_size=lib.DIAG_FILTERS),
    ends=st.sampled_from([(a, b) for a in ADDRESSES for b in ADDRESSES if a != b and (":" in a) == (":" in b)]),
    ports=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kind=st.sampled_from(sorted(MAKERS)),
    ifindex=st.sampled_from([INSIDE, OUTSIDE]),
)
def test_filters_mean_what_a_naive_match_means(filters, ends, ports, kind, ifindex):
    """Any four filters and any packet; the first that means it is named."""
    ports = (ports[0], 0) if kind == "echo" else (0, ports[1]) if kind == "reply" else ports
    source, destination = (f"[{a}]:{p}" if ":" in a else f"{a}:{p}" for a, p in zip(ends, ports, strict=True))
    packet = MAKERS[kind](source, destination)
    proto = {"udp": 17, "tcp": 6}.get(kind, 58 if ":" in ends[0] else 1)
    expected = next((i for i, f in enumerate(filters, 1) if naive_match(f, source, destination, proto, ifindex)), 0)
    with Watched() as firewall:
        firewall.watches(*filters).takes("receive")
        firewall.take(bytes(packet), ifindex)
        assert [record.filter for record in firewall.records()] == ([expected] if expected else [])


class RingBesideAList(RuleBasedStateMachine):
    """Copies of all sizes in, batches of all sizes out: in order, each once, or counted as lost."""

    def __init__(self) -> None:
        super().__init__()
        self.firewall = Watched().watches({"ifindex": INSIDE}).takes("receive")
        self.waiting: list[bytes] = []
        self.sent = 0

    def teardown(self) -> None:
        self.firewall.__exit__()

    @rule(
        size=st.one_of(st.integers(0, 64), st.integers(60000, 65000)),
        count=st.integers(1, 120),
        tag=st.binary(max_size=8),
    )
    def send(self, size: int, count: int, tag: bytes) -> None:
        packet = bytes(UDP(*QUESTION, payload=(tag + bytes(size))[:65000]))
        for _ in range(count):
            lost = self.firewall.status().lost[0]
            self.firewall.take(packet, INSIDE)
            self.sent += 1
            if self.firewall.status().lost[0] == lost:
                self.waiting.append(packet)
            else:
                assert sum(len(data) + 8 for data in self.waiting) > lib.DIAG_RING - 400000 - 200 * len(self.waiting)

    @rule(size=st.integers(70000, BUFFER))
    def read(self, size: int) -> None:
        buffer = ffi.new("uint8_t[]", size)
        found = [
            record.data for record in records_in(ffi.buffer(buffer, lib.diag_read(self.firewall.table, buffer, size)))
        ]
        assert found == self.waiting[: len(found)]
        assert found or not self.waiting
        del self.waiting[: len(found)]

    @invariant()
    def nothing_vanishes(self) -> None:
        status = self.firewall.status()
        assert status.packets[0] + status.lost[0] == self.sent


TestRing = RingBesideAList.TestCase
TestRing.settings = settings(max_examples=15, stateful_step_count=20)


# ---- many at once ----


@pytest.fixture
def eager() -> Iterator[None]:
    """Who waits for Python's lock asks for it at once: under ThreadSanitizer workers starve beside loops otherwise."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.stress
def test_filters_come_and_go_while_workers_use_them(eager):
    """Two workers, a reader, an operator who changes everything: each record is whole, none is lost uncounted."""
    with Watched(max_sessions=1000).decides() as firewall:
        for client in range(50):
            firewall.c2s(UDP(f"10.0.0.{client}:4000", "8.8.8.8:53"))
        over, read = threading.Event(), list[int]()

        def work(shard: int) -> None:
            for number in range(STRESS_PACKETS):
                data = bytearray(bytes(UDP(f"10.0.0.{number % 50}:4000", "8.8.8.8:53", bytes(number % 500))))
                packet = ffi.new(
                    "struct packet *", {"data": ffi.from_buffer(data), "len": len(data), "ifindex": INSIDE}
                )
                assert lib.fastpath_take(firewall.table, shard, packet, firewall.now) == lib.VERDICT_ACCEPT

        def take() -> None:
            while not over.is_set():
                found = firewall.records()
                assert all(len(record.data) == record.length for record in found if record.stage != "trace")
                read.append(len(found))

        workers = [threading.Thread(target=work, args=(shard,)) for shard in (0, 1)]
        reader = threading.Thread(target=take)
        firewall.watches({"proto": 17}).takes()
        for thread in (*workers, reader):
            thread.start()
        while any(worker.is_alive() for worker in workers):
            firewall.watches({"source": "10.0.0.0/27"}, {"dport": 53})
            lib.diag_mark(firewall.table)
            firewall.status()
            lib.diag_end(firewall.table)
            firewall.watches({"proto": 6})
        over.set()
        reader.join()
        lib.diag_end(firewall.table)
        assert sum(read) + len(firewall.records()) == sum(firewall.status().packets)
        assert lib.diag_mark(firewall.table) == 0


def test_every_stage_has_a_name():
    """The list of C and that of the commands are one."""
    assert CAPTURED == ("receive", "firewall", "transmit", "drop")
