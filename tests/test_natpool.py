"""Ports of translated addresses: every one lent once, none lost, none that can be guessed."""

import socket
from itertools import pairwise

import pytest

from dataplane.ffi import lib
from tests.reference import PortPool
from tests.talk import TCP, UDP, Echo, EchoReply, Firewall, mapped

POOL = "192.0.2.1"


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
    assert sum(step == 1 for step in steps) < 40


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
