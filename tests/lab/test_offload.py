"""Sessions that the kernel forwards by itself: nobody on either side can tell, counts and ends are right, and what the
program does not understand comes to the queues.
"""

import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt
from scapy.packet import Raw

from tests.lab.console import ask, counters, info, record, rule, session_of, sessions
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, SERVER, Lab, poll
from tests.lab.offloaded import (
    BOTH,
    HEADERS,
    HIDDEN,
    PLAIN,
    PUBLIC,
    V4,
    V6,
    Datagrams,
    Net,
    assert_stream,
    config,
    connection,
    datagrams,
    send_nothing_twice,
)

OPTIONAL = 5004
OTHER_MAC = "02:00:00:00:09:09"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        send_nothing_twice(made)
        yield made


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(config()) as running:
        yield running


@pytest.fixture(params=(V4, V6), ids=("ipv4", "ipv6"))
def net(request: pytest.FixtureRequest) -> Net:
    chosen: Net = request.param
    return chosen


# Forwarding and counting


@pytest.mark.parametrize("port", [HIDDEN, PUBLIC, BOTH, PLAIN], ids=["source", "destination", "both", "none"])
def test_datagrams_are_translated_and_counted(lab, firewall, net, port):
    """Each kind of translation looks as it did from the queues, and each packet and byte is counted at once."""
    with datagrams(lab, firewall, net, port) as talk:
        before, seen = counters(firewall), talk.outside
        for _ in range(50):
            talk.exchange()
        session = talk.session()
        assert talk.outside == seen
        assert seen[0] == (net.outside if port in (HIDDEN, BOTH) else net.client)
    assert session["offload_reason"] is None
    poll(lambda: counters(firewall)["pkt_offload"] - before["pkt_offload"] == 100, 3, "the sum of all sessions")
    assert session["packets_c2s"] == session["packets_s2c"] == talk.exchanges
    assert session["bytes_c2s"] == session["bytes_s2c"] == talk.exchanges * (30 + HEADERS[net.version])
    assert session["time_to_live"] >= session["timeout"] - 1


@pytest.mark.parametrize("port", [HIDDEN, PUBLIC, BOTH, PLAIN], ids=["source", "destination", "both", "none"])
def test_a_connection_is_followed_to_its_end(lab, firewall, net, port):
    """Both FINs are seen by the firewall: the session ends as tcp-fin, nothing having been dropped."""
    dropped = counters(firewall)["tcp_drop_out_of_wnd"]
    with connection(lab, firewall, net, port) as (client, server):
        source = client.getsockname()[1]
        for _ in range(20):
            assert_stream(client, server)
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        session = session_of(firewall, client)
        assert (session["offload"], session["timeout"]) == (True, 120)
        server.sendall(b"last words")
        assert client.recv(100) == b"last words"
    poll(lambda: sessions(firewall, source_port=source)[0]["end_reason"] == "tcp-fin", 3, "the end")
    assert counters(firewall)["tcp_drop_out_of_wnd"] == dropped


def test_echoes(lab, firewall, net):
    """A ping keeps its identifier on the client's side, and its packets are counted."""
    ping = lab.popen("client", ["ping", "-c", "60", "-i", "0.02", net.server])
    poll(lambda: any(s["offload"] for s in sessions(firewall, protocol=1 if net is V4 else 58)), 5, "the offload")
    assert ping.wait(10) == 0
    assert " 60 received" in lab.output(ping)
    (session,) = [s for s in sessions(firewall, protocol=1 if net is V4 else 58) if s["packets_c2s"] > 1]
    assert (session["packets_c2s"], session["packets_s2c"]) == (60, 60)


def test_the_operator_sees_it(lab, firewall):
    """`show session info` says that it is on; the session's page says Yes."""
    assert info(firewall)["hardware_session_offloading"] is True
    with datagrams(lab, firewall, V4) as talk:
        page = firewall.cli("show", "session", "id", str(talk.session()["id"])).stdout
    assert "offload                              : Yes" in page


# What takes effect at once


def test_a_cleared_session_is_a_new_one(lab, firewall, net):
    """The next packet after `clear session` begins another session."""
    with datagrams(lab, firewall, net) as talk:
        old = talk.session()["id"]
        ask(firewall, "clear session id", id=old)
        talk.exchange()
        (fresh,) = [s for s in sessions(firewall, source_port=talk.client.getsockname()[1]) if s["id"] != old]
        assert fresh["packets_c2s"] == 1


# What the program does not understand


def test_what_is_odd_comes_to_the_queues(lab, firewall):
    """Options, a fragmented datagram, a checksum that is wrong: each is judged by C, and one that is right arrives."""
    with datagrams(lab, firewall, V4) as talk:
        before = counters(firewall)
        lab.inject("client", talk.datagram(options=[IPOption_NOP()] * 4) / b"options")
        assert talk.server.recv(100) == b"options"
        wrong = talk.datagram() / b"wrong"
        wrong[UDP].chksum = 0x1234
        lab.inject("client", wrong, talk.datagram(ttl=1) / b"last hop")
        poll(lambda: counters(firewall)["pkt_recv"] - before["pkt_recv"] >= 3, 3, "three packets in the queues")
        lab.inject("client", talk.datagram() / b"right")
        assert talk.server.recv(100) == b"right"
        poll(lambda: counters(firewall)["pkt_offload"] - before["pkt_offload"] == 1, 3, "the one of the kernel")
        assert counters(firewall)["flow_parse_l4_cksm"] - before["flow_parse_l4_cksm"] == 1


def test_extension_headers_come_to_the_queues(lab, firewall):
    """IPv6 with a destination option is forwarded by C."""
    with datagrams(lab, firewall, V6) as talk:
        before = counters(firewall)
        odd = talk.datagram()
        lab.inject("client", odd.__class__(src=odd.src, dst=odd.dst) / IPv6ExtHdrDestOpt() / odd[UDP] / b"options")
        assert talk.server.recv(100) == b"options"
        assert counters(firewall)["pkt_recv"] - before["pkt_recv"] >= 1


def test_traceroute_sees_the_firewall(lab, firewall, net):
    """The last hop of a time to live is the firewall's, as without offload."""
    with datagrams(lab, firewall, net) as talk, lab.capture("client", "eth0", "icmp or icmp6") as capture:
        last, at, exceeded = ("ttl", 34, 11) if net is V4 else ("hlim", 54, 3)
        lab.inject("client", talk.datagram(**{last: 1}) / b"x")
        received = poll(lambda: [f for f in capture.frames() if not f.outgoing], 3, "an error")
        assert received[0].data[at] == exceeded


def test_too_large_for_the_next_link(lab, firewall):
    """The sender is told the next link's MTU when it becomes smaller than what the session was offloaded with."""
    with datagrams(lab, firewall, V4) as talk, lab.capture("client", "eth0", "icmp") as capture:
        lab.set_mtu("firewall", "out0", 1300)
        try:
            lab.inject("client", talk.datagram(flags="DF") / Raw(bytes(1400)))
            (frame,) = poll(lambda: [f for f in capture.frames() if not f.outgoing], 3, "fragmentation needed")
        finally:
            lab.set_mtu("firewall", "out0", 1500)
        icmp = frame.packet["ICMP"]
        assert (icmp.type, icmp.code, icmp.nexthopmtu) == (3, 4, 1300)


@pytest.mark.parametrize(("distance", "timeout"), [(100, 30), (1 << 30, 3600)], ids=["in", "out"])
def test_a_forged_reset_is_judged_by_the_latest_numbers(lab, firewall, distance, timeout):
    """In the window it starts the short timer until data comes, outside it is dropped: the kernel has kept count."""
    with connection(lab, firewall, V4) as (client, server), lab.capture("client", "eth0", "tcp") as capture:
        for _ in range(20):
            assert_stream(client, server)
        last = [f.packet for f in capture.frames() if f.outgoing][-1]
        seq = (last[TCP].seq + len(last[TCP].payload) + distance) % (1 << 32)
        before = counters(firewall)
        with lab.capture("server", "eth0", "tcp[tcpflags] & tcp-rst != 0") as arrived:
            lab.inject(
                "client", IP(src=CLIENT, dst=SERVER) / TCP(sport=last[TCP].sport, dport=HIDDEN, flags="R", seq=seq)
            )
            if distance == 100:
                arrived.wait(1)
            else:
                name = "tcp_drop_rst_out_of_wnd"
                poll(lambda: counters(firewall)[name] == before[name] + 1, 3, "the drop")
        assert_stream(client, server)
        poll(lambda: session_of(firewall, client)["timeout"] == 3600, 3, "the established timer")


# The host changes


def test_another_address_of_the_next_hop_is_followed(lab, firewall):
    """The neighbour entry changes: the next packet goes to the new address."""
    with datagrams(lab, firewall, V4) as talk, lab.capture("server", "eth0", "udp") as capture:
        neighbour = ["ip", "neighbour", "replace", SERVER, "dev", "out0", "nud", "permanent", "lladdr"]
        old = lab.run("firewall", ["ip", "neighbour", "show", SERVER, "dev", "out0"]).stdout.split()[2]
        lab.run("firewall", [*neighbour, OTHER_MAC], check=True)
        try:

            def arrives() -> bool:
                talk.client.send(b"follow")
                return any(f.packet.dst == OTHER_MAC for f in capture.frames() if not f.outgoing)

            poll(arrives, 3, "a frame to the new address")
        finally:
            lab.run("firewall", [*neighbour, old], check=True)


def test_a_dead_next_hop_ends_the_offload(lab, firewall):
    """Without an entry the session is back in the queues, and says why."""
    with datagrams(lab, firewall, V4) as talk:
        neighbour = ["ip", "neighbour", "replace", SERVER, "dev", "out0"]
        old = lab.run("firewall", ["ip", "neighbour", "show", SERVER, "dev", "out0"]).stdout.split()[2]
        lab.run("firewall", [*neighbour, "nud", "failed"], check=True)
        try:
            poll(lambda: not talk.session()["offload"], 3, "the end of the offload")
        finally:
            lab.run("firewall", [*neighbour, "lladdr", old, "nud", "permanent"], check=True)
        talk.offloaded()


# Beside others, and afterwards


def test_others_filters_stay(lab):
    """A qdisc and a filter of somebody else's are there as before after a stop, which the lab's firewall compares."""
    no_match = ["prio", "7", "protocol", "all", "bpf", "bytecode", "1,6 0 0 0"]  # whoever comes next is asked
    with Lab() as other:
        for words in (["qdisc", "add", "dev", "in0", "clsact"], ["filter", "add", "dev", "in0", "ingress", *no_match]):
            other.run("firewall", ["tc", *words], check=True)
        with other.firewall(config()) as running, datagrams(other, running, V4) as talk:
            talk.exchange()
        assert "pref 7" in other.run("firewall", ["tc", "filter", "show", "dev", "in0", "ingress"]).stdout


def test_what_a_killed_daemon_leaves_is_removed(lab):
    """The next start takes over its filters, and a stop leaves nothing."""
    with Lab() as other:
        running = Firewall(other, config())
        running.start()
        with datagrams(other, running, V4):
            running.kill()
        assert "offload" in other.run("firewall", ["tc", "filter", "show", "dev", "in0", "ingress"]).stdout
        running.start()
        with datagrams(other, running, V4, OPTIONAL):
            pass
        running.stop()


def test_it_may_be_switched_off(lab):
    """`offload: false`: nothing is attached, and sessions say so."""
    with Lab() as other, other.firewall(config(offload=False)) as running:
        talk = Datagrams(other, running, V4)
        with talk.client, talk.server:
            for _ in range(10):
                talk.exchange()
            assert (talk.session()["offload"], talk.session()["offload_reason"]) == (False, "disabled")
        assert "clsact" not in other.run("firewall", ["tc", "qdisc", "show"]).stdout


def test_a_wire_keeps_frames_as_they_are():
    """Over a virtual wire addresses of frames and the time to live do not change."""
    wired = {
        **config(),
        "zones": [{"name": "left", "interfaces": ["in0"]}, {"name": "right", "interfaces": ["out0"]}],
        "virtual-wires": [{"name": "vw0", "interfaces": ["in0", "out0"]}],
        "security-rules": [rule("out", from_=["left"], to=["right"])],
        "nat-rules": [],
    }
    with (
        Lab(bridge=True) as bridged,
        bridged.firewall(wired) as running,
        datagrams(bridged, running, V4, PLAIN) as talk,
    ):
        with bridged.capture("client", "eth0", "udp") as sent, bridged.capture("server", "eth0", "udp") as arrived:
            before = counters(running)["pkt_offload"]
            talk.exchange()
            poll(lambda: counters(running)["pkt_offload"] - before == 2, 3, "both datagrams")
            (out,) = [f.data[:42] for f in sent.frames() if f.outgoing]
            (come,) = [f.data[:42] for f in arrived.frames() if not f.outgoing]
        assert out == come


def test_the_log_has_all_of_it(lab, firewall):
    """The end record counts what the kernel has forwarded."""
    with datagrams(lab, firewall, V4) as talk:
        for _ in range(30):
            talk.exchange()
        source = talk.client.getsockname()[1]
        ask(firewall, "clear session id", id=talk.session()["id"])
        end = record(firewall, event="end", sport=source)
    assert (end["packets_sent"], end["packets_received"]) == (talk.exchanges, talk.exchanges)
