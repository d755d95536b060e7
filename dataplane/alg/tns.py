"""TNS, Oracle's Net: the address to which a listener sends its client on.

    packet     length 2 | checksum 2, 0 | type 1 | flags 1 | checksum 2 | ...      all numbers big-endian
    CONNECT    1, client: the first packet of the connection
    REDIRECT   5, server: length of the text 2 | (ADDRESS=(PROTOCOL=tcp)(HOST=10.2.0.2)(PORT=1522)) [NUL connect data]
    DATA       6, server: flags 2 | the text of a REDIRECT that came without any
    ACCEPT     2, server: the session goes on here, and there is nothing to read any more

A REDIRECT without its text is held until the packet with it is there, because both tell its length. What follows a NUL
is what the client has to say to the new address; the listener's addresses stand before it. Host and port are rewritten
where the server's address is translated; a name stays, for it is the client that will look it up.
Oracle has not published the protocol; the layouts are those that open drivers and dissectors agree on.

Not done: redirects to other hosts, as of a cluster's common name; text of more than one packet; listeners behind TLS
(an address with `tcps` in clear text is opened like any other).
"""

import re
from ipaddress import ip_address

from dataplane.alg.base import CLIENT, MORE, SERVER, TCP, Control, Endpoint, Expected, Piece
from dataplane.alg.text import Edits, address_of, pass_by, spliced
from dataplane.policy.objects import LAST_PORT, address_text

MAX_PACKET = 4096  # bytes of a packet that is read; others go by

CONNECT, ACCEPT, REFUSE, REDIRECT, DATA, RESEND = 1, 2, 4, 5, 6, 11
BEFORE_ACCEPT = {REFUSE, REDIRECT, DATA, RESEND}

HEADER = 8  # bytes
_TEXT = 10  # offset of the text, in REDIRECT behind its length, in DATA behind the flags
_CONNECT_SIZE = 26  # bytes; a CONNECT has at least the length of its data
_CONNECT_HEAD = bytes([0, 0, CONNECT])  # behind the length

_ADDRESS = re.compile(rb"\(\s*ADDRESS\s*=\s*(?:\([^()]*\)\s*)+\)", re.IGNORECASE)
_PROTOCOL = re.compile(rb"\(\s*PROTOCOL\s*=\s*TCPS?\s*\)", re.IGNORECASE)
_HOST = re.compile(rb"\(\s*HOST\s*=\s*([0-9A-Za-z.:_-]+)\s*\)", re.IGNORECASE)
_PORT = re.compile(rb"\(\s*PORT\s*=\s*(\d{1,5})\s*\)", re.IGNORECASE)


class Tns:
    """One connection to a listener."""

    limit = _TEXT + MAX_PACKET

    def __init__(self) -> None:
        self.done = False
        self._connected = False
        self._rest = [0, 0]  # bytes to come of a packet that is not read; all of the client's go by

    def inspect(self, side: int, data: bytes, control: Control) -> Piece:
        if side == CLIENT:
            return self._client(data)
        if self._rest[SERVER]:
            return pass_by(self._rest, SERVER, self._rest[SERVER], data)
        if not self._connected:
            self.done = True
            return Piece(len(data))
        return self._server(data, control)

    def _client(self, data: bytes) -> Piece:
        """It begins with a CONNECT, or this is something else; nothing else that it says matters."""
        if self._connected:
            return Piece(len(data))
        if len(data) < 5 and _CONNECT_HEAD.startswith(data[2:5]):
            return MORE
        self._connected = data[2:5] == _CONNECT_HEAD and int.from_bytes(data[:2]) >= _CONNECT_SIZE
        self.done = not self._connected
        return Piece(len(data))

    def _server(self, data: bytes, control: Control) -> Piece:
        if len(data) < HEADER:
            return MORE
        size, kind = _head(data)
        if kind not in BEFORE_ACCEPT or size < HEADER:
            self.done = True
            return Piece(len(data))
        if kind != REDIRECT or not _TEXT <= size <= MAX_PACKET:
            return pass_by(self._rest, SERVER, size, data)
        if size == _TEXT:
            return self._two(data, control)
        return MORE if len(data) < size else Piece(size, _redirect(data[:size], 0, control))

    def _two(self, data: bytes, control: Control) -> Piece:
        """A REDIRECT without text, and the packet behind it."""
        if len(data) < _TEXT + HEADER:
            return MORE
        size, kind = _head(data[_TEXT:])
        if kind not in (REDIRECT, DATA) or not _TEXT < size <= MAX_PACKET:
            return Piece(_TEXT)
        whole = _TEXT + size
        return MORE if len(data) < whole else Piece(whole, _redirect(data[:whole], _TEXT, control))


def _head(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[:2]), data[4]


def _redirect(packets: bytes, start: int, control: Control) -> bytes | None:
    """A REDIRECT with its text, or followed by the packet that begins at `start` and has it."""
    addresses, nul, more = packets[start + _TEXT :].partition(b"\0")
    changed = _ADDRESS.sub(lambda match: _address(match[0], control), addresses)
    if changed == addresses:
        return None
    head = bytearray(packets[: start + _TEXT])
    lengths = {start, HEADER}  # of the packet; of the text, in the REDIRECT
    if head[start + 4] == REDIRECT:
        lengths.add(start + HEADER)
    for at in lengths:
        length = int.from_bytes(head[at : at + 2])
        if length:
            head[at : at + 2] = (length + len(changed) - len(addresses) & 0xFFFF).to_bytes(2)
    return bytes(head) + changed + nul + more


def _address(entry: bytes, control: Control) -> bytes:
    """One (ADDRESS=...), as the client has to read it."""
    host, port = _HOST.search(entry), _PORT.search(entry)
    if host is None or port is None or not _PROTOCOL.search(entry):
        return entry
    own = Endpoint(control.own(SERVER).address, int(port[1]))
    literal = _literal(host[1])
    if literal not in (None, own.address) or own.port > LAST_PORT:
        return entry
    seen = control.expect(Expected(SERVER, TCP, own.port, ("oracle",)))
    if seen is None or seen == own:
        return entry
    edits: Edits = {port.span(1): str(seen.port).encode()}
    if literal is not None:
        edits[host.span(1)] = address_text(seen.address).encode()
    return spliced(entry, edits)


def _literal(host: bytes) -> int | None:
    """The address that is written there; None for a name."""
    try:
        address = ip_address(host.decode("latin-1"))
    except ValueError:
        return None
    return address_of(address.packed)
