"""Rematch: after a commit no session goes on that the new policy would refuse.

    security   judged anew, by the zones and original addresses that it began with; its rule is the one that matches now
    host       host-inbound is asked again
    children   of an ALG go the way of their parent, or of the rule that allowed it once the parent is gone
    zones      a session whose interface has changed its zone ends
    NAT        is not done anew: a session keeps its translation until it ends. It ends at once if the rule that
               translated it is gone or disabled, or has been changed so that it would translate it otherwise

Sessions are judged by classes (rematch.c), so that a million of them cost no more than what is different among them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dataplane.dispatch import Starts, starts_of
from dataplane.ffi import lib
from dataplane.flow import Session
from dataplane.names import Names
from dataplane.nat import InterfaceAddress, NoAddress, translate
from dataplane.policy.applications import TCP, UDP
from dataplane.policy.changes import NAT, SECURITY, RuleIds
from dataplane.policy.compile import CompiledNatRule, CompiledPolicy, Pool
from dataplane.policy.model import Action, SourceType
from dataplane.policy.prefix import Unmappable
from dataplane.sessions import REMATCH_SLOTS, TICKS, ClassStarts, LiveClass, SessionTable
from dataplane.slowpath import First, World, nat_rule_of

Cause = tuple[str, str]
"""Section and name of what ends a session."""


class Verdict(NamedTuple):
    """What becomes of a session: it has this rule from now on, or ends because of `cause`."""

    rule: int | None = None
    """Index in the policy; None: it keeps the one that it has."""
    cause: Cause | None = None


@dataclass(slots=True)
class Outcome:
    """How many sessions a commit ends, and why."""

    ended: Counter[tuple[Cause, Cause]] = field(default_factory=Counter)
    """By (what refuses them now, the security rule that they had)."""
    to_host: int = 0
    """TCP connections to the firewall itself among them: somebody may be sitting at one."""

    @property
    def total(self) -> int:
        return self.ended.total()

    def add(self, names: Names, classes: Iterable[LiveClass], verdicts: Iterable[Verdict]) -> None:
        for seen, verdict in zip(classes, verdicts, strict=True):
            if verdict.cause is not None:
                self.ended[verdict.cause, (SECURITY, names.rules.name(seen.rule))] += seen.sessions
                self.to_host += seen.sessions if _is_to_host(seen) else 0

    def add_translated(self, names: Names, session: Session) -> None:
        """One that a changed NAT rule would translate otherwise."""
        nat = NAT, names.nat_rules.name(session.nat_rule or 0)
        self.ended[nat, (SECURITY, names.rules.name(session.rule))] += 1
        self.to_host += session.host and session.c2s.proto == TCP


class Judge:
    """What `world`'s policy says about live sessions; `before` is the policy that they have lived by."""

    def __init__(
        self,
        table: SessionTable,
        names: Names,
        before: CompiledPolicy,
        world: World,
        ids: tuple[RuleIds, RuleIds],
    ) -> None:
        self._table = table
        self.names = names
        self._policy = world.policy
        self._world = world
        self.starts: Starts = starts_of(world.policy, ())
        self._zones = {number for name, number in before.zone_ids.items() if world.policy.zone_ids.get(name) == number}
        self._allowing = {
            ids[1].security.get(rule.name, rule.name): index
            for index, rule in enumerate(world.policy.security_rules)
            if rule.action is Action.ALLOW and not rule.disabled
        }
        old, new = (_by_id(policy, own.nat) for policy, own in zip((before, world.policy), ids, strict=True))
        self._nat = new
        self._nat_ids = ids[1].nat
        self._changed_nat = {id for id, rules in new.items() if id in old and old[id] != rules}

    def judge(self, seen: LiveClass) -> Verdict:
        """The verdict on every session of a class, but for what a changed NAT rule says of each."""
        if seen.kind == lib.REMATCH_CHILD:
            return self._child(seen)
        port = seen.port if seen.kind == lib.REMATCH_TO_HOST else self._port(seen)
        return self._verdict(seen, self.starts.source[seen.source], self.starts.destination[seen.destination], port)

    def judge_session(self, session: Session) -> Verdict:
        """The same for one session that is no child."""
        key = session.c2s
        seen = LiveClass(
            source=0,
            destination=0,
            ingress=session.ingress,
            egress=session.egress,
            rule=session.rule,
            nat_rule=session.nat_rule + 1 if session.nat_rule is not None and _is_translated(session) else 0,
            application=session.application,
            port=0,
            from_zone=key.zone,
            to_zone=session.s2c.zone,
            proto=key.proto,
            kind=lib.REMATCH_TO_HOST if session.host else lib.REMATCH_THROUGH,
            sessions=1,
        )
        return self._verdict(seen, key.src, key.dst, session.s2c.sport if session.host else key.dport)

    def told(self, seen: LiveClass, verdict: Verdict, rule_numbers: Sequence[int]) -> tuple[int, bool] | None:
        """The verdict as C takes it."""
        if verdict.cause is not None:
            return None
        if verdict.rule is None:
            return seen.rule, False
        return rule_numbers[verdict.rule], self._policy.security_rules[verdict.rule].log_end

    def translated_otherwise(self) -> Iterator[Session]:
        """Sessions whose NAT rule has changed, and would not translate them as it has."""
        for id in self._changed_nat:
            for session in self._table.scan(self._table.filter(nat_rule=self.names.nat_rules.find_id(id))):
                if session.type == "FLOW" and session.state == "ACTIVE" and not self._gives(session):
                    yield session

    def _verdict(self, seen: LiveClass, src: int, dst: int, port: int) -> Verdict:
        if (cause := self._out_of_place(seen)) is not None:
            return Verdict(cause=cause)
        if seen.kind == lib.REMATCH_TO_HOST:
            allowed = self._policy.host_inbound(seen.from_zone, seen.proto, port)
            return Verdict() if allowed else Verdict(cause=("host-inbound", self.names.zone(seen.from_zone)))
        application = self._application(seen, port)
        index = self._policy.security_rule(seen.from_zone, seen.to_zone, src, dst, seen.proto, port, application)
        rule = self._policy.security_rules[index]
        return Verdict(index) if rule.action is Action.ALLOW else Verdict(cause=(SECURITY, rule.name))

    def _port(self, seen: LiveClass) -> int:
        line = {TCP: self.starts.tcp, UDP: self.starts.udp}.get(seen.proto)
        return line[seen.port] if line is not None else 0

    def _application(self, seen: LiveClass, port: int) -> str:
        """As it was found when the session began, unless the policy knows it no more."""
        name = self.names.applications.name(seen.application)
        return name if name in self._policy.applications.by_name else self._policy.application(seen.proto, port).name

    def _out_of_place(self, seen: LiveClass) -> Cause | None:
        """What ends a session whatever the rules say of it: its zone, or its translation, is no more."""
        if (zone := self._moved(seen)) is not None:
            return "zones", zone
        if (nat := self._untranslated(seen.nat_rule)) is not None:
            return NAT, nat
        return None

    def _moved(self, seen: LiveClass) -> str | None:
        """A zone of it that is not its interface's any more; an interface that is away just now may come back."""
        own = [(seen.ingress, seen.from_zone)]
        if seen.kind != lib.REMATCH_TO_HOST:
            own.append((seen.egress, seen.to_zone))
        for ifindex, zone in own:
            if zone not in self._zones:
                return self.names.zone(zone)
            known = self._world.links.by_index(ifindex) is not None
            if known and self._world.zone_by_interface.get(ifindex) != zone:
                return self.names.zone(zone)
        return None

    def _untranslated(self, nat_rule: int) -> str | None:
        """The NAT rule that is no more; `nat_rule` is its number plus one, 0: nothing is translated."""
        if not nat_rule or self.names.nat_rules.id(nat_rule - 1) in self._nat:
            return None
        return self.names.nat_rules.name(nat_rule - 1)

    def _child(self, seen: LiveClass) -> Verdict:
        if (parent := self._parent(seen)) is not None:
            return self._like_parent(parent)
        if (cause := self._out_of_place(seen)) is not None:
            return Verdict(cause=cause)
        index = self._allowing.get(self.names.rules.id(seen.rule))
        return Verdict(index) if index is not None else Verdict(cause=(SECURITY, self.names.rules.name(seen.rule)))

    def _parent(self, seen: LiveClass) -> Session | None:
        """Slots are used again: what has begun later than the child is not its parent."""
        age = (lib.table_now() - seen.destination & 0xFFFFFFFF) / TICKS
        found = self._table.read(seen.source)
        if found is None or found.state != "ACTIVE" or found.type != "FLOW" or found.parent or found.elapsed < age:
            return None
        return found

    def _like_parent(self, parent: Session) -> Verdict:
        if self._is_of_changed_nat(parent) and not self._gives(parent):
            return Verdict(cause=(NAT, self.names.nat_rules.name(parent.nat_rule or 0)))
        return self.judge_session(parent)

    def _is_of_changed_nat(self, session: Session) -> bool:
        return session.nat_rule is not None and self.names.nat_rules.id(session.nat_rule) in self._changed_nat

    def _gives(self, session: Session) -> bool:
        """Whether the session's own NAT rule would match it now and translate it as it is translated."""
        if session.parent and session.predicted:
            return True  # judged by its parent
        rule = nat_rule_of(First(session.c2s, session.ingress, 0, True), self._world)
        own = None if session.nat_rule is None else self.names.nat_rules.id(session.nat_rule)
        if rule is None or self._nat_ids[rule.name] != own:
            return False
        return would_translate(rule, session, self._world.interface_address)


def _is_translated(session: Session) -> bool:
    return session.source_nat or session.destination_nat


def _is_to_host(seen: LiveClass) -> bool:
    """A TCP connection to the firewall itself: somebody may be sitting at it."""
    return seen.kind == lib.REMATCH_TO_HOST and seen.proto == TCP


def would_translate(rule: CompiledNatRule, session: Session, interface_address: InterfaceAddress) -> bool:
    """Whether the rule may translate the session's first packet to what the session has been translated to."""
    key, back = session.c2s, session.s2c
    try:
        given = translate(rule, key.src, key.dst, key.family == 4, interface_address)
    except NoAddress:
        return True  # while the interface has no address, its sessions wait for it
    except Unmappable:
        return False
    destination = (given.destination if given else None) or key.dst
    port = (given.destination_port if given else None) or key.dport
    if (destination, port) != (back.src, back.sport):
        return False
    if rule.pool is None:
        return back.dst == ((given.source if given else None) or key.src)
    return any(_draws(pool, back.dst, back.dport, key.family == 4, interface_address) for pool in _pools(rule.pool))


def _pools(pool: Pool) -> tuple[Pool, ...]:
    return (pool,) if pool.fallback is None else (pool, pool.fallback)


def _draws(pool: Pool, address: int, port: int, ipv4: bool, interface_address: InterfaceAddress) -> bool:
    """Whether a pool may give this address and port."""
    if pool.interface is not None:
        if interface_address(pool.interface, ipv4) != address:
            return False
    elif not any(first <= address <= last for first, last in pool.addresses):
        return False
    return pool.type is SourceType.DYNAMIC_IP or not port or pool.ports[0] <= port <= pool.ports[1]


def _by_id(policy: CompiledPolicy, ids: Mapping[str, str]) -> dict[str, list[object]]:
    """What each enabled NAT rule says, but for its place and its name."""
    found: dict[str, list[object]] = {}
    for index, rule in enumerate(policy.nat_rules):
        if not rule.disabled:
            found.setdefault(ids[rule.name], []).append(policy.nat_meanings[index])
    return found


def preview(table: SessionTable, judge: Judge) -> Outcome:
    """What rematch() would do now."""
    return _foreseen(table, judge, lambda seen: True)


def connections_to_end(table: SessionTable, judge: Judge) -> int:
    """Of preview() the connections to the firewall itself alone, which takes no look at the rules."""
    return _foreseen(table, judge, _is_to_host).to_host


def _foreseen(table: SessionTable, judge: Judge, concerns: Callable[[LiveClass], bool]) -> Outcome:
    """By the classes that are of any concern."""
    outcome, starts = Outcome(), ClassStarts(judge.starts)
    for _, classes in _live(table, starts):
        own = [seen for seen in classes if concerns(seen)]
        outcome.add(judge.names, own, map(judge.judge, own))
    for session in judge.translated_otherwise():
        if judge.judge_session(session).cause is None:
            outcome.add_translated(judge.names, session)
    return outcome


def rematch(table: SessionTable, judge: Judge, rule_numbers: Sequence[int]) -> Outcome:
    """Every live session gets the rule that matches it now, or ends with `policy-deny`.

    `rule_numbers` by index in the new policy, by which everything new is decided already.
    """
    outcome, starts = Outcome(), ClassStarts(judge.starts)
    for first, classes in _live(table, starts):
        verdicts = [judge.judge(seen) for seen in classes]
        outcome.add(judge.names, classes, verdicts)
        told = [judge.told(seen, verdict, rule_numbers) for seen, verdict in zip(classes, verdicts, strict=True)]
        table.rematch(starts, first, told, "policy-deny")
    for session in judge.translated_otherwise():
        if table.close_session(session.id, "policy-deny", session.generation):
            outcome.add_translated(judge.names, session)
    table.close_matching(table.filter(state="DISCARD"), "policy-deny")  # who is allowed now need not wait for a timer
    return outcome


def _live(table: SessionTable, starts: ClassStarts) -> Iterator[tuple[int, list[LiveClass]]]:
    """(first slot, the classes of that part of the table), where there are any."""
    for first in range(1, table.max_sessions + 1, REMATCH_SLOTS):
        if classes := table.live_classes(starts, first):
            yield first, classes
