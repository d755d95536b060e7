"""Ports of translated addresses: every one lent once, none lost, none that can be guessed."""

import socket
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.ffi import ffi, lib
from tests.reference import PortPool
from tests.talk import TCP, UDP, Echo, EchoReply, Firewall, mapped

POOL = "192.0.2.1"
REFUSED = -1


@pytest.fixture
def firewall():
    with Firewall(4096) as firewall:
        yield firewall


def client(n: int) -> str:
    return f"10.0.{n >> 8}.{n & 255}:4000"


def ports_lent(firewall, n: int, packet=UDP) -> list[int]:
    """Install n sessions of different clients to one server; the translated source ports in their order."""
    ports = []
    for i in range(n):
        assert firewall.c2s(packet(client(i), "8.8.8.8:53", b"")).left, firewall.installed
        ports.append(socket.ntohs(firewall.session().key[1].dport))
    return ports


def used(firewall, first=0, last=65535, address=POOL) -> int:
    return int(lib.natpool_used(firewall.table, lib.natpool_open(firewall.table, mapped(address)), first, last))


@pytest.mark.parametrize(
    ("first", "last"), [(1024, 1024), (1060, 1100), (2000, 2199), (65400, 65535), (1, 63), (64, 127)]
)
def test_every_port_of_a_range_is_lent_once(firewall, first, last):
    """And the next client is refused, with a counter, and leaves nothing behind."""
    pool = PortPool(first, last)
    firewall.decides(source=POOL, ports=(first, last))
    for port in ports_lent(firewall, last - first + 1):
        pool.take(port)
    assert not pool.free
    before = firewall.stats()
    firewall.c2s(UDP("10.9.9.9:1", "8.8.8.8:53")).is_punted()
    assert firewall.installed == lib.INSTALL_NO_PORT
    assert firewall.counters()["nat_dipp_alloc_failure"] == 1
    assert firewall.stats() == before
    assert used(firewall) == last - first + 1


def test_a_port_comes_back_with_the_end_of_its_session(firewall):
    """When the session is freed: a port must not serve two sessions that are both in the table."""
    firewall.decides(source=POOL, ports=(1024, 1027))
    pool = PortPool(1024, 1027)
    for port in ports_lent(firewall, 4):
        pool.take(port)
    freed = socket.ntohs(firewall.session(2).key[1].dport)
    firewall.end(2)
    firewall.c2s(UDP("10.9.9.9:1", "8.8.8.8:53")).is_punted()
    assert firewall.installed == lib.INSTALL_NO_PORT
    firewall.expire()
    pool.give(freed)
    firewall.c2s(UDP("10.9.9.9:1", "8.8.8.8:53")).leaves_as(f"{POOL}:{freed}", "8.8.8.8:53")
    pool.take(freed)
    assert not pool.free


def test_ranges_come_back_over_and_over(firewall):
    """Ten times full and empty."""
    firewall.decides(source=POOL, ports=(5000, 5099))
    for _ in range(10):
        assert len(set(ports_lent(firewall, 100))) == 100
        firewall.now = max(firewall.now, lib.table_now())
        firewall.wait(31)
        assert len(firewall.expire()) == 100
        assert used(firewall) == 0


def test_protocols_have_port_spaces_of_their_own(firewall):
    """TCP 1024, UDP 1024 and echo identifier 1024 at once."""
    firewall.decides(source=POOL, ports=(1024, 1024))
    firewall.c2s(TCP("10.0.0.5:4000", "8.8.8.8:53")).leaves_as(f"{POOL}:1024", "8.8.8.8:53")
    firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).leaves_as(f"{POOL}:1024", "8.8.8.8:53")
    firewall.c2s(Echo("10.0.0.5:4000", "8.8.8.8")).leaves_as(f"{POOL}:1024", "8.8.8.8")
    assert used(firewall) == 2


def test_echo_identifiers_are_translated_and_exhausted(firewall):
    """Two clients that ping with one identifier get their own replies (RFC 5508 REQ-1)."""
    firewall.decides(source=POOL, ports=(7, 8))
    seen = set()
    for address in ["10.0.0.5", "10.0.0.6"]:
        identifier = firewall.c2s(Echo(f"{address}:77", "8.8.8.8")).packet["ICMP"].id
        firewall.s2c(EchoReply("8.8.8.8", f"{POOL}:{identifier}")).leaves_as("8.8.8.8", f"{address}:77")
        seen.add(identifier)
    assert seen == {7, 8}
    firewall.c2s(Echo("10.0.0.7:77", "8.8.8.8")).is_punted()
    assert firewall.installed == lib.INSTALL_NO_PORT


@pytest.mark.parametrize("packet", [UDP, TCP])
def test_a_source_port_of_zero_is_a_port(firewall, packet):
    """A datagram that wants no answer has none; two clients do not collide all the same."""
    firewall.decides(source=POOL, ports=(1024, 2000))
    for address in ["10.0.0.5", "10.0.0.6"]:
        assert firewall.c2s(packet(f"{address}:0", "8.8.8.8:53")).left
    assert 1024 <= socket.ntohs(firewall.session().key[1].dport) <= 2000


def test_a_protocol_without_ports_keeps_its_one_translation(firewall):
    """GRE: the first client wins, the second is refused and counted."""
    firewall.decides(source=POOL, ports=(1024, 2000))
    gre = [
        b"\x45\0\0\x1c" + bytes(5) + b"\x2f\0\0\x0a\0\0" + bytes([i]) + b"\x08\x08\x08\x08" + bytes(8) for i in (5, 6)
    ]
    assert firewall.c2s(gre[0]).left
    firewall.c2s(gre[1]).is_punted()
    assert firewall.installed == lib.INSTALL_CLASH
    assert firewall.counters()["session_duplicate_key"] == 1


def test_reserved_ports_are_left_alone(firewall):
    """Sockets of the firewall itself hold them, for TCP and UDP; identifiers are no ports."""
    firewall.reserve({1030, 1031, 1050})
    firewall.decides(source=POOL, ports=(1024, 1055))
    assert sorted(ports_lent(firewall, 29)) == [p for p in range(1024, 1056) if p not in (1030, 1031, 1050)]
    firewall.c2s(UDP("10.9.9.9:1", "8.8.8.8:53")).is_punted()
    assert len(set(ports_lent(firewall, 32, lambda c, s, p: Echo(c, s.partition(":")[0])))) == 32


def test_ports_are_not_lent_in_an_order(firewall):
    """RFC 6056: a runs test. Half of the steps go up, hardly any goes to the neighbour."""
    firewall.decides(source=POOL, ports=(1024, 65535))
    ports = ports_lent(firewall, 1000)
    steps = [b - a for a, b in pairwise(ports)]
    assert 400 < sum(step > 0 for step in steps) < 600
    assert sum(abs(step) < 64 for step in steps) < 30
    quarters = [sum(1024 + q * 16128 <= port < 1024 + (q + 1) * 16128 for port in ports) for q in range(4)]
    assert all(170 < n < 330 for n in quarters)


def test_a_nearly_full_range_is_not_lent_in_an_order_either(firewall):
    """The last ports are found by search; that starts anywhere."""
    firewall.decides(source=POOL, ports=(1024, 1024 + 1023))
    ports = ports_lent(firewall, 1024)
    steps = [b - a for a, b in pairwise(ports[-200:])]
    assert sum(0 < step <= 2 for step in steps) < 80  # of 199; 28 on average, and 8 of deviation


def test_two_virtual_addresses_onto_one_server(firewall):
    """A client speaks to both from one port; behind us they would be one connection, so one gets another port."""
    firewall.decides(destination="10.1.1.1:80")
    firewall.c2s(TCP("10.0.0.5:4000", "203.0.113.1:80")).leaves_as("10.0.0.5:4000", "10.1.1.1:80")
    outcome = firewall.c2s(TCP("10.0.0.5:4000", "203.0.113.2:80"))
    port = outcome.packet["TCP"].sport
    assert port != 4000
    outcome.leaves_as(f"10.0.0.5:{port}", "10.1.1.1:80")
    firewall.s2c(TCP("10.1.1.1:80", f"10.0.0.5:{port}", "SA", ack=1)).leaves_as("203.0.113.2:80", "10.0.0.5:4000")
    firewall.s2c(TCP("10.1.1.1:80", "10.0.0.5:4000", "SA", ack=1)).leaves_as("203.0.113.1:80", "10.0.0.5:4000")
    assert firewall.counters()["nat_port_reallocated"] == 1


def test_a_port_whose_return_key_is_taken_is_not_used(firewall):
    """Somebody untranslated happens to speak from our address and port: another one is lent, and this one kept."""
    firewall.decides().c2s(UDP(f"{POOL}:1024", "8.8.8.8:53")).passes()
    firewall.decides(source=POOL, ports=(1024, 1025))
    firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).leaves_as(f"{POOL}:1025", "8.8.8.8:53")
    firewall.c2s(UDP("10.0.0.6:4000", "8.8.8.8:53")).is_punted()
    assert firewall.installed == lib.INSTALL_NO_PORT
    assert used(firewall) == 1
    firewall.c2s(UDP("10.0.0.6:4000", "9.9.9.9:53")).leaves_as(f"{POOL}:1024", "9.9.9.9:53")


def test_an_untranslated_flow_loses_to_a_live_session(firewall):
    """Its answers would go to somebody else."""
    firewall.decides(source=POOL, ports=(1024, 1024)).c2s(UDP("10.0.0.5:4000", "8.8.8.8:53"))
    firewall.decides().c2s(UDP(f"{POOL}:1024", "8.8.8.8:53")).is_punted()
    assert firewall.installed == lib.INSTALL_CLASH


def test_static_translation_takes_no_port(firewall):
    """Address changed, port kept."""
    firewall.decides(source=POOL)
    firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).leaves_as(f"{POOL}:4000", "8.8.8.8:53")
    assert used(firewall) == 0


def test_an_address_without_a_pool_lends_nothing(firewall):
    """The slow path opens pools at commit; a decision that names another address is refused."""
    firewall.decides(source=POOL, ports=(1024, 2000))
    firewall.decision["source"] = mapped("192.0.2.77")
    firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).is_punted()
    assert firewall.installed == lib.INSTALL_NO_PORT
    assert firewall.stats()["allocated"] == 0


def test_a_pool_is_opened_once(firewall):
    """Its number is found again; the table of pools has an end."""
    first = lib.natpool_open(firewall.table, mapped(POOL))
    assert lib.natpool_open(firewall.table, mapped(POOL)) == first
    numbers = {lib.natpool_open(firewall.table, mapped(f"198.18.{i >> 8}.{i & 255}")) for i in range(lib.MAX_POOLS - 1)}
    assert len(numbers | {first}) == lib.MAX_POOLS
    assert lib.natpool_open(firewall.table, mapped("203.0.113.99")) == -1
    assert lib.natpool_open(firewall.table, mapped(POOL)) == first


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(0, 65535, 10), (1024, 1033, 10), (1024, 1024, 1), (1025, 1032, 8), (1034, 65535, 0)],
)
def test_used_ports_are_counted_within_their_range(firewall, first, last, expected):
    """Ends included, whatever word of the bitmap they lie in."""
    firewall.decides(source=POOL, ports=(1024, 1033))
    ports_lent(firewall, 10)
    assert used(firewall, first, last) == expected


def test_ipv6_pools_are_pools(firewall):
    """NAT66 with ports."""
    firewall.decides(source="2001:db8:ffff::1", ports=(1024, 1024))
    firewall.c2s(UDP("[2001:db8::5]:4000", "[2001:4860::8888]:53")).leaves_as(
        "[2001:db8:ffff::1]:1024", "[2001:4860::8888]:53"
    )
    firewall.s2c(UDP("[2001:4860::8888]:53", "[2001:db8:ffff::1]:1024")).leaves_as(
        "[2001:4860::8888]:53", "[2001:db8::5]:4000"
    )


# ---- parity ----


@pytest.mark.parametrize(("first", "last"), [(1024, 65535), (1025, 1122), (2001, 2300)])
@pytest.mark.parametrize("sport", [4000, 4001])
def test_parity_is_kept_while_a_port_has_it(firewall, first, last, sport):
    """RFC 4787 REQ-4: an even port becomes an even one, an odd one odd, until there are only others."""
    firewall.decides(source=POOL, ports=(first, last))
    of_parity = sum(port % 2 == sport % 2 for port in range(first, last + 1))
    ports = []
    for i in range(min(last - first + 1, 200)):
        assert firewall.c2s(UDP(f"10.0.{i >> 8}.{i & 255}:{sport}", "8.8.8.8:53")).left
        ports.append(socket.ntohs(firewall.session().key[1].dport))
    assert all(port % 2 == sport % 2 for port in ports[:of_parity])
    assert len(set(ports)) == len(ports)


# ---- sockets of the firewall itself ----


def owns(firewall, address=POOL) -> None:
    """The address is the firewall's own."""
    lib.table_set_origins(firewall.table, [(mapped(address), mapped(address), lib.ZONE_HOST)], 1)


@pytest.mark.parametrize("packet", [UDP, TCP])
def test_a_static_translation_never_shadows_a_socket(firewall, packet):
    """To our own address with the port of one of our sockets: another port of that parity, and the answer is undone."""
    owns(firewall)
    firewall.reserve({4001})
    firewall.decides(source=POOL)
    outcome = firewall.c2s(packet("10.0.0.5:4001", "8.8.8.8:53"))
    port = socket.ntohs(firewall.session().key[1].dport)
    assert port != 4001
    assert port % 2
    outcome.leaves_as(f"{POOL}:{port}", "8.8.8.8:53")
    assert firewall.counters()["nat_port_reallocated"] >= 1
    flags = {"flags": "SA", "ack": 1} if packet is TCP else {}
    firewall.s2c(packet("8.8.8.8:53", f"{POOL}:{port}", **flags)).leaves_as("8.8.8.8:53", "10.0.0.5:4001")
    firewall.c2s(packet("10.0.0.5:4003", "8.8.8.8:53")).leaves_as(f"{POOL}:4003", "8.8.8.8:53")


def test_where_no_socket_can_be_the_port_is_kept(firewall):
    """The socket listens on our address, not on every address that we translate to; an echo identifier is no port."""
    owns(firewall, "192.0.2.2")
    firewall.reserve({4001})
    firewall.decides(source=POOL)
    firewall.c2s(UDP("10.0.0.5:4001", "8.8.8.8:53")).leaves_as(f"{POOL}:4001", "8.8.8.8:53")
    owns(firewall)
    firewall.c2s(Echo("10.0.0.5:4001", "8.8.8.8")).leaves_as(f"{POOL}:4001", "8.8.8.8")


# ---- oversubscription ----


@pytest.fixture(params=[2, 4, 8])
def ratio(request):
    """So many sessions share a port."""
    return request.param


@pytest.fixture
def sharing(ratio):
    with Firewall(4096, planes=ratio) as firewall:
        yield firewall


def served(firewall, host: int, server: str, dport: int = 53) -> int:
    """The port that a new session of a client to the server gets; REFUSED if none."""
    if not firewall.c2s(UDP(client(host), f"{server}:{dport}")).left:
        assert firewall.installed == lib.INSTALL_NO_PORT
        return REFUSED
    return socket.ntohs(firewall.session().key[1].dport)


def test_each_destination_gets_every_port(sharing, ratio):
    """Ten ports: ten sessions to each of as many servers as may share, and not one more to any server."""
    sharing.decides(source=POOL, ports=(5000, 5009))
    for n in range(ratio):
        assert {served(sharing, host, f"8.8.8.{n}") for host in range(n * 100, n * 100 + 10)} == set(range(5000, 5010))
    assert used(sharing) == 10 * ratio
    assert served(sharing, 2000, "8.8.8.0") == REFUSED
    assert served(sharing, 2001, "9.9.9.9") == REFUSED
    assert sharing.counters()["nat_dipp_alloc_failure"] == 2


def test_sharers_have_different_destination_addresses_not_ports(sharing):
    """One server with two services is one destination."""
    sharing.decides(source=POOL, ports=(5000, 5000))
    assert served(sharing, 1, "8.8.8.8", 53) == 5000
    assert served(sharing, 2, "8.8.8.8", 54) == REFUSED
    assert served(sharing, 3, "8.8.4.4", 53) == 5000


def test_answers_find_their_sharer(sharing):
    """Two clients behind one port, told apart by whom they talk to."""
    sharing.decides(source=POOL, ports=(5000, 5000))
    sharing.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).leaves_as(f"{POOL}:5000", "8.8.8.8:53")
    sharing.c2s(UDP("10.0.0.6:4000", "8.8.4.4:53")).leaves_as(f"{POOL}:5000", "8.8.4.4:53")
    sharing.s2c(UDP("8.8.8.8:53", f"{POOL}:5000")).leaves_as("8.8.8.8:53", "10.0.0.5:4000")
    sharing.s2c(UDP("8.8.4.4:53", f"{POOL}:5000")).leaves_as("8.8.4.4:53", "10.0.0.6:4000")


def test_a_port_is_shared_when_all_are_in_use(sharing):
    """The second destination gets ports that nobody has while there are any."""
    sharing.decides(source=POOL, ports=(5000, 5009))
    ports = [served(sharing, host, f"8.8.8.{host}") for host in range(11)]
    assert sorted(ports[:10]) == list(range(5000, 5010))
    assert ports[10] in ports[:10]


def test_without_oversubscription_a_port_serves_one_session(firewall):
    """Towards whomever."""
    firewall.decides(source=POOL, ports=(5000, 5000))
    assert served(firewall, 1, "8.8.8.8") == 5000
    assert served(firewall, 2, "8.8.4.4") == REFUSED


def test_a_destination_with_most_of_a_large_range_is_searched_for_long_but_not_for_ever():
    """A destination that has thousands of ports finds the last one that it may share; then it is refused."""
    with Firewall(9000, planes=2) as firewall:
        firewall.decides(source=POOL, ports=(2000, 5999))
        assert len({served(firewall, host, "8.8.8.8") for host in range(4000)}) == 4000
        assert served(firewall, 4000, "8.8.8.8") == REFUSED
        assert served(firewall, 4001, "8.8.4.4") != REFUSED


class SharedPorts:
    """Naive: who has which port, by destination."""

    def __init__(self, ports: range, ratio: int) -> None:
        self.ports, self.ratio = ports, ratio
        self.destinations: dict[int, set[str]] = defaultdict(set)

    def could_take(self, server: str) -> bool:
        return any(self._has_room(port, server) for port in self.ports)

    def take(self, port: int, server: str) -> None:
        assert self._has_room(port, server)
        self.destinations[port].add(server)

    def give(self, port: int, server: str) -> None:
        self.destinations[port].remove(server)

    def _has_room(self, port: int, server: str) -> bool:
        return (
            port in self.ports and len(self.destinations[port]) < self.ratio and server not in self.destinations[port]
        )


@given(st.sampled_from([1, 2, 4, 8]), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=120))
def test_sharing_agrees_with_a_naive_model(most, steps):
    """Sessions come and go at random: a port is refused only when the model has none, and lent only as it may be."""
    model = SharedPorts(range(5000, 5006), most)
    alive: list[tuple[int, int, str]] = []
    with Firewall(256, planes=most) as firewall:
        firewall.decides(source=POOL, ports=(5000, 5005))
        for n, (comes, number) in enumerate(steps):
            if comes or not alive:
                server = f"8.8.8.{number}"
                port, possible = served(firewall, n, server), model.could_take(server)
                assert (port != REFUSED) == possible
                if port != REFUSED:
                    model.take(port, server)
                    alive.append((firewall.installed, port, server))
            else:
                session, port, server = alive.pop(number % len(alive))
                firewall.end(session)
                firewall.expire()
                model.give(port, server)
            assert used(firewall) == len(alive)


def lend(firewall, first: int, last: int, like: int = 0) -> int:
    pool = lib.natpool_open(firewall.table, mapped(POOL))
    return int(lib.natpool_lend(firewall.table, pool, 17, first, last, like))


def test_a_port_that_is_lent_for_longer_is_shared_with_nobody(sharing, ratio):
    """Neither with sessions that might share it, nor is a port lent that one session has; and it comes back whole."""
    sharing.decides(source=POOL, ports=(5000, 5001))
    first = served(sharing, 1, "8.8.8.8")
    assert lend(sharing, 5000, 5001) == 10001 - first
    assert lend(sharing, 5000, 5001) == -1
    assert {served(sharing, n + 2, f"8.8.4.{n}") for n in range(ratio - 1)} == {first}
    assert served(sharing, 20, "9.9.9.9") == REFUSED
    lib.natpool_take_back(sharing.table, lib.natpool_find(sharing.table, mapped(POOL)), 17, 10001 - first)
    assert served(sharing, 21, "9.9.9.9") == 10001 - first


def test_what_sharing_costs(firewall):
    """16 bytes a session where it is on, and nothing where it is off (budget: 256)."""
    with Firewall(4096, planes=2) as sharing:
        grown = sharing.stats()["bytes"] - firewall.stats()["bytes"]
    assert 16 * 4096 <= grown <= 16 * 4096 + 4096
    assert lib.table_create(10, 0) == lib.table_create(10, lib.MAX_PLANES + 1) == ffi.NULL


# ---- bindings ----


def test_a_bound_session_gets_that_port_or_none(firewall):
    """Where a live session has the return key, nothing else will do."""
    firewall.decides(source=POOL, ports=(5000, 5000), destination="10.1.1.1:80")
    firewall.decision["source_nat"] = lib.SOURCE_BOUND
    firewall.c2s(UDP("10.0.0.5:4000", "203.0.113.1:80")).leaves_as(f"{POOL}:5000", "10.1.1.1:80")
    before = firewall.stats()
    firewall.c2s(UDP("10.0.0.5:4000", "203.0.113.2:80")).is_punted()
    assert firewall.installed == lib.INSTALL_CLASH
    assert firewall.stats() == before
    assert used(firewall) == 0
