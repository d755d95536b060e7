"""TCP where a firewall may meddle or must not: MSS, forgotten connections, unsolicited SYNs, signatures, odd openings.

    client 10.1.0.2 --- in0 (mss-clamp: auto) [firewall] out0 (mss-clamp: 1360) --- 10.2.0.2 server
           fd00:1::2    trust, non-syn: reset            untrust                    fd00:2::2

Everything outward is translated to out0's address except towards ports 81 and 82.  Both ends are kernels, but for the
phantoms (.200), for which scapy speaks.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from tests.lab.capture import Capture
from tests.lab.console import attempt, counters, outcome, session_of, sessions
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, CLIENT6, OUT0, OUT06, SERVER, SERVER6, Lab, poll
from tests.lab.witness import quiet, receive, stopped

TRANSLATED, PLAIN, CROSSED = 80, 81, 82  # ports of the server
CLAMP = 1360
TCP_MD5SIG = 14  # linux/tcp.h


@dataclass(frozen=True)
class Net:
    """One family's names."""

    family: str
    client: str
    server: str
    outside: str
    phantom_client: str
    phantom_server: str
    any: str
    mss: int  # that leaves

    def ip(self, source: str, destination: str) -> Packet:
        return (IP if self is V4 else IPv6)(src=source, dst=destination)


V4 = Net("ipv4", CLIENT, SERVER, OUT0, "10.1.0.200", "10.2.0.200", "0.0.0.0", CLAMP)
V6 = Net("ipv6", CLIENT6, SERVER6, OUT06, "fd00:1::200", "fd00:2::200", "::", CLAMP - 20)
BOTH = (V4, V6)


def nat(net: Net) -> list[dict[str, Any]]:
    common = {"nat-type": net.family, "from": ["trust"], "to": "untrust"}
    source = {"type": "dynamic-ip-and-port", "interface": "out0"}
    return [
        {**common, "name": f"plain-{net.family}", "service": "plain"},
        {**common, "name": f"out-{net.family}", "source-translation": source},
    ]


CONFIG = {
    "zones": [
        {"name": "trust", "interfaces": ["in0"], "non-syn": "reset"},
        {"name": "untrust", "interfaces": ["out0"]},
    ],
    "interfaces": {"in0": {"mss-clamp": "auto"}, "out0": {"mss-clamp": CLAMP}},
    "services": {"plain": {"protocol": "tcp", "destination-port": f"{PLAIN}-{CROSSED}"}},
    "security-rules": [{"name": "out", "from": ["trust"], "to": ["untrust"], "action": "allow"}],
    "nat-rules": [rule for net in BOTH for rule in nat(net)],
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    clients, servers = [net.phantom_client for net in BOTH], [net.phantom_server for net in BOTH]
    with Lab(client_phantoms=clients, server_phantoms=servers) as made:
        yield made


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(CONFIG) as running:
        yield running


@pytest.fixture(params=BOTH, ids=lambda net: net.family)
def net(request: pytest.FixtureRequest) -> Net:
    chosen: Net = request.param
    return chosen


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


@contextmanager
def connected(lab: Lab, net: Net, port: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's and the server's end of one connection."""
    with lab.listener("server", port, net.any) as listening, lab.connect("client", (net.server, port)) as client:
        server, _ = listening.accept()
        server.settimeout(3)
        with server:
            yield client, server


def assert_exchange(client: socket.socket, server: socket.socket) -> None:
    """Four thousand bytes each way: more than a segment."""
    for sender, receiver in ((client, server), (server, client)):
        sender.sendall(bytes(4000))
        assert len(receive(receiver, 4000)) == 4000


# MSS


def mss_of(capture: Capture) -> list[int]:
    return [dict(frame.packet[TCP].options)["MSS"] for frame in capture.frames()]


@pytest.mark.parametrize("port", [TRANSLATED, PLAIN], ids=["translated", "plain"])
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain-nic"])
def test_both_ends_are_told_the_smaller_mss(lab, firewall, net, port, offload):
    """SYN and SYN-ACK leave clamped with right checksums, and no segment of the connection is longer."""
    lab.set_offloads(offload)
    filters = "ip proto 6" if net is V4 else "ip6 proto 6"
    syns = filters + (" and tcp[13] & 2 != 0" if net is V4 else " and ip6[53] & 2 != 0")
    with lab.capture("server", "eth0", syns) as there, lab.capture("client", "eth0", syns) as here:
        with connected(lab, net, port) as (client, server):
            assert_exchange(client, server)
            limits = [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) for sock in (client, server)]
        (syn, syn_ack), (_, answer) = mss_of(there), mss_of(here)
    unclamped = CLAMP + 100 if net is V4 else CLAMP + 80
    assert (syn, syn_ack, answer) == (net.mss, unclamped, net.mss)
    assert all(limit <= net.mss for limit in limits)
    assert there.wrong_checksums() == here.wrong_checksums() == []
    lab.set_offloads(True)


# Forgotten connections


def test_a_client_of_a_forgotten_session_learns_it_at_its_next_write(lab, firewall, net):
    """`non-syn: reset`: ECONNRESET at once instead of minutes of retransmissions; counted as a drop and as a RST."""
    with connected(lab, net, TRANSLATED) as (client, server):
        assert_exchange(client, server)
        before = counters(firewall)
        firewall.cli("clear", "session", "all")
        client.send(b"anybody there?")
        poll(lambda: outcome(client) == "ECONNRESET", 3, "ECONNRESET at the client")
        after = counters(firewall)
    assert after["flow_tcp_non_syn_drop"] > before["flow_tcp_non_syn_drop"]
    assert after["flow_action_reset"] > before["flow_action_reset"]


def test_a_zone_without_the_option_is_silent(lab, firewall, net):
    """The server's segment of the same forgotten connection is dropped, and the server told nothing."""
    with connected(lab, net, PLAIN) as (client, server):
        assert_exchange(client, server)
        before = counters(firewall)
        firewall.cli("clear", "session", "all")
        server.send(b"anybody there?")

        def dropped() -> int:
            return counters(firewall)["flow_tcp_non_syn_drop"] - before["flow_tcp_non_syn_drop"]

        poll(dropped, 3, "the segment to be dropped")
        assert outcome(server) == "connected"
        assert counters(firewall)["flow_action_reset"] == before["flow_action_reset"]


@pytest.mark.parametrize(
    ("flags", "answer"), [("A", ("R", 7000, 0)), ("PA", ("R", 7000, 0)), ("SA", ("R", 7000, 0)), ("R", None)]
)
def test_the_answer_is_that_of_a_host(lab, firewall, net, flags, answer):
    """RFC 9293 section 3.10.7.1: sequence number from the acknowledgement; a RST gets none."""
    stray = TCP(sport=4100, dport=PLAIN, flags=flags, seq=100, ack=7000)
    last = TCP(sport=4101, dport=PLAIN, flags="A", seq=100, ack=9000)
    with lab.capture("client", "eth0", f"dst host {net.phantom_client} and (tcp or ip6 proto 6)") as capture:
        to_server = net.ip(net.phantom_client, net.phantom_server)
        lab.inject("client", to_server / stray)
        lab.inject("client", to_server / last)
        poll(lambda: any(f.packet[TCP].dport == 4101 for f in capture.frames()), 3, "the last answer")
        resets = [f.packet[TCP] for f in capture.frames() if f.packet[TCP].dport == 4100]
    assert [(str(tcp.flags), tcp.seq, tcp.ack) for tcp in resets] == ([answer] if answer else [])
    assert capture.wrong_checksums() == []


def test_a_spoofed_source_gets_no_answer(lab, firewall, net):
    """A RST would hit a host that has sent nothing."""
    stray = net.ip(net.phantom_server, net.server) / TCP(sport=4100, dport=PLAIN, flags="A", seq=100, ack=7000)
    before = counters(firewall)
    with lab.capture("server", "eth0", f"dst host {net.phantom_server}") as capture:
        lab.inject("client", stray)
        poll(lambda: counters(firewall)["flow_ip_spoof"] > before["flow_ip_spoof"], 3, "the segment to be dropped")
        assert capture.frames() == []
    assert counters(firewall)["flow_action_reset"] == before["flow_action_reset"]


# Unsolicited SYNs: RFC 5382 REQ-4


@pytest.mark.parametrize("port", [TRANSLATED, PLAIN], ids=["translated", "plain"])
def test_an_unsolicited_syn_is_not_answered_and_does_not_stand_in_the_way(lab, firewall, net, port):
    """Nothing comes back and nothing gets in; meanwhile the client's SYN between the same ports connects."""
    target = net.outside if port == TRANSLATED else net.phantom_client
    unsolicited = net.ip(net.phantom_server, target) / TCP(sport=port, dport=4200, flags="S", seq=1)
    outward = net.ip(net.phantom_client, net.phantom_server) / TCP(sport=4200, dport=port, flags="S", seq=100)
    watched = f"host {net.phantom_server} and (tcp or ip6 proto 6)"
    with lab.capture("server", "eth0", watched) as at_server, lab.capture("client", "eth0", watched) as at_client:
        before = counters(firewall)["pkt_recv"]
        lab.inject("server", unsolicited, unsolicited)
        poll(lambda: counters(firewall)["pkt_recv"] >= before + 2, 3, "the firewall to see them")
        lab.inject("client", outward)
        poll(lambda: len(at_server.received()) == 1, 3, "the client's SYN to arrive")
        syn = at_server.received()[0].packet.payload
        answer = TCP(sport=port, dport=syn[TCP].sport, flags="SA", seq=500, ack=101)
        lab.inject("server", net.ip(net.phantom_server, syn.src) / answer)
        poll(lambda: len(at_client.received()) == 1, 3, "the answer to arrive")
    assert str(at_client.received()[0].packet[TCP].flags) == "SA"


# Signatures


def sign(sock: socket.socket, net: Net, peer: str, key: bytes) -> None:
    """TCP_MD5SIG with struct tcp_md5sig of linux/tcp.h."""
    if net is V4:
        address = struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(peer))
    else:
        address = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, socket.inet_pton(socket.AF_INET6, peer), 0)
    option = struct.pack("=128sBBHi80s", address, 0, 0, len(key), 0, key)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, option)


@pytest.mark.parametrize("key", [b"secret", b"wrong"])
def test_a_signed_connection_passes_without_translation(lab, firewall, net, key):
    """MD5 covers addresses, header and data, but no options: it survives the clamp. With the wrong key nothing does."""
    with lab.inside("client"):
        client = socket.socket(socket.AF_INET if net is V4 else socket.AF_INET6)
    with lab.listener("server", PLAIN, net.any) as listening, client:
        sign(listening, net, net.client, b"secret")
        sign(client, net, net.server, key)
        client.settimeout(3 if key == b"secret" else 0.3)
        if key != b"secret":
            with pytest.raises(TimeoutError):
                client.connect((net.server, PLAIN))
            return
        client.connect((net.server, PLAIN))
        with listening.accept()[0] as server:
            server.settimeout(3)
            assert_exchange(client, server)


# Blind attacks: RFC 5961


def challenges(lab: Lab, ns: str) -> int:
    """Challenge ACKs that a kernel has sent."""
    counted = lab.run(ns, ["nstat", "-asz", "TcpExtTCPChallengeACK"], check=True).stdout
    return int(counted.split()[-2])


@pytest.mark.parametrize(("flags", "distance"), [("R", 100), ("S", 1 << 30)], ids=["reset", "syn"])
@pytest.mark.parametrize(("name", "victim"), [("client", "server"), ("server", "client")])
def test_the_host_itself_asks_back(lab, firewall, net, name, victim, flags, distance):
    """A forged reset in the window, or a SYN, reaches the victim; its challenge reaches the one in whose name it came,
    and the connection goes on."""
    filters = "ip proto 6" if net is V4 else "ip6 proto 6"
    with connected(lab, net, TRANSLATED) as (client, server), lab.capture(name, "eth0", filters) as capture:
        assert_exchange(client, server)
        poll(lambda: quiet(client, server), 3, "every byte to be acknowledged")
        seen, before = len(capture.frames()), challenges(lab, victim)
        last = [frame.packet.payload for frame in capture.frames() if frame.outgoing][-1]
        ahead = (last.seq + len(last[TCP].payload) + distance) % 2**32
        forged = TCP(sport=last.sport, dport=last.dport, flags=flags, seq=ahead)
        lab.inject(name, net.ip(last.src, last.dst) / forged)
        poll(lambda: [f for f in capture.frames()[seen:] if not f.outgoing], 3, "the challenge")
        assert challenges(lab, victim) == before + 1
        assert_exchange(client, server)
        assert session_of(firewall, client)["timeout"] == 3600


# Odd handshakes


def test_a_split_handshake_leaves_the_initiator_the_client(lab, firewall, net):
    """The server answers the SYN with a SYN of its own; the client's kernel opens, and the session is still the
    client's."""
    watched = f"dst host {net.phantom_server} and (tcp or ip6 proto 6)"
    with lab.capture("server", "eth0", watched) as capture:
        client = attempt(lab, (net.phantom_server, TRANSLATED), socket.SOCK_STREAM)
        with client:
            syn = capture.wait(1)[0].packet.payload
            back = net.ip(net.phantom_server, syn.src)
            ports = {"sport": TRANSLATED, "dport": syn[TCP].sport}
            lab.inject("server", back / TCP(**ports, flags="S", seq=900, options=[("MSS", 1200)]))
            poll(lambda: any(f.packet[TCP].flags == "SA" for f in capture.frames()), 3, "the client's SYN-ACK")
            lab.inject("server", back / TCP(**ports, flags="A", seq=901, ack=syn[TCP].seq + 1))
            poll(lambda: outcome(client) == "connected", 3, "the client to be connected")
            client.send(b"hello")
            poll(lambda: any(b"hello" in f.data for f in capture.frames()), 3, "its data")
            (session,) = sessions(firewall, source_port=port_of(client), protocol=6)
    assert (session["c2s"]["source"], session["c2s"]["source_zone"]) == (net.client, "trust")
    assert session["timeout"] == 3600


def test_two_kernels_open_to_each_other(lab, firewall, net):
    """Simultaneous open (RFC 5382 REQ-2a): two SYNs cross before either is delivered, and both sockets connect although
    nothing may come in from outside."""
    with lab.inside("server"):
        server = socket.socket(socket.AF_INET if net is V4 else socket.AF_INET6)
    with server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((net.any, CROSSED))
        server.setblocking(False)
        with stopped(firewall):
            client = attempt(lab, (net.server, CROSSED), socket.SOCK_STREAM)
            assert server.connect_ex((net.client, port_of(client))) == errno.EINPROGRESS
        with client:
            poll(lambda: outcome(client) == outcome(server) == "connected", 5, "both ends to be connected")
            client.settimeout(3)
            server.settimeout(3)
            assert_exchange(client, server)
            (session,) = sessions(firewall, source_port=port_of(client), protocol=6, state="active")
    assert session["c2s"]["source"] == net.client
