"""The logs: what a record of the traffic log says, and a thread that writes records so that nobody waits for a disk.

Records are contract section 5. Whoever logs appends to a bounded queue and goes on; when the queue is full, or the disk
refuses, records are lost and counted.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from dataplane.flow import Session
from dataplane.names import Names
from dataplane.policy.objects import address_text
from dataplane.views import iso_time, iso_time_ms, nat_flags, nat_rule_name

QUEUE_LENGTH = 131_072  # records that may wait for the disk: some 100 MB
BATCH = 4096  # records written at once
IDLE = 0.2  # seconds between two looks at an empty queue
STOP_TIMEOUT = 5.0  # seconds

log = logging.getLogger(__name__)


def traffic_record(event: str, session: Session, names: Names, action: str, reason: str | None) -> dict[str, Any]:
    """One line of traffic.json; `event` is start, end, deny or drop, `reason` null for a start."""
    c2s, s2c = session.c2s, session.s2c
    return {
        "event": event,
        "time": iso_time_ms(time.time()),
        "session_id": session.id,
        "rule": names.rules.name(session.rule) or None,
        "nat_rule": nat_rule_name(session, names),
        "application": names.applications.name(session.application),
        "from": names.zone(c2s.zone),
        "to": names.zone(s2c.zone),
        "src": address_text(c2s.src),
        "dst": address_text(c2s.dst),
        "sport": c2s.sport,
        "dport": c2s.dport,
        "proto": c2s.proto,
        "nat_src": address_text(s2c.dst),
        "nat_dst": address_text(s2c.src),
        "nat_sport": s2c.dport,
        "nat_dport": s2c.sport,
        "bytes_sent": session.bytes[0],
        "bytes_received": session.bytes[1],
        "packets_sent": session.packets[0],
        "packets_received": session.packets[1],
        "start": iso_time(session.start),
        "elapsed": int(session.elapsed),
        "action": action,
        "session_end_reason": reason,
        "parent_session_id": session.parent or None,
        "ingress_interface": names.interface(session.ingress),
        "egress_interface": names.interface(session.egress),
        "flags": nat_flags(session),
        "via": "cache" if session.cached else "slow",
    }


class SystemLog(logging.Handler):
    """What the daemon says about itself, as lines of system.json."""

    def __init__(self, writer: "LogWriter") -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        when, severity = iso_time_ms(record.created), record.levelname.lower()
        self._writer.write({"time": when, "severity": severity, "source": record.name, "message": text})


def append(path: Path, lines: bytes) -> None:
    """Append all of it or nothing: a torn line would spoil the record that follows it. Raises OSError."""
    with path.open("ab", buffering=0) as file:
        size, left = os.fstat(file.fileno()).st_size, memoryview(lines)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(size)
            raise


class LogWriter(threading.Thread):
    """Appends JSON lines to a file. `lost(n)` is called with the number of records that could not be written."""

    def __init__(self, path: Path, lost: Callable[[int], None]) -> None:
        super().__init__(name=f"log-{path.stem}", daemon=True)
        self._path = path
        self._lost = lost
        self._waiting: queue.SimpleQueue[tuple[bytes, int]] = queue.SimpleQueue()  # lines, and how many
        self._records = 0  # that wait
        self._counting = threading.Lock()
        self._ending = threading.Event()
        self._failing = False

    def write(self, record: Mapping[str, Any]) -> None:
        """Queue a record; never blocks. As a line: a waiting dict would take three times the memory."""
        self.write_lines(msgspec.json.encode(record) + b"\n", 1)

    def write_lines(self, lines: bytes, n: int) -> None:
        """Queue n records that are lines already; never blocks."""
        with self._counting:
            full = self._records + n > QUEUE_LENGTH
            self._records += 0 if full else n
        if full:
            self._lost(n)
        else:
            self._waiting.put((lines, n))

    def run(self) -> None:
        while not self._ending.is_set() or not self._waiting.empty():
            batch, records = self._take()
            if batch:
                self._append(batch, records)
            else:
                self._ending.wait(IDLE)

    def stop(self) -> None:
        """Write what is waiting and end; what a disk does not take in STOP_TIMEOUT seconds is lost."""
        self._ending.set()
        self.join(STOP_TIMEOUT)

    def _take(self) -> tuple[list[bytes], int]:
        """About BATCH records, and how many there are."""
        batch: list[bytes] = []
        records = 0
        while records < BATCH:
            try:
                lines, n = self._waiting.get_nowait()
            except queue.Empty:
                break
            batch.append(lines)
            records += n
        with self._counting:
            self._records -= records
        return batch, records

    def _append(self, batch: list[bytes], records: int) -> None:
        try:
            append(self._path, b"".join(batch))
        except OSError as error:
            self._lost(records)
            if not self._failing:
                self._failing = True  # first: the message may come back to this very log
                log.error("%s: %s; records are lost until this is mended", self._path, error)
            time.sleep(IDLE)
            return
        self._failing = False
