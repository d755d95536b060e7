"""Who has most of the session table."""

from collections.abc import Generator

from dataplane.commands.arguments import Arguments, choice, mapping, number
from dataplane.commands.sessions import SessionCommands
from dataplane.control import Handler
from dataplane.engine import Engine
from dataplane.errors import UsageError
from dataplane.ffi import lib
from dataplane.filters import parse_filter
from dataplane.policy.objects import address_text
from dataplane.top import BY, ORDERS, Amounts, Group, Top, top

MOST = 1000  # rows of one answer


def handlers(engine: Engine) -> dict[str, Handler]:
    """Command -> handler."""
    return {"show session top": TopCommands(engine).session_top}


class TopCommands:
    """The handlers, around one engine. Any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sessions = SessionCommands(engine)

    def session_top(self, arguments: Arguments) -> Generator[object, None, dict[str, object]]:
        """One row for each group; the last line sums up all of them."""
        what = choice("top", arguments.get("what"), BY)
        order = choice("by", arguments.get("by", "bytes"), ORDERS)
        last = number("last", arguments.get("last", 10))
        if not 1 <= last <= MOST:
            raise UsageError(f"last: {last} is not a number from 1 to {MOST}")
        answer = self._find(arguments, what, order, last)
        share = getattr(answer.all, "growth" if order == "rate" else order)
        for group in answer.groups:
            part = getattr(group.amounts, "growth" if order == "rate" else order)
            row = {what: self._name(what, group), **_amounts(group.amounts, answer.seconds)}
            yield {**row, "percent": round(100 * part / share, 1) if share else 0.0}
        return {
            "groups": answer.found,
            "all": _amounts(answer.all, answer.seconds),
            "left_out": _amounts(answer.left_out, answer.seconds),
        }

    def _find(self, arguments: Arguments, what: str, order: str, last: int) -> Top:
        """Sessions that are only expected belong to nobody yet, unless the filter asks for them."""
        wanted = self._sessions.session_filter(parse_filter(mapping(arguments.get("filter", {}))))
        if wanted is None:
            nothing = Amounts(0, 0, 0, 0)
            return Top([], 0, nothing, nothing, 0.0)
        wanted.type = wanted.type or lib.SESSION_FLOW + 1
        return top(self._engine.table, wanted, what, order, last)

    def _name(self, what: str, group: Group) -> str:
        names = self._engine.names
        if what == "rule":
            return names.rules.name(group.key)
        if what == "application":
            return names.applications.name(group.key)
        return names.zone(group.key) if what == "zone" else address_text(group.key)


def _amounts(amounts: Amounts, seconds: float) -> dict[str, object]:
    """`kbps` is null where no time was measured."""
    kbps = round(amounts.growth * 8 / 1000 / seconds, 1) if seconds else None
    return {"sessions": amounts.sessions, "bytes": amounts.bytes, "packets": amounts.packets, "kbps": kbps}
