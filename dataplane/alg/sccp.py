"""SCCP, Cisco's Skinny: the port on which a phone is going to receive the voice of a call.

    header   length 4 | version 4 | message 4       all little-endian; the length counts from `message` on
    0x0001   Register, phone: name 16 | user 4 | instance 4 | address 4
    0x0022   OpenReceiveChannelAck, phone: status 4 | ADDRESS | port 4 | party 4
    0x0106   CloseReceiveChannel, server: conference 4 | party 4
    ADDRESS  IPv4, 4 bytes; from version 17 on a kind 4 (0: IPv4, 1: IPv6) and 16 bytes, IPv4 in the first four

The phone answers the server's OpenReceiveChannel (0x0105), and the server hands its answer to the other phone, which
then sends from wherever it is. A phone speaks first, with one of the few messages below, and is believed when the
server has answered. Where its media goes (StartMediaTransmission, 0x008A) is the address of a third host, and that
host's own announcement: it opens nothing. Cisco has not published the protocol; the layouts are those that open
dissectors and servers agree on.

Not done: multimedia and multicast channels, the IPv6 address in Register, SCCP over TLS (port 2443).
"""

import struct

from dataplane.alg.base import CLIENT, MORE, SERVER, UDP, Control, Endpoint, Expected, Piece
from dataplane.alg.text import address_of, pass_by
from dataplane.policy.objects import LAST_PORT

MAX_MESSAGE = 512  # bytes of a message that is read; longer ones and all others go by
MAX_CHANNELS = 64  # of one phone; the newest are kept

KEEP_ALIVE, REGISTER, ALARM, REGISTER_TOKEN, SPCP_REGISTER_TOKEN = 0x0000, 0x0001, 0x0020, 0x0029, 0x8000
OPEN_RECEIVE_CHANNEL_ACK, CLOSE_RECEIVE_CHANNEL = 0x0022, 0x0106
FIRST = {KEEP_ALIVE, REGISTER, ALARM, REGISTER_TOKEN, SPCP_REGISTER_TOKEN}
READ = ({REGISTER, OPEN_RECEIVE_CHANNEL_ACK}, {CLOSE_RECEIVE_CHANNEL})

HEADER = 12  # bytes, `message` included
_UNCOUNTED = 8  # bytes of the header that its length does not count
_LEAST = 4  # the length of a message that is nothing but its number
_WIDE = 17  # the version that made addresses 16 bytes
_SIZES = {0: 4, 1: 16}  # kind of address -> bytes
_STATUS_OK = bytes(4)
_REGISTER_ADDRESS = HEADER + 24
_CLOSE_PARTY = HEADER + 4


class Sccp:
    """One phone."""

    limit = MAX_MESSAGE

    def __init__(self) -> None:
        self.done = False
        self._spoken = [False, False]
        self._rest = [0, 0]  # bytes to come of a message that is not read
        self._channels: dict[int, int] = {}  # party -> port that the phone receives on

    def inspect(self, side: int, data: bytes, control: Control) -> Piece:
        if self._rest[side]:
            return pass_by(self._rest, side, self._rest[side], data)
        if not _plausible(data):
            self.done = True
            return Piece(len(data))
        if len(data) < HEADER:
            return MORE
        length, version, kind = struct.unpack_from("<III", data)
        if length < _LEAST or not (self._spoken[side] or self._begins(side, kind)):
            self.done = True
            return Piece(len(data))
        size = length + _UNCOUNTED
        if kind not in READ[side] or size > MAX_MESSAGE:
            return pass_by(self._rest, side, size, data)
        if len(data) < size:
            return MORE
        return Piece(size, self._read(kind, version, data[:size], control))

    def _begins(self, side: int, kind: int) -> bool:
        """The phone speaks first, with one of the messages that phones begin with."""
        self._spoken[side] = True
        return self._spoken[CLIENT] and (side == SERVER or kind in FIRST)

    def _read(self, kind: int, version: int, message: bytes, control: Control) -> bytes | None:
        if kind == REGISTER:
            return _register(message, control)
        if kind == CLOSE_RECEIVE_CHANNEL:
            self._close(int.from_bytes(message[_CLOSE_PARTY : _CLOSE_PARTY + 4], "little"), control)
            return None
        return self._opened(version, message, control) if self._spoken[SERVER] else None

    def _opened(self, version: int, message: bytes, control: Control) -> bytes | None:
        at, size, port_at = _layout(version, message)
        if len(message) < port_at + 8 or message[HEADER : HEADER + 4] != _STATUS_OK or not size:
            return None
        address = address_of(message[at : at + size])
        port, party = struct.unpack_from("<II", message, port_at)
        announced = Endpoint(address, port)
        seen = self._expect(party, announced, control)
        if seen is None or seen == announced:
            return None
        message = _put(message, at, seen.address.to_bytes(16)[-size:])
        return _put(message, port_at, seen.port.to_bytes(4, "little"))

    def _expect(self, party: int, announced: Endpoint, control: Control) -> Endpoint | None:
        """Only at the phone's own address; RTCP comes to the port behind."""
        if announced.address != control.own(CLIENT).address or announced.port >= LAST_PORT:
            return None
        if self._channels.get(party) != announced.port:
            self._close(party, control)
        seen = control.expect(Expected(CLIENT, UDP, announced.port, ("rtp", "rtcp"), anyone=True))
        if seen is not None:
            self._channels[party] = announced.port
        if len(self._channels) > MAX_CHANNELS:
            self._close(next(iter(self._channels)), control)
        return seen

    def _close(self, party: int, control: Control) -> None:
        port = self._channels.pop(party, None)
        if port is not None:
            control.forget(CLIENT, UDP, port)
            control.forget(CLIENT, UDP, port + 1)


def _plausible(data: bytes) -> bool:
    """Whether this is, or may become, a header: neither its length nor its version is a large number."""
    return not any(data[2:4]) and not any(data[5:8])


def _layout(version: int, message: bytes) -> tuple[int, int, int]:
    """Where an acknowledgement has its address, how many bytes that has (0: none known), and where the port is."""
    address = HEADER + 4
    if version < _WIDE:
        return address, 4, address + 4
    kind = int.from_bytes(message[address : address + 4], "little")
    return address + 4, _SIZES.get(kind, 0), address + 20


def _register(message: bytes, control: Control) -> bytes | None:
    """The phone's address, if it is its own."""
    own, seen = control.own(CLIENT).address, control.seen(CLIENT).address
    announced = message[_REGISTER_ADDRESS : _REGISTER_ADDRESS + 4]
    if own == seen or len(announced) < 4 or address_of(announced) != own:
        return None
    return _put(message, _REGISTER_ADDRESS, seen.to_bytes(16)[-4:])


def _put(message: bytes, offset: int, value: bytes) -> bytes:
    return message[:offset] + value + message[offset + len(value) :]
