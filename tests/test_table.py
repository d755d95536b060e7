"""The session table against a model of dicts, by the million, and from four threads at once."""

import os
import socket
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dataplane.ffi import ffi, lib
from tests.reference import Entry, Key, SessionTable
from tests.stress import run_under_tsan
from tests.talk import INSIDE, OUTSIDE, SECOND, STATES, UDP, Firewall, mapped

INSTRUMENTED = "DATAPLANE_EXTENSION" in os.environ
POOL, VIRTUAL, SERVER = "192.0.2.1", "203.0.113.1", "8.8.8.8"
PORTS = (4000, 4002)
PICKS = st.integers(0, 2**16 - 1)

# ---- a random life of a small table ----

FIRST_PACKETS = [
    Key(src, port, dst, 53, INSIDE) for src in ("10.0.0.5", POOL) for port in (4000, 4001) for dst in (SERVER, VIRTUAL)
]
FIRST_PACKETS += [Key(SERVER, 53, "10.0.0.5", 4000, OUTSIDE), Key("10.0.0.6", 4002, SERVER, 53, INSIDE)]
DECISIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "static": {"source": POOL},
    "port": {"source": POOL, "ports": PORTS},
    "destination": {"destination": f"{SERVER}:53"},
    "refuse": {},
}


def raw(key: Key) -> bytes:
    """A datagram of that flow, without checksums: they are not the table's business."""
    addresses = socket.inet_aton(key.src) + socket.inet_aton(key.dst)
    ports = key.sport.to_bytes(2) + key.dport.to_bytes(2)
    return b"\x45\0\0\x1c\0\0\0\0\x40\x11\0\0" + addresses + ports + b"\0\x08\0\0"


def write_key(c, key: Key) -> None:
    ffi.memmove(c.src, mapped(key.src), 16)
    ffi.memmove(c.dst, mapped(key.dst), 16)
    c.sport, c.dport = socket.htons(key.sport), socket.htons(key.dport)
    c.proto, c.zone, c.family = 17, key.zone, 4


def answer(key: Key, kind: str, port: int | None = None) -> Key:
    """The key under which answers come back, with this source port if one is lent."""
    back = key.mirror(OUTSIDE)
    return Key(
        SERVER if kind == "destination" else back.src,
        53 if kind == "destination" else back.sport,
        POOL if kind in ("static", "port") else back.dst,
        back.dport if port is None else port,
        OUTSIDE,
    )


class TableMachine(RuleBasedStateMachine):
    """Every call is made on both sides, and both must say the same.

    C chooses ports at random, so what hypothesis draws must not depend on them: it draws numbers to pick with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.firewall = Firewall(12)
        self.model = SessionTable(12)
        self.key = ffi.new("struct flow_key *")
        self.generations: dict[int, int] = {}

    def teardown(self) -> None:
        self.firewall.__exit__()

    def decide(self, kind: str) -> None:
        if kind == "refuse":
            self.firewall.refuses()
        else:
            self.firewall.decides(**DECISIONS[kind])

    @rule(key=st.sampled_from(FIRST_PACKETS), kind=st.sampled_from(list(DECISIONS)))
    def install(self, key, kind):
        if key.src == SERVER and kind == "destination":
            return  # it would be translated to its own sender
        self.decide(kind)
        write_key(self.key, key)
        result = self.firewall.install_key(self.key)
        self.firewall.keep_up()
        slot = self.model.take_slot(kind == "refuse")
        if slot is None:
            assert result == lib.INSTALL_FULL
            return
        error = self.expected_error(key, kind)
        if error:
            assert result == error
            self.model.give_back(slot)
            return
        assert result == slot
        self.check_installed(slot, key, kind)

    def expected_error(self, key: Key, kind: str) -> int:
        if self.model.find(key):
            return int(lib.INSTALL_EXISTS)
        if kind == "port":
            return 0 if self.good_ports(key) else int(lib.INSTALL_NO_PORT)
        back = answer(key, kind)
        clash = self.model.occupied(back) or back == key
        return int(lib.INSTALL_CLASH) if clash and kind == "plain" else 0

    def good_ports(self, key: Key) -> set[int]:
        ports = set(range(PORTS[0], PORTS[1] + 1)) - self.model.lent()
        return {port for port in ports if not self.model.occupied(answer(key, "port", port))}

    def check_installed(self, slot: int, key: Key, kind: str) -> None:
        session = self.firewall.session(slot)
        port = socket.ntohs(session.key[1].dport)
        back = answer(key, kind, port)
        expected = answer(key, kind)
        if kind == "port":
            assert port in self.good_ports(key)
        elif kind != "refuse" and self.model.occupied(expected):
            assert port >= 1024
            assert not self.model.occupied(back)
        else:
            assert back == expected
        if kind != "refuse":
            self.model.make_way(back)
        assert session.generation > self.generations.get(slot, 0)  # a refused install takes a life as well
        self.generations[slot] = session.generation
        state = "DISCARD" if kind == "refuse" else "ACTIVE"
        entry = Entry((key, back), state, session.last_seen + session.timeout + 1, port if kind == "port" else None)
        entry.packets[0] = int(kind == "refuse")
        self.model.insert(slot, entry)

    @rule(pick=PICKS)
    def packet(self, pick):
        keys = [*FIRST_PACKETS, *(key for entry in self.model.entries.values() for key in entry.keys)]
        key = keys[pick % len(keys)]
        outcome = self.firewall.take(raw(key), key.zone)
        found = self.model.find(key)
        looked = self.firewall.look(raw(key), key.zone)[0]
        assert looked == (lib.VERDICT_ACCEPT if found else lib.VERDICT_PUNT)
        if not found:
            outcome.is_punted()
            return
        entry, direction = self.model.entries[found[0]], found[1]
        entry.packets[direction] += 1
        if entry.state == "DISCARD":
            outcome.is_dropped("flow_discard_hit")
            return
        left = entry.keys[1 - direction].mirror(key.zone)
        assert outcome.left
        assert outcome.after[12:24] == raw(left)[12:24]
        assert (outcome.verdict == lib.VERDICT_ACCEPT) == (left == key)
        entry.deadline = self.firewall.now + 30 * SECOND + 1

    @rule(ticks=st.sampled_from([1, 10, 150, 299, 300, 301, 9000]))
    def time(self, ticks):
        self.firewall.now += ticks

    @rule()
    def expire(self):
        assert {ended.id for ended in self.firewall.closed()} == self.model.expire(self.firewall.now)

    @rule(pick=PICKS)
    def free(self, pick):
        chosen = [i for i, entry in self.model.entries.items() if entry.state == "CLOSED" and pick >> i & 1]
        lib.session_free(self.firewall.table, chosen, len(chosen))
        for session_id in chosen:
            self.model.release(session_id)

    @rule(session_id=st.integers(0, 13))
    def close(self, session_id):
        assert self.firewall.end(session_id) == self.model.close(session_id)

    @rule(key=st.sampled_from(FIRST_PACKETS))
    def close_all(self, key):
        chosen = ffi.new(
            "struct session_filter *",
            {"source_set": 1, "source": [mapped(key.src)] * 2, "sport": socket.htons(key.sport)},
        )
        matching = [
            i for i, e in self.model.alive().items() if (e.keys[0].src, e.keys[0].sport) == (key.src, key.sport)
        ]
        assert lib.table_close_all(self.firewall.table, chosen, lib.END_UNKNOWN) == len(matching)
        self.firewall.keep_up()
        for session_id in matching:
            self.model.close(session_id)

    @rule(state=st.sampled_from([None, "ACTIVE", "DISCARD", "CLOSING", "CLOSED"]), room=st.integers(1, 13))
    def scan(self, state, room):
        chosen = {"state": getattr(lib, f"SESSION_{state}") + 1} if state else {}
        expected = [i for i, entry in sorted(self.model.entries.items()) if state in (None, entry.state)]
        assert [copy.id for copy in scan(self.firewall, chosen, room)] == expected

    @rule()
    def read(self):
        for session_id, entry in self.model.entries.items():
            assert self.firewall.state(session_id) == entry.state
            assert list(self.firewall.session(session_id).packets) == entry.packets

    @invariant()
    def books_agree(self):
        stats, alive = self.firewall.stats(), self.model.alive().values()
        discarded = sum(entry.state == "DISCARD" for entry in alive)
        closing = sum(entry.state == "CLOSING" for entry in self.model.entries.values())
        assert stats["allocated"] == len(self.model.entries)
        assert (stats["udp"], stats["discard"]) == (len(alive) - discarded, discarded)
        assert stats["tcp"] == stats["icmp"] == stats["other"] == stats["predict"] == 0
        assert stats["scheduled"] == len(alive) + closing
        pool = lib.natpool_open(self.firewall.table, mapped(POOL))
        assert lib.natpool_used(self.firewall.table, pool, 0, 65535) == len(self.model.lent())


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=60 if INSTRUMENTED else 250, stateful_step_count=60, deadline=None)


# ---- slots ----


def fill(firewall, n: int, first: int = 0) -> int:
    """Installs n sessions of different sources; the result of the last one."""
    key = ffi.new("struct flow_key *")
    write_key(key, Key("0.0.0.0", 4000, SERVER, 53, INSIDE))
    decision = ffi.new("struct decision *", firewall.decision)
    source = ffi.cast("uint32_t *", ffi.addressof(key.src, 12))
    result = 0
    for i in range(first, first + n):
        source[0] = i
        result = lib.session_install(firewall.table, lib.SHARD_SLOW, key, decision)
        if result < 0:
            break
    firewall.keep_up()
    return int(result)


def empty(firewall) -> int:
    """Ends and frees everything; how many there were."""
    firewall.wait(100_000)
    n = 0
    while ended := firewall.expire():
        n += len(ended)
    return n


def scan(firewall, chosen, room=64):
    """All sessions that pass the filter, `room` at a time."""
    session_filter, following = ffi.new("struct session_filter *", chosen), ffi.new("uint32_t *")
    copies = ffi.new("struct session_copy[]", room)
    while True:
        n = lib.table_scan(firewall.table, session_filter, following, copies, room)
        yield from (copies[i] for i in range(n))
        if not following[0]:
            return


def source_of(i: int) -> str:
    return socket.inet_ntoa(i.to_bytes(4, "little"))


def test_a_million_sessions():
    """Made, found, and gone again, in at most 256 bytes each."""
    n = 100_000 if INSTRUMENTED else 1_000_000
    with Firewall(n) as firewall:
        firewall.decides()
        assert fill(firewall, n) == n
        assert fill(firewall, 1, n) == lib.INSTALL_FULL
        stats = firewall.stats()
        assert stats["allocated"] == stats["udp"] == stats["scheduled"] == n
        assert stats["bytes"] / n <= 256
        for i in range(0, n, n // 2000):
            assert firewall.take(raw(Key(source_of(i), 4000, SERVER, 53, INSIDE)), INSIDE).left
            assert firewall.take(raw(Key(SERVER, 53, source_of(i), 4000, OUTSIDE)), OUTSIDE).left
        assert firewall.take(raw(Key(source_of(n), 4000, SERVER, 53, INSIDE)), INSIDE).verdict == lib.VERDICT_PUNT
        assert empty(firewall) == n
        assert firewall.stats()["allocated"] == firewall.stats()["scheduled"] == 0


@pytest.mark.parametrize("slots", [1, 2, 10, 1000])
def test_every_slot_comes_back(slots):
    """Full and empty thirty times; overflow buckets that were not given back would run out after four."""
    with Firewall(slots) as firewall:
        firewall.decides()
        for cycle in range(30):
            assert fill(firewall, slots, cycle * slots) > 0
            assert fill(firewall, 1, 10**6) == lib.INSTALL_FULL
            assert empty(firewall) == slots
        assert firewall.stats()["installed"] == 30 * slots
        assert firewall.counters()["session_alloc_failure"] == 30


def test_a_full_table_refuses_and_evicts_nobody():
    """RFC 6888 REQ-11: live sessions stay."""
    with Firewall(10) as firewall:
        firewall.decides()
        fill(firewall, 10)
        assert fill(firewall, 1, 10) == lib.INSTALL_FULL
        assert firewall.stats()["udp"] == 10
        assert firewall.counters()["session_discard_evicted"] == 0


def test_discard_sessions_make_room():
    """They take a tenth of the table, the oldest goes first, and all go before a live flow is refused."""
    with Firewall(100) as firewall:
        firewall.refuses()
        fill(firewall, 30)
        assert firewall.stats()["discard"] == 10
        assert [copy.id for copy in scan(firewall, {"state": lib.SESSION_DISCARD + 1})] == list(range(21, 31))
        firewall.decides()
        fill(firewall, 100, 1000)
        assert (firewall.stats()["discard"], firewall.stats()["udp"]) == (0, 100)
        assert firewall.counters()["session_discard_evicted"] == 30


def test_a_denied_flow_does_not_displace_a_live_one():
    """A full table has no room for a DISCARD session."""
    with Firewall(10) as firewall:
        firewall.decides()
        fill(firewall, 10)
        firewall.refuses()
        assert fill(firewall, 1, 99) == lib.INSTALL_FULL
        assert firewall.stats()["udp"] == 10


def test_an_ended_session_can_be_shown_until_its_slot_is_used_again():
    """The free list is first in, first out."""
    with Firewall(10) as firewall:
        firewall.decides().c2s(UDP("10.0.0.5:4000", "8.8.8.8:53"))
        firewall.end(1, lib.END_POLICY_DENY)
        firewall.expire()
        assert firewall.state(1) == "INIT"
        assert firewall.session(1).end_reason == lib.END_POLICY_DENY
        assert bytes(firewall.session(1).key[0].src) == mapped("10.0.0.5")
        fill(firewall, 9)
        assert firewall.state(1) == "INIT"
        assert fill(firewall, 1, 99) == 1


def test_a_route_that_moves_takes_its_sessions_along():
    """The egress interface of a live session is set; that of an ended one, or of another life of the slot, is not."""
    with Firewall(10) as firewall:
        firewall.decides().c2s(UDP("10.0.0.5:4000", "8.8.8.8:53"))
        generation = firewall.session().generation
        assert lib.session_set_egress(firewall.table, 1, generation, 7)
        assert not lib.session_set_egress(firewall.table, 1, generation + 1, 8)
        assert firewall.session().egress == 7
        firewall.end(1)
        assert not lib.session_set_egress(firewall.table, 1, generation, 8)
        assert not lib.session_set_egress(firewall.table, 11, 0, 8)


@pytest.mark.parametrize("session_id", [0, 11, 2**32 - 1])
def test_an_id_that_is_no_slot_is_answered_as_such(session_id):
    """It comes from what an operator types."""
    with Firewall(10) as firewall:
        assert not lib.session_read(firewall.table, session_id, ffi.new("struct session *"))
        assert not firewall.end(session_id)


@pytest.mark.parametrize("slots", [0, 2**30 + 1, 2**32 - 1])
def test_a_table_of_impossible_size_is_refused(slots):
    """errno says why."""
    assert lib.table_create(slots, 1) == ffi.NULL
    assert ffi.errno != 0


# ---- what is expected ----
#
#     the server of a control channel will call back: from any port, to the client's public address

CALLER, CALLEE = Key(SERVER, 0, POOL, 6000, OUTSIDE), Key("10.0.0.5", 5000, SERVER, 0, INSIDE)
CALL = UDP(f"{SERVER}:20", f"{POOL}:6000")


def expected(firewall, c2s: Key = CALLER, s2c: Key = CALLEE) -> int:
    keys = ffi.new("struct flow_key[2]")
    write_key(keys[0], c2s)
    write_key(keys[1], s2c)
    flags = lib.FLAG_PREDICTED | lib.FLAG_LOG_END
    return int(firewall.expects(keys[0], keys[1], egress_zone=INSIDE, flags=flags, parent=77))


def comes(firewall, session_id: int, generation: int, **fields: Any) -> None:
    """From now on a first packet is what that PREDICT session has expected."""
    decision = {"egress_zone": INSIDE, "ingress": OUTSIDE, "egress": INSIDE, "destination": "10.0.0.5:5000"} | fields
    firewall.decides(predicted=session_id, predicted_generation=generation, flags=lib.FLAG_PREDICTED, **decision)


def test_what_is_expected_is_seen_and_not_found():
    """It has no port yet, so no packet can be its: whoever asks for it asks the slow path."""
    with Firewall(10) as firewall:
        session = expected(firewall)
        assert [STATES[state] for state in firewall.session().state] == ["SESSION_ACTIVE", "SESSION_OPENING"]
        assert (firewall.stats()["predict"], firewall.stats()["udp"], firewall.stats()["scheduled"]) == (1, 0, 1)
        assert (firewall.session().parent, firewall.timeout()) == (77, 60)
        assert [copy.id for copy in scan(firewall, {"type": lib.SESSION_PREDICT + 1})] == [session]
        assert firewall.counters()["session_predicted"] == 1
        assert firewall.take(raw(CALLER), OUTSIDE).verdict == lib.VERDICT_PUNT
        assert firewall.take(raw(CALLEE), INSIDE).verdict == lib.VERDICT_PUNT


def test_two_may_expect_the_same():
    """Nothing of them is in the hash, so nothing clashes, neither with each other nor with a live session."""
    with Firewall(10) as firewall:
        key = Key("10.0.0.5", 4000, SERVER, 53, INSIDE)
        firewall.decides().c2s(raw(key))
        assert [expected(firewall, key, key.mirror(OUTSIDE)) for _ in range(2)] == [2, 3]
        firewall.end(2)
        assert [ended.id for ended in firewall.expire()] == [2]
        firewall.asks().c2s(raw(key)).passes()


def test_what_never_came_ages_out():
    """After the time that it was given, exactly."""
    with Firewall(10) as firewall:
        session = expected(firewall)
        firewall.wait(60)
        assert firewall.expire() == []
        firewall.wait(0.2)
        assert [(ended.id, ended.reason, ended.packets) for ended in firewall.expire()] == [
            (session, "aged-out", (0, 0))
        ]
        assert (firewall.stats()["predict"], firewall.stats()["allocated"], firewall.state()) == (0, 0, "INIT")


def test_what_is_expected_may_be_closed():
    """As any session."""
    with Firewall(10) as firewall:
        session, generation = expected(firewall), firewall.session().generation
        assert not firewall.end(session, generation=generation + 1)
        assert firewall.end(session, generation=generation)
        assert (firewall.stats()["predict"], firewall.state()) == (0, "CLOSING")
        assert [(ended.id, ended.reason) for ended in firewall.expire()] == [(session, "unknown")]


def test_what_was_expected_becomes_a_flow_in_its_place():
    """The same slot and the same life of it, with keys that are whole now, and timers of its own."""
    with Firewall(10) as firewall:
        session, generation = expected(firewall), firewall.session().generation
        firewall.wait(50)
        comes(firewall, session, generation)
        firewall.s2c(CALL).leaves_as(f"{SERVER}:20", "10.0.0.5:5000")
        firewall.c2s(UDP("10.0.0.5:5000", f"{SERVER}:20")).leaves_as(f"{POOL}:6000", f"{SERVER}:20")
        assert (firewall.installed, firewall.session().generation) == (session, generation)
        assert (firewall.session().type, firewall.state(), firewall.timeout()) == (lib.SESSION_FLOW, "ACTIVE", 30)
        assert list(firewall.session().packets) == [1, 1]
        stats = firewall.stats()
        assert [stats[name] for name in ("predict", "udp", "allocated", "scheduled")] == [0, 1, 1, 1]
        firewall.wait(31)
        assert [(ended.id, ended.packets) for ended in firewall.expire()] == [(session, (1, 1))]
        assert firewall.asks().take(bytes(CALL), OUTSIDE).verdict == lib.VERDICT_PUNT


def test_what_has_ended_meanwhile_becomes_a_session_of_its_own():
    """In a slot of its own, while the ager still has the old one."""
    with Firewall(10) as firewall:
        session, generation = expected(firewall), firewall.session().generation
        firewall.end(session)
        gone = firewall.closed()
        comes(firewall, session, generation)
        firewall.s2c(CALL).leaves_as(f"{SERVER}:20", "10.0.0.5:5000")
        assert (firewall.installed, firewall.state(session)) == (2, "CLOSED")
        lib.session_free(firewall.table, [ended.id for ended in gone], len(gone))
        assert firewall.asks().s2c(CALL).left
        assert firewall.stats()["allocated"] == 1


def test_another_life_of_the_slot_is_not_what_was_expected():
    """The same id expects something else by now."""
    with Firewall(1) as firewall:
        session, generation = expected(firewall), firewall.session().generation
        firewall.end(session)
        firewall.expire()
        assert expected(firewall) == session
        comes(firewall, session, generation)
        firewall.s2c(CALL).is_punted()
        assert (firewall.installed, firewall.stats()["predict"]) == (lib.INSTALL_FULL, 1)
        comes(firewall, session, generation + 1)
        firewall.s2c(CALL).leaves_as(f"{SERVER}:20", "10.0.0.5:5000")


def held_key(firewall) -> None:
    """The flow itself has been installed meanwhile."""
    firewall.decides(egress_zone=INSIDE, ingress=OUTSIDE, egress=INSIDE).s2c(CALL)


def held_answer(firewall) -> None:
    """A live session sends from where the answers would come from."""
    firewall.decides(source=POOL, ports=(7000, 7000)).c2s(raw(Key("10.0.0.5", 5000, SERVER, 20, INSIDE)))


def held_port(firewall) -> None:
    """The only translated port is lent."""
    firewall.decides(source="192.0.2.9", ports=(9000, 9000)).c2s(raw(Key("10.0.0.9", 5000, SERVER, 20, INSIDE)))


@pytest.mark.parametrize(
    ("by", "key", "error", "fields"),
    [
        (held_key, Key(SERVER, 20, POOL, 6000, OUTSIDE), lib.INSTALL_EXISTS, {}),
        (held_answer, Key(SERVER, 20, "10.0.0.5", 5000, OUTSIDE), lib.INSTALL_CLASH, {"destination": None}),
        (
            held_port,
            Key(SERVER, 20, POOL, 6000, OUTSIDE),
            lib.INSTALL_NO_PORT,
            {"source": "192.0.2.9", "ports": (9000, 9000)},
        ),
    ],
)
def test_what_cannot_become_a_flow_gives_its_slot_back(by, key, error, fields):
    """It was expected, it came, and there is no way for it: nothing is left of it but a free slot."""
    with Firewall(2) as firewall:
        by(firewall)
        session, generation = expected(firewall), firewall.session().generation
        comes(firewall, session, generation, **fields)
        first = ffi.new("struct flow_key *")
        write_key(first, key)
        assert firewall.install_key(first) == error
        assert (firewall.state(session), firewall.stats()["predict"], firewall.stats()["allocated"]) == ("INIT", 0, 1)
        firewall.wait(25)
        assert firewall.expire() == []
        assert fill(firewall.decides(), 1) == session
        assert empty(firewall) == 2


def test_a_full_table_expects_nothing_and_still_takes_what_it_has_expected():
    """A PREDICT session has its slot already; a new one may take that of a DISCARD session."""
    with Firewall(10) as firewall:
        session, generation = expected(firewall), firewall.session().generation
        firewall.decides()
        fill(firewall, 8)
        firewall.refuses()
        fill(firewall, 1, 100)
        assert expected(firewall) > 0
        assert (firewall.stats()["discard"], firewall.stats()["predict"]) == (0, 2)
        assert expected(firewall) == lib.INSTALL_FULL
        assert firewall.counters()["session_alloc_failure"] == 1
        comes(firewall, session, generation)
        firewall.s2c(CALL).leaves_as(f"{SERVER}:20", "10.0.0.5:5000")
        assert (firewall.installed, firewall.stats()["predict"], firewall.stats()["udp"]) == (session, 1, 9)


# ---- filters ----


@pytest.fixture(scope="module")
def crowd():
    """Sessions that differ in what filters look at; ids 1 to 8."""
    with Firewall(64) as firewall:
        firewall.decides(application=1, rule=10).c2s(UDP("10.0.0.5:4000", "8.8.8.8:53", bytes(972)))
        firewall.decides(source=POOL, rule=11, nat_rule=5).c2s(UDP("10.0.0.6:4000", "8.8.8.8:53"))
        firewall.decides(source=POOL, ports=(1024, 2000), rule=11, nat_rule=6).c2s(UDP("10.0.0.7:4000", "8.8.8.8:53"))
        firewall.decides(destination="10.1.1.1:8053").c2s(UDP("10.0.0.8:4000", "8.8.8.8:53"))
        firewall.decides(source=POOL, ports=(1024, 2000), destination="10.1.1.1").c2s(
            UDP("10.0.0.9:4001", "8.8.8.8:53")
        )
        firewall.refuses().c2s(UDP("10.0.0.10:4000", "8.8.8.8:99"))
        firewall.decides(egress_zone=3, egress=9).c2s(UDP("[2001:db8::5]:4000", "[2001:db8::8]:53"))
        firewall.decides(egress_zone=INSIDE, ingress=7).s2c(UDP("9.9.9.9:4000", "10.0.0.5:53"))
        assert firewall.stats()["allocated"] == 8
        yield firewall


@pytest.mark.parametrize(
    ("chosen", "ids"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"state": lib.SESSION_ACTIVE + 1}, [1, 2, 3, 4, 5, 7, 8]),
        ({"state": lib.SESSION_DISCARD + 1}, [6]),
        ({"state": lib.SESSION_CLOSED + 1}, []),
        ({"type": lib.SESSION_FLOW + 1, "proto": 17}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"type": lib.SESSION_PREDICT + 1}, []),
        ({"proto": 6}, []),
        ({"family": 6}, [7]),
        ({"zone": [OUTSIDE, 0]}, [8]),
        ({"zone": [0, 3]}, [7]),
        ({"sport": socket.htons(4001)}, [5]),
        ({"dport": socket.htons(99)}, [6]),
        ({"nat": 1}, [1, 6, 7, 8]),
        ({"nat": 1 + lib.FLAG_SNAT}, [2, 3]),
        ({"nat": 1 + lib.FLAG_DNAT}, [4]),
        ({"nat": 1 + lib.FLAG_SNAT + lib.FLAG_DNAT}, [5]),
        ({"source_set": 1, "source": [mapped("10.0.0.6"), mapped("10.0.0.8")]}, [2, 3, 4]),
        ({"destination_set": 1, "destination": [mapped("10.0.0.0"), mapped("10.255.255.255")]}, [8]),
        ({"application": 2}, [1]),
        ({"rule": 12}, [2, 3]),
        ({"nat_rule": 7}, [3]),
        ({"nat_rule": 2}, []),
        ({"ingress": 7}, [8]),
        ({"egress": 9}, [7]),
        ({"min_bytes": 1000}, [1]),
        ({"max_bytes": 999}, [2, 3, 4, 5, 6, 7, 8]),
        ({"rule": 12, "nat": 1 + lib.FLAG_SNAT, "source_set": 1, "source": [mapped("10.0.0.7")] * 2}, [3]),
    ],
    ids=str,
)
@pytest.mark.parametrize("room", [1, 3, 100])
def test_a_scan_finds_what_passes_every_condition(crowd, chosen, ids, room):
    """However small the caller's array is."""
    assert [copy.id for copy in scan(crowd, chosen, room)] == ids


def test_the_age_of_a_session_is_counted_from_its_start(crowd):
    """In ticks, from the caller's clock."""
    start = crowd.session(1).start_tick
    assert 1 in [copy.id for copy in scan(crowd, {"min_age": 50, "now": start + 50})]
    assert 1 not in [copy.id for copy in scan(crowd, {"min_age": 51, "now": start + 50})]


# ---- many threads ----


@pytest.mark.stress
def test_four_threads_share_a_table(tmp_path):
    """Two workers that also install, an ager, an operator: no race, and the books of stress_table.c are right."""
    run_under_tsan("stress_table", tmp_path)
