"""What the system log says of exhaustion and of the host, and how standard error says it."""

import logging
import os
import sys

import pytest

from dataplane import journal
from dataplane.counters import DESCRIPTIONS
from dataplane.events import BURST, PERIOD, QUIET, SPELLS, HostLog, Spells, difference
from dataplane.journal import Priority, is_journal
from dataplane.routes import Link, address_from_text

FULL = "session_alloc_failure"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def link(name: str = "in0", *addresses: str, index: int = 3, up: bool = True, mtu: int = 1500) -> Link:
    return Link(name, index, up, mtu, tuple(map(address_from_text, addresses)), ())


@pytest.fixture(autouse=True)
def all_levels(caplog):
    caplog.set_level(logging.INFO)


def test_a_spell_is_said_when_it_begins_and_when_it_ends(caplog):
    """However many packets it costs, and however long it lasts."""
    clock = Clock()
    spells = Spells({FULL: 5}, clock)
    for total in (5, 8, 20, 21):
        spells.look({FULL: total})
        clock.now += 1
    assert [record.getMessage() for record in caplog.records] == [
        "the session table is full: new sessions are refused (session_alloc_failure)"
    ]
    for _ in range(20):
        spells.look({FULL: 21})
        clock.now += 1
    _, end = (record.getMessage() for record in caplog.records)
    assert end.startswith(f"over since {QUIET:.0f} s: the session table is full")
    assert end.endswith("(session_alloc_failure: 16 in 2 s)")


def test_every_spell_has_a_counter():
    """A counter that is renamed would never grow again."""
    assert set(SPELLS) <= set(DESCRIPTIONS)


def test_spells_of_different_kinds_do_not_mix(caplog):
    """Each has its own beginning."""
    spells = Spells({}, Clock())
    spells.look({FULL: 1, "flow_queue_full": 1})
    spells.look({FULL: 2, "flow_queue_full": 2})
    assert len(caplog.records) == 2


def test_changes_of_the_host(caplog):
    """Of what changed, and of nothing else."""
    host = HostLog([link("in0", "10.1.0.1")], Clock())
    host.changed("link", [link("in0", "10.1.0.1", up=False)])
    host.changed("address", [link("in0", "10.1.0.9", "fd00::1", up=False)])
    host.changed("link", [link("in0", "10.1.0.9", "fd00::1", up=False)])
    host.changed("route", [])
    assert [record.getMessage() for record in caplog.records] == [
        "interface in0 is down",
        "interface in0 has got 10.1.0.9",
        "interface in0 has got fd00::1",
        "interface in0 has lost 10.1.0.1",
        "the routes have changed",
    ]


def test_interfaces_come_and_go():
    """And get other names and sizes."""
    assert difference(None, link()) == ["interface in0 is new"]
    assert difference(link(), None) == ["interface in0 is gone"]
    assert difference(link(), link("lan", mtu=9000)) == [
        "interface in0 is now lan",
        "interface lan has an MTU of 9000, not 1500",
    ]


def test_a_flapping_host_does_not_fill_the_log(caplog):
    """Beyond the allowance changes are counted, and the number is said when there is room again."""
    clock = Clock()
    host = HostLog([], clock)
    for _ in range(BURST + 7):
        host.changed("route", [])
    assert len(caplog.records) == BURST
    clock.now += PERIOD
    host.changed("route", [])
    assert [record.getMessage() for record in caplog.records[BURST:]] == [
        "7 further changes of the host were not told",
        "the routes have changed",
    ]


def test_the_journal_gets_priorities(monkeypatch):
    """On every line of a message."""
    record = logging.LogRecord("x", logging.WARNING, "", 1, "one\ntwo", (), None)
    assert Priority("%(name)s: %(message)s").format(record) == "<4>x: one\n<4>two"
    status = os.fstat(sys.stderr.fileno())
    assert is_journal(f"{status.st_dev}:{status.st_ino}")
    assert not is_journal(f"{status.st_dev}:{status.st_ino + 1}")
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert isinstance(journal.handler().formatter, Priority)
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not isinstance(journal.handler().formatter, Priority)
