"""What the slow path does with the control channels of applications that open further sessions.

    hot queue: tracked, FLAG_INSPECTED -> slow queue -> here: ALG, perhaps another payload -> REPEAT -> hot queue:
    numbers and addresses translated, and out

The packet is read and changed in its sender's view, before translation; what an ALG writes into it is for the receiver
(alg/base.py). Its checksum is made anew, its sequence number may go back to bytes that were held (streams.py), and the
numbers of the connection follow in C from then on (adjust.c).

A flow that the other side is about to open is the parent's own way to the announcer with other ports:

    c2s   caller's address, 0  ->  the announcer as the caller knows it, port lent for this
    s2c   announcer, its port  ->  the caller as the announcer knows him, 0

so it inherits both translations. Its outside port is the announced one if that is free, else any; it is lent
(natpool.c) until the prediction and the session that it becomes are over. While it is, announcing the inside port
again gives the same one.

All but ended() runs in the slow path's thread; ended() in the ager's.
"""

import logging
import os
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from dataplane.alg.base import GRE, LEAST_PORT, TCP, Alg, Endpoint, Expected, Piece
from dataplane.ffi import ffi, lib
from dataplane.flow import Decision, FlowKey, Session, Translation
from dataplane.policy.applications import Application
from dataplane.policy.objects import LAST_PORT
from dataplane.predict import Lease, Prediction, Predictions
from dataplane.replies import RateLimit, tcp_acknowledgement
from dataplane.sessions import InstallError, SessionTable
from dataplane.streams import SEQUENCES, Onward, Stream, Way

PORTS = (LEAST_PORT, LAST_PORT)
PAIR_TRIES = 32  # random ports whose neighbours may be taken
MAX_HELD = 16 << 20  # bytes of all streams together
MAX_LEASES = 256  # that a conversation remembers
SYN, FIN, ACK = 2, 1, 16
DONT_FRAGMENT = 0x40
AlgFactory = Callable[[], Alg]

log = logging.getLogger(__name__)


class Reading(NamedTuple):
    """What becomes of a packet that was read.

    It goes on unless `counter` says why not; with `payload`, a whole packet, in its place. `answer`: a packet for its
    sender.
    """

    counter: int | None = None
    payload: bytes | None = None
    answer: bytes | None = None


class Match(NamedTuple):
    """What a first packet was expected as, what to install for it, and the ports that its session will hold."""

    prediction: Prediction
    decision: Decision
    leases: tuple[Lease, ...]


class Surroundings(NamedTuple):
    """What a conversation needs of the policy in force."""

    rows: Mapping[str, int]  # application -> row
    applications: Mapping[str, Application]
    factories: Mapping[tuple[int, int], AlgFactory]  # row and protocol -> what reads it
    ports: Mapping[int, tuple[int, int]]  # NAT rule -> its range of translated ports
    no_rule: int  # number of the rule without a name

    def port_range(self, nat_rule: int | None) -> tuple[int, int]:
        return PORTS if nat_rule is None else self.ports.get(nat_rule, PORTS)


class Conversation:
    """One inspected session: the Control that its ALG talks to."""

    def __init__(self, session: Session, alg: Alg, inspection: "Inspection") -> None:
        self.session = session
        self.alg = alg
        self.windows = [0, 0]  # as each side has offered last
        self.leases: dict[tuple[int, int, int], Lease] = {}  # side, protocol, port as announced
        self._inspection = inspection
        self._keys = (session.c2s, session.s2c)
        self.streams = tuple(Stream(partial(self.read, side), alg.limit, self.translated) for side in (0, 1))

    @property
    def ipv4(self) -> bool:
        return self.session.c2s.family == 4

    @property
    def translated(self) -> bool:
        return self.session.source_nat or self.session.destination_nat

    @property
    def held(self) -> int:
        return sum(stream.held for stream in self.streams)

    def own(self, side: int) -> Endpoint:
        return Endpoint(self._keys[side].src, self._keys[side].sport)

    def seen(self, side: int) -> Endpoint:
        return Endpoint(self._keys[1 - side].dst, self._keys[1 - side].dport)

    def expect(self, expected: Expected) -> Endpoint | None:
        return self._inspection.open(self, expected)

    def forget(self, side: int, proto: int, port: int) -> None:
        self._inspection.close(self, (side, proto, port))

    @property
    def over(self) -> bool:
        """Nothing more is read of it."""
        return any(stream.over for stream in self.streams)

    def end(self) -> None:
        for stream in self.streams:
            stream.over = True

    def read(self, side: int, data: bytes) -> Piece:
        """What the ALG makes of the next bytes of a side; one that fails is not asked again."""
        try:
            piece = self.alg.inspect(side, data, self)
        except Exception:
            self._inspection.complain(self)
            self.end()
            return Piece(len(data))
        if self.alg.done:
            self.end()
        return piece

    def keys(self, expected: Expected, port: int, outside: int) -> tuple[FlowKey, FlowKey]:
        """Both keys of what is expected on one port."""
        caller, callee = self._keys[1 - expected.side], self._keys[expected.side]
        peer = 0 if expected.anyone else caller.src
        peer_seen = 0 if expected.anyone and caller.src == callee.dst else callee.dst
        there = FlowKey(peer, caller.dst, expected.caller_port, outside, expected.proto, caller.zone, caller.family)
        back = FlowKey(callee.src, peer_seen, port, expected.caller_port, expected.proto, callee.zone, callee.family)
        return there, back


class Inspection:
    """Every conversation, and what has been opened for them. Created and used by the slow path."""

    def __init__(self, table: SessionTable) -> None:
        self._predictions = Predictions()
        self.surroundings = Surroundings({}, {}, {}, {}, 0)
        self._table = table
        self._lock = threading.Lock()  # of what ended() touches
        self._conversations: dict[int, Conversation] = {}  # session id
        self._lent: dict[int, tuple[Lease, ...]] = {}  # session id -> the ports that it holds
        self._held = 0  # bytes of all streams
        self._complaints = RateLimit(1)

    def activity(self) -> tuple[Counter[int], Counter[int]]:
        """Sessions that are read, and sessions that they have announced and that have not come; by application row."""
        with self._lock:
            conversations = [*self._conversations.values()]
        reading, waiting = Counter[int](), Counter[int]()
        for conversation in conversations:
            reading[conversation.session.application] += 1
            waiting[conversation.session.application] += len(self._waiting(conversation))
        return reading, waiting

    # ---- reading ----

    def read(self, packet: Any, payload: bytes) -> Reading:
        """A tracked packet of an inspected session; `packet` is the parsed `payload`."""
        conversation = self._conversation(packet.session, packet.generation)
        if conversation is None:
            return Reading()
        read = self._segment if packet.key.proto == TCP else self._datagram
        reading = read(packet, payload, conversation)
        if conversation.over:
            self._leave(conversation)
        return reading

    def complain(self, conversation: Conversation) -> None:
        if self._complaints.allows():
            name = type(conversation.alg).__name__
            log.exception("the ALG %s failed; its session is left alone from now on", name)

    def _conversation(self, session_id: int, generation: int) -> Conversation | None:
        known = self._conversations.get(session_id)
        if known is not None and known.session.generation == generation:
            return known
        session = self._table.read(session_id)
        if session is None or session.generation != generation or not session.inspected:
            return None
        factory = self.surroundings.factories.get((session.application, session.c2s.proto))
        if factory is None:
            self._table.end_inspection(session_id, generation)
            return None
        with self._lock:
            made = self._conversations[session_id] = Conversation(session, factory(), self)
        return made

    def _datagram(self, packet: Any, payload: bytes, conversation: Conversation) -> Reading:
        at = packet.l4 + 8
        end = packet.l4 + int.from_bytes(payload[packet.l4 + 4 : packet.l4 + 6])
        data = payload[at:end]
        text = self._translated(data, packet.dir, conversation)
        if text == data or not conversation.translated:
            return Reading()
        return Reading(payload=self._rebuilt(packet, payload[:at], text))

    def _translated(self, data: bytes, side: int, conversation: Conversation) -> bytes:
        """A datagram as its receiver has to see it; what an ALG leaves over has no rest to wait for."""
        text = b""
        while data and not conversation.over:
            piece = conversation.read(side, data)
            if not piece.taken:
                break
            text += data[: piece.taken] if piece.payload is None else piece.payload
            data = data[piece.taken :]
        return text + data

    def _segment(self, packet: Any, payload: bytes, conversation: Conversation) -> Reading:
        stream, side = conversation.streams[packet.dir], packet.dir
        at = packet.l4 + (payload[packet.l4 + 12] >> 4) * 4
        data = payload[at : packet.ip_len]
        seq, flags = packet.seq, packet.tcp_flags
        conversation.windows[side] = packet.window
        if flags & ACK:
            conversation.streams[1 - side].hear(packet.ack)
        if flags & SYN:
            stream.begin(seq)
            if data:  # which would have to be read before the server has agreed to talk
                conversation.end()
            return Reading()
        if not data and not flags & FIN:
            return Reading()  # before its SYN a side may answer in the numbers of an older connection (RFC 5961, 4.2)
        before = stream.held
        onward = stream.take(seq, data, bool(flags & FIN))
        self._hold(stream.held - before)
        if not self._adjusted(conversation, side, onward):
            self._table.close_session(packet.session, "resources-unavailable", packet.generation)
            return Reading(counter=lib.SESSION_ALLOC_FAILURE)
        if stream.over or self._held > MAX_HELD:
            conversation.end()
        return self._onward(packet, payload[:at], onward, conversation)

    def _onward(self, packet: Any, header: bytes, onward: Onward, conversation: Conversation) -> Reading:
        if onward.way is Way.SAME:
            return Reading()
        if onward.way is Way.GAP:
            return Reading(counter=lib.ALG_STREAM_GAP)
        if onward.way is Way.CHANGED:
            at = packet.l4 + 4
            header = header[:at] + onward.seq.to_bytes(4) + header[at + 4 :]
            return Reading(payload=self._rebuilt(packet, header, onward.payload))
        stream, window = conversation.streams[packet.dir], conversation.windows[1 - packet.dir]
        answer = tcp_acknowledgement(header, packet.l4, stream.next_seq, window)
        return Reading(counter=lib.ALG_STREAM_HELD, answer=answer)

    def _adjusted(self, conversation: Conversation, side: int, onward: Onward) -> bool:
        """Numbers after an edit follow it; False where C has no room for them."""
        session = conversation.session
        return all(
            self._table.adjust(session.id, session.generation, side, edit.start, edit.end, grown)
            for edit in onward.edits
            if (grown := len(edit.payload) - (edit.end - edit.start) % SEQUENCES)
        )

    def _rebuilt(self, packet: Any, header: bytes, data: bytes) -> bytes:
        """The packet with other data behind its headers: lengths and checksums made anew."""
        whole = bytearray(header + data)
        if packet.key.family == 4:
            struct.pack_into("!H", whole, 2, len(whole))
            if len(whole) > packet.ip_len and whole[6] & DONT_FRAGMENT:  # its sender has not made it this long
                whole[6] &= ~DONT_FRAGMENT
                whole[4:6] = os.urandom(2)
        else:
            struct.pack_into("!H", whole, 4, len(whole) - 40)
        if packet.key.proto != TCP:
            struct.pack_into("!H", whole, packet.l4 + 4, len(whole) - packet.l4)
        buffer = ffi.from_buffer("uint8_t[]", whole)
        packet.data, packet.len, packet.ip_len = buffer, len(whole), len(whole)
        lib.packet_sum(packet)
        self._table.count(lib.ALG_PAYLOAD_CHANGED)
        return bytes(whole)

    def _leave(self, conversation: Conversation) -> None:
        """Its session is left alone from now on, unless bytes are held, or changed ones may have to be sent again.

        What it has opened stays open.
        """
        if any(stream.held or stream.edited for stream in conversation.streams):
            return
        self._table.end_inspection(conversation.session.id, conversation.session.generation)
        self._table.count(lib.ALG_GIVEN_UP)

    def _hold(self, more: int) -> None:
        if more:
            with self._lock:
                self._held += more

    # ---- opening ----

    def open(self, conversation: Conversation, expected: Expected) -> Endpoint | None:
        """See Control.expect()."""
        count = len(expected.applications)
        least = 0 if expected.proto == GRE else LEAST_PORT
        if not least <= expected.port <= LAST_PORT + 1 - count:
            return None
        lent = self._outside(conversation, expected, count)
        if lent is None:
            return None
        outside, leases = lent
        opened = all(self._predict(conversation, expected, step, outside + step) for step in range(count))
        with self._lock:
            for lease in leases:
                self._release(lease)
        if not opened or not self._lives(conversation):
            return None
        return Endpoint(conversation.seen(expected.side).address, outside)

    def _lives(self, conversation: Conversation) -> bool:
        """Nobody waits for the children of a session that has ended meanwhile."""
        if self._alive(conversation.session.id, conversation.session.generation) is not None:
            return True
        for prediction in self._waiting(conversation):
            self._unexpect(prediction.id)
        return False

    def _outside(self, conversation: Conversation, expected: Expected, count: int) -> tuple[int, list[Lease]] | None:
        """The first of the ports by which the caller knows the announced ones, and leases that whoever asks has to
        release; None: none are free."""
        own, seen = conversation.own(expected.side), conversation.seen(expected.side)
        if own.address == seen.address:
            return expected.port, []
        if expected.port == own.port and count == 1 and expected.proto == conversation.session.c2s.proto:
            return seen.port, []
        names = [(expected.side, expected.proto, expected.port + step) for step in range(count)]
        ports = self._range(conversation)
        leases = self._known(conversation, names) or self._lend(seen.address, expected, count, ports)
        if leases is None:
            return None
        for name in [*conversation.leases][: max(0, len(conversation.leases) + count - MAX_LEASES)]:
            del conversation.leases[name]
        conversation.leases |= zip(names, leases, strict=True)
        return leases[0].port, leases

    def _known(self, conversation: Conversation, names: list[tuple[int, int, int]]) -> list[Lease] | None:
        """What these have been lent before, held once more; None if any of it has been taken back."""
        known = [conversation.leases[name] for name in names if name in conversation.leases]
        with self._lock:
            if len(known) < len(names) or not all(lease.holders for lease in known):
                return None
            for lease in known:
                lease.holders += 1
        return known

    def _lend(self, address: int, expected: Expected, count: int, ports: tuple[int, int]) -> list[Lease] | None:
        """Consecutive ports of the range: the announced ones, else any of the same parity."""
        self._table.open_pool(address)
        first: int | None = None
        if ports[0] <= expected.port <= ports[1]:
            first = self._table.lend_port(address, expected.proto, (expected.port,) * 2, expected.port)
        for _ in range(PAIR_TRIES):
            if first is None:
                first = self._table.lend_port(address, expected.proto, ports, expected.port)
            if first is None:
                return None
            rest = range(first + 1, min(first + count, ports[1] + 1))
            lent = [self._table.lend_port(address, expected.proto, (port, port), port) for port in rest]
            leases = [Lease(address, expected.proto, port, 1) for port in (first, *lent) if port is not None]
            if len(leases) == count:
                return leases
            for lease in leases:
                self._take_back(lease)
            first = None
        return None

    def _predict(self, conversation: Conversation, expected: Expected, step: int, outside: int) -> bool:
        application = expected.applications[step]
        name = (expected.side, expected.proto, expected.port + step)
        for waiting in self._waiting(conversation):
            if waiting.announced == name and waiting.application == application:
                if waiting.key.dport == outside:
                    return True
                self.close(conversation, name)
        key, back = conversation.keys(expected, expected.port + step, outside)
        decision = self._decision(conversation, expected, application, key, back)
        if len(self._predictions) >= max(self._table.max_sessions // 10, 64):
            self._table.count(lib.SESSION_PREDICT_LIMIT)
            return False
        unruled = decision._replace(rule=self.surroundings.no_rule, log_end=False)
        try:
            timeout = self.surroundings.applications[application].predict_timeout
            session = self._table.predict(key, back, unruled, timeout)
        except InstallError:
            return False
        lease = conversation.leases.get(name)
        if lease is not None:
            with self._lock:
                lease.holders += 1
        parent = conversation.session
        made = Prediction(
            *session, parent.id, parent.generation, key, decision, application, expected.again, lease, name
        )
        for gone in self._predictions.add(made):
            self._table.count(lib.SESSION_PREDICT_LIMIT)
            self._end(gone)
        return True

    def _decision(
        self, conversation: Conversation, expected: Expected, application: str, key: FlowKey, back: FlowKey
    ) -> Decision:
        """What becomes of the first packet: the parent's rule, its way, and its translations."""
        parent, row = conversation.session, self.surroundings.rows[application]
        ways = (parent.ingress, parent.egress) if expected.side else (parent.egress, parent.ingress)
        translation = self._translation(conversation, expected, key, back)
        return Decision(
            discard=False,
            egress_zone=back.zone,
            application=row,
            rule=parent.rule,
            ingress=ways[0],
            egress=ways[1],
            nat_rule=parent.nat_rule,
            translation=translation,
            log_end=parent.log_end,
            parent=parent.id,
            inspected=(row, expected.proto) in self.surroundings.factories,
            by_server=bool(expected.side),
        )

    def _translation(
        self, conversation: Conversation, expected: Expected, key: FlowKey, back: FlowKey
    ) -> Translation | None:
        caller = 1 - expected.side
        own, seen = conversation.own(caller), conversation.seen(caller)
        source = seen.address if own.address != seen.address else None
        ports = self._range(conversation)
        moved = (key.dst, key.dport) != (back.src, back.sport)
        if source is None and not moved:
            return None
        return Translation(
            source=source,
            ports=ports if source is not None and own.port != seen.port else None,
            destination=back.src if moved else None,
            destination_port=back.sport if moved else None,
        )

    def _range(self, conversation: Conversation) -> tuple[int, int]:
        return self.surroundings.port_range(conversation.session.nat_rule)

    def _alive(self, session_id: int, generation: int) -> Session | None:
        session = self._table.read(session_id)
        return (
            session if session is not None and (session.generation, session.state) == (generation, "ACTIVE") else None
        )

    def _waiting(self, conversation: Conversation) -> list[Prediction]:
        return self._predictions.of_parent(conversation.session.id)

    def close(self, conversation: Conversation, name: tuple[int, int, int]) -> None:
        """See Control.forget()."""
        for prediction in self._waiting(conversation):
            if prediction.announced == name and self._predictions.remove(prediction.id) is not None:
                self._end(prediction)

    # ---- matching ----

    def match(self, key: FlowKey) -> Match | None:
        """None: nobody has announced this flow. What it holds is held until installed() or failed()."""
        prediction = self._predictions.match(key)
        if prediction is None:
            return None
        parent = self._alive(prediction.parent, prediction.parent_generation)
        if parent is None or self._alive(prediction.id, prediction.generation) is None:  # the ager has not told yet
            if prediction.again:
                self._unexpect(prediction.id)
            else:
                self._end(prediction)
            return None
        with self._lock:
            return self._match(prediction, key, parent)

    def _match(self, prediction: Prediction, key: FlowKey, parent: Session) -> Match | None:
        decision = prediction.decision._replace(rule=parent.rule, log_end=parent.log_end)  # as of the latest commit
        leases = [lease for lease in (prediction.lease,) if lease is not None]
        if not all(lease.holders for lease in leases):
            return None  # one that may be called again has ended just now
        if not prediction.again:
            decision = decision._replace(predicted=(prediction.id, prediction.generation))
        translation = decision.translation
        own = self._announced_by_caller(prediction, key)
        if translation is not None and own is not None and own.address == translation.source:
            decision = decision._replace(translation=translation._replace(ports=None, source_port=own.port))
            leases.append(own)
        for lease in leases:
            lease.holders += 1
        return Match(prediction, decision, tuple(leases))

    def _announced_by_caller(self, prediction: Prediction, key: FlowKey) -> Lease | None:
        """Who calls from a port that he has announced himself keeps the outside port of it."""
        parent = self._conversations.get(prediction.parent)
        lease = None if parent is None else parent.leases.get((1 - prediction.announced[0], key.proto, key.sport))
        return lease if lease is not None and lease.holders else None

    def installed(self, match: Match, session_id: int) -> None:
        """The session of a match is there and holds its ports; a prediction that is used up holds its own no more."""
        self._table.count(lib.SESSION_PREDICT_MATCHED)
        if not match.leases:
            return
        with self._lock:
            if not match.prediction.again and match.prediction.lease is not None:
                self._release(match.prediction.lease)
            self._lent[session_id] = match.leases

    def failed(self, match: Match) -> None:
        """Its session could not be made; the prediction is used up all the same."""
        with self._lock:
            for lease in match.leases:
                self._release(lease)
        if not match.prediction.again:
            self._end(match.prediction)

    def _end(self, prediction: Prediction) -> None:
        self._table.close_session(prediction.id, "unknown", prediction.generation)
        if prediction.lease is not None:
            with self._lock:
                self._release(prediction.lease)

    def _release(self, lease: Lease) -> None:
        lease.holders -= 1
        if not lease.holders:
            self._take_back(lease)

    def _take_back(self, lease: Lease) -> None:
        self._table.take_back_port(lease.address, lease.proto, lease.port)

    # ---- ends ----

    @property
    def idle(self) -> bool:
        """No session is read or expected, and none holds a port that was lent."""
        with self._lock:
            return not (self._conversations or self._lent or self._predictions)

    def ended(self, sessions: Iterable[Session]) -> None:
        """Sessions whose slots are about to be freed: children that have not come are not waited for any more."""
        for session in sessions:
            if session.type == "PREDICT":
                self._unexpect(session.id)
                continue
            for child in self._predictions.of_parent(session.id):
                self._unexpect(child.id)
            with self._lock:
                conversation = self._conversations.pop(session.id, None)
                self._held -= conversation.held if conversation is not None else 0
                for lease in self._lent.pop(session.id, ()):
                    self._release(lease)

    def _unexpect(self, session_id: int) -> None:
        prediction = self._predictions.remove(session_id)
        if prediction is not None:
            self._end(prediction)
