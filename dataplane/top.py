"""Who has most of the session table: what top.c sums up, by name.

A rate is what has grown within PAUSE seconds, for which the caller waits.
"""

import time
from typing import Any, NamedTuple

from dataplane.errors import DataplaneError
from dataplane.ffi import ffi, lib
from dataplane.sessions import SessionTable

PAUSE = 1.0
BY = {
    "source": lib.TOP_SOURCE,
    "destination": lib.TOP_DESTINATION,
    "rule": lib.TOP_RULE,
    "application": lib.TOP_APPLICATION,
    "zone": lib.TOP_ZONE,
}
ORDERS = {"sessions": lib.TOP_SESSIONS, "bytes": lib.TOP_BYTES, "packets": lib.TOP_PACKETS, "rate": lib.TOP_GROWTH}
NO_MEMORY = "no memory for the sums"


class Amounts(NamedTuple):
    """Of sessions together; `growth` is in bytes since the mark."""

    sessions: int
    bytes: int
    packets: int
    growth: int


class Group(NamedTuple):
    """Sessions that have the key in common: an address, or the number of a rule, application or zone."""

    key: int
    amounts: Amounts


class Top(NamedTuple):
    """The largest groups first; `all` sums up every session, `left_out` those for whose group there was no room."""

    groups: list[Group]
    found: int  # groups, shown or not
    all: Amounts
    left_out: Amounts
    seconds: float  # that the growth took; 0: none was measured


def top(table: SessionTable, session_filter: Any, by: str, order: str, n: int) -> Top:
    """The n largest groups; DataplaneError where memory for the sums is lacking."""
    if order != "rate":
        return _sum_up(table, session_filter, by, order, n)
    begun = time.monotonic()
    marks = lib.top_mark(table.pointer, session_filter)
    if marks == ffi.NULL:
        raise DataplaneError(NO_MEMORY)
    try:
        time.sleep(PAUSE)
        return _sum_up(table, session_filter, by, order, n, marks, time.monotonic() - begun)
    finally:
        lib.top_forget(marks)


def _sum_up(
    table: SessionTable, session_filter: Any, by: str, order: str, n: int, marks: Any = ffi.NULL, seconds: float = 0.0
) -> Top:
    rows, total = ffi.new("struct top_row[]", n), ffi.new("struct top_total *")
    found = lib.table_top(table.pointer, session_filter, BY[by], ORDERS[order], marks, rows, n, total)
    if found < 0:
        raise DataplaneError(NO_MEMORY)
    is_address = by in ("source", "destination")
    groups = [Group(_key(rows[i].key, is_address), Amounts(*rows[i].amount)) for i in range(found)]
    return Top(groups, total.groups, Amounts(*total.amount), Amounts(*total.left_out), seconds)


def _key(raw: Any, is_address: bool) -> int:
    data = bytes(raw)
    return int.from_bytes(data) if is_address else int.from_bytes(data[:4], "little")
