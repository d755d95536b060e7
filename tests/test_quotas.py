"""Quotas: what one source may hold, counted from the moment it is installed to the moment it is freed."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.bindings import Bindings
from dataplane.flow import Decision, FlowKey, Translation
from dataplane.nat import translate
from dataplane.policy.compile import compile_policy
from dataplane.policy.model import Config
from dataplane.quotas import Quotas
from dataplane.routes import address_from_text as address
from dataplane.routes import is_ipv4
from dataplane.sessions import HOST_ZONE, InstallError, SessionTable

TCP, UDP, ICMP, GRE = 6, 17, 1, 47
TRUST, DMZ = 1, 3
POOL = address("192.0.2.9")
DRAWN = Translation(source=POOL, ports=(5000, 5099))


class Bench:
    """A table, its bindings and its quotas."""

    def __init__(self, sessions: int = 0, ports: int = 0, slots: int = 64) -> None:
        self.table = SessionTable(slots)
        self.quotas = Quotas(self.table)
        self.quotas.limit(sessions, ports)
        self.bindings = Bindings(self.table, self.quotas)
        self.table.open_pool(POOL)
        self._sport = 4000

    def opens(self, source: str, zone: int = TRUST, proto: int = UDP, port: int | None = None, **decided: Any) -> int:
        """One more session of the source, from another port unless one is given; its id."""
        self._sport += 1
        sport = (port or self._sport) if proto in (TCP, UDP) else 0
        server = "8.8.8.8" if is_ipv4(address(source)) else "2001:db8::8"
        key = FlowKey(address(source), address(server), sport, 53, proto, zone, 4 if "." in source else 6)
        decision = Decision(decided.pop("discard", False), 2, 0, 0, 1, 2, **decided)
        if decision.translation is not None and decision.translation.binding is not None:
            return self.bindings.install(key, decision, 100)
        return self.quotas.install(key, decision, 100)

    def refuses(self, source: str, **more: Any) -> None:
        """The same, counted as above the limit of its source."""
        before = self.table.counters()["session_source_limit"]
        with pytest.raises(InstallError, match="session_source_limit"):
            self.opens(source, **more)
        assert self.table.counters()["session_source_limit"] == before + 1

    def ends(self, *ids: int) -> None:
        """As the ager ends them."""
        for session_id in ids:
            assert self.table.close_session(session_id, "unknown")
        self.reap()

    def reap(self) -> None:
        ended = self.table.expire()
        self.bindings.ended(ended)
        self.quotas.ended(ended)
        self.table.free(ended)

    def bound(self, kind: str, **more: Any) -> Translation:
        """What a NAT rule of that type makes of a source."""
        translation = {"type": kind, "addresses": ["192.0.2.20"], **more}
        zones = [{"name": "trust", "interfaces": ["out0"]}]
        rules = [{"name": "rule", "source-translation": translation}]
        (rule,) = compile_policy(Config.model_validate({"zones": zones, "nat-rules": rules})).nat_rules
        made = translate(rule, address("10.0.0.1"), address("8.8.8.8"), True, lambda *_: POOL)
        assert made is not None
        return made


@pytest.fixture
def three() -> Iterator[Bench]:
    """Three sessions of a source."""
    bench = Bench(sessions=3)
    yield bench
    bench.table.close()


@pytest.fixture
def two_ports() -> Iterator[Bench]:
    """Any number of sessions, two of which may hold a port."""
    bench = Bench(ports=2)
    yield bench
    bench.table.close()


# ---- sessions ----


def test_the_session_above_the_limit_is_refused_and_nobody_evicted(three):
    """RFC 6888 REQ-5, 11; whatever the protocol."""
    ids = [three.opens("10.0.0.1", proto=proto) for proto in (TCP, UDP, GRE)]
    for proto in (TCP, UDP, ICMP):
        three.refuses("10.0.0.1", proto=proto)
    assert [three.table.read(session_id).state for session_id in ids] == ["ACTIVE"] * 3
    assert three.table.stats()["allocated"] == 3


def test_when_one_ends_there_is_room_for_one(three):
    """However often."""
    ids = [three.opens("10.0.0.1") for _ in range(3)]
    for session_id in ids:
        three.ends(session_id)
        three.opens("10.0.0.1")
        three.refuses("10.0.0.1")


def test_a_session_counts_until_the_ager_has_taken_it(three):
    """Closed is not yet gone: its slot and its port are not free either."""
    ids = [three.opens("10.0.0.1") for _ in range(3)]
    assert three.table.close_session(ids[0], "unknown")
    three.refuses("10.0.0.1")
    three.reap()
    three.opens("10.0.0.1")


def test_a_flow_that_begins_anew_takes_its_own_place(three):
    """A connection on the ports of one that has just ended, before the ager comes; then it counts once."""
    ended = three.opens("10.0.0.1", port=5000)
    ids = [three.opens("10.0.0.1") for _ in range(2)]
    assert three.table.close_session(ended, "tcp-reuse")
    ids.append(three.opens("10.0.0.1", port=5000))
    three.refuses("10.0.0.1")
    three.reap()
    three.refuses("10.0.0.1")
    three.ends(*ids)
    for _ in range(3):
        three.opens("10.0.0.1")
    three.refuses("10.0.0.1")


@pytest.mark.parametrize(
    ("source", "more"),
    [("10.0.0.2", {}), ("10.0.0.1", {"zone": DMZ}), ("2001:db8:0:1::1", {}), ("::a00:1", {})],
)
def test_other_sources_have_a_limit_of_their_own(three, source, more):
    """Another address, the same in another zone, and IPv6."""
    for _ in range(3):
        three.opens("10.0.0.1")
    for _ in range(3):
        three.opens(source, **more)
    three.refuses(source, **more)


def test_a_host_of_many_ipv6_addresses_is_one_source(three):
    """The /64 is what a network gives to a link; the next one is somebody else's."""
    for n in range(3):
        three.opens(f"2001:db8:0:1:{n}::{n}")
    three.refuses("2001:db8:0:1:ffff::1")
    three.opens("2001:db8:0:2::1")


def test_discard_sessions_are_not_counted_and_not_refused(three):
    """They have a share of the table of their own; policy goes on denying whom the limit holds."""
    for _ in range(5):
        three.opens("10.0.0.1", discard=True)
    for _ in range(3):
        three.opens("10.0.0.1")
    three.refuses("10.0.0.1")
    three.opens("10.0.0.1", discard=True)


def test_the_firewall_itself_has_no_limit(three):
    """Its own connections always work."""
    for _ in range(5):
        three.opens("10.2.0.1", zone=HOST_ZONE, host=True)


def test_a_session_that_was_not_installed_is_not_counted():
    """The table is full: what its sources were refused for is not their limit."""
    bench = Bench(sessions=3, slots=2)
    ids = [bench.opens("10.0.0.1"), bench.opens("10.0.0.2")]
    for _ in range(5):
        with pytest.raises(InstallError, match="session_alloc_failure"):
            bench.opens("10.0.0.1")
    bench.ends(*ids)
    for _ in range(2):
        bench.opens("10.0.0.1")


# ---- ports ----


def test_only_sessions_with_a_translated_port_count_for_the_limit_of_ports(two_ports):
    """RFC 6888 REQ-4; not those without translation, with a kept port, or of a protocol that has none."""
    ids = [two_ports.opens("10.0.0.1", translation=DRAWN) for _ in range(2)]
    two_ports.refuses("10.0.0.1", translation=DRAWN)
    for translation in (None, Translation(source=address("192.0.2.30")), Translation(destination=POOL)):
        two_ports.opens("10.0.0.1", translation=translation)
    two_ports.opens("10.0.0.1", proto=GRE, translation=DRAWN)
    assert two_ports.table.ports_used(POOL, (5000, 5099)) == 2
    two_ports.ends(*ids)
    two_ports.opens("10.0.0.1", translation=DRAWN)


def test_sessions_that_share_a_bound_port_count_each(two_ports):
    """A refused one leaves no binding behind."""
    kept = two_ports.bound("persistent-dynamic-ip-and-port")
    for _ in range(2):
        two_ports.opens("10.0.0.1", translation=kept)
    two_ports.refuses("10.0.0.1", translation=kept)
    assert two_ports.bindings.held("rule") == 2


def test_a_bound_address_takes_no_port_and_its_fallback_does(two_ports):
    """What counts is what the source got, not what the rule might have given."""
    whole = two_ports.bound("dynamic-ip", fallback={"interface": "out0"})
    for _ in range(4):
        two_ports.opens("10.0.0.1", translation=whole)
    for _ in range(2):
        two_ports.opens("10.0.0.2", translation=whole)
    two_ports.refuses("10.0.0.2", translation=whole)


def test_the_limits_hold_side_by_side():
    """The narrower one is met first."""
    bench = Bench(sessions=3, ports=2)
    for _ in range(2):
        bench.opens("10.0.0.1", translation=DRAWN)
    bench.refuses("10.0.0.1", translation=DRAWN)
    bench.opens("10.0.0.1")
    bench.refuses("10.0.0.1")


# ---- limits that come and go ----


def test_a_limit_may_change_while_there_are_sessions(three):
    """A narrower one refuses the next; a wider one lets it in; without one, what was counted is still taken back."""
    ids = [three.opens("10.0.0.1") for _ in range(3)]
    three.quotas.limit(2, 0)
    three.ends(ids.pop())
    three.refuses("10.0.0.1")
    three.quotas.limit(0, 0)
    ids += [three.opens("10.0.0.1") for _ in range(5)]
    three.quotas.limit(3, 0)
    three.opens("10.0.0.1")
    three.refuses("10.0.0.1")
    three.ends(*ids)
    for _ in range(2):
        three.opens("10.0.0.1")
    three.refuses("10.0.0.1")


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=60))
def test_quotas_agree_with_a_naive_model(steps):
    """Sessions of four sources, some with a port, come and go at random: counted anew each time from what is alive."""
    bench = Bench(sessions=4, ports=2)
    alive: dict[int, tuple[int, bool]] = {}
    for n, (host, ported, comes) in enumerate(steps):
        if not comes and alive:
            session_id = list(alive)[n % len(alive)]
            del alive[session_id]
            bench.ends(session_id)
            continue
        held = Counter(alive.values())
        allowed = held[host, True] + held[host, False] < 4 and (not ported or held[host, True] < 2)
        translation = DRAWN if ported else None
        if allowed:
            alive[bench.opens(f"10.0.0.{host}", translation=translation)] = host, ported
        else:
            bench.refuses(f"10.0.0.{host}", translation=translation)
    bench.table.close()
