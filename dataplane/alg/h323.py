"""H.323: the ports of a call's media control (H.245) and of its media, announced in signalling and in control.

    H.225.0   TCP 1720        TPKT | Q.931 header | elements | User-User 7E len16 05 | H323-UserInformation
              Setup           sourceCallSignalAddress, h245Address, fastStart          the client's
              others          h245Address, fastStart, h245Control (tunnelled H.245)    either side's
              ReleaseComplete                                                          closes what the call expected
    H.245     TCP, announced  TPKT | MultimediaSystemControlMessage
              OpenLogicalChannel, its Ack   mediaChannel (RTP, even), mediaControlChannel (RTCP, the next port)
              CloseLogicalChannel, EndSession                                          close what was expected

A signalling stream begins with the client's Setup, a control stream with a capability set or a master/slave request. A
Setup may announce before it is answered, for media may come with the answer; H.245, tunnelled or not, announces
nothing until both ends have spoken. Nobody may announce an address other than his own.

An endpoint names its RTCP port in OpenLogicalChannel and the RTP port beside it only later, in the Ack to the other's
channel. The pair is asked for as soon as one of the two is known: so they are neighbours outside too, and both messages
name the same ports. Only ports that are no such pair are asked for each by itself.

Messages are decoded by pycrate: 0.1 s and 13 MiB to import, 0.3 ms for a Setup and 0.2 ms for each of its fastStart,
60 ms for the worst 4 KiB known. It keeps what it decodes in the types themselves, so that only one thread may come
here. Nothing is encoded: PER aligns addresses to octets, so they are changed where they lie, and the result is decoded
once more.

Sources: ITU-T H.225.0 and H.245 (aligned PER, X.691), Q.931 section 4, RFC 1006. Not done: messages longer than
MAX_MESSAGE, gatekeepers (RAS), separateStack (T.120), call forwarding, multicast.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from dataplane.alg.base import CLIENT, MORE, SERVER, TCP, UDP, Control, Endpoint, Expected, Piece
from dataplane.alg.text import address_of, pass_by, remember

MAX_MESSAGE = 4096  # bytes with the TPKT header
MAX_NESTED = 32  # messages inside one message
MAX_FLOWS = 64  # expected ports that are remembered to be closed

_TPKT = b"\x03\x00"
_HEADER = 4  # bytes of TPKT
_Q931 = b"\x08\x02"  # protocol discriminator, two bytes of call reference
_SETUP, _RELEASE_COMPLETE = 0x05, 0x5A
_USER_USER, _PER = 0x7E, 0x05
_FIRST_CONTROL = b"\x01\x02"  # masterSlaveDetermination, terminalCapabilitySet
_CONTROL = b"\x03\x04\x22\x4a\x4b"  # openLogicalChannel, closeLogicalChannel, openLogicalChannelAck, endSessionCommand
_OPENER = {"openLogicalChannel": True, "closeLogicalChannel": True, "openLogicalChannelAck": False}  # who says it
_WITH_CALL = 0  # no number of a logical channel: it closes with its call


class _Channel(NamedTuple):
    """A logical channel: its call, the side that opened it, its number."""

    call: int
    opener: int
    number: int


class _Flow(NamedTuple):
    side: int
    proto: int
    port: int


class _Place(NamedTuple):
    """An address inside a decoded message, and what its two fields are called there."""

    fields: dict[str, Any]
    host: str
    port: str

    @property
    def endpoint(self) -> Endpoint:
        host = self.fields[self.host]
        return Endpoint(address_of(host), self.fields[self.port])

    @property
    def packed(self) -> bytes:
        return bytes(self.fields[self.host]) + int(self.fields[self.port]).to_bytes(2)

    def put(self, endpoint: Endpoint) -> None:
        """Nothing, where an IPv6 address would have to stand in the place of an IPv4 one."""
        size = len(self.fields[self.host])
        if size == 4 and endpoint.address >> 32 != 0xFFFF:
            return
        self.fields[self.host] = endpoint.address.to_bytes(16)[-size:]
        self.fields[self.port] = endpoint.port


class _Message:
    """One message decoded, and edited where it lies."""

    def __init__(self, kind: str, data: bytes) -> None:
        self._kind = kind
        self._data = data
        self._edits: list[tuple[bytes, bytes]] = []
        self.value = _decode(kind, data)

    def put(self, place: _Place | None, endpoint: Endpoint | None) -> None:
        """In the order of the message; a place that is left as it is counts too, for the same bytes may follow."""
        if place is None:
            return
        old = place.packed
        if endpoint is not None:
            place.put(endpoint)
        self._edits.append((old, place.packed))

    def each(self, nested: list[bytes], read: Callable[[bytes], bytes | None]) -> None:
        """The same for messages inside of it."""
        for at, data in enumerate(nested[:MAX_NESTED]):
            nested[at] = read(data) or data
            self._edits.append((data, nested[at]))

    def spliced(self) -> bytes | None:
        """None where nothing changes, or where the bytes were found elsewhere than in the fields."""
        if all(old == new for old, new in self._edits):
            return None
        data, at = bytearray(self._data), 0
        for old, new in self._edits:
            at = data.find(old, at)
            if at < 0:
                return None
            data[at : at + len(old)] = new
            at += len(new)
        spliced = bytes(data)
        return spliced if _decode(self._kind, spliced) == self.value else None


class _Turn(NamedTuple):
    """Who speaks, in which call (its reference value)."""

    side: int
    call: int
    control: Control

    def own_port(self, place: _Place | None) -> int:
        """The port that the speaker announces as his own, or 0."""
        if place is None or place.endpoint.address != self.control.own(self.side).address:
            return 0
        return place.endpoint.port


class _Channels:
    """The logical channels of one connection, and which of their flows are still expected."""

    def __init__(self) -> None:
        self._opened: dict[_Flow, _Channel] = {}

    def expect(self, turn: _Turn, channel: _Channel, expected: Expected) -> dict[int, Endpoint]:
        """By each port that was asked for, where the other side has to send to; nothing if they are refused."""
        seen = turn.control.expect(expected)
        if seen is None:
            return {}
        ports = range(expected.port, expected.port + len(expected.applications))
        for port in ports:
            remember(self._opened, _Flow(expected.side, expected.proto, port), channel, MAX_FLOWS)
        return {port: Endpoint(seen.address, seen.port + i) for i, port in enumerate(ports)}

    def close(self, turn: _Turn, channel: _Channel | None = None) -> None:
        """All of a call, or one channel of it."""
        for flow, opened in list(self._opened.items()):
            if opened.call == turn.call and channel in (None, opened):
                turn.control.forget(*flow)
                del self._opened[flow]

    def control(self, turn: _Turn, data: bytes) -> bytes | None:
        """A message of H.245: what goes on in its place. Its first bits say what it is; most are of no interest."""
        if not data or data[0] not in _CONTROL:
            return None
        message = _Message("control", data)
        if message.value is None:
            return None
        name, value = message.value[1]
        if name == "endSessionCommand":
            self.close(turn)
        elif name in _OPENER:
            opener = turn.side if _OPENER[name] else 1 - turn.side
            channel = _Channel(turn.call, opener, value["forwardLogicalChannelNumber"])
            if name == "closeLogicalChannel":
                self.close(turn, channel)
            else:
                self._announce(turn, channel, message, value)
        return message.spliced()

    def fast(self, turn: _Turn, data: bytes) -> bytes | None:
        """An element of fastStart, an OpenLogicalChannel."""
        message = _Message("open", data)
        if message.value is None:
            return None
        self._announce(turn, _Channel(turn.call, turn.side, _WITH_CALL), message, message.value)
        return message.spliced()

    def _announce(self, turn: _Turn, channel: _Channel, message: _Message, value: dict[str, Any]) -> None:
        for parameters in _media_parameters(value):
            places = [_place(parameters.get(name)) for name in ("mediaChannel", "mediaControlChannel")]
            outside: dict[int, Endpoint] = {}
            for expected in _flows(turn, *(turn.own_port(place) for place in places)):
                outside |= self.expect(turn, channel, expected)
            for place in places:
                message.put(place, outside.get(turn.own_port(place)))


class _Tpkt:
    """A stream of TPKT messages (RFC 1006); an empty one keeps the connection alive."""

    limit = MAX_MESSAGE

    def __init__(self) -> None:
        _types()
        self.done = False
        self._begun = [False, False]
        self._passing = [0, 0]  # bytes that a message too long to be read has yet to come
        self._channels = _Channels()

    def inspect(self, side: int, data: bytes, control: Control) -> Piece:
        if self._passing[side]:
            return pass_by(self._passing, side, self._passing[side], data)
        if not _TPKT.startswith(data[:2]):
            return self._leave(data)
        if len(data) < _HEADER:
            return MORE
        length = int.from_bytes(data[2:_HEADER])
        if length < _HEADER or (length > MAX_MESSAGE and not self._begun[side]):
            return self._leave(data)
        if length > MAX_MESSAGE:
            return pass_by(self._passing, side, length, data)
        if len(data) < length:
            return MORE
        return self._whole(side, data[:length], control)

    def _whole(self, side: int, data: bytes, control: Control) -> Piece:
        body = data[_HEADER:]
        if not body:
            return Piece(len(data))
        if not self._begun[side] and not self._begins(side, body):
            return self._leave(data)
        self._begun[side] = True
        changed = self._read(side, body, control)
        return Piece(len(data), None if changed is None else data[:_HEADER] + changed)

    def _leave(self, data: bytes) -> Piece:
        self.done = True
        return Piece(len(data))

    def _begins(self, side: int, body: bytes) -> bool:
        """Whether this may be the first message of a side."""
        raise NotImplementedError

    def _read(self, side: int, body: bytes, control: Control) -> bytes | None:
        """What goes on in place of a message, or None: the same."""
        raise NotImplementedError


class H225(_Tpkt):
    """One call signalling connection."""

    def _begins(self, side: int, body: bytes) -> bool:
        if not _is_q931(body):
            return False
        return self._begun[CLIENT] if side == SERVER else body[4] == _SETUP

    def _read(self, side: int, body: bytes, control: Control) -> bytes | None:
        if not _is_q931(body):
            return None
        turn = _Turn(side, int.from_bytes(body[2:4]) & 0x7FFF, control)  # the first bit says whose reference it is
        if body[4] == _RELEASE_COMPLETE:
            self._channels.close(turn)
            return None
        start, end = _user_user(body)
        changed = self._information(turn, body[start:end])
        return None if changed is None else body[:start] + changed + body[end:]

    def _information(self, turn: _Turn, data: bytes) -> bytes | None:
        message = _Message("information", data)
        if message.value is None:
            return None
        pdu = message.value["h323-uu-pdu"]
        body = pdu["h323-message-body"][1]
        if isinstance(body, dict):  # an empty one has none, one of a later version is bytes
            self._addresses(turn, message, body)
            message.each(body.get("fastStart", []), lambda data: self._channels.fast(turn, data))
        if all(self._begun):
            message.each(pdu.get("h245Control", []), lambda data: self._channels.control(turn, data))
        return message.spliced()

    def _addresses(self, turn: _Turn, message: _Message, body: dict[str, Any]) -> None:
        """In the order in which they are encoded."""
        place = _place(body.get("h245Address"))
        port = turn.own_port(place)
        if port:
            expected = Expected(turn.side, TCP, port, ("h.245",))
            outside = self._channels.expect(turn, _Channel(turn.call, turn.side, _WITH_CALL), expected)
            message.put(place, outside.get(port))
        for name in ("destCallSignalAddress", "sourceCallSignalAddress"):
            place = _place(body.get(name))
            if place is not None:
                message.put(place, _end(turn, place.endpoint))


class H245(_Tpkt):
    """One media control connection."""

    def _begins(self, side: int, body: bytes) -> bool:
        return self._begun[1 - side] or body[0] in _FIRST_CONTROL

    def _read(self, side: int, body: bytes, control: Control) -> bytes | None:
        return self._channels.control(_Turn(side, 0, control), body) if all(self._begun) else None


@cache
def _types() -> dict[str, Any]:
    """Imported when the first connection is seen: only those who use it pay for it."""
    from pycrate_asn1dir.H225 import H323_MESSAGES, MULTIMEDIA_SYSTEM_CONTROL

    return {
        "information": H323_MESSAGES.H323_UserInformation,
        "control": MULTIMEDIA_SYSTEM_CONTROL.MultimediaSystemControlMessage,
        "open": MULTIMEDIA_SYSTEM_CONTROL.OpenLogicalChannel,
    }


def _decode(kind: str, data: bytes) -> Any:
    """None if it is no such message."""
    from pycrate_asn1rt.codecs import ASN1CodecPER

    codec = _types()[kind]
    ASN1CodecPER._off.clear()  # each message that fails leaves an entry behind
    try:
        codec.from_aper(data)
    except Exception:  # besides its own errors hostile bytes raise AssertionError, NameError, ValueError and more in it
        return None
    return codec.get_val()


def _user_user(body: bytes) -> tuple[int, int]:
    """Where the PER of a Q.931 message begins and ends; nowhere, if it is not there in full."""
    at = 5
    while at + 3 < len(body):
        if body[at] == _USER_USER:
            end = at + 3 + int.from_bytes(body[at + 1 : at + 3])
            return (at + 4, end) if body[at + 3] == _PER and end <= len(body) else (0, 0)
        at += 1 if body[at] & 0x80 else 2 + body[at + 1]
    return 0, 0


def _media_parameters(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Of an OpenLogicalChannel or its Ack, in the order in which they are encoded."""
    directions = ("forwardLogicalChannelParameters", "reverseLogicalChannelParameters")
    choices = [value.get(name, {}).get("multiplexParameters") for name in directions]
    choices.append(value.get("forwardMultiplexAckParameters"))
    names = ("h2250LogicalChannelParameters", "h2250LogicalChannelAckParameters")
    return [choice[1] for choice in choices if choice is not None and choice[0] in names]


def _place(address: Any) -> _Place | None:
    """A TransportAddress of H.225.0 or H.245, if it is a unicast address of IPv4 or IPv6."""
    if address is None:
        return None
    kind, fields = address
    if kind == "unicastAddress":
        kind, fields = fields
    if kind in ("ipAddress", "ip6Address"):
        return _Place(fields, "ip", "port")
    return _Place(fields, "network", "tsapIdentifier") if kind in ("iPAddress", "iP6Address") else None


def _flows(turn: _Turn, rtp: int, rtcp: int) -> list[Expected]:
    """What is expected on the announced ports: a pair if they are one, or else each for itself."""
    if not rtp and rtcp % 2:
        rtp = rtcp - 1
    if rtp and rtp % 2 == 0 and rtcp in (0, rtp + 1):
        return [Expected(turn.side, UDP, rtp, ("rtp", "rtcp"))]
    ports = ((rtp, "rtp"), (rtcp, "rtcp"))
    return [Expected(turn.side, UDP, port, (application,)) for port, application in ports if port]


def _end(turn: _Turn, endpoint: Endpoint) -> Endpoint:
    """An end of the signalling connection itself, as the other side knows it; another port of it is kept."""
    own, seen, side = turn.control.own, turn.control.seen, turn.side
    for said, meant in ((own(side), seen(side)), (seen(1 - side), own(1 - side))):
        if endpoint.address == said.address:
            return Endpoint(meant.address, meant.port if endpoint.port == said.port else endpoint.port)
    return endpoint


def _is_q931(body: bytes) -> bool:
    return body.startswith(_Q931) and len(body) > 4
