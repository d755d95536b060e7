"""The policy in force, and what it would decide."""

import json
from collections.abc import Iterable, Iterator

from dataplane.commands.arguments import Arguments
from dataplane.control import Handler
from dataplane.engine import Engine
from dataplane.errors import UsageError
from dataplane.filters import Match, match_of
from dataplane.policy.compile import Pool
from dataplane.policy.objects import address_text
from dataplane.pools import pool_ranges, pool_use

POOL_TYPES = {
    "dynamic-ip-and-port": "Dynamic IP/Port",
    "persistent-dynamic-ip-and-port": "Persistent DIPP",
    "dynamic-ip": "Dynamic IP",
}


def handlers(engine: Engine) -> dict[str, Handler]:
    """Command -> handler."""
    commands = PolicyCommands(engine)
    return {
        "show running security-policy": commands.security_policy,
        "show running nat-policy": commands.nat_policy,
        "show running ippool": commands.ippool,
        "show running config": commands.config,
        "test security-policy-match": commands.security_policy_match,
        "test nat-policy-match": commands.nat_policy_match,
    }


class PolicyCommands:
    """The handlers, around one engine. Any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def security_policy(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        policy, ids = self._engine.policy, self._engine.ids.security
        for index, rule in enumerate(policy.security_rules):
            yield {**policy.security_rule_view(index), "uuid": ids.get(rule.name, rule.name)}

    def nat_policy(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        for index, rule in enumerate(self._engine.policy.nat_rules):
            view = {**self._engine.policy.nat_rule_view(index), "uuid": self._engine.ids.nat[rule.name]}
            if rule.pool is None or rule.pool.interface is None:
                yield view
                continue
            where = f"src: {rule.pool.interface}"
            ranges = pool_ranges(rule.pool, self._engine.slowpath.world)
            own = " ".join([where, *(address_text(first) for first, _ in ranges)])
            yield {**view, "translate_to": view["translate_to"].replace(where, own, 1)}

    def ippool(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        yield from (self._pool_row(pool) for pool in self._engine.policy.pools)

    def config(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        yield json.loads(self._engine.config.model_dump_json(by_alias=True, exclude_unset=True))

    def security_policy_match(self, arguments: Arguments) -> Iterator[object]:
        match = match_of(arguments, application=True)
        policy = self._engine.policy
        application = match.application or policy.application(match.protocol, match.destination_port).name
        if application not in policy.applications.by_name:
            raise UsageError(f"unknown application {application!r}")
        index = policy.security_rule(
            self._zone(match.from_zone),
            self._zone(match.to_zone),
            match.source,
            match.destination,
            match.protocol,
            match.destination_port,
            application,
        )
        rule = policy.security_rules[index]
        yield {"rule": rule.name, "action": rule.action.value, "stanza": policy.security_rule_view(index)}

    def nat_policy_match(self, arguments: Arguments) -> Iterator[object]:
        match = match_of(arguments, application=False)
        policy = self._engine.policy
        index = policy.nat_rule(*self._nat_key(match))
        if index is None:
            yield {"rule": None, "action": None, "stanza": None}
            return
        rule = policy.nat_rules[index]
        action = "translate" if rule.translates else "no-nat"
        yield {"rule": rule.name, "action": action, "stanza": policy.nat_rule_view(index)}

    def _nat_key(self, match: Match) -> tuple[int, int, int, int, int, int]:
        zones = self._zone(match.from_zone), self._zone(match.to_zone)
        return (*zones, match.source, match.destination, match.protocol, match.destination_port)

    def _zone(self, name: str) -> int:
        zone = self._engine.policy.zone_ids.get(name)
        if zone is None:
            raise UsageError(f"unknown zone {name!r}")
        return zone

    def _pool_row(self, pool: Pool) -> dict[str, object]:
        """Its failures are those of its rule: a session that found no port or address free."""
        engine = self._engine
        use = pool_use(pool, engine.table, engine.bindings, engine.slowpath.world)
        number = engine.names.nat_rules.find(pool.rule)
        return {
            "rule": pool.rule,
            "address": _ranges_text(use.ranges),
            "type": POOL_TYPES.get(pool.type.value, pool.type.value),
            "used": use.used,
            "available": max(use.capacity - use.used, 0),
            "ratio": use.ratio,
            "failures": engine.nat.failures.of(number).count,
        }


def _ranges_text(ranges: Iterable[tuple[int, int]]) -> str:
    return ", ".join("-".join(map(address_text, dict.fromkeys(ends))) for ends in ranges)
