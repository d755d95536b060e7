"""A sink: records go into a bounded queue, and a thread of its own brings them to an outlet that may fail.

    whoever logs ──► write_lines() ──► queue ──► pack() ──► send()
                          │ full                    │ refused
                          └──────── lost, counted ◄─┘ unless the outlet is patient

Whoever logs never waits. A disk that refuses loses what it was given at once, because the records are gone from
traffic.json alone. A server that cannot be reached is tried again with the same records while the queue holds the
later ones; what no longer fits there is lost, the newest first. Either way each lost record is counted, the reason is
said once, and the return once, when it has lasted for SETTLE seconds.

What the kernel has accepted for a connection that then breaks is lost without a count: nobody tells the sender.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

QUEUE_LENGTH = 131_072  # records that may wait for a disk: some 100 MB
BATCH = 4096  # records packed at once
IDLE = 0.2  # seconds between two looks at an empty queue, or at a disk that refuses
RETRY = 1.0  # seconds between two attempts at a server
SETTLE = 2.0  # seconds without a failure until a sink is said to be well: one that flaps would fill the system log
STOP_TIMEOUT = 5.0  # seconds

log = logging.getLogger(__name__)

# One sink at a time packs: a first packet, which needs the interpreter, competes with one busy thread and not with all.
_packing = threading.Lock()

Parcel = tuple[bytes, int]
"""What is sent in one piece, and how many records that are."""


class Outlet:
    """Where a sink's records leave: one thread's. pack() may be heavy but does no I/O; send() and close() do."""

    patient = False
    """Whether the same parcel is worth another attempt."""

    def pack(self, lines: bytes, records: int) -> Iterable[Parcel]:
        """Records of the traffic log, as JSON lines, in the form that they are sent in."""
        return ((lines, records),)

    def send(self, payload: bytes) -> None:
        """All of it or nothing, as far as one can know. Raises OSError."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what is open; the next send() opens it again."""

    def tells_of_earlier(self, error: OSError) -> bool:
        """Whether the failure of this send() proves that what the one before has sent is lost."""
        del error
        return False


class Sink(threading.Thread):
    """One outlet with its queue. `lost(n)` is called with the number of records that could not be written."""

    def __init__(self, name: str, outlet: Outlet, lost: Callable[[int], None], limit: int = QUEUE_LENGTH) -> None:
        super().__init__(name=f"log-{name}", daemon=True)
        self.title = name
        self._outlet = outlet
        self._count_lost = lost
        self._limit = limit
        self._waiting: queue.SimpleQueue[Parcel] = queue.SimpleQueue()
        self._records = 0  # that wait
        self._written = 0
        self._lost = 0
        self._counting = threading.Lock()
        self._ending = threading.Event()
        self._again = threading.Event()  # somebody asks to look at once
        self._reopen = False
        self._last = 0  # records of the last send that succeeded
        self._failure: str | None = None
        self._failed_at = 0.0  # monotonic
        self._works = True  # since then
        self._baffled = False  # a record could not be packed: that is said once

    def write(self, record: Mapping[str, Any]) -> None:
        """Queue a record; never blocks. As a line: a waiting dict would take three times the memory."""
        self.write_lines(msgspec.json.encode(record) + b"\n", 1)

    def write_lines(self, lines: bytes, n: int) -> None:
        """Queue n records that are lines already; never blocks."""
        with self._counting:
            full = self._records + n > self._limit
            self._records += 0 if full else n
        if full:
            self._lose(n)
        else:
            self._waiting.put((lines, n))

    def reopen(self) -> None:
        """Begin anew with the next record: a file that was moved, a server that has come back."""
        self._reopen = True
        self._again.set()

    def status(self) -> dict[str, object]:
        """A row of `show log status`."""
        return {
            "sink": self.title,
            "state": "failing" if self._failure else "up",
            "written": self._written,
            "lost": self._lost,
            "waiting": self._records,
            "error": self._failure,
        }

    def run(self) -> None:
        while not self._ending.is_set() or not self._waiting.empty():
            lines, records = self._take()
            if records:
                self._deliver(lines, records)
            else:
                self._pause(IDLE)
                self._settle()
        self._outlet.close()

    def finish(self) -> None:
        """Begin to end: write what is waiting, but try nothing twice any more."""
        self._ending.set()
        self._again.set()

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """finish(), and wait for it; what is not taken in `timeout` seconds is lost."""
        self.finish()
        self.join(timeout)
        with self._counting:
            left, self._records = self._records, 0
        if left:
            self._lose(left)

    def _take(self) -> Parcel:
        """About BATCH records."""
        batch: list[bytes] = []
        records = 0
        while records < BATCH:
            try:
                lines, n = self._waiting.get_nowait()
            except queue.Empty:
                break
            batch.append(lines)
            records += n
        return b"".join(batch), records

    def _deliver(self, lines: bytes, records: int) -> None:
        for payload, n in self._packed(lines, records):
            self._send(payload, n)
        with self._counting:
            self._records = max(self._records - records, 0)

    def _packed(self, lines: bytes, records: int) -> list[Parcel]:
        """One record that cannot be packed costs neither the others nor the sink."""
        try:
            with _packing:
                return list(self._outlet.pack(lines, records))
        except Exception:
            if records > 1:
                return [parcel for line in lines.splitlines(keepends=True) for parcel in self._packed(line, 1)]
            if not self._baffled:
                self._baffled = True
                log.exception("%s: a record could not be made: %r", self.title, lines)
            self._lose(records)
            return []

    def _send(self, payload: bytes, n: int) -> None:
        """Until the outlet takes it, or it is lost."""
        while True:
            if self._reopen:
                self._reopen = False
                self._outlet.close()
            try:
                self._outlet.send(payload)
            except OSError as error:
                self._failed(error)
                if not self._outlet.patient or self._ending.is_set():
                    self._lose(n)
                    self._pause(IDLE)
                    return
                self._pause(RETRY)
            else:
                self._written += n
                self._last = n
                self._works = True
                self._settle()
                return

    def _failed(self, error: OSError) -> None:
        self._lose(self._last if self._outlet.tells_of_earlier(error) else 0)
        self._outlet.close()
        self._last, self._works, self._failed_at = 0, False, time.monotonic()
        known, self._failure = self._failure, str(error)  # first: the message may come back to this very log
        if not known:
            log.error("%s: %s; records may be lost until this is mended", self.title, error)

    def _settle(self) -> None:
        if self._failure and self._works and time.monotonic() - self._failed_at >= SETTLE:
            self._failure = None
            log.warning("%s takes records again; %d are lost since the start", self.title, self._lost)

    def _lose(self, n: int) -> None:
        with self._counting:
            self._lost += n
        if n:
            self._count_lost(n)

    def _pause(self, seconds: float) -> None:
        """Not while ending: what waits is tried once more and no longer."""
        if not self._ending.is_set():
            self._again.wait(seconds)
            self._again.clear()
