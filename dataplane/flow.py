"""The values that travel between the rooms: a flow's key, what was decided for it, a session as it was at one moment.

Addresses are 128-bit ints with IPv4 mapped, ports are host order, times are seconds. Rules, applications and interfaces
are numbers here; names.py knows what they are called. All are named tuples: one of each is made per new session, and a
frozen dataclass costs four times as much to make.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dataplane.policy.compile import Pool


class FlowKey(NamedTuple):
    """The 6-tuple of one direction and its family (4 or 6)."""

    src: int
    dst: int
    sport: int
    dport: int
    proto: int
    zone: int
    family: int


class Translation(NamedTuple):
    """What becomes of a session's addresses and ports; None leaves a field as it is.

    With `ports` the source port is drawn from that range (first, last) of `source`'s pool, without it it is kept.
    With a `binding` the source is what that pool has bound it to, beyond this session (bindings.py); `source` and
    `ports` are then what a dynamic-ip pool falls back to, or what a persistent one binds.
    """

    source: int | None = None
    ports: tuple[int, int] | None = None
    destination: int | None = None
    destination_port: int | None = None
    source_port: int | None = None  # no other than this one
    binding: "Pool | None" = None


class Decision(NamedTuple):
    """What the slow path decided for the first packet of a flow; installing it is one call."""

    discard: bool
    egress_zone: int
    application: int  # row
    rule: int  # number
    ingress: int  # interface index
    egress: int
    nat_rule: int | None = None  # number
    translation: Translation | None = None
    log_end: bool = False
    host: bool = False
    parent: int = 0
    inspected: bool = False  # an ALG reads it
    predicted: tuple[int, int] | None = None  # id and generation of the PREDICT session that it was expected as
    by_server: bool = False  # who made it expected; else its parent's client


class Session(NamedTuple):
    """One session as it was when it was copied."""

    id: int
    generation: int
    c2s: FlowKey
    s2c: FlowKey
    state: str
    type: str
    end_reason: str | None  # None while it is alive
    bytes: tuple[int, int]  # c2s, s2c
    packets: tuple[int, int]
    timeout: float  # the timer in force
    time_to_live: float
    start: int  # since 1970
    elapsed: float
    application: int
    rule: int
    nat_rule: int | None
    ingress: int
    egress: int
    source_nat: bool
    destination_nat: bool
    log_end: bool
    host: bool
    parent: int
    inspected: bool = False
    predicted: bool = False  # it was expected, or still is
    by_server: bool = False
    cached: bool = False  # C has begun it, by what was decided for another of its class
    offloaded: bool = False  # the kernel forwards it
    adjusted: bool = False  # its sequence numbers are translated
    watched: bool = False  # by packet diagnosis
