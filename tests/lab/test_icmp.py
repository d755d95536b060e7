"""ICMP errors through source and destination translation: who makes them, who gets them, what they quote.

    client 10.1.0.2 --- in0 [firewall] out0 --- 10.2.0.2 server       client's flows leave as the address of out0
           fd00:1::2                            fd00:2::2             udp port 6100 of out0's address is the client's

The far link's MTU is 1280, yet the server offers an MSS as if it were 1500: only an error of the firewall's own kernel
can tell the client.  Phantoms (.200 on both sides) speak through scapy, which knows every checksum.
"""

import errno
import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import UDP

from tests.lab.errors import BOTH, BRIEF, V4, V6, Net, arriving, error, hop, quoted, talk
from tests.lab.firewall import Firewall
from tests.lab.lab import OUT0, OUT06, Lab, poll

NARROW = 1280
PUBLIC_PORT = 6100
UPLOAD = 4 << 20  # bytes

# linux/in.h, linux/in6.h; Python's socket module lacks them
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DO = 10, 23, 2
IP_MTU, IPV6_MTU = 14, 24


def rules(net: Net) -> list[dict[str, Any]]:
    """The NAT rules of one family."""
    both = {"nat-type": net.family, "to": "untrust"}
    return [
        {
            **both,
            "name": f"public-{net.family}",
            "from": ["untrust"],
            "destination": [net.outside],
            "service": "public",
            "destination-translation": {"address": net.client},
        },
        {
            **both,
            "name": f"out-{net.family}",
            "from": ["trust"],
            "source-translation": {"type": "dynamic-ip-and-port", "interface": "out0"},
        },
    ]


CONFIG = {
    "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
    "services": {"public": {"protocol": "udp", "destination-port": PUBLIC_PORT}},
    "applications": {"brief": {"default-ports": [f"udp/{BRIEF}"], "udp-timeout": 2}},
    "security-rules": [
        {"name": "out", "from": ["trust"], "to": ["untrust"], "action": "allow"},
        {"name": "in", "from": ["untrust"], "to": ["trust"], "action": "allow"},
    ],
    "nat-rules": [rule for net in BOTH for rule in rules(net)],
    "host-inbound": {"trust": ["ping"], "untrust": ["ping"]},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    clients = [net.phantom_client for net in BOTH]
    servers = [net.phantom_server for net in BOTH]
    with Lab(client_phantoms=clients, server_phantoms=servers) as made:
        made.set_mtu("firewall", "out0", NARROW)
        made.set_mtu("server", "eth0", NARROW)
        for address, mss in ((OUT0, "1460"), (OUT06, "1440")):
            made.run("server", ["ip", "route", "add", address, "dev", "eth0", "advmss", mss], check=True)
        yield made


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(CONFIG) as running:
        yield running


@pytest.fixture(params=BOTH, ids=lambda net: net.family)
def net(request: pytest.FixtureRequest, lab: Lab) -> Net:
    """A family, with no path MTU remembered from the test before."""
    for ns in ("client", "server", "firewall"):
        for family in ("-4", "-6"):
            lab.run(ns, ["ip", family, "route", "flush", "cache"], check=True)
    chosen: Net = request.param
    return chosen


def port_of(made: socket.socket) -> int:
    port: int = made.getsockname()[1]
    return port


def pings(lab: Lab, net: Net, *options: str) -> bool:
    done = lab.run("client", ["ping", "-n", "-c", "2", "-i", "0.05", "-W", "2", *options, net.server])
    return " 2 received" in done.stdout


# The tools that live on errors


@pytest.mark.parametrize("method", ["-U", "-I", "-T"])
def test_traceroute(lab: Lab, firewall: Firewall, net: Net, method: str) -> None:
    """By UDP, ICMP and TCP: the firewall is the first hop, the server the second and last."""
    command = ["traceroute", "-n", "-q", "1", "-w", "2", "-m", "5", method, net.server]
    hops = lab.run("client", command, check=True).stdout.splitlines()[1:]
    assert [hop.split()[0] for hop in hops] == ["1", "2"]
    assert hops[0].split()[1] in (net.inside, net.outside)
    assert hops[1].split()[1] == net.server


def test_tracepath_finds_the_narrow_link(lab: Lab, firewall: Firewall, net: Net) -> None:
    """It learns the MTU from the firewall's error, which quotes the probe as the client sent it."""
    out = lab.run("client", ["tracepath", "-n", "-m", "5", net.server], check=True).stdout
    assert f"pmtu {NARROW}" in out
    assert re.search(rf"^ *2: +{net.server} .*reached$", out, re.MULTILINE), out
    assert f"Resume: pmtu {NARROW} hops 2 back 2" in out


# Path MTU discovery


def path_mtu(made: socket.socket) -> int:
    """What the kernel believes of a connected socket's path."""
    if made.family == socket.AF_INET:
        return made.getsockopt(socket.IPPROTO_IP, IP_MTU)
    return made.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)


def receive_all(listening: socket.socket, digests: list[bytes]) -> None:
    accepted, _ = listening.accept()
    accepted.settimeout(10)
    digest = hashlib.sha256()
    with accepted:
        while data := accepted.recv(1 << 16):
            digest.update(data)
    digests.append(digest.digest())


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
def test_a_tcp_upload_learns_the_path_mtu(lab: Lab, firewall: Firewall, net: Net, offload: bool) -> None:
    """The client's segments do not fit until the firewall's error has come back through source NAT."""
    lab.set_offloads(offload)
    data, digests = bytes(range(256)) * (UPLOAD // 256), list[bytes]()
    listening = lab.listener("server", 0, net.any)
    receiver = threading.Thread(target=receive_all, args=(listening, digests))
    receiver.start()
    before = firewall.counter("pkt_icmp_error")
    with lab.connect("client", (net.server, port_of(listening)), timeout=10) as client:
        assert path_mtu(client) == 1500
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        receiver.join(10)
        assert path_mtu(client) == NARROW
    assert digests == [hashlib.sha256(data).digest()]
    assert firewall.counter("pkt_icmp_error") > before
    lab.set_offloads(True)


def test_a_udp_sender_learns_the_path_mtu(lab: Lab, firewall: Firewall, net: Net) -> None:
    """With DF a large datagram comes back as EMSGSIZE; one that fits arrives."""
    server, client = lab.udp("server", 0, net.any), lab.udp("client", 0, net.any)
    level, option = (socket.IPPROTO_IP, IP_MTU_DISCOVER) if net is V4 else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
    client.setsockopt(level, option, PMTUDISC_DO)
    client.connect((net.server, port_of(server)))
    client.send(bytes(1500 - net.header - 8))

    def is_told() -> bool:
        return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE

    poll(is_told, 3, "EMSGSIZE at the client")
    assert path_mtu(client) == NARROW
    with pytest.raises(OSError, match="Message too long"):
        client.send(bytes(1500 - net.header - 8))
    fitting = NARROW - net.header - 8
    client.send(bytes(fitting))
    assert len(server.recv(2000)) == fitting


def test_fragments_are_put_together_and_cut_again(lab: Lab, firewall: Firewall, net: Net) -> None:
    """4,008 bytes of ICMP and 6,144 of UDP, the first packet of each flow included, both ways."""
    if net is V6:
        pings(lab, net, "-s", "4000")  # no router cuts IPv6: this one teaches the client the path MTU
    assert pings(lab, net, "-s", "4000")
    server, client = lab.udp("server", 0, net.any), lab.udp("client", 0, net.any)
    question = bytes(range(256)) * 24
    client.sendto(question, (net.server, port_of(server)))
    received, peer = server.recvfrom(8000)
    assert (received, peer[0]) == (question, net.outside)
    server.sendto(question[::-1], peer)
    assert client.recv(8000) == question[::-1]


# Nobody listens


def is_refused(connected: socket.socket) -> bool:
    """One more datagram, and whether an error has come for those before."""
    try:
        connected.send(b"anybody there?")
    except ConnectionRefusedError:
        return True
    return False


def test_a_port_unreachable_finds_the_client(lab: Lab, firewall: Firewall, net: Net) -> None:
    """The server's kernel quotes the translated packet; the client's socket gets ECONNREFUSED."""
    client, taken = lab.udp("client", 0, net.any), lab.udp("server", 0, net.any)
    closed = port_of(taken)
    taken.close()
    client.connect((net.server, closed))
    poll(lambda: is_refused(client), 3, "ECONNREFUSED at the client")


def test_a_port_unreachable_of_the_client_finds_the_server(lab: Lab, firewall: Firewall, net: Net) -> None:
    """The caller of a public port gets ECONNREFUSED from the address that it called."""
    caller = lab.udp("server", 0, net.any)
    caller.connect((net.outside, PUBLIC_PORT))
    with lab.capture("server", "eth0", "icmp[0] == 3 or icmp6[0] == 1") as at_server:
        poll(lambda: is_refused(caller), 3, "ECONNREFUSED at the server")
    assert {frame.source for frame in at_server.received()} == {net.outside}


# Crafted errors between phantoms


PROTOCOLS = ("udp", "tcp", "echo")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_from_outside_quote_what_the_client_sent(lab: Lab, firewall: Firewall, net: Net, protocol: str) -> None:
    """From the server and from a router on the way to it: byte for byte the client's packet, checksums included."""
    flow = talk(lab, net, protocol, 6301)
    public = net.ip_of(flow.outer).src
    sources = (net.phantom_server, net.far_router)
    errors = [error(net, source, public, message, flow.outer) for source in sources for message in net.errors()]
    with arriving(lab, net, "client") as at_client:
        lab.inject("server", *errors)
        frames = at_client.wait(len(errors))
    assert sorted(frame.source for frame in frames) == sorted(packet.src for packet in errors)
    assert {quoted(net, frame) for frame in frames} == {hop(net, flow.inner)}
    assert at_client.wrong_checksums() == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_from_inside_quote_what_the_server_sent(lab: Lab, firewall: Firewall, net: Net, protocol: str) -> None:
    """From the client and from a router before it: the sender appears as the public address, nothing inside leaks."""
    flow = talk(lab, net, protocol, 6302)
    sources = (net.phantom_client, net.near_router)
    errors = [
        error(net, source, net.phantom_server, message, flow.answered) for source in sources for message in net.errors()
    ]
    with arriving(lab, net, "server") as at_server:
        lab.inject("client", *errors)
        frames = at_server.wait(len(errors))
    assert {frame.source for frame in frames} == {net.outside}
    assert {quoted(net, frame) for frame in frames} == {hop(net, flow.answer)}
    assert at_server.wrong_checksums() == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_quote_may_be_cut_short(lab: Lab, firewall: Firewall, net: Net, protocol: str) -> None:
    """Eight bytes of the transport header are enough (RFC 792), and no byte beyond them is touched."""
    flow = talk(lab, net, protocol, 6303)
    short = flow.outer[: net.header + 8]
    with arriving(lab, net, "client") as at_client:
        lab.inject("server", error(net, net.phantom_server, net.outside, net.errors()[0], short))
        (frame,) = at_client.wait(1)
    assert quoted(net, frame) == hop(net, flow.inner)[: net.header + 8]
    assert at_client.wrong_checksums() == []


def broken(net: Net, quote: bytes) -> bytes:
    """With a wrong header checksum; IPv6 has none, so with a version that is none."""
    return quote[:10] + b"\xff\xff" + quote[12:] if net is V4 else b"\x50" + quote[1:]


def test_an_error_about_nothing_is_dropped_and_counted(lab: Lab, firewall: Firewall, net: Net) -> None:
    """No such session, the wrong direction, a broken quote, a wrong checksum; a right one before and after passes."""
    flow = talk(lab, net, "udp", 6304)
    unreachable, public = net.errors()[0], net.outside
    right = error(net, net.phantom_server, public, unreachable, flow.outer)
    strange = bytes(net.ip(public, net.phantom_server) / UDP(sport=9, dport=9))
    wrong_sum = bytearray(bytes(right))
    wrong_sum[net.header + 2] ^= 0xFF
    wrong = {
        "flow_icmp_error_no_session": [
            error(net, net.phantom_server, public, unreachable, strange),
            error(net, net.phantom_server, public, unreachable, flow.answer),
        ],
        "flow_parse_icmp_quote": [error(net, net.phantom_server, public, unreachable, broken(net, flow.outer))],
        "flow_parse_l4_cksm": [bytes(wrong_sum)],
    }
    before = {name: firewall.counter(name) for name in wrong}
    with arriving(lab, net, "client") as at_client:
        lab.inject("server", right, *[packet for packets in wrong.values() for packet in packets], right)
        at_client.wait(2)
    assert {name: firewall.counter(name) - before[name] for name in wrong} == {k: len(v) for k, v in wrong.items()}
    assert [quoted(net, frame) for frame in at_client.frames()] == [hop(net, flow.inner)] * 2
    assert firewall.running


def test_errors_neither_end_nor_refresh_a_session(lab: Lab, firewall: Firewall, net: Net) -> None:
    """Under a rain of errors from both sides the flow goes on as it was, and expires when its own packets stop."""
    flow = talk(lab, net, "udp", 6305)
    unreachable = net.errors()[0]
    from_server = error(net, net.phantom_server, net.outside, unreachable, flow.outer)
    from_client = error(net, net.phantom_client, net.phantom_server, unreachable, flow.answered)

    def live() -> list[dict[str, Any]]:
        lab.inject("server", from_server)
        lab.inject("client", from_client)
        return firewall.sessions(source_port=6305, ip6="no" if net is V4 else "yes")

    (session,) = live()
    assert (session["packets_c2s"], session["packets_s2c"], session["state"]) == (1, 1, "ACTIVE")
    assert talk(lab, net, "udp", 6305).outer[net.header :] == flow.outer[net.header :]
    (session,) = live()
    assert (session["packets_c2s"], session["packets_s2c"]) == (2, 2)
    poll(lambda: not live(), 4, "the session to expire among errors")
    ended = {"event": "end", "sport": 6305, "src": net.phantom_client, "session_end_reason": "aged-out"}
    poll(lambda: firewall.traffic_log(**ended), 3, "the record of its end")
