"""How long first packets wait: from their arrival in the kernel to the verdict that Python has given them.

The buckets are those of a Prometheus histogram, so that a scrape copies them and computes nothing. A packet whose stamp
a clock that was set has made absurd is not counted.
"""

from bisect import bisect_left
from itertools import accumulate
from typing import NamedTuple

BOUNDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)  # seconds
ABSURD = 60.0


class Distribution(NamedTuple):
    """How many have waited for at most each bound, the last being infinite; and all of their seconds together."""

    cumulative: tuple[int, ...]
    total: float

    def quantile(self, share: float) -> float:
        """Seconds within which that share of the packets had their verdict, linear inside a bucket; 0 without packets.

        Beyond the last bound it is that bound.
        """
        wanted = share * self.cumulative[-1]
        if not wanted:
            return 0.0
        at = next(i for i, n in enumerate(self.cumulative) if n >= wanted)
        if at == len(BOUNDS):
            return BOUNDS[-1]
        low, before = (BOUNDS[at - 1], self.cumulative[at - 1]) if at else (0.0, 0)
        beyond = (BOUNDS[at] - low) * (wanted - before) / (self.cumulative[at] - before)
        return min(low + beyond, BOUNDS[at])  # which the rounded sum may pass


class Latency:
    """One writer, any number of readers: a reader may see a packet in its bucket and not yet in the sum."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._total = 0.0

    def add(self, seconds: float) -> None:
        if 0 <= seconds < ABSURD:
            self._counts[bisect_left(BOUNDS, seconds)] += 1
            self._total += seconds

    def read(self) -> Distribution:
        return Distribution(tuple(accumulate(self._counts)), self._total)
