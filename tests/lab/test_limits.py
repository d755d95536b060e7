"""Too much for one source, for the pool, for the table: who finds no room is told so, and nobody loses what he has.

Every source has room for so many UDP flows, and a reason of its own why there is no more (RFC 6888 REQ-4, 5 and 11, RFC
5508 REQ-8). A source of IPv6 is a /64, so the client's addresses are one; each test begins with an empty table.

    10.1.0.10  fd00:1::10   untranslated                     SESSIONS, settings.session.max-per-source
    10.1.0.20  fd00:1::20   the interface's address, as 21   PORTS, settings.nat.max-ports-per-source
    10.1.0.30  fd00:1::30   10.2.0.130 fd00:2::130           two ports, 3000-3001
    10.1.0.40  fd00:1::40   untranslated                     two slots: strangers fill the others
    10.1.0.50  fd00:1::50   10.2.0.150 fd00:2::150           one address, dynamic-ip, held by a neighbour: none
"""

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import GRE

from tests.lab.calls import called_by, connect, connect_again, exchange, port_of
from tests.lab.console import IN_ORDER, ask, attempt, counters, outcome, port, record, rule, sessions, zones
from tests.lab.firewall import Firewall
from tests.lab.lab import IN0, IN06, SERVER, SERVER6, Lab, poll

SESSIONS, PORTS, SLOTS = 6, 4, 40
DENIED = 23
LINGER = 1  # seconds in TIME_WAIT
REUSED = 5000  # a port of the client
HOLDER = 51  # the neighbour
HOSTS = (10, 11, 20, 21, 30, 40, 50, HOLDER)
UDP_KIND = socket.SOCK_DGRAM


@dataclass(frozen=True)
class Net:
    """A family, and what its refusals look like."""

    lan: str
    wan: str
    server: str
    firewall: str
    error: int

    def told(self, packet: Any) -> tuple[str, int, int, int]:
        """Whose unreachable it is, its type and code, and the port that the quoted datagram came from."""
        if IP in packet:
            return packet[IP].src, packet[ICMP].type, packet[ICMP].code, packet["UDP in ICMP"].sport
        unreachable = packet[ICMPv6DestUnreach]
        return packet[IPv6].src, unreachable.type, unreachable.code, packet["UDP in ICMP"].sport


V4 = Net("10.1.0.", "10.2.0.", SERVER, IN0, errno.EHOSTUNREACH)
V6 = Net("fd00:1::", "fd00:2::", SERVER6, IN06, errno.EACCES)
PROHIBITED = {V4: (3, 13), V6: (1, 1)}
BOTH = pytest.mark.parametrize("net", [V4, V6], ids=["ipv4", "ipv6"])


def translated(net: Net, *hosts: int, **source: Any) -> dict[str, Any]:
    """A NAT rule for these hosts."""
    return {
        "name": f"{net.lan}{hosts[0]}",
        "nat-type": "ipv6" if net is V6 else "ipv4",
        "from": ["trust"],
        "to": "untrust",
        "source": [f"{net.lan}{host}" for host in hosts],
        "source-translation": source,
    }


def nat_rules(net: Net) -> list[dict[str, Any]]:
    drawn = "dynamic-ip-and-port"
    return [
        translated(net, 20, 21, type=drawn, interface="out0"),
        translated(net, 30, type=drawn, addresses=[f"{net.wan}130"], **{"port-range": "3000-3001"}),
        translated(net, 50, HOLDER, type="dynamic-ip", addresses=[f"{net.wan}150"]),
    ]


CONFIG: dict[str, Any] = {
    "zones": zones(),
    "services": {"denied": port(DENIED, "udp")},
    "security-rules": [rule("denied", "deny", service=["denied"]), rule("out", from_=["trust"], to=["untrust"])],
    "nat-rules": nat_rules(V4) + nat_rules(V6),
    "host-inbound": {"trust": ["any"]},
    "settings": {
        "session": {
            "max-sessions": SLOTS,
            "max-per-source": SESSIONS,
            "accelerated-aging": {"enabled": False},
            "timeouts": {"udp": 60, "tcp-time-wait": LINGER},
        },
        "nat": {"max-ports-per-source": PORTS},
        **IN_ORDER,
    },
}


@dataclass
class Bench:
    """A lab, the firewall in it, and a server to call."""

    lab: Lab
    firewall: Firewall
    servers: dict[Net, socket.socket]

    def caller(self, net: Net, host: int) -> socket.socket:
        """A socket of a client's address that is connected to the server, and has sent nothing."""
        made = self.lab.udp("client", 0, f"{net.lan}{host}")
        made.connect((net.server, port_of(self.servers[net])))
        return made

    def echoes(self, net: Net, *callers: socket.socket) -> None:
        """Each of them is answered."""
        for caller in callers:
            exchange(caller, self.servers[net], (net.server, port_of(self.servers[net])))

    def flows(self, net: Net, host: int, count: int) -> list[socket.socket]:
        callers = [self.caller(net, host) for _ in range(count)]
        self.echoes(net, *callers)
        return callers

    def refuses(self, net: Net, host: int, counter: str) -> socket.socket:
        """One more flow, whose socket is told; what the server should not get, the next echo would stumble over."""
        before, caller = counters(self.firewall), self.caller(net, host)
        with self.lab.capture("client", "eth0", "icmp or icmp6") as at_client:
            caller.send(b"one too many")
            assert poll(lambda: caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 3, "an error") == net.error
            (frame,) = at_client.received()
        assert net.told(frame.packet) == (net.firewall, *PROHIBITED[net], port_of(caller))
        assert at_client.wrong_checksums() == []
        poll(lambda: self.grown(before, counter, "flow_action_unreachable") == [1, 1], 3, f"one {counter}")
        return caller

    def grown(self, before: dict[str, int], *names: str) -> list[int]:
        after = counters(self.firewall)
        return [after[name] - before[name] for name in names]

    def ends(self, caller: socket.socket) -> None:
        """Its session, all of it."""
        before = counters(self.firewall)
        ask(self.firewall, "clear session all", filter={"source-port": str(port_of(caller))})
        poll(lambda: self.grown(before, "session_freed") == [1], 3, "the session to be freed")

    def is_empty(self) -> bool:
        counted = counters(self.firewall)
        return counted["session_installed"] == counted["session_freed"]

    def fill(self, count: int) -> None:
        """So many sessions of as many strangers."""
        before = counters(self.firewall)
        sources = (f"10.1.0.{100 + n}" for n in range(count))
        self.lab.inject("client", *(IP(src=source, dst=SERVER) / UDP(sport=4000, dport=9) for source in sources))
        poll(lambda: self.grown(before, "session_installed") == [count], 3, "the table to be filled")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Bench]:
    addresses = [f"{net.lan}{host}" for net in (V4, V6) for host in HOSTS]
    with Lab(client_addresses=addresses) as lab, lab.firewall(CONFIG) as firewall:
        yield Bench(lab, firewall, {net: lab.udp("server", 0, net.server) for net in (V4, V6)})


@pytest.fixture
def bench(daemon: Bench) -> Bench:
    """Without a session of the test before."""
    ask(daemon.firewall, "clear session all", filter={})
    poll(daemon.is_empty, 3, "an empty table")
    return daemon


@BOTH
@pytest.mark.parametrize(
    ("host", "room", "strangers", "counter"),
    [
        pytest.param(10, SESSIONS, 0, "session_source_limit", id="sessions"),
        pytest.param(20, PORTS, 0, "session_source_limit", id="ports"),
        pytest.param(30, 2, 0, "nat_dipp_alloc_failure", id="pool"),
        pytest.param(40, 2, SLOTS - 2, "session_alloc_failure", id="table"),
    ],
)
def test_who_finds_no_room_is_told(bench: Bench, net: Net, host: int, room: int, strangers: int, counter: str) -> None:
    """The flow above the limit is dropped and recorded, all old ones go on, and when one ends there is room for one."""
    bench.fill(strangers)
    callers = bench.flows(net, host, room)
    refused = bench.refuses(net, host, counter)
    made = record(bench.firewall, event="drop", src=f"{net.lan}{host}", sport=port_of(refused))
    assert (made["session_id"], made["rule"], made["session_end_reason"]) == (0, "out", "resources-unavailable")
    bench.echoes(net, *callers)
    bench.ends(callers.pop(0))
    bench.echoes(net, refused)
    bench.refuses(net, host, counter)
    bench.echoes(net, refused, *callers)


@BOTH
def test_a_pool_of_addresses_without_a_free_one(bench: Bench, net: Net) -> None:
    """The neighbour keeps the address until his last session ends."""
    (holder,) = bench.flows(net, HOLDER, 1)
    refused = bench.refuses(net, 50, "nat_dip_alloc_failure")
    bench.echoes(net, *bench.flows(net, HOLDER, 1), holder)
    for caller in sessions(bench.firewall, destination_port=port_of(bench.servers[net])):
        ask(bench.firewall, "clear session id", id=caller["id"])
    poll(bench.is_empty, 3, "an empty table")
    bench.echoes(net, refused)


@BOTH
def test_connections_count_until_they_have_ended(bench: Bench, net: Net) -> None:
    """connect() fails at once; one that is closed makes room after its time in TIME_WAIT, of its own accord."""
    with bench.lab.listener("server", 0, net.server) as listening:
        source, to = (f"{net.lan}10", 0), (net.server, port_of(listening))
        calls = [connect(bench.lab, source, to) for _ in range(SESSIONS)]
        with pytest.raises(OSError, match=os.strerror(net.error)):
            connect(bench.lab, source, to)
        for call in calls:
            called_by(listening, call)
        before = counters(bench.firewall)
        calls.pop().close()
        poll(lambda: bench.grown(before, "session_freed") == [1], LINGER + 5, "the connection to be forgotten")
        called_by(listening, connect(bench.lab, source, to))


@BOTH
def test_a_host_at_its_limit_may_call_again_from_the_same_port(bench: Bench, net: Net) -> None:
    """The new connection takes the place of the one that was closed a moment ago, again and again."""
    bench.flows(net, 10, SESSIONS - 1)
    source, before = (f"{net.lan}10", REUSED), counters(bench.firewall)
    with bench.lab.listener("server", 0, net.server) as listening:
        for _ in range(4):
            with connect_again(bench.lab, source, (net.server, port_of(listening))) as call:
                listening.accept()[0].close()  # the server first, so that it is the one to keep TIME_WAIT
                assert call.recv(1) == b""
    assert bench.grown(before, "session_source_limit", "tcp_session_reused") == [0, 3]


def test_another_address_of_the_same_network_is_a_source_of_ipv4_only(bench: Bench) -> None:
    """A host may give itself any address of its /64; ports that another host holds are not its."""
    bench.flows(V4, 10, SESSIONS)
    bench.flows(V4, 11, SESSIONS)
    bench.flows(V6, 10, SESSIONS)
    bench.refuses(V6, 11, "session_source_limit")


def test_sessions_without_a_port_do_not_use_up_ports(bench: Bench) -> None:
    """Of six sessions four may hold a port; one with the firewall itself holds none, and one without translation."""
    with attempt(bench.lab, (IN06, 53), UDP_KIND) as asked:
        poll(lambda: outcome(asked) == "ECONNREFUSED", 3, "the answer of a host where nobody listens")
    callers = bench.flows(V6, 20, PORTS)
    bench.refuses(V6, 20, "session_source_limit")
    callers += bench.flows(V6, 10, SESSIONS - PORTS - 1)
    bench.refuses(V6, 10, "session_source_limit")
    bench.echoes(V6, *callers)


def test_what_policy_did_not_allow_is_not_answered(bench: Bench) -> None:
    """In a full table a denied flow and one to the firewall itself are dropped in silence, as always."""
    bench.fill(SLOTS)
    before = counters(bench.firewall)
    with bench.lab.capture("client", "eth0", "icmp") as at_client:
        attempt(bench.lab, (SERVER, DENIED), UDP_KIND).close()
        attempt(bench.lab, (IN0, 53), UDP_KIND).close()
        poll(lambda: bench.grown(before, "session_alloc_failure") == [2], 3, "both refusals to be counted")
        bench.refuses(V4, 10, "session_alloc_failure")
    assert len(at_client.received()) == 1


def test_whose_answers_would_be_anothers_is_not_answered(bench: Bench) -> None:
    """Nothing is lacking: of two hosts behind one address only the first can have a session without ports."""
    before = counters(bench.firewall)
    with bench.lab.capture("client", "eth0", "icmp[icmptype] == 3 and icmp[icmpcode] == 13") as at_client:
        bench.lab.inject("client", *(IP(src=f"10.1.0.{host}", dst=SERVER) / GRE() for host in (20, 21)))
        poll(lambda: bench.grown(before, "session_duplicate_key") == [1], 3, "the second to be refused")
        bench.flows(V4, 20, PORTS)
        bench.refuses(V4, 20, "session_source_limit")
    assert len(at_client.received()) == 1


def test_a_virtual_wire_has_no_address_to_answer_from() -> None:
    """The flow above the limit is dropped and counted, and nothing is said."""
    wired = {
        "zones": [{"name": "left", "interfaces": ["in0"]}, {"name": "right", "interfaces": ["out0"]}],
        "virtual-wires": [{"name": "vw0", "interfaces": ["in0", "out0"]}],
        "security-rules": [rule("all")],
        "settings": {"session": {"max-per-source": 1}, **IN_ORDER},
    }
    with Lab(bridge=True) as lab, lab.firewall(wired) as firewall, lab.capture("client", "eth0", "icmp") as at_client:
        server, first, second = lab.udp("server"), lab.udp("client"), lab.udp("client")
        exchange(first, server, (SERVER, port_of(server)))
        second.sendto(b"one too many", (SERVER, port_of(server)))
        poll(lambda: counters(firewall)["session_source_limit"] == 1, 3, "the refusal to be counted")
        exchange(first, server, (SERVER, port_of(server)))
        assert at_client.received() == []
