"""How busy the firewall is and was: what `show running resource-monitor` shows.

A thread of its own looks once a second, so that one which is stuck is seen to be. A second is kept for a minute; 60
seconds become a minute, 60 minutes an hour, 24 hours a day and 7 days a week, each as its average and its maximum, so
that a quarter of a year takes 164 rows. Rows are in percent.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

SECOND = 1.0
TICKS = os.sysconf("SC_CLK_TCK")  # of processor time, in a second

# period, how many are kept, how many make one of the next
PERIODS = (("second", 60, 60), ("minute", 60, 60), ("hour", 24, 24), ("day", 7, 7), ("week", 13, 13))
KEPT = {period: kept for period, kept, _ in PERIODS}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """Percent by what is measured, over one period."""

    average: Mapping[str, float]
    maximum: Mapping[str, float]


class History:
    """The rows of every period, in bounded memory. One writer, any number of readers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, deque[Row]] = {period: deque(maxlen=kept) for period, kept, _ in PERIODS}
        self._fresh = dict.fromkeys(self._rows, 0)  # that are in no row of the next period yet

    def add(self, sample: Mapping[str, float]) -> None:
        """One second."""
        with self._lock:
            row = Row(sample, sample)
            for period, _, step in PERIODS:
                self._rows[period].append(row)
                self._fresh[period] = (self._fresh[period] + 1) % step
                if self._fresh[period]:
                    return
                row = _summary(list(self._rows[period])[-step:])

    def last(self, period: str, n: int) -> list[Row]:
        """At most n rows, the newest first."""
        with self._lock:
            return list(islice(reversed(self._rows[period]), n))


def _summary(rows: Sequence[Row]) -> Row:
    names = rows[-1].average
    return Row(
        {name: sum(row.average.get(name, 0.0) for row in rows) / len(rows) for name in names},
        {name: max(row.maximum.get(name, 0.0) for row in rows) for name in names},
    )


class ThreadLoads:
    """Percent of a processor that each thread has used since it was asked for last."""

    def __init__(self, threads: Callable[[], Mapping[str, int]]) -> None:
        self._threads = threads  # name -> id of the kernel
        self._asked = time.monotonic()
        self._used: dict[str, float] = {}

    def read(self) -> dict[str, float]:
        now, used = time.monotonic(), self.seconds()
        elapsed, self._asked = now - self._asked, now
        before, self._used = self._used, used
        return {name: min(100 * (s - before.get(name, s)) / elapsed, 100.0) for name, s in used.items()}

    def seconds(self) -> dict[str, float]:
        """Processor time of each thread since it began; one that has ended is left out."""
        found = {name: _processor_seconds(tid) for name, tid in self._threads().items()}
        return {name: seconds for name, seconds in found.items() if seconds is not None}


def _processor_seconds(tid: int) -> float | None:
    """From fields 14 and 15 of proc(5), counted behind the name, which may hold anything."""
    try:
        fields = Path(f"/proc/self/task/{tid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return (int(fields[11]) + int(fields[12])) / TICKS


class Resources(threading.Thread):
    """Samples both kinds of rows from start() to stop()."""

    def __init__(self, loads: ThreadLoads, utilization: Callable[[], Mapping[str, float]]) -> None:
        super().__init__(name="resources", daemon=True)
        self.loads = loads
        self.load = History()
        self.utilization = History()
        self._utilization = utilization
        self._ending = threading.Event()

    def run(self) -> None:
        self.loads.read()
        while not self._ending.wait(SECOND):
            try:
                self.load.add(self.loads.read())
                self.utilization.add(self._utilization())
            except Exception:
                log.exception("a second of the resource monitor is missing")

    def stop(self) -> None:
        self._ending.set()
        self.join()
