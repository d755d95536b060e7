"""Live sessions by classes, in C, against the plain sentence: which sessions agree in all that a policy looks at; and
what becomes of them after a commit, against what the slow path would decide for each now.
"""

import random
from bisect import bisect_right
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.ffi import lib
from dataplane.flow import Decision, FlowKey, Session
from dataplane.names import Names
from dataplane.policy.changes import RuleIds
from dataplane.policy.compile import compile_policy
from dataplane.policy.model import Config
from dataplane.rematch import Judge, preview, rematch
from dataplane.sessions import ClassStarts, InstallError, SessionTable
from dataplane.slowpath import First, World, decide
from tests.lab.polling import poll
from tests.test_dispatch import Dispatcher, Palette, random_world, security_rule

V4 = 0xFFFF << 32
TCP, UDP, ICMP = 6, 17, 1
STARTS = ([0, V4 + 10, V4 + 20], [0, V4 + 100], [0, 22, 23, 1024], [0, 53])
HOST = 255

sessions = st.lists(
    st.tuples(
        st.integers(0, 30), st.integers(95, 105), st.sampled_from([TCP, UDP, ICMP]),
        st.sampled_from([21, 22, 53, 2000]), st.sampled_from([1, 2, HOST]), st.sampled_from([3, 4]), st.integers(0, 2),
    ),
    max_size=40,
)  # fmt: skip


@pytest.fixture(scope="module")
def starts():
    return ClassStarts(STARTS)


def install(table, own):
    """A session for each, told apart by its source port; those that were installed."""
    made = {}
    for sport, (src, dst, proto, dport, zone, egress, rule) in enumerate(own, 1000):
        key = FlowKey(V4 + src, V4 + dst, sport, dport if proto != ICMP else 0, proto, zone, 4)
        made[table.install(key, Decision(False, egress, 5, rule, 7, 8, log_end=False), 60)] = own[sport - 1000]
    return made


def alive(table: SessionTable, id: int) -> Session:
    found = table.read(id)
    assert found is not None
    return found


def class_of(session):
    """What a policy sees of it."""
    src, dst, proto, dport, zone, egress, rule = session
    line = {TCP: STARTS[2], UDP: STARTS[3]}.get(proto)
    port = bisect_right(line, dport) - 1 if line else 0
    places = (bisect_right(line, V4 + value) - 1 for line, value in zip(STARTS, (src, dst), strict=False))
    return (*places, port, proto, zone, egress, rule)


@given(sessions)
def test_classes_are_what_sessions_have_in_common(starts, own):
    """Each with as many sessions as it has; what the firewall sends itself is in none."""
    table = SessionTable(64)
    made = install(table, own)
    wanted = Counter(class_of(session) for session in made.values() if session[4] != HOST)
    found = table.live_classes(starts, 1)
    assert (
        Counter({(c.source, c.destination, c.port, c.proto, c.from_zone, c.to_zone, c.rule): c.sessions for c in found})
        == wanted
    )
    table.close()


@given(sessions, st.sets(st.sampled_from([TCP, UDP, ICMP])))
def test_each_session_follows_its_class(starts, own, refused):
    """Those of a refused protocol end, the others get the new rule and its logging."""
    table = SessionTable(64)
    made = install(table, own)
    classes = table.live_classes(starts, 1)
    ended = table.rematch(starts, 1, [None if c.proto in refused else (9, True) for c in classes], "policy-deny")
    judged = {id: session for id, session in made.items() if session[4] != HOST}
    assert ended == sum(session[2] in refused for session in judged.values())
    for id, session in made.items():
        now = alive(table, id)
        if id not in judged:
            assert (now.state, now.rule) == ("ACTIVE", session[6])
        elif session[2] in refused:
            assert (now.state, now.end_reason) == ("CLOSING", "policy-deny")
        else:
            assert (now.state, now.rule, now.log_end) == ("ACTIVE", 9, True)
    table.close()


def test_a_session_that_began_meanwhile_is_not_judged(starts):
    """It has been decided by the new policy."""
    table = SessionTable(64)
    install(table, [(1, 100, TCP, 22, 1, 3, 0)])
    table.live_classes(starts, 1)
    (late,) = install(table, [(25, 100, UDP, 53, 1, 3, 4)])
    assert table.rematch(starts, 1, [None], "policy-deny") == 1
    assert alive(table, late).state == "ACTIVE"
    table.close()


def test_refused_sessions_are_in_no_class(starts):
    """Whoever commits ends them."""
    table = SessionTable(64)
    key = FlowKey(V4 + 1, V4 + 2, 1, 2, TCP, 1, 4)
    table.install(key, Decision(True, 3, 5, 0, 7, 8), 60)
    assert table.live_classes(starts, 1) == []
    table.close()


# ---- children ----

RULES: list[dict[str, Any]] = [{"name": "audio", "action": "allow"}, {"name": "media", "action": "deny"}]
"""`audio` was called `media` until now, and another rule is called so."""
ZONES = [{"name": "in", "interfaces": ["x0"]}, {"name": "out", "interfaces": ["x1"]}]


class Bereft:
    """A child that was allowed by the rule with the id `one`, when that was still called `media`."""

    def __init__(self, rules: list[dict[str, Any]]) -> None:
        self.table, names = SessionTable(64), Names(1000, HOST)
        before, self._after = (
            compile_policy(Config.model_validate({"zones": ZONES, "security-rules": own})) for own in ([], rules)
        )
        names.set_zones(before.zone_ids)
        names.applications.numbers(before.applications.by_name)
        self._rule = names.rules.number("media", "one")
        ids = RuleIds({"audio": "one", "media": "two"})
        world = replace(random_world(random.Random(0)), policy=self._after)
        self.judge = Judge(self.table, names, before, world, (RuleIds({"media": "one"}), ids))

    def install(self, sport: int, parent: int = 0) -> int:
        key = FlowKey(V4 + 1, V4 + 2, sport, 2000, UDP, 1, 4)
        return self.table.install(key, Decision(False, 2, 5, self._rule, 7, 8, parent=parent), 60)

    def rematch(self) -> str:
        """As it was foreseen; the name of the rule that the child has now, or why it ends."""
        foreseen = preview(self.table, self.judge)
        assert rematch(self.table, self.judge, range(len(self._after.security_rules))) == foreseen
        child = alive(self.table, 1)
        return self._after.security_rules[child.rule].name if child.state == "ACTIVE" else str(child.end_reason)


def test_a_child_without_a_parent_finds_its_rule_by_its_id():
    """Whatever that is called now, and whoever has its name."""
    bereft = Bereft(RULES)
    bereft.install(1, parent=50)
    assert bereft.rematch() == "audio"


def test_a_child_whose_rule_allows_nothing_more_ends():
    """Its id is known, and denies."""
    bereft = Bereft([RULES[0] | {"action": "deny"}, RULES[1] | {"action": "allow"}])
    bereft.install(1, parent=50)
    assert bereft.rematch() == "policy-deny"


def test_who_has_the_slot_of_a_parent_now_is_no_parent():
    """It began later than the child, and is denied what the child goes on with."""
    bereft = Bereft([RULES[0] | {"destination": ["203.0.113.1"]}, RULES[1]])
    bereft.install(1, parent=2)
    began = lib.table_now()
    poll(lambda: lib.table_now() > began, 1, "another tick")
    assert bereft.install(2) == 2
    assert bereft.rematch() == "audio"
    assert alive(bereft.table, 2).state == "CLOSING"


# ---- everything ----


def numbered(world: World) -> tuple[World, Names]:
    """As the engine numbers what is in a policy."""
    names = Names(1000, HOST)
    names.set_zones(world.policy.zone_ids)
    names.applications.numbers(world.policy.applications.by_name)
    rules = names.rules.numbers(rule.name for rule in world.policy.security_rules)
    nat_rules = names.nat_rules.numbers(rule.name for rule in world.policy.nat_rules)
    return replace(world, rule_numbers=rules, nat_rule_numbers=nat_rules), names


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_goes_on_is_what_would_begin_now(seed):
    """Random rules after random rules: each session has the rule that decide() finds for its first packet, or ends."""
    rng = random.Random(seed)
    before, names = numbered(random_world(rng))
    rules = [security_rule(rng, number) for number in range(rng.randint(1, 8))]
    written = before.policy.config.model_dump(by_alias=True, mode="json", exclude_unset=True)
    policy = compile_policy(Config.model_validate(written | {"security-rules": rules}), before.policy.zone_ids)
    after = replace(before, policy=policy, rule_numbers=tuple(range(100, 100 + len(policy.security_rules))))
    with Dispatcher(before, max_sessions=512) as firewall:
        palette, packets = Palette(rng), {}
        for sport in range(2000, 2150):
            data, ifindex = palette.draw(sport)
            try:
                packets[firewall.first(data, ifindex)[0].key] = data, ifindex
            except AssertionError:
                continue  # C refuses it, or knows it already
            with suppress(InstallError):
                firewall.learn(data, ifindex)
        live = {s.id: s for s in firewall.table.scan() if s.state == "ACTIVE" and s.c2s in packets}
        ids = RuleIds(nat={rule.name: rule.name for rule in policy.nat_rules})
        judge = Judge(firewall.table, names, before.policy, after, (ids, ids))
        foreseen = preview(firewall.table, judge)
        outcome = rematch(firewall.table, judge, after.rule_numbers)
        assert foreseen == outcome
        firewall.follow(after)
        for session in live.values():
            decision = decide(First(session.c2s, session.ingress, 0, True), after)[0]
            now = alive(firewall.table, session.id)
            assert (now.state == "CLOSING") == decision.discard
            if not decision.discard and not session.host:
                assert (now.rule, now.log_end) == (decision.rule, decision.log_end)
