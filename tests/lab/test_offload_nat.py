"""The other kinds of translation by the kernel: who turns round, prefixes, shared and kept ports, an ALG's connections.

client side                                         server side
  10.1.0.2                 calls 10.2.0.161            becomes 10.1.0.31, the caller the interface's address
  10.1.0.2, 10.1.0.31      calls 10.2.0.162            becomes 10.1.0.90, the caller keeps its own
  10.1.0.40, 10.1.0.41     share port 3000             10.2.0.110
  10.1.0.30                persistent                  10.2.0.100
  fd00:3::5                NPTv6                       fd00:98::/64
  fd00:1::40               NAT66                       fd00:2::110
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from tests.lab.calls import source_rule
from tests.lab.console import IN_ORDER, counters, rule, session_of, sessions, zones
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, IN0, MACS, SERVER, SERVER6, Lab, poll
from tests.lab.offloaded import Talk, assert_stream, until_offloaded
from tests.lab.servers import Channel, six

CALLED, CALLED6, PHANTOM, PHANTOM6 = "10.1.0.31", "fd00:1::31", "10.1.0.90", "fd00:1::90"
SHARERS, KEPT, PREFIXED, HIDDEN6 = ("10.1.0.40", "10.1.0.41"), "10.1.0.30", "fd00:3::5", "fd00:1::40"
SERVERS = (SERVER, "10.2.0.11")
FTP = 2122

DIPP: dict[str, Any] = {"type": "dynamic-ip-and-port"}


def turned(name: str, public: str, inside: str, **more: Any) -> dict[str, Any]:
    """A client calls the public address of somebody on its own side."""
    family = "ipv6" if ":" in public else "ipv4"
    return {
        "name": name,
        "nat-type": family,
        "from": ["trust"],
        "to": "untrust",
        "destination": [public],
        "destination-translation": {"address": inside},
        **more,
    }


CONFIG: dict[str, Any] = {
    "zones": zones(),
    "security-rules": [rule("all", from_=["trust", "untrust"], to=["trust", "untrust"])],
    "nat-rules": [
        turned("hairpin", "10.2.0.161", CALLED, **{"source-translation": {**DIPP, "interface": "in0"}}),
        turned("hairpin6", "fd00:2::161", CALLED6, **{"source-translation": {**DIPP, "interface": "in0"}}),
        turned("turn", "10.2.0.162", PHANTOM),
        turned("turn6", "fd00:2::162", PHANTOM6),
        source_rule("shared", list(SHARERS), "10.2.0.110", **DIPP, **{"port-range": "3000-3000"}),
        source_rule("kept", [KEPT], "10.2.0.100", type="persistent-dynamic-ip-and-port"),
        source_rule("hidden6", [HIDDEN6], "fd00:2::110", **DIPP),
        {
            **source_rule("prefix", ["fd00:3::/64"], "fd00:98::/64", type="static-ip", **{"bi-directional": True}),
            "nat-type": "nptv6",
        },
        source_rule("rest", [CLIENT], "10.2.0.120", **DIPP),
    ],
    "settings": {"nat": {"oversubscription": 2}, "alg": {"ftp": {"ports": [FTP]}}, **IN_ORDER},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    clients = (CALLED, CALLED6, *SHARERS, KEPT, HIDDEN6)
    with Lab(
        client_addresses=clients,
        server_addresses=(SERVERS[1], "fd00:2::11"),
        client_phantoms=(PHANTOM, PHANTOM6),
    ) as made:
        made.run("client", ["ip", "address", "add", f"{PREFIXED}/128", "dev", "eth0", "nodad"], check=True)
        made.run("firewall", ["ip", "-6", "route", "add", "fd00:3::/64", "dev", "in0"], check=True)
        made.run("firewall", ["ip", "-6", "route", "add", "fd00:98::/64", "dev", "out0"], check=True)
        entry = [PREFIXED, "lladdr", MACS["client", "eth0"], "nud", "permanent", "dev", "in0"]
        made.run("firewall", ["ip", "neighbour", "replace", *entry], check=True)
        yield made


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(CONFIG) as running:
        yield running


@contextmanager
def talking(lab: Lab, firewall: Firewall, source: str, to: str, at: str = "", ns: str = "server") -> Iterator[Talk]:
    """From an address of the client's, to an address that in truth is `at`, until it is offloaded."""
    client, server = lab.udp("client", 0, source), lab.udp(ns, 0, at or to)
    made = Talk(firewall, client, server, (to, server.getsockname()[1]))
    with client, server:
        yield made.offloaded()


def by_the_kernel(firewall: Firewall, talk: Talk, times: int = 20) -> None:
    """So many exchanges are all forwarded by the kernel, to the same two ends as before."""
    before, outside = (counters(firewall), talk.session())[0], talk.outside
    for _ in range(times):
        talk.exchange()
        assert talk.outside == outside
    assert talk.session()["offload"] is True
    assert counters(firewall)["pkt_offload"] - before["pkt_offload"] == 2 * times


@pytest.mark.parametrize(
    ("source", "public", "called", "seen"),
    [(CLIENT, "10.2.0.161", CALLED, IN0), ("fd00:1::2", "fd00:2::161", CALLED6, "fd00:1::1")],
    ids=["ipv4", "ipv6"],
)
def test_who_calls_its_own_side_is_turned_round_by_the_kernel(lab, firewall, source, public, called, seen):
    """In and out by one interface; each sees only the other's public address, no redirect is sent, sums are right."""
    with (
        talking(lab, firewall, source, public, called, "client") as talk,
        lab.capture("client", "eth0", "icmp[0] == 5 or icmp6[0] == 137") as redirects,
        lab.capture("firewall", "in0", "udp") as crossing,
    ):
        assert talk.outside[0] == seen
        by_the_kernel(firewall, talk)
        session = talk.session()
        assert (session["ingress_interface"], session["egress_interface"]) == ("in0", "in0")
        with stream(lab, firewall, source, called, public) as (client, server):
            assert server.getpeername()[0] == seen
            before = counters(firewall)["pkt_recv"]
            for _ in range(20):
                assert_stream(client, server)
            assert counters(firewall)["pkt_recv"] == before
        assert redirects.received() == []
        assert crossing.wrong_checksums() == []
        assert len(crossing.frames()) >= 80  # each packet twice


@pytest.mark.parametrize(
    ("layer", "lan", "wan", "phantom"),
    [(IP, "10.1.0.2", "10.2.0.162", PHANTOM), (IPv6, "fd00:1::2", "fd00:2::162", PHANTOM6)],
    ids=["ipv4", "ipv6"],
)
def test_a_destination_alone_is_turned_round(lab, firewall, layer, lan, wan, phantom):
    """The caller keeps its address; what comes back through the firewall is undone, both by the kernel."""
    client = lab.udp("client", 0, lan)
    client.connect((wan, 53))
    port = client.getsockname()[1]
    with client, lab.capture("firewall", "in0", f"udp port {port}") as crossing:

        def there_and_back() -> bool:
            client.send(b"question")
            lab.inject("client", layer(src=phantom, dst=lan) / UDP(sport=53, dport=port) / b"answer")
            assert client.recv(100) == b"answer"
            return bool(session_of(firewall, client)["offload"])

        poll(there_and_back, 5, "the session to be offloaded")
        before, seen = counters(firewall)["pkt_offload"], len(crossing.frames())
        there_and_back()
        assert counters(firewall)["pkt_offload"] - before == 2
        ends = [(f.source, f.destination, f.outgoing) for f in crossing.frames()[seen:]]
        assert ends == [(lan, wan, False), (lan, phantom, True), (phantom, lan, False), (wan, lan, True)]
        assert crossing.wrong_checksums() == []


@pytest.mark.parametrize(
    ("source", "outside"), [(PREFIXED, "fd00:98::"), (HIDDEN6, "fd00:2::110")], ids=["nptv6", "nat66"]
)
def test_ipv6_is_translated_by_the_kernel(lab, firewall, source, outside):
    """Prefixes without a change of the transport, addresses with ports; datagrams and a connection, sums right."""
    with lab.capture("server", "eth0", "udp or tcp") as arrived, talking(lab, firewall, source, SERVER6) as talk:
        by_the_kernel(firewall, talk)
        assert talk.outside[0].startswith(outside)
        with stream(lab, firewall, source, SERVER6) as (client, server):
            assert server.getpeername()[0].startswith(outside)
            before = counters(firewall)["pkt_recv"]
            for _ in range(20):
                assert_stream(client, server)
            assert counters(firewall)["pkt_recv"] == before
        assert arrived.wrong_checksums() == []


def test_a_prefix_is_called_from_outside(lab, firewall):
    """The reverse rule of NPTv6 by the kernel."""
    with talking(lab, firewall, PREFIXED, SERVER6) as talk:
        public, port = talk.outside
        stranger = lab.udp("server", 0, "fd00:2::11")
        back = Talk(firewall, stranger, talk.client, (public, port))
        talk.client.close()
        with stranger, lab.udp("client", port, PREFIXED) as called:
            back.server = called
            by_the_kernel(firewall, back.offloaded())


@contextmanager
def stream(
    lab: Lab, firewall: Firewall, source: str, at: str, public: str = ""
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """An offloaded connection from an address of the client's, to one of the server's or, by a public one, its own."""
    with lab.listener("client" if public else "server", 5100, at) as listening, lab.inside("client"):
        client = socket.create_connection((public or at, 5100), 3, (source, 0))
        server, _ = listening.accept()
    server.settimeout(3)
    with client, server:
        until_offloaded(firewall, client, server)
        yield client, server


def test_one_port_for_two_destinations_is_not_mixed_up(lab, firewall):
    """Two hosts behind the same address and port, both offloaded: each hears its own server, counts are apart."""
    with ExitStack() as stack:
        talks = [stack.enter_context(talking(lab, firewall, *ends)) for ends in zip(SHARERS, SERVERS, strict=True)]
        assert talks[0].outside == talks[1].outside == ("10.2.0.110", 3000)
        for _ in range(10):
            for talk in talks:
                by_the_kernel(firewall, talk, 3)
        for talk in talks:
            session = talk.session()
            assert session["packets_c2s"] == session["packets_s2c"] == talk.exchanges
        talks[0].client.send(b"to the first")
        assert talks[0].server.recv(100) == b"to the first"
        for talk in talks:
            talk.server.sendto(talk.server.getsockname()[0].encode(), talk.outside)
        for talk in talks:
            assert talk.client.recv(100) == talk.server.getsockname()[0].encode()


def test_a_kept_port_is_one_for_all_destinations(lab, firewall):
    """persistent-dynamic-ip-and-port: one socket, two servers, both sessions offloaded, one outside address."""
    client = lab.udp("client", 0, KEPT)
    servers = [lab.udp("server", 0, address) for address in SERVERS]
    source = client.getsockname()[1]
    with client, servers[0], servers[1]:

        def round_trip() -> set[tuple[str, int]]:
            seen = set()
            for server in servers:
                client.sendto(b"question", server.getsockname())
                seen.add(server.recvfrom(100)[1])
                server.sendto(b"answer", next(iter(seen)))
                assert client.recvfrom(100) == (b"answer", server.getsockname())
            return seen

        def both() -> bool:
            assert len(round_trip()) == 1
            found = sessions(firewall, source_port=source, protocol=17)
            return len(found) == 2 and all(session["offload"] for session in found)

        poll(both, 5, "both to be offloaded")
        before = counters(firewall)["pkt_recv"]
        for _ in range(20):
            ((address, _),) = round_trip()
            assert address == "10.2.0.100"
        assert counters(firewall)["pkt_recv"] == before


def test_a_control_connection_stays_and_its_data_connection_goes(lab, firewall):
    """FTP: the one that is read is never offloaded, the one that it has announced is, both being translated."""
    with lab.listener("server", FTP, SERVER) as listening, lab.listener("client", 0, CLIENT) as data:
        control = Channel(lab.connect("client", (SERVER, FTP)), listening.accept()[0])
        try:
            heard = control.client_says(b"PORT %s\r\n" % six(CLIENT, data.getsockname()[1]).encode())
            *address, high, low = heard.split()[1].decode().split(",")
            outside = ".".join(address), int(high) * 256 + int(low)
            assert outside[0] == "10.2.0.120"
            for _ in range(20):
                control.server_says(b"200 patience\r\n")
                control.client_says(b"NOOP\r\n")
            with lab.connect("server", outside) as server:
                client, _ = data.accept()
                client.settimeout(3)
                with client:
                    until_offloaded(firewall, server, client)
                    session = session_of(firewall, control.client)
                    assert (session["offload"], session["offload_reason"]) == (False, "alg")
                    for _ in range(20):
                        control.client_says(b"NOOP\r\n")
                    assert session_of(firewall, control.client)["offload"] is False
        finally:
            control.close()
