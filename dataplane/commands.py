"""What each command of the control socket answers: the engine's state as the rows of contract sections 3 and 4.

Every handler takes the request's arguments as they came over the wire, so it validates them; it yields rows.
"""

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

from dataplane.alg import READERS
from dataplane.control import Handler
from dataplane.engine import Engine
from dataplane.errors import DataplaneError, UsageError
from dataplane.ffi import ffi, lib
from dataplane.filters import Match, SessionFilter, match_of, parse_counter_filter, parse_filter
from dataplane.flow import Session
from dataplane.policy.compile import Pool
from dataplane.policy.model import SourceType
from dataplane.policy.objects import address_text
from dataplane.sessions import STATES, TICKS, TYPES
from dataplane.views import VSYS, iso_time, session_json

Arguments = Mapping[str, object]
STATE_WORDS = {"initial": "INIT"}
NAT_BITS = {"none": 0, "source": lib.FLAG_SNAT, "destination": lib.FLAG_DNAT, "both": lib.FLAG_SNAT | lib.FLAG_DNAT}
POOL_TYPES = {
    "dynamic-ip-and-port": "Dynamic IP/Port",
    "persistent-dynamic-ip-and-port": "Persistent DIPP",
    "dynamic-ip": "Dynamic IP",
}


def handlers(engine: Engine) -> dict[str, Handler]:
    """Command -> handler."""
    commands = Commands(engine)
    return {
        "show session all": commands.session_all,
        "show session id": commands.session_id,
        "show session info": commands.session_info,
        "show session meter": commands.session_meter,
        "show alg": commands.alg,
        "show counter global": commands.counter_global,
        "show running security-policy": commands.security_policy,
        "show running nat-policy": commands.nat_policy,
        "show running ippool": commands.ippool,
        "show running config": commands.config,
        "show rule-hit-count": commands.rule_hit_count,
        "clear session all": commands.clear_all,
        "clear session id": commands.clear_id,
        "test security-policy-match": commands.security_policy_match,
        "test nat-policy-match": commands.nat_policy_match,
    }


class Commands:
    """The handlers, around one engine. Any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def session_all(self, arguments: Arguments) -> Iterator[object]:
        wanted = parse_filter(_mapping(arguments.get("filter", {})))
        in_c = self._session_filter(wanted)
        start_at = _number("start-at", arguments.get("start_at", 0))
        if arguments.get("count"):
            yield 0 if in_c is None else self._engine.table.count_matching(in_c)
        elif in_c is not None:
            for session in self._engine.table.scan(in_c, start_at):
                yield self._session_json(session)

    def session_id(self, arguments: Arguments) -> Iterator[object]:
        session_id = _number("id", arguments.get("id"))
        session = self._engine.table.read(session_id)
        if session is None:
            raise DataplaneError(f"session {session_id} does not exist")
        yield self._session_json(session)

    def _session_json(self, session: Session) -> dict[str, Any]:
        return session_json(session, self._engine.names, self._engine.offload.reason(session))

    def session_info(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        stats, settings, rates = self._engine.table.stats(), self._engine.config.settings, self._engine.ager.rates
        yield {
            "num_max": stats["max_sessions"],
            "num_active": stats["allocated"],
            "num_tcp": stats["tcp"],
            "num_udp": stats["udp"],
            "num_icmp": stats["icmp"],
            "num_other": stats["other"],
            "num_predict": stats["predict"],
            "num_discard": stats["discard"],
            "utilization_percent": stats["allocated"] * 100 // stats["max_sessions"],
            "num_installed": stats["installed"],
            "pps": round(rates.packets),
            "kbps": round(rates.kilobits),
            "cps": round(rates.connections),
            "bytes_per_session": -(-stats["bytes"] // stats["max_sessions"]),
            "timeouts": settings.session.timeouts.model_dump(),
            "session_accelerated_aging": settings.session.accelerated_aging.enabled,
            "accelerated_aging_threshold": settings.session.accelerated_aging.threshold,
            "scaling_factor": settings.session.accelerated_aging.scaling_factor,
            "tcp_reject_non_syn_first_packet": settings.session.tcp_reject_non_syn,
            "hardware_session_offloading": self._engine.offload.running,
            "ipv6_firewalling": True,
            "icmp_unreachable_packet_rate": 200,
        }

    def session_meter(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        stats = self._engine.table.stats()
        throttled = self._engine.table.counters()["session_alloc_failure"]
        yield {
            "vsys": VSYS,
            "maximum": stats["max_sessions"],
            "current": stats["allocated"],
            "throttled": throttled,
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

    def counter_global(self, arguments: Arguments) -> Generator[object, None, dict[str, object]]:
        wanted = parse_counter_filter(_mapping(arguments.get("filter", {})))
        self._engine.table.collect_offloaded()
        rows, elapsed = self._engine.counters.rows(self._engine.table.counters(), wanted)
        yield from rows
        return {"elapsed": elapsed}

    def security_policy(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        policy = self._engine.policy
        yield from (policy.security_rule_view(index) for index in range(len(policy.security_rules)))

    def nat_policy(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        for index, rule in enumerate(self._engine.policy.nat_rules):
            view = self._engine.policy.nat_rule_view(index)
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

    def clear_all(self, arguments: Arguments) -> Iterator[object]:
        in_c = self._session_filter(parse_filter(_mapping(arguments.get("filter", {}))))
        yield 0 if in_c is None else self._engine.table.close_matching(in_c, "unknown")

    def clear_id(self, arguments: Arguments) -> Iterator[object]:
        session_id = _number("id", arguments.get("id"))
        if not self._engine.table.close_session(session_id, "unknown"):
            raise DataplaneError(f"session {session_id} does not exist")
        yield 1

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

    def _session_filter(self, wanted: SessionFilter) -> Any:
        """The filter as C applies it; None where it names something that no session can have."""
        names, f = self._engine.names, ffi.new("struct session_filter *")
        f.now = lib.table_now()
        f.state = 0 if wanted.state is None else _state(wanted.state) + 1
        f.type = 0 if wanted.type is None else TYPES.index(wanted.type.upper()) + 1
        f.nat = 0 if wanted.nat is None else NAT_BITS[wanted.nat] + 1
        f.family = 0 if wanted.ip6 is None else 6 if wanted.ip6 else 4
        f.proto = wanted.protocol or 0
        f.sport, f.dport = (_network_order(port or 0) for port in (wanted.source_port, wanted.destination_port))
        _set_range(f, "source", wanted.source)
        _set_range(f, "destination", wanted.destination)
        f.min_bytes = (wanted.min_kb or 0) * 1024
        f.max_bytes = (wanted.max_kb or 0) * 1024
        f.min_age = (wanted.min_age or 0) * TICKS
        lookups = (
            (wanted.from_zone, names.zone_id, lambda n: f.zone.__setitem__(0, n)),
            (wanted.to_zone, names.zone_id, lambda n: f.zone.__setitem__(1, n)),
            (wanted.application, names.applications.find, lambda n: setattr(f, "application", n + 1)),
            (wanted.rule, names.rules.find, lambda n: setattr(f, "rule", n + 1)),
            (wanted.nat_rule, names.nat_rules.find, lambda n: setattr(f, "nat_rule", n + 2)),
            (wanted.ingress_interface, names.interface_index, lambda n: setattr(f, "ingress", n)),
            (wanted.egress_interface, names.interface_index, lambda n: setattr(f, "egress", n)),
        )
        for word, find, store in lookups:
            if word is None:
                continue
            number = find(word)
            if number is None:
                return None
            store(number)
        return f


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise UsageError("filter: not a mapping")
    return value


def _number(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise UsageError(f"{what}: {value!r} is not a number of 32 bits")
    return value


def _ranges_text(ranges: Iterable[tuple[int, int]]) -> str:
    return ", ".join("-".join(map(address_text, dict.fromkeys(ends))) for ends in ranges)


def _state(word: str) -> int:
    return STATES.index(STATE_WORDS.get(word, word.upper()))


def _network_order(port: int) -> int:
    return int.from_bytes(port.to_bytes(2), "little")


def _set_range(f: Any, field: str, addresses: tuple[int, int] | None) -> None:
    if addresses is None:
        return
    setattr(f, f"{field}_set", 1)
    for i, address in enumerate(addresses):
        getattr(f, field)[i] = address.to_bytes(16)
