"""SIP (RFC 3261, 3581, 5626; UDP and TCP 5060): where calls are signalled to, and where their media go.

    INVITE sip:bob@10.2.0.2 SIP/2.0                            the request URI, or SIP/2.0 200 OK
    Via: SIP/2.0/UDP 10.1.0.2:5060;rport;branch=z9hG4bK1       v: where the answer goes
    Contact: <sip:alice@10.1.0.2:5060>                         m: where requests of this side go later
    Record-Route, Route, From, To, Refer-To                    -, -, f, t, r: URIs too
    Call-ID: 1@10.1.0.2    CSeq: 1 INVITE                      i, -: to which call a message belongs
    Content-Type: application/sdp    Content-Length: 140       c, l
                                                               a blank line, then the description (sdp.py)

Every text is for the other side. An address of the sender's own becomes what the other side knows; what the other side
is known as becomes its own again, spelled as it had been written: a client reads its own Via in the answer. A Via also
carries `received`, `rport` and `maddr`. A port that is left out is that of the signalling itself; for another one, in a
Contact or in a Via that asks for an answer there, a flow of signalling is expected.

A request opens something only if its topmost Via and what it announces have the sender's own address; an answer only if
the other side has asked in that call. BYE closes what a call has not used, a final error what its INVITE had opened
(487 after a CANCEL among them), a re-INVITE's error leaves the rest of the call alone.

    stream = *( CRLF | NUL | start-line headers CRLF [body of Content-Length bytes] )

A connection that strays from this is left alone from there on: an HTTP request never begins. Datagrams after a first
good one are judged one by one, since keep-alives of many kinds come between.

Two read each value: a pattern here, which knows where it stands, and sipmessage, which knows the grammar. Where they
disagree it stays as it is. sipmessage 0.7.1 is shown no parameters (it raises TypeError for `;self=1` and refuses an
IPv6 `received`) and no whole messages (it refuses folded lines, and 16,000 headers cost it seconds).

Not done: URIs with an unescaped `#`; SDP within multipart; Call-ID and the digest's `uri`, which stay as they are;
media between two phones behind the same address (hairpin).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeAlias, TypeVar

from sipmessage import URI, CSeq, MediaType, Via

from dataplane.alg.base import MORE, TCP, UDP, Control, Endpoint, Expected, Piece
from dataplane.alg.sdp import open_media
from dataplane.alg.text import Edits, literal, remember, spliced
from dataplane.policy.objects import address_text, is_ipv4

MAX_MESSAGE = 65536  # bytes
MAX_HEADERS = 256  # of a message that are read
MAX_VALUE = 4096  # bytes of one header; a longer one stays as it is
MAX_CALL_ID = 256  # bytes; a call with a longer one opens nothing
MAX_CALLS = 64  # the oldest goes, as below
MAX_PORTS = 64  # of one call
MAX_SPELLINGS = 64
MAX_FLOWS = 4  # of signalling that one message may ask for

VIA, REACHED, NAMED = range(3)
"""What an address in a header says: where to answer, where its sender takes requests, or merely who is meant."""

T = TypeVar("T")
Transaction: TypeAlias = tuple[int, int]
"""Who has asked, and the number in CSeq."""
Call: TypeAlias = dict[tuple[int, int], Transaction]
"""The ports that were opened for a call, by side and number, and what for first."""

_NAMES = {
    b"via": b"v", b"contact": b"m", b"from": b"f", b"to": b"t", b"refer-to": b"r", b"call-id": b"i",
    b"content-type": b"c", b"content-length": b"l",
}  # fmt: skip
_URIS = {b"m": REACHED, b"record-route": REACHED, b"route": NAMED, b"f": NAMED, b"t": NAMED, b"r": NAMED}
_OF_CALLS = {b"INVITE", b"ACK", b"PRACK", b"UPDATE"}
_TRANSPORTS = {b"udp": UDP, b"tcp": TCP, b"tls": TCP}

_START = re.compile(
    rb"(?:(?P<method>[A-Z]{1,16}) (?P<uri>[A-Za-z][A-Za-z+.-]{0,31}:[!-~\x80-\xff]+) SIP/2\.0"
    rb"|SIP/2\.0 (?P<code>[1-6]\d\d)(?: [^\r\n\0]*)?)\r\n"
)
_BEGUN = re.compile(
    rb"(?:[A-Z]{1,16}(?: (?:[A-Za-z][A-Za-z+.-]{0,31}(?::[!-~\x80-\xff]*(?: [SIP/2.0]{0,7})?)?)?)?"
    rb"|SIP/[2.0]{0,3}(?: \d{0,3}(?: [^\r\n\0]*)?)?)\r?"
)
_IDLE = re.compile(rb"[\r\n\0]+")
_HEADER = re.compile(rb"(?<=\r\n)([A-Za-z-]{1,32})[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)(?=\r\n)")
_QUOTED = rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)'
_HOST = rb"(?P<place>(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,255})(?::(?P<port>\d{1,5}))?)(?![A-Za-z0-9.:_-])"
_URI = re.compile(
    _QUOTED + rb"|(?<![A-Za-z0-9+.-])(?P<text>sips?:(?:[^\s<>\"@]{1,256}@)?" + _HOST + rb")(?P<rest>[^\s<>\",]*)",
    re.IGNORECASE | re.DOTALL,
)
_VIA = re.compile(
    rb"\s*(?P<text>SIP\s*/\s*2\.0\s*/\s*(?P<transport>[A-Z]{1,8})\s+" + _HOST + rb")"
    rb"(?P<rest>(?:[^\",]|" + _QUOTED + rb")*)",
    re.IGNORECASE | re.DOTALL,
)
_VIA_PARAMETER = re.compile(
    rb";\s*(?:(?:received|maddr)\s*=\s*(?P<address>\[?[0-9A-Fa-f:.]{2,45}\]?)|rport\s*=\s*(?P<rport>\d{1,5}))(?=\s*(?:;|\Z))",
    re.IGNORECASE,
)
_RPORT = re.compile(rb";\s*rport\b", re.IGNORECASE)
_TRANSPORT = re.compile(rb";transport=([a-z]{3,4})\b", re.IGNORECASE)


class Options(NamedTuple):
    """What an operator may choose."""

    rewrite: bool = True  # False: ways are opened, texts are left alone
    anyone: bool = False  # media may come from any address


class Header(NamedTuple):
    """One header under its compact name, if it has one."""

    name: bytes
    start: int
    end: int


@dataclass(slots=True)
class Message:
    """A whole message on its way."""

    side: int
    data: bytes
    start: re.Match[bytes]
    headers: list[Header]
    proto: int  # that brings it, as its topmost Via says
    body: int = 0  # where it begins, and where it ends
    end: int = 0
    opens: bool = False
    flows: int = 0  # that it has asked for
    edits: Edits = field(default_factory=dict)

    def value(self, name: bytes) -> bytes:
        """The first of this name, or nothing."""
        return next((self.data[h.start : h.end].strip() for h in self.headers if h.name == name), b"")


class Sip:
    """One session of signalling."""

    limit = MAX_MESSAGE

    def __init__(self, options: Options = Options()) -> None:  # noqa: B008 - it is immutable
        self.done = False
        self._options = options
        self._datagrams = [False, False]  # by side: its first message says so
        self._calls: dict[bytes, Call] = {}
        self._spelled: dict[tuple[int, bool, Endpoint], bytes] = {}  # what an address had been before it was replaced

    def inspect(self, side: int, data: bytes, control: Control) -> Piece:
        idle = _IDLE.match(data)
        if idle:
            return Piece(idle.end())
        start = _START.match(data)
        if start is None:
            return self._wait(side, data) if _BEGUN.fullmatch(data) else self._stray(side, data)
        head = data.find(b"\r\n\r\n", start.end() - 2)
        if head < 0:
            return self._wait(side, data)
        message = _message(side, data, start, head + 2)
        if message is None:
            return self._stray(side, data)
        self._datagrams[side] = self._datagrams[side] or message.proto == UDP
        length = self._length(message)
        if length is None or message.body + length > MAX_MESSAGE:
            return self._stray(side, data)
        message.end = message.body + length
        if message.end > len(data):
            return self._wait(side, data)
        self._read(message, control)
        taken = len(data) if self._datagrams[side] else message.end
        changed = bool(message.edits) and self._options.rewrite and control.translated
        return Piece(taken, spliced(data[:taken], message.edits) if changed else None)

    def _wait(self, side: int, data: bytes) -> Piece:
        return self._stray(side, data) if self._datagrams[side] or len(data) > MAX_MESSAGE else MORE

    def _stray(self, side: int, data: bytes) -> Piece:
        self.done = not self._datagrams[side]
        return Piece(len(data))

    def _length(self, message: Message) -> int | None:
        """Bytes of the body; None where nobody can say."""
        lengths = {message.data[h.start : h.end].strip() for h in message.headers if h.name == b"l"}
        if not lengths and self._datagrams[message.side]:
            return len(message.data) - message.body
        text = lengths.pop() if lengths else b"0"
        return int(text) if not lengths and re.fullmatch(rb"\d{1,6}", text) else None

    def _read(self, message: Message, control: Control) -> None:
        method, code = message.start["method"], message.start["code"]
        identity, cseq = message.value(b"i"), _understood(CSeq.parse, message.value(b"cseq"))
        if method in _OF_CALLS and 0 < len(identity) <= MAX_CALL_ID:
            remember(self._calls, identity, self._calls.get(identity, {}), MAX_CALLS)
        call = self._calls.get(identity)
        if method:
            message.opens = _sent_by(message) == control.own(message.side).address
        else:
            message.opens = call is not None
        for header in message.headers:
            self._header(message, header, control)
        if method:
            self._uris(message, message.start.span("uri"), NAMED, control)
        if call is None or cseq is None:
            return
        if method == b"BYE":
            self._close(self._calls.pop(identity), None, control)
        elif code and int(code) >= 400 and cseq.method == "INVITE":
            self._close(call, (1 - message.side, cseq.sequence), control)
        elif message.opens:
            asker = message.side if method else 1 - message.side
            self._describe(message, call, (asker, cseq.sequence), control)

    def _close(self, call: Call, transaction: Transaction | None, control: Control) -> None:
        """Close what a transaction has opened, None: the whole call, unless another call uses it too."""
        gone = [port for port, opener in call.items() if transaction in (None, opener)]
        for side, port in gone:
            del call[side, port]
            if not any((side, port) in other for other in self._calls.values()):
                control.forget(side, UDP, port)

    def _describe(self, message: Message, call: Call, transaction: Transaction, control: Control) -> None:
        kind = _understood(MediaType.parse, message.value(b"c").partition(b";")[0].strip())
        if kind is None or kind.mime_type.lower() != "application/sdp":
            return
        body = message.data[message.body : message.end]
        media = open_media(body, message.side, control, anyone=self._options.anyone)
        for port in media.ports:
            remember(call, (message.side, port), call.get((message.side, port), transaction), MAX_PORTS)
        for (start, end), text in media.edits.items():
            message.edits[message.body + start, message.body + end] = text
        grown = sum(len(text) - (end - start) for (start, end), text in media.edits.items())
        for header in message.headers if grown else ():
            if header.name == b"l":
                message.edits[_trimmed(message.data, header)] = str(len(body) + grown).encode()

    # ---- addresses in headers ----

    def _header(self, message: Message, header: Header, control: Control) -> None:
        span = (header.start, header.end)
        if header.name == b"v":
            self._vias(message, span, control)
        elif header.name in _URIS:
            self._uris(message, span, _URIS[header.name], control)

    def _uris(self, message: Message, span: tuple[int, int], kind: int, control: Control) -> None:
        for match in _URI.finditer(message.data, *span):
            if match["text"] and _agree(match, _understood(URI.parse, match["text"].lower())):
                self._place(message, match, kind, control)

    def _vias(self, message: Message, span: tuple[int, int], control: Control) -> None:
        for match in _via_items(message.data, *span):
            if _agree(match, _understood(Via.parse, match["text"])):
                self._place(message, match, VIA, control)
                self._via_parameters(message, match, control)

    def _via_parameters(self, message: Message, via: re.Match[bytes], control: Control) -> None:
        """Where the receiver of a request has seen it come from, or its sender wants the answer."""
        parameters = list(_VIA_PARAMETER.finditer(message.data, *via.span("rest")))
        own, seen = control.own(1 - message.side), control.seen(1 - message.side)
        views = {control.own(message.side).address: control.seen(message.side).address, seen.address: own.address}
        addresses = {literal(text.strip(b"[]")) for text in (via["host"], *(p["address"] or b"" for p in parameters))}
        for match in parameters:
            if match["rport"]:
                if seen.address in addresses and int(match["rport"]) == seen.port != own.port:
                    message.edits[match.span("rport")] = str(own.port).encode()
                continue
            bare = match["address"].strip(b"[]")
            old = literal(bare)
            if old is not None and views.get(old, old) != old:
                new = address_text(views[old]).encode()
                message.edits[match.span("address")] = match["address"].replace(bare, new)

    def _place(self, message: Message, match: re.Match[bytes], kind: int, control: Control) -> None:
        """Put the other side's view of an address and its port in its place."""
        address, port = literal(match["host"].strip(b"[]")), int(match["port"] or 0)
        if address is None:
            return
        if address == control.own(message.side).address:
            there = self._outward(message, match, kind, port, control)
            if there is None or there == Endpoint(address, port):
                return
            key = (message.side, kind == VIA, there)
            remember(self._spelled, key, match["place"], MAX_SPELLINGS)
            message.edits[match.span("place")] = _spelling(there)
        elif address == control.seen(1 - message.side).address:
            text = self._inward(1 - message.side, kind, Endpoint(address, port), control)
            if text not in (None, match["place"]):
                message.edits[match.span("place")] = text

    def _outward(
        self, message: Message, match: re.Match[bytes], kind: int, port: int, control: Control
    ) -> Endpoint | None:
        """Where the other side finds a port of the sender's, 0 being none; None: nowhere."""
        own, seen = control.own(message.side), control.seen(message.side)
        if own.port == seen.port and port in (0, own.port):
            return Endpoint(seen.address, port)
        if port == own.port or (not port and kind != NAMED):
            return seen
        if kind == NAMED:
            return Endpoint(seen.address, port)
        proto = _proto(message, match, kind)
        if proto is None:
            return seen
        if not message.opens or message.flows == MAX_FLOWS:
            return None
        message.flows += 1
        return control.expect(Expected(message.side, proto, port, ("sip",)))

    def _inward(self, side: int, kind: int, there: Endpoint, control: Control) -> bytes | None:
        """How that side itself spells what it is known as."""
        known = self._spelled.get((side, kind == VIA, there))
        own, seen = control.own(side), control.seen(side)
        if known is None and there.port in (0, seen.port):
            return _spelling(Endpoint(own.address, there.port and own.port))
        return known


def _message(side: int, data: bytes, start: re.Match[bytes], end: int) -> Message | None:
    """A message whose headers end there; None if it has no Via, so that nobody could answer it."""
    found = islice(_HEADER.finditer(data, start.end() - 2, end), MAX_HEADERS)
    short = (m for m in found if len(m[2]) <= MAX_VALUE)
    headers = [Header(_NAMES.get(m[1].lower(), m[1].lower()), *m.span(2)) for m in short]
    message = Message(side, data, start, headers, TCP, end + 2)
    via = _VIA.match(message.value(b"v"))
    if via is None:
        return None
    message.proto = _TRANSPORTS.get(via["transport"].lower(), TCP)
    return message


def _via_items(data: bytes, start: int, end: int) -> Iterator[re.Match[bytes]]:
    while via := _VIA.match(data, start, end):
        yield via
        start = via.end() + 1  # behind the comma


def _sent_by(message: Message) -> int | None:
    via = _VIA.match(message.value(b"v"))
    return literal(via["host"].strip(b"[]")) if via else None


def _proto(message: Message, match: re.Match[bytes], kind: int) -> int | None:
    """What will come to the port of a Via or of a URI; None: nothing, answers come back the way the request went."""
    if kind == VIA:
        return UDP if message.proto == UDP and not _RPORT.search(match["rest"]) else None
    transport = _TRANSPORT.search(match["rest"])
    if transport:
        return _TRANSPORTS.get(transport[1].lower(), message.proto)
    return TCP if match["text"][:5].lower() == b"sips:" else message.proto


def _understood(parse: Callable[[str], T], text: bytes) -> T | None:
    try:
        return parse(text.decode("ascii"))
    except ValueError:
        return None


def _agree(match: re.Match[bytes], parsed: URI | Via | None) -> bool:
    if parsed is None:
        return False
    return (parsed.host.lower(), parsed.port or 0) == (match["host"].decode().lower(), int(match["port"] or 0))


def _spelling(endpoint: Endpoint) -> bytes:
    text = address_text(endpoint.address)
    host = text if is_ipv4(endpoint.address) else f"[{text}]"
    return (f"{host}:{endpoint.port}" if endpoint.port else host).encode()


def _trimmed(data: bytes, header: Header) -> tuple[int, int]:
    """Where the value of a header stands without the blanks around it."""
    value = data[header.start : header.end]
    start = header.start + len(value) - len(value.lstrip())
    return start, start + len(value.strip())
