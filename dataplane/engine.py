"""The composition root: builds every part from a configuration, starts and stops every thread, and wires them.

Start: table and policy, then whoever may be asked (routes, log), then the threads that serve the queues, and only when
all of them are bound the rules that fill the queues; forwarding is switched on last. Stop is the same road back, so
that no packet crosses unseen at either end.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from dataplane.ager import Ager
from dataplane.alg import factories
from dataplane.bindings import Bindings
from dataplane.counters import GlobalCounters, HitCounts, NatCounts
from dataplane.diag.diagnosis import Diagnosis
from dataplane.diag.witness import Witness
from dataplane.dispatch import Dispatch
from dataplane.errors import DataplaneError
from dataplane.events import HostLog, Spells
from dataplane.ffi import ffi, lib
from dataplane.flow import Session
from dataplane.inspection import Inspection
from dataplane.latency import Latency
from dataplane.logs import SystemLog, traffic_record
from dataplane.names import Names
from dataplane.offload import Offload
from dataplane.policy.applications import ICMP, TCP, UDP
from dataplane.policy.changes import RuleIds, identify
from dataplane.policy.compile import CompiledPolicy, compile_policy
from dataplane.policy.model import Config, NatType
from dataplane.pools import pool_use
from dataplane.quotas import Quotas
from dataplane.records import Records
from dataplane.rematch import Judge, Outcome, connections_to_end, preview, rematch
from dataplane.replies import Replies
from dataplane.resources import Resources, ThreadLoads
from dataplane.routes import Monitor, is_link_local
from dataplane.rules import Hooks
from dataplane.rules.answering import Answering
from dataplane.rules.ingress import Ingress
from dataplane.rules.probe import find_backend, remove_leavings
from dataplane.rules.sysctls import Sysctls
from dataplane.sessions import HOST_ZONE, MARK_OWN, MAX_APPLICATIONS, Copies, SessionTable
from dataplane.sinks import TrafficLog, log_file_sink
from dataplane.slowpath import HOST_INBOUND, QUEUE_LENGTH, SlowPath, World
from dataplane.sockets import NO_QUEUE, queue_states
from dataplane.wires import Wires

MAX_WORKERS: int = lib.SHARD_SLOW
MAX_ANSWERED = 4096
OTHER = 255  # a protocol without timers of its own
IP_TCP_HEADERS = 40  # bytes

log = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """A configuration that may follow the one in force."""

    config: Config
    policy: CompiledPolicy
    ids: RuleIds


class Engine:
    """One running firewall. start() raises DataplaneError with nothing left behind.

    `failed` is set when a thread that serves a queue ends by itself: then abandon() it, do not stop() it.
    """

    def __init__(self, config: Config, runtime_dir: Path, log_dir: Path, ids: RuleIds | None = None) -> None:
        self.config = config
        self.policy: CompiledPolicy = compile_policy(config)
        self.ids = ids or identify(config)
        self._changing = threading.RLock()  # one change at a time, of the host or of the policy
        self.failed = threading.Event()
        self._losing = threading.Lock()
        self._catching_up = threading.Lock()
        self.names = Names(MAX_APPLICATIONS, HOST_ZONE)
        self.hits = HitCounts()
        self.nat = NatCounts()
        self.latency = Latency()
        self.counters = GlobalCounters()
        self.table = SessionTable(config.settings.session.max_sessions, config.settings.nat.oversubscription)
        self.quotas = Quotas(self.table)
        self.bindings = Bindings(self.table, self.quotas)
        self.log_dir = log_dir
        self.traffic_log = TrafficLog(
            config.log, log_dir, self._records_lost, self.names.interface_index, self._rule_id
        )
        self.system_log = log_file_sink(log_dir / "system.json", config.log.rotate, self._records_lost)
        self._system_handler = SystemLog(self.system_log.write)
        self.monitor = Monitor(self._host_changed)
        self._actions: dict[int, str] = {}  # rule number -> action, for the records that C writes
        self.records = Records()
        self._sysctls = Sysctls(runtime_dir)
        self._answering = Answering(runtime_dir)
        self._wires = Wires(config.virtual_wires, runtime_dir)
        self._backend = find_backend()
        self._replies = Replies(MARK_OWN)
        self.inspection = Inspection(self.table)
        self.dispatch = Dispatch(self.table)
        self.offload = Offload(self.table, Ingress(runtime_dir), config.settings.offload)
        self._load_settings()
        self.slowpath = self._make_slowpath()
        self.resources = Resources(ThreadLoads(self.threads), self._utilization)
        self.diagnosis = Diagnosis(self.table, self.names, log_dir / "packet-diag", self._watch_slowpath)
        self._host_log = HostLog(self.monitor.links)
        watch = Spells(self.table.counters()).look
        self.ager = Ager(self.table, self.catch_up, self._sessions_ended, self._sessions_leave, self._queues, watch)
        self.followers: list[Callable[[], None]] = []  # who else lives by the configuration, told of every commit
        self._workers: list[tuple[Any, threading.Thread]] = []
        self._undo: list[Callable[[], None]] = []  # what stop() has to do, the last first

    def start(self) -> None:
        """Each step beside what takes it back. What was not begun is not taken back: it may be somebody else's."""
        steps: tuple[tuple[Callable[[], None], Callable[[], None]], ...] = (
            (self._start_system_log, self._stop_system_log),
            (self.traffic_log.start, self.traffic_log.stop),
            (self.ager.start, self._end_sessions),
            (self.slowpath.start, self.slowpath.stop),
            (self._open_workers, self._close_workers),
            (self._install_rules, self._backend.remove),
            (self._wires.build, self._wires.remove),
            (self._host_found, self._restore_host),
            (self.monitor.start, self.monitor.stop),
            (self.offload.start, self.offload.stop),
            (self.resources.start, self.resources.stop),
        )
        try:
            for step, undo in steps:
                self._undo.append(undo)
                step()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Take everything back, last step first; sessions that are alive end and are logged."""
        self.diagnosis.stop()
        while self._undo:
            try:
                self._undo.pop()()
            except Exception:
                log.exception("stopping goes on after a failure")
        self._replies.close()
        # The table stays mapped: a thread that did not end in time may still look at it, and the process ends now.

    def reopen_logs(self) -> None:
        """Who rotates log files has moved them; who mends a server wants it to be tried now."""
        for sink in (*self.traffic_log.sinks, self.system_log):
            sink.reopen()
        log.info("the logs are opened anew")

    def abandon(self) -> None:
        """Leave everything as a killed daemon does: the rules stay and drop (or pass) what nobody reads."""
        log.critical("a vital thread has ended; the rules stay in force until the next start")
        self.system_log.stop()

    def turns(self) -> dict[str, int]:
        """How often each thread that traffic needs has gone round; one whose count stays does not move."""
        workers = {thread.name: lib.worker_turns(worker) for worker, thread in self._workers}
        return {**workers, self.slowpath.name: self.slowpath.turns, self.ager.name: self.ager.turns}

    # ---- parts ----

    @property
    def _worker_count(self) -> int:
        wanted = self.config.settings.queue.workers
        return min(wanted if isinstance(wanted, int) else len(os.sched_getaffinity(0)), MAX_WORKERS)

    @property
    def _slow_queue(self) -> int:
        return self.config.settings.queue.first + self._worker_count

    @property
    def _queues(self) -> range:
        return range(self.config.settings.queue.first, self._slow_queue + 1)

    @property
    def queues(self) -> dict[int, str]:
        """What each NFQUEUE is for: `hot`, those of the workers in the order of their shards, or `slow`."""
        return {number: "slow" if number == self._slow_queue else "hot" for number in self._queues}

    def threads(self) -> dict[str, int]:
        """The kernel's ids of the threads that the work is done by."""
        workers = {f"worker-{shard}": thread for shard, (_, thread) in enumerate(self._workers)}
        threads = {**workers, "slowpath": self.slowpath, "ager": self.ager}
        return {name: thread.native_id for name, thread in threads.items() if thread.native_id is not None}

    def _utilization(self) -> dict[str, float]:
        """Percent in use, in PAN-OS's words: buffers are the fullest hot queue, descriptors the slow one."""
        stats, states = self.table.stats(), queue_states(self._queues)
        filled = {number: 100 * states.get(number, NO_QUEUE).waiting / QUEUE_LENGTH for number in self._queues}
        pools = (pool_use(pool, self.table, self.bindings, self.slowpath.world) for pool in self.policy.pools)
        return {
            "session": 100 * stats["allocated"] / stats["max_sessions"],
            "packet buffer": max(filled[number] for number in self._queues if number != self._slow_queue),
            "packet descriptor": filled[self._slow_queue],
            "nat pool": max((min(use.percent, 100.0) for use in pools), default=0.0),
        }

    @property
    def _routed(self) -> tuple[str, ...]:
        """The zones' interfaces that are no ports of a virtual wire."""
        return tuple(name for name in self.policy.interface_zone if name not in self._wires.ports)

    def _make_slowpath(self) -> SlowPath:
        return SlowPath(
            self._slow_queue,
            self.table,
            self.bindings,
            self.quotas,
            self.inspection,
            self.dispatch,
            self._world(),
            self.hits,
            self.nat,
            self.latency,
            self._replies,
            self._record,
            self.failed,
        )

    def _hooks(self) -> Hooks:
        queue = self.config.settings.queue
        return Hooks(
            interfaces=self._routed,
            first_queue=queue.first,
            workers=self._worker_count,
            slow_queue=self._slow_queue,
            fail_open=queue.fail_open,
            wires=self._wires.names,
        )

    def _open_workers(self) -> None:
        queue = self.config.settings.queue
        for shard in range(self._worker_count):
            number = queue.first + shard
            worker = lib.worker_open(self.table.pointer, shard, number, self._slow_queue, queue.fail_open)
            if worker == ffi.NULL:
                reason = "another program reads it" if ffi.errno == errno.EPERM else os.strerror(ffi.errno)
                raise DataplaneError(f"NFQUEUE {number}: {reason}")
            thread = threading.Thread(
                target=self._run_worker, args=(worker, number), name=f"worker-{number}", daemon=True
            )
            self._workers.append((worker, thread))
            thread.start()

    def _run_worker(self, worker: Any, number: int) -> None:
        if error := lib.worker_run(worker):
            log.critical("the worker of queue %d ended: %s", number, os.strerror(error))
            self.failed.set()

    def _close_workers(self) -> None:
        for worker, _ in self._workers:
            lib.worker_stop(worker)
        for worker, thread in self._workers:
            thread.join()
            lib.worker_close(worker)
        self._workers.clear()

    def _start_system_log(self) -> None:
        self.system_log.start()
        logging.getLogger().addHandler(self._system_handler)

    def _stop_system_log(self) -> None:
        logging.getLogger().removeHandler(self._system_handler)
        self.system_log.stop()

    def _end_sessions(self) -> None:
        self.ager.stop()
        self.table.close_matching(ffi.new("struct session_filter *"), "unknown")
        self.ager.expire()

    def _install_rules(self) -> None:
        self._backend.install(self._hooks())
        remove_leavings(keep=self._backend)

    def _restore_host(self) -> None:
        try:
            self._answering.clear()
        finally:
            self._sysctls.restore()

    # ---- another policy ----

    def preview(self, candidate: Candidate) -> Outcome:
        """Which sessions commit() would end now."""
        with self._changing:
            if not rematches(candidate):
                return Outcome()
            return preview(self.table, self._judge(candidate, self.policy, self.ids))

    def connections_to_end(self, candidate: Candidate) -> int:
        """How many of these are TCP connections to the firewall itself."""
        with self._changing:
            if not rematches(candidate):
                return 0
            return connections_to_end(self.table, self._judge(candidate, self.policy, self.ids))

    def candidate(self, config: Config, ids: RuleIds) -> Candidate:
        """A configuration, compiled to follow the one in force. DataplaneError if it has too many applications."""
        policy = compile_policy(config, self.policy.zone_ids)
        self.names.applications.demand_room(policy.applications.by_name)
        return Candidate(config, policy, ids)

    def commit(self, candidate: Candidate) -> Outcome:
        """Live by another policy from now on. DataplaneError, and the one before is in force, if the host refuses.

        First packets are decided by one policy or the other, never by parts of both: the dispatch cache is empty while
        anything changes, and the slow path takes up the new world between two packets. Sessions are judged before they
        follow the host, so that a commit's own doing has a commit's reason.
        """
        with self._changing:
            before, zones = Candidate(self.config, self.policy, self.ids), self.slowpath.world.zone_by_interface
            try:
                self._take_up(candidate)
            except Exception as error:
                log.error("the commit failed and is taken back: %s", error)
                self._take_up(before)
                raise DataplaneError(f"the commit was taken back: {error}") from error
            outcome = Outcome()
            if rematches(candidate):
                judge = self._judge(candidate, before.policy, before.ids)
                outcome = rematch(self.table, judge, self.slowpath.world.rule_numbers)
            self._follow_sessions("link", zones)
            return outcome

    def _take_up(self, candidate: Candidate) -> None:
        self.dispatch.forget()
        before = self._hooks()
        self.config, self.policy, self.ids = candidate
        after = self._hooks()
        if after != before:
            self._backend.install(after)
        self._load_settings()
        for follow in (self._follow_log, *self.followers):
            follow()
        self._follow_host("link")
        self._sysctls.release(set(before.interfaces) - set(after.interfaces))

    def _follow_log(self) -> None:
        self.traffic_log.follow(self.config.log)

    def _judge(self, candidate: Candidate, before: CompiledPolicy, ids_before: RuleIds) -> Judge:
        world = self._world_of(candidate.policy, (), ())
        return Judge(self.table, self.names, before, world, (ids_before, candidate.ids))

    # ---- what the policy says to C ----

    def _load_settings(self) -> None:
        session = self.config.settings.session
        aging = session.accelerated_aging
        self.table.configure(
            session.tcp_reject_non_syn,
            aging.threshold if aging.enabled else 0,
            aging.scaling_factor,
            self.policy.reset_non_syn,
            self.config.settings.alg.oversize == "drop",
            self.config.settings.alg.pptp.enabled,
        )
        self.quotas.limit(session.max_per_source, self.config.settings.nat.max_ports_per_source)
        self.names.set_zones(self.policy.zone_ids)
        for name in self.policy.applications.by_name:
            self.table.set_timers(self.names.applications.number(name), self._timers(name))
        rules = self.policy.security_rules
        for number, rule in zip(self._rule_numbers(self.policy, self.ids), rules, strict=True):
            self._actions[number] = rule.action.value

    def _timers(self, application: str) -> dict[str, int]:
        tcp, udp, icmp, other = (self.policy.timeouts(application, proto) for proto in (TCP, UDP, ICMP, OTHER))
        return {
            "tcp_init": tcp.init,
            "tcp_handshake": tcp.handshake,
            "tcp": tcp.idle,
            "tcp_half_closed": tcp.half_closed,
            "tcp_time_wait": tcp.time_wait,
            "tcp_unverified_rst": tcp.unverified_rst,
            "udp": udp.idle,
            "icmp": icmp.idle,
            "other": other.idle,
            "discard_tcp": tcp.discard,
            "discard_udp": udp.discard,
            "discard_other": other.discard,
        }

    def _rule_numbers(self, policy: CompiledPolicy, ids: RuleIds) -> tuple[int, ...]:
        return self.names.rules.numbers((rule.name for rule in policy.security_rules), ids.security)

    def _world(self) -> World:
        policy, names = self.policy, self.names
        return self._world_of(
            policy,
            self._rule_numbers(policy, self.ids),
            names.nat_rules.numbers((rule.name for rule in policy.nat_rules), self.ids.nat),
        )

    def _world_of(self, policy: CompiledPolicy, rules: tuple[int, ...], nat_rules: tuple[int, ...]) -> World:
        names = self.names
        zones = {
            link.ifindex: policy.interface_zone[link.name]
            for link in self.monitor.links
            if link.name in policy.interface_zone
        }
        return World(
            policy=policy,
            fib=self.monitor.fib,
            links=self.monitor.links,
            zone_by_interface=zones,
            rule_numbers=rules,
            nat_rule_numbers=nat_rules,
            application_rows={name: names.applications.number(name) for name in policy.applications.by_name},
            host_inbound_rule=names.rules.number(HOST_INBOUND),
            no_rule=names.rules.number(""),
            peers=self._wires.peers(self.monitor.links),
            only_tagged=self._wires.only_tagged(self.monitor.links),
            algs={
                (names.applications.number(name), proto): factory
                for (name, proto), factory in factories(policy.config.settings.alg).items()
            },
        )

    # ---- what happens ----

    def _host_found(self) -> None:
        """As if all of it had just changed; before the monitor thread runs."""
        self._host_changed("link")

    def _host_changed(self, kind: str) -> None:
        """A link, an address or a route is another one than before."""
        with self._changing:
            zones = self.slowpath.world.zone_by_interface
            self._follow_host(kind)
            self._follow_sessions(kind, zones)

    def _follow_host(self, kind: str) -> None:
        """New sessions are decided by the host as it is now."""
        self._host_log.changed(kind, self.monitor.links)
        now = self._world()
        self.slowpath.set_world(now)
        self._tell_table(now)
        if kind in ("link", "address"):
            if self._routed:
                self._sysctls.apply(self._routed)
            self._answering.set(self._answered(), self.monitor.links)
            self._wires.follow(self.monitor.links)
        self.offload.follow(now)

    def _follow_sessions(self, kind: str, zones: Mapping[int, int]) -> None:
        """Live ones go on as the host is now, or end; `zones` by interface, as they were before."""
        if kind in ("link", "address"):
            self._follow_addresses()
        if kind == "route" or self.slowpath.world.zone_by_interface != zones:
            self._follow_routes()

    def _answered(self) -> Iterator[int]:
        """Translated addresses that lie in an interface's subnet; a large prefix only as far as MAX_ANSWERED goes."""
        for link in self.monitor.links:
            for (first, last), (low, high) in product(link.subnets, self.policy.answered):
                low, high = max(first, low), min(last, high)
                if high - low >= MAX_ANSWERED:
                    log.warning("only %d translated addresses on %s are answered for", MAX_ANSWERED, link.name)
                yield from range(low, min(high + 1, low + MAX_ANSWERED))

    def _tell_table(self, world: World) -> None:
        """What C needs to know of the host: zones and clamps by interface, and whose address is whose."""
        self.names.set_interfaces({link.ifindex: link.name for link in world.links})
        self.records.know(self.names, self._actions)
        self.table.set_zones(world.zone_by_interface)
        self.table.set_clamps(mss_clamps(world))
        own = [(address, address, HOST_ZONE) for link in world.links for address in link.addresses]
        subnets = [
            (first, last, world.zone_by_interface[link.ifindex])
            for link in world.links
            if link.ifindex in world.zone_by_interface
            for first, last in link.subnets
            if not is_link_local(first)
        ]
        self.table.set_origins(own + subnets)

    def _follow_routes(self) -> None:
        """Sessions whose route moved within its zone follow it; those whose route left their zone end."""
        world = self.slowpath.world
        for session in self.table.scan():
            route = world.fib.lookup(session.s2c.src)
            if (
                session.host
                or session.type != "FLOW"
                or session.state != "ACTIVE"
                or route is None
                or route.kind != "unicast"
            ):
                continue
            if session.ingress in world.peers:
                continue
            zone = world.zone_by_interface.get(route.ifindex, 0)
            if zone != session.s2c.zone:
                self._end(session, lib.SESSION_ZONECHANGE)
            elif route.ifindex != session.egress:
                self.table.set_egress(session, route.ifindex)

    def _follow_addresses(self) -> None:
        """Sessions translated to an address that their interface has exchanged for another end: nobody answers for it
        any more. While there is no other one, it may come back."""
        world = self.slowpath.world
        for number, rule in world.nat_rules().items():
            link = None if rule.pool is None else world.links.by_name(rule.pool.interface or "")
            if link is None or world.interface_address(link.name, rule.nat_type is NatType.IPV4) is None:
                continue
            for session in self.table.scan(self.table.filter(nat_rule=number)):
                if session.source_nat and session.s2c.dst not in link.addresses:
                    self._end(session, lib.SESSION_ADDRESSCHANGE)

    def _end(self, session: Session, counter: int) -> None:
        """Because of what became of the host; its record says `unknown`."""
        if self.table.close_session(session.id, "unknown", session.generation):
            lib.table_count(self.table.pointer, lib.SHARD_MONITOR, counter, 1)

    def _record(self, event: str, session: Session, action: str, reason: str | None) -> None:
        if self.config.log.traffic:
            self.traffic_log.write(traffic_record(event, session, self.names, action, reason))

    def _watch_slowpath(self, witness: Witness | None) -> None:
        self.slowpath.witness = witness

    def catch_up(self) -> None:
        """Count and log what the dispatch cache has begun or refused since the last time. Any thread."""
        with self._catching_up:
            while hits := self.table.take_hits():
                for rule, n in hits:
                    self.hits.add(rule, n)
            while hits := self.table.take_hits(nat=True):
                for rule, n in hits:
                    self.nat.hits.add(rule, n)
            while sessions := self.table.take_begun():
                self._write_lines(self.records.begun(sessions))

    def _sessions_ended(self, sessions: Copies) -> None:
        with self._catching_up:
            self._write_lines(self.records.ended(sessions))

    def _write_lines(self, made: Iterable[tuple[bytes, int]]) -> None:
        if self.config.log.traffic:
            for lines, n in made:
                self.traffic_log.write_lines(lines, n)

    def _sessions_leave(self, sessions: Copies) -> None:
        """Whoever holds nothing need not look at them."""
        for holder in (self.inspection, self.bindings, self.quotas):
            if not holder.idle:
                holder.ended(sessions)

    def _rule_id(self, rule: str) -> str:
        """Of a rule's name; of one that is no rule of the policy none."""
        return self.ids.security.get(rule, "")

    def _records_lost(self, n: int) -> None:
        with self._losing:  # a shard has one writer at a time, and anybody may log
            lib.table_count(self.table.pointer, lib.SHARD_LOG, lib.LOG_RECORD_LOST, n)


def rematches(candidate: Candidate) -> bool:
    """Whether live sessions are judged anew once it is in force."""
    return candidate.config.settings.session.rematch_on_commit


def mss_clamps(world: World) -> dict[int, int]:
    """The largest MSS by interface index; `auto` is what the headers of IPv4 and TCP leave of a full packet."""
    wanted = {link.ifindex: (world.policy.mss_clamps.get(link.name), link.mtu) for link in world.links}
    return {
        ifindex: mtu - IP_TCP_HEADERS if mss == "auto" else mss
        for ifindex, (mss, mtu) in wanted.items()
        if mss is not None
    }
