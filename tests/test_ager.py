"""The ager's account of itself: how late it is, and what it has counted."""

from dataclasses import dataclass, field

import pytest

from dataplane.ager import TICK, Ager
from dataplane.flow import Decision, FlowKey
from dataplane.sessions import Copies, SessionTable

V4 = 0xFFFF << 32


@dataclass
class Clock:
    """Seconds, moved by the test."""

    now: float = 1000.0
    spent: list[float] = field(default_factory=list)  # by each look, on what it logs

    def log(self) -> None:
        self.now += self.spent.pop(0) if self.spent else 0.0


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("dataplane.ager.time.monotonic", lambda: made.now)
    return made


@pytest.fixture
def table():
    made = SessionTable(100)
    yield made
    made.close()


def ager_of(table: SessionTable, clock: Clock) -> Ager:
    def nothing(_sessions: Copies) -> None: ...

    return Ager(table, clock.log, nothing, nothing)


def test_who_looks_every_tick_is_in_time(table, clock):
    """A tick is what it may take."""
    ager = ager_of(table, clock)
    for _ in range(20):
        clock.now += TICK
        ager.expire()
        ager._every_second()
        assert ager.lag == pytest.approx(0, abs=1e-6)


def test_a_look_that_takes_long_is_late(table, clock):
    """By what it took; the next one, which also had to wait for it, is told by itself."""
    ager = ager_of(table, clock)
    clock.spent = [2.0]
    clock.now += TICK
    ager.expire()
    ager._every_second()
    assert ager.lag == pytest.approx(2.0)
    clock.now += TICK / 2
    ager.expire()
    ager._every_second()
    assert ager.lag == pytest.approx(2.0 - TICK / 2)


def test_an_ager_that_is_stuck_is_seen_from_outside(table, clock):
    """Whoever asks meanwhile is told how long it has been."""
    ager = ager_of(table, clock)
    clock.now += 7 + TICK
    assert ager.behind == pytest.approx(7.0)


def test_an_end_counts_by_its_reason(table, clock):
    """As it is logged: of several causes the one that goes first."""
    ager = ager_of(table, clock)
    for port, reason in ((1, "unknown"), (2, "policy-deny"), (3, "tcp-fin")):
        decision = Decision(discard=False, egress_zone=2, application=0, rule=0, ingress=1, egress=2)
        session = table.install(FlowKey(V4 | 1, V4 | 2, port, 53, 17, 1, 4), decision, 0)
        table.close_session(session, reason)
    ager.expire()
    counted = table.counters()
    ends = {name: n for name, n in counted.items() if name.startswith("session_end_") and n}
    assert ends == {"session_end_unknown": 1, "session_end_policy_deny": 1, "session_end_tcp_fin": 1}
    assert (counted["session_expired"], counted["session_freed"]) == (3, 3)
