"""RTSP (RFC 2326, 7826; TCP 554): the UDP ports between which a stream is going to flow.

    client: SETUP      Transport: RTP/AVP;unicast;client_port=5000-5001     the server sends RTP and RTCP there
                       Transport: RTP/AVP;unicast;dest_addr=":5000"/":5001" the same in RTSP 2.0
    server: 2xx to it  ...;client_port=5000-5001;server_port=6970-6971      the client sends there
                       ...;dest_addr=...;src_addr="10.2.0.2:6970"/"10.2.0.2:6971"
    client: TEARDOWN   what the session named by Session has not used by then is closed again

The server repeats the client's ports as it has read them; under translation they are mapped back. `destination` and
`source` may only be the address of the one whose ports stand beside them: with anybody else's, or with a name, nothing
is opened. A SETUP may offer several transports, of which the answer chooses one; a refusal closes what it had opened.
What goes over the connection itself (RTP/AVP/TCP, interleaved=) opens nothing, and its frames, `$` channel length16,
are stepped over like the body of a message.

    stream = *( blank lines | frame | head blank-line [body of Content-Length bytes] )

The client has to begin with a request and the server with an answer; a stream that strays from this form is left alone
from there on (RTSP inside HTTP never begins).

Not done: addresses in URLs and in SDP, which clients do not send to; multicast; ports that are no pair.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from dataplane.alg.base import CLIENT, MORE, SERVER, UDP, Control, Endpoint, Expected, Piece
from dataplane.alg.text import Edits, literal, pass_by, remember, spliced
from dataplane.policy.objects import LAST_PORT, address_text

MAX_HEAD = 4096  # bytes
MAX_TRANSPORTS = 8  # that one SETUP may offer
MAX_REMEMBERED = 16  # requests without an answer, sessions, and ports of a session; the oldest goes

_TEXT = rb"[ -~\x80-\xff]*"
_START = re.compile(rb"(?:([A-Z_]{1,32}) [!-~]+ RTSP/[12]\.\d|RTSP/[12]\.\d (\d{3})(?: " + _TEXT + rb")?)\r?\n")
_BEGUN = re.compile(rb"[A-Z][A-Z_/.\d]*(?: " + _TEXT + rb")?\r?")
_END = re.compile(rb"\r?\n\r?\n")
_BLANK = re.compile(rb"[\r\n]+")
_CSEQ = re.compile(rb"\nCSeq[ \t]*:[ \t]*(\d{1,10})[ \t]*\r?\n", re.IGNORECASE)
_SESSION = re.compile(rb"\nSession[ \t]*:[ \t]*([^\s;]{1,128})", re.IGNORECASE)
_LENGTH = re.compile(rb"\nContent-Length[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_NUMBER = re.compile(rb"\d{1,9}[ \t]*")
_TRANSPORT = re.compile(rb"\nTransport[ \t]*:([^\r\n]*)", re.IGNORECASE)
_ALTERNATIVE = re.compile(rb'(?:[^,"]|"[^"]*")+')
_UNICAST = re.compile(
    rb"\s*(?:RTP/S?AVPF?(?:/UDP)?|MP2T/H2221/UDP|RAW/RAW/UDP)\s*(?!.*;\s*(?:multicast|interleaved))(?:;|$)",
    re.IGNORECASE | re.DOTALL,
)
_VALUE = rb'=((?:[^;"]|"[^"]*")*)'
_OF_SIDE = (
    re.compile(rb";\s*(client_port|destination|dest_addr)" + _VALUE, re.IGNORECASE),
    re.compile(rb";\s*(server_port|source|src_addr)" + _VALUE, re.IGNORECASE),
)
_PORTS = re.compile(rb"(?P<port>\d{1,5})(?:-(?P<last_port>\d{1,5}))?\s*")
_HOST = re.compile(rb"(?P<host>[0-9A-Fa-f:.]{2,45})\s*")
_ADDRESSES = re.compile(
    rb'"\[?(?P<host>[0-9A-Fa-f:.]*)\]?:(?P<port>\d{1,5})"'
    rb'(?:/"\[?(?P<last_host>[0-9A-Fa-f:.]*)\]?:(?P<last_port>\d{1,5})")?\s*'
)
_FORMS = {b"port": _PORTS, b"addr": _ADDRESSES}


class Ports(NamedTuple):
    """One or two consecutive ones of a side's own."""

    side: int
    first: int
    many: int

    def forget(self, control: Control) -> None:
        for port in range(self.first, self.first + self.many):
            control.forget(self.side, UDP, port)


class Ends(NamedTuple):
    """Where the flows of one side end, as one transport has it: ports and addresses with their places in the head."""

    ports: list[tuple[int, int, int]]  # number, start, end
    addresses: list[tuple[int | None, int, int]]

    def of(self, side: int, address: int) -> Ports | None:
        """A port or a pair of ports, of this address and of nobody else's."""
        numbers = [port for port, _, _ in self.ports]
        if not numbers or numbers[-1] > LAST_PORT or numbers not in ([numbers[0]], [numbers[0], numbers[0] + 1]):
            return None
        if any(named != address for named, _, _ in self.addresses):
            return None
        return Ports(side, numbers[0], len(numbers))

    def edits(self, new: Endpoint) -> Edits:
        ports = {(start, end): str(new.port + i).encode() for i, (_, start, end) in enumerate(self.ports)}
        return ports | {(start, end): address_text(new.address).encode() for _, start, end in self.addresses}


class Rtsp:
    """One connection."""

    limit = MAX_HEAD

    def __init__(self) -> None:
        self.done = False
        self._begun = [False, False]
        self._rest = [0, 0]  # bytes of a body or a frame that have yet to go by
        self._asked: dict[bytes, dict[Ports, int]] = {}  # by CSeq, what a SETUP has opened, and its first port seen
        self._sessions: dict[bytes, list[Ports]] = {}  # by name, what may still be open

    def inspect(self, side: int, data: bytes, control: Control) -> Piece:
        if self._rest[side]:
            return pass_by(self._rest, side, self._rest[side], data)
        blank = _BLANK.match(data)
        if blank:
            return Piece(blank.end())
        if data[:1] == b"$" and self._begun[side]:
            return pass_by(self._rest, side, 4 + int.from_bytes(data[2:4]), data) if len(data) >= 4 else MORE
        start, end = _START.match(data), _END.search(data, 0, MAX_HEAD)
        if start and end:
            return self._message(side, start, data[: end.end()], control)
        if len(data) < MAX_HEAD and (start or _BEGUN.fullmatch(data)):
            return MORE
        return self._leave(data, control)

    def _leave(self, data: bytes, control: Control) -> Piece:
        """This is no RTSP (any more)."""
        for opened in self._asked.values():
            _forget(opened, control)
        self.done = True
        return Piece(len(data))

    def _message(self, side: int, start: re.Match[bytes], head: bytes, control: Control) -> Piece:
        method, status = start.groups()
        lengths = _LENGTH.findall(head) or [b"0"]
        if len(set(lengths)) > 1 or not _NUMBER.fullmatch(lengths[0]) or not self._fits(side, method):
            return self._leave(head, control)
        self._rest[side] = int(lengths[0])
        edits: Edits = {}
        if method == b"SETUP" and side == CLIENT:
            edits = self._setup(head, control)
        elif method == b"TEARDOWN":
            self._teardown(head, control)
        elif status and side == SERVER:
            edits = self._answer(status, head, control)
        return Piece(len(head), spliced(head, edits) if edits else None)

    def _fits(self, side: int, method: bytes | None) -> bool:
        """Whether this may come now: the first thing said is a request, and the second is its answer."""
        if not self._begun[side]:
            self._begun[side] = bool(method) if side == CLIENT else self._begun[CLIENT] and not method
        return self._begun[side]

    def _setup(self, head: bytes, control: Control) -> Edits:
        cseq = _CSEQ.search(head)
        if cseq is None:
            return {}
        edits: Edits = {}
        opened: dict[Ports, int] = {}
        for ends in islice(_transports(head, CLIENT), MAX_TRANSPORTS):
            ports, changes = _open(CLIENT, ends, control)
            opened |= ports
            edits |= changes
        remember(self._asked, cseq[1], opened, MAX_REMEMBERED)
        return edits

    def _answer(self, status: bytes, head: bytes, control: Control) -> Edits:
        cseq = _CSEQ.search(head)
        if cseq is None or cseq[1] not in self._asked or status.startswith(b"1"):
            return {}
        opened = self._asked.pop(cseq[1])
        if not status.startswith(b"2"):
            _forget(opened, control)
            return {}
        chosen, edits = _choose(opened, next(_transports(head, CLIENT), None), control)
        for ends in islice(_transports(head, SERVER), 1):
            ports, changes = _open(SERVER, ends, control)
            chosen += ports
            edits |= changes
        self._keep(head, chosen)
        return edits

    def _keep(self, head: bytes, ports: list[Ports]) -> None:
        session = _SESSION.search(head)
        if session and ports:
            known = self._sessions.get(session[1], []) + ports
            remember(self._sessions, session[1], known[-MAX_REMEMBERED:], MAX_REMEMBERED)

    def _teardown(self, head: bytes, control: Control) -> None:
        session = _SESSION.search(head)
        if session:
            _forget(self._sessions.pop(session[1], []), control)


def _open(side: int, ends: Ends, control: Control) -> tuple[dict[Ports, int], Edits]:
    """What is now open for these ends, with its first port as seen, and how the other side has to read of it."""
    own = control.own(side)
    ports = ends.of(side, own.address)
    seen = control.expect(Expected(side, UDP, ports.first, ("rtp", "rtcp")[: ports.many])) if ports else None
    if ports is None or seen is None:
        return {}, {}
    return {ports: seen.port}, ends.edits(seen) if seen != Endpoint(own.address, ports.first) else {}


def _choose(opened: dict[Ports, int], ends: Ends | None, control: Control) -> tuple[list[Ports], Edits]:
    """Which of the offered ports stay open after an answer, and how its mention of them reads for the client."""
    if ends is None:
        _forget(opened, control)
        return [], {}
    own, seen = control.own(CLIENT).address, control.seen(CLIENT).address
    for ports, first in opened.items():
        if ends.of(CLIENT, seen) == ports._replace(first=first):
            _forget([other for other in opened if other != ports], control)
            same = (own, ports.first) == (seen, first)
            return [ports], {} if same else ends.edits(Endpoint(own, ports.first))
    return list(opened), {}


def _forget(opened: Iterable[Ports], control: Control) -> None:
    for ports in opened:
        ports.forget(control)


def _transports(head: bytes, side: int) -> Iterator[Ends]:
    """What each transport over unicast UDP says of this side's ends."""
    for header in _TRANSPORT.finditer(head):
        for alternative in _ALTERNATIVE.finditer(head, *header.span(1)):
            if _UNICAST.match(alternative[0]):
                yield _ends(head, alternative, side)


def _ends(head: bytes, alternative: re.Match[bytes], side: int) -> Ends:
    """A value that is of no known form is one address of nobody."""
    ends = Ends([], [])
    for parameter in _OF_SIDE[side].finditer(head, *alternative.span()):
        form = _FORMS.get(parameter[1].lower()[-4:], _HOST)
        match = form.fullmatch(head, *parameter.span(2))
        if match is None:
            ends.addresses.append((None, *parameter.span(2)))
            continue
        for name, text in match.groupdict().items():
            if text and name.endswith("port"):
                ends.ports.append((int(text), *match.span(name)))
            elif text:
                ends.addresses.append((literal(text), *match.span(name)))
    return ends
