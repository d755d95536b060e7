"""IRC (RFC 2812): DCC, by which two clients agree through their servers on a connection between themselves.

    PRIVMSG nick :^A DCC SEND name address port [size] ^A      the other party calls that port of the sender;
    PRIVMSG nick :^A DCC CHAT chat address port ^A             a name with blanks is quoted
    PRIVMSG nick :^A DCC RESUME name port position ^A          the other party repeats the port, and so does
    PRIVMSG nick :^A DCC ACCEPT name port position ^A          the sender in his answer

The address is a decimal number, for IPv6 the usual text. Who is going to call is not known: he may have any address.

Only a client announces, at the start of a line, only itself, and only after client and server have both begun as IRC
does. Where its port was translated, a RESUME that comes in is mapped back and its ACCEPT forth. What is encrypted from
the first byte or after STARTTLS is left alone. The passive form (port 0 and a token) opens nothing at the client that
offers; the answer of the one that accepts is a SEND like any other.

Source of DCC: "A description of the DCC protocol" (Troy Rollo) and mIRC's resume protocol; there is no RFC.

Not done: a client's command behind message tags or a prefix, which it has no need to send; DCC inside NOTICE.
"""

import re

from dataplane.alg.base import CLIENT, MORE, SERVER, TCP, Control, Endpoint, Expected, Piece
from dataplane.alg.text import literal, may_become, remember, spliced
from dataplane.policy.objects import IPV4, LAST_PORT, address_text, is_ipv4

MAX_LINE = 512  # bytes; a longer one is no announcement
MAX_PORTS = 16  # translated ports that a RESUME may still name; the oldest goes

_FIRST = (
    re.compile(rb"(?:CAP|PASS|NICK|USER|SERVICE|SERVER|WEBIRC|AUTHENTICATE|STARTTLS)[ \r\n]", re.IGNORECASE),
    re.compile(rb":[!-~]+ (?:[A-Za-z]+|\d{3}) |(?:NOTICE|PING|ERROR) "),
)
_BEGINNINGS = (b"PRIVMSG ", b"STARTTLS")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_NAME = rb'(?:"[^"\r\n\x01]*"|[^" \r\n\x01][^ \r\n\x01]*)'
_TAIL = rb"(?: [^\r\n\x01]*)?\x01?[ \r]*\n"
_MESSAGE = rb"PRIVMSG +[^ \r\n]+ +:\x01DCC +"
_OFFER = re.compile(
    _MESSAGE + rb"(?:[ST]?SEND|S?CHAT) +" + _NAME + rb" +(\d{1,10}|[0-9A-F:.]{2,45}) +(\d{1,5})" + _TAIL, re.IGNORECASE
)
_ACCEPT = re.compile(_MESSAGE + rb"ACCEPT +" + _NAME + rb" +(\d{1,5})" + _TAIL, re.IGNORECASE)
_FROM = rb"(?:@[^ \r\n]+ +)?:[^ \r\n]+ +"
_RESUME = re.compile(_FROM + _MESSAGE + rb"RESUME +" + _NAME + rb" +(\d{1,5})" + _TAIL, re.IGNORECASE)


class Irc:
    """One connection of a client to its server."""

    limit = MAX_LINE

    def __init__(self) -> None:
        self.done = False
        self._spoken = [False, False]
        self._inside_line = [False, False]  # the rest of a line whose beginning has gone by
        self._ports: dict[int, int] = {}  # own -> seen, where they differ

    def inspect(self, side: int, data: bytes, control: Control) -> Piece:
        if self._inside_line[side]:
            end = data.find(b"\n") + 1
            self._inside_line[side] = not end
            return Piece(end or len(data))
        end = data.find(b"\n", 0, MAX_LINE) + 1
        if not end and len(data) < MAX_LINE and self._may_matter(side, data):
            return MORE
        line = data[: end or MAX_LINE]
        self._inside_line[side] = not end
        if not self._spoken[side]:
            self._spoken[side] = True
            self.done = not _FIRST[side].match(line)
        return Piece(len(line), self._read(side, line, control) if end and not self.done else None)

    def _may_matter(self, side: int, data: bytes) -> bool:
        """Whether the beginning of a line has to wait for its end."""
        if not self._spoken[side]:
            return not _CONTROL.search(data)
        if side == SERVER:
            return bool(self._ports) and data.startswith((b":", b"@"))
        return may_become(data, _BEGINNINGS)

    def _read(self, side: int, line: bytes, control: Control) -> bytes | None:
        if side == SERVER:
            return _mapped(_RESUME, line, {seen: own for own, seen in self._ports.items()})
        if line[:8].upper() == b"STARTTLS":
            self.done = True
        if not self._spoken[SERVER]:
            return None
        return self._offer(line, control) or _mapped(_ACCEPT, line, self._ports)

    def _offer(self, line: bytes, control: Control) -> bytes | None:
        match = _OFFER.fullmatch(line)
        if match is None or _address(match[1]) != control.own(CLIENT).address or int(match[2]) > LAST_PORT:
            return None
        announced = Endpoint(control.own(CLIENT).address, int(match[2]))
        seen = control.expect(Expected(CLIENT, TCP, announced.port, ("irc-dcc",), anyone=True))
        if seen is None or seen == announced:
            return None
        remember(self._ports, announced.port, seen.port, MAX_PORTS)
        return spliced(line, {match.span(1): _address_word(seen.address), match.span(2): str(seen.port).encode()})


def _mapped(pattern: re.Pattern[bytes], line: bytes, ports: dict[int, int]) -> bytes | None:
    """The line with the port that it names translated."""
    match = pattern.fullmatch(line) if ports else None
    if match is None or int(match[1]) not in ports:
        return None
    return spliced(line, {match.span(1): str(ports[int(match[1])]).encode()})


def _address(word: bytes) -> int | None:
    if not word.isdigit():
        return literal(word)
    return IPV4[0] | int(word) if int(word) < 1 << 32 else None


def _address_word(address: int) -> bytes:
    return (str(address & 0xFFFFFFFF) if is_ipv4(address) else address_text(address)).encode()
