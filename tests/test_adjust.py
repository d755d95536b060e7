"""Numbers of a connection whose text an ALG has changed, told as conversations and against a naive model.

The client's text begins at 1001, the server's at 5001; `numbers` are those of a packet that left, (sequence,
acknowledgement), after scapy has built the whole packet anew from them.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import inet

from dataplane.ffi import ffi, lib
from tests.reference import ones_sum, pseudo_header
from tests.talk import INSIDE, OUTSIDE, SECOND, Connection, Firewall, Outcome, mapped, recomputed

CLIENT, SERVER = {4: "10.0.0.5:4000", 6: "[fd00::5]:4000"}, {4: "8.8.8.8:80", 6: "[2001:db8::8]:80"}
PUBLIC = {4: "192.0.2.1", 6: "2001:db8::1"}
CHECKSUMS = [lib.CHECKSUM_TRUSTED, lib.CHECKSUM_UNVERIFIED, lib.CHECKSUM_PARTIAL]
EDITS = 16  # of one direction that are remembered
COLLIDING = 16  # sessions that share a line of the table of edits, 256 ids apart
NOP = ("NOP", None)


@pytest.fixture
def firewall():
    with Firewall() as firewall:
        yield firewall.decides()


@pytest.fixture
def connection(firewall):
    return Connection(firewall).open()


def edited(connection: Connection, side: int, start: int, end: int, grown: int) -> None:
    """The side has sent all up to `end`, and the other one has been sent something else for [start, end)."""
    text = bytes((end - connection.next[side]) % 2**32)
    assert connection.send(side, "PA", text).left
    assert connection.firewall.adjusts(side, start, end, grown)


def numbers(outcome: Outcome) -> tuple[int, int]:
    """Sequence and acknowledgement; nothing else has changed, and the checksums are those that scapy computes."""
    left = outcome.packet[inet.TCP]
    sent = inet.IP(outcome.before)
    sent[inet.TCP].seq, sent[inet.TCP].ack = left.seq, left.ack
    assert outcome.after == recomputed(bytes(sent))
    return left.seq, left.ack


def blocks(outcome: Outcome) -> tuple[int, ...]:
    """The SACK blocks that left."""
    assert outcome.after == recomputed(outcome.after)
    found: tuple[int, ...] = dict(outcome.packet[inet.TCP].options)["SAck"]
    return found


# ---- one edit ----


def test_what_follows_a_longer_text_is_shifted(connection):
    """[1006, 1016) went on as 15 bytes; before it nothing changes, and what begins within it begins where it begins."""
    edited(connection, 0, 1006, 1016, 5)
    assert numbers(connection.c2s("PA", b"more")) == (1021, 5001)
    assert numbers(connection.c2s("PA", b"befor", seq=1001)) == (1001, 5001)
    assert numbers(connection.c2s("PA", b"0123456789more", seq=1006)) == (1006, 5001)
    assert numbers(connection.c2s("PA", b"56789more", seq=1011)) == (1006, 5001)
    assert numbers(connection.c2s("PA", b"more", seq=1016)) == (1021, 5001)


@pytest.mark.parametrize(
    ("ack", "said"), [(1001, 1001), (1006, 1006), (1007, 1006), (1020, 1006), (1021, 1016), (1025, 1020)]
)
def test_an_acknowledgement_is_shifted_back(connection, ack, said):
    """One inside the edit acknowledges the bytes before it."""
    edited(connection, 0, 1006, 1016, 5)
    connection.c2s("PA", b"more")
    assert numbers(connection.s2c("A", ack=ack)) == (5001, said)


@pytest.mark.parametrize(
    ("grown", "ack", "said"),
    [(-8, 1008, 1016), (-8, 1007, 1006), (-8, 1012, 1020), (-10, 1006, 1016), (-10, 1005, 1005), (-10, 1010, 1020)],
)
def test_a_text_may_become_shorter_or_vanish(connection, grown, ack, said):
    """Whoever has all that is left of it has all of it."""
    edited(connection, 0, 1006, 1016, grown)
    assert numbers(connection.c2s("PA", b"more")) == (1016 + grown, 5001)
    assert numbers(connection.s2c("A", ack=ack)) == (5001, said)


def test_both_directions_may_be_edited_at_once(connection):
    """Each packet gains by its own text and loses by the other's."""
    edited(connection, 0, 1001, 1011, 3)
    edited(connection, 1, 5001, 5021, -7)
    assert numbers(connection.c2s("PA", b"more", ack=5014)) == (1014, 5021)
    assert numbers(connection.s2c("PA", b"more", ack=1018)) == (5014, 1015)
    assert numbers(connection.c2s("A", ack=5018)) == (1018, 5025)


def test_a_segment_that_acknowledges_nothing_keeps_what_stands_there(connection):
    """Without ACK the field has no meaning (RFC 9293 section 3.1)."""
    edited(connection, 0, 1001, 1011, 3)
    edited(connection, 1, 5001, 5021, -7)
    outcome = connection.c2s("R", ack=5014)
    assert (outcome.packet[inet.TCP].seq, outcome.packet[inet.TCP].ack) == (1014, 5014)


def test_an_untouched_connection_goes_on_untouched(firewall):
    """Its packets do not even go back to the kernel."""
    other = Connection(firewall, client="10.0.0.6:4000").open()
    edited(Connection(firewall).open(), 0, 1001, 1011, 3)
    other.c2s("PA", b"text").passes()


# ---- SACK ----


@pytest.mark.parametrize("before", range(4))
def test_sack_blocks_are_shifted_back(connection, before):
    """Wherever the option stands: at an odd offset its bytes belong to two words of the checksum."""
    edited(connection, 0, 1006, 1016, 5)
    connection.c2s("PA", bytes(100))
    options = [NOP] * before + [("SAck", (1021, 1031, 1051, 1061)), ("Timestamp", (7, 9))]
    assert blocks(connection.s2c("A", ack=1006, options=options)) == (1016, 1026, 1046, 1056)


def test_a_block_claims_no_edit_that_is_there_in_part(connection):
    """What begins within one begins behind it, what ends within one ends before it: all of it is sent again."""
    edited(connection, 0, 1006, 1016, 5)
    connection.c2s("PA", bytes(100))
    options = [("SAck", (1010, 1041, 1003, 1010, 1006, 1021))]
    assert blocks(connection.s2c("A", ack=1003, options=options)) == (1016, 1036, 1003, 1006, 1006, 1016)


@pytest.mark.parametrize(
    "tail",
    [
        b"\x05\x0a" + b"\xff" * 6,
        b"\x01\x05\x00" + bytes(5),
        b"\x01" * 7 + b"\x05",
        b"\x00\x05\x0a" + b"\xff" * 9,
        b"\x05\x04\xff\xff",
    ],
)
def test_a_broken_option_is_left_alone(connection, tail):
    """It goes on to the one whom it is meant for."""
    edited(connection, 0, 1006, 1016, 5)
    packet = connection.segment(1, "A", b"", 0, ack=1001)
    header = bytearray(bytes(packet)) + tail
    header[2:4], header[32] = len(header).to_bytes(2), (20 + len(tail)) // 4 << 4
    outcome = connection.firewall.s2c(recomputed(bytes(header)))
    assert outcome.after == recomputed(bytes(header))


# ---- checksums and translation ----


@pytest.mark.parametrize("checksum", CHECKSUMS)
@pytest.mark.parametrize("translated", [False, True])
@pytest.mark.parametrize("family", [4, 6])
def test_checksums_are_right(firewall, family, translated, checksum):
    """With translation and without, whatever was left to the NIC."""
    connection = translated_connection(firewall, family) if translated else plain_connection(firewall, family)
    edited(connection, 0, 1001, 1011, 300)
    edited(connection, 1, 5001, 5021, -7)
    for side, expected in ((0, (1311, 5021)), (1, (5014, 1015))):
        ack = (5014, 1315)[side]
        sent = connection.segment(side, "PA", b"more", 0, ack=ack, options=[NOP, ("SAck", (ack + 10, ack + 20))])
        outcome = firewall.send(sent, (INSIDE, OUTSIDE)[side], checksum=checksum)
        left = outcome.packet[inet.TCP]
        assert outcome.after == recomputed(outcome.after)
        assert ((left.seq, left.ack), left.load) == (expected, b"more")
        assert left.dport == (80, 4000)[side]


@pytest.mark.parametrize("translated", [False, True])
def test_a_super_packet_keeps_a_partial_checksum(firewall, translated):
    """The kernel cuts it later; each segment's checksum begins with the pseudo header's sum."""
    connection = translated_connection(firewall, 4) if translated else plain_connection(firewall, 4)
    edited(connection, 0, 1001, 1011, 3)
    outcome = firewall.c2s(connection.segment(0, "PA", bytes(20000), 0), checksum=lib.CHECKSUM_SUPER)
    pseudo = pseudo_header(outcome.after[12:16], outcome.after[16:20], 6, 20020)
    assert (outcome.packet[inet.TCP].seq, outcome.packet[inet.TCP].chksum) == (1014, ones_sum(pseudo))


def plain_connection(firewall: Firewall, family: int) -> Connection:
    return Connection(firewall, CLIENT[family], SERVER[family]).open()


def translated_connection(firewall: Firewall, family: int) -> Connection:
    firewall.decides(source=PUBLIC[family], ports=(6000, 6000))
    return Connection(firewall, CLIENT[family], SERVER[family], public=f"[{PUBLIC[family]}]:6000").open()


# ---- many edits, and wherever the numbers are ----


def test_the_newest_edits_are_remembered(connection):
    """Of twenty the last sixteen; what lies between the forgotten ones is taken for what follows them."""
    for i in range(20):
        edited(connection, 0, 1001 + i * 10, 1011 + i * 10, 1)
    assert numbers(connection.c2s("PA", b"more")) == (1201 + 20, 5001)
    for i in range(20 - EDITS, 20):
        assert numbers(connection.c2s("PA", bytes(10), seq=1001 + i * 10)) == (1001 + i * 11, 5001)
        assert numbers(connection.s2c("A", ack=1001 + i * 11)) == (5001, 1001 + i * 10)


@pytest.mark.parametrize("isn", [2**32 - 1, 2**32 - 2, 2**32 - 8, 2**32 - 15, 2**31 - 8, 2**31 - 15])
def test_numbers_wrap_around(firewall, isn):
    """Before, within and behind an edit."""
    connection = Connection(firewall, isn=(isn, isn)).open()
    edited(connection, 0, isn + 6, isn + 16, 5)
    assert numbers(connection.c2s("PA", b"more")) == ((isn + 21) % 2**32, (isn + 1) % 2**32)
    assert numbers(connection.c2s("PA", b"befor", seq=(isn + 1) % 2**32))[0] == (isn + 1) % 2**32
    for ack, said in [(isn + 6, isn + 6), (isn + 7, isn + 6), (isn + 20, isn + 6), (isn + 21, isn + 16)]:
        assert numbers(connection.s2c("A", ack=ack % 2**32)) == ((isn + 1) % 2**32, said % 2**32)


@pytest.mark.parametrize("side", [0, 1])
def test_gigabytes_later_an_edit_is_still_in_force(firewall, side):
    """Text first, then media in the same connection (RFC 2326 section 10.12), through all numbers three times."""
    connection = Connection(firewall, window=(65535, 65535), scale=(14, 14)).open()
    connection.send(1 - side, "A")
    begin = connection.next[side]
    edited(connection, side, begin, begin + 10, 3)
    for _ in range(24):
        connection.next[side] = (connection.next[side] + 2**29) % 2**32
        there, back = connection.next[side], connection.next[1 - side]
        assert numbers(connection.send(side, "PA", b"x")) == ((there + 3) % 2**32, back)
        assert numbers(connection.send(1 - side, "A", ack=(there + 4) % 2**32)) == (back, (there + 1) % 2**32)


class Walk:
    """What one side says, byte by byte, and what the other one gets instead: `parts` are (kept, read, sent).

    there: where a byte of the sender is for the receiver. By what the receiver has, ends: what that acknowledges;
    begins: what a block acknowledges that begins there. first: of `there` and of the others, behind what is forgotten.
    """

    def __init__(self, parts: list[tuple[int, int, int]]) -> None:
        self.edits: list[tuple[int, int, int]] = []
        self.there: list[int] = []
        self.ends: list[int] = []
        self.begins: list[int] = []
        for kept, read, sent in parts:
            for _ in range(kept):
                self.know(len(self.there), len(self.there))
                self.there.append(len(self.ends) - 1)
            start, end = len(self.there), len(self.there) + read
            self.edits.append((start, end, sent - read))
            self.there += [len(self.ends)] * read
            for i in range(sent):
                self.know(start, end if i else start)
        self.size = len(self.there)
        self.there.append(len(self.ends))
        self.know(self.size, self.size)
        old = parts[:-EDITS]
        self.first = sum(kept + read for kept, read, _ in old), sum(kept + sent for kept, _, sent in old)

    def know(self, end: int, begin: int) -> None:
        self.ends.append(end)
        self.begins.append(begin)


PARTS = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 60))
WALKS = st.lists(PARTS, max_size=20).map(Walk)
BEGINS = st.sampled_from([0, 77, 2**31 - 300, 2**32 - 300])
PLACES = st.floats(0, 1)
PROBES = st.lists(st.tuples(st.integers(0, 1), PLACES, PLACES, PLACES, st.integers(0, 3)), min_size=1, max_size=10)


@given(walks=st.tuples(WALKS, WALKS), isn=st.tuples(BEGINS, BEGINS), probes=PROBES)
def test_any_number_is_translated_as_a_walk_along_the_text_would(walks, isn, probes):
    """Both directions edited, any number of times; sequence, acknowledgement and SACK block of any segment."""
    with Firewall() as firewall:
        connection = Connection(firewall.decides(), isn=isn).open()
        for side, walk in enumerate(walks):
            assert connection.send(side, "PA", bytes(walk.size)).left
        for side, walk in enumerate(walks):
            for start, end, grown in walk.edits:
                assert firewall.adjusts(side, isn[side] + 1 + start, isn[side] + 1 + end, grown)
        for side, *places, nops in probes:
            own, other = walks[side], walks[1 - side]
            seq = pick(own.first[0], own.there, places[0])
            ack, edge = (pick(other.first[1], other.ends, place) for place in places[1:])
            options = [NOP] * nops + [("SAck", numbered(isn[1 - side], edge, edge))]
            (mine,), (theirs,) = numbered(isn[side], seq), numbered(isn[1 - side], ack)
            left = connection.send(side, "A", seq=mine, ack=theirs, options=options)
            assert blocks(left) == numbered(isn[1 - side], other.begins[edge], other.ends[edge])
            assert left.packet[inet.TCP].seq == numbered(isn[side], own.there[seq])[0]
            assert left.packet[inet.TCP].ack == numbered(isn[1 - side], other.ends[ack])[0]


def numbered(isn: int, *places: int) -> tuple[int, ...]:
    return tuple((isn + 1 + place) % 2**32 for place in places)


def pick(first: int, places: list[int], where: float) -> int:
    return first + round((len(places) - 1 - first) * where)


# ---- tracking goes on in the sender's numbering ----


def test_what_the_receiver_can_know_is_in_the_window(connection):
    """An acknowledgement of all of a longer text is one of what was sent; one byte more is not."""
    edited(connection, 0, 1001, 1011, 300)
    assert connection.s2c("A", ack=1311).left
    connection.s2c("A", ack=1312).is_dropped("tcp_drop_out_of_wnd")
    edited(connection, 1, 5001, 5021, -10)
    assert connection.c2s("A", ack=5011).left
    connection.c2s("A", ack=5012).is_dropped("tcp_drop_out_of_wnd")


def test_the_window_is_counted_from_what_was_acknowledged(firewall):
    """The server allows a thousand bytes behind what it has, which is the client's 1011."""
    connection = Connection(firewall, window=(64000, 1000)).open()
    edited(connection, 0, 1001, 1011, 300)
    connection.s2c("A", ack=1311)
    assert numbers(connection.c2s("A", seq=2011))[0] == 2311
    connection.c2s("A", seq=2012).is_dropped("tcp_drop_out_of_wnd")


def test_a_connection_closes_behind_an_edit(firewall, connection):
    """Both FINs are shifted, and their acknowledgements are seen."""
    edited(connection, 0, 1001, 1011, 3)
    edited(connection, 1, 5001, 5021, -7)
    assert numbers(connection.c2s("FA", ack=5014)) == (1014, 5021)
    assert firewall.tcp_state() == "HALF_CLOSED"
    assert numbers(connection.s2c("FA", ack=1015)) == (5014, 1012)
    assert numbers(connection.c2s("A", ack=5015)) == (1015, 5022)
    assert firewall.tcp_state() == "TIME_WAIT"
    firewall.wait(16)
    assert [ended.reason for ended in firewall.expire()] == ["tcp-fin"]


@pytest.mark.parametrize(("side", "seq"), [(0, 1014), (1, 5014)])
def test_an_exact_reset_behind_an_edit_ends_the_connection(firewall, connection, side, seq):
    """It is exact for its receiver too."""
    edited(connection, 0, 1001, 1011, 3)
    edited(connection, 1, 5001, 5021, -7)
    assert connection.send(side, "R").packet[inet.TCP].seq == seq
    assert firewall.tcp_state() == "TIME_WAIT"


@pytest.mark.parametrize(("ahead", "state"), [(3, "UNVERIFIED_RST"), (100000, "ESTABLISHED")])
def test_a_reset_is_judged_by_its_senders_numbers(firewall, connection, ahead, state):
    """Three bytes ahead of what the client has sent is no exact reset, though the receiver has three bytes more."""
    edited(connection, 0, 1001, 1011, 3)
    connection.s2c("A", ack=1014)
    connection.c2s("R", ahead=ahead)
    assert firewall.tcp_state() == state


def test_keep_alives_and_probes_pass(connection):
    """One byte before what is expected: behind the edit it is shifted, at its end it is the edit's beginning."""
    edited(connection, 0, 1001, 1011, 3)
    assert numbers(connection.c2s("A", ahead=-1)) == (1001, 5001)
    assert numbers(connection.c2s("A", b"\0", ahead=-1)) == (1001, 5001)
    connection.c2s("PA", b"more")
    assert numbers(connection.c2s("A", ahead=-1)) == (1017, 5001)
    assert numbers(connection.s2c("A", ack=1018)) == (5001, 1015)


# ---- whose edits they are ----


def test_an_edit_is_of_one_life_of_a_session(firewall, connection):
    """Another generation, one that has ended, and a slot that is none are answered as such."""
    generation = firewall.session().generation
    assert firewall.adjusts(0, 1001, 1011, 3, generation=generation)
    assert not firewall.adjusts(0, 1011, 1021, 3, generation=generation + 1)
    assert not firewall.adjusts(0, 1001, 1011, 3, session_id=2)
    assert not firewall.adjusts(0, 1001, 1011, 3, session_id=2**32 - 1)
    firewall.end(1)
    assert not firewall.adjusts(0, 1011, 1021, 3, generation=generation)


def test_the_next_session_of_a_slot_begins_without_edits():
    """A table of one slot."""
    with Firewall(1) as firewall:
        connection = Connection(firewall.decides()).open()
        edited(connection, 0, 1001, 1011, 3)
        firewall.end(1)
        assert len(firewall.expire()) == 1
        connection = Connection(firewall).open()
        connection.c2s("PA", bytes(10)).passes()
        connection.s2c("A").passes()
        assert firewall.adjusts(0, 1001, 1011, -2)
        assert numbers(connection.c2s("PA", b"more")) == (1009, 5001)


def connections(firewall: Firewall, n: int) -> None:
    """All n slots of a table become connections."""
    key = ffi.new("struct flow_key *", {"proto": 6, "zone": INSIDE, "family": 4, "dst": mapped("8.8.8.8"), "dport": 80})
    for i in range(n):
        key.src = mapped(f"10.0.{i >> 8}.{i & 255}")
        assert firewall.install_key(key) > 0


def test_sessions_that_share_a_line_are_sixteen_at_most():
    """The next one is refused until one of them is freed, and nobody else is."""
    with Firewall(COLLIDING * 256 + 2) as firewall:
        connections(firewall.decides(), COLLIDING * 256 + 2)
        for i in range(COLLIDING):
            assert firewall.adjusts(0, 1, 2, 1, session_id=1 + i * 256)
        last = 1 + COLLIDING * 256
        assert not firewall.adjusts(0, 1, 2, 1, session_id=last)
        assert not firewall.session(last).flags & lib.FLAG_ADJUSTED
        assert firewall.adjusts(0, 1, 2, 1, session_id=1), "one that is in goes on"
        assert firewall.adjusts(0, 1, 2, 1, session_id=last + 1)
        firewall.end(257)
        assert not firewall.adjusts(0, 1, 2, 1, session_id=last)
        assert [ended.id for ended in firewall.expire()] == [257]
        assert firewall.adjusts(0, 1, 2, 1, session_id=last)


def test_so_many_connections_may_be_adjusted():
    """Ids in a row fill the table of edits to the last place; when all have ended it is empty."""
    with Firewall(lib.MAX_ADJUSTED + 1) as firewall:
        for _ in range(2):
            connections(firewall.decides(), lib.MAX_ADJUSTED + 1)
            for i in range(1, lib.MAX_ADJUSTED + 1):
                assert firewall.adjusts(i & 1, 1, 2, 1, session_id=i)
            assert not firewall.adjusts(0, 1, 2, 1, session_id=lib.MAX_ADJUSTED + 1)
            firewall.wait(100 * SECOND)
            while firewall.expire():
                pass
