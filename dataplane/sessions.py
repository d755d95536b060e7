"""Sessions as Python sees them: the table in C memory, copies of its sessions, and every step of their lives.

What is read is a copy taken at one moment (flow.Session). What is done to a session is done through its id and
generation, so that a slot that has begun another life meanwhile is not meant.
"""

import socket
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, overload

from dataplane.ffi import check, enum_names, ffi, lib, unpacker
from dataplane.flow import Decision, FlowKey, Session, Translation

HOST_ZONE: int = lib.ZONE_HOST
MARK_SEEN: int = lib.MARK_SEEN
MARK_OWN: int = lib.MARK_OWN
MARK_TRACKED: int = lib.MARK_TRACKED
TICKS: int = lib.TENTHS  # in a second
MAX_APPLICATIONS: int = lib.MAX_APPLICATIONS
MAX_ORIGINS: int = lib.MAX_ORIGINS
NO_POOL = -1

STATES = tuple(name.removeprefix("SESSION_") for name in enum_names("session_state").values())
TYPES = tuple(name.removeprefix("SESSION_") for name in enum_names("session_type").values())
END_REASONS = tuple(name.removeprefix("END_").lower().replace("_", "-") for name in enum_names("end_reason").values())
ALIVE = END_REASONS.index("none")
COUNTERS = tuple(name.lower() for name in enum_names("counter").values())[: lib.COUNTERS]
SCAN_BATCH = 1024  # copies in memory at once
EXPIRE_BATCH = 4096
RULES_BATCH = 1024
REMATCH_SLOTS = 65536

PORT_WORDS = 1024

KEY = struct.Struct("!16s16sHHBBBx")  # struct flow_key, which is in network order
SESSION_FIELDS = [
    "key", "generation", "bytes", "packets", "last_seen", "state", "type", "end_reason", "application", "flags", "rule",
    "nat_rule", "ingress", "egress", "start", "start_tick", "parent",
]  # fmt: skip
COPY = unpacker("session_copy", ["id", "timeout", *(f"session.{name}" for name in SESSION_FIELDS)])
ID = unpacker("session_copy", ["id"])
DECISION = unpacker("decision", [name for name, _ in ffi.typeof("struct decision").fields])
LIVE_CLASS = unpacker("rematch_class", [name for name, _ in ffi.typeof("struct rematch_class").fields])
VERDICT = struct.Struct("=I??")  # rule_now, log_end, ends
VERDICT_AT: int = ffi.offsetof("struct rematch_class", "rule_now")
NO_ADDRESS = bytes(16)
SNAT, DNAT, LOG_END, HOST = lib.FLAG_SNAT, lib.FLAG_DNAT, lib.FLAG_LOG_END, lib.FLAG_HOST
INSPECTED, PREDICTED, BY_SERVER = lib.FLAG_INSPECTED, lib.FLAG_PREDICTED, lib.FLAG_BY_SERVER
CACHED, OFFLOADED, ADJUSTED, WATCHED = lib.FLAG_CACHED, lib.FLAG_OFFLOADED, lib.FLAG_ADJUSTED, lib.FLAG_WATCHED
SOURCE_KEEP, SOURCE_STATIC, SOURCE_PORT, SOURCE_BOUND = enum_names("source_nat")


class InstallError(Exception):
    """A session that could not be installed; `counter` names the reason, which C has counted."""

    def __init__(self, counter: str) -> None:
        super().__init__(counter)
        self.counter = counter


class AlreadyInstalled(Exception):
    """Another packet of the same flow was faster: send this one round."""


INSTALL_FAILURES = {
    lib.INSTALL_FULL: "session_alloc_failure",
    lib.INSTALL_NO_PORT: "nat_dipp_alloc_failure",
    lib.INSTALL_CLASH: "session_duplicate_key",
}


class Copies(Sequence[Session]):
    """Copies in C memory, good until whoever gave them is asked again; read when somebody looks at them."""

    def __init__(self, pointer: Any, n: int) -> None:
        self.pointer = pointer
        self._n = n

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> Session: ...
    @overload
    def __getitem__(self, index: slice) -> list[Session]: ...
    def __getitem__(self, index: int | slice) -> Session | list[Session]:
        return self._sessions[index]

    @property
    def ids(self) -> list[int]:
        return [values[0] for values in ID.iter_unpack(self._bytes)]

    @property
    def _bytes(self) -> Any:
        return ffi.buffer(self.pointer, self._n * COPY.size)

    @cached_property
    def _sessions(self) -> list[Session]:
        now = lib.table_now()
        return [_session(values, now) for values in COPY.iter_unpack(self._bytes)]


class ClassStarts:
    """The starts of the intervals of source, destination, TCP and UDP ports; C may look while this lives."""

    def __init__(self, lines: Iterable[Sequence[int]]) -> None:
        source, destination, tcp, udp = lines
        addresses = [b"".join(start.to_bytes(16) for start in line) for line in (source, destination)]
        ports = [array("H", line) for line in (tcp, udp)]
        self._kept = (
            [ffi.from_buffer("uint8_t[]", line) for line in addresses],
            [ffi.from_buffer("uint16_t[]", line) for line in ports],
        )
        sizes = [len(source), len(destination)], [len(tcp), len(udp)]
        self.pointer = ffi.new("struct class_starts *", [*self._kept, *sizes])


class LiveClass(NamedTuple):
    """`struct rematch_class` without its verdict: live sessions that a policy cannot tell apart."""

    source: int
    destination: int
    ingress: int
    egress: int
    rule: int
    nat_rule: int
    application: int
    port: int
    from_zone: int
    to_zone: int
    proto: int
    kind: int
    sessions: int


class SessionTable:
    """The table of one daemon, for at most `max_sessions` sessions; DataplaneError if memory is refused.

    Up to `oversubscription` sessions share a translated address and port, towards different destination addresses.
    """

    def __init__(self, max_sessions: int, oversubscription: int = 1) -> None:
        self.max_sessions = max_sessions
        self.oversubscription = oversubscription
        made = lib.table_create(max_sessions, oversubscription)
        self.pointer = check(made, f"a table for {max_sessions} sessions")
        self._decision = ffi.new("struct decision *")
        self._decision_bytes = ffi.buffer(self._decision)
        self._key = ffi.new("struct flow_key *")
        self._key_bytes = ffi.buffer(self._key)
        self._slot = ffi.new("struct session *")
        self._ended = ffi.new("struct session_copy[]", EXPIRE_BATCH)
        self._begun = ffi.new("struct session_copy[]", EXPIRE_BATCH)
        self._classes = ffi.new("struct rematch_class[]", min(REMATCH_SLOTS, max_sessions))
        self._hit_rules = ffi.new("uint32_t[]", RULES_BATCH)
        self._hit_counts = ffi.new("uint64_t[]", RULES_BATCH)

    def close(self) -> None:
        """Give the memory back; no worker and no other thread may use the table any more."""
        lib.table_destroy(self.pointer)

    # ---- settings ----

    def configure(
        self,
        reject_non_syn: bool,
        aging_threshold: int,
        aging_factor: int,
        reset_non_syn: Sequence[bool] = (),
        drop_oversize: bool = False,
        calls_announced: bool = False,
    ) -> None:
        """aging_threshold: percent of the table at which timers are divided by the factor; 0 switches that off.

        reset_non_syn: by zone id, whether TCP that belongs to no session and begins none is answered by a RST.
        drop_oversize: what is too large to be read is dropped. calls_announced: PPTP calls may be predicted.
        """
        settings = [reject_non_syn, aging_threshold, aging_factor, calls_announced, drop_oversize, list(reset_non_syn)]
        lib.table_set_settings(self.pointer, ffi.new("struct settings *", settings))

    def set_timers(self, application: int, seconds: Mapping[str, int]) -> None:
        """The timers of one application's row, by the names of `struct timers`."""
        lib.table_set_timers(self.pointer, application, ffi.new("struct timers *", dict(seconds)))

    def set_zones(self, zones: Mapping[int, int]) -> None:
        """Interface index -> zone id, for all zones at once."""
        lib.table_set_zones(self.pointer, list(zones), bytes(zones.values()), len(zones))

    def set_clamps(self, clamps: Mapping[int, int]) -> None:
        """Interface index -> largest MSS of IPv4, for all interfaces at once that limit it."""
        lib.table_set_clamps(self.pointer, list(clamps), list(clamps.values()), len(clamps))

    def set_origins(self, origins: Iterable[tuple[int, int, int]]) -> None:
        """Whose address is whose: (first, last, zone id), HOST_ZONE for the firewall's own. MAX_ORIGINS at most."""
        rows = [(first.to_bytes(16), last.to_bytes(16), zone) for first, last, zone in origins][:MAX_ORIGINS]
        lib.table_set_origins(self.pointer, rows, len(rows))

    def set_reserved_ports(self, tcp: Iterable[int], udp: Iterable[int]) -> None:
        """Ports that source translation must leave alone because sockets of the firewall hold them."""
        lib.natpool_set_reserved(self.pointer, _bitmap(tcp), _bitmap(udp))

    # ---- the slow path ----

    def install(self, key: FlowKey, decision: Decision, length: int) -> int:
        """The id of the new session; `length` is that of its first packet, which a DISCARD session has refused.

        Raises InstallError (counted) or AlreadyInstalled. Slow path thread only.
        """
        _write_key(self._key_bytes, key)
        _write_decision(self._decision_bytes, decision, length)
        result: int = lib.session_install(self.pointer, lib.SHARD_SLOW, self._key, self._decision)
        if result > 0:
            return result
        if result == lib.INSTALL_EXISTS:
            raise AlreadyInstalled
        raise InstallError(INSTALL_FAILURES[result])

    def predict(self, key: FlowKey, back: FlowKey, decision: Decision, seconds: int) -> tuple[int, int]:
        """Id and generation of a new PREDICT session: 0 stands in its keys for what is not known.

        Raises InstallError (counted). Slow path thread only.
        """
        keys = ffi.new("struct flow_key[2]")
        _write_key(ffi.buffer(keys), key)
        _write_key(ffi.buffer(keys), back, KEY.size)
        _write_decision(self._decision_bytes, decision, 0)
        result: int = lib.session_predict(self.pointer, lib.SHARD_SLOW, keys, self._decision, seconds)
        if result < 0:
            raise InstallError(INSTALL_FAILURES[result])
        lib.session_read(self.pointer, result, self._slot)
        return result, self._slot.generation

    def open_pool(self, address: int) -> bool:
        """Make sure that a translated address has a port space; False when all MAX_POOLS are taken."""
        return bool(lib.natpool_open(self.pointer, address.to_bytes(16)) != NO_POOL)

    def lend_port(self, address: int, proto: int, ports: tuple[int, int], like: int) -> int | None:
        """A port of the range on a translated address, for a caller that keeps it and shares it with nobody.

        It has the parity of `like` where one is free. None: every port is taken.
        """
        pool = lib.natpool_open(self.pointer, address.to_bytes(16))
        port = -1 if pool == NO_POOL else int(lib.natpool_lend(self.pointer, pool, proto, *ports, like))
        return None if port < 0 else port

    def take_back_port(self, address: int, proto: int, port: int) -> None:
        """The end of lend_port()."""
        pool = lib.natpool_find(self.pointer, address.to_bytes(16))
        lib.natpool_take_back(self.pointer, pool, proto, port)

    def ports_used(self, address: int, ports: tuple[int, int]) -> int:
        """TCP and UDP ports of the range that sessions hold on a translated address, counted together."""
        pool = lib.natpool_find(self.pointer, address.to_bytes(16))
        return 0 if pool == NO_POOL else int(lib.natpool_used(self.pointer, pool, *ports))

    def ports_used_between(self, first: int, last: int, ports: tuple[int, int]) -> int:
        """The same of all addresses from first to last together."""
        return int(lib.natpool_used_between(self.pointer, first.to_bytes(16), last.to_bytes(16), *ports))

    def count(self, counter: int, n: int = 1) -> None:
        """Add to a counter (lib.FLOW_...) in the slow path's shard. Slow path thread only."""
        lib.table_count(self.pointer, lib.SHARD_SLOW, counter, n)

    # ---- the dispatch cache ----

    def close_cache(self) -> None:
        """Forget every template; until open_cache() it neither answers nor learns."""
        lib.cache_close(self.pointer)

    def open_cache(self, lines: Iterable[Sequence[int]]) -> int:
        """With the starts of the intervals of source, destination, TCP and UDP ports; the epoch that begins."""
        starts = ClassStarts(lines)
        return int(lib.cache_open(self.pointer, starts.pointer))

    def learn(self, epoch: int, packet: Any, pool: tuple[int, int] | None, logged: bool) -> bool:
        """What was installed last holds for all of the packet's class from now on; False: the epoch is over.

        pool: first address and number of those over which sources are spread. Slow path thread only.
        """
        first, spread = pool or (None, 0)
        if first is not None:
            self._decision.source = first.to_bytes(16)
        return bool(lib.cache_learn(self.pointer, epoch, packet, self._decision, spread, logged))

    def take_hits(self, nat: bool = False) -> list[tuple[int, int]]:
        """(rule, sessions begun or refused by it in C since this was asked last); of RULES_BATCH rules at most.

        nat: of the NAT rules.
        """
        n = lib.cache_take_hits(self.pointer, nat, self._hit_rules, self._hit_counts, RULES_BATCH)
        return [(self._hit_rules[i], self._hit_counts[i]) for i in range(n)]

    def take_begun(self) -> Copies:
        """At most EXPIRE_BATCH sessions that C has begun, as they were then. One thread at a time."""
        return Copies(self._begun, lib.cache_take_begun(self.pointer, self._begun, EXPIRE_BATCH))

    # ---- after a commit ----

    def live_classes(self, starts: ClassStarts, first: int) -> list[LiveClass]:
        """The classes of the sessions in REMATCH_SLOTS slots from `first` on, for rematch(). One thread at a time."""
        n = lib.rematch_classes(self.pointer, starts.pointer, first, REMATCH_SLOTS, self._classes)
        seen = ffi.buffer(self._classes, n * LIVE_CLASS.size)
        return [LiveClass(*values[:13]) for values in LIVE_CLASS.iter_unpack(seen)]

    def rematch(self, starts: ClassStarts, first: int, verdicts: Sequence[tuple[int, bool] | None], reason: str) -> int:
        """What becomes of the classes that live_classes() has just told, in their order: their rule from now on and
        whether their end is logged, or None: they end. How many sessions did."""
        buffer = ffi.buffer(self._classes)
        for i, verdict in enumerate(verdicts):
            rule, log_end = verdict or (0, False)
            VERDICT.pack_into(buffer, i * LIVE_CLASS.size + VERDICT_AT, rule, log_end, verdict is None)
        known, why = len(verdicts), END_REASONS.index(reason)
        return int(lib.rematch_apply(self.pointer, starts.pointer, first, REMATCH_SLOTS, self._classes, known, why))

    # ---- views ----

    def read(self, session_id: int) -> Session | None:
        """The session in a slot, alive or ended; None where there is no such slot or it was never used."""
        copy = self.copy(session_id)
        return None if copy is None else _session(COPY.unpack(ffi.buffer(copy)), lib.table_now())

    def copy(self, session_id: int) -> Any | None:
        """The same in C memory."""
        copy = ffi.new("struct session_copy *")
        copy.id = session_id
        session = ffi.addressof(copy, "session")
        if not lib.session_read(self.pointer, session_id, session) or not session.generation:
            return None
        copy.timeout = lib.session_timeout(self.pointer, session)
        return copy

    def scan(self, session_filter: Any = None, start_at: int = 0) -> Iterator[Session]:
        """Sessions in the order of their ids, from start_at on; memory for SCAN_BATCH of them at a time."""
        session_filter = session_filter or ffi.new("struct session_filter *")
        for batch, n in self.copies(session_filter, start_at, SCAN_BATCH):
            yield from Copies(batch, n)

    def copies(self, session_filter: Any, start_at: int, at_once: int) -> Iterator[tuple[Any, int]]:
        """The same in C memory: (the first, how many), good until the next are asked for."""
        batch = ffi.new("struct session_copy[]", at_once)
        following = ffi.new("uint32_t *", min(start_at, self.max_sessions + 1))
        while True:
            n = lib.table_scan(self.pointer, session_filter, following, batch, at_once)
            yield batch, n
            if not following[0]:
                return

    def filter(self, nat_rule: int | None = None, state: str | None = None) -> Any:
        """A `struct session_filter` for the sessions of one NAT rule (its number), or in one state."""
        made = ffi.new("struct session_filter *")
        made.nat_rule = 0 if nat_rule is None else nat_rule + 2
        made.state = 0 if state is None else STATES.index(state) + 1
        return made

    def count_matching(self, session_filter: Any) -> int:
        """How many sessions pass the filter."""
        return int(lib.table_count_all(self.pointer, session_filter))

    def stats(self) -> dict[str, int]:
        """The fields of `struct table_stats`."""
        stats = ffi.new("struct table_stats *")
        lib.table_read_stats(self.pointer, stats)
        return {name: getattr(stats, name) for name, _ in ffi.typeof("struct table_stats").fields}

    def collect_offloaded(self) -> None:
        """What the kernel has counted until now comes into the counters, and does not wait for the second to pass."""
        lib.offload_sweep(self.pointer, ffi.NULL, 0)

    def counters(self) -> dict[str, int]:
        """Every counter of `enum counter` by its lower-case name, summed over all threads."""
        values = ffi.new("uint64_t[]", lib.COUNTERS)
        lib.table_read_counters(self.pointer, values)
        return _by_name(values)

    def counters_of(self, shard: int) -> dict[str, int]:
        """The same of one thread alone."""
        values = ffi.new("uint64_t[]", lib.COUNTERS)
        lib.table_read_shard(self.pointer, shard, values)
        return _by_name(values)

    # ---- ends ----

    def close_session(self, session_id: int, reason: str, generation: int = 0) -> bool:
        """End a session at the ager's next tick; False if it is not alive or another generation is."""
        return bool(lib.session_close(self.pointer, session_id, generation, END_REASONS.index(reason)))

    def end_inspection(self, session_id: int, generation: int) -> bool:
        """Nothing more needs to be read of it; False as in close_session()."""
        return bool(lib.session_end_inspection(self.pointer, session_id, generation))

    def adjust(self, session_id: int, generation: int, direction: int, start: int, end: int, grown: int) -> bool:
        """The bytes [start, end) of a direction, in its sender's numbering, went on as `grown` more.

        False if the session has ended, or too many connections have been changed so.
        """
        return bool(lib.session_adjust(self.pointer, session_id, generation, direction, start, end, grown))

    def set_egress(self, session: Session, egress: int) -> bool:
        """The route moved to another interface of the same zone; False if the session has ended meanwhile."""
        return bool(lib.session_set_egress(self.pointer, session.id, session.generation, egress))

    def close_matching(self, session_filter: Any, reason: str) -> int:
        """End every session that passes the filter; how many."""
        return int(lib.table_close_all(self.pointer, session_filter, END_REASONS.index(reason)))

    def expire(self) -> Copies:
        """At most EXPIRE_BATCH sessions that have ended, now CLOSED: log them, then free() them. Ager only."""
        n = lib.table_expire(self.pointer, lib.table_now(), self._ended, EXPIRE_BATCH)
        return Copies(self._ended, n)

    def free(self, sessions: Copies) -> None:
        """CLOSED sessions leave the table and give their ports back. Ager only."""
        lib.session_free(self.pointer, sessions.ids, len(sessions))


def _by_name(values: Any) -> dict[str, int]:
    """What C has written by `enum counter`."""
    return {name: values[i] for i, name in enumerate(COUNTERS) if name != "drops_end"}


def _session(values: tuple[Any, ...], now: int) -> Session:
    (
        session_id, timeout, keys, generation, bytes_c2s, bytes_s2c, packets_c2s, packets_s2c, last_seen, states, kind,
        end_reason, application, flags, rule, nat_rule, ingress, egress, start, start_tick, parent,
    ) = values  # fmt: skip # one per field of COPY
    return Session(
        session_id,
        generation,
        read_key(keys),
        read_key(keys, KEY.size),
        STATES[states[0]],
        TYPES[kind],
        None if end_reason == ALIVE else END_REASONS[end_reason],
        (bytes_c2s, bytes_s2c),
        (packets_c2s, packets_s2c),
        timeout / TICKS,
        max(timeout - (now - last_seen & 0xFFFFFFFF), 0) / TICKS,
        start,
        (now - start_tick & 0xFFFFFFFF) / TICKS,
        application,
        rule,
        nat_rule - 1 if nat_rule else None,
        ingress,
        egress,
        flags & SNAT != 0,
        flags & DNAT != 0,
        flags & LOG_END != 0,
        flags & HOST != 0,
        parent,
        flags & INSPECTED != 0,
        flags & PREDICTED != 0,
        flags & BY_SERVER != 0,
        flags & CACHED != 0,
        flags & OFFLOADED != 0,
        flags & ADJUSTED != 0,
        flags & WATCHED != 0,
    )


def read_key(raw: Any, at: int = 0) -> FlowKey:
    """The key in the bytes of a `struct flow_key`."""
    src, dst, sport, dport, proto, zone, family = KEY.unpack_from(raw, at)
    return FlowKey(int.from_bytes(src), int.from_bytes(dst), sport, dport, proto, zone, family)


def _write_key(target: Any, key: FlowKey, at: int = 0) -> None:
    src, dst, sport, dport, proto, zone, family = key
    KEY.pack_into(target, at, src.to_bytes(16), dst.to_bytes(16), sport, dport, proto, zone, family)


def _write_decision(target: Any, decision: Decision, first_len: int) -> None:
    translation = decision.translation or NO_TRANSLATION
    source, destination = translation.source, translation.destination
    DECISION.pack_into(
        target,
        0,
        decision.egress_zone,
        _source_nat(translation),
        destination is not None,
        NO_ADDRESS if source is None else source.to_bytes(16),
        NO_ADDRESS if destination is None else destination.to_bytes(16),
        socket.htons(translation.destination_port or 0),
        *_source_ports(translation),
        decision.application,
        (decision.log_end and LOG_END)
        | (decision.host and HOST)
        | (decision.inspected and INSPECTED)
        | (bool(decision.parent) and PREDICTED)
        | (decision.by_server and BY_SERVER),
        decision.rule,
        0 if decision.nat_rule is None else decision.nat_rule + 1,
        decision.ingress,
        decision.egress,
        decision.parent,
        decision.discard,
        first_len,
        *(decision.predicted or (0, 0)),
    )


def _source_nat(translation: Translation) -> int:
    if translation.source_port is not None:
        return SOURCE_BOUND
    if translation.source is None:
        return SOURCE_KEEP
    return SOURCE_PORT if translation.ports else SOURCE_STATIC


def _source_ports(translation: Translation) -> tuple[int, int]:
    if translation.source_port is not None:
        return translation.source_port, 0
    return translation.ports or (0, 0)


NO_TRANSLATION = Translation()


def _bitmap(ports: Iterable[int]) -> Any:
    words = [0] * PORT_WORDS
    for port in ports:
        words[port // 64] |= 1 << port % 64
    return words
