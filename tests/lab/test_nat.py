"""Address translation on real traffic, judged by what the two ends see.

Each rule has client addresses of its own (the numbers are the last part of an address, in both families):

    client side                                   server side
      2, 3      share the interface's address       1          the interface
      30 - 37   get one of a pool's                 100 - 103  pool, ports 20000-29999
      64 - 67   one to one, both ways               64 - 67
      80        of a pool with four ports           110        ports 3000-3003
      81        of four ports, three are in use     111        ports 3100-3103
      90        exempt                              50         becomes the server, and the source is translated too
      31        also a phantom's                    51, 52     become the server
                                                    104        where a service says so
"""

import itertools
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.packet import Packet, Raw

from tests.lab.calls import called_by, connect, exchange, pool_row, port_of
from tests.lab.capture import Capture
from tests.lab.firewall import Firewall
from tests.lab.lab import IN0, IN06, OUT0, OUT06, SERVER, SERVER6, Lab, poll

BRIEF = 7100  # a UDP port whose sessions end after three seconds
SPECIAL = 7001  # a UDP port with a NAT rule of its own
HELD = (3100, 3101, 3102)
POOL_PORTS = range(20000, 30000)
PUBLIC_PORT, PRIVATE_PORT = 8080, 8081
SESSIONS_OF_ONE_HOST = 40


@dataclass(frozen=True)
class Net:
    """One family's names for the same places."""

    family: str
    lan_prefix: str
    wan_prefix: str
    server: str
    inside: str
    outside: str
    any: str

    def lan(self, number: int) -> str:
        return f"{self.lan_prefix}{number}"

    def wan(self, number: int) -> str:
        return f"{self.wan_prefix}{number}"

    def lans(self, first: int, last: int) -> list[str]:
        return [self.lan(number) for number in range(first, last + 1)]

    def wans(self, first: int, last: int) -> list[str]:
        return [self.wan(number) for number in range(first, last + 1)]


V4 = Net("ipv4", "10.1.0.", "10.2.0.", SERVER, IN0, OUT0, "0.0.0.0")
V6 = Net("ipv6", "fd00:1::", "fd00:2::", SERVER6, IN06, OUT06, "::")
BOTH = (V4, V6)
CLIENTS = (3, *range(30, 38), *range(64, 68), 80, 81, 90)
PHANTOM_CLIENT, PHANTOM_SERVER = 39, 200


def rules(net: Net) -> list[dict[str, Any]]:
    """The NAT rules of one family; names end in the family."""
    outward = {"from": ["trust"], "to": "untrust"}
    interface = {"type": "dynamic-ip-and-port", "interface": "out0"}
    pool = {"type": "dynamic-ip-and-port"}
    static = {"type": "static-ip", "bi-directional": True}
    vips = [net.wan(51), net.wan(52)]
    public = {"from": ["untrust"], "to": "untrust", "destination": [net.outside], "service": "public"}
    own = [net.outside]
    written: dict[str, dict[str, Any]] = {
        "exempt": outward | {"source": [net.lan(90)]},
        "special": outward | {"service": "special", "source-translation": pool | {"addresses": [net.wan(104)]}},
        "uturn": outward
        | {"destination": [net.wan(50)], "source-translation": interface}
        | {"destination-translation": {"address": net.server, "port": PRIVATE_PORT}},
        "vips": outward | {"destination": vips, "destination-translation": {"address": net.server}},
        "static": outward
        | {"source": [f"{net.lan(64)}-{net.lan(67)}"]}
        | {"source-translation": static | {"addresses": [f"{net.wan(64)}-{net.wan(67)}"]}},
        "pool": outward
        | {"source": [f"{net.lan(30)}-{net.lan(39)}"]}
        | {"source-translation": pool | {"addresses": [f"{net.wan(100)}-{net.wan(103)}"], "port-range": "20000-29999"}},
        "tiny": outward
        | {"source": [net.lan(80)]}
        | {"source-translation": pool | {"addresses": [net.wan(110)], "port-range": "3000-3003"}},
        "held": outward
        | {"source": [net.lan(81)]}
        | {"source-translation": pool | {"addresses": [net.wan(111)], "port-range": "3100-3103"}},
        "public": public | {"destination-translation": {"address": net.lan(2), "port": PRIVATE_PORT}},
        "interface": outward | {"source-translation": interface},
        "self": {"to": "untrust", "source": own, "source-translation": static | {"addresses": own}},
    }
    return [rule | {"name": f"{name}-{net.family}", "nat-type": net.family} for name, rule in written.items()]


CONFIG = {
    "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
    "services": {
        "special": {"protocol": "udp", "destination-port": SPECIAL},
        "public": {"protocol": "tcp", "destination-port": PUBLIC_PORT},
    },
    "applications": {"brief": {"default-ports": [f"udp/{BRIEF}"], "udp-timeout": 3}},
    "security-rules": [
        {"name": "out", "from": ["trust"], "to": ["untrust"], "action": "allow"},
        {"name": "in", "from": ["untrust"], "to": ["trust"], "action": "allow"},
    ],
    "nat-rules": [rule for net in BOTH for rule in rules(net)],
    "host-inbound": {"trust": ["ping"], "untrust": ["ping"]},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """All client addresses of the table above, and sockets of the firewall itself on three ports of a pool."""
    clients = [net.lan(number) for net in BOTH for number in CLIENTS]
    phantoms = [net.lan(PHANTOM_CLIENT) for net in BOTH]
    servers = [net.wan(PHANTOM_SERVER) for net in BOTH]
    with Lab(client_addresses=clients, client_phantoms=phantoms, server_phantoms=servers) as made:
        for port in HELD:
            made.udp("firewall", port)
            made.listener("firewall", port)
        yield made


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(CONFIG) as running:
        yield running


@pytest.fixture(params=BOTH, ids=lambda net: net.family)
def net(request: pytest.FixtureRequest) -> Net:
    chosen: Net = request.param
    return chosen


def ping(lab: Lab, ns: str, to: str, *options: str) -> str:
    """The output of three pings, all answered."""
    done = lab.run(ns, ["ping", "-n", "-c", "3", "-i", "0.05", "-W", "2", *options, to])
    assert " 3 received" in done.stdout, done.stdout + done.stderr
    return done.stdout


def session_of(firewall: Firewall, caller: socket.socket, port: int) -> dict[str, Any]:
    """The one session from the socket to that port."""
    ip6 = "yes" if caller.family == socket.AF_INET6 else "no"
    found = firewall.sessions(source_port=port_of(caller), destination_port=port, ip6=ip6)
    assert len(found) == 1
    return found[0]


# Source translation


def test_the_interface_address_hides_the_client(lab: Lab, firewall: Firewall, net: Net) -> None:
    """UDP, TCP and ping leave with the interface's address, and answers find the client."""
    server, listening = lab.udp("server", 0, net.any), lab.listener("server", 0, net.any)
    caller = lab.udp("client", 0, net.lan(2))
    assert exchange(caller, server, (net.server, port_of(server)))[0] == net.outside
    with connect(lab, (net.lan(2), 0), (net.server, port_of(listening))) as client:
        assert called_by(listening, client)[0] == net.outside
    with lab.capture("server", "eth0", "icmp[0] == 8 or icmp6[0] == 128") as at_server:
        ping(lab, "client", net.server, "-I", net.lan(2))
    assert {frame.source for frame in at_server.frames()} == {net.outside}
    session = session_of(firewall, caller, port_of(server))
    assert (session["flags"], session["s2c"]["dst"], session["c2s"]["source"]) == ("NS", net.outside, net.lan(2))
    assert session["address_port_translation"] == "source"


def test_a_client_keeps_its_pool_address_and_gets_random_ports(lab: Lab, firewall: Firewall, net: Net) -> None:
    """Paired pooling; ports of the range, each once, in no order."""
    server = lab.udp("server", 0, net.any)
    clients = [lab.udp("client", 0, net.lan(30)) for _ in range(SESSIONS_OF_ONE_HOST)]
    seen = [exchange(client, server, (net.server, port_of(server))) for client in clients]
    assert len({address for address, _ in seen}) == 1
    assert seen[0][0] in net.wans(100, 103)
    ports = [port for _, port in seen]
    assert set(ports) <= set(POOL_PORTS)
    assert len(set(ports)) == SESSIONS_OF_ONE_HOST
    neighbours = sum(abs(one - other) < 10 for one, other in itertools.pairwise(ports))
    assert neighbours < 4, f"predictable: {ports}"
    assert max(ports) - min(ports) > len(POOL_PORTS) // 2


def test_the_pool_is_shared_out_by_source(lab: Lab, firewall: Firewall, net: Net) -> None:
    """Eight hosts do not all get the same address, and each gets the same for TCP as for UDP."""
    server, listening = lab.udp("server", 0, net.any), lab.listener("server", 0, net.any)
    addresses = {}
    for host in net.lans(30, 37):
        addresses[host], _ = exchange(lab.udp("client", 0, host), server, (net.server, port_of(server)))
        with connect(lab, (host, 0), (net.server, port_of(listening))) as client:
            assert called_by(listening, client)[0] == addresses[host]
    assert len(set(addresses.values())) > 1


def test_the_firewall_answers_for_pool_addresses(lab: Lab, firewall: Firewall, net: Net) -> None:
    """The server finds a pool address by ARP or ND alone: its answers need no static neighbour and no route."""
    server = lab.udp("server", 0, net.any)
    address, _ = exchange(lab.udp("client", 0, net.lan(33)), server, (net.server, port_of(server)))
    lab.run("server", ["ip", "neighbour", "flush", "dev", "eth0", "to", address], check=True)
    exchange(lab.udp("client", 0, net.lan(33)), server, (net.server, port_of(server)))
    entry = lab.run("server", ["ip", "neighbour", "show", address]).stdout
    assert "lladdr 02:00:00:00:02:01" in entry
    assert "PERMANENT" not in entry


def test_two_hosts_share_a_source_port(lab: Lab, firewall: Firewall, net: Net) -> None:
    """The same source port to the same server, TCP and UDP: the answers part again."""
    server, listening = lab.udp("server", 0, net.any), lab.listener("server", 0, net.any)
    one, other = (lab.udp("client", 5060, net.lan(number)) for number in (2, 3))
    to = (net.server, port_of(server))
    assert exchange(one, server, to) != exchange(other, server, to)
    assert exchange(one, server, to) == exchange(one, server, to)
    to = (net.server, port_of(listening))
    with connect(lab, (net.lan(2), 5061), to) as first, connect(lab, (net.lan(3), 5061), to) as second:
        assert called_by(listening, first) != called_by(listening, second)


def echo(net: Net, host: int, identifier: int) -> Packet:
    source = net.lan(host)
    if net is V4:
        return IP(src=source, dst=net.server) / ICMP(id=identifier) / Raw(source.encode())
    return IPv6(src=source, dst=net.server) / ICMPv6EchoRequest(id=identifier, data=source.encode())


def test_two_hosts_share_an_icmp_id(lab: Lab, firewall: Firewall, net: Net) -> None:
    """The same ICMP id to the same server: both get their own answer, with the id they sent."""
    requests = "icmp[0] == 8 or icmp6[0] == 128"
    replies = "icmp[0] == 0 or icmp6[0] == 129"
    with lab.capture("server", "eth0", requests) as at_server, lab.capture("client", "eth0", replies) as at_client:
        lab.inject("client", *(echo(net, host, 777) for host in (2, 3)))
        answers = [frame.packet for frame in at_client.wait(2)]
    layer, reply = (ICMP, ICMP) if net is V4 else (ICMPv6EchoRequest, ICMPv6EchoReply)
    assert len({packet[layer].id for packet in at_server.packets()}) == 2
    assert {packet[reply].id for packet in answers} == {777}
    for packet in answers:
        assert packet.payload.dst.encode() in bytes(packet)
    assert {packet.payload.dst for packet in answers} == {net.lan(2), net.lan(3)}


def test_static_ranges_map_by_offset(lab: Lab, firewall: Firewall, net: Net) -> None:
    """One to one in order, and the port is kept."""
    server = lab.udp("server", 0, net.any)
    for host, public in zip(net.lans(64, 67), net.wans(64, 67), strict=True):
        client = lab.udp("client", 0, host)
        assert exchange(client, server, (net.server, port_of(server))) == (public, port_of(client))


def test_bi_directional_static_is_called_from_outside(lab: Lab, firewall: Firewall, net: Net) -> None:
    """The server calls the public address and reaches the host behind it, on any port; ping too."""
    called = lab.udp("client", 0, net.lan(66))
    caller = lab.udp("server", 0, net.any)
    assert exchange(caller, called, (net.wan(66), port_of(called))) == (net.server, port_of(caller))
    listening = lab.listener("client", 0, net.any)
    with lab.connect("server", (net.wan(65), port_of(listening))) as connection:
        assert called_by(listening, connection)[0] == net.server
    ping(lab, "server", net.wan(64))
    assert session_of(firewall, caller, port_of(called))["flags"] == "ND"


# Destination translation


def test_destination_translation_changes_address_and_port(lab: Lab, firewall: Firewall, net: Net) -> None:
    """A service is matched on the port that was called; other ports of the address stay the firewall's own."""

    def reaches_the_client() -> None:
        with lab.connect("server", (net.outside, PUBLIC_PORT)) as connection:
            assert called_by(private, connection)[0] == net.server
            assert connection.getpeername()[:2] == (net.outside, PUBLIC_PORT)

    with lab.listener("client", PRIVATE_PORT, net.any) as private:
        reaches_the_client()
        with pytest.raises(TimeoutError):
            lab.connect("server", (net.outside, PRIVATE_PORT), timeout=0.5)
        reaches_the_client()
    session = firewall.sessions(destination_port=PUBLIC_PORT, nat_rule=f"public-{net.family}")[0]
    assert (session["flags"], session["s2c"]["source"], session["s2c"]["sport"]) == ("ND", net.lan(2), PRIVATE_PORT)


def test_source_and_destination_on_one_session(lab: Lab, firewall: Firewall, net: Net) -> None:
    """One rule translates both; the client sees only the address it called, the server only the firewall's."""
    with lab.udp("server", PRIVATE_PORT, net.any) as server:
        client = lab.udp("client", 0, net.lan(2))
        assert exchange(client, server, (net.wan(50), 6004))[0] == net.outside
    session = session_of(firewall, client, 6004)
    assert session["flags"] == "NB"
    assert session["address_port_translation"] == "source + destination"
    assert (session["s2c"]["source"], session["s2c"]["sport"]) == (net.server, PRIVATE_PORT)


def test_two_public_addresses_collapse_onto_one_server(lab: Lab, firewall: Firewall, net: Net) -> None:
    """From one client port to both: only the source port can tell them apart, so one of them gets another."""
    server, client = lab.udp("server", 0, net.any), lab.udp("client", 0, net.lan(2))
    port = port_of(server)
    first, second = (exchange(client, server, (net.wan(number), port)) for number in (51, 52))
    assert first == (net.lan(2), port_of(client))
    assert second[0] == net.lan(2)
    assert second[1] != first[1]
    assert exchange(client, server, (net.wan(51), port)) == first
    listening = lab.listener("server", 0, net.any)
    source, port = (net.lan(2), 5062), port_of(listening)
    with connect(lab, source, (net.wan(51), port)) as one, connect(lab, source, (net.wan(52), port)) as other:
        assert called_by(listening, one) != called_by(listening, other)


# Which rule


def test_a_rule_without_translation_exempts(lab: Lab, firewall: Firewall, net: Net) -> None:
    """It is a match like any other, so no later rule translates; the session names it."""
    server, client = lab.udp("server", 0, net.any), lab.udp("client", 0, net.lan(90))
    assert exchange(client, server, (net.server, port_of(server))) == (net.lan(90), port_of(client))
    session = session_of(firewall, client, port_of(server))
    assert (session["nat_rule"], session["flags"]) == (f"exempt-{net.family}", "")


def test_the_first_rule_that_matches_decides(lab: Lab, firewall: Firewall, net: Net) -> None:
    """A rule for one service stands before the one for everything."""
    client = lab.udp("client", 0, net.lan(2))
    with lab.udp("server", SPECIAL, net.any) as server:
        assert exchange(client, server, (net.server, SPECIAL))[0] == net.wan(104)
    other = lab.udp("server", 0, net.any)
    assert exchange(client, other, (net.server, port_of(other)))[0] == net.outside
    asked = ("from", "trust", "to", "untrust", "source", net.lan(2), "destination", net.server, "protocol", "17")
    named = firewall.json("test", "nat-policy-match", *asked, "destination-port", str(SPECIAL))
    assert named["rule"] == f"special-{net.family}"


# Ports


def test_an_exhausted_pool_refuses_the_new_and_keeps_the_old(lab: Lab, firewall: Firewall, net: Net) -> None:
    """Four ports serve four sessions; the fifth is refused and counted, and served once the ports are free again."""
    clients = [lab.udp("client", 0, net.lan(80)) for _ in range(5)]
    to, rule = (net.server, BRIEF), f"tiny-{net.family}"
    with lab.udp("server", BRIEF, net.any) as server:
        seen = [exchange(client, server, to) for client in clients[:4]]
        assert sorted(seen) == [(net.wan(110), port) for port in range(3000, 3004)]
        refused = firewall.counter("nat_dipp_alloc_failure")
        clients[4].sendto(b"one too many", to)
        poll(lambda: firewall.counter("nat_dipp_alloc_failure") == refused + 1, 3, "the refusal to be counted")
        assert [exchange(client, server, to) for client in clients[:4]] == seen
        assert (pool_row(firewall, rule)["used"], pool_row(firewall, rule)["available"]) == (4, 0)
        poll(lambda: pool_row(firewall, rule)["used"] == 0, 5, "the ports to come back")
        assert exchange(clients[4], server, to)[0] == net.wan(110)


def test_the_pool_is_accounted_for(lab: Lab, firewall: Firewall, net: Net) -> None:
    """`show running ippool` counts a port for each session and capacity as addresses times ports."""
    server = lab.udp("server", 0, net.any)
    for _ in range(10):
        exchange(lab.udp("client", 0, net.lan(37)), server, (net.server, port_of(server)))
    rule = f"pool-{net.family}"

    def agrees() -> bool:
        used = pool_row(firewall, rule)["used"]
        return bool(used == len(firewall.sessions(nat_rule=rule)) >= 10)

    poll(agrees, 3, "as many ports in use as there are sessions")
    row = pool_row(firewall, rule)
    assert row["used"] + row["available"] == 4 * len(POOL_PORTS)
    assert (row["type"], row["ratio"]) == ("Dynamic IP/Port", 1)


def test_ports_of_the_firewalls_own_sockets_are_left_alone(lab: Lab, firewall: Firewall, net: Net) -> None:
    """Of four ports three are held by sockets: one session gets the fourth, the next none, in UDP and in TCP."""
    server, listening = lab.udp("server", 0, net.any), lab.listener("server", 0, net.any)
    one, other = (lab.udp("client", 0, net.lan(81)) for _ in range(2))
    to = (net.server, port_of(server))
    assert exchange(one, server, to) == (net.wan(111), 3103)
    refused = firewall.counter("nat_dipp_alloc_failure")
    other.sendto(b"there is none left", to)
    poll(lambda: firewall.counter("nat_dipp_alloc_failure") == refused + 1, 3, "the refusal to be counted")
    assert exchange(one, server, to) == (net.wan(111), 3103)
    with connect(lab, (net.lan(81), 0), (net.server, port_of(listening))) as client:
        assert called_by(listening, client) == (net.wan(111), 3103)
        with pytest.raises(OSError, match=r"No route to host|Permission denied"):
            connect(lab, (net.lan(81), 0), (net.server, port_of(listening)), timeout=0.5)


# The firewall's own addresses


def test_the_firewalls_own_addresses_answer_under_source_nat(lab: Lab, firewall: Firewall, net: Net) -> None:
    """A source rule that would match does not touch what is for the firewall itself, else it would answer itself."""
    for address in (net.inside, net.outside):
        ping(lab, "client", address, "-I", net.lan(2))
        (session,) = firewall.sessions(destination=address, protocol=1 if net is V4 else 58, source=net.lan(2))
        assert (session["terminated_on_host"], session["flags"]) == (True, "")
        assert (session["packets_c2s"], session["packets_s2c"]) == (3, 3)


def test_mapping_the_firewall_to_itself_loops_nothing(lab: Lab, firewall: Firewall, net: Net) -> None:
    """A rule that makes the firewall's address itself, both ways, changes nothing: each ping is answered once."""
    with lab.capture("server", "eth0", "icmp[0] == 0 or icmp6[0] == 129 or icmp[0] == 8 or icmp6[0] == 128") as seen:
        ping(lab, "server", net.outside)
        ping(lab, "firewall", net.server, "-I", net.outside)
        seen.wait(12)
    assert len(seen.frames()) == 12
    named = firewall.json("show", "running", "nat-policy")
    assert [rule["name"] for rule in named].count(f"self-{net.family}") == 2


# On the wire


def wire(net: Net, source: str, destination: str) -> Packet:
    layer = IP if net is V4 else IPv6
    return layer(src=source, dst=destination)


def segments(net: Net, source: str, destination: str) -> list[Packet]:
    """First packets of every kind, with complete checksums, even and odd lengths, and without a UDP checksum."""
    ip = wire(net, source, destination)
    made = [ip / TCP(sport=4001, dport=4000, flags="S", seq=1), ip / UDP(sport=4002, dport=4000) / Raw(b"four")]
    made.append(ip / UDP(sport=4003, dport=4000) / Raw(b"three"[:3]))
    made.append(ip / ICMP(id=4004) / Raw(b"odd") if net is V4 else ip / ICMPv6EchoRequest(id=4004, data=b"odd"))
    if net is V4:
        made.append(ip / UDP(sport=4005, dport=4000, chksum=0) / Raw(b"unsummed"))
    return made


def answer(packet: Packet) -> Packet:
    """What the receiver of a captured packet says, as scapy makes it."""
    ip = packet.payload
    back = type(ip)(src=ip.dst, dst=ip.src)
    if TCP in ip:
        return back / TCP(sport=ip.dport, dport=ip.sport, flags="SA", seq=9, ack=ip[TCP].seq + 1)
    if UDP in ip:
        unsummed = {"chksum": 0} if ip[UDP].chksum == 0 else {}
        return back / UDP(sport=ip.dport, dport=ip.sport, **unsummed) / Raw(bytes(ip[UDP].payload))
    if ICMP in ip:
        return back / ICMP(type=0, id=ip[ICMP].id) / Raw(bytes(ip[ICMP].payload))
    return back / ICMPv6EchoReply(id=ip[ICMPv6EchoRequest].id, data=ip[ICMPv6EchoRequest].data)


def zero_checksums(capture: Capture) -> int:
    return sum(packet[UDP].chksum == 0 for packet in capture.packets() if UDP in packet)


def test_the_wire_shows_only_translated_addresses_and_valid_checksums(lab: Lab, firewall: Firewall, net: Net) -> None:
    """Between two ends that are scapy: the server never sees the client, nor the client the pool; zero stays zero."""
    client, server = net.lan(PHANTOM_CLIENT), net.wan(PHANTOM_SERVER)
    between = f"host {server} and (tcp or udp or icmp or icmp6)"
    sent = segments(net, client, server)
    with lab.capture("server", "eth0", between) as at_server, lab.capture("client", "eth0", between) as at_client:
        lab.inject("client", *sent)
        arrived = [frame.packet for frame in at_server.wait(len(sent))]
        lab.inject("server", *map(answer, arrived))
        at_client.wait(2 * len(sent))
    assert not any(frame.partial for frame in at_server.received() + at_client.received())
    assert {frame.source for frame in at_server.received()} <= set(net.wans(100, 103))
    assert {(frame.source, frame.destination) for frame in at_client.received()} == {(server, client)}
    assert at_server.wrong_checksums() == at_client.wrong_checksums() == []
    expected = 1 if net is V4 else 0
    assert zero_checksums(at_server) == zero_checksums(at_client) == 2 * expected
