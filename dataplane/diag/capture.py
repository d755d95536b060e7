"""Capture files: root alone may read them, and a full disk leaves a whole file behind."""

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from dataplane.diag import pcapng
from dataplane.diag.record import Record
from dataplane.diag.words import comment
from dataplane.errors import DataplaneError
from dataplane.names import Names

FIREWALL = "firewall"  # the interface of what the firewall itself sends, or takes


class Capture:
    """One file, begun anew. The stages that name it share it.

    Raises DataplaneError if it cannot be made. Later failures are OSErrors, after which nothing more may be written.
    """

    def __init__(self, directory: Path, name: str, names: Names, about: str) -> None:
        self.path = directory / name
        self._names = names
        self._interfaces: dict[int, int] = {}  # index -> number in this file
        self._size = 0
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = _open(directory, name)
        except OSError as error:
            raise DataplaneError(f"{self.path}: {error.strerror or error}") from error
        try:
            self._append(pcapng.section("dataplane", about))
        except OSError as error:
            self.close()
            raise DataplaneError(f"{self.path}: {error.strerror or error}") from error

    def write(self, records: Iterable[Record], snaplens: Sequence[int]) -> None:
        """Append packets; `snaplens` of every stage that may come here."""
        blocks = bytearray()
        for record in records:
            if record.ifindex not in self._interfaces:
                self._interfaces[record.ifindex] = len(self._interfaces)
                blocks += self._interface(record, max(snaplens))
            blocks += pcapng.packet(self._copied(record))
        self._append(blocks)

    def close(self) -> None:
        os.close(self._file)

    def _interface(self, record: Record, snaplen: int) -> bytes:
        if not record.ifindex:
            return pcapng.interface(FIREWALL, "the firewall itself", snaplen)
        zone = record.out.zone if record.stage == "transmit" else record.key.zone
        described = f"zone {self._names.zone(zone)}" if zone else ""
        return pcapng.interface(self._names.interface(record.ifindex), described, snaplen)

    def _copied(self, record: Record) -> pcapng.Copied:
        return pcapng.Copied(
            interface=self._interfaces[record.ifindex],
            when=record.when,
            data=record.data,
            length=record.length,
            outbound=record.stage == "transmit" or record.own,
            comment=comment(record, self._names),
            verdict=record.verdict,
        )

    def _append(self, blocks: bytes | bytearray) -> None:
        """All of it or nothing: half a block would spoil the file."""
        left = memoryview(blocks)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(blocks)


def _open(directory: Path, name: str) -> int:
    """The file, empty and root's alone; OSError where something else than a plain file of one name lies there."""
    at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=at)
    finally:
        os.close(at)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise OSError(None, "not a plain file")
        os.fchmod(file, 0o600)
        os.ftruncate(file, 0)
    except OSError:
        os.close(file)
        raise
    return file
