"""The dispatch cache beside decide(): what C repeats is what Python would have decided.

    client --- in0 trust  [ firewall ]  untrust out0 --- server
                       dmz0 dmz |

A Dispatcher stands where worker and slow path stand in the daemon: a packet that C does not know is decided, installed
and taught. Worlds are random: rules, translations and routes over the same few prefixes, so that they cut each other.
"""

import ipaddress
import itertools
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.dispatch import Dispatch, starts_of
from dataplane.ffi import ffi, lib
from dataplane.flow import Decision, Session
from dataplane.policy.compile import compile_policy
from dataplane.policy.model import Config
from dataplane.routes import LOCAL, MAIN, Entry, Fib, Link, Links, Order, address_from_text, is_ipv4
from dataplane.sessions import InstallError, SessionTable, read_key
from dataplane.slowpath import First, Refused, World, decide, nat_rule_of
from tests.talk import endpoint
from tests.test_slowpath import IN0, entry
from tests.test_slowpath import make_world as drawn_world

TCP, UDP, ICMP, GRE = 6, 17, 1, 47
ZONES = ("trust", "untrust", "dmz")
INTERFACES = {1: "in0", 2: "out0", 3: "dmz0"}
OWN = {1: ("10.1.0.1", "fd00:1::1"), 2: ("10.2.0.1", "fd00:2::1"), 3: ("10.3.0.1", "fd00:3::1")}
PREFIXES = (
    *("10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "10.1.0.128/25", "10.2.0.0/24", "10.2.0.64/26", "10.3.0.0/24"),
    *("192.0.2.0/24", "192.0.2.7/32", "198.51.100.0/25", "fd00:1::/64", "fd00:2::/64", "fd00:2::80/121", "fd00::/16"),
)
SERVICES = {
    "web": {"protocol": "tcp", "destination-port": "80"},
    "high": {"protocol": "tcp", "destination-port": "1024-65535"},
    "low-udp": {"protocol": "udp", "destination-port": "1-1023"},
    "some": {"protocol": "udp", "destination-port": [53, "5000-5010"]},
}
APPLICATIONS = {"mine": {"default-ports": ["tcp/81", "udp/5005-5008"]}}
STRESS_SESSIONS, STRESS_PACKETS = 1000, 2_500_000  # of each worker at most
PORTS = (1, 22, 23, 52, 53, 54, 79, 80, 81, 82, 443, 1023, 1024, 4999, 5000, 5005, 5008, 5009, 5010, 5011, 65535)


class Dispatcher:
    """A table with the cache of a world."""

    def __init__(self, world: World, max_sessions: int = 64) -> None:
        self.table = SessionTable(max_sessions)
        self.dispatch = Dispatch(self.table)
        self.follow(world)

    def follow(self, world: World) -> None:
        """As the slow path does when the world has changed."""
        self.dispatch.follow(world, world.policy, world.fib)
        self.table.set_zones(world.zone_by_interface)
        self.world = world

    def __enter__(self) -> "Dispatcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.table.close()

    def take(self, data: bytes, ifindex: int, shard: int = 0) -> int:
        """What a worker makes of a packet."""
        memory = ffi.new("uint8_t[]", data)
        packet = ffi.new("struct packet *", {"data": memory, "len": len(data), "ifindex": ifindex})
        return int(lib.fastpath_take(self.table.pointer, shard, packet, lib.table_now()))

    def begun(self, data: bytes, ifindex: int) -> Session | None:
        """The session that C begins for a first packet; None if it asks Python. Nothing is left of it."""
        before = self.table.counters()["session_cached"]
        self.take(data, ifindex)
        known = [*self.table.scan()]
        self.clear()
        if self.table.counters()["session_cached"] == before:
            assert not known
            return None
        (session,) = known
        return session

    def first(self, data: bytes, ifindex: int) -> tuple[First, Any]:
        """A packet as the slow path sees it; its bytes live as long as the Dispatcher."""
        self.memory = ffi.from_buffer("uint8_t[]", data)
        packet = ffi.new("struct packet *", {"data": self.memory, "len": len(data), "ifindex": ifindex})
        assert lib.slowpath_look(self.table.pointer, packet) == lib.VERDICT_PUNT
        return First(read_key(ffi.buffer(ffi.addressof(packet, "key"))), ifindex, 0, bool(packet.echo)), packet

    def decided(self, data: bytes, ifindex: int) -> Decision | None:
        """What Python decides; None where there is no session."""
        try:
            return decide(self.first(data, ifindex)[0], self.world)[0]
        except Refused:
            return None

    def teach(self, data: bytes, ifindex: int) -> None:
        """learn(), and nothing is left of the session."""
        self.learn(data, ifindex)
        self.clear()

    def learn(self, data: bytes, ifindex: int) -> None:
        """As the slow path does with what it is asked."""
        first, packet = self.first(data, ifindex)
        basis = self.dispatch.basis_of(self.world)
        try:
            decision, rule = decide(first, self.world)
        except Refused:
            return
        if decision.translation is not None and decision.translation.source is not None:
            self.table.open_pool(decision.translation.source)
        self.table.install(first.key, decision, packet.ip_len)
        if rule is not None and basis is not None:
            nat = None if decision.translation is None else nat_rule_of(first, self.world)
            self.dispatch.learn(basis, packet, first.key, decision, rule, nat)

    def clear(self) -> None:
        self.table.close_matching(ffi.new("struct session_filter *"), "unknown")
        while ended := self.table.expire():
            self.table.free(ended)


# ---- packets ----


def packet(src: int, dst: int, sport: int, dport: int, proto: int) -> bytes:
    """The least that is a first packet of its protocol."""
    transport = {
        TCP: struct.pack("!HHIIBBHHH", sport, dport, 1, 0, 0x50, 2, 1024, 0, 0),
        UDP: struct.pack("!HHHH", sport, dport, 8, 0),
        ICMP: struct.pack("!BBHHH", 8 if is_ipv4(dst) else 128, 0, 0, sport, 1),
        GRE: struct.pack("!HH", 0, 0x0800),
    }[proto]
    if is_ipv4(dst):
        ends = (src & 0xFFFFFFFF).to_bytes(4) + (dst & 0xFFFFFFFF).to_bytes(4)
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(transport), 0, 0, 64, proto, 0) + ends + transport
    number = 58 if proto == ICMP else proto
    header = struct.pack("!IHBB", 6 << 28, len(transport), number, 64)
    return header + src.to_bytes(16) + dst.to_bytes(16) + transport


class Palette:
    """Packets between a few prefixes and ports: at their ends, beside them and inside, so that classes come again."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._ipv4 = rng.random() < 0.85
        known = [prefix for prefix in PREFIXES if (":" not in prefix) == self._ipv4]
        self._sources, self._destinations = rng.sample(known, 2), rng.sample(known, 3)
        self._ports, self._protocols = rng.sample(PORTS, 3), rng.sample([TCP, UDP, UDP, TCP, ICMP, GRE], 2)
        self._ifindex = rng.choice([*INTERFACES])

    def draw(self, sport: int) -> tuple[bytes, int]:
        """A packet and where it comes in."""
        rng = self._rng
        src, dst = self._address(self._sources), self._address(self._destinations)
        ifindex = self._ifindex if rng.random() < 0.8 else rng.choice([*INTERFACES])
        if src == dst:
            return self.draw(sport)
        return packet(src, dst, sport, rng.choice(self._ports), rng.choice(self._protocols)), ifindex

    def _address(self, prefixes: list[str]) -> int:
        chosen = ipaddress.ip_network(self._rng.choice(prefixes))
        first, last = int(chosen.network_address), int(chosen.broadcast_address)
        inside = self._rng.randint(first, last)
        number = self._rng.choice([first, first - 1, first + 1, last, last + 1, last - 1, inside, first + 7])
        return 0xFFFF << 32 | number if self._ipv4 else number


# ---- worlds ----


def some(rng: random.Random, items: Any, most: int = 2) -> list[str]:
    return rng.sample(list(items), rng.randint(1, most))


def security_rule(rng: random.Random, number: int) -> dict[str, Any]:
    application = rng.choice([["any"], ["any"], ["any"], ["telnet"], ["mine", "dns"], ["ping"]])
    service = rng.choice([["any"], ["application-default"], some(rng, SERVICES)])
    return {
        "name": f"rule-{number}",
        "from": rng.choice([["any"], some(rng, ZONES)]),
        "to": rng.choice([["any"], some(rng, ZONES)]),
        "source": rng.choice([["any"], some(rng, PREFIXES, 3)]),
        "destination": rng.choice([["any"], some(rng, PREFIXES, 3)]),
        "negate-source": rng.random() < 0.05,
        "application": application,
        "service": service,
        "action": rng.choice(["allow"] * 8 + ["deny", "drop", "reset-both"]),
        "icmp-unreachable": rng.random() < 0.1,
        "log-start": rng.random() < 0.5,
        "log-end": rng.random() < 0.5,
    }


def source_translation(rng: random.Random) -> dict[str, Any]:
    pools = ["192.0.2.10", "192.0.2.16-192.0.2.36", "192.0.2.64/26"]
    return rng.choice(
        [
            {"type": "dynamic-ip-and-port", "addresses": [rng.choice(pools)], "port-range": "2000-2999"},
            {"type": "dynamic-ip-and-port", "addresses": pools},
            {"type": "dynamic-ip-and-port", "interface": rng.choice([*INTERFACES.values()])},
            {"type": "dynamic-ip", "addresses": ["192.0.2.128/28"]},
        ]
    )


def nat_rule(rng: random.Random, number: int) -> dict[str, Any]:
    ipv4 = [prefix for prefix in PREFIXES if ":" not in prefix]
    made: dict[str, Any] = {
        "name": f"nat-{number}",
        "from": rng.choice([["any"], some(rng, ZONES)]),
        "to": rng.choice(["any", "any", *ZONES]),
        "source": rng.choice([["any"], ["any"], some(rng, ipv4, 3)]),
        "destination": rng.choice([["any"], ["any"], some(rng, ipv4, 3)]),
        "service": rng.choice(["any"] * 6 + [*SERVICES]),
    }
    kind = rng.choice([0, 0, 0, 0, 1, 2, 3, 3, 4, 5])
    if kind == 1:
        return made | {"source": ["10.1.0.7"], "source-translation": {"type": "static-ip", "addresses": ["192.0.2.7"]}}
    if kind == 2:
        both = {"type": "static-ip", "addresses": ["192.0.2.64/26"], "bi-directional": True}
        return made | {"source": ["10.2.0.64/26"], "service": "any", "source-translation": both}
    if kind == 3:
        return made | {
            "destination": some(rng, ipv4),
            "destination-translation": {"address": "10.3.0.80", "port": 8080},
        }
    if kind == 4:
        made |= {"destination": ["10.2.0.64/26"], "destination-translation": {"address": "10.3.0.128/26"}}
    return made if kind == 5 else made | {"source-translation": source_translation(rng)}


def random_routes(rng: random.Random) -> Iterator[Entry]:
    for prefix in rng.sample(PREFIXES, 8):
        kind = rng.choice(["unicast"] * 12 + ["unreachable", "local"])
        yield entry(prefix, kind, rng.choice([*INTERFACES] * 4 + [9]), rng.choice([MAIN, MAIN, LOCAL]))
    for prefix in ("0.0.0.0/0", "::/0"):
        yield entry(prefix, "unicast", rng.choice([*INTERFACES]))


def random_world(rng: random.Random) -> World:
    policy = compile_policy(
        Config.model_validate(
            {
                "zones": [
                    {"name": name, "interfaces": [interface], "anti-spoof": rng.random() < 0.3}
                    for name, interface in zip(ZONES, INTERFACES.values(), strict=True)
                ],
                "services": SERVICES,
                "applications": APPLICATIONS,
                "nat-rules": [nat_rule(rng, number) for number in range(rng.randint(0, 6))],
                "security-rules": [security_rule(rng, number) for number in range(rng.randint(1, 8))],
                "host-inbound": {"trust": ["ping", "ssh"]},
            }
        )
    )
    links = [
        Link(name, ifindex, True, 1500, tuple(map(address_from_text, OWN[ifindex])), ())
        for ifindex, name in INTERFACES.items()
    ]
    return replace(
        drawn_world(),
        policy=policy,
        fib=Fib([*random_routes(rng)]),
        links=Links(links),
        zone_by_interface={ifindex: ifindex for ifindex in INTERFACES},
        rule_numbers=tuple(range(len(policy.security_rules))),
        nat_rule_numbers=tuple(range(len(policy.nat_rules))),
        application_rows={name: row for row, name in enumerate(policy.applications.by_name)},
        peers=rng.choice([{}, {}, {1: 2, 2: 1}]),
    )


# ---- the property ----


def assert_as_decided(session: Session, decision: Decision | None) -> None:
    """The session that C made is the one that Python would have made, but for the port, which is drawn."""
    assert decision is not None
    assert (session.state == "DISCARD") == decision.discard
    assert (session.rule, session.nat_rule) == (decision.rule, decision.nat_rule)
    assert (session.application, session.log_end, session.cached) == (decision.application, decision.log_end, True)
    assert (session.ingress, session.egress, session.s2c.zone) == (
        decision.ingress,
        decision.egress,
        decision.egress_zone,
    )
    c2s, s2c, translation = session.c2s, session.s2c, decision.translation
    wanted = (c2s.src, c2s.dst) if translation is None else (translation.source, translation.destination)
    assert (s2c.dst, s2c.src) == (wanted[0] or c2s.src, wanted[1] or c2s.dst)
    if translation is None or translation.ports is None or not s2c.dport:
        return
    assert translation.ports[0] <= s2c.dport <= translation.ports[1]
    assert s2c.sport == (translation.destination_port or c2s.dport)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_c_repeats_is_what_python_decides(seed):
    """For random worlds and packets at the ends of every interval, whoever taught the class before."""
    rng = random.Random(seed)
    with Dispatcher(random_world(rng)) as firewall:
        palette = Palette(rng)
        for sport in range(2000, 2150):
            data, ifindex = palette.draw(sport)
            decision = firewall.decided(data, ifindex)
            session = firewall.begun(data, ifindex)
            if session is None:
                firewall.teach(data, ifindex)
            else:
                assert_as_decided(session, decision)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_one_packet_of_a_class_speaks_for_all_of_them(seed):
    """Where C answers for the packet that taught it, it answers for every other in the same intervals."""
    rng = random.Random(seed)
    with Dispatcher(random_world(rng)) as firewall:
        lines = starts_of(firewall.world.policy, firewall.world.fib.snapshot.starts() or ())
        palette = Palette(rng)
        for sport in range(2000, 2060):
            data, ifindex = palette.draw(sport)
            firewall.teach(data, ifindex)
            key = firewall.first(data, ifindex)[0].key
            proto = ICMP if key.proto == 58 else key.proto
            port = sibling(rng, {TCP: lines.tcp, UDP: lines.udp}.get(proto, [0]), key.dport, 65535)
            src = sibling(rng, lines.source, key.src, (1 << 128) - 1)
            dst = sibling(rng, lines.destination, key.dst, (1 << 128) - 1)
            if src == dst:
                continue
            other = packet(src, dst, sport + 1000, port, proto)
            known, session = firewall.begun(data, ifindex), firewall.begun(other, ifindex)
            assert (known is None) == (session is None)
            if session is not None:
                assert_as_decided(session, firewall.decided(other, ifindex))


def sibling(rng: random.Random, line: list[int], value: int, last: int) -> int:
    """Another value of the same interval."""
    at = max(i for i, start in enumerate(line) if start <= value)
    end = line[at + 1] - 1 if at + 1 < len(line) else last
    return rng.choice([line[at], end, rng.randint(line[at], end)])


# ---- one class at a time ----

CLIENT, OTHER, SERVER = "10.1.0.2:4000", "10.1.0.3:4001", "8.8.8.8:5353"


def flow(source: str, destination: str, proto: int = UDP) -> bytes:
    (src, sport), (dst, dport) = endpoint(source), endpoint(destination)
    return packet(address_from_text(src), address_from_text(dst), sport, dport, proto)


def dispatcher(**changes: Any) -> Dispatcher:
    """The world of test_slowpath.py, with other rules."""
    return Dispatcher(drawn_world(**changes))


def allow_all(**fields: Any) -> dict[str, Any]:
    return {"security-rules": [{"name": "all", "action": "allow", **fields}]}


def snat(**translation: Any) -> dict[str, Any]:
    return {"name": "snat", "from": ["trust"], "to": "untrust", "source-translation": translation}


@pytest.mark.parametrize("proto", [TCP, UDP])
def test_another_flow_of_the_class_is_begun_without_python(proto):
    """It goes out translated in the same pass, from a port of the pool."""
    with dispatcher() as firewall:
        firewall.teach(flow(CLIENT, SERVER, proto), IN0)
        assert firewall.take(flow(OTHER, SERVER, proto), IN0) == lib.VERDICT_REWRITTEN
        (session,) = firewall.table.scan()
        assert (session.cached, session.source_nat, session.packets) == (True, True, (1, 0))
        assert session.s2c.dst == address_from_text("10.2.0.50")
        assert session.s2c.dport != 4001


def test_a_refusal_is_repeated_too():
    """The packet is counted as denied, its successors as hits of a DISCARD session."""
    with dispatcher(**{"security-rules": [{"name": "no", "action": "drop"}]}) as firewall:
        firewall.teach(flow(CLIENT, SERVER), IN0)
        for _ in range(3):
            assert firewall.take(flow(OTHER, SERVER), IN0) == lib.VERDICT_DROP
        counted = firewall.table.counters()
        assert (counted["flow_policy_deny"], counted["flow_discard_hit"]) == (1, 2)
        (session,) = firewall.table.scan()
        assert (session.state, session.packets) == ("DISCARD", (3, 0))


BY_OFFSET = {
    "name": "dnat",
    "to": "untrust",
    "destination": ["8.8.8.0/24"],
    "destination-translation": {"address": "9.9.9.0/24"},
}


@pytest.mark.parametrize(
    ("changes", "proto"),
    [
        ({"nat-rules": [snat(type="static-ip", addresses=["192.0.2.0/24"]) | {"source": ["10.1.0.0/24"]}]}, UDP),
        ({"nat-rules": [snat(type="dynamic-ip", addresses=["192.0.2.0/24"])]}, UDP),
        ({"nat-rules": [snat(type="persistent-dynamic-ip-and-port", addresses=["192.0.2.1"])]}, UDP),
        ({"nat-rules": [snat(type="dynamic-ip-and-port", addresses=["192.0.2.1", "192.0.2.9"])]}, UDP),
        ({"nat-rules": [BY_OFFSET]}, UDP),
        ({"security-rules": [{"name": "no", "action": "reset-both"}]}, TCP),
        ({"security-rules": [{"name": "no", "action": "deny", "icmp-unreachable": True}]}, UDP),
    ],
    ids=["by-offset", "dynamic-ip", "persistent", "two-ranges", "destination-by-offset", "reset", "unreachable"],
)
def test_what_depends_on_more_than_the_class_is_asked_every_time(changes, proto):
    """Another address, what the source is bound to, or an answer to the sender."""
    with dispatcher(**allow_all() | changes) as firewall:
        firewall.teach(flow(CLIENT, SERVER, proto), IN0)
        assert firewall.take(flow(OTHER, SERVER, proto), IN0) == lib.VERDICT_PUNT
        assert firewall.take(flow(CLIENT, SERVER, proto), IN0) == lib.VERDICT_PUNT


def test_a_pool_is_spread_as_python_spreads_it():
    """A source has the same address of the pool whoever decides."""
    pool = snat(type="dynamic-ip-and-port", addresses=["192.0.2.3-192.0.2.40"])
    with dispatcher(**allow_all() | {"nat-rules": [pool]}) as firewall:
        firewall.teach(flow(CLIENT, SERVER), IN0)
        sources = [f"10.1.0.{host}:4000" for host in range(4, 250)]
        given = set()
        for data in (flow(source, SERVER) for source in sources):
            session = firewall.begun(data, IN0)
            assert session is not None
            assert_as_decided(session, firewall.decided(data, IN0))
            given.add(session.s2c.dst)
        assert len(given) > 30


def test_no_template_outlives_what_it_was_decided_by():
    """Neither one that is there, nor one whose decision was made before the change and arrives after it."""
    with dispatcher(**allow_all()) as firewall:
        firewall.teach(flow(CLIENT, SERVER), IN0)
        first, parsed = firewall.first(flow(CLIENT, SERVER), IN0)
        decision, rule = decide(first, firewall.world)
        basis = firewall.dispatch.basis_of(firewall.world)
        assert basis is not None
        assert rule is not None
        firewall.follow(drawn_world(**allow_all()))
        assert firewall.take(flow(OTHER, SERVER), IN0) == lib.VERDICT_PUNT
        firewall.dispatch.learn(basis, parsed, first.key, decision, rule, None)
        assert firewall.take(flow(OTHER, SERVER), IN0) == lib.VERDICT_PUNT


def test_what_an_older_world_or_other_routes_have_decided_is_not_learnt():
    """The intervals are those of the world that was followed and of its routes at that time."""
    with dispatcher(**allow_all()) as firewall:
        assert firewall.dispatch.basis_of(drawn_world(**allow_all())) is None
        assert firewall.dispatch.basis_of(firewall.world) is not None
        firewall.world.fib.replace([], {socket.AF_INET: (), socket.AF_INET6: ()})
        assert firewall.dispatch.basis_of(firewall.world) is None


def test_while_the_kernel_has_to_be_asked_nothing_is_learnt():
    """Its answers have no intervals."""
    with dispatcher(**allow_all()) as firewall:
        orders: dict[int, Order] = {socket.AF_INET: None, socket.AF_INET6: ()}
        firewall.follow(replace(firewall.world, fib=Fib((), orders, lambda _: None)))
        assert firewall.dispatch.basis_of(firewall.world) is None


def test_while_something_is_predicted_everything_is_asked():
    """The first packet may be the expected one; Python knows."""
    with dispatcher(**allow_all()) as firewall:
        firewall.teach(flow(CLIENT, SERVER), IN0)
        first, _ = firewall.first(flow(CLIENT, SERVER), IN0)
        firewall.table.predict(first.key, first.key, decide(first, firewall.world)[0], 60)
        assert firewall.take(flow(OTHER, SERVER), IN0) == lib.VERDICT_PUNT
        firewall.clear()
        assert firewall.take(flow(OTHER, SERVER), IN0) != lib.VERDICT_PUNT


def test_where_there_is_no_room_python_is_asked():
    """It refuses as ever, and counts and tells it; C has counted nothing."""
    tight = snat(type="dynamic-ip-and-port", addresses=["192.0.2.1"], **{"port-range": "2000-2000"})
    with dispatcher(**allow_all() | {"nat-rules": [tight]}) as firewall:
        firewall.teach(flow(CLIENT, SERVER), IN0)
        assert firewall.take(flow(CLIENT, SERVER), IN0) == lib.VERDICT_REWRITTEN
        assert firewall.take(flow(OTHER, SERVER), IN0) == lib.VERDICT_PUNT
        assert firewall.table.counters()["nat_dipp_alloc_failure"] == 0


def test_hits_and_starts_are_told_once():
    """One hit per session, and a copy of each that is logged as it began, whether it has ended or not."""
    with dispatcher(**allow_all(**{"log-start": True})) as firewall:
        firewall.teach(flow(CLIENT, SERVER), IN0)
        for port in range(5000, 5003):
            firewall.take(flow(f"10.1.0.3:{port}", SERVER), IN0)
        firewall.clear()
        assert firewall.table.take_hits() == [(0, 3)]
        assert [session.c2s.sport for session in firewall.table.take_begun()] == [5000, 5001, 5002]
        assert (firewall.table.take_hits(), [*firewall.table.take_begun()]) == ([], [])


def test_a_quiet_rule_leaves_hits_alone():
    """What nobody logs is not copied."""
    with dispatcher(**allow_all()) as firewall:
        firewall.teach(flow(CLIENT, SERVER), IN0)
        firewall.take(flow(OTHER, SERVER), IN0)
        assert (firewall.table.take_hits(), [*firewall.table.take_begun()]) == ([(0, 1)], [])


# ---- many at once ----


@pytest.mark.stress
def test_the_cache_is_emptied_and_filled_while_workers_use_it():
    """Two workers begin sessions, an ager ends them, and the world is followed anew all the time: no hit and no record
    is lost, and nothing is left over."""
    pool = snat(type="dynamic-ip-and-port", addresses=["192.0.2.1-192.0.2.4"])
    with dispatcher(**allow_all(**{"log-start": True}) | {"nat-rules": [pool]}) as firewall:
        enough, over = threading.Event(), threading.Event()

        def work(shard: int) -> None:
            for number in itertools.takewhile(lambda _: not enough.is_set(), range(STRESS_PACKETS)):
                source = f"10.1.0.{2 + number % 100}:{1024 + number // 100 + shard * 30000}"
                firewall.take(flow(source, SERVER), IN0, shard)

        def age() -> None:
            while not over.is_set():
                firewall.clear()

        workers = [threading.Thread(target=work, args=(shard,)) for shard in (0, 1)]
        ager = threading.Thread(target=age)
        for thread in (*workers, ager):
            thread.start()
        hits = records = 0
        lessons = itertools.count(1024)
        try:
            while records < STRESS_SESSIONS and any(worker.is_alive() for worker in workers):
                firewall.follow(firewall.world)
                with suppress(InstallError):  # the workers may have filled the table
                    firewall.learn(flow(f"10.1.0.250:{next(lessons) % 60000}", SERVER), IN0)
                hits += sum(n for _, n in firewall.table.take_hits())
                records += len(firewall.table.take_begun())
        finally:
            enough.set()
            for worker in workers:
                worker.join()
            over.set()
            ager.join()
        firewall.clear()
        hits += sum(n for _, n in firewall.table.take_hits())
        records += len(firewall.table.take_begun())
        begun = firewall.table.counters()["session_cached"]
        assert hits == records == begun >= STRESS_SESSIONS
        assert firewall.table.stats()["allocated"] == 0
