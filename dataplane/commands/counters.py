"""Counters, hit counts and what the ALGs do."""

from collections.abc import Generator, Iterator

from dataplane.alg import READERS
from dataplane.commands.arguments import Arguments, mapping
from dataplane.control import Handler
from dataplane.engine import Engine
from dataplane.filters import parse_counter_filter
from dataplane.views import iso_time


def handlers(engine: Engine) -> dict[str, Handler]:
    """Command -> handler."""
    commands = CounterCommands(engine)
    return {
        "show counter global": commands.counter_global,
        "show rule-hit-count": commands.rule_hit_count,
        "show alg": commands.alg,
    }


class CounterCommands:
    """The handlers, around one engine. Any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def counter_global(self, arguments: Arguments) -> Generator[object, None, dict[str, object]]:
        wanted = parse_counter_filter(mapping(arguments.get("filter", {})))
        if wanted.packet_filter:
            rows, elapsed = self._engine.diagnosis.counters.rows(self._engine.diagnosis.counted(), wanted)
        else:
            rows, elapsed = self._engine.counters.rows(self._engine.table.counters(), wanted)
        yield from rows
        return {"elapsed": elapsed}

    def rule_hit_count(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        self._engine.catch_up()
        for rule in self._engine.policy.security_rules:
            hits = self._engine.hits.of(rule.name)
            yield {
                "rule": rule.name,
                "hit_count": hits.count,
                "first_hit": iso_time(hits.first) if hits.count else None,
                "last_hit": iso_time(hits.last) if hits.count else None,
            }

    def alg(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        engine = self._engine
        sessions, waiting = engine.inspection.activity()
        for name, written in engine.config.settings.alg.by_application().items():
            row = engine.names.applications.number(name)
            application = engine.policy.applications.by_name[name]
            yield {
                "application": name,
                "enabled": written.enabled,
                "ports": sorted({port for proto, port, _ in application.ports if (name, proto) in READERS}),
                "sessions": sessions[row],
                "predictions": waiting[row],
            }
