"""Signals that come while nobody looks."""

import threading

import pytest

from dataplane import stopping


class Interrupted(threading.Event):
    """A signal comes right after each look."""

    def is_set(self) -> bool:
        seen = super().is_set()
        self.set()
        return seen


@pytest.mark.parametrize("what", ["reload", "reopen"])
def test_a_signal_that_comes_during_a_look_is_seen_by_the_next(monkeypatch, what):
    """It is not taken for the one that was looked for."""
    monkeypatch.setattr(stopping, f"_{what}", Interrupted())
    take = getattr(stopping, f"take_{what}")
    assert [take(), take()] == [False, True]
