"""What IPv6 has and IPv4 has not: extension headers, and neighbours, groups and routers that are found by ICMPv6."""

import itertools
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from scapy.layers.inet import TCP
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptPrefixInfo,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Packet, Raw

from tests.lab.console import IN_ORDER, counters
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT6, IN06, OUT06, SERVER6, Lab, poll

DENIED, ALLOWED = 23, 4001
MOST = 8  # extension headers that the firewall follows
ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134
ALL_NODES, ALL_ROUTERS, GROUP = "ff02::1", "ff02::2", "ff02::4:2"
PREFIX = "fd00:77::"
REPORT = b"\x8f"  # ICMPv6 type of MLDv2 (RFC 3810), behind a hop-by-hop header with Router Alert

CONFIG: dict[str, Any] = {
    "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
    "services": {"denied": {"protocol": "tcp", "destination-port": DENIED}},
    "security-rules": [
        {"name": "no", "from": ["trust"], "to": ["untrust"], "service": ["denied"], "action": "drop"},
        {"name": "out", "from": ["trust"], "to": ["untrust"], "action": "allow"},
    ],
    "host-inbound": {"trust": ["ping"], "untrust": ["ping"]},
    "settings": IN_ORDER,
}

HEADERS = {
    "hop": IPv6ExtHdrHopByHop(),
    "destination": IPv6ExtHdrDestOpt(),
    "routing": IPv6ExtHdrRouting(type=4, segleft=0),
    "atomic": IPv6ExtHdrFragment(id=7),
}
CHAINS = [chain for length in (1, 2, 3, 4) for chain in itertools.permutations(HEADERS, length)]
DETOURS = {
    "type-0": IPv6ExtHdrRouting(type=0, segleft=0),
    "type-0-left": IPv6ExtHdrRouting(type=0, addresses=["fd00:2::9"]),
    "type-2-left": IPv6ExtHdrRouting(type=2, addresses=["fd00:2::9"]),
    "type-4-left": IPv6ExtHdrRouting(type=4, addresses=["fd00:2::9"]),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(offload=False) as made:
        yield made


@pytest.fixture(scope="module", params=["plain", "ours"])
def firewall(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Firewall | None]:
    """What stands in the middle; None: the kernel alone."""
    if request.param == "plain":
        yield None
        return
    with lab.firewall(CONFIG) as running:
        yield running


ports = itertools.count(10000)


def syn(headers: Sequence[Packet], dport: int) -> Packet:
    chain: Packet = IPv6(src=CLIENT6, dst=SERVER6)
    for header in headers:
        chain /= header.copy()
    return IPv6(bytes(chain / TCP(sport=next(ports), dport=dport, flags="S") / Raw(b"")))


def crossed(lab: Lab, *packets: Packet) -> list[bytes]:
    """Those of the packets that arrive at the server, a ping being sent after them."""
    with lab.capture("server", "eth0", f"src {CLIENT6} and not ip6 proto 58") as capture:
        lab.inject("client", *packets)
        assert pings(lab, "client", SERVER6)
        return [frame.data[14:] for frame in capture.received()]


def pings(lab: Lab, ns: str, address: str) -> bool:
    return lab.run(ns, ["ping", "-n", "-c", "1", "-W", "3", address]).returncode == 0


# Extension headers


@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_no_chain_hides_a_denied_port(lab, firewall, chain):
    """Whichever headers in whichever order stand before it; an allowed port behind the same ones is let through."""
    headers = [HEADERS[name] for name in chain]
    before = counters(firewall)["flow_policy_deny"] if firewall else 0
    denied, allowed = syn(headers, DENIED), syn(headers, ALLOWED)
    arrived = crossed(lab, denied, allowed)
    ports = [port for packet in arrived for port in (ALLOWED, DENIED) if packet[-18:-16] == port.to_bytes(2, "big")]
    if firewall is None:
        assert ports in ([DENIED, ALLOWED], [])  # the kernel may refuse an order by itself
        return
    assert DENIED not in ports
    assert counters(firewall)["flow_policy_deny"] in (before, before + 1)
    if chain[0] == "hop" or "hop" not in chain:  # elsewhere a router may drop it (RFC 8200 section 4.1)
        assert ports == [ALLOWED]
        assert counters(firewall)["flow_policy_deny"] == before + 1


def test_more_headers_than_anybody_needs(lab, firewall):
    """As many as the firewall follows pass, one more is dropped and counted; plain forwarding takes any number."""
    fits, too_many = ([HEADERS["destination"]] * count for count in (MOST, MOST + 1))
    before = counters(firewall)["flow_parse_ext_hdr"] if firewall else 0
    arrived = crossed(lab, syn(fits, ALLOWED), syn(too_many, ALLOWED), syn(too_many, DENIED))
    assert len(arrived) == (1 if firewall else 3)
    assert firewall is None or counters(firewall)["flow_parse_ext_hdr"] == before + 2


@pytest.mark.parametrize("kind", DETOURS)
@pytest.mark.parametrize("behind", [(), ("destination",), ("hop",)], ids=lambda names: "-".join(names) or "alone")
def test_no_packet_goes_elsewhere_than_it_says(lab, firewall, kind, behind):
    """A routing header of type 0 (RFC 5095), or one with segments left, whose next stop no rule has judged."""
    before = counters(firewall)["flow_parse_ext_hdr"] if firewall else 0
    arrived = crossed(lab, syn([*(HEADERS[name] for name in behind), DETOURS[kind]], ALLOWED))
    assert len(arrived) == (firewall is None)
    assert firewall is None or counters(firewall)["flow_parse_ext_hdr"] == before + 1


# Discovery


@pytest.fixture
def forgetful(lab: Lab) -> Iterator[None]:
    """Nobody knows a neighbour: the permanent entries are gone until the test is over."""
    everybody = [("client", "eth0"), ("firewall", "in0"), ("firewall", "out0"), ("server", "eth0")]
    shown = {each: lab.run(each[0], ["ip", "-6", "neighbour", "show", "dev", each[1]]).stdout for each in everybody}
    for ns, interface in everybody:
        lab.run(ns, ["ip", "-6", "neighbour", "flush", "dev", interface, "nud", "permanent"], check=True)
        lab.run(ns, ["ip", "-6", "neighbour", "flush", "dev", interface], check=True)
    yield
    for (ns, interface), text in shown.items():
        for address, _, mac, *_ in map(str.split, text.splitlines()):
            entry = [address, "lladdr", mac, "dev", interface, "nud", "permanent"]
            lab.run(ns, ["ip", "-6", "neighbour", "replace", *entry], check=True)


def test_neighbours_are_found(lab, firewall, forgetful):
    """Across the firewall and to it, from both sides."""
    for ns, address in (("client", SERVER6), ("client", IN06), ("server", OUT06), ("firewall", SERVER6)):
        assert pings(lab, ns, address)


def test_group_members_are_heard(lab, firewall):
    """A host that joins a group reports it to the routers of its link."""
    with (
        lab.capture("firewall", "in0", "ip6 multicast") as capture,
        lab.inside("client"),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as member,
    ):
        group = socket.inet_pton(socket.AF_INET6, GROUP) + struct.pack("I", socket.if_nametoindex("eth0"))
        member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        poll(lambda: any(frame.data[62:63] == REPORT for frame in capture.received()), 3, "a listener report")
    if firewall:
        poll(lambda: counters(firewall)["pkt_link_control"] > 0, 3, "the report to be counted as discovery")
        assert counters(firewall)["flow_link_control_transit"] == 0


@pytest.mark.parametrize(
    ("message", "kind", "to"),
    [(ICMPv6ND_RS(), ROUTER_SOLICITATION, ALL_ROUTERS), (ICMPv6ND_RA(), ROUTER_ADVERTISEMENT, ALL_NODES)],
    ids=["solicitation", "advertisement"],
)
@pytest.mark.parametrize("ns", ["client", "server"])
def test_router_discovery_reaches_the_firewall(lab, firewall, message, kind, to, ns):
    """What a neighbour asks routers, and what another router says, from either side."""
    with lab.inside("firewall"):
        hearing = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    with hearing:
        hearing.settimeout(3)
        lab.inject(ns, IPv6(src="fe80::99", dst=to, hlim=255) / message.copy())
        while hearing.recv(2000)[0] != kind:
            pass


def test_the_firewall_advertises_itself(lab, firewall):
    """A host makes itself an address of the prefix that the firewall's kernel sends it."""
    lab.sysctl("client", {"ipv6/conf/eth0/accept_ra": "2", "ipv6/conf/eth0/autoconf": "1"})
    prefix = ICMPv6NDOptPrefixInfo(prefix=PREFIX, prefixlen=64, validlifetime=60, preferredlifetime=60)
    advertisement = bytes(IPv6(src="fe80::1", dst=ALL_NODES) / ICMPv6ND_RA(routerlifetime=0) / prefix)[40:]
    with lab.inside("firewall"), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as out:
        out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        out.sendto(advertisement, (ALL_NODES, 0, 0, socket.if_nametoindex("in0")))
    poll(lambda: PREFIX in addresses(lab), 3, "an address of the prefix")
    for line in addresses(lab).splitlines():
        if PREFIX in line:
            lab.run("client", ["ip", "address", "delete", line.split()[3], "dev", "eth0"], check=True)


def addresses(lab: Lab) -> str:
    return lab.run("client", ["ip", "-6", "-o", "address", "show", "dev", "eth0"]).stdout
