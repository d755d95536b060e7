"""FTP (RFC 959, 2428): the port on which a data connection is going to be opened.

    active    client: PORT h1,h2,h3,h4,p1,p2 | EPRT |1|address|port|        the server calls, from port 20 or any
    passive   server: 227 ... (h1,h2,h3,h4,p1,p2) | 229 ... (|||port|)      the client calls

A command begins at the start of a line and counts when its line has ended. Nothing is believed before the server has
greeted with a reply code and the client has spoken; nobody may announce an address other than his own (FTP bounce).
After `AUTH` the channel is encrypted as soon as the server agrees (RFC 4217): it is left alone from then on.

Not done: LPRT/LPSV (RFC 1639).
"""

import re

from dataplane.alg.base import CLIENT, MORE, SERVER, TCP, Control, Endpoint, Expected, Piece
from dataplane.alg.text import address_of, literal, may_become, spliced
from dataplane.policy.objects import address_text, is_ipv4

MAX_LINE = 512  # bytes; a longer one is no announcement
_FIRST = 5  # bytes that tell FTP from something else

_SIX = rb"(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3})"
_PORT = re.compile(rb"PORT +" + _SIX + rb" *\r?\n", re.IGNORECASE)
_EPRT = re.compile(rb"EPRT +(?P<d>[!-~])([12])(?P=d)([0-9A-Fa-f:.]{2,45})(?P=d)(\d{1,5})(?P=d) *\r?\n", re.IGNORECASE)
_227 = re.compile(rb"227 [^\d\r\n]*" + _SIX + rb"(?:[^\d\r\n][^\r\n]*)?\r?\n")
_229 = re.compile(rb"229 [^\r\n(]*\((?P<d>[!-~])(?P=d)(?P=d)(\d{1,5})(?P=d)\)[^\r\n]*\r?\n")
_GREETING = re.compile(rb"\d{3}[ -]")
# What a client begins with: every other word may be a page that a browser was made to post (NAT slipstreaming).
_COMMAND = re.compile(rb"(?:USER|AUTH|FEAT|HOST|CLNT|OPTS|LANG|HELP|SYST|STAT|NOOP|QUIT)[ \r\n]", re.IGNORECASE)
_BEGINNINGS = ((b"PORT ", b"EPRT ", b"AUTH "), (b"227 ", b"229 ", b"234 "))


class Ftp:
    """One control connection."""

    limit = MAX_LINE

    def __init__(self) -> None:
        self.done = False
        self._spoken = [False, False]
        self._inside_line = [False, False]  # the rest of a line whose beginning has gone by
        self._auth = False

    def inspect(self, side: int, data: bytes, control: Control) -> Piece:
        end = data.find(b"\n") + 1
        if self._inside_line[side]:
            self._inside_line[side] = not end
            return Piece(end or len(data))
        if not end and self._may_matter(side, data):
            return MORE
        self._inside_line[side] = not end
        line = data[: end or len(data)]
        self._begin(side, line)
        return Piece(len(line), self._read(side, line, control) if 0 < end <= MAX_LINE and not self.done else None)

    def _may_matter(self, side: int, data: bytes) -> bool:
        """Whether the beginning of a line is too short to tell, or that of something we look for."""
        if not self._spoken[side] and len(data) < _FIRST:
            return True
        return len(data) < MAX_LINE and may_become(data, _BEGINNINGS[side])

    def _begin(self, side: int, line: bytes) -> None:
        if not self._spoken[side]:
            self._first(side, line)
        if side == CLIENT:
            self._auth = line[:5].upper() == b"AUTH "
        elif self._auth and line.startswith(b"234 "):
            self.done = True

    def _first(self, side: int, line: bytes) -> None:
        """Both ends begin as FTP does, the server first, or this is something else."""
        pattern = _COMMAND if side == CLIENT else _GREETING
        self._spoken[side] = True
        if not pattern.match(line) or not self._spoken[SERVER]:
            self.done = True

    def _read(self, side: int, line: bytes, control: Control) -> bytes | None:
        if side == CLIENT:
            return self._port(line, control) or self._eprt(line, control)
        if not self._spoken[CLIENT]:
            return None
        return self._227(line, control) or self._229(line, control)

    def _port(self, line: bytes, control: Control) -> bytes | None:
        match = _PORT.fullmatch(line)
        seen = _expect(CLIENT, _six(match.groups()) if match else None, control)
        if match is None or seen is None:
            return None
        return spliced(line, {(match.start(1), match.end(6)): _six_text(seen)})

    def _eprt(self, line: bytes, control: Control) -> bytes | None:
        match = _EPRT.fullmatch(line)
        seen = _expect(CLIENT, _named(match, control) if match else None, control)
        if match is None or seen is None:
            return None
        mark = match["d"]
        text = mark.join((match[2], address_text(seen.address).encode(), str(seen.port).encode()))
        return spliced(line, {(match.start(2), match.end(4)): text})

    def _227(self, line: bytes, control: Control) -> bytes | None:
        match = _227.fullmatch(line)
        seen = _expect(SERVER, _six(match.groups()) if match else None, control)
        if match is None or seen is None:
            return None
        return spliced(line, {(match.start(1), match.end(6)): _six_text(seen)})

    def _229(self, line: bytes, control: Control) -> bytes | None:
        """It names no address: the one that the control connection goes to is meant."""
        match = _229.fullmatch(line)
        announced = Endpoint(control.own(SERVER).address, int(match[2])) if match else None
        seen = _expect(SERVER, announced, control)
        if match is None or seen is None:
            return None
        return spliced(line, {(match.start(2), match.end(2)): str(seen.port).encode()})


def _expect(side: int, announced: Endpoint | None, control: Control) -> Endpoint | None:
    """Only for the announcer's own address, which a server behind translation may give as the outside knows it.

    None where nothing was announced, nothing opened, or nothing changes.
    """
    own = {control.own(side).address} | ({control.seen(side).address} if side == SERVER else set())
    if announced is None or announced.address not in own or announced.port > 0xFFFF:
        return None
    seen = control.expect(Expected(side, TCP, announced.port, ("ftp-data",)))
    return None if seen == announced else seen


def _six(numbers: tuple[bytes, ...]) -> Endpoint | None:
    values = [int(number) for number in numbers]
    if max(values) > 255:
        return None
    return Endpoint(address_of(bytes(values[:4])), values[4] << 8 | values[5])


def _six_text(endpoint: Endpoint) -> bytes:
    return ",".join(
        str(byte) for byte in (endpoint.address & 0xFFFFFFFF).to_bytes(4) + endpoint.port.to_bytes(2)
    ).encode()


def _named(match: re.Match[bytes], control: Control) -> Endpoint | None:
    """Nothing for the family that the control connection is not of."""
    address = literal(match[3])
    if address is None or match[2] != (b"1" if control.ipv4 else b"2") or is_ipv4(address) != control.ipv4:
        return None
    return Endpoint(address, int(match[4]))
