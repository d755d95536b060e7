"""A line of the traffic log, taken apart again for the sinks that send it in another form."""

from collections.abc import Iterator
from datetime import datetime

import msgspec


class TrafficRecord(msgspec.Struct, frozen=True, gc=False, rename={"from_zone": "from", "to_zone": "to"}):
    """Contract section 5, field by field."""

    event: str
    time: str
    session_id: int
    rule: str | None
    nat_rule: str | None
    application: str | None
    from_zone: str
    to_zone: str
    src: str
    dst: str
    sport: int
    dport: int
    proto: int
    nat_src: str
    nat_dst: str
    nat_sport: int
    nat_dport: int
    bytes_sent: int
    bytes_received: int
    packets_sent: int
    packets_received: int
    start: str
    elapsed: int
    action: str | None
    session_end_reason: str | None
    parent_session_id: int | None
    ingress_interface: str | None
    egress_interface: str | None
    flags: str
    via: str


_decoder = msgspec.json.Decoder(TrafficRecord)


def records(lines: bytes) -> Iterator[TrafficRecord]:
    """One after another; msgspec.ValidationError for what is no record."""
    for line in lines.splitlines():
        yield _decoder.decode(line)


def milliseconds(time: str) -> int:
    """An ISO 8601 time as milliseconds since 1970."""
    return round(datetime.fromisoformat(time).timestamp() * 1000)
