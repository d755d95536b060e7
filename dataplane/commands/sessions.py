"""Sessions: listed, counted, shown, ended."""

from collections.abc import Iterator
from typing import Any

from dataplane.commands.arguments import Arguments, mapping, number
from dataplane.control import Handler, Lines
from dataplane.engine import Engine
from dataplane.errors import DataplaneError
from dataplane.ffi import ffi, lib
from dataplane.filters import SessionFilter, parse_filter
from dataplane.rows import Rows
from dataplane.sessions import STATES, TICKS, TYPES

VSYS = "vsys1"
STATE_WORDS = {"initial": "INIT"}
NAT_BITS = {"none": 0, "source": lib.FLAG_SNAT, "destination": lib.FLAG_DNAT, "both": lib.FLAG_SNAT | lib.FLAG_DNAT}


def handlers(engine: Engine) -> dict[str, Handler]:
    """Command -> handler."""
    commands = SessionCommands(engine)
    return {
        "show session all": commands.session_all,
        "show session id": commands.session_id,
        "show session info": commands.session_info,
        "show session meter": commands.session_meter,
        "clear session all": commands.clear_all,
        "clear session id": commands.clear_id,
    }


class SessionCommands:
    """The handlers, around one engine. Any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def session_all(self, arguments: Arguments) -> Iterator[object]:
        wanted = parse_filter(mapping(arguments.get("filter", {})))
        in_c = self.session_filter(wanted)
        start_at = number("start-at", arguments.get("start_at", 0))
        if arguments.get("count"):
            yield 0 if in_c is None else self._engine.table.count_matching(in_c)
        elif in_c is not None:
            yield from map(Lines, self._rows(arguments.get("columns") is True).all(in_c, start_at))

    def session_id(self, arguments: Arguments) -> Iterator[object]:
        session_id = number("id", arguments.get("id"))
        copy = self._engine.table.copy(session_id)
        if copy is None:
            raise DataplaneError(f"session {session_id} does not exist")
        yield from map(Lines, self._rows().of(copy, 1))

    def _rows(self, columns: bool = False) -> Rows:
        engine = self._engine
        return Rows(engine.table, engine.records, engine.offload.refusals(), columns)

    def session_info(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        stats, settings, rates = self._engine.table.stats(), self._engine.config.settings, self._engine.ager.rates
        waits = self._engine.latency.read()
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
            "ager_lag_ms": round(self._engine.ager.lag * 1000),
            "slow_path_p50_us": round(waits.quantile(0.5) * 1e6),
            "slow_path_p99_us": round(waits.quantile(0.99) * 1e6),
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

    def clear_all(self, arguments: Arguments) -> Iterator[object]:
        in_c = self.session_filter(parse_filter(mapping(arguments.get("filter", {}))))
        yield 0 if in_c is None else self._engine.table.close_matching(in_c, "unknown")

    def clear_id(self, arguments: Arguments) -> Iterator[object]:
        session_id = number("id", arguments.get("id"))
        if not self._engine.table.close_session(session_id, "unknown"):
            raise DataplaneError(f"session {session_id} does not exist")
        yield 1

    def session_filter(self, wanted: SessionFilter) -> Any:
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
