"""MGCP (RFC 3435; UDP 2427, 2727): the ports between which the media of a connection are going to flow.

    call agent: CRCX | MDCX transaction endpoint MGCP 1.0       creates or changes a connection of the gateway's;
                C: call  I: connection  [SDP]                   the SDP is the other end's, of this call agent or not
    gateway:    200 transaction  I: connection  SDP             its own end of it
    either:     DLCX transaction endpoint  [C: call] [I: ..]    ends it: what has not been used is closed

Either may open the session. Whoever sends a description of media that go to its own address (sdp.py) has announced
their ports; in an answer only if the other has asked. The media come from another gateway, whose address is not the
call agent's: they can only pass with Options(anyone=True). Other people's media open nothing.

Under translation the description is rewritten, and so are address literals (`@[10.1.0.2]`) in endpoint names and in N:
(NotifiedEntity), Z: and Z2: - the sender's own into what the other knows, and back.

The first datagram has to be a command; a session that begins otherwise is left alone. A datagram may hold several
messages, parted by a line with a dot. Retransmissions read alike.

Not done: gateways of several addresses; the two descriptions in the answer to an audit (AUCX).
"""

import re
from itertools import islice
from typing import NamedTuple

from dataplane.alg.base import CLIENT, UDP, Control, Piece
from dataplane.alg.sdp import open_media
from dataplane.alg.text import Edits, literal, remember, spliced
from dataplane.policy.objects import address_text

MAX_MESSAGES = 16  # of a datagram that are read
MAX_NAMES = 32  # of a message that are read
MAX_REMEMBERED = 64  # commands of a side, and ports; the oldest goes

_COMMAND = re.compile(
    rb"([A-Z0-9]{4})[ \t]+(\d{1,9})[ \t]+([^\s@]{1,255})(?:@\S{1,255})?[ \t]+MGCP[ \t]+1\.0[^\r\n]*\r?\n", re.IGNORECASE
)
_ANSWER = re.compile(rb"(\d{3})[ \t]+(\d{1,9})(?:[ \t][^\r\n]*)?\r?\n")
_DOT = re.compile(rb"(?<=\n)(\.[ \t]*\r?\n)")
_BLANK = re.compile(rb"\r?\n\r?\n")
_CALL = re.compile(rb"\nC[ \t]*:[ \t]*([0-9A-F]{1,32})\b", re.IGNORECASE)
_CONNECTION = re.compile(rb"\nI[ \t]*:[ \t]*([0-9A-F]{1,32})\b", re.IGNORECASE)
_SPECIFIC = re.compile(rb"\nZ[ \t]*:[ \t]*([^\s@]{1,255})", re.IGNORECASE)
_NAMING = re.compile(rb"\A[^\r\n]+|(?<=\n)(?:N|Z2?)[ \t]*:[^\r\n]*", re.IGNORECASE)
_LITERAL = re.compile(rb"@\[([0-9A-Fa-f:.]{2,45})\](?::(\d{1,5})(?!\d))?")


class Options(NamedTuple):
    """What an operator may choose."""

    anyone: bool = False  # media may come from any address, as they do between gateways


class Leg(NamedTuple):
    """The connection that a command speaks of; empty where it does not say."""

    endpoint: bytes = b""  # its name up to the @
    call: bytes = b""
    connection: bytes = b""

    def covers(self, other: "Leg") -> bool:
        """Whether a DLCX of this ends the other."""
        wild = any(mark in name for name in (self.endpoint, other.endpoint) for mark in (b"*", b"$"))
        pairs = list(zip(self, other, strict=True))[1 if wild else 0 :]
        return all(not mine or not theirs or mine == theirs for mine, theirs in pairs)


class Mgcp:
    """One session between a gateway and a call agent."""

    limit = 0  # datagrams are whole

    def __init__(self, options: Options = Options()) -> None:  # noqa: B008 - it is immutable
        self.done = False
        self._options = options
        self._begun = False
        self._asked: tuple[dict[bytes, Leg], dict[bytes, Leg]] = ({}, {})  # by transaction, what a side has asked for
        self._ports: dict[tuple[int, int], Leg] = {}  # by side and number

    def inspect(self, side: int, data: bytes, control: Control) -> Piece:
        if not self._begun and (side != CLIENT or not _COMMAND.match(data)):
            self.done = True
            return Piece(len(data))
        self._begun = True
        messages = _DOT.split(data, maxsplit=MAX_MESSAGES)
        payload = b"".join(self._message(side, message, control) for message in messages)
        return Piece(len(data), None if payload == data else payload)

    def _message(self, side: int, message: bytes, control: Control) -> bytes:
        command, answer = _COMMAND.match(message), _ANSWER.match(message)
        blank = _BLANK.search(message)
        head = message[: blank.start() if blank else None] + b"\n"
        if command:
            leg = self._command(side, command, head, control)
        elif answer:
            leg = self._answer(side, answer, head)
        else:
            return message
        edits = _renamed(side, head, control) if control.translated else {}
        if not leg or not blank:
            return spliced(message, edits)
        return spliced(message[: blank.end()], edits) + self._describe(side, message[blank.end() :], leg, control)

    def _command(self, side: int, command: re.Match[bytes], head: bytes, control: Control) -> Leg | None:
        """The connection whose SDP may follow."""
        leg = Leg(command[3].lower(), _word(_CALL, head), _word(_CONNECTION, head))
        verb = command[1].upper()
        if verb == b"DLCX":
            self._delete(leg, control)
        if verb not in (b"CRCX", b"MDCX"):
            return None
        remember(self._asked[side], command[2], leg, MAX_REMEMBERED)
        return leg

    def _answer(self, side: int, answer: re.Match[bytes], head: bytes) -> Leg | None:
        """The connection whose SDP may follow: a provisional or a good answer to a command."""
        leg = self._asked[1 - side].get(answer[2])
        if leg is None or answer[1][:1] not in (b"1", b"2"):
            return None
        connection = _word(_CONNECTION, head) or leg.connection
        return Leg(_word(_SPECIFIC, head).lower() or leg.endpoint, leg.call, connection)

    def _delete(self, leg: Leg, control: Control) -> None:
        for port in [port for port, theirs in self._ports.items() if leg.covers(theirs)]:
            del self._ports[port]
            control.forget(port[0], UDP, port[1])

    def _describe(self, side: int, body: bytes, leg: Leg, control: Control) -> bytes:
        media = open_media(body, side, control, anyone=self._options.anyone)
        for port in media.ports:
            remember(self._ports, (side, port), leg, MAX_REMEMBERED)
        return spliced(body, media.edits)


def _renamed(side: int, head: bytes, control: Control) -> Edits:
    """Address literals as the other side knows them."""
    edits: Edits = {}
    views = ((control.own(side), control.seen(side)), (control.seen(1 - side), control.own(1 - side)))
    for naming in islice(_NAMING.finditer(head), MAX_NAMES):
        found = _LITERAL.search(head, *naming.span())
        address = literal(found[1]) if found else None
        for old, new in views:
            if found is None or address != old.address or old == new:
                continue
            edits[found.span(1)] = address_text(new.address).encode()
            if found[2] and int(found[2]) == old.port:
                edits[found.span(2)] = str(new.port).encode()
            break
    return edits


def _word(pattern: re.Pattern[bytes], head: bytes) -> bytes:
    match = pattern.search(head)
    return match[1] if match else b""
