"""Offloaded sessions with the real program and its maps in the kernel, but no interface: what counts is counted once.

Where a test is about the order of things it pokes the entry as the program would; elsewhere the program itself runs on
packets (BPF_PROG_TEST_RUN), as if they had come in by the loopback device.
"""

import contextlib
import ctypes
import mmap
import os
import platform
import random
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from scapy.packet import Packet

from dataplane.ffi import PROGRAMS, ffi, lib
from dataplane.offload import MAX_BATCHES, Offload, View
from dataplane.routes import address_to_text
from tests.lab.capture import ones_complement
from tests.talk import INSIDE, OUTSIDE, TCP, TIMERS, UDP, Connection, Echo, EchoReply, Firewall, mapped, recomputed

SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(platform.machine())
ARRAY, TEST_RUN = 2, 10  # linux/bpf.h
REDIRECT, UP = 7, 0xFFFFFFFF  # TC_ACT_REDIRECT, TC_ACT_UNSPEC
TICK = 100_000_000  # ns
LOOPBACK = 1
MAPPED = bytes(10) + b"\xff\xff"
FRAME = bytes(12)  # to and from the loopback device's own address
LINK = bytes.fromhex("020000000202020000000201")
SERVER, POOL, PORTS = "8.8.8.8", "192.0.2.1", (1024, 60000)
CAPACITY = 16  # the smallest map
MOST_OFFERS = 256
TIMEOUT = TIMERS["udp"] * 10

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="programs for the kernel need root"),
    pytest.mark.skipif(SYS_BPF is None, reason="the number of bpf(2) is not known here"),
]

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> bytes:
    """The attributes as the kernel leaves them; OSError as it says."""
    raw = ctypes.create_string_buffer(attributes, len(attributes))
    if _libc.syscall(SYS_BPF, command, raw, len(attributes)) < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    return raw.raw


def descriptors() -> dict[int, str]:
    """What each descriptor of this process is, as /proc/self/fdinfo says."""
    found = {}
    for path in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            found[int(path.name)] = path.read_text()
    return found


class Kernel:
    """The program of one table, its maps, and the packets that are put before it."""

    def __init__(self, table: Any, sessions: int, portable: bool) -> None:
        before = descriptors().keys()
        self.program = lib.program_load(table, str(program(portable)).encode(), sessions)
        assert self.program != ffi.NULL, os.strerror(ffi.errno)
        opened = {fd: text for fd, text in descriptors().items() if fd not in before}
        (self.run_fd,) = [fd for fd, text in opened.items() if "prog_type" in text]
        self.entries = self._array(opened, "struct offloaded", sessions)
        self.buckets = self._array(opened, "struct offload_bucket", sessions // 2)

    @staticmethod
    def _array(opened: dict[int, str], of: str, n: int) -> Any:
        """The memory of a map that is shared with the daemon."""
        wanted = f"map_type:\t{ARRAY}\nkey_size:\t4\nvalue_size:\t{ffi.sizeof(of)}\nmax_entries:\t{n}\n"
        (fd,) = [fd for fd, text in opened.items() if wanted in text]
        return ffi.from_buffer(f"{of}[]", mmap.mmap(fd, n * ffi.sizeof(of)))

    def entry(self, session: int) -> Any:
        """The entry of a session, None if it has none."""
        return next((e for e in self.entries if e.flow[0].session == session), None)

    def mapped(self) -> dict[bytes, int]:
        """What the program finds: flow key -> index << 1 | direction."""
        refs = [slot % (1 << lib.OFFLOAD_REF_BITS) for bucket in self.buckets for slot in bucket.slot if slot]
        found = {self.key(self.entries[ref >> 1], ref & 1): ref for ref in refs}
        assert len(found) == len(refs)
        return found

    @staticmethod
    def key(entry: Any, side: int) -> bytes:
        """The key of a flow, from how the other one leaves."""
        flow, back = entry.flow[side], entry.flow[not side]
        protocol = flow.proto % lib.OFFLOAD_IPV6
        family = 6 if flow.proto >= lib.OFFLOAD_IPV6 else 4
        key = ffi.new("struct flow_key *", [back.dst, back.src, back.dport, back.sport, protocol, flow.zone, family])
        return bytes(ffi.buffer(key))

    def take(self, packet: Packet | bytes, zone: int, wire: bool = False) -> bytes | None:
        """A packet that comes in from a zone: the frame that the program sends on; None: it leaves it to others."""
        lib.program_set_ports(self.program, [(LOOPBACK, zone, wire)], 1)
        data = bytes(packet)
        kind = b"\x08\x00" if data[0] >> 4 == 4 else b"\x86\xdd"
        frame = ctypes.create_string_buffer(FRAME + kind + data, 14 + len(data))
        out = ctypes.create_string_buffer(len(frame) + 256)
        pointers = ctypes.addressof(frame), ctypes.addressof(out)
        done = bpf(TEST_RUN, struct.pack("=IIIIQQII", self.run_fd, 0, len(frame), len(out), *pointers, 1, 0))
        _, verdict, _, length, *_ = struct.unpack("=IIIIQQII", done)
        if verdict == UP:
            assert out.raw[:length] == frame.raw
            return None
        assert verdict == REDIRECT
        return out.raw[:length]


def program(portable: bool) -> Path:
    """One of the two that were built with the extension."""
    path = PROGRAMS[portable]
    if not path.exists():
        pytest.skip("built without clang: there is no program")
    return path


def hop(number: int, ifindex: int = LOOPBACK) -> Any:
    return ffi.new("struct hop *", [ifindex, 1500, LINK, number])


HOPS = [hop(number) for number in range(4)]
AWAY = hop(3, OUTSIDE)  # by the interface that decisions name


class Offloading(Firewall):
    """A firewall whose sessions the kernel may have."""

    def __init__(self, max_sessions: int = CAPACITY, portable: bool = False) -> None:
        super().__init__(max_sessions)
        self.kernel = Kernel(self.table, CAPACITY, portable)
        self._views = ffi.new("struct offload_view[]", MOST_OFFERS)

    def offered(self) -> dict[int, int]:
        """Sessions that ask to be offloaded, and their generations."""
        n = lib.offload_offers(self.table, self._views, MOST_OFFERS)
        return {self._views[i].id: self._views[i].generation for i in range(n)}

    def offload(self, session: int, generation: int = 0, c2s: int = 0, s2c: int = 1) -> int:
        return int(lib.session_offload(self.table, session, generation, HOPS[c2s], HOPS[s2c]))

    def counts(self, session: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Packets and bytes by direction, as an operator sees them."""
        copy = self.session(session)
        return tuple(copy.packets), tuple(copy.bytes)

    def knows(self, host: str, zone: int, known: Any) -> Self:
        """Where packets for a host go; None: not where they could be offloaded to."""
        lib.hop_learn(self.table, mapped(host), zone, ffi.NULL if known is None else known)
        return self

    def settle(self) -> None:
        """Every entry that is not in use any more has been so for longer than a program may take."""
        for entry in self.kernel.entries:
            if entry.flow[0].taken_off:
                entry.flow[0].taken_off -= 20
        self.sweep()

    def sweep(self) -> list[int]:
        """The hops that are in use."""
        used = ffi.new("uint8_t[]", len(HOPS))
        lib.offload_sweep(self.table, used, len(HOPS))
        return [number for number in range(len(HOPS)) if used[number]]

    def port(self, session: int) -> int:
        """The translated source port."""
        return socket.ntohs(self.session(session).key[1].dport)


@pytest.fixture
def firewall() -> Iterator[Offloading]:
    with Offloading() as made:
        made.decides(source=POOL, ports=PORTS)
        yield made
        lib.offload_end(made.table)


# ---- a random life ----


class Known:
    """What must be known of a session: what was counted, when it was heard of last, and where its packets go."""

    def __init__(self, session: int, generation: int, now: int) -> None:
        self.id, self.generation = session, generation
        self.packets, self.bytes = [0, 0], [0, 0]
        self.heard = now
        self.offloaded = False


class OffloadMachine(RuleBasedStateMachine):
    """Sessions come, are offloaded, counted by the program in any order, looked at, taken off, and end; ids come again.

    The program may have found an entry a moment before the session is taken off, and count in it a moment later.
    """

    firewall: Offloading
    hosts = 0

    def __init__(self) -> None:
        super().__init__()
        if not hasattr(OffloadMachine, "firewall"):  # programs stay until the process ends, so there is one for all
            OffloadMachine.firewall = Offloading().decides(source=POOL, ports=PORTS)
        self.known: list[Known] = []
        self.half: list[tuple[Known, int, int]] = []  # bytes that the program has yet to count
        self.total = self.counted()

    def counted(self) -> list[int]:
        found = self.firewall.counters()
        return [found["pkt_offload"], found["bytes_offload"]]

    def pick(self, number: int) -> Known:
        return self.known[number % len(self.known)]

    @precondition(lambda self: len(self.known) < CAPACITY)
    @rule()
    def open(self):
        """Three packets: enough to be offered."""
        OffloadMachine.hosts += 1
        client = f"10.0.{self.hosts >> 8 & 255}.{self.hosts & 255}:4000"
        for _ in range(3):
            self.firewall.c2s(UDP(client, f"{SERVER}:53", b"12345678"))
        session = self.firewall.installed
        known = Known(session, self.firewall.session().generation, self.firewall.now)
        known.packets[0], known.bytes[0] = 3, 3 * 36
        self.known.append(known)

    @rule(c2s=st.integers(0, 3), s2c=st.integers(0, 3))
    def offload_what_is_offered(self, c2s, s2c):
        offered = self.firewall.offered()
        for known in self.known:
            if known.id in offered:
                assert offered[known.id] == known.generation
                assert self.firewall.offload(known.id, known.generation, c2s, s2c) == lib.OFFLOAD_DONE
                known.offloaded = True

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 1000), side=st.integers(0, 1), packets=st.integers(1, 9), size=st.integers(28, 60000))
    def program_counts(self, number, side, packets, size):
        """In a session that is offloaded, or was a moment ago."""
        known = self.pick(number)
        entry = self.firewall.kernel.entry(known.id)
        if entry is None:
            return
        entry.flow[side].last_seen = self.firewall.now * TICK
        entry.flow[side].packets += packets
        entry.flow[side].bytes += packets * size
        self.note(known, side, packets, packets * size)

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 1000), side=st.integers(0, 1), size=st.integers(28, 60000))
    def program_is_halfway(self, number, side, size):
        """The packet is counted, and somebody looks before its bytes are."""
        known = self.pick(number)
        entry = self.firewall.kernel.entry(known.id)
        if entry is None:
            return
        entry.flow[side].last_seen = self.firewall.now * TICK
        entry.flow[side].packets += 1
        self.note(known, side, 1, 0)
        self.firewall.counts(known.id)
        entry.flow[side].bytes += size
        self.note(known, side, 0, size)

    def note(self, known: Known, side: int, packets: int, size: int) -> None:
        known.packets[side] += packets
        known.bytes[side] += size
        known.heard = self.firewall.now
        self.total[0] += packets
        self.total[1] += size

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 1000))
    def looked_at(self, number):
        known = self.pick(number)
        assert self.firewall.counts(known.id) == (tuple(known.packets), tuple(known.bytes))

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 1000))
    def packet_in_the_queue(self, number):
        """Options, a fragment: what the program leaves to C."""
        known = self.pick(number)
        key = self.firewall.session(known.id).key[0]
        client = f"{socket.inet_ntoa(bytes(key.src)[12:])}:{socket.ntohs(key.sport)}"
        assert self.firewall.c2s(UDP(client, f"{SERVER}:53", b"12345678")).left
        known.packets[0] += 1
        known.bytes[0] += 36
        known.heard = self.firewall.now

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 1000))
    def taken_off(self, number):
        known = self.pick(number)
        assert lib.session_reconsider(self.firewall.table, known.id, known.generation)
        known.offloaded = False

    @rule(number=st.integers(0, 3))
    def hop_changes(self, number):
        gone = [known for known in self.known if known.offloaded and number in self.hops_of(known)]
        assert lib.offload_drop_hop(self.firewall.table, number) == len(gone)
        for known in gone:
            known.offloaded = False

    def hops_of(self, known: Known) -> set[int]:
        return {flow.hop.number for flow in self.firewall.kernel.entry(known.id).flow}

    @rule(settled=st.booleans())
    def swept(self, settled):
        used = {hop for known in self.known if known.offloaded for hop in self.hops_of(known)}
        (self.firewall.settle if settled else lambda: None)()
        assert set(self.firewall.sweep()) == used
        if settled:
            owners = {entry.flow[0].session for entry in self.firewall.kernel.entries} - {0}
            assert owners == {known.id for known in self.known if known.offloaded}
        assert self.counted() == self.total

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 1000))
    def cleared(self, number):
        """What the program has still counted is in the record."""
        known = self.pick(number)
        assert self.firewall.end(known.id, generation=known.generation)
        known.offloaded = False
        self.check_mapped()
        self.program_counts(self.known.index(known), 0, 1, 100)
        self.firewall.wait(2 / 10)
        self.tick(also=known)

    @rule(seconds=st.sampled_from([1, 10, 29, 30, 31]))
    def time_goes_by(self, seconds):
        """Who was heard of lives; who was not has a tick in which a last packet would still be heard."""
        self.firewall.keep_up()
        self.firewall.wait(seconds)
        self.tick()
        self.firewall.wait(1 / 10)
        self.tick()

    def tick(self, also: Known | None = None) -> None:
        due = [known for known in self.known if self.firewall.now - known.heard > TIMEOUT or known is also]
        over = [known for known in due if not known.offloaded]
        ended = {end.id: end for end in self.firewall.expire()}
        for known in due:
            known.offloaded = False
        assert ended.keys() == {known.id for known in over}
        for known in over:
            end = ended[known.id]
            assert (end.packets, end.bytes) == (tuple(known.packets), tuple(known.bytes))
            self.known.remove(known)

    @invariant()
    def check_mapped(self):
        """The program finds the two flows of every offloaded session, and nothing else."""
        wanted: dict[bytes, tuple[int, int]] = {}
        for known in self.known:
            if known.offloaded:
                keys = self.firewall.session(known.id).key
                wanted |= {bytes(ffi.buffer(ffi.addressof(keys, side))): (known.id, side) for side in (0, 1)}
        mapped = self.firewall.kernel.mapped()
        entries = self.firewall.kernel.entries
        assert {key: (entries[ref >> 1].flow[0].session, ref & 1) for key, ref in mapped.items()} == wanted

    def teardown(self):
        for known in list(self.known):
            self.firewall.end(known.id)
            known.offloaded = False
        self.firewall.wait(2 / 10)
        ended = {end.id: end for end in self.firewall.expire()}
        for known in self.known:
            assert (ended[known.id].packets, ended[known.id].bytes) == (tuple(known.packets), tuple(known.bytes))
        assert self.counted() == self.total
        assert not self.firewall.kernel.mapped()
        assert not any(entry.flow[0].session for entry in self.firewall.kernel.entries)
        self.firewall.offered()


TestCounts = OffloadMachine.TestCase
TestCounts.settings = settings(max_examples=200, stateful_step_count=40)


# ---- one by one ----


def ripe(firewall: Offloading, *packets: Packet) -> int:
    """A session that these packets have begun, offloaded."""
    for packet in packets:
        assert firewall.c2s(packet).left
    assert firewall.offered()[firewall.installed]
    assert firewall.offload(firewall.installed) == lib.OFFLOAD_DONE
    return firewall.installed


def question(payload: bytes = b"question", **fields: Any) -> Packet:
    return UDP("10.0.0.5:4000", f"{SERVER}:53", payload, **fields)


def test_a_full_map_says_so_and_has_room_again():
    """Eight sessions whose places are taken are refused; the slot of one that has ended is another's."""
    with Offloading(64).decides(source=POOL, ports=PORTS) as firewall:
        found = []
        for host in range(40):
            for _ in range(3):
                firewall.c2s(UDP(f"10.0.1.{host}:4000", f"{SERVER}:53"))
            found.append(firewall.installed)
        firewall.offered()
        results = {session: firewall.offload(session) for session in found}
        assert list(results.values()).count(lib.OFFLOAD_DONE) == CAPACITY
        assert set(results.values()) == {lib.OFFLOAD_DONE, lib.OFFLOAD_FULL}
        assert len(firewall.kernel.mapped()) == 2 * CAPACITY
        first = next(session for session, result in results.items() if result == lib.OFFLOAD_DONE)
        refused = [session for session, result in results.items() if result == lib.OFFLOAD_FULL]
        firewall.end(first)
        firewall.wait(2 / 10)
        firewall.expire()
        assert [firewall.offload(session) for session in refused].count(lib.OFFLOAD_DONE) == 1
        assert len(firewall.kernel.mapped()) == 2 * CAPACITY
        lib.offload_end(firewall.table)
        assert not firewall.kernel.mapped()


def grown(connection: Connection) -> Connection:
    """Open, and with the eight segments from which on it is worth the offload."""
    connection.open()
    for _ in range(5):
        assert connection.c2s("A").left
    return connection


def test_a_connection_is_worth_it_at_the_eighth_segment(firewall):
    """Where its packets go nowhere that offloading could, it does not ask for others' sake before."""
    firewall.decides().knows("10.0.0.5", INSIDE, None)
    firewall.knows(SERVER, OUTSIDE, AWAY)
    connection = Connection(firewall, server=f"{SERVER}:80").open()
    for _ in range(4):
        assert connection.c2s("A").left
        assert firewall.installed not in firewall.offered()
    assert connection.c2s("A").left
    assert firewall.installed in firewall.offered()


# ---- by hops that are known ----


def knowing(firewall: Offloading) -> Offloading:
    """Both ways are known before anything comes."""
    return firewall.decides().knows("10.0.0.5", INSIDE, HOPS[0]).knows(SERVER, OUTSIDE, AWAY)


def answered(firewall: Offloading, **fields: Any) -> Connection:
    connection = Connection(firewall, server=f"{SERVER}:80", **fields)
    assert connection.c2s("S").left
    assert connection.s2c("SA").left
    return connection


def by_kernel(
    firewall: Offloading, connection: Connection, side: int, flags: str, payload: bytes = b"", **fields: Any
) -> bool:
    """Whether the program takes the next segment of that side."""
    packet = connection.segment(side, flags, payload, 0, **fields)
    taken = firewall.kernel.take(packet, ZONES[side]) is not None
    connection.next[side] += len(payload) if taken else 0
    return taken


def test_a_connection_goes_as_soon_as_it_is_answered(firewall):
    """The kernel forwards all but SYNs and FINs, and C knows each time what it has seen."""
    connection = answered(knowing(firewall))
    number = firewall.installed
    assert firewall.session(number).flags & lib.FLAG_OFFLOADED
    assert not firewall.offered()
    assert firewall.tcp_state(number) == "SYN_RECEIVED"
    firewall.kernel.entry(number).flow[0].last_seen = (firewall.now - 1) * TICK
    firewall.kernel.entry(number).flow[0].packets += 1
    assert firewall.tcp_state(number) == "ESTABLISHED"
    assert firewall.session(number).timeout == TIMERS["tcp"] * 10
    assert by_kernel(firewall, connection, 0, "PA", b"x")
    assert by_kernel(firewall, connection, 1, "A")
    assert not by_kernel(firewall, connection, 0, "FA")
    connection.shut()
    assert firewall.tcp_state(number) == "TIME_WAIT"
    assert by_kernel(firewall, connection, 1, "A")
    assert firewall.counts(number)[0] == (5, 4)
    firewall.sweep()
    assert not firewall.kernel.mapped()


def test_a_client_that_does_not_acknowledge_is_not_waited_for(firewall):
    """Answered and offloaded, the session still ends by the timer of the handshake."""
    answered(knowing(firewall))
    number = firewall.installed
    firewall.wait(TIMERS["tcp_handshake"] + 1)
    assert not firewall.expire()
    firewall.wait(1 / 10)
    assert [end.id for end in firewall.expire()] == [number]
    assert not firewall.kernel.mapped()


def test_a_server_that_speaks_first_establishes_nothing(firewall):
    """It takes an acknowledgement of the client's."""
    connection = answered(knowing(firewall))
    assert by_kernel(firewall, connection, 1, "A", b"welcome")
    assert firewall.tcp_state(firewall.installed) == "SYN_RECEIVED"
    assert by_kernel(firewall, connection, 0, "A")
    assert firewall.tcp_state(firewall.installed) == "ESTABLISHED"


def test_an_answer_that_comes_twice_changes_nothing(firewall):
    """Before the acknowledgement, which then still goes by the kernel."""
    connection = answered(knowing(firewall))
    connection.next[1] -= 1
    assert connection.s2c("SA").left
    assert by_kernel(firewall, connection, 0, "A", b"request")
    assert firewall.tcp_state(firewall.installed) == "ESTABLISHED"


def test_the_end_of_a_short_connection_is_judged(firewall):
    """A FIN and a RST outside the window are dropped, the exact RST ends it; then nothing passes the kernel."""
    connection = answered(knowing(firewall))
    assert by_kernel(firewall, connection, 0, "A", b"request")
    connection.c2s("FA", ahead=1 << 20).is_dropped("tcp_drop_out_of_wnd")
    connection.s2c("R", ahead=1 << 20).is_dropped("tcp_drop_rst_out_of_wnd")
    assert connection.s2c("R").left
    assert firewall.session(firewall.installed).end_reason == lib.END_TCP_RST_FROM_SERVER
    assert not firewall.kernel.mapped()


def test_a_half_closed_stream_stays_with_the_kernel(firewall):
    """What the server still has to say, after the client has closed: each acknowledgement restarts the timer."""
    connection = answered(knowing(firewall))
    assert by_kernel(firewall, connection, 0, "A", b"request")
    assert connection.c2s("FA").left
    assert firewall.tcp_state(firewall.installed) == "HALF_CLOSED"
    assert by_kernel(firewall, connection, 1, "A", b"answer")
    assert by_kernel(firewall, connection, 0, "A")
    firewall.wait(TIMERS["tcp_half_closed"] - 1)
    firewall.kernel.entry(firewall.installed).flow[1].last_seen = firewall.now * TICK
    assert by_kernel(firewall, connection, 1, "A", b"more")
    assert firewall.session(firewall.installed).timeout == TIMERS["tcp_half_closed"] * 10


def test_what_is_forgotten_is_not_gone_by(firewall):
    """After hops_forget() a connection asks, and no more than a few do in one tick."""
    knowing(firewall)
    lib.hops_forget(firewall.table)
    answered(firewall)
    assert not firewall.kernel.mapped()
    assert firewall.installed in firewall.offered()


def test_only_a_few_ask_at_a_time():
    """A flood of connections to places nobody knows leaves Python its time."""
    with Offloading(256) as firewall:
        firewall.decides()
        began = firewall.now
        for port in range(4000, 4100):
            answered(firewall, client=f"10.0.0.5:{port}")
        assert len(firewall.offered()) <= 16 * (firewall.now - began + 1)
        firewall.wait(2 / 10)
        answered(firewall, client="10.0.0.5:5000")
        assert len(firewall.offered()) == 1


def test_a_session_that_is_over_still_asks_where_it_went(firewall):
    """For the sake of the next; there is nothing to offload any more."""
    connection = answered(firewall.decides())
    assert connection.c2s("A").left
    connection.shut()
    assert firewall.installed in firewall.offered()
    assert firewall.offload(firewall.installed) == lib.OFFLOAD_UNSUITED
    knowing(firewall)
    answered(firewall, client="10.0.0.5:4001")
    assert len(firewall.kernel.mapped()) == 2


def test_a_hop_is_of_its_zone_and_of_the_sessions_interface(firewall):
    """The same address in another zone is another place; by another interface than was decided nothing goes."""
    firewall.decides().knows("10.0.0.5", OUTSIDE, HOPS[0]).knows(SERVER, OUTSIDE, AWAY)
    answered(firewall)
    firewall.knows("10.0.0.5", INSIDE, HOPS[0]).knows(SERVER, OUTSIDE, HOPS[1])
    answered(firewall, client="10.0.0.5:4001")
    assert not firewall.kernel.mapped()


def test_datagrams_go_by_known_hops_too(firewall):
    """From the third on, without being offered."""
    knowing(firewall)
    for _ in range(3):
        assert firewall.c2s(question()).left
    assert not firewall.offered()
    assert firewall.kernel.take(question(), INSIDE) is not None


def test_what_was_unsuited_may_ask_again(firewall):
    """A RST that nobody has verified came between the offer and the answer, and then data."""
    firewall.decides()
    connection = grown(Connection(firewall))
    number = firewall.installed
    assert number in firewall.offered()
    assert connection.c2s("R", ahead=100).left
    assert firewall.offload(number) == lib.OFFLOAD_UNSUITED
    assert connection.c2s("A", b"data").left
    assert firewall.tcp_state(number) == "ESTABLISHED"
    assert connection.s2c("A").left
    assert number in firewall.offered()


def test_another_life_of_a_slot_is_not_offloaded(firewall):
    """The generation that was offered is over."""
    for _ in range(3):
        firewall.c2s(question())
    ((session, generation),) = firewall.offered().items()
    firewall.end(session)
    firewall.wait(2 / 10)
    firewall.expire()
    assert firewall.offload(session, generation) == lib.OFFLOAD_UNSUITED
    assert not firewall.kernel.mapped()


def test_a_cleared_session_waits_for_a_whole_tick(firewall):
    """The tick in which it is taken off may be over at once, and a program may still hold its entry."""
    session = ripe(firewall, question(), question(), question())
    firewall.end(session)
    firewall.kernel.entry(session).flow[0].taken_off = firewall.now
    for _ in range(2):
        assert not firewall.expire()
        firewall.wait(1 / 10)
    assert [end.id for end in firewall.expire()] == [session]
    assert not firewall.kernel.entry(session)


def test_numbers_come_back_from_the_kernel(firewall):
    """The program has seen a megabyte; a FIN behind it is in the window, one from before the offload is not."""
    firewall.decides()
    connection = grown(Connection(firewall))
    number = firewall.installed
    firewall.offered()
    assert firewall.offload(number) == lib.OFFLOAD_DONE
    for at in range(1001, 1001 + (1 << 20), 1024):
        data = connection.segment(0, "A", bytes(1024), at - 1001)
        assert firewall.kernel.take(data, INSIDE) is not None
        ack = connection.segment(1, "A", b"", 0, ack=at + 1024)
        assert firewall.kernel.take(ack, OUTSIDE) is not None
    assert firewall.counts(number) == ((7 + 1024, 1 + 1024), (280 + 1024 * 1064, 40 + 1024 * 40))
    connection.c2s("FA").is_dropped("tcp_drop_out_of_wnd")
    connection.next[0] += 1 << 20
    assert connection.c2s("FA").left
    assert firewall.tcp_state(number) == "HALF_CLOSED"


def test_the_program_says_when_it_has_seen_the_last_packet(firewall):
    """By the clock that sessions age by; a sweep brings it to the session."""
    session = ripe(firewall, question(), question(), question())
    flow = firewall.kernel.entry(session).flow[0]
    flow.moment = 0
    before = time.monotonic_ns()
    assert firewall.kernel.take(question(), INSIDE) is not None
    assert before - TICK <= flow.last_seen <= time.monotonic_ns()
    later = flow.last_seen + 50 * TICK
    flow.last_seen = later
    flow.packets += 1
    firewall.sweep()
    assert firewall.session(session).last_seen == later // TICK


@pytest.mark.parametrize("seen", [True, False], ids=["passed-the-program", "forged"])
def test_a_fin_may_be_overtaken(firewall, seen):
    """While it waits in its queue the kernel forwards a megabyte of the other side: its acknowledgement is old then.
    What the program has not found in the windows is judged by them as they are."""
    firewall.decides()
    connection = grown(Connection(firewall))
    firewall.offered()
    assert firewall.offload(firewall.installed) == lib.OFFLOAD_DONE
    fin = connection.segment(0, "FA", b"the last", 0)
    if seen:
        assert firewall.kernel.take(fin, INSIDE) is None
    for at in range(0, 1 << 20, 1024):
        assert firewall.kernel.take(connection.segment(1, "A", bytes(1024), at), OUTSIDE) is not None
        ack = connection.segment(0, "A", b"", len(b"the last") + 1 if seen else 0, ack=connection.next[1] + at + 1024)
        assert firewall.kernel.take(ack, INSIDE) is not None
    outcome = firewall.send(fin, INSIDE)
    if seen:
        assert outcome.left
        assert firewall.tcp_state(firewall.installed) == "HALF_CLOSED"
    else:
        outcome.is_dropped("tcp_drop_out_of_wnd")


def test_what_comes_to_the_queue_moves_the_kernels_window(firewall):
    """Urgent data goes through C; the segment that follows it, behind the old window, is the kernel's again."""
    firewall.decides()
    connection = grown(Connection(firewall, window=(1000, 1000)))
    firewall.offered()
    assert firewall.offload(firewall.installed) == lib.OFFLOAD_DONE
    behind = connection.segment(0, "A", b"x" * 400, 1500)
    assert firewall.kernel.take(behind, INSIDE) is None
    assert connection.c2s("A", b"u" * 600, urgptr=1).left
    assert connection.s2c("AU", b"u" * 10, ack=1601).left
    assert firewall.kernel.take(connection.segment(0, "A", b"x" * 400, 900), INSIDE) is not None


def test_a_fast_stream_leaves_what_the_kernel_knew_behind(firewall):
    """Taken off, its numbers move on by more than half of the sequence space while the entry still rests."""
    firewall.decides()
    connection = grown(Connection(firewall, window=(65535, 65535), scale=(14, 14)))
    assert connection.s2c("A").left
    number = firewall.installed
    firewall.offered()
    assert firewall.offload(number) == lib.OFFLOAD_DONE
    assert lib.session_reconsider(firewall.table, number, 0)
    for _ in range(6):
        connection.next[0] = (connection.next[0] + (1 << 29)) % (1 << 32)
        assert connection.c2s("A", b"x").left
        assert connection.s2c("A").left
    assert firewall.kernel.entry(number)


# ---- Python's turn ----


class Besieged(Offload):
    """Whatever it has dealt with is offered again at once."""

    def __init__(self, firewall: Offloading) -> None:
        table: Any = SimpleNamespace(pointer=firewall.table, max_sessions=CAPACITY)
        nowhere: Any = None
        super().__init__(table, nowhere, enabled=True)
        self.firewall = firewall
        self.seen = 0

    def _offload(self, view: View) -> None:
        self.seen += 1
        assert self.seen <= 10 * MAX_BATCHES * MOST_OFFERS, "there is no end to it"
        assert lib.session_reconsider(self.firewall.table, view.id, view.generation)
        self.firewall.c2s(UDP(f"{address_to_text(view.keys[0].src)}:4000", f"{SERVER}:53"))


def test_a_flood_of_offers_leaves_a_turn_for_the_rest():
    """However many sessions ask, neighbours are followed and counts are swept in between."""
    with Offloading(1000).decides() as firewall:
        for host in range(2 * MOST_OFFERS):
            for _ in range(3):
                firewall.c2s(UDP(f"10.0.{host >> 8}.{host & 255}:4000", f"{SERVER}:53"))
        thread = Besieged(firewall)
        thread._take_offers()
        assert thread.seen == MAX_BATCHES * MOST_OFFERS
        lib.offload_end(firewall.table)


# ---- the program and C say the same ----

ENDS = {
    4: ("10.0.0.5", SERVER, POOL, "203.0.113.1"),
    6: ("[fd00::5]", "[2001:db8::8]", "2001:db8:1::1", "[2001:db8::9]"),
}
SIZES = (0, 1, 2, 3, 18, 64, 500, 501, 509, 1016, 1399, 1400)
ISN = (1000, 9000)
ZONES = (INSIDE, OUTSIDE)


class Twin:
    """A session of one kind, offloaded: what its packets become by the program, and by C."""

    def __init__(self, protocol: str, version: int, kind: str, portable: bool = False) -> None:
        client, server, pool, virtual = ENDS[version]
        self.protocol = protocol
        self.firewall = Offloading(portable=portable)
        source: dict[str, Any] = {"source": pool, "ports": PORTS} if kind in ("source", "both") else {}
        destination: dict[str, Any] = {"destination": f"{server}:53"} if kind in ("destination", "both") else {}
        self.firewall.decides(**source, **destination)
        to = virtual if destination else server
        opening = {
            "udp": UDP(f"{client}:4000", f"{to}:53"),
            "tcp": TCP(f"{client}:4000", f"{to}:53", "S", seq=ISN[0]),
            "echo": Echo(f"{client}:4000", to),
        }
        assert self.firewall.c2s(opening[protocol]).left
        for side, flags in ((1, "SA"), *[(0, "A"), (1, "A")] * 3):
            assert self.firewall.send(self.packet(side, b"", flags), ZONES[side]).left
        assert self.firewall.installed in self.firewall.offered()
        assert self.firewall.offload(self.firewall.installed) == lib.OFFLOAD_DONE

    def packet(self, side: int, payload: bytes, flags: str = "A") -> Packet:
        """From the client or the server, as it knows the other."""
        key = self.firewall.session().key[side]
        src, dst = (
            f"{address(raw)}:{socket.ntohs(port)}" for raw, port in ((key.src, key.sport), (key.dst, key.dport))
        )
        if self.protocol == "udp":
            return UDP(src, dst, payload)
        if self.protocol == "echo":
            return (EchoReply if side else Echo)(src, dst, payload)
        seq, ack = ISN[side] + ("S" not in flags), ISN[not side] + 1
        return TCP(src, dst, flags, payload, seq=seq, ack=ack, window=64000)

    def forwarded(self, data: bytes, side: int) -> bool:
        """Whether the program takes it; then C does the same with it, but for the time to live, and counts the same."""
        before = self.firewall.counts(self.firewall.installed)
        sent = self.firewall.kernel.take(data, ZONES[side])
        after = self.firewall.counts(self.firewall.installed)
        if sent is None:
            assert after == before
            return False
        outcome = self.firewall.send(data, ZONES[side])
        assert outcome.left, outcome.counted
        assert sent == LINK + data_type(data) + one_hop(outcome.after)
        grown = [[new - old for new, old in zip(*pair, strict=True)] for pair in zip(after, before, strict=True)]
        assert [grown[0][side], grown[0][not side]] == [1, 0]
        assert grown[1][not side] == 0
        return True


def address(raw: Any) -> str:
    data = bytes(raw)
    return socket.inet_ntoa(data[12:]) if data.startswith(MAPPED) else f"[{socket.inet_ntop(socket.AF_INET6, data)}]"


def data_type(data: bytes) -> bytes:
    return b"\x08\x00" if data[0] >> 4 == 4 else b"\x86\xdd"


def one_hop(data: bytes) -> bytes:
    """The time to live is one less."""
    at = 8 if data[0] >> 4 == 4 else 7
    aged = bytearray(data)
    aged[at] -= 1
    if at == 8:
        aged[10:12] = bytes(2)
        aged[10:12] = (0xFFFF - ones_complement(bytes(aged[:20]))).to_bytes(2)
    return bytes(aged)


KINDS = [("none", False), ("source", False), ("destination", False), ("both", False), ("both", True)]
each_kind = pytest.mark.parametrize(
    ("protocol", "version", "kind", "portable"),
    [(p, v, k, portable) for p in ("udp", "tcp", "echo") for v in (4, 6) for k, portable in KINDS],
)


@each_kind
def test_the_program_rewrites_as_c_does(protocol, version, kind, portable):
    """Every size, both directions: byte for byte the same, and counted."""
    twin = Twin(protocol, version, kind, portable)
    rng = random.Random(f"{protocol}{version}{kind}")
    for size in SIZES:
        for side in (0, 1):
            assert twin.forwarded(bytes(twin.packet(side, rng.randbytes(size))), side), size


@each_kind
def test_nothing_is_forwarded_that_c_would_not(protocol, version, kind, portable):
    """Broken and odd packets, with wrong checksums and right ones: the program leaves them as they are, or agrees."""
    twin = Twin(protocol, version, kind, portable)
    rng = random.Random(f"{kind}{version}{protocol}")
    taken = 0
    for _ in range(400):
        side = rng.randrange(2)
        data = bytearray(bytes(twin.packet(side, rng.randbytes(rng.choice(SIZES[:6])))))
        for _ in range(rng.randrange(3)):
            data[rng.randrange(min(len(data), 60))] ^= 1 << rng.randrange(8)
        if rng.randrange(4) == 0:
            del data[rng.randrange(20, len(data)) :]
        broken = bytes(data)
        with contextlib.suppress(Exception):  # scapy cannot read everything
            broken = recomputed(broken) if rng.randrange(2) else broken
        if len(broken) >= {4: 20, 6: 40}.get(broken[0] >> 4, 1 << 16):  # the kernel puts no less before a program
            taken += twin.forwarded(broken, side)
    assert taken > 50


@pytest.mark.parametrize("version", [4, 6])
def test_what_begins_or_ends_something_goes_up(version):
    """Flags, last hops, numbers outside the window, and frames for somebody else."""
    twin = Twin("tcp", version, "source")
    for flags in ("S", "SA", "F", "FA", "R", "RA", "U", "UA", "", "P"):
        assert not twin.forwarded(bytes(twin.packet(0, b"x", flags)), 0), flags
    assert twin.forwarded(bytes(twin.packet(0, b"x", "PA")), 0)
    last = twin.packet(0, b"x")
    setattr(last, "ttl" if version == 4 else "hlim", 1)
    assert not twin.forwarded(bytes(last), 0)
    for field, value in (("seq", ISN[0] + (1 << 30)), ("ack", ISN[1] + 5000)):
        odd = twin.packet(0, b"x")
        setattr(odd["TCP"], field, value)
        assert not twin.forwarded(bytes(odd), 0)
    assert not twin.forwarded(bytes(twin.packet(0, b"x")), 1)  # by the wrong interface
