"""RSH (BSD rcmd, TCP 514): the port to which the server connects a second stream, for the command's standard error.

    client: "1022" NUL "user" NUL ...      the server calls that port of the client
    client: "0" NUL or NUL                 no second stream

It is the first thing that the client says; nothing after it concerns us. The classic clients listen on a port from 512
to 1023, as the classic servers insist. No flow is ever expected below LEAST_PORT, so to them the second stream stays
closed; it opens to clients that name a port from 1024 on. Without a second stream RSH needs no help.
"""

import re

from dataplane.alg.base import CLIENT, MORE, TCP, Control, Expected, Piece
from dataplane.policy.objects import LAST_PORT

MAX_DIGITS = 5

_DIGITS = re.compile(rb"\d{0,5}")


class Rsh:
    """One control connection."""

    limit = MAX_DIGITS + 1

    def __init__(self) -> None:
        self.done = False

    def inspect(self, side: int, data: bytes, control: Control) -> Piece:
        match = _DIGITS.match(data)
        digits = match[0] if match and side == CLIENT else b""
        if digits == data:
            return MORE
        self.done = True
        if not digits or data[len(digits)]:
            return Piece(len(data))
        return Piece(len(digits), _port(digits, control))


def _port(digits: bytes, control: Control) -> bytes | None:
    """What has to stand in the place of this port."""
    port = int(digits)
    if not 0 < port <= LAST_PORT:
        return None
    seen = control.expect(Expected(CLIENT, TCP, port, ("rsh-error",)))
    return None if seen is None or seen.port == port else str(seen.port).encode()
