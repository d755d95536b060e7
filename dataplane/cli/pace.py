"""The pace of a command that turns out to be long work on a machine whose processors others want.

The lowest priority is not enough. Where two processors are one core's threads, as on most rented machines, what runs on
the one while it has nothing better to do slows the other down all the same; and who has just been woken waits for the
next tick. So while others work more than half of the time that is left to them, such a command also rests, and takes no
more than SHARE of one processor: what its interpreter took to begin is counted, for a script lists again and again.
Where others have less to do, it never rests.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

SHARE = 0.05  # of one processor
CROWDED = 0.5  # of the processors' time that is left to others
STEP = 0.02  # seconds of work between two looks at what the others do
MOST = 0.1  # seconds of work that are rested for at once
STATISTICS = Path("/proc/stat")  # its first line: "cpu", user nice system idle iowait irq softirq steal in ticks
TICK = os.sysconf("SC_CLK_TCK")  # of them in a second


class Look(NamedTuple):
    """What has been done until some moment."""

    worked: float  # seconds, by this process
    ticks: int  # of all processors
    idle: int  # of these, without anything to do


class Pace:
    """Says when to rest, from its making on."""

    def __init__(self) -> None:
        self._paid = 0.0  # seconds of work that were rested for
        self._seen = _look()

    def rest(self) -> None:
        """Sleep as long as the work since the last rest asks for, if others want the processors."""
        if time.process_time() - self._seen.worked < STEP:
            return
        now = _look()
        if _others(self._seen, now) > CROWDED:
            time.sleep(min(now.worked - self._paid, MOST) * (1 / SHARE - 1))
            self._paid = now.worked
            now = _look()
        self._seen = now


def _look() -> Look:
    return Look(time.process_time(), *_ticks())


def _others(before: Look, now: Look) -> float:
    """How much they took of the time that was left to them meanwhile."""
    idle = now.idle - before.idle
    left = now.ticks - before.ticks - (now.worked - before.worked) * TICK
    return 1 - idle / max(left, idle, 1)


def _ticks() -> tuple[int, int]:
    """All processors' time, and how much of it they had nothing to do."""
    ticks = [int(word) for word in STATISTICS.read_text().partition("\n")[0].split()[1:9]]
    return sum(ticks), sum(ticks[3:5])
