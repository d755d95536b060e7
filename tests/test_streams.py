"""The stream that an ALG reads: segments in any order on one side, the text with its edits on the other."""

import random
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataplane.alg.base import MORE, Piece
from dataplane.streams import MAX_EDITS, SEQUENCES, Onward, Stream, Way

ISN = SEQUENCES - 30  # the numbers of most texts here wrap around
LIMIT = 16
MARKS = {b"<cut>": b".", b"<grow>": b"(much longer)", b"<same>": b"[SAME]"}
WORDS = [*MARKS, b"USER x\n", b"-", b"some more text ", b"<kept>"]


def replaced(text):
    return re.sub(rb"<\w+>", lambda mark: MARKS.get(mark[0], mark[0]), text)


def distance(origin, number):
    """How far a sequence number lies ahead."""
    return (number - origin + SEQUENCES // 2) % SEQUENCES - SEQUENCES // 2


class Reader:
    """Replaces marks, each when it is there to its end; counts the bytes that it has let go."""

    def __init__(self):
        self.passed = 0

    def __call__(self, data):
        end = data.find(b">") + 1 if data.startswith(b"<") else len(data.partition(b"<")[0])
        if not end:
            return MORE
        payload = MARKS.get(data[:end], data[:end])
        self.passed += len(payload)
        return Piece(end, payload)


class Numbers:
    """What adjust.c does to the numbers of a connection, in positions: the last edits that have changed a length."""

    def __init__(self):
        self.base = 0
        self.edits = []  # start, end, growth

    def follow(self, start, end, payload):
        grown = len(payload) - (end - start)
        if grown:
            self.edits.append((start, end, grown))
        if len(self.edits) > MAX_EDITS:
            self.base += self.edits.pop(0)[2]

    def forth(self, seq):
        delta = self.base
        for start, end, grown in self.edits:
            if seq < end:
                return min(seq, start) + delta
            delta += grown
        return seq + delta

    def back(self, ack):
        delta = self.base
        for start, end, grown in self.edits:
            if ack < end + delta + grown:
                return min(ack - delta, start)
            delta += grown
        return ack - delta


class Talk:
    """A sender, the stream, and a receiver who assembles by numbers; all in positions of their texts."""

    def __init__(self, text, fin=False):
        self.text, self.fin = text, fin
        self.expected = replaced(text)
        self.reader, self.numbers = Reader(), Numbers()
        self.stream = Stream(self.reader, LIMIT, True)
        self.stream.begin(ISN)
        self.stream.hear((ISN + 1) % SEQUENCES)
        self.sent = self.acked = 0
        self.over = False  # its FIN has been seen
        self.way: Way | None = None
        self.here = bytearray(len(self.expected) + 1)  # 1 for each byte that the receiver has

    @property
    def received(self):
        return self.here.index(0)

    def passes(self, start, end):
        """Bytes of the text in one segment: what leaves, None if nothing does."""
        payload, last = self.text[start:end], self.fin and end == len(self.text)
        self.sent = max(self.sent, end)
        onward = self.stream.take((ISN + 1 + start) % SEQUENCES, payload, last)
        self.way = onward.way
        assert self.stream.held <= LIMIT
        if onward.way in (Way.HELD, Way.GAP):
            assert not onward.edits
            vouched = self._position(self.stream.next_seq) if onward.way is Way.HELD else 0
            self.acked = max(self.acked, vouched)
            return None
        if onward.way is Way.SAME:
            onward = Onward(Way.SAME, ISN + 1 + start, payload)
        for edit in onward.edits:
            self.numbers.follow(self._position(edit.start), self._position(edit.end), edit.payload)
        position = self.numbers.forth(self._position(onward.seq))
        self.over |= last
        assert self.over or not onward.payload or position + len(onward.payload) <= self.reader.passed
        return position, onward.payload

    def arrives(self, position, payload):
        """Whatever came before: it is what the receiver should read at this place."""
        assert self.expected[position : position + len(payload)] == payload or not payload
        self.here[position : position + len(payload)] = b"\1" * len(payload)

    def acknowledges(self, lost=False):
        self.stream.hear((ISN + 1 + self.received) % SEQUENCES)
        if not lost:
            self.acked = max(self.acked, self.numbers.back(self.received))

    def says(self, start, end):
        """A segment that is not lost, and its acknowledgement: what the receiver has read up to then."""
        leaving = self.passes(start, end)
        if leaving is not None:
            self.arrives(*leaving)
        self.acknowledges()
        return self.expected[: self.received]

    def finishes(self):
        """Nothing is lost any more; the sender repeats what he believes to be missing, a segment at a time."""
        for _ in range(4 * len(self.text) + 4):
            self.says(self.acked, min(self.acked + 30, len(self.text)))
            if self.received == len(self.expected):
                return True
        return False

    def _position(self, number):
        return distance((ISN + 1) % SEQUENCES, number)


# ---- in order ----


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_is_replaced_at_every_split(mark):
    """Shorter, longer, of the same length; two segments that end anywhere."""
    text = b"abc" + mark + b"def" + mark
    for cut in range(1, len(text)):
        talk = Talk(text)
        talk.says(0, cut)
        assert talk.says(cut, len(text)) == replaced(text)


def test_bytes_one_by_one():
    """What has begun is held, acknowledged, and goes on with the byte that completes it."""
    talk = Talk(b"a<grow>b")
    ways = []
    for at in range(len(talk.text)):
        talk.says(at, at + 1)
        ways.append(talk.way)
    assert ways == [Way.SAME, *[Way.HELD] * 5, Way.CHANGED, Way.SAME]
    assert talk.received == len(talk.expected)


def test_text_without_marks_stays_as_it_is():
    """A segment of which nothing is held and nothing changed is not made anew."""
    stream = Stream(Reader(), LIMIT, True)
    stream.begin(ISN)
    for at in range(0, 300, 10):
        assert stream.take((ISN + 1 + at) % SEQUENCES, b"0123456789", False) == Onward(Way.SAME)


def test_an_empty_segment_passes_while_something_is_held():
    """Acknowledgements and probes of the sender are none of the text."""
    talk = Talk(b"a<grow>")
    talk.says(0, 3)
    for at in (3, 2, 0, -1, 50):
        assert talk.stream.take((ISN + 1 + at) % SEQUENCES, b"", False).way is Way.SAME
    assert talk.says(3, 7) == talk.expected


def test_fin_flushes():
    """Nothing completes what is held after a FIN."""
    talk = Talk(b"abc<gro", fin=True)
    assert talk.says(0, 5) == b"abc"
    assert talk.says(5, 7) == b"abc<gro"
    assert talk.stream.held == 0


def test_a_bare_fin_flushes():
    """It carries what was held."""
    talk = Talk(b"abc<gro", fin=True)
    talk.stream.take(ISN + 1, b"abc<gro", False)
    onward = talk.stream.take((ISN + 8) % SEQUENCES, b"", True)
    assert onward == Onward(Way.CHANGED, ISN + 4, b"<gro")


def test_what_waits_too_long_goes_on():
    """With more than the limit the stream is over, and the rest is not read."""
    stream = Stream(Reader(), LIMIT, True)
    stream.begin(ISN)
    assert stream.take(ISN + 1, b"<" + b"x" * (LIMIT - 1), False).way is Way.HELD
    assert stream.held == LIMIT
    text = b"<" + b"x" * (LIMIT - 1) + b"y"
    assert stream.take(ISN + 1 + LIMIT, b"y", False) == Onward(Way.CHANGED, ISN + 1, text)
    assert stream.over
    assert stream.held == 0
    assert stream.take((ISN + 1 + len(text)) % SEQUENCES, b"<cut>", False) == Onward(Way.SAME)


def test_a_stream_that_is_met_in_the_middle():
    """Without a SYN the first segment is where it begins; a SYN that comes again changes nothing."""
    stream = Stream(Reader(), LIMIT, True)
    assert stream.take(70, b"abc", False).way is Way.SAME
    stream.begin(9)
    assert stream.next_seq == 73


def test_text_that_is_only_read():
    """Where nothing may be changed every segment that is not behind a gap passes as it is; each byte is read once."""
    seen = []

    def read(data):
        if not data.endswith(b"\n"):
            return MORE
        seen.append(data)
        return Piece(len(data))

    stream = Stream(read, LIMIT, False)
    for at, payload in [(0, b"PO"), (0, b"PO"), (2, b"RT"), (1, b"ORT 1"), (0, b"PORT 1\n"), (3, b"T 1\nQ\n")]:
        assert stream.take((at + SEQUENCES - 3) % SEQUENCES, payload, False).way is Way.SAME
    assert stream.take(7, b"UIT\n", False).way is Way.GAP
    assert seen == [b"PORT 1\n", b"Q\n"]


# ---- again, and out of order ----


def test_a_segment_behind_a_gap_does_not_go_on():
    """Its sender repeats it; the stream reads everything in order."""
    talk = Talk(b"abc<grow>def")
    assert talk.passes(5, 9) is None
    assert talk.way is Way.GAP
    talk.says(0, 5)
    assert talk.says(5, 12) == talk.expected


@pytest.mark.parametrize(("start", "end"), [(0, 12), (3, 9), (4, 6), (0, 5), (8, 12), (6, 20)])
def test_a_retransmission_has_the_same_edits(start, end):
    """Exact, coalesced, overlapping, a part of an edit: the receiver who has missed the first one reads the same."""
    talk = Talk(b"abc<grow>def<cut>ghi")
    talk.passes(0, 12)
    position, payload = talk.passes(start, end)
    assert payload == talk.expected[position:][: len(payload)]
    talk.arrives(position, payload)
    assert talk.finishes()


def test_what_was_vouched_for_goes_on_again():
    """Its sender has forgotten it: whoever has acknowledged it has to repeat it, as often as it takes."""
    talk = Talk(b"abc<kept>def")
    talk.says(0, 3)
    talk.says(3, 6)
    assert (talk.way, talk.acked) == (Way.HELD, 6)
    for _ in range(3):
        assert talk.passes(6, 12) == (3, b"<kept>def")  # lost
    assert talk.passes(6, 7) == (3, b"<kep")
    assert talk.says(6, 12) == talk.expected


def test_a_bare_fin_brings_again_what_was_vouched_for():
    """Nothing else of the sender would."""
    talk = Talk(b"abc<gro", fin=True)
    talk.says(0, 3)
    talk.stream.take(ISN + 4, b"<gro", False)
    for _ in range(3):
        assert talk.passes(7, 7) == (3, b"<gro")


def test_nobody_vouches_for_what_may_be_lost():
    """While the receiver has not acknowledged what went on before, what is held is dropped: its sender repeats both."""
    talk = Talk(b"abc<grow>")
    talk.passes(0, 3)  # lost
    assert talk.passes(3, 6) is None
    assert (talk.way, talk.acked) == (Way.GAP, 0)
    talk.says(0, 3)
    assert talk.passes(3, 6) is None
    assert (talk.way, talk.acked) == (Way.HELD, 6)
    assert talk.says(6, 9) == talk.expected


def test_more_edits_in_one_segment_than_are_remembered():
    """The rest of it counts as lost, so that the numbers of what goes on are right."""
    talk = Talk(b"<grow>" * (MAX_EDITS + 5) + b"<cut>" * MAX_EDITS)
    position, payload = talk.passes(0, len(talk.text))
    assert (position, payload) == (0, MARKS[b"<grow>"] * MAX_EDITS)
    talk.arrives(position, payload)
    assert talk.finishes()


def test_a_repetition_with_new_edits_behind_old_ones():
    """All edits of one segment are remembered, those that it repeats too."""
    talk = Talk(b"<cut>" * 2 * MAX_EDITS)
    talk.passes(0, 50)  # lost
    position, payload = talk.passes(0, len(talk.text))
    assert (position, payload) == (0, b"." * MAX_EDITS)
    talk.arrives(position, payload)
    assert talk.finishes()


def test_what_begins_before_the_edits_that_are_remembered():
    """It brings nothing any more, rather than something wrong."""
    talk = Talk(b"<grow>" * (MAX_EDITS + 2))
    for mark in range(MAX_EDITS + 2):
        talk.passes(6 * mark, 6 * mark + 6)
    assert talk.passes(0, 6)[1] == b""
    assert talk.passes(12, 18) == (26, MARKS[b"<grow>"])


# ---- anything ----


def disorder(talk, rng, window, steps):
    """New and repeated segments of any length, late, twice or never, on both sides of the stream."""
    coming: list[tuple[int, int]] = []
    leaving: list[tuple[int, bytes]] = []
    for _ in range(steps):
        start = talk.sent if rng.random() < 0.6 else rng.randint(talk.acked, max(talk.sent, talk.acked))
        end = min(start + rng.randint(1, 30), talk.acked + window, len(talk.text))
        if start < end or (start == end == len(talk.text) and talk.fin):
            talk.sent = max(talk.sent, end)
            coming.append((start, end))
        if coming and rng.random() < 0.8:
            segment = taken(coming, rng)
            passed = talk.passes(*segment) if rng.random() < 0.8 else None
            leaving += [passed] if passed is not None else []
        if leaving and rng.random() < 0.8:
            segment = taken(leaving, rng)
            if rng.random() < 0.8:
                talk.arrives(*segment)
        if rng.random() < 0.4:
            talk.acknowledges(lost=rng.random() < 0.3)


def taken(queue, rng):
    """Most often the first one; now and then it stays there as well."""
    at = 0 if rng.random() < 0.6 else rng.randrange(len(queue))
    return queue[at] if rng.random() < 0.1 else queue.pop(at)


TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=40).map(b"".join)
FEW = 4 * MAX_EDITS  # bytes, that is fewer marks than are remembered


@settings(max_examples=400)
@given(TEXTS, st.sampled_from([b"", b"<gro", b"<"]), st.integers(0, 2**32 - 1), st.integers(0, 120))
def test_the_receiver_reads_the_replaced_text(text, rest, seed, steps):
    """However segments are cut, lost, repeated and reordered, every one brings what belongs at its place, and nothing
    is missing in the end."""
    talk = Talk(text + rest, fin=True)
    disorder(talk, random.Random(seed), FEW, steps)
    assert talk.finishes()


@settings(max_examples=200)
@given(TEXTS, st.integers(0, 2**32 - 1), st.integers(0, 120))
def test_many_edits_are_never_mixed_up(text, seed, steps):
    """With more unacknowledged edits than are remembered something may not arrive, but nothing arrives wrong."""
    disorder(Talk(text * 3), random.Random(seed), 2000, steps)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(-40, 60), st.binary(max_size=30), st.booleans()), max_size=20), st.booleans())
@example([(0, b"<gro", False), (5, b"", True), (2, b"w>", False)], True)
def test_no_segments_do_harm(segments, editable):
    """Text that contradicts itself, FINs in the middle, numbers from elsewhere: nothing is raised, little is held."""
    stream = Stream(Reader(), LIMIT, editable)
    stream.begin(ISN)
    for at, payload, last in segments:
        onward = stream.take((ISN + 1 + at) % SEQUENCES, payload, last)
        assert onward.way in ((Way.SAME, Way.GAP) if not editable else Way)
        assert stream.held <= LIMIT
