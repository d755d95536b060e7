"""The policy in force, and what it would decide."""

import json
from collections.abc import Iterable, Iterator

from dataplane.commands.arguments import Arguments
from dataplane.control import Handler
from dataplane.engine import Engine
from dataplane.errors import UsageError
from dataplane.filters import Match, match_of
from dataplane.policy.compile import Pool
from dataplane.policy.model import SourceType
from dataplane.policy.objects import address_text

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
            own = " ".join([where, *map(address_text, self._pool_addresses(rule.pool))])
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
        """Capacity is addresses times ports, TCP and UDP counted together, times the sessions that may share one
        (contract section 3); of a dynamic-ip pool its addresses."""
        addresses, ratio = self._pool_addresses(pool), 1
        if pool.type is SourceType.DYNAMIC_IP_AND_PORT:
            used = sum(self._engine.table.ports_used(address, pool.ports) for address in addresses)
            ratio = self._engine.table.oversubscription
        else:
            used = self._engine.bindings.held(pool.rule)
        ports = 1 if pool.type is SourceType.DYNAMIC_IP else pool.ports[1] - pool.ports[0] + 1
        return {
            "rule": pool.rule,
            "address": _ranges_text([(a, a) for a in addresses] if pool.interface else pool.addresses),
            "type": POOL_TYPES.get(pool.type.value, pool.type.value),
            "used": used,
            "available": max(len(addresses) * ports * ratio - used, 0),
            "ratio": ratio,
        }

    def _pool_addresses(self, pool: Pool) -> list[int]:
        if pool.interface is None:
            return [address for first, last in pool.addresses for address in range(first, last + 1)]
        own = self._engine.slowpath.world.interface_address(pool.interface, pool.nat_type.value == "ipv4")
        return [] if own is None else [own]


def _ranges_text(ranges: Iterable[tuple[int, int]]) -> str:
    return ", ".join("-".join(map(address_text, dict.fromkeys(ends))) for ends in ranges)
