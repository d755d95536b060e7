"""Top talkers and the census beside somebody who counts every session by hand."""

from collections import Counter, defaultdict
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP

from dataplane.ffi import ffi, lib
from dataplane.flow import Decision, FlowKey, Session
from dataplane.sessions import STATES, TYPES, SessionTable
from dataplane.top import BY, ORDERS, Amounts, Top, top
from tests.talk import Firewall

PROTOCOLS = {6: 0, 17: 1, 1: 2, 58: 2}
V4 = 0xFFFF << 32

SESSIONS = st.lists(
    st.tuples(
        st.integers(1, 6),  # host of the source
        st.integers(1, 4),  # and of the destination
        st.sampled_from([1, 6, 17, 47, 58]),
        st.integers(1, 3),  # zone
        st.integers(0, 3),  # rule
        st.integers(0, 3),  # application
        st.sampled_from([0, 0, 60, 1500]),  # bytes refused; 0: allowed
    ),
    max_size=60,
)


def everything() -> Any:
    return ffi.new("struct session_filter *")


def fill(table: SessionTable, wanted: list[tuple[int, ...]]) -> None:
    """One session for each, told apart by its source port."""
    for port, (source, destination, proto, zone, rule, application, refused) in enumerate(wanted, 1):
        key = FlowKey(V4 | source, V4 | destination << 8, port, 53, proto, zone, 4)
        decision = Decision(
            discard=bool(refused), egress_zone=9, application=application, rule=rule, ingress=1, egress=2
        )
        table.install(key, decision, refused)


def key_of(session: Session, by: str) -> int:
    return {
        "source": session.c2s.src,
        "destination": session.c2s.dst,
        "rule": session.rule,
        "application": session.application,
        "zone": session.c2s.zone,
    }[by]


def by_hand(table: SessionTable, by: str) -> dict[int, Amounts]:
    sums: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for session in table.scan():
        for i, amount in enumerate((1, sum(session.bytes), sum(session.packets))):
            sums[key_of(session, by)][i] += amount
    return {key: Amounts(*amounts) for key, amounts in sums.items()}


@settings(max_examples=40, deadline=None)
@given(SESSIONS, st.sampled_from(sorted(BY)), st.sampled_from(["sessions", "bytes", "packets"]), st.integers(1, 8))
def test_the_largest_groups_are_those_that_one_counts_by_hand(wanted, by, order, n):
    """In order, equal ones by their key; and the total is everybody's, shown or not."""
    table = SessionTable(640)
    try:
        fill(table, wanted)
        groups = by_hand(table, by)
        found = top(table, everything(), by, order, n)
    finally:
        table.close()
    assert {group.key: group.amounts for group in found.groups}.items() <= groups.items()
    amounts = [getattr(group.amounts, order) for group in found.groups]
    assert amounts == sorted((getattr(each, order) for each in groups.values()), reverse=True)[:n]
    assert found.found == len(groups)
    assert found.all == Amounts(*(sum(column) for column in zip(*groups.values(), strict=True))) if groups else True
    assert found.left_out == Amounts(0, 0, 0, 0)


@settings(max_examples=20, deadline=None)
@given(SESSIONS)
def test_the_census_counts_every_session_once(wanted):
    """By state, type and protocol, and by application."""
    table, census = SessionTable(640), ffi.new("struct census *")
    try:
        fill(table, wanted)
        lib.table_census(table.pointer, census)
        sessions = list(table.scan())
    finally:
        table.close()
    kinds = Counter((each.state, each.type, PROTOCOLS.get(each.c2s.proto, 3)) for each in sessions)
    counted = {
        (state, kind, proto): census.sessions[i][j][proto]
        for i, state in enumerate(STATES)
        for j, kind in enumerate(TYPES)
        for proto in range(4)
    }
    assert {kind: n for kind, n in counted.items() if n} == kinds
    applications = Counter(each.application for each in sessions)
    assert {row: n for row, n in enumerate(census.application) if n} == applications


def test_equal_groups_stand_in_the_order_of_their_keys():
    """So that two answers are the same, whatever the hash's secret is."""
    table = SessionTable(640)
    try:
        fill(table, [(source, 1, 17, 1, 0, 0, 0) for source in (5, 3, 1, 4, 2)])
        assert [group.key - V4 for group in top(table, everything(), "source", "bytes", 3).groups] == [1, 2, 3]
    finally:
        table.close()


@pytest.fixture
def firewall():
    with Firewall() as made:
        yield made


def sent(firewall: Firewall, host: int, octets: int) -> None:
    firewall.c2s(IP(src=f"10.0.0.{host}", dst="8.8.8.8") / UDP(sport=4000, dport=53) / bytes(octets - 28))


def growing(firewall: Firewall, monkeypatch, during) -> Top:
    """Who grows while `during` happens."""
    monkeypatch.setattr("dataplane.top.time.sleep", lambda _seconds: during())
    return top(cast(SessionTable, SimpleNamespace(pointer=firewall.table)), everything(), "source", "rate", 10)


def test_a_rate_is_what_has_come_since_the_mark(firewall, monkeypatch):
    """Neither what came before, nor what has ended meanwhile; all of what has begun since."""
    firewall.decides()
    for host, octets in ((1, 1000), (2, 100), (3, 500)):
        sent(firewall, host, octets)

    def during() -> None:
        sent(firewall, 2, 300)
        sent(firewall, 4, 200)
        (third,) = [i for i in range(1, 5) if firewall.session(i).bytes[0] == 500]
        firewall.end(third)
        firewall.expire()

    found = growing(firewall, monkeypatch, during)
    assert [(group.key & 0xFF, group.amounts.growth) for group in found.groups] == [(2, 300), (4, 200), (1, 0)]
    assert found.all.growth == 500
    assert found.seconds > 0


def test_a_slot_that_has_begun_another_life_has_grown_by_all_of_it(monkeypatch):
    """In a table of one slot; the bytes of the life before are nobody's."""
    with Firewall(1) as firewall:
        firewall.decides()
        sent(firewall, 1, 900)

        def during() -> None:
            firewall.end(1)
            firewall.expire()
            sent(firewall, 2, 100)

        found = growing(firewall, monkeypatch, during)
        assert [(group.key & 0xFF, group.amounts.growth) for group in found.groups] == [(2, 100)]


def test_every_order_and_key_has_a_word():
    """What an operator may say is what C has."""
    assert set(BY.values()) == {lib.TOP_SOURCE, lib.TOP_DESTINATION, lib.TOP_RULE, lib.TOP_APPLICATION, lib.TOP_ZONE}
    assert len(set(ORDERS.values())) == lib.TOP_AMOUNTS
