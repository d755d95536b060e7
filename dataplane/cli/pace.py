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

SHARE = 0.05  # of one processor
CROWDED = 0.5  # of the processors' time that is left to others
STEP = 0.02  # seconds of work between two looks at what the others do
MOST = 0.1  # seconds of work that are rested for at once
STATISTICS = Path("/proc/stat")  # its first line: "cpu", user nice system idle iowait irq softirq steal in ticks
TICK = os.sysconf("SC_CLK_TCK")  # of them in a second


class Pace:
    """Says when to rest, from its making on."""

    def __init__(self) -> None:
        self._paid = 0.0
        self._look()

    def rest(self) -> None:
        """Sleep as long as the work since the last rest asks for, if others want the processors."""
        now = time.process_time()
        if now - self._seen < STEP:
            return
        if self._others(now - self._seen) > CROWDED:
            time.sleep(min(now - self._paid, MOST) * (1 / SHARE - 1))
            self._paid = now
        self._look()

    def _look(self) -> None:
        self._seen, self._ticks = time.process_time(), _ticks()

    def _others(self, worked: float) -> float:
        """How much they took of the time that was left to them since the last look."""
        total, idle = (now - before for now, before in zip(_ticks(), self._ticks, strict=True))
        return 1 - idle / max(total - worked * TICK, idle, 1)


def _ticks() -> tuple[int, int]:
    """All processors' time, and how much of it they had nothing to do."""
    line = STATISTICS.read_text().partition("\n")[0]
    user, nice, system, idle, waiting, *rest = map(int, line.split()[1:9])
    return sum((user, nice, system, idle, waiting, *rest)), idle + waiting
