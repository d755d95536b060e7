"""What sessions and rules are shown with everywhere: times, flags, names. A session's row is made in C (row.c)."""

from datetime import UTC, datetime
from functools import lru_cache

from dataplane.flow import Session
from dataplane.names import Names

NAT_FLAGS = {(False, False): "", (True, False): "NS", (False, True): "ND", (True, True): "NB"}


def nat_flags(session: Session) -> str:
    """The Flag column: NS, ND, NB or nothing."""
    return NAT_FLAGS[session.source_nat, session.destination_nat]


def nat_rule_name(session: Session, names: Names) -> str | None:
    return None if session.nat_rule is None else names.nat_rules.name(session.nat_rule)


def iso_time(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, to the second."""
    return f"{_date_and_time(int(seconds))}Z"


def iso_time_ms(seconds: float) -> str:
    """The same to the millisecond."""
    return f"{_date_and_time(int(seconds))}.{int(seconds * 1000) % 1000:03}Z"


@lru_cache(maxsize=64)  # records of the same few seconds come in bursts
def _date_and_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
