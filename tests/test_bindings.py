"""Bindings: one translation for all sessions of a source, held while it has any, and never a moment longer."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.bindings import Bindings
from dataplane.flow import Decision, FlowKey, Session
from dataplane.nat import translate
from dataplane.policy.compile import Pool, compile_policy
from dataplane.policy.model import Config
from dataplane.quotas import Quotas
from dataplane.routes import address_from_text as address
from dataplane.routes import address_to_text, is_ipv4
from dataplane.sessions import InstallError, SessionTable

TCP, UDP, ICMP, GRE = 6, 17, 1, 47
OUT0 = address("192.0.2.1")
Endpoint = tuple[str, int]


class Bench:
    """A table, its bindings, and one NAT rule that decides every session."""

    def __init__(self, slots: int = 64, oversubscription: int = 1, **translation: Any) -> None:
        self.table = SessionTable(slots, oversubscription)
        self.table.set_timers(0, dict.fromkeys(("tcp_init", "udp", "icmp", "other"), 3600))  # none ends by itself
        self.bindings = Bindings(self.table, Quotas(self.table))
        rule = {"name": "rule", "source-translation": translation}
        config = {"zones": [{"name": "trust", "interfaces": ["out0"]}], "nat-rules": [rule]}
        (self.rule,) = compile_policy(Config.model_validate(config)).nat_rules
        assert self.rule.pool is not None
        self.pool: Pool = self.rule.pool

    def opens(self, source: str, sport: int, server: str = "8.8.8.8", dport: int = 53, proto: int = UDP) -> int:
        """A session of the source; its id."""
        key = FlowKey(address(source), address(server), sport, dport, proto, 1, 4)
        made = translate(self.rule, key.src, key.dst, is_ipv4(key.src), lambda *_: OUT0)
        decision = Decision(False, 2, 0, 0, 1, 2, nat_rule=0, translation=made)
        assert made is not None
        if made.binding is not None:
            return self.bindings.install(key, decision, 100)
        return self.table.install(key, decision, 100)

    def seen(self, *session: Any, **more: Any) -> Endpoint:
        """As whom the server sees a new session."""
        found = self.table.read(self.opens(*session, **more))
        assert found is not None
        return address_to_text(found.s2c.dst), found.s2c.dport

    def ends(self, *ids: int) -> None:
        """As the ager ends them."""
        for session_id in ids:
            assert self.table.close_session(session_id, "unknown")
        self.reap()

    def reap(self) -> list[Session]:
        ended = self.table.expire()
        self.bindings.ended(ended)
        self.table.free(ended)
        return [*ended]

    @property
    def held(self) -> int:
        return self.bindings.held("rule")


def dynamic(*addresses: str, **more: Any) -> dict[str, Any]:
    return {"type": "dynamic-ip", "addresses": list(addresses), **more}


def persistent(ports: str = "5000-5009", **more: Any) -> dict[str, Any]:
    return {"type": "persistent-dynamic-ip-and-port", "addresses": ["192.0.2.9"], "port-range": ports, **more}


@pytest.fixture
def whole() -> Iterator[Bench]:
    """dynamic-ip, three addresses."""
    bench = Bench(**dynamic("192.0.2.10-192.0.2.11", "192.0.2.20"))
    yield bench
    bench.table.close()


@pytest.fixture(params=[1, 4])
def kept(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """persistent-dynamic-ip-and-port, ten ports, with and without oversubscription of other rules."""
    bench = Bench(oversubscription=request.param, **persistent())
    yield bench
    bench.table.close()


# ---- dynamic-ip ----


def test_each_source_gets_the_next_free_address_and_keeps_its_ports(whole):
    """One to one."""
    assert whole.seen("10.0.0.1", 4000) == ("192.0.2.10", 4000)
    assert whole.seen("10.0.0.2", 4000) == ("192.0.2.11", 4000)
    assert whole.seen("10.0.0.1", 4001, "8.8.4.4", 80, TCP) == ("192.0.2.10", 4001)
    assert whole.seen("10.0.0.1", 77, dport=0, proto=ICMP) == ("192.0.2.10", 77)
    assert whole.seen("10.0.0.3", 0, dport=0, proto=GRE) == ("192.0.2.20", 0)
    assert whole.held == 3


def test_an_exhausted_pool_refuses_new_sources_only(whole):
    """Counted; and an address is free again with the last session of its source."""
    first = whole.opens("10.0.0.1", 4000), whole.opens("10.0.0.1", 4001)
    for n in (2, 3):
        whole.opens(f"10.0.0.{n}", 4000)
    with pytest.raises(InstallError):
        whole.opens("10.0.0.4", 4000)
    assert whole.table.counters()["nat_dip_alloc_failure"] == 1
    assert whole.seen("10.0.0.2", 4005) == ("192.0.2.11", 4005)
    whole.ends(first[0])
    with pytest.raises(InstallError):
        whole.opens("10.0.0.4", 4000)
    whole.ends(first[1])
    assert whole.seen("10.0.0.4", 4000) == ("192.0.2.10", 4000)


def test_the_address_freed_last_is_not_the_next_one(whole):
    """What still comes for its last holder would reach the new one."""
    whole.ends(whole.opens("10.0.0.1", 4000))
    assert whole.seen("10.0.0.2", 4000)[0] == "192.0.2.11"


@pytest.mark.parametrize("fallback", [{"interface": "out0"}, {"addresses": ["192.0.2.1"]}])
def test_an_exhausted_pool_falls_back_to_ports(fallback):
    """The source that found no address shares one; it changes over only when a session finds an address free."""
    bench = Bench(**dynamic("192.0.2.10", fallback=fallback))
    holder = bench.opens("10.0.0.1", 4000)
    seen = bench.seen("10.0.0.2", 4000)
    assert seen[0] == "192.0.2.1"
    assert seen[1] % 2 == 0
    assert bench.held == 1
    assert bench.table.ports_used(OUT0, (1024, 65535)) == 1
    bench.ends(holder)
    assert bench.seen("10.0.0.2", 4001) == ("192.0.2.10", 4001)


def test_an_address_serves_one_source_even_of_two_pools():
    """Two rules whose pools overlap."""
    bench = Bench(**dynamic("192.0.2.10"))
    other = Bench(**dynamic("192.0.2.10"))
    other.table, other.bindings = bench.table, bench.bindings
    object.__setattr__(other.rule.pool, "rule", "other")
    bench.opens("10.0.0.1", 4000)
    with pytest.raises(InstallError):
        other.opens("10.0.0.2", 4000)
    assert (bench.held, bench.bindings.held("other")) == (1, 0)


# ---- persistent-dynamic-ip-and-port ----


def test_a_source_port_is_one_outside_towards_everybody(kept):
    """RFC 4787 REQ-1: whatever address and port is called."""
    seen = {kept.seen("10.0.0.1", 4000, *to) for to in [("8.8.8.8", 53), ("8.8.8.8", 54), ("8.8.4.4", 53)]}
    assert len(seen) == 1
    assert kept.held == 1
    ((outside, port),) = seen
    assert outside == "192.0.2.9"
    assert port in range(5000, 5010, 2)


def test_sources_ports_and_protocols_are_told_apart(kept):
    """Two sources never share an outside port of a protocol (REQ-3); TCP and UDP have spaces of their own."""
    udp = [kept.seen(f"10.0.0.{n}", 4000 + m) for n in (1, 2) for m in range(5)]
    assert len(set(udp)) == 10
    with pytest.raises(InstallError):
        kept.opens("10.0.0.3", 4000)
    assert kept.table.counters()["nat_dipp_alloc_failure"] == 1
    assert kept.seen("10.0.0.3", 4000, proto=TCP)[0] == "192.0.2.9"
    assert kept.seen("10.0.0.3", 77, dport=0, proto=ICMP)[1] in range(5000, 5010)


def test_the_mapping_ends_with_the_last_session_of_the_source(kept):
    """Neither with the first, nor later."""
    ids = [kept.opens("10.0.0.1", 4000, server) for server in ("8.8.8.8", "8.8.4.4")]
    kept.ends(ids[0])
    assert kept.held == 1
    kept.ends(ids[1])
    assert kept.held == 0
    assert kept.table.ports_used(address("192.0.2.9"), (5000, 5009)) == 0
    assert len({kept.seen(f"10.0.1.{n}", 4000) for n in range(10)}) == 10


@pytest.mark.parametrize("kind", [dynamic("192.0.2.9"), persistent()])
def test_nothing_is_held_for_a_session_that_was_not_installed(kind):
    """The table is full: a fresh binding goes, one that serves others stays."""
    bench = Bench(slots=2, **kind)
    ids = [bench.opens("10.0.0.1", 4000, server) for server in ("8.8.8.8", "8.8.4.4")]
    for source in ("10.0.0.2", "10.0.0.1"):
        with pytest.raises(InstallError):
            bench.opens(source, 4000, "9.9.9.9")
    assert bench.held == 1
    bench.ends(*ids)
    assert bench.held == 0
    assert bench.table.ports_used(address("192.0.2.9"), (1, 65535)) == 0


def test_what_has_no_port_is_translated_without_a_binding(kept):
    """GRE: the address is all that can be kept."""
    assert kept.seen("10.0.0.1", 0, dport=0, proto=GRE) == ("192.0.2.9", 0)
    assert kept.held == 0


class Mappings:
    """Naive: which source has which outside port, and how many sessions use it."""

    def __init__(self) -> None:
        self.port: dict[tuple[str, int], int] = {}
        self.sessions: dict[tuple[str, int], set[int]] = defaultdict(set)

    def opened(self, source: tuple[str, int], session: int, port: int) -> None:
        assert self.port.setdefault(source, port) == port
        assert list(self.port.values()).count(port) == 1
        self.sessions[source].add(session)

    def ended(self, session: int) -> None:
        (source,) = (source for source, ids in self.sessions.items() if session in ids)
        self.sessions[source].remove(session)
        if not self.sessions[source]:
            del self.port[source]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans()), max_size=80))
def test_mappings_agree_with_a_naive_model(steps):
    """Sessions of six sources come and go at random; four ports are too few and the table sometimes full."""
    bench, model = Bench(slots=12, **persistent("5000-5003")), Mappings()
    alive: list[int] = []
    for n, (host, server, comes) in enumerate(steps):
        source = (f"10.0.0.{host}", 4000 + host)
        if not comes and alive:
            session = alive.pop(n % len(alive))
            bench.ends(session)
            model.ended(session)
        else:
            possible = len(alive) < 12 and (source in model.port or len(model.port) < 4)
            try:
                session = bench.opens(*source, f"8.8.8.{server}", 1000 + n)
            except InstallError:
                assert not possible
            else:
                found = bench.table.read(session)
                assert found is not None
                assert possible
                model.opened(source, session, found.s2c.dport)
                alive.append(session)
        assert bench.held == len(model.port)
        assert bench.table.ports_used(address("192.0.2.9"), (5000, 5003)) == len(model.port)
    bench.table.close()
