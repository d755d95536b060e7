"""What has no session of its own crosses only as far as somebody vouches for it: ICMP errors, neighbour discovery, and
packets whose verdict the kernel did not take.

    untrust may send UDP to 10.1.0.2:7000 and to nothing else; trust may send UDP out, translated on port 8000 only
"""

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6ND_NS, IPv6
from scapy.packet import Packet, Raw

from tests.lab.capture import Frame
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, CLIENT6, IN0, IN06, OUT0, OUT06, SERVER, SERVER6, Lab, poll

BYSTANDER = "10.1.0.77"
ANYTHING = {"source": ["any"], "destination": ["any"], "application": ["any"], "action": "allow"}
CONFIG: dict[str, Any] = {
    "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
    "services": {
        "open": {"protocol": "udp", "destination-port": 7000},
        "translated": {"protocol": "udp", "destination-port": 8000},
    },
    "security-rules": [
        {"name": "in", "from": ["untrust"], "to": ["trust"], **ANYTHING, "service": ["open"]},
        {"name": "out", "from": ["trust"], "to": ["untrust"], **ANYTHING, "service": ["open", "translated"]},
    ],
    "nat-rules": [
        {
            "name": "out0",
            "from": ["trust"],
            "to": "untrust",
            "source": ["any"],
            "destination": ["any"],
            "service": "translated",
            "source-translation": {"type": "dynamic-ip-and-port", "interface": "out0"},
        }
    ],
    "host-inbound": {},
    "settings": {"queue": {"workers": 1}},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(client_addresses=[BYSTANDER]) as made:
        yield made


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(CONFIG) as made:
        yield made


def udp(source: str, sport: int, target: str, dport: int, data: bytes) -> Packet:
    return IP(src=source, dst=target) / UDP(sport=sport, dport=dport) / Raw(data)


def inward(data: bytes) -> Packet:
    """A packet of the one flow that may come in; it marks the end of what is looked for."""
    return udp(SERVER, 5000, CLIENT, 7000, data)


def reach(lab: Lab, packets: Sequence[Packet]) -> list[Packet]:
    """Those of the server's packets that arrive at the client, once a session is there and all have been decided."""
    with lab.capture("client", "eth0", "ip or (icmp6 and ip6[40] = 136)") as capture:
        lab.inject("server", inward(b"first"))
        poll(lambda: incoming(capture.received()), 3, "the first")
        lab.inject("server", *packets, inward(b"last"))
        poll(lambda: any(b"last" in bytes(frame.packet) for frame in incoming(capture.received())), 3, "the last")
        seen = [frame.packet for frame in incoming(capture.received())]
    return [packet for packet in seen if b"first" not in bytes(packet) and b"last" not in bytes(packet)]


def incoming(frames: Sequence[Frame]) -> list[Frame]:
    return [frame for frame in frames if not frame.outgoing]


QUOTE = IP(src=CLIENT, dst=SERVER) / UDP(sport=7000, dport=5000) / Raw(b"quoted")


def test_an_error_is_delivered_to_the_one_it_is_about(lab, firewall):
    """The sender of the quoted packet, and nobody beside him."""
    right = IP(src=SERVER, dst=CLIENT) / ICMP(type=3, code=3) / QUOTE
    astray = IP(src=SERVER, dst=BYSTANDER) / ICMP(type=3, code=3) / QUOTE
    before = firewall.counter("flow_icmp_error_no_session")
    (arrived,) = reach(lab, [astray, right])
    assert arrived[IP].dst == CLIENT
    assert firewall.counter("flow_icmp_error_no_session") == before + 1


@pytest.mark.parametrize("source", [IN0, OUT0, BYSTANDER])
def test_an_error_in_somebody_elses_name_is_dropped(lab, firewall, source):
    """From outside nobody speaks for the firewall or for a host of another zone."""
    before = firewall.counter("flow_icmp_error_spoof")
    assert reach(lab, [IP(src=source, dst=CLIENT) / ICMP(type=3, code=3) / QUOTE]) == []
    assert firewall.counter("flow_icmp_error_spoof") == before + 1


def test_a_router_that_nobody_knows_may_send_an_error(lab, firewall):
    """Its address need not be routed; only one of another zone gives it away."""
    router = IP(src="203.0.113.7", dst=CLIENT) / ICMP(type=11) / QUOTE
    (arrived,) = reach(lab, [router])
    assert arrived[IP].src == "203.0.113.7"


def test_discovery_does_not_cross(lab, firewall):
    """A neighbour advertisement with a hop limit of 255 is for the link that it is sent on."""
    before = firewall.counter("flow_link_control_transit")
    advertisement = IPv6(src=SERVER6, dst=CLIENT6, hlim=255) / ICMPv6ND_NA(tgt=SERVER6) / Raw(b"hidden" * 50)
    assert reach(lab, [advertisement]) == []
    assert firewall.counter("flow_link_control_transit") == before + 1


@pytest.mark.parametrize(("ns", "own"), [("client", IN06), ("server", OUT06)])
def test_discovery_of_the_firewall_itself_is_answered(lab, firewall, ns, own):
    """Reachability is asked by unicast too; no session, no host-inbound is needed for it."""
    source = {"client": CLIENT6, "server": SERVER6}[ns]
    with lab.capture(ns, "eth0", "icmp6 and ip6[40] = 136") as capture:
        lab.inject(ns, IPv6(src=source, dst=own, hlim=255) / ICMPv6ND_NS(tgt=own))
        (frame, *_) = capture.wait(1)
        assert frame.packet[ICMPv6ND_NA].tgt == own


def test_denied_ipv6_stays_denied(lab, firewall):
    """The control of the above: what is not discovery meets the policy."""
    before = firewall.counter("flow_policy_deny")
    lab.inject("server", IPv6(src=SERVER6, dst=CLIENT6) / ICMPv6EchoRequest(id=77))
    poll(lambda: firewall.counter("flow_policy_deny") == before + 1, 3, "the echo to be denied")


def test_errors_that_concern_the_host_alone_pass(lab, firewall):
    """A closed port on loopback is answered at once, as without us."""
    with lab.inside("firewall"), lab.udp("firewall", 0, "127.0.0.1") as sock:
        sock.connect(("127.0.0.1", 9))
        sock.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)


def test_a_packet_whose_verdict_was_lost_is_dropped(tmp_path, monkeypatch):
    """The kernel has no memory for verdicts for a while: neither the denied nor the untranslated packet may be swept
    along when the next one is accepted, and traffic goes on."""
    library, failing = tmp_path / "failing_sendmsg.so", tmp_path / "failing"
    source = Path(__file__).with_name("failing_sendmsg.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAIL_WHILE", str(failing))
    with Lab() as lab, lab.firewall(CONFIG) as firewall:
        monkeypatch.delenv("LD_PRELOAD")
        with lab.capture("server", "eth0", "udp") as capture:
            lab.inject("client", udp(CLIENT, 1, SERVER, 7000, b"allowed"), udp(CLIENT, 2, SERVER, 8000, b"translated"))
            capture.wait(2)
            failing.touch()
            lost = [udp(CLIENT, 3, SERVER, 9999, b"denied"), udp(CLIENT, 2, SERVER, 8000, b"not translated")]
            lab.inject("client", *lost)
            poll(lambda: firewall.counter("queue_send_error") > 0, 3, "a send to fail")
            failing.unlink()
            lab.inject("client", *[udp(CLIENT, 1, SERVER, 7000, b"again %d" % n) for n in range(3)])
            frames = capture.wait(5)
        seen = [(frame.packet[IP].src, bytes(frame.packet[UDP].payload)) for frame in frames]
    assert sorted(seen) == sorted(
        [
            (CLIENT, b"allowed"),
            (OUT0, b"translated"),
            *((CLIENT, b"again %d" % n) for n in range(3)),
        ]
    )
