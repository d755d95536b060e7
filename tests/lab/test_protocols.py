"""Protocols without ports: sessions by addresses, translation of addresses alone.

Two hosts behind one address cannot talk to the same server at once, as nothing would tell their answers apart: the
second one is refused, and nothing of it leaves untranslated. No kernel has these protocols here; scapy makes and reads
every packet.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import IPv6
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet, Raw

from tests.lab.console import IN_ORDER, counters, sessions
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, CLIENT6, IN0, OUT0, OUT06, SERVER, SERVER6, Lab
from tests.lab.witness import Controls


@dataclass(frozen=True)
class Net:
    """One family's addresses."""

    family: str
    client: str
    other: str
    server: str
    outside: str
    stranger: str  # on the server's side


V4 = Net("ipv4", CLIENT, "10.1.0.3", SERVER, OUT0, "10.2.0.9")
V6 = Net("ipv6", CLIENT6, "fd00:1::3", SERVER6, OUT06, "fd00:2::9")
BOTH = (V4, V6)
APPLICATIONS = {2: "igmp", 47: "gre", 50: "esp", 51: "ah", 132: "sctp", 253: "unknown-p2p"}
ONLY_IPV4 = {2, 51}  # IPv6 has MLD, and AH is an extension header there
UNKNOWN = 253  # RFC 3692: for experiments

CONFIG: dict[str, Any] = {
    "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
    "security-rules": [{"name": "out", "from": ["trust"], "to": ["untrust"], "action": "allow"}],
    "nat-rules": [
        {
            "name": f"hide-{net.family}",
            "nat-type": net.family,
            "from": ["trust"],
            "to": "untrust",
            "source-translation": {"type": "dynamic-ip-and-port", "interface": "out0"},
        }
        for net in BOTH
    ],
    "host-inbound": {"trust": ["any"]},
    "settings": IN_ORDER,
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(client_addresses=[net.other for net in BOTH]) as made:
        yield made


@pytest.fixture(scope="module")
def controls(lab: Lab) -> Controls:
    return Controls(lab)


@pytest.fixture(scope="module", params=["plain", "ours"])
def firewall(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Firewall | None]:
    """What stands in the middle; None: the kernel alone."""
    if request.param == "plain":
        yield None
        return
    with lab.firewall(CONFIG) as running:
        yield running


each_protocol = pytest.mark.parametrize(
    ("net", "protocol"),
    [
        pytest.param(net, protocol, id=f"{net.family}-{name}")
        for net in BOTH
        for protocol, name in APPLICATIONS.items()
        if net is V4 or protocol not in ONLY_IPV4
    ],
)


def packet(source: str, destination: str, protocol: int, body: bytes) -> Packet:
    ip = IPv6(src=source, dst=destination, nh=protocol) if ":" in source else IP(src=source, dst=destination)
    if isinstance(ip, IP):
        ip.proto = protocol
    if protocol == 132:
        return ip / SCTP(sport=4000, dport=5000) / SCTPChunkInit(init_tag=1)
    return ip / Raw(body)


def crossed(lab: Lab, ns: str, sent: Packet, protocol: int) -> list[Packet]:
    """What of this protocol arrives at an end when the packet is sent from the other one, and a ping after it."""
    sender = "client" if ns == "server" else "server"
    with lab.capture(ns, "eth0", f"ip proto {protocol} or ip6 proto {protocol}") as capture:
        lab.inject(sender, sent)
        lab.run("client", ["ping", "-n", "-c", "1", "-W", "3", SERVER], check=True)
        assert capture.wrong_checksums() == []
        return [frame.packet.payload for frame in capture.received()]


@each_protocol
def test_there_and_back(lab, firewall, controls, net, protocol):
    """Addresses are translated both ways, the rest is as it was sent."""
    there = packet(net.client, net.server, protocol, b"there" * 5)
    (arrived,) = crossed(lab, "server", there, protocol)
    assert arrived.src == (net.outside if firewall else net.client)
    assert bytes(arrived.payload) == bytes(there.payload)
    back = packet(net.server, arrived.src, protocol, b"back" * 6)
    (answered,) = crossed(lab, "client", back, protocol)
    assert (answered.dst, bytes(answered.payload)) == (net.client, bytes(back.payload))
    if firewall is None:
        return
    (session,) = sessions(firewall, source=net.client, protocol=protocol)
    assert session["application"] == APPLICATIONS[protocol]
    assert (session["c2s"]["sport"], session["c2s"]["dport"], session["flags"]) == (0, 0, "NS")
    assert (session["packets_c2s"], session["packets_s2c"]) == (1, 1)


@each_protocol
def test_a_second_host_is_refused_and_leaks_nothing(lab, firewall, net, protocol):
    """While the first one's session lives; plain forwarding carries both."""
    crossed(lab, "server", packet(net.client, net.server, protocol, b"one" * 9), protocol)
    before = counters(firewall)["session_duplicate_key"] if firewall else 0
    arrived = crossed(lab, "server", packet(net.other, net.server, protocol, b"two" * 9), protocol)
    if firewall is None:
        assert [each.src for each in arrived] == [net.other]
        return
    assert arrived == []
    assert counters(firewall)["session_duplicate_key"] == before + 1
    assert sessions(firewall, source=net.other, protocol=protocol) == []


@each_protocol
def test_unasked_from_outside(lab, firewall, net, protocol):
    """To the firewall's own address and to a host behind it: neither is let in, nothing crashes."""
    for target in (net.outside, net.other):
        arrived = crossed(lab, "client", packet(net.stranger, target, protocol, bytes(30)), protocol)
        assert len(arrived) == (firewall is None and target == net.other)


def test_the_firewall_itself(lab, firewall, controls):
    """With host-inbound `any` an unknown protocol reaches the kernel of the firewall, which says that it is unknown."""
    with lab.capture("client", "eth0", "icmp[0] = 3") as capture:
        lab.inject("client", packet(CLIENT, IN0, UNKNOWN, bytes(30)))
        (error,) = (frame.packet for frame in capture.wait(1))
    assert (error[ICMP].type, error[ICMP].code) == (3, 2)
    if firewall:
        (session,) = sessions(firewall, source=CLIENT, destination=IN0, protocol=UNKNOWN)
        assert session["terminated_on_host"]


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize("protocol", [*APPLICATIONS, 0, 4, 33, 41, 94, 136, 255])
def test_short_packets_of_every_protocol(lab, firewall, controls, protocol, size):
    """Whatever becomes of them, the daemon lives and passes what it should."""
    lab.inject("client", IP(src=CLIENT, dst=SERVER, proto=protocol) / Raw(bytes(size)))
    lab.inject("client", IPv6(src=CLIENT6, dst=SERVER6, nh=protocol) / Raw(bytes(size)))
    controls.assert_pass()
    assert firewall is None or firewall.running
