"""PPTP (RFC 2637): the two GRE streams of a call, which are told apart by call ids where other protocols have ports.

    header   length 2 | type 2, always 1 | magic 4 | control type 2 | 0 0          all numbers big-endian
    7 9      Outgoing-, Incoming-Call-Request     call id 12
    8 10     Outgoing-, Incoming-Call-Reply       call id 12 | peer's call id 14 | result 16, 1: connected
    12 13    Call-Clear-Request, Call-Disconnect-Notify         call id 12
    11 14 15 Incoming-Call-Connected, WAN-Error-Notify, Set-Link-Info      peer's call id 12

A side names its own call id, which the other one puts into the key of every GRE packet that it sends. So a call id is
translated like a port on its way out, and one that a peer repeats is put back. Either side may call the other.
Nothing is believed before Start-Control-Connection-Request (1) and its reply (2), the client's first.

Not done: a control connection that the two sides open to each other at once (RFC 2637, 3.1.3).
"""

import struct
from dataclasses import dataclass, field

from dataplane.alg.base import CLIENT, GRE, MORE, SERVER, Control, Expected, Piece

MAX_MESSAGE = 255  # bytes; the longest of RFC 2637, Incoming-Call-Request, has 220
MAX_CALLS = 64  # of one control connection; the newest are kept

START_REQUEST, START_REPLY, STOP_REPLY = 1, 2, 4
CALL_REQUESTS, CALL_REPLIES = (7, 9), (8, 10)
CLEAR_REQUEST, DISCONNECT_NOTIFY = 12, 13
CONNECTED = 1

HEADER = 12  # bytes
CALL_ID, PEER_CALL_ID, RESULT = 12, 14, 16
"""Offsets; where a message has no call id of its own, the peer's stands in its place."""

_LENGTHS = {7: 168, 8: 32, 9: 220, 10: 24, 11: 28, 12: 16, 13: 148, 14: 40, 15: 24}
_OPENING = ((CLIENT, START_REQUEST), (SERVER, START_REPLY))
_START_RESULT = 14
_BEGINNING = b"\x00\x01\x1a\x2b\x3c\x4d"  # type and magic, behind the length


@dataclass
class _Call:
    """By side: the call id as that side knows it and as the other does; 0 until it has named one."""

    own: list[int] = field(default_factory=lambda: [0, 0])
    seen: list[int] = field(default_factory=lambda: [0, 0])


class Pptp:
    """One control connection."""

    limit = MAX_MESSAGE

    def __init__(self) -> None:
        self.done = False
        self._opened = 0  # how many of the two opening messages have been seen
        self._calls: list[_Call] = []

    def inspect(self, side: int, data: bytes, control: Control) -> Piece:
        if not _plausible(data):
            self.done = True
            return Piece(len(data))
        length = int.from_bytes(data[:2])
        if len(data) < max(length, HEADER):
            return MORE
        message = data[:length]
        kind = int.from_bytes(message[8:10])
        if self._opened < len(_OPENING):
            self._open(side, kind, message)
            return Piece(length)
        changed = self._read(side, kind, message, control)
        return Piece(length, None if changed == message else changed)

    def _open(self, side: int, kind: int, message: bytes) -> None:
        """Both ends begin as PPTP does, or this is something else; what the client says too early is not believed."""
        if (side, kind) == _OPENING[self._opened]:
            self._opened += 1
            self.done = side == SERVER and message[_START_RESULT : _START_RESULT + 1] != bytes([CONNECTED])
        elif side == SERVER or not self._opened:
            self.done = True

    def _read(self, side: int, kind: int, message: bytes, control: Control) -> bytes:
        if kind == STOP_REPLY:
            self.done = True
        if len(message) < _LENGTHS.get(kind, MAX_MESSAGE + 1):
            return message
        call_id, peer = struct.unpack_from("!HH", message, CALL_ID)
        if kind in CALL_REQUESTS:
            return _put(message, CALL_ID, self._request(side, call_id, control))
        if kind in CALL_REPLIES:
            return self._reply(side, call_id, peer, message, control)
        if kind in (CLEAR_REQUEST, DISCONNECT_NOTIFY):
            return _put(message, CALL_ID, self._clear(side, kind, call_id, control))
        call = self._seen(1 - side, call_id)
        return _put(message, CALL_ID, call.own[1 - side] if call else 0)

    def _request(self, side: int, call_id: int, control: Control) -> int:
        """A new call; its call id for the other side, 0 if nothing was opened."""
        old = self._own(side, call_id)
        if old:
            self._drop(old, control)
        call = _Call()
        if _name(call, side, call_id, control):
            self._calls.append(call)
        if len(self._calls) > MAX_CALLS:
            self._drop(self._calls[0], control)
        return call.seen[side]

    def _reply(self, side: int, call_id: int, peer: int, message: bytes, control: Control) -> bytes:
        call = self._seen(1 - side, peer)
        if call is None:
            return message
        changed = _put(message, PEER_CALL_ID, call.own[1 - side])
        if message[RESULT] != CONNECTED:
            self._drop(call, control)
        elif _name(call, side, call_id, control):
            changed = _put(changed, CALL_ID, call.seen[side])
        return changed

    def _clear(self, side: int, kind: int, call_id: int, control: Control) -> int:
        """Nothing is awaited any more; the call itself is known until the notify that answers a clear request."""
        call = self._own(side, call_id)
        if call is None:
            return 0
        if kind == DISCONNECT_NOTIFY:
            self._drop(call, control)
        else:
            _forget(call, control)
        return call.seen[side]

    def _drop(self, call: _Call, control: Control) -> None:
        _forget(call, control)
        self._calls.remove(call)

    def _own(self, side: int, call_id: int) -> _Call | None:
        return next((call for call in reversed(self._calls) if call_id and call.own[side] == call_id), None)

    def _seen(self, side: int, call_id: int) -> _Call | None:
        return next((call for call in reversed(self._calls) if call_id and call.seen[side] == call_id), None)


def _plausible(data: bytes) -> bool:
    """Whether this is, or may become, a control message."""
    short = len(data) > 1 and data[1] < HEADER
    return data[0] == 0 and not short and _BEGINNING.startswith(data[2:8])


def _name(call: _Call, side: int, call_id: int, control: Control) -> bool:
    """This side's call id, unless its stream is refused."""
    seen = control.expect(Expected(side, GRE, call_id, ("pptp-gre",))) if call_id else None
    if seen is None:
        return False
    if call.own[side] not in (0, call_id):
        control.forget(side, GRE, call.own[side])
    call.own[side], call.seen[side] = call_id, seen.port
    return True


def _forget(call: _Call, control: Control) -> None:
    for side in (CLIENT, SERVER):
        if call.own[side]:
            control.forget(side, GRE, call.own[side])


def _put(message: bytes, offset: int, call_id: int) -> bytes:
    """The message with this call id there; 0 for the one that it has."""
    if not call_id:
        return message
    return message[:offset] + call_id.to_bytes(2) + message[offset + 2 :]
