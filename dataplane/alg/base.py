"""The boundary between a protocol's text and the packets that carry it: what an ALG is told, and what it may say.

An application layer gateway reads the control channel of one session, learns from it which further flows its two ends
are about to open, and asks for them; where addresses are translated it puts the translated ones into the text. It sees
a stream of bytes per side, or datagrams; segments, retransmissions and sequence numbers are inspection.py's.

    side     CLIENT opened the session, SERVER answered; `1 - side` is the other one
    own      an address and port as their side itself knows them
    seen     the same as the other side knows them: what has to stand in the text that it reads

An ALG never raises for what a peer has sent: what it does not understand it leaves alone. It keeps a bounded amount of
memory per session whatever comes. It does no I/O.
"""

from typing import NamedTuple, Protocol

CLIENT, SERVER = 0, 1
TCP, UDP, GRE = 6, 17, 47

LEAST_PORT = 1024
"""No flow is ever expected on a port below: that is where services live."""


class Endpoint(NamedTuple):
    """An address, IPv4 mapped into 128 bits, and a port."""

    address: int
    port: int


class Expected(NamedTuple):
    """Flows that the other side is about to open to ports that `side` has announced as its own.

    `applications` names one application for each of as many consecutive ports from `port` on (RTP and RTCP are a pair).
    The caller is the other end of the control session, from any port unless `caller_port` says which; `anyone`: the
    caller may have any address. `again`: every port may be called more than once.
    """

    side: int
    proto: int
    port: int
    applications: tuple[str, ...]
    caller_port: int = 0
    anyone: bool = False
    again: bool = False


class Control(Protocol):
    """The session whose text an ALG reads."""

    @property
    def ipv4(self) -> bool: ...

    @property
    def translated(self) -> bool:
        """Whether anything in the text may have to be changed."""

    def own(self, side: int) -> Endpoint: ...

    def seen(self, side: int) -> Endpoint: ...

    def expect(self, expected: Expected) -> Endpoint | None:
        """Open the way for these flows: where the other side has to send the first of them to, or None if they are
        refused (a port below LEAST_PORT, no room, no port free). Asking again for the same is answered alike."""

    def forget(self, side: int, proto: int, port: int) -> None:
        """Close the way for what was expected on this port and has not come."""


class Piece(NamedTuple):
    """What an ALG has made of the bytes in front of it: how many it has dealt with, and what goes on in their place.

    taken 0: a whole command is not there yet, show me these bytes again together with the next. payload None: the
    same bytes.
    """

    taken: int
    payload: bytes | None = None


MORE = Piece(0)


class Alg(Protocol):
    """One control channel; made new for each session."""

    limit: int
    """Bytes of one side that it may leave for later; with more than that its inspection ends."""

    done: bool
    """Nothing more needs to be seen of this session."""

    def inspect(self, side: int, data: bytes, control: Control) -> Piece:
        """Look at the next bytes of a side, as many as have come (not empty); of a datagram, at the whole of it."""
