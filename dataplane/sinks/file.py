"""Log files: appended to in batches, rotated by size.

    traffic.json ──► traffic.json.1 ──► traffic.json.2 ... ──► removed beyond `keep`

Every batch opens the file, so one that somebody else has moved away (logrotate) is begun anew without a signal. A
file is rotated between two records, before it would grow past its limit.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from dataplane.sinks.base import Outlet, Parcel

log = logging.getLogger(__name__)


class LogFile(Outlet):
    """Appends lines to a file, with `keep` older ones beside it; `limit` in bytes, 0: it grows for ever."""

    def __init__(self, path: Path, limit: int = 0, keep: int = 0) -> None:
        self._path = path
        self._limit = limit
        self._keep = keep
        self._mended = False
        self._stuck = False

    def pack(self, lines: bytes, records: int) -> Iterable[Parcel]:
        """What is longer than a whole file is cut between lines."""
        if not self._limit or len(lines) <= self._limit:
            return ((lines, records),)
        return pieces(lines, self._limit)

    def send(self, payload: bytes) -> None:
        if not self._mended:
            end_last_line(self._path)
            self._mended = True
        if self._limit and self._size() + len(payload) > self._limit:
            self._rotate()
        append(self._path, payload)

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def _rotate(self) -> None:
        """A rotation that fails costs no record: the file goes on growing."""
        try:
            rotate(self._path, self._keep)
            self._stuck = False
        except OSError as error:
            known, self._stuck = self._stuck, True
            if not known:
                log.error("%s cannot be rotated: %s", self._path, error)


def pieces(lines: bytes, limit: int) -> Iterator[Parcel]:
    """Whole lines of together at most `limit` bytes; a longer line is a piece of its own."""
    at = 0
    while at < len(lines):
        end = lines.rfind(b"\n", at, at + limit) + 1 or lines.find(b"\n", at) + 1 or len(lines)
        yield lines[at:end], lines.count(b"\n", at, end)
        at = end


def rotated(path: Path, number: int) -> Path:
    """The file that was the current one `number` rotations ago."""
    return path.with_name(f"{path.name}.{number}") if number else path


def rotate(path: Path, keep: int) -> None:
    """Make room at `path`; the oldest file beyond `keep` goes. Raises OSError."""
    if not path.exists():
        return
    if keep == 0:
        path.unlink()
    for number in reversed(range(keep)):
        if rotated(path, number).exists():
            rotated(path, number).replace(rotated(path, number + 1))


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


def end_last_line(path: Path) -> None:
    """What a killed daemon has left of a line shall not spoil the next one. Raises OSError."""
    try:
        with path.open("r+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
    except FileNotFoundError:
        pass
