"""The zone that a packet comes from is part of its session's key.

       client                firewall                              server
      eth0 ---------------- in0   trust         untrust  out0 ---------- eth0   192.0.2.1 on lo
      10.1.0.2            10.1.0.1                     10.2.0.1      10.2.0.2

                            dmz0  dmz ----------------------------------- dmz0
                            10.5.0.1                                 10.5.0.2

     tenant                                     untrust  out1 ---------- out1
      eth1 ---------------- in1   tenant               10.6.0.1      10.6.0.2
      10.1.0.2            10.1.0.1

Zone tenant has the addresses of zone trust. What tells the kernel their answers apart is the uplink that they come back
by: see "Overlapping addresses" in the README.
"""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Packet, Raw

from tests.lab.capture import ETH_P_ALL
from tests.lab.console import IN_ORDER, counters, sessions
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, SERVER, Lab

INNER = "192.0.2.1"  # of the server, behind either uplink
UPLINK = "10.6.0.1"
PORT = 4001
LINKS = (("dmz0", "10.5.0"), ("out1", "10.6.0"))
TABLE = "101"

# What an operator writes beside the configuration.
POLICY_ROUTES = (
    f"route add default via 10.6.0.2 dev out1 table {TABLE}",
    f"route add 10.1.0.0/24 dev in1 table {TABLE}",
    f"rule add iif in1 lookup {TABLE}",
    f"rule add iif out1 lookup {TABLE}",
)


def hide(zone: str, interface: str) -> dict[str, Any]:
    translation = {"type": "dynamic-ip-and-port", "interface": interface}
    return {"name": f"hide-{zone}", "from": [zone], "to": "untrust", "source-translation": translation}


CONFIG: dict[str, Any] = {
    "zones": [
        {"name": "trust", "interfaces": ["in0"]},
        {"name": "untrust", "interfaces": ["out0", "out1"]},
        {"name": "dmz", "interfaces": ["dmz0"], "anti-spoof": False},
        {"name": "tenant", "interfaces": ["in1"], "anti-spoof": False},
    ],
    "security-rules": [
        {"name": "out", "from": ["trust", "tenant", "dmz"], "to": ["untrust"], "action": "allow", "log-end": False},
    ],
    "nat-rules": [hide("tenant", "out1")],
    "settings": IN_ORDER,
}


@pytest.fixture(scope="module")
def tenant() -> Iterator[Lab]:
    """A lab of which only the client is used."""
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def lab(tenant: Lab) -> Iterator[Lab]:
    with Lab() as made:
        for name, net in LINKS:
            add_link(made, name, net)
        add_tenant(made, tenant)
        for line in POLICY_ROUTES:
            made.run("firewall", ["ip", *line.split()], check=True)
        made.run("firewall", ["ip", "route", "add", INNER, "via", SERVER], check=True)
        made.run("server", ["ip", "address", "add", f"{INNER}/32", "dev", "lo"], check=True)
        yield made


def add_link(lab: Lab, name: str, net: str) -> None:
    """Between firewall and server."""
    peer = ["type", "veth", "peer", "name", name, "netns", lab.names["server"]]
    lab.run("firewall", ["ip", "link", "add", name, *peer], check=True)
    for ns, host in (("firewall", 1), ("server", 2)):
        lab.run(ns, ["ip", "address", "add", f"{net}.{host}/24", "dev", name], check=True)
        lab.run(ns, ["ip", "link", "set", name, "up"], check=True)


def add_tenant(lab: Lab, tenant: Lab) -> None:
    """A link to the other lab's client, which keeps its address and loses its own firewall."""
    tenant.run("client", ["ip", "link", "delete", "eth0"], check=True)
    peer = ["type", "veth", "peer", "name", "eth1", "netns", tenant.names["client"]]
    lab.run("firewall", ["ip", "link", "add", "in1", *peer], check=True)
    for where, ns, name, address in ((lab, "firewall", "in1", "10.1.0.1"), (tenant, "client", "eth1", CLIENT)):
        where.run(ns, ["ip", "address", "add", f"{address}/24", "dev", name, "noprefixroute"], check=True)
        where.run(ns, ["ip", "link", "set", name, "up"], check=True)
    tenant.run("client", ["ip", "route", "add", "10.1.0.0/24", "dev", "eth1"], check=True)
    tenant.run("client", ["ip", "route", "add", "default", "via", "10.1.0.1"], check=True)


@pytest.fixture(scope="module", params=["plain", "ours"])
def firewall(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Firewall | None]:
    """What stands in the middle; None: the kernel alone."""
    if request.param == "plain":
        yield None
        return
    with lab.firewall(CONFIG) as running:
        yield running


class Flow:
    """A datagram from the client to the server and its answer, which have made a session."""

    def __init__(self, lab: Lab) -> None:
        self.client, self.server = lab.udp("client", 0, CLIENT), lab.udp("server", PORT, SERVER)
        self.sport = int(self.client.getsockname()[1])
        self.exchange()

    def __enter__(self) -> "Flow":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()

    def exchange(self) -> None:
        """Nothing else has arrived before."""
        self.client.sendto(b"question", (SERVER, PORT))
        received, peer = self.server.recvfrom(100)
        assert received == b"question"
        self.server.sendto(b"answer", peer)
        assert self.client.recv(100) == b"answer"

    @property
    def question(self) -> Packet:
        return IP(src=CLIENT, dst=SERVER) / UDP(sport=self.sport, dport=PORT) / Raw(b"question of another")

    @property
    def answer(self) -> Packet:
        return IP(src=SERVER, dst=CLIENT) / UDP(sport=PORT, dport=self.sport) / Raw(b"answer of another")


@pytest.fixture
def flow(lab: Lab, firewall: Firewall | None) -> Iterator[Flow]:
    with Flow(lab) as made:
        yield made


def inject(lab: Lab, interface: str, packet: Packet) -> None:
    """From the server to an interface of the firewall, whatever the packet contains."""
    mac = link_address(lab, interface)
    with lab.inside("server"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
        out.bind(("eth0" if interface == "out0" else interface, ETH_P_ALL))
        out.send(mac + out.getsockname()[4] + b"\x08\x00" + bytes(packet))


def link_address(lab: Lab, interface: str) -> bytes:
    """Of an interface of the firewall."""
    with lab.inside("firewall"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((interface, 0))
        address: bytes = sock.getsockname()[4]
    return address


def live(firewall: Firewall, flow: Flow) -> list[dict[str, Any]]:
    return sessions(firewall, source_port=flow.sport, destination_port=PORT)


@pytest.mark.parametrize("what", ["question", "answer"])
@pytest.mark.parametrize("interface", ["out0", "dmz0"])
def test_the_same_tuple_from_another_zone(lab, firewall, flow, what, interface):
    """A question from where only answers come from, an answer from where nobody was asked, both from a third zone:
    plain forwarding delivers them, and the session neither lets them through nor counts them."""
    if (what, interface) == ("answer", "out0"):
        pytest.skip("that is where answers come from")
    receiver, ns = (flow.server, "server") if what == "question" else (flow.client, "client")
    before = live(firewall, flow) if firewall else []
    with lab.capture(ns, "eth0", f"udp and port {flow.sport}") as capture:
        inject(lab, interface, getattr(flow, what))
        if firewall is None:
            assert receiver.recv(100) == f"{what} of another".encode()
            return
        flow.exchange()
        assert len(capture.received()) == 1
    after = [s for s in live(firewall, flow) if s["c2s"]["source_zone"] == "trust"]
    assert [(s["id"], s["packets_c2s"], s["packets_s2c"]) for s in after] == [(before[0]["id"], 2, 2)]


def test_a_session_whose_answers_are_anothers_is_refused(lab, firewall, flow):
    """Both would be answered by the same tuple from the same zone: the live one keeps it."""
    if firewall is None:
        pytest.skip("without sessions")
    before = counters(firewall)["session_duplicate_key"]
    inject(lab, "dmz0", flow.question)
    flow.exchange()
    assert counters(firewall)["session_duplicate_key"] == before + 1
    assert len(live(firewall, flow)) == 1


def test_a_spoofed_source_has_no_session(lab, firewall, flow):
    """Where anti-spoof is on it does not come so far."""
    if firewall is None:
        pytest.skip("without sessions")
    before = counters(firewall)["flow_ip_spoof"]
    inject(lab, "out1", flow.question)
    flow.exchange()
    assert counters(firewall)["flow_ip_spoof"] == before + 1
    assert len(live(firewall, flow)) == 1


def test_two_zones_with_the_same_addresses(lab, tenant, firewall):
    """The same five-tuple at once from both: each host gets its own answers, by datagram and by connection."""
    if firewall is None:
        pytest.skip("without translation no answer finds its way")
    hosts = {CLIENT: lab, UPLINK: tenant}  # as what the server sees it
    server, listening = lab.udp("server", PORT, INNER), lab.listener("server", PORT, INNER)
    datagrams = {seen: where.udp("client", PORT, CLIENT) for seen, where in hosts.items()}
    streams = {}
    for seen, where in hosts.items():
        stream = where.connect("client", (INNER, PORT), PORT)
        accepted, peer = listening.accept()
        assert peer[0] == seen
        streams[seen] = (stream, accepted)
    for seen in (*hosts, *hosts):
        datagrams[seen].sendto(seen.encode(), (INNER, PORT))
        received, peer = server.recvfrom(100)
        assert (received, peer[0]) == (seen.encode(), seen)
        server.sendto(received, peer)
        assert datagrams[seen].recv(100) == received
        stream, accepted = streams[seen]
        stream.sendall(received)
        assert accepted.recv(100) == received
    for protocol in (6, 17):
        found = sessions(firewall, source=CLIENT, source_port=PORT, destination=INNER, protocol=protocol)
        assert {session["c2s"]["source_zone"] for session in found} == {"trust", "tenant"}
