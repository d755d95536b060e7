"""TFTP (RFC 1350): the server answers a request from a new port, to the port that the request came from.

The text names no port, so nothing is ever changed in it; a request that comes again is waited for again.
"""

from dataplane.alg.base import CLIENT, UDP, Control, Expected, Piece

READ, WRITE = b"\x00\x01", b"\x00\x02"
SHORTEST = 6  # bytes: opcode, a file name of one letter, a mode of one letter, and both zeros


class Tftp:
    """One client port."""

    limit = 0
    done = False

    def inspect(self, side: int, data: bytes, control: Control) -> Piece:
        if side == CLIENT and data[:2] in (READ, WRITE) and len(data) >= SHORTEST and data[2:].count(0) >= 2:
            control.expect(Expected(CLIENT, UDP, control.own(CLIENT).port, ("tftp-data",)))
        return Piece(len(data))
