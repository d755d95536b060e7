"""How long first packets wait, in the buckets of a histogram."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataplane.latency import ABSURD, BOUNDS, Latency

WAITS = st.lists(st.floats(0, 2, allow_nan=False), max_size=50)


def measured(*waits: float) -> Latency:
    made = Latency()
    for seconds in waits:
        made.add(seconds)
    return made


@given(WAITS)
def test_every_bucket_holds_what_is_not_longer(waits):
    """As one counts by hand; the last bucket holds all."""
    read = measured(*waits).read()
    assert read.cumulative == tuple(sum(wait <= bound for wait in waits) for bound in (*BOUNDS, float("inf")))
    assert read.total == pytest.approx(sum(waits))


def test_a_stamp_that_cannot_be_is_not_counted():
    """A clock was set: nobody waits for less than nothing, or for a minute."""
    assert measured(-1.0, ABSURD, 1e9).read().cumulative[-1] == 0


@given(WAITS.filter(bool), st.sampled_from([0.01, 0.5, 0.99, 1.0]))
@example([0.001953125] * 3, 1.0)
def test_a_quantile_lies_in_the_bucket_of_the_true_one(waits, share):
    """Neither side of it: the answer is as exact as the buckets are."""
    true = sorted(waits)[max(-(-int(share * 100) * len(waits) // 100) - 1, 0)]
    at = sum(bound < true for bound in BOUNDS)
    low, high = (0.0, *BOUNDS)[at], (*BOUNDS, BOUNDS[-1])[at]
    assert low <= measured(*waits).read().quantile(share) <= high


def test_without_packets_there_is_no_wait():
    """Zero, and no division by it."""
    assert measured().read().quantile(0.99) == 0
