"""Names for whoever completes a line: what there is of a kind that begins so. A row is [word, what it stands for]."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from dataplane.commands.arguments import Arguments
from dataplane.control import Handler
from dataplane.counters import DESCRIPTIONS
from dataplane.engine import Engine
from dataplane.errors import UsageError
from dataplane.policy.objects import address_text

MOST = 500  # names in one answer: nobody reads more
MOST_SESSIONS = 50  # likewise, and each is read from the table

Named = tuple[str, str]


def handlers(engine: Engine) -> dict[str, Handler]:
    """Command -> handler."""
    return {"complete": CompleteCommand(engine).complete}


class CompleteCommand:
    """The handler, around one engine. Any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kinds: dict[str, Callable[[], Iterable[Named]]] = {
            "zone": self._zones,
            "rule": self._rules,
            "nat-rule": self._nat_rules,
            "application": self._applications,
            "interface": self._interfaces,
            "counter": lambda: ((name, row[3]) for name, row in DESCRIPTIONS.items()),
            "counter-category": lambda: ((category, "") for _, category, _, _ in DESCRIPTIONS.values()),
            "counter-aspect": lambda: ((aspect, "") for _, _, aspect, _ in DESCRIPTIONS.values()),
        }

    def complete(self, arguments: Arguments) -> Iterator[object]:
        kind, prefix = arguments.get("kind"), arguments.get("prefix", "")
        if not isinstance(prefix, str):
            raise UsageError(f"prefix: {prefix!r} is not a word")
        if kind == "session":
            yield from islice(self._sessions(prefix), MOST_SESSIONS)
        elif isinstance(kind, str) and kind in self._kinds:
            names = dict(self._kinds[kind]())
            yield from islice(([name, names[name]] for name in sorted(names) if name.startswith(prefix)), MOST)
        else:
            raise UsageError(f"unknown kind {kind!r}; known: session {' '.join(self._kinds)}")

    def _zones(self) -> Iterable[Named]:
        return ((zone.name, ", ".join(zone.interfaces)) for zone in self._engine.config.zones)

    def _rules(self) -> Iterable[Named]:
        return ((rule.name, rule.action.value) for rule in self._engine.policy.security_rules)

    def _nat_rules(self) -> Iterable[Named]:
        return ((rule.name, "translate" if rule.translates else "no-nat") for rule in self._engine.policy.nat_rules)

    def _applications(self) -> Iterable[Named]:
        return ((name, "") for name in self._engine.policy.applications.by_name)

    def _interfaces(self) -> Iterable[Named]:
        return ((name, "") for name in self._engine.names.interfaces().values() if name)

    def _sessions(self, prefix: str) -> Iterator[list[str]]:
        """Ids are numbers and sorted as such, so those that begin so are a few ranges of the table."""
        for first, last in id_ranges(prefix, self._engine.table.max_sessions):
            for session in self._engine.table.scan(start_at=first):
                if session.id > last:
                    break
                application = self._engine.names.applications.name(session.application)
                ends = f"{address_text(session.c2s.src)} to {address_text(session.c2s.dst)}"
                yield [str(session.id), f"{application} {ends}"]


def id_ranges(prefix: str, most: int) -> Iterator[tuple[int, int]]:
    """The session ids up to `most` whose decimal digits begin with `prefix`: 12 is 12, 120-129, 1200-1299 ..."""
    if not prefix:
        yield 1, most
    if not (prefix.isascii() and prefix.isdigit()) or prefix.startswith("0") or len(prefix) > len(str(most)):
        return
    first, width = int(prefix), 1
    while first <= most:
        yield first, first + width - 1
        first, width = first * 10, width * 10
