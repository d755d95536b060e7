"""A long list rests while others want the processors, for as long as its share asks, and never on a machine at leisure.

Time is ours here: a processor's work and the kernel's statistics are what a test says they are.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dataplane.cli import pace
from dataplane.cli.pace import MOST, SHARE, STEP, TICK, Pace

PROCESSORS = 2


@dataclass
class Machine:
    """PROCESSORS of them, on which others work the share `others` of what we leave to them."""

    statistics: Path
    others: float = 0.0
    worked: float = 0.0  # by us, seconds
    user: float = 1000.0  # ticks
    idle: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def work(self, seconds: float) -> None:
        """We do, all the time on one of them."""
        self.worked += seconds
        left = (PROCESSORS - 1) * seconds * TICK
        self._pass(seconds * TICK + left * self.others, left * (1 - self.others))

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        left = PROCESSORS * seconds * TICK
        self._pass(left * self.others, left * (1 - self.others))

    def _pass(self, user: float, idle: float) -> None:
        self.user += user
        self.idle += idle
        words = [0, 0, self.user, self.idle, 0, 0, 0, 0, 0, 0]
        self.statistics.write_text("cpu  " + " ".join(str(int(word)) for word in words) + "\ncpu0 1 2 3 4\n")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "stat")
    monkeypatch.setattr(pace, "STATISTICS", made.statistics)
    monkeypatch.setattr(time, "process_time", lambda: made.worked)
    monkeypatch.setattr(time, "sleep", made.sleep)
    made.work(0.06)  # an interpreter begins
    return made


def listing(machine: Machine, seconds: float) -> None:
    """A list of so much work, in blocks of a millisecond."""
    own = Pace()
    for _ in range(round(seconds * 1000)):
        machine.work(0.001)
        own.rest()


@pytest.mark.parametrize("others", [0.0, 0.4])
def test_a_machine_at_leisure(machine, others):
    """No rest."""
    machine.others = others
    listing(machine, 1.0)
    assert machine.slept == []


@pytest.mark.parametrize("others", [0.7, 1.0])
def test_a_machine_that_is_wanted(machine, others):
    """SHARE of the time is worked, the interpreter's beginning counted, but for a last step that is not rested for."""
    machine.others = others
    listing(machine, 1.0)
    share = machine.worked / (machine.worked + sum(machine.slept))
    assert share == pytest.approx(SHARE, rel=0.05)
    assert len(machine.slept) <= 1.0 / STEP


def test_what_was_done_long_before_is_not_rested_for(machine):
    """A shell that has worked for a minute, and lists: no rest is longer than for MOST."""
    machine.work(60)
    machine.others = 1.0
    listing(machine, 0.1)
    assert machine.slept[0] == pytest.approx(MOST * (1 / SHARE - 1))
    assert sum(machine.slept) <= (MOST + 0.1) / SHARE


def test_others_come_and_go(machine):
    """Rests begin and end with them."""
    listing(machine, 0.1)
    machine.others = 1.0
    listing(machine, 0.1)
    rests = len(machine.slept)
    machine.others = 0.0
    listing(machine, 0.1)
    assert rests > 0
    assert len(machine.slept) == rests


def test_the_kernels_own_statistics_are_read():
    """Of this machine, whatever it does now."""
    total, idle = pace._ticks()
    assert 0 <= idle <= total
