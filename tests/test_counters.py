"""The counters: one list with C's, sampled, filtered, and since the last delta."""

import re

import pytest

from dataplane.counters import DESCRIPTIONS, GlobalCounters, HitCounts
from dataplane.ffi import enum_names, lib
from dataplane.filters import CounterFilter

ENUM = [name.lower() for value, name in enum_names("counter").items() if value < lib.COUNTERS]
DROPS = ENUM[lib.FLOW_PARSE_IP_HDR : lib.DROPS_END]
PANOS = ("pkt_recv", "pkt_sent", "flow_policy_deny", "flow_tcp_non_syn_drop", "flow_fwd_l3_noroute", "tcp_flag_zero")


@pytest.fixture
def clock(monkeypatch):
    """Seconds, moved by the test."""
    now = [1000.0]
    monkeypatch.setattr("dataplane.counters.time.monotonic", lambda: now[0])
    monkeypatch.setattr("dataplane.counters.time.time", lambda: now[0])
    return now


def values(**changed: int) -> dict[str, int]:
    return dict.fromkeys(DESCRIPTIONS, 0) | changed


def names_of(rows: list[dict[str, object]]) -> list[object]:
    return [row["name"] for row in rows]


def test_c_and_python_have_one_list():
    """In the same order, without the mark that ends the drops."""
    assert list(DESCRIPTIONS) == [name for name in ENUM if name != "drops_end"]


def test_what_c_counts_as_a_drop_is_shown_as_one():
    """And nothing else is."""
    assert [name for name, (severity, *_) in DESCRIPTIONS.items() if severity == "drop"] == DROPS


@pytest.mark.parametrize("name", DROPS)
def test_a_drop_says_what_was_dropped(name):
    """Packets, or the session that they would have begun; and why, which the name says too."""
    _, _, _, description = DESCRIPTIONS[name]
    assert re.match(r"(Packets dropped|Sessions refused|Session setup): \w+", description)
    assert name not in ("drop", "dropped")


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_the_words_of_classification_fit_their_columns(name):
    """PAN-OS's severities; one word each, no wider than its column."""
    severity, category, aspect, description = DESCRIPTIONS[name]
    assert severity in ("info", "warn", "error", "drop")
    assert re.fullmatch(r"[a-z]{1,9}", category)
    assert re.fullmatch(r"[a-z]{1,9}", aspect)
    assert len(name) <= 38
    assert description


def test_names_of_panos_are_kept():
    """Those that operators know from there."""
    assert set(PANOS) <= set(DESCRIPTIONS)


def test_without_delta_everything_since_the_start_is_shown(clock):
    """The rate is per second of that time."""
    table = GlobalCounters()
    clock[0] += 10
    rows, elapsed = table.rows(values(pkt_recv=1000), CounterFilter())
    assert elapsed == 10
    assert names_of(rows) == list(DESCRIPTIONS)
    assert rows[0] == {
        "name": "pkt_recv",
        "value": 1000,
        "rate": 100,
        "severity": "info",
        "category": "packet",
        "aspect": "pktproc",
        "description": "Packets received",
    }


def test_delta_counts_since_the_last_delta(clock):
    """The first one since the start; a call without delta in between changes nothing."""
    table, delta = GlobalCounters(), CounterFilter(delta=True, value="non-zero")
    clock[0] += 2
    assert table.rows(values(pkt_recv=5), delta)[0][0]["value"] == 5
    clock[0] += 3
    assert table.rows(values(pkt_recv=7), CounterFilter())[0][0]["value"] == 7
    clock[0] += 1
    rows, elapsed = table.rows(values(pkt_recv=9, pkt_sent=1), delta)
    assert ([row["value"] for row in rows], elapsed) == ([4, 1], 4)
    assert table.rows(values(pkt_recv=9, pkt_sent=1), delta)[0] == []


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        (CounterFilter(value="non-zero"), ["pkt_recv", "flow_policy_deny", "log_record_lost"]),
        (CounterFilter(value="non-zero", severity="drop"), ["flow_policy_deny"]),
        (CounterFilter(value="non-zero", category="packet"), ["pkt_recv"]),
        (CounterFilter(value="non-zero", aspect="resource"), ["log_record_lost"]),
        (CounterFilter(value="non-zero", severity="info", category="flow"), []),
        (CounterFilter(category="no such category"), []),
    ],
)
def test_every_filter_must_hold(wanted, shown):
    """Severity, category, aspect and value together."""
    counted = values(pkt_recv=3, flow_policy_deny=2, log_record_lost=1)
    assert names_of(GlobalCounters().rows(counted, wanted)[0]) == shown


def test_hits_remember_the_first_and_the_last(clock):
    """A rule that was never hit has none."""
    hits = HitCounts()
    hits.add(7)
    clock[0] += 60
    hits.add(7)
    found = hits.of(7)
    assert (found.count, found.first, found.last) == (2, 1000.0, 1060.0)
    assert hits.of(8).count == 0
