"""What the system log says that nobody's code runs into: spells of exhaustion, and changes of the host.

A spell begins when a counter grows and ends when it has been still for QUIET seconds; both are said once, however many
packets it cost. Changes of links, addresses and routes are said one by one, but no more than BURST in PERIOD seconds.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from dataplane.policy.objects import address_text
from dataplane.routes import Link

QUIET = 10.0  # seconds
BURST, PERIOD = 30, 10.0  # messages, seconds

SPELLS = {
    "session_alloc_failure": "the session table is full: new sessions are refused",
    "session_source_limit": "a source has all the sessions that it may have: further ones are refused",
    "nat_dipp_alloc_failure": "a NAT pool has no port left: new sessions are refused",
    "nat_dip_alloc_failure": "a NAT pool has no address left: new sessions are refused",
    "flow_queue_full": "a queue is full: the kernel drops packets",
    "flow_queued_too_long": "packets have waited too long in a queue and are dropped",
    "queue_receive_overrun": "the receive buffer of a queue is overrun",
    "log_record_lost": "log records are lost",
}
"""By counter."""

log = logging.getLogger(__name__)

Clock = Callable[[], float]


class Spells:
    """Looks at the counters now and then. One thread's."""

    def __init__(self, counters: Mapping[str, int], clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._last = {name: counters.get(name, 0) for name in SPELLS}
        self._running: dict[str, _Spell] = {}

    def look(self, counters: Mapping[str, int]) -> None:
        now = self._clock()
        for name, text in SPELLS.items():
            grown = counters.get(name, 0) - self._last[name]
            self._last[name] += grown
            spell = self._running.get(name)
            if grown and spell is None:
                self._running[name] = _Spell(now, grown)
                log.warning("%s (%s)", text, name)
            elif grown and spell is not None:
                spell.go_on(now, grown)
            elif spell is not None and now - spell.last >= QUIET:
                del self._running[name]
                log.warning("over since %.0f s: %s (%s: %d in %.0f s)", now - spell.last, text, name, *spell.sum())


class _Spell:
    def __init__(self, now: float, n: int) -> None:
        self._first = self.last = now
        self._n = n

    def go_on(self, now: float, n: int) -> None:
        self.last = now
        self._n += n

    def sum(self) -> tuple[int, float]:
        return self._n, self.last - self._first


class HostLog:
    """Says how the host's links and addresses differ from the last time. One thread's."""

    def __init__(self, links: Iterable[Link], clock: Clock = time.monotonic) -> None:
        self._links = {link.ifindex: link for link in links}
        self._allowance = Allowance(clock)

    def changed(self, kind: str, links: Iterable[Link]) -> None:
        """After one of "link", "address", "route" has changed."""
        if kind == "route":
            self._say("the routes have changed")
            return
        before, self._links = self._links, {link.ifindex: link for link in links}
        for index in sorted(before.keys() | self._links.keys()):
            for text in difference(before.get(index), self._links.get(index)):
                self._say(text)

    def _say(self, text: str) -> None:
        if self._allowance.admits():
            if self._allowance.refused:
                log.warning("%d further changes of the host were not told", self._allowance.take_refused())
            log.info("%s", text)


class Allowance:
    """At most BURST in each PERIOD; counts what it refuses."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock()
        self._admitted = 0
        self.refused = 0

    def admits(self) -> bool:
        now = self._clock()
        if now - self._began >= PERIOD:
            self._began, self._admitted = now, 0
        if self._admitted == BURST:
            self.refused += 1
            return False
        self._admitted += 1
        return True

    def take_refused(self) -> int:
        refused, self.refused = self.refused, 0
        return refused


def difference(old: Link | None, new: Link | None) -> list[str]:
    """What to say of one interface."""
    if old is None or new is None:
        there = new or old
        return [f"interface {there.name} is {'new' if new else 'gone'}"] if there else []
    said = []
    if old.name != new.name:
        said.append(f"interface {old.name} is now {new.name}")
    if old.up != new.up:
        said.append(f"interface {new.name} is {'up' if new.up else 'down'}")
    if old.mtu != new.mtu:
        said.append(f"interface {new.name} has an MTU of {new.mtu}, not {old.mtu}")
    said += [f"interface {new.name} has got {address_text(a)}" for a in new.addresses if a not in old.addresses]
    said += [f"interface {new.name} has lost {address_text(a)}" for a in old.addresses if a not in new.addresses]
    return said
