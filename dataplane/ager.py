"""The ager: ends sessions whose time is over, logs them, frees them. Expiry is exact to a tenth of a second.

It also does, once a second, what must not wait for traffic: the rates of `show session info`, the list of ports that
sockets of the firewall hold, and the count of packets that the kernel has dropped before anybody here saw them. How
late it is itself it knows from when the look before began: what was not due then may have been a moment later.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from dataplane.ffi import lib
from dataplane.sessions import EXPIRE_BATCH, Copies, SessionTable
from dataplane.sockets import queue_states, used_ports

TICK = 0.1  # seconds
SECOND = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, over the last second."""

    packets: float = 0.0
    kilobits: float = 0.0
    connections: float = 0.0


class Ager(threading.Thread):
    """`begun()` is called in every tick, after what has ended is known and before it is told: who logs there tells the
    start of a session before its end. `ended(sessions)` is called with those that end, then `leaving(sessions)` before
    they are freed. `watch(counters)` is called once a second.
    """

    def __init__(
        self,
        table: SessionTable,
        begun: Callable[[], None],
        ended: Callable[[Copies], None],
        leaving: Callable[[Copies], None],
        queues: Collection[int] = (),
        watch: Callable[[Mapping[str, int]], None] = lambda counters: None,
    ) -> None:
        super().__init__(name="ager", daemon=True)
        self.rates = Rates()
        self.lag = 0.0  # seconds: the most that it was behind() in the last whole second
        self.deepest: Counter[int] = Counter()  # queue -> packets that were seen to wait in it, once a second, at most
        self.turns = 0  # for the watchdog
        self._table = table
        self._begun = begun
        self._ended = ended
        self._leaving = leaving
        self._queues = queues
        self._watch = watch
        self._queue_drops = 0
        self._ending = threading.Event()
        self._longest = 0.0
        self._looked = time.monotonic()  # when the last look that was finished began
        self._sampled = time.monotonic()
        self._last = table.counters()

    def start(self) -> None:
        """Ports that are in use are known before the first packet."""
        self._table.set_reserved_ports(*used_ports())
        super().start()

    def run(self) -> None:
        while not self._ending.wait(TICK):
            try:
                self.expire()
                if time.monotonic() - self._sampled >= SECOND:
                    self._every_second()
            except Exception:
                log.exception("the ager stumbled and goes on")

    def stop(self) -> None:
        self._ending.set()
        self.join()

    def expire(self) -> None:
        """End everything whose time is over now."""
        begun = time.monotonic()
        while True:
            self.turns += 1
            sessions = self._table.expire()
            try:
                self._begun()
                self._ended(sessions)
            finally:  # whatever becomes of a record: nobody else will ever see these sessions
                lib.table_count(self._table.pointer, lib.SHARD_AGER, lib.SESSION_EXPIRED, len(sessions))
                self._leaving(sessions)
                self._table.free(sessions)
            if len(sessions) < EXPIRE_BATCH:
                break
        self._longest = max(self._longest, self.behind)
        self._looked = begun

    @property
    def behind(self) -> float:
        """Seconds, beyond a tick, for which a session that is due may have waited already. Any thread."""
        return max(time.monotonic() - self._looked - TICK, 0.0)

    def _every_second(self) -> None:
        now, counters = time.monotonic(), self._table.counters()
        seconds = now - self._sampled
        grown = {name: (value - self._last[name]) / seconds for name, value in counters.items()}
        packets, octets = (
            grown[f"{kind}_recv"] - grown[f"{kind}_again"] + grown[f"{kind}_offload"] for kind in ("pkt", "bytes")
        )
        self.rates = Rates(packets, octets * 8 / 1000, grown["session_installed"])
        self._sampled, self._last = now, counters
        self.lag, self._longest = self._longest, 0.0
        self._table.set_reserved_ports(*used_ports())
        self._count_queue_drops()
        self._watch(counters)

    def _count_queue_drops(self) -> None:
        states = queue_states(self._queues)
        self.deepest |= Counter({number: state.waiting for number, state in states.items()})
        drops = sum(state.full + state.lost for state in states.values())
        fresh = max(drops - self._queue_drops, 0)  # fewer than before: the queues are being closed
        lib.table_count(self._table.pointer, lib.SHARD_AGER, lib.FLOW_QUEUE_FULL, fresh)
        self._queue_drops = drops
