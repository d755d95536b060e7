"""A control session without packets, for the tests of ALGs: two ends that speak, and a record of what was opened.

client 10.1.0.2:40000  ->  seen as 10.2.0.1:1030      with translation, which gives every expected
server 10.2.0.2:PORT   ->  seen as 10.9.9.9:PORT      port p the outside port p + 10000
"""

from collections.abc import Iterable
from itertools import pairwise

from dataplane.alg.base import CLIENT, GRE, LEAST_PORT, SERVER, Alg, Endpoint, Expected
from dataplane.policy.objects import LAST_PORT, parse_address

SHIFT = 10000
Name = tuple[int, int, int]
"""Side, protocol and port."""


def address(text: str) -> int:
    return parse_address(text)[0][0]


def pieces(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The stream in segments that end at these places; those behind its end are its end."""
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in pairwise(bounds) if a < b]


def with_wrong_bytes(texts: Iterable[bytes], changes: Iterable[tuple[int, int, int]]) -> list[bytes]:
    """What was said, with bytes changed: which text, where in it (counted round), and what stands there now."""
    said = [bytearray(text) for text in texts]
    for which, at, value in changes:
        said[which][at % len(said[which])] = value
    return [bytes(text) for text in said]


class Talk:
    """A Control. `snat` and `dnat` say which side is translated; `say()` is what a test does with it."""

    def __init__(
        self,
        alg: Alg,
        port: int,
        *,
        snat: bool = False,
        dnat: bool = False,
        ipv4: bool = True,
        client: str = "",
        server: str = "",
        refuse: bool = False,
    ) -> None:
        self.alg = alg
        self.ipv4 = ipv4
        self.translated = snat or dnat
        self.expected: list[Expected] = []
        self.forgotten: list[Name] = []
        self._open: set[Name] = set()
        self._refuse = refuse
        self._shifted = (snat, dnat)
        self._waiting = [b"", b""]
        client = client or ("10.1.0.2" if ipv4 else "fd00:1::2")
        server = server or ("10.2.0.2" if ipv4 else "fd00:2::2")
        outside = ("10.2.0.1", "10.9.9.9") if ipv4 else ("fd00:2::1", "fd00:9::9")
        self._own = Endpoint(address(client), 40000), Endpoint(address(server), port)
        self._seen = (
            Endpoint(address(outside[0]), 1030) if snat else self._own[CLIENT],
            Endpoint(address(outside[1]), port) if dnat else self._own[SERVER],
        )

    def own(self, side: int) -> Endpoint:
        return self._own[side]

    def seen(self, side: int) -> Endpoint:
        return self._seen[side]

    def expect(self, expected: Expected) -> Endpoint | None:
        least = 0 if expected.proto == GRE else LEAST_PORT
        if self._refuse or not least <= expected.port <= LAST_PORT + 1 - len(expected.applications):
            return None
        self._open |= _names(expected)
        if expected not in self.expected:
            self.expected.append(expected)
        port = expected.port + SHIFT * self._shifted[expected.side]
        return Endpoint(self._seen[expected.side].address, port & 0xFFFF)

    def forget(self, side: int, proto: int, port: int) -> None:
        """What was announced together goes with the last of its ports."""
        self.forgotten.append((side, proto, port))
        self._open.discard((side, proto, port))
        self.expected = [e for e in self.expected if self._open & _names(e)]

    def say(self, side: int, *segments: bytes) -> bytes:
        """What the other side reads when this side sends these segments of its stream; what waits is left out."""
        return b"".join(self._pieces(side, segments))

    def send(self, side: int, datagram: bytes) -> bytes:
        """The same for a datagram."""
        payload = self.alg.inspect(side, datagram, self).payload
        return datagram if payload is None else payload

    def _pieces(self, side: int, segments: Iterable[bytes]) -> Iterable[bytes]:
        for segment in segments:
            self._waiting[side] += segment
            while self._waiting[side]:
                if self.alg.done:
                    yield self._waiting[side]
                    self._waiting[side] = b""
                    break
                piece = self.alg.inspect(side, self._waiting[side], self)
                assert 0 <= piece.taken <= len(self._waiting[side])
                if not piece.taken:
                    assert len(self._waiting[side]) <= self.alg.limit
                    break
                yield self._waiting[side][: piece.taken] if piece.payload is None else piece.payload
                self._waiting[side] = self._waiting[side][piece.taken :]


def _names(expected: Expected) -> set[Name]:
    ports = range(expected.port, expected.port + len(expected.applications))
    return {(expected.side, expected.proto, port) for port in ports}
