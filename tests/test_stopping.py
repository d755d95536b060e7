"""Signals that ask the daemon for something."""

import threading

import pytest

from dataplane import stopping


class Late(threading.Event):
    """Is asked for just after somebody has looked."""

    def is_set(self) -> bool:
        found = super().is_set()
        self.set()
        return found


@pytest.mark.parametrize(("name", "take"), [("_reload", stopping.take_reload), ("_reopen", stopping.take_reopen)])
def test_a_signal_that_comes_while_one_looks_is_not_lost(monkeypatch, name, take):
    """It is taken at the next look, and once."""
    event = Late()
    monkeypatch.setattr(stopping, name, event)
    assert [take(), take()] == [False, True]
    monkeypatch.setattr(stopping, name, threading.Event())
    assert take() is False
