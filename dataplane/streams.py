"""The bytes of one direction of a connection, as an ALG reads them: in order, each once, whatever the segments are.

Where nothing may be changed every segment passes as it is, and what it brings is read beside it. Where text may be
changed, bytes go on when they have been read:

    sender     [ seen, gone on ........ emitted)[ held .... next)     its own numbering, from the first byte on
                  edits: [start, end) went on as other bytes

The beginning of a command is held until its end has come; the segment that brought it does not go on, and its bytes are
acknowledged in the receiver's name, because a sender with Nagle's algorithm (RFC 896) sends the rest only then. They
go on together with the next segment. What has been acknowledged so its sender has forgotten: it is remembered here and
goes on again before whatever follows it, and nobody vouches for it while the receiver may still miss what came before.

A retransmission goes on with the same edits, widened to whole edits; what lies behind a gap is dropped, and its sender
repeats it. MAX_EDITS is what C remembers of a connection (adjust.c): a segment has no more of them, the rest of it is
dropped and repeated too, and one that begins before the last MAX_EDITS goes on no more.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from dataplane.alg.base import Piece
from dataplane.ffi import lib

MAX_EDITS: int = lib.MAX_EDITS
SEQUENCES = 1 << 32


class Way(Enum):
    """How a segment goes on."""

    SAME = auto()
    CHANGED = auto()  # with another payload, and perhaps another sequence number
    HELD = auto()  # not: its bytes come with a later one
    GAP = auto()  # not: what comes before it is missing, or may be


class Edit(NamedTuple):
    """Bytes that went on as others; sequence numbers of the sender."""

    start: int
    end: int
    payload: bytes


class Onward(NamedTuple):
    """What becomes of a segment, and what was edited for the first time in it."""

    way: Way
    seq: int = 0
    payload: bytes = b""
    edits: tuple[Edit, ...] = ()


class Stream:
    """One direction. `read` is shown the bytes that it has not dealt with, `limit` at most; `editable`: see above."""

    def __init__(self, read: Callable[[bytes], Piece], limit: int, editable: bool) -> None:
        self.over = False
        """Nothing more is read: the rest goes on as it is."""
        self._read = read
        self._limit = limit
        self._editable = editable
        self._origin: int | None = None  # sequence number of position 0
        self._next = 0  # positions
        self._unread = b""
        self._edits: list[Edit] = []
        self._floor = 0  # before it edits are forgotten
        self._grown = 0  # bytes that all edits together have added
        self._heard: int | None = None  # the receiver's last acknowledgement
        self._vouched = Edit(0, 0, b"")  # what was acknowledged in the receiver's name last

    @property
    def held(self) -> int:
        """Bytes that wait."""
        return len(self._unread)

    @property
    def edited(self) -> bool:
        """Whether its sender does not know all that may have to go on again."""
        return bool(self._edits or self._vouched.payload)

    @property
    def next_seq(self) -> int:
        """The sequence number that is expected next."""
        return self._number(self._next)

    def begin(self, seq: int) -> None:
        """A SYN: the stream's first byte is the one after it. A repeated one changes nothing."""
        if self._origin is None:
            self._origin = (seq + 1) % SEQUENCES

    def hear(self, ack: int) -> None:
        """An acknowledgement by the receiver, in his own numbering."""
        self._heard = ack

    def take(self, seq: int, payload: bytes, last: bool) -> Onward:
        """A segment without its SYN; `last`: it has a FIN, so nothing is worth waiting for."""
        if self._origin is None:
            self._origin = seq
        at = self._place(seq)
        if at > self._next:
            return Onward(Way.GAP) if payload or last else Onward(Way.SAME)
        if not self._editable:
            self._advance(payload[self._next - at :], MAX_EDITS)
            return Onward(Way.SAME)
        return self._pass(at, payload, last)

    def _pass(self, at: int, payload: bytes, last: bool) -> Onward:
        start, out, edits = self._emit(*self._recalled(at, payload, last), last)
        if out == payload and start == at:
            return Onward(Way.SAME)
        if payload and not out and self._unread:
            return self._hold()
        return Onward(Way.CHANGED, self._number(start), out, tuple(self._as_sent(edit) for edit in edits))

    def _recalled(self, at: int, payload: bytes, last: bool) -> tuple[int, bytes]:
        """A segment together with what its sender has forgotten before it."""
        start, end, vouched = self._vouched
        if start < at <= end and (payload or last):
            return start, vouched[: at - start] + payload
        return at, payload

    def _hold(self) -> Onward:
        """What waits is vouched for, unless the receiver may still miss what has gone on before it."""
        emitted = self._next - len(self._unread)
        expected = self._number(emitted + self._grown)
        if self._heard is not None and (self._heard - expected) % SEQUENCES >= SEQUENCES // 2:
            return Onward(Way.GAP)
        self._vouched = Edit(emitted, self._next, self._unread)
        return Onward(Way.HELD)

    def _emit(self, at: int, payload: bytes, last: bool) -> tuple[int, bytes, list[Edit]]:
        """What goes on: from where, the bytes, and the edits that are new."""
        emitted = self._next - len(self._unread)
        start, repeated = self._repeat(at, min(at + len(payload), emitted), payload)
        if at + len(payload) < emitted:
            return start, repeated, []
        room = MAX_EDITS - sum(edit.end > start for edit in self._edits) if repeated else MAX_EDITS
        fresh = payload[self._next - at :]
        went_on, edits = self._advance(fresh, room)
        if last:
            went_on += self._give_up()
        elif len(edits) == room:
            self._give_back(len(fresh))
        self._remember(edits)
        return emitted if went_on and not repeated else start, repeated + went_on, edits

    def _repeat(self, at: int, end: int, payload: bytes) -> tuple[int, bytes]:
        """Bytes [at, end) once more, as they went on the first time: where they begin, and what they are."""
        if at >= end or at < self._floor:
            return at, b""
        start = position = at
        parts = []
        for edit in self._edits:
            if edit.end <= position or edit.start >= end:
                continue
            start = min(start, edit.start)
            parts += [payload[position - at : max(edit.start - at, 0)], edit.payload]
            position = edit.end
        parts.append(payload[position - at : end - at] if position < end else b"")
        return start, b"".join(parts)

    def _advance(self, fresh: bytes, room: int) -> tuple[bytes, list[Edit]]:
        """Read what is new; the bytes that may go on now, from the first that has not, and the edits among them, `room`
        at most."""
        self._unread += fresh
        self._next += len(fresh)
        out, edits = b"", list[Edit]()
        while self._unread and not self.over and len(edits) < room:
            piece = self._read(self._unread)
            if not piece.taken:
                self.over = len(self._unread) > self._limit
                break
            at, taken = self._next - len(self._unread), self._unread[: piece.taken]
            self._unread = self._unread[piece.taken :]
            if piece.payload is not None and piece.payload != taken:
                edits.append(Edit(at, at + piece.taken, piece.payload))
            out += taken if piece.payload is None else piece.payload
        if self.over:
            out += self._give_up()
        return out, edits

    def _give_up(self) -> bytes:
        rest, self._unread = self._unread, b""
        return rest

    def _give_back(self, fresh: int) -> None:
        """As if what has not been read of the newest bytes had not come."""
        refused = min(fresh, len(self._unread))
        self._unread = self._unread[: len(self._unread) - refused]
        self._next -= refused

    def _remember(self, edits: list[Edit]) -> None:
        self._edits += edits
        self._grown += sum(len(edit.payload) - (edit.end - edit.start) for edit in edits)
        if len(self._edits) > MAX_EDITS:
            self._floor = self._edits[-MAX_EDITS - 1].end
            del self._edits[:-MAX_EDITS]

    def _as_sent(self, edit: Edit) -> Edit:
        return Edit(self._number(edit.start), self._number(edit.end), edit.payload)

    def _number(self, position: int) -> int:
        return ((self._origin or 0) + position) % SEQUENCES

    def _place(self, seq: int) -> int:
        """The position that a sequence number near the next one means."""
        ahead = (seq - self.next_seq) % SEQUENCES
        return self._next + (ahead if ahead < SEQUENCES // 2 else ahead - SEQUENCES)
