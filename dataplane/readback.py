"""The logs read back: JSON lines from the newest to the oldest, through the rotated files, in blocks.

    traffic.json  ◄── block ◄── block      then      traffic.json.1  ◄── block ...

The work is bounded: at most `limit` bytes are looked at, whatever the files hold. A line that does not end yet, or that
a kill has torn, is passed over. A file that is rotated away meanwhile is read once: files are opened from the newest to
the oldest and known by their inode.
"""

import ipaddress
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import msgspec

from dataplane.filters import LogFilter
from dataplane.policy.objects import address_text

BLOCK = 1 << 16  # bytes
LINE = 1 << 16  # bytes of a record, at most: what a power cut has left of a file may be one long line of zeroes
LIMIT = 256 << 20  # bytes looked at for one question
KEEP = 999  # rotated files that there may be
EQUAL = {
    "sport": "sport",
    "dport": "dport",
    "proto": "proto",
    "app": "application",
    "rule": "rule",
    "nat_rule": "nat_rule",
    "from_zone": "from",
    "to_zone": "to",
    "action": "action",
    "event": "event",
    "session_end_reason": "session_end_reason",
    "session_id": "session_id",
}
"""Fields of a filter that are keys of a record."""

Record = dict[str, Any]


class Reader:
    """One question: records of `path` and its rotated files, the newest first, that `wanted` lets pass."""

    def __init__(self, path: Path, wanted: LogFilter, limit: int = LIMIT) -> None:
        self.complete = True
        """Whether nothing was left out for want of `limit`; known once the records are read."""
        self._path = path
        self._left = limit
        self._needles = needles(wanted)
        self._passes = passes(wanted)
        self._since = None if wanted.since is None else datetime.now(UTC) - timedelta(seconds=wanted.since)

    def records(self) -> Iterator[Record]:
        """As they are found; ends early where all further ones are older than `since`."""
        with ExitStack() as stack:
            for file in _opened(self._path, stack):
                for line in self._lines(file):
                    if not all(needle in line for needle in self._needles):
                        continue
                    record = _decoded(line)
                    if record is None:
                        continue
                    if self._is_too_old(record):
                        return
                    if self._passes(record):
                        yield record

    def _lines(self, file: IO[bytes]) -> Iterator[bytes]:
        """Complete lines from the last to the first, without their ends."""
        at, tail = file.seek(0, os.SEEK_END), b""
        newest = True
        while at:
            if self._left <= 0:
                self.complete = False
                return
            size = min(BLOCK, at)
            at -= size
            self._left -= size
            file.seek(at)
            first, *lines = (file.read(size) + tail).split(b"\n")
            tail = first if len(first) <= LINE else b""
            if newest and lines:
                lines.pop()  # what has no end yet, or nothing
                newest = False
            yield from reversed(lines)
        if not newest:
            yield tail

    def _is_too_old(self, record: Record) -> bool:
        return self._since is not None and _time(record) < self._since


def needles(wanted: LogFilter) -> list[bytes]:
    """What a line that passes must hold, so that most of the others need not be decoded."""
    found = [
        b'"%s":%s' % (key.encode(), msgspec.json.encode(value))
        for field, key in EQUAL.items()
        if (value := getattr(wanted, field)) is not None
    ]
    for key in ("src", "dst"):
        span = getattr(wanted, key)
        if span is not None and span[0] == span[1]:
            found.append(b'"%s":"%s"' % (key.encode(), address_text(span[0]).encode()))
    return found


def passes(wanted: LogFilter) -> Callable[[Record], bool]:
    """Whether a record has everything that the filter says."""
    equal = {key: value for field, key in EQUAL.items() if (value := getattr(wanted, field)) is not None}
    spans = {key: span for key in ("src", "dst") if (span := getattr(wanted, key)) is not None}

    def check(record: Record) -> bool:
        return all(record.get(key) == value for key, value in equal.items()) and all(
            first <= _number(record.get(key, "")) <= last for key, (first, last) in spans.items()
        )

    return check


def _opened(path: Path, stack: ExitStack) -> Iterator[IO[bytes]]:
    """The file and its predecessors, each once."""
    seen: set[tuple[int, int]] = set()
    for name in _names(path):
        try:
            file = stack.enter_context(name.open("rb"))
        except OSError:
            if name == path:
                continue  # moved away a moment ago, perhaps; its predecessor is there
            return
        status = os.fstat(file.fileno())
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            yield file


def _names(path: Path) -> Sequence[Path]:
    return [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, KEEP + 1))]


def _decoded(line: bytes) -> Record | None:
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return record if isinstance(record, dict) and "time" in record else None


def _time(record: Record) -> datetime:
    """What tells no time is of now."""
    try:
        time = datetime.fromisoformat(record["time"])
    except (TypeError, ValueError):
        return datetime.now(UTC)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _number(address: str) -> int:
    """On the 128-bit line; -1 for what is no address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return -1
    return int(parsed) | (0xFFFF << 32 if parsed.version == 4 else 0)
