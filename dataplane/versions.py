"""Committed configurations, kept so that one can go back.

    state directory/<runtime directory's path, as one word>/00000007.json

Each is a file of its own, written beside and moved into place, so that whatever happens to the machine there is the
whole version or none. Two daemons that share a state directory keep their versions apart by their runtime directories.

A version that waits for its confirmation says so in its file. A daemon that starts and finds its newest version still
waiting was stopped before anybody confirmed it: then the version before is what to start with.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from dataplane.errors import DataplaneError

KEPT = 100  # versions; older ones are removed
DIGITS = 8


class Version(msgspec.Struct, frozen=True, omit_defaults=True):
    """One committed configuration."""

    version: int
    time: str  # ISO 8601, UTC
    user: str
    source: str  # the file, or what else it came from
    config: dict[str, Any]
    ids: dict[str, dict[str, str]]  # security, nat: rule name -> id
    changes: list[str] = []
    diff: list[str] = []  # to the version before, unified
    unconfirmed: bool = False
    instead_of: int = 0  # version that nobody has confirmed


class Versions:
    """The versions of the daemon of one runtime directory. One thread at a time."""

    def __init__(self, state_dir: Path, runtime_dir: Path) -> None:
        own = str(runtime_dir.resolve()).strip("/").replace("-", r"\x2d").replace("/", "-")  # as systemd-escape does
        self._place = state_dir / own

    def numbers(self) -> list[int]:
        """Of all that are kept, ascending."""
        return sorted(int(path.stem) for path in self._place.glob("[0-9]" * DIGITS + ".json"))

    def read(self, number: int) -> Version:
        """DataplaneError if there is no such version, or its file is damaged."""
        try:
            return msgspec.json.decode(self._path(number).read_bytes(), type=Version)
        except FileNotFoundError:
            raise DataplaneError(f"version {number} does not exist") from None
        except (OSError, msgspec.MsgspecError) as error:
            raise DataplaneError(f"{self._path(number)}: {error}") from None

    def readable(self) -> Iterator[Version]:
        """The newest first, one at a time; what is damaged, or has just made room, is passed over."""
        for number in reversed(self.numbers()):
            with suppress(DataplaneError):
                yield self.read(number)

    def latest(self) -> Version | None:
        """The newest one that can be read."""
        return next(self.readable(), None)

    def prepare(self, version: Version) -> Path:
        """Everything written but the name; DataplaneError if the disk refuses."""
        part = self._path(version.version).with_suffix(".part")
        try:
            self._place.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(version))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self.drop(part)
            raise _refused(part, error) from None
        return part

    def drop(self, part: Path | None) -> None:
        """What was prepared is not wanted."""
        with suppress(OSError):
            if part is not None:
                part.unlink()

    def publish(self, part: Path) -> None:
        """What was prepared is the newest version; the oldest makes room. DataplaneError if the disk refuses."""
        try:
            part.replace(part.with_suffix(".json"))
            place = os.open(self._place, os.O_RDONLY)
            try:
                os.fsync(place)
            finally:
                os.close(place)
        except OSError as error:
            raise _refused(part, error) from None
        for number in self.numbers()[:-KEPT]:
            with suppress(OSError):
                self._path(number).unlink()

    def keep(self, version: Version) -> None:
        """prepare() and publish()."""
        self.publish(self.prepare(version))

    def _path(self, number: int) -> Path:
        return self._place / f"{number:0{DIGITS}}.json"


def _refused(part: Path, error: OSError) -> DataplaneError:
    return DataplaneError(f"the version cannot be kept: {part}: {error.strerror}")
