"""What systemd is told of the daemon, by sd_notify(3): ready, reloading, stopping, and again and again: alive.

Alive means that every vital thread moves. Each of them counts its turns, of which it makes several a second with or
without traffic: the hot workers in C, the slow path, the ager. The main thread looks at the counts and pings when all
of them have grown since the last ping. One that stands still ends the pings; WatchdogSec later systemd ends the daemon
and starts another. Its rules stay in force meanwhile, so what is queued for a thread that does not move is dropped.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

PINGS = 4  # in the time that systemd waits for one: a look that comes late costs nothing

log = logging.getLogger(__name__)


def notify(*lines: str) -> None:
    """Tell whoever started us, if it wants to know."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto("\n".join(lines).encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            log.warning("systemd cannot be told %s: %s", ", ".join(lines), error)


@contextmanager
def reloading() -> Iterator[None]:
    """systemd waits for what happens inside before it calls a reload done."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
    try:
        yield
    finally:
        notify("READY=1")


def patience() -> float | None:
    """Seconds after which systemd gives up a daemon that does not ping; None if it never does."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1e6 or None


class Watchdog:
    """Pings as long as all of `turns()` grow: a count by the name of each vital thread."""

    def __init__(self, turns: Callable[[], Mapping[str, int]]) -> None:
        self._turns = turns
        waits = patience()
        self._interval = None if waits is None else waits / PINGS
        self._pinged = time.monotonic()
        self._last = turns()
        self._stuck: list[str] = []

    def look(self) -> None:
        """To be called many times in an interval; does nothing unless systemd waits for pings and one is due."""
        if self._interval is None or time.monotonic() - self._pinged < self._interval:
            return
        turns = self._turns()
        stuck = [name for name, count in turns.items() if count == self._last.get(name)]
        if stuck != self._stuck:
            self._complain(stuck)
        if not stuck:
            self._pinged, self._last = time.monotonic(), turns
            notify("WATCHDOG=1")

    def _complain(self, stuck: list[str]) -> None:
        self._stuck = stuck
        if stuck:
            log.critical("no progress of %s: systemd is not told that the daemon lives", ", ".join(stuck))
        else:
            log.info("every thread moves again")
