"""What Prometheus is told: the counters and the session table as they are at the moment of a scrape.

Nothing is counted for its sake: C's counters are read as they stand, and the sessions are counted in one pass over the
table in C, without the interpreter's lock. Every counter of counters.py is there: a drop, an end, a decision and a miss
of the dispatch cache as a label of one family each, the others as a family of their own.

Names follow Prometheus's conventions: base units, `_total` where something only grows.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from itertools import chain, product

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from dataplane.counters import DESCRIPTIONS
from dataplane.engine import Engine
from dataplane.ffi import ffi, lib
from dataplane.latency import BOUNDS
from dataplane.pools import pool_use
from dataplane.sessions import STATES, TYPES
from dataplane.slowpath import QUEUE_LENGTH
from dataplane.sockets import NO_QUEUE, queue_states

FRESH = 1.0  # seconds for which a scrape's text is good: however many ask, the work is done once
PROTOCOLS = ("tcp", "udp", "icmp", "other")

# What many counters are together: prefix of their names -> family, label, help.
TOGETHER = {
    "session_end_": ("dataplane_session_ends", "reason", "Sessions that have ended"),
    "flow_slowpath_": (
        "dataplane_slow_path_decisions",
        "outcome",
        "Packets that the slow path has let go on or denied",
    ),
    "dispatch_": ("dataplane_dispatch_misses", "reason", "First packets that the dispatch cache has left to Python"),
}
ALONE = {"dispatch_learned"}
TRAFFIC = {f"{kind}_{way}" for kind, way in product(("pkt", "bytes"), ("recv", "again", "offload"))}


class EngineCollector(Collector):
    """Reads one engine, whenever it is asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        counters = self._engine.table.counters()
        return chain(
            self._about(),
            self._sessions(),
            traffic(counters),
            events(counters),
            self._queues(),
            self._timing(),
            self._pools(),
            self._rules(),
        )

    def _about(self) -> Iterator[Metric]:
        policy = self._engine.policy
        yield InfoMetricFamily("dataplane_build", "The program that runs", {"version": version("dataplane")})
        rules = GaugeMetricFamily("dataplane_config_rules", "Rules in force, predefined ones too", labels=["base"])
        rules.add_metric(["security"], len(policy.security_rules))
        rules.add_metric(["nat"], len(policy.nat_rules))
        yield rules
        yield gauge("dataplane_config_zones", "Zones in force", len(self._engine.config.zones))

    def _sessions(self) -> Iterator[Metric]:
        table, census = self._engine.table, ffi.new("struct census *")
        lib.table_census(table.pointer, census)
        yield self._by_kind(census)
        yield self._by_application(census)
        yield gauge("dataplane_sessions_offloaded", "Live sessions that the kernel forwards", census.offloaded)
        yield gauge("dataplane_sessions_inspected", "Live sessions that an ALG reads", census.inspected)
        stats = table.stats()
        yield gauge("dataplane_sessions_limit", "Sessions that fit into the table", stats["max_sessions"])
        used = stats["allocated"] / stats["max_sessions"]
        yield gauge("dataplane_session_table_utilization_ratio", "Share of the session table in use", used)

    def _by_kind(self, census: object) -> Metric:
        """Kinds that the table has none of are left out, but for ACTIVE flows, which somebody may wait for."""
        labels = ["state", "type", "protocol"]
        family = GaugeMetricFamily("dataplane_sessions", "Live sessions", labels=labels)
        counts = ffi.unpack(ffi.cast("uint32_t *", census), len(STATES) * len(TYPES) * len(PROTOCOLS))
        for kind, n in zip(product(STATES, TYPES, PROTOCOLS), counts, strict=True):
            if n or kind[:2] == ("ACTIVE", "FLOW"):
                family.add_metric([word.lower() for word in kind], n)
        return family

    def _by_application(self, census: object) -> Metric:
        family = GaugeMetricFamily("dataplane_application_sessions", "Live sessions", labels=["application"])
        rows = ffi.unpack(getattr(census, "application"), lib.MAX_APPLICATIONS)  # noqa: B009 # a field of C
        for name, n in zip(self._engine.names.applications.names(), rows, strict=False):
            if n:
                family.add_metric([name], n)
        return family

    def _queues(self) -> Iterator[Metric]:
        labels = ["queue", "role"]
        depth = GaugeMetricFamily("dataplane_queue_depth_packets", "Packets that wait in an NFQUEUE", labels=labels)
        seen = CounterMetricFamily("dataplane_queue_packets", "Packets that an NFQUEUE has taken", labels=labels)
        lost = CounterMetricFamily(
            "dataplane_queue_dropped_packets",
            "Packets that the kernel has dropped because an NFQUEUE or its reader's buffer was full",
            labels=[*labels, "cause"],
        )
        queues = self._engine.queues
        states = queue_states(queues)
        for number, role in queues.items():
            state, where = states.get(number, NO_QUEUE), [str(number), role]
            depth.add_metric(where, state.waiting)
            seen.add_metric(where, state.seen)
            lost.add_metric([*where, "queue"], state.full)
            lost.add_metric([*where, "reader"], state.lost)
        yield from (depth, seen, lost)
        yield gauge("dataplane_queue_limit_packets", "Packets that may wait in an NFQUEUE", QUEUE_LENGTH)

    def _timing(self) -> Iterator[Metric]:
        waits = self._engine.latency.read()
        yield HistogramMetricFamily(
            "dataplane_slow_path_latency_seconds",
            "From a packet's arrival in the kernel to its verdict by the slow path",
            buckets=list(zip([*map(str, BOUNDS), "+Inf"], waits.cumulative, strict=True)),
            sum_value=waits.total,
        )
        yield gauge(
            "dataplane_ager_lag_seconds",
            "Beyond a tenth of a second, how long a due session waits",
            self._engine.ager.behind,
        )
        used = CounterMetricFamily("dataplane_thread_cpu_seconds", "Processor time of a thread", labels=["thread"])
        for name, seconds in self._engine.resources.loads.seconds().items():
            used.add_metric([name], seconds)
        yield used

    def _pools(self) -> Iterator[Metric]:
        engine, labels = self._engine, ["rule", "type"]
        used = GaugeMetricFamily("dataplane_nat_pool_used", "Ports, or addresses, of a NAT pool in use", labels=labels)
        size = GaugeMetricFamily("dataplane_nat_pool_capacity", "Ports, or addresses, of a NAT pool", labels=labels)
        for pool in engine.policy.pools:
            use = pool_use(pool, engine.table, engine.bindings, engine.slowpath.world)
            used.add_metric([pool.rule, pool.type.value], use.used)
            size.add_metric([pool.rule, pool.type.value], use.capacity)
        yield from (used, size)

    def _rules(self) -> Iterator[Metric]:
        engine = self._engine
        engine.catch_up()
        hits = CounterMetricFamily(
            "dataplane_rule_hits", "Sessions and denied first packets that a rule has matched", labels=["base", "rule"]
        )
        failures = CounterMetricFamily(
            "dataplane_nat_failures", "Sessions refused because a rule's pool was exhausted", labels=["rule"]
        )
        for rule in engine.policy.security_rules:
            hits.add_metric(["security", rule.name], engine.hits.of(engine.names.rules.find(rule.name)).count)
        for nat_rule in engine.policy.nat_rules:
            number = engine.names.nat_rules.find(nat_rule.name)
            hits.add_metric(["nat", nat_rule.name], engine.nat.hits.of(number).count)
            failures.add_metric([nat_rule.name], engine.nat.failures.of(number).count)
        yield from (hits, failures)


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def traffic(counters: Mapping[str, int]) -> Iterator[Metric]:
    """What has come, each packet once: to the queues, or past them through the kernel's own program."""
    for unit, kind in (("packets", "pkt"), ("bytes", "bytes")):
        family = CounterMetricFamily(f"dataplane_received_{unit}", f"{unit.capitalize()} received", labels=["path"])
        family.add_metric(["queue"], max(counters[f"{kind}_recv"] - counters[f"{kind}_again"], 0))
        family.add_metric(["offload"], counters[f"{kind}_offload"])
        yield family


def events(counters: Mapping[str, int]) -> Iterator[Metric]:
    """Every other counter."""
    drops = CounterMetricFamily(
        "dataplane_drops", "Packets dropped and sessions refused", labels=["reason", "category"]
    )
    together = {
        prefix: CounterMetricFamily(name, text, labels=[label]) for prefix, (name, label, text) in TOGETHER.items()
    }
    for name, value in counters.items():
        severity, category, _, description = DESCRIPTIONS[name]
        prefix = next((prefix for prefix in TOGETHER if name.startswith(prefix) and name not in ALONE), None)
        if severity == "drop":
            drops.add_metric([name, category], value)
        elif prefix is not None:
            together[prefix].add_metric([name.removeprefix(prefix)], value)
        elif name not in TRAFFIC:
            yield CounterMetricFamily(f"dataplane_{name}", description, value=value)
    yield from (drops, *together.values())


class Scrapes:
    """The text of a scrape in the format that is asked for; at most one is made in FRESH seconds. Any thread."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(engine))
        ProcessCollector(registry=self._registry)
        self._lock = threading.Lock()
        self._made: dict[str, tuple[float, bytes]] = {}  # content type -> when, text

    def text(self, accept: str) -> tuple[str, bytes]:
        """Content type and body."""
        encoder, content_type = choose_encoder(accept)
        with self._lock:
            when, body = self._made.get(content_type, (0.0, b""))
            if not body or time.monotonic() - when >= FRESH:
                body = encoder(self._registry)
                self._made = {content_type: (time.monotonic(), body)}
        return content_type, body
