"""Counters, hit counts and what the ALGs do."""

from collections.abc import Generator, Iterator, Sequence

from dataplane.alg import READERS
from dataplane.commands.arguments import Arguments, choice, mapping
from dataplane.control import Handler
from dataplane.counters import DESCRIPTIONS, HitCounts, Hits
from dataplane.engine import Engine
from dataplane.errors import DataplaneError, UsageError
from dataplane.filters import parse_counter_filter
from dataplane.names import Numbering
from dataplane.policy.compile import CompiledNatRule, CompiledSecurityRule
from dataplane.slowpath import QUEUE_LENGTH
from dataplane.sockets import NO_QUEUE, queue_states
from dataplane.views import iso_time

MAX_CALLER = 200  # characters


def handlers(engine: Engine) -> dict[str, Handler]:
    """Command -> handler."""
    commands = CounterCommands(engine)
    return {
        "show counter global": commands.counter_global,
        "show counter queue": commands.counter_queue,
        "show rule-hit-count": commands.rule_hit_count,
        "clear rule-hit-count": commands.clear_rule_hit_count,
        "show alg": commands.alg,
    }


class CounterCommands:
    """The handlers, around one engine. Any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def counter_global(self, arguments: Arguments) -> Generator[object, None, dict[str, object]]:
        wanted = parse_counter_filter(mapping(arguments.get("filter", {})))
        name = arguments.get("name")
        if name is not None:
            choice("name", name, DESCRIPTIONS)
        for key, column, said in (("category", 1, wanted.category), ("aspect", 2, wanted.aspect)):
            if said is not None:
                choice(key, said, sorted({row[column] for row in DESCRIPTIONS.values()}))
        self._engine.table.collect_offloaded()
        counters, values = self._engine.counters, self._engine.table.counters
        if wanted.packet_filter:
            counters, values = self._engine.diagnosis.counters, self._engine.diagnosis.counted
        rows, elapsed = counters.rows(values(), wanted, _caller(arguments))
        yield from (row for row in rows if name in (None, row["name"]))
        return {"elapsed": elapsed}

    def counter_queue(self, arguments: Arguments) -> Iterator[object]:
        """What only a worker counts is null for the slow queue."""
        del arguments
        engine = self._engine
        states = queue_states(engine.queues)
        for shard, (number, role) in enumerate(engine.queues.items()):
            state, counted = states.get(number, NO_QUEUE), engine.table.counters_of(shard) if role == "hot" else {}
            yield {
                "queue": number,
                "role": role,
                "packets": state.seen,
                "depth": state.waiting,
                "highest": max(engine.ager.deepest[number], state.waiting),
                "limit": QUEUE_LENGTH,
                "dropped": state.full,
                "lost": state.lost,
                "overruns": counted.get("queue_receive_overrun"),
                "verdict_errors": counted.get("queue_verdict_error"),
                "send_errors": counted.get("queue_send_error"),
            }

    def rule_hit_count(self, arguments: Arguments) -> Iterator[object]:
        self._engine.catch_up()
        for rule, hits in self._hits(_base(arguments)):
            yield {
                "rule": rule,
                "hit_count": hits.count,
                "first_hit": iso_time(hits.first) if hits.count else None,
                "last_hit": iso_time(hits.last) if hits.count else None,
            }

    def clear_rule_hit_count(self, arguments: Arguments) -> Iterator[object]:
        """The one row is the number of rules that were meant."""
        engine, base, only = self._engine, _base(arguments), arguments.get("rule")
        rules = [rule for rule, _ in self._hits(base) if only in (None, rule)]
        if only is not None and not rules:
            raise DataplaneError(f"no {base} rule is named {only!r}")
        engine.catch_up()
        counts, numbers, _ = self._counted(base)
        for rule in rules:
            counts.clear(numbers.find(rule))
        yield len(rules)

    def _hits(self, base: str) -> list[tuple[str, Hits]]:
        """The rules of the policy in force, in its order."""
        counts, numbers, rules = self._counted(base)
        return [(rule.name, counts.of(numbers.find(rule.name))) for rule in rules]

    def _counted(self, base: str) -> tuple[HitCounts, Numbering, Sequence[CompiledSecurityRule | CompiledNatRule]]:
        engine = self._engine
        if base == "security":
            return engine.hits, engine.names.rules, engine.policy.security_rules
        return engine.nat.hits, engine.names.nat_rules, engine.policy.nat_rules

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


def _base(arguments: Arguments) -> str:
    return choice("rule-base", arguments.get("rule_base", "security"), ("security", "nat"))


def _caller(arguments: Arguments) -> str:
    """Who asks, in his own words; nobody says nothing."""
    caller = arguments.get("caller", "")
    if not isinstance(caller, str) or len(caller) > MAX_CALLER:
        raise UsageError("caller: not a short word")
    return caller
