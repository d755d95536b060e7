"""Lines of the traffic log made in C out of copies of sessions: where Python would write them one by one, too slowly.

What C needs is every name as JSON, by number. It is spelled out when names change, which they do with the policy and
the host's interfaces, and kept until then. logs.py makes the same record of one session.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from dataplane.ffi import ffi, lib
from dataplane.names import Names
from dataplane.sessions import END_REASONS, Copies
from dataplane.views import iso_time_ms

ROOM = 4 << 20  # bytes of lines that are made at once
ZONES: int = lib.MAX_ZONE_IDS


class Records:
    """The names in force, and room for lines. One thread at a time, but for know()."""

    def __init__(self) -> None:
        self._text = ffi.new("char[]", ROOM)
        self._out = ffi.new("struct record_text *", {"text": self._text, "size": ROOM})
        self._known = Spelled(Names(0, lib.ZONE_HOST), {})

    def know(self, names: Names, actions: Mapping[int, str]) -> None:
        """From the next line on; `actions` by rule number."""
        self._known = Spelled(names, actions)

    @property
    def known(self) -> "Spelled":
        """The names in force."""
        return self._known

    def begun(self, copies: Copies) -> Iterator[tuple[bytes, int]]:
        """(lines, how many): what became of sessions whose beginning is logged."""
        return self._lines(copies, ended=False)

    def ended(self, copies: Copies) -> Iterator[tuple[bytes, int]]:
        """(lines, how many): of those sessions whose end is logged."""
        return self._lines(copies, ended=True)

    def _lines(self, copies: Copies, ended: bool) -> Iterator[tuple[bytes, int]]:
        known, out, done = self._known, self._out, 0
        names = known.now()
        while done < len(copies):
            done += lib.record_write(copies.pointer + done, len(copies) - done, ended, names, out)
            if out.lines:
                yield ffi.buffer(self._text, out.used)[:], out.lines


class Spelled:
    """Every name of one moment as `struct record_names`."""

    def __init__(self, names: Names, actions: Mapping[int, str]) -> None:
        self._kept: list[Any] = []  # what the struct points to
        self._longest = 0
        rules = names.rules.names()
        interfaces = names.interfaces()
        self._names = ffi.new(
            "struct record_names *",
            {
                "rule": self._words(name or None for name in rules),
                "action": self._words(actions.get(number) for number in range(len(rules))),
                "nat_rule": self._words(names.nat_rules.names()),
                "application": self._words(names.applications.names()),
                "zone": self._words(names.zone(number) for number in range(ZONES)),
                "reason": self._words(END_REASONS[:-1]),
                "interface": self._words(interfaces.values()),
                "ifindex": self._keep(ffi.new("uint32_t[]", list(interfaces))),
            },
        )
        self._names.longest = self._longest

    def now(self) -> Any:
        """The struct, with the time."""
        self._time = ffi.new("char[]", msgspec.json.encode(iso_time_ms(time.time())))
        self._names.time = self._time
        self._names.now = lib.table_now()
        return self._names

    def copy(self) -> Any:
        """The struct, for another thread; good for as long as this object is kept."""
        return ffi.new("struct record_names *", self._names[0])

    def _words(self, words: Iterable[str | None]) -> Any:
        texts = [msgspec.json.encode(word) for word in words]
        self._longest = max([self._longest, *map(len, texts)])
        strings = [self._keep(ffi.new("char[]", text)) for text in texts]
        return {"json": self._keep(ffi.new("char *[]", strings)), "n": len(strings)}

    def _keep(self, made: Any) -> Any:
        self._kept.append(made)
        return made
