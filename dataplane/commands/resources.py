"""How busy the firewall is and was."""

from collections.abc import Iterator, Sequence

from dataplane.commands.arguments import Arguments, choice, number
from dataplane.control import Handler
from dataplane.engine import Engine
from dataplane.errors import UsageError
from dataplane.resources import KEPT, Row


def handlers(engine: Engine) -> dict[str, Handler]:
    """Command -> handler."""
    return {"show running resource-monitor": ResourceCommands(engine).resource_monitor}


class ResourceCommands:
    """The handlers, around one engine. Any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def resource_monitor(self, arguments: Arguments) -> Iterator[object]:
        """One row for each period, or for the one that is asked for; percent, the newest first."""
        asked = arguments.get("period")
        periods = list(KEPT) if asked is None else [choice("period", asked, KEPT)]
        for period in periods:
            n = number("last", arguments.get("last", KEPT[period]))
            if not 1 <= n <= KEPT[period]:
                raise UsageError(f"last: {n} is not a number from 1 to {KEPT[period]}")
            resources = self._engine.resources
            yield {
                "period": period,
                "last": n,
                "cpu": _columns(resources.load.last(period, n)),
                "utilization": _columns(resources.utilization.last(period, n)),
            }


def _columns(rows: Sequence[Row]) -> dict[str, dict[str, list[int]]]:
    """By what was measured its averages and its maxima, in whole percent."""
    names = rows[0].average if rows else ()
    return {
        name: {
            "average": [round(row.average.get(name, 0.0)) for row in rows],
            "maximum": [round(row.maximum.get(name, 0.0)) for row in rows],
        }
        for name in names
    }
