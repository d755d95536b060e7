"""Waiting for a condition: the only place of the labs that lets time pass."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

INTERVAL = 0.02  # seconds between two looks


class LabError(Exception):
    """The lab, or a program that runs in it, did not do what the test relies on."""


def poll(predicate: Callable[[], T], seconds: float, what: str) -> T:
    """The first true value of `predicate`, asked again and again for so many seconds.

    Raises LabError, naming `what` was waited for, when the time is up.
    """
    deadline = time.monotonic() + seconds
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(INTERVAL)
    return value
