"""MSRPC: the port on which a service of Windows listens, as its endpoint mapper tells (DCE 1.1 RPC, C706; MS-RPCE).

    header   5 | 0 or 1 | type 1 | flags 1 | representation 4 | length 2 | length of the verifier 2 | call 4
    11 14    BIND, ALTER_CONTEXT, client: 24: contexts 1, 3 unused, then each context
             id 2 | syntaxes 1 | 0 | interface 20 | syntaxes of 20
    12 15    their answers: 24: length of a port's name 2, the name, aligned to 4: results 1, 3 unused, then each result
             result 2 | reason 2 | syntax 20
    0        REQUEST, client: room 4 | context 2 | operation 2, 3 is ept_map
    2        RESPONSE, server: 24: handle 20 | number 4 | most, first, count | that many referents, then each tower
             size | length 4 | octets
    tower    floors 2, then each floor: length 2, protocol 1, ... | length 2, its value
             protocol 7: a TCP port, 9: an IPv4 address

The numbers of a message have the byte order of its header; those of a tower are little-endian, port and address in
network order. Counts, referents and sizes are words of 4 bytes in NDR and of 8 in NDR64; the server has chosen one of
the two for the context. A client binds first, to the endpoint mapper, or this is another service and left alone. A
mapper may leave the address open (0.0.0.0), and has to with IPv6.

Not done: messages in several fragments, and those with a verifier, which may be sealed; ept_lookup; the object exporter
of DCOM, which tells ports as text.
"""

import struct
from collections.abc import Iterator
from uuid import UUID

from dataplane.alg.base import CLIENT, MORE, SERVER, TCP, Control, Expected, Piece
from dataplane.alg.text import address_of, pass_by, remember

MAX_MESSAGE = 8192  # bytes of a message that is read; Windows sends fragments of up to 5840
MAX_KEPT = 64  # contexts, and calls without an answer; the newest are kept

VERSION = 5
REQUEST, RESPONSE, BIND, BIND_ACK, ALTER_CONTEXT, ALTER_CONTEXT_RESPONSE = 0, 2, 11, 12, 14, 15
READ = ({REQUEST, BIND, ALTER_CONTEXT}, {RESPONSE, BIND_ACK, ALTER_CONTEXT_RESPONSE})
FIRST = (BIND, BIND_ACK)
WHOLE = 0x03  # flags: the first fragment, and the last
EPT_MAP = 3
ACCEPTED = 0

ENDPOINT_MAPPER = UUID("e1af8308-5d1f-11c9-91a4-08002b14a0fa")
NDR = UUID("8a885d04-1ceb-11c9-9fe8-08002b104860")
NDR64 = UUID("71710533-beba-4937-8319-b5dbef9ccc36")
WIDTHS = {NDR: 4, NDR64: 8}  # bytes

FLOOR_TCP, FLOOR_IP = 0x07, 0x09

HEADER = 16  # bytes
_CALL = 12  # offset
_BODY = 24  # offset of the lists, and of the stub in a response
_SYNTAX = 20  # bytes: an interface's or a syntax's UUID, and its version
_TOWERS = _BODY + 24  # offset of the array, behind the handle and the number


class Msrpc:
    """One connection to an endpoint mapper."""

    limit = MAX_MESSAGE

    def __init__(self) -> None:
        self.done = False
        self._spoken = [False, False]
        self._rest = [0, 0]  # bytes to come of a message that is not read
        self._offered: list[tuple[int, bool]] = []  # contexts that await an answer, and whether they are of the mapper
        self._contexts: dict[int, int] = {}  # context of the mapper -> width of its words
        self._calls: dict[int, int] = {}  # ept_map without an answer -> width

    def inspect(self, side: int, data: bytes, control: Control) -> Piece:
        if self._rest[side]:
            return pass_by(self._rest, side, self._rest[side], data)
        if not self._plausible(side, data):
            return self._end(data)
        if len(data) < HEADER:
            return MORE
        size, verifier = struct.unpack_from(_order(data) + "HH", data, 8)
        if size < HEADER:
            return self._end(data)
        self._spoken[side] = True
        if not _is_read(side, data, verifier) or size > MAX_MESSAGE:
            return pass_by(self._rest, side, size, data)
        return MORE if len(data) < size else Piece(size, self._read(data[:size], control))

    def _end(self, data: bytes) -> Piece:
        self.done = True
        return Piece(len(data))

    def _plausible(self, side: int, data: bytes) -> bool:
        """Whether this is, or may become, a message of this side; the client begins, with a BIND."""
        if data[0] != VERSION or data[1:2] > b"\1":
            return False
        if self._spoken[side]:
            return True
        return (side == CLIENT or self._spoken[CLIENT]) and data[2:3] in (b"", bytes([FIRST[side]]))

    def _read(self, message: bytes, control: Control) -> bytes | None:
        order, kind = _order(message), message[2]
        try:
            if kind in (BIND, ALTER_CONTEXT):
                self._offer(kind, order, message)
            elif kind in (BIND_ACK, ALTER_CONTEXT_RESPONSE):
                self._answer(order, message)
            elif kind == REQUEST:
                self._ask(order, message)
            else:
                return self._tell(order, message, control)
        except struct.error:
            pass  # a number in it promises more than there is
        return None

    def _offer(self, kind: int, order: str, message: bytes) -> None:
        self._offered = []
        (count,) = struct.unpack_from("B", message, _BODY)
        at = _BODY + 4
        for _ in range(count):
            context, syntaxes, interface = struct.unpack_from(order + "HBx16s", message, at)
            self._offered.append((context, _uuid(order, interface) == ENDPOINT_MAPPER))
            at += 4 + _SYNTAX * (1 + syntaxes)
        if kind == BIND and not any(is_mapper for _, is_mapper in self._offered):
            self.done = True

    def _answer(self, order: str, message: bytes) -> None:
        (length,) = struct.unpack_from(order + "H", message, _BODY)
        at = _aligned(_BODY + 2 + length, 4)
        (count,) = struct.unpack_from("B", message, at)
        at += 4
        for context, is_mapper in self._offered[:count]:
            result, syntax = struct.unpack_from(order + "H2x16s", message, at)
            width = WIDTHS.get(_uuid(order, syntax))
            if is_mapper and result == ACCEPTED and width:
                remember(self._contexts, context, width, MAX_KEPT)
            at += 4 + _SYNTAX

    def _ask(self, order: str, message: bytes) -> None:
        call, context, operation = struct.unpack_from(order + "I4xHH", message, _CALL)
        if operation == EPT_MAP and context in self._contexts:
            remember(self._calls, call, self._contexts[context], MAX_KEPT)

    def _tell(self, order: str, message: bytes, control: Control) -> bytes | None:
        (call,) = struct.unpack_from(order + "I", message, _CALL)
        width = self._calls.pop(call, 0)
        if not width:
            return None
        changed = bytearray(message)
        for port_at, address_at in list(_endpoints(order, width, message)):  # all of them, or none if it is cut short
            _expect(changed, port_at, address_at, control)
        return bytes(changed) if changed != message else None


def _is_read(side: int, head: bytes, verifier: int) -> bool:
    return head[2] in READ[side] and head[3] & WHOLE == WHOLE and not (verifier and head[2] == RESPONSE)


def _order(message: bytes) -> str:
    """As struct writes it; the character set and the floating point, in the same bytes, matter to nobody here."""
    return "<" if message[4] >> 4 else ">"


def _uuid(order: str, octets: bytes) -> UUID:
    return UUID(bytes_le=octets) if order == "<" else UUID(bytes=octets)


def _aligned(at: int, width: int) -> int:
    return (at + width - 1) & -width


def _endpoints(order: str, width: int, message: bytes) -> Iterator[tuple[int, int]]:
    """Where each tower that has them says its TCP port and its IPv4 address."""
    for first, end in _towers(order, width, message):
        values = _floors(message, first, end)
        port, address = values.get(FLOOR_TCP), values.get(FLOOR_IP)
        if port and address and port[1] == 2 and address[1] == 4:
            yield port[0], address[0]


def _towers(order: str, width: int, message: bytes) -> Iterator[tuple[int, int]]:
    """First octet and end of each tower."""
    word = order + ("I" if width == 4 else "Q")
    (count,) = struct.unpack_from(word, message, _TOWERS + 2 * width)
    at = _TOWERS + 3 * width + min(count, len(message)) * width
    for referent in range(_TOWERS + 3 * width, at, width):
        if not any(message[referent : referent + width]):
            continue
        at = _aligned(at, width) + width
        (length,) = struct.unpack_from(order + "I", message, at)
        first, at = at + 4, at + 4 + length
        if at > len(message):
            raise struct.error("a tower ends behind its message")
        yield first, at


def _floors(message: bytes, at: int, end: int) -> dict[int, tuple[int, int]]:
    """Protocol -> where its value is, and how long."""
    values = {}
    (count,) = struct.unpack_from("<H", message, at)
    at += 2
    for _ in range(count):
        if at >= end:
            return {}
        left, protocol = struct.unpack_from("<HB", message, at)
        (right,) = struct.unpack_from("<H", message, at + 2 + left)
        values[protocol] = at + 4 + left, right
        at += 4 + left + right
    return values if at <= end else {}


def _expect(message: bytearray, port_at: int, address_at: int, control: Control) -> None:
    """Only at the server's own address; what the mapper leaves open stays so."""
    own = control.own(SERVER).address
    named = bytes(message[address_at : address_at + 4])
    if any(named) and address_of(named) != own:
        return
    port = int.from_bytes(message[port_at : port_at + 2])
    seen = control.expect(Expected(SERVER, TCP, port, ("msrpc",), again=True))
    if seen is None:
        return
    message[port_at : port_at + 2] = seen.port.to_bytes(2)
    if any(named):
        message[address_at : address_at + 4] = seen.address.to_bytes(16)[-4:]
