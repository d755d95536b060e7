"""What happens to the host while the kernel forwards: routes, links, neighbours, the daemon's death, no program at all.

   client                      firewall                      server
+---------+            +--------------------+            +---------+
|    eth0 |------------| in0           out0 |------------| eth0    |   trust: in0; untrust: out0, out1
+---------+            |               out1 |------------| eth1    |   192.0.2.9, 2001:db8::9: the server's, by either
                       +--------------------+            +---------+
"""

import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.lab.capture import Capture
from tests.lab.console import counters, record, sessions, zones
from tests.lab.firewall import ROOT, Firewall
from tests.lab.lab import CLIENT, CLIENT6, SERVER, SERVER6, Lab, poll
from tests.lab.offloaded import (
    HIDDEN,
    PLAIN,
    V4,
    V6,
    Datagrams,
    Net,
    Talk,
    assert_stream,
    config,
    connection,
    datagrams,
)

FAR, FAR6 = "192.0.2.9", "2001:db8::9"
OUT1, HOP1, OUT16, HOP16 = "10.4.0.1", "10.4.0.2", "fd00:4::1", "fd00:4::2"
MAC1, OTHER_MAC = "02:00:00:00:04:02", "02:00:00:00:02:99"
NO_MATCH = ["prio", "7", "protocol", "all", "bpf", "bytecode", "1,6 0 0 0"]  # whoever comes next is asked
UNREACHABLE = "icmp[0] == 3 or icmp6[0] == 1"
IMPATIENT = {"base_reachable_time_ms": "500", "delay_first_probe_time": "1", "retrans_time_ms": "100"}


def settings() -> dict[str, Any]:
    made = config()
    made["zones"] = [zones()[0], {"name": "untrust", "interfaces": ["out0", "out1"]}]
    return made


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The second link is up, and routes to the far addresses lead over the first."""
    with Lab() as made:
        peer = ["peer", "name", "eth1", "netns", made.names["server"]]
        made.run("firewall", ["ip", "link", "add", "out1", "type", "veth", *peer, "address", MAC1], check=True)
        for ns, device, addresses in (("firewall", "out1", (OUT1, OUT16)), ("server", "eth1", (HOP1, HOP16))):
            ip(made, "link", "set", device, "up", ns=ns)
            for address in addresses:
                more = ["nodad"] if ":" in address else []
                length = 64 if ":" in address else 24
                ip(made, "address", "add", f"{address}/{length}", "dev", device, *more, ns=ns)
        for address, gateway in ((FAR, SERVER), (FAR6, SERVER6)):
            more = ["nodad"] if ":" in address else []
            ip(made, "address", "add", address, "dev", "lo", *more, ns="server")
            ip(made, "route", "add", address, "via", gateway)
        for address in (HOP1, HOP16):
            ip(made, "neighbour", "replace", address, "lladdr", MAC1, "dev", "out1", "nud", "permanent")
        for family in ("ipv4", "ipv6"):
            made.sysctl("firewall", {"ipv6/conf/all/keep_addr_on_down": "1"})
            made.sysctl("firewall", {f"{family}/neigh/out0/{name}": value for name, value in IMPATIENT.items()})
        yield made


@pytest.fixture
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(settings()) as running:
        yield running


@pytest.fixture(params=(V4, V6), ids=("ipv4", "ipv6"))
def net(request: pytest.FixtureRequest) -> Net:
    chosen: Net = request.param
    return chosen


def ip(lab: Lab, *words: str, ns: str = "firewall") -> None:
    lab.run(ns, ["ip", *words], check=True)


def far_talk(lab: Lab, firewall: Firewall, net: Net) -> Talk:
    """With the far address, untranslated."""
    far = FAR if net is V4 else FAR6
    return Talk(firewall, lab.udp("client", 0, net.any), lab.udp("server", PLAIN, far), (far, PLAIN)).offloaded()


# Routes


def test_a_session_follows_its_route_within_the_zone(lab, firewall, net):
    """Another next hop over another interface: the same session, offloaded again, and nothing by the old way."""
    far, gateways = (FAR, (HOP1, SERVER)) if net is V4 else (FAR6, (HOP16, SERVER6))
    talk = far_talk(lab, firewall, net)
    number = talk.session()["id"]
    with lab.capture("server", "eth0", "udp") as first, lab.capture("server", "eth1", "udp") as second:
        ways = ((gateways[0], "out1", second, first), (gateways[1], "out0", first, second))
        for gateway, device, capture, other in ways:
            ip(lab, "route", "replace", far, "via", gateway)

            def is_there(capture: Capture = capture) -> bool:
                before = len(capture.received())
                talk.exchange()
                return len(capture.received()) > before and bool(talk.session()["offload"])

            poll(is_there, 5, f"the session to go by {device}")
            before, offloaded = len(other.received()), counters(firewall)["pkt_offload"]
            for _ in range(20):
                talk.exchange()
            assert len(other.received()) == before
            session = talk.session()
            assert (session["id"], session["egress_interface"]) == (number, device)
            assert counters(firewall)["pkt_offload"] - offloaded == 40


def test_a_session_whose_route_leaves_its_zone_ends(lab, firewall, net):
    """Nothing of it is sent into the other zone, nor on by the old way; the record says how much there was."""
    far, client = (FAR, CLIENT) if net is V4 else (FAR6, CLIENT6)
    talk = far_talk(lab, firewall, net)
    with lab.capture("server", "eth0", "udp") as old, lab.capture("firewall", "in0", "udp") as other:
        ip(lab, "route", "replace", far, "via", client)
        end = record(firewall, event="end", sport=talk.client.getsockname()[1])
        seen = len(old.received())
        for _ in range(20):
            talk.client.send(b"stray")
        poll(lambda: len(other.received()) >= 20, 3, "the packets to have come in")
        assert len(old.received()) == seen
    assert end["packets_sent"] == talk.exchanges


def test_a_route_that_refuses_is_obeyed(lab, firewall):
    """`unreachable`: the client is told so, as without offload, and the session is offloaded once it is lifted."""
    talk = far_talk(lab, firewall, V4)
    with lab.capture("client", "eth0", UNREACHABLE) as told:
        ip(lab, "route", "replace", "unreachable", FAR)
        poll(lambda: speaks(talk) and told.received(), 3, "an error")
    assert not is_offloaded(firewall, talk)
    ip(lab, "route", "delete", "unreachable", FAR)
    ip(lab, "route", "replace", FAR, "via", SERVER)
    reaches_again(talk)
    talk.offloaded()


def alive(firewall: Firewall, talk: Talk) -> list[dict[str, Any]]:
    return sessions(firewall, source_port=talk.client.getsockname()[1], state="active")


def is_offloaded(firewall: Firewall, talk: Talk) -> bool:
    return any(session["offload"] for session in alive(firewall, talk))


def speaks(talk: Talk) -> bool:
    """Something is sent, whoever hears it."""
    with suppress(OSError):
        talk.client.send(b"?")
    return True


def reaches_again(talk: Talk) -> None:
    """Until an exchange succeeds; what has been waiting in the sockets is thrown away."""

    def tried() -> bool:
        for sock in (talk.client, talk.server):
            sock.setblocking(False)
            with suppress(OSError):
                while True:
                    sock.recv(2000)
            sock.settimeout(0.5)
        try:
            talk.exchange()
        except (OSError, AssertionError):
            return False
        finally:
            talk.client.settimeout(3)
            talk.server.settimeout(3)
        return True

    poll(tried, 10, "an exchange")


# Links


@pytest.mark.parametrize("device", ["out0", "in0"])
def test_a_link_goes_down_and_comes_up(lab, firewall, device):
    """While it is down nothing is offloaded over it; once it is up the same flow is, by its own packets."""
    before = shown(lab, device)
    with datagrams(lab, firewall, V4) as talk:
        ip(lab, "link", "set", device, "down")

        poll(lambda: speaks(talk) and not is_offloaded(firewall, talk), 5, "the end of the offload")
        ip(lab, "link", "set", device, "up")
        reaches_again(talk)
        talk.offloaded()
    poll(lambda: shown(lab, device) == before, 10, "the link to be as it was")


def test_a_stop_while_links_change(lab):
    """What is told of a change then does not put the program back."""
    for number in range(3):
        with lab.firewall(settings()):
            for mtu in ("1400", "1500"):
                ip(lab, "link", "set", "in0" if number else "out0", "mtu", mtu)


def shown(lab: Lab, device: str) -> list[str]:
    """A link and its addresses."""
    lines = [
        lab.run("firewall", ["ip", "-o", what, "show", device]).stdout.splitlines() for what in ("link", "address")
    ]
    return sorted(lines[0] + lines[1])


def test_the_far_end_loses_its_link(lab, firewall):
    """The carrier goes and comes; routes and addresses of the firewall stay."""
    with datagrams(lab, firewall, V4) as talk:
        ip(lab, "link", "set", "eth0", "down", ns="server")
        poll(lambda: not talk.session()["offload"], 5, "the end of the offload")
        ip(lab, "link", "set", "eth0", "up", ns="server")
        ip(lab, "route", "replace", "default", "via", V4.outside, ns="server")
        reaches_again(talk)
        talk.offloaded()


# Neighbours


def mute(lab: Lab, silent: bool) -> None:
    """Whether the server keeps silent when it is asked for its Ethernet address."""
    lab.sysctl("server", {"ipv4/conf/eth0/arp_ignore": "8" if silent else "0"})
    flag = "-A" if silent else "-D"
    lab.run("server", ["ip6tables", flag, "INPUT", "-p", "icmpv6", "--icmpv6-type", "135", "-j", "DROP"], check=True)


def test_a_neighbour_dies_and_returns_with_another_address(lab, firewall, net):
    """Found out although only the kernel's program sends to it; the client is told; it is offloaded to the new one."""
    with (
        datagrams(lab, firewall, net) as talk,
        lab.capture("server", "eth0", "udp") as arrived,
        lab.capture("client", "eth0", UNREACHABLE) as told,
    ):
        ip(lab, "neighbour", "delete", net.server, "dev", "out0")
        talk.exchange()
        talk.offloaded()
        mute(lab, True)

        poll(lambda: speaks(talk) and not is_offloaded(firewall, talk), 10, "the neighbour to be given up")
        poll(lambda: speaks(talk) and talk.session()["offload_reason"] == "no-neighbour", 5, "the reason")
        poll(lambda: speaks(talk) and told.received(), 10, "an error")
        ip(lab, "link", "set", "eth0", "address", OTHER_MAC, ns="server")
        mute(lab, False)
        reaches_again(talk)
        talk.offloaded()
        before, seen = counters(firewall)["pkt_offload"], len(arrived.received())
        talk.exchange()
        talk.session()
        assert counters(firewall)["pkt_offload"] - before == 2
        assert {frame.data[:6].hex(":") for frame in arrived.received()[seen:]} == {OTHER_MAC}


# The daemon


def test_traffic_goes_on_through_a_killed_daemon_and_its_successor(lab):
    """What was offloaded goes on, what is new does not begin; the successor takes over while it flows."""
    running = Firewall(lab, settings())
    running.start()
    with datagrams(lab, running, V4) as talk, connection(lab, running, V4, PLAIN) as (client, server):
        running.kill()
        for _ in range(50):
            talk.exchange()
            assert_stream(client, server)
        with lab.udp("client") as stranger:
            stranger.sendto(b"new", (SERVER, HIDDEN))
        talk.exchange()  # came after it, and nothing else has arrived
        stop = threading.Event()

        def flow() -> None:
            while not stop.is_set():
                with suppress(OSError):
                    talk.client.send(b"x" * 50)

        flowing = threading.Thread(target=flow)
        flowing.start()
        try:
            running.start()
            found = poll(lambda: alive(running, talk), 5, "a session of its own")
        finally:
            stop.set()
            flowing.join()
        assert found[0]["packets_c2s"] > 0
        reaches_again(talk)
        talk.exchanges = 0
        talk.offloaded()
        filters = lab.run("firewall", ["tc", "filter", "show", "dev", "in0", "ingress"]).stdout
        assert filters.count("direct-action") == 1
    running.stop()


def test_an_older_kernel_gets_the_portable_program(lab, tmp_path, monkeypatch):
    """What the first program takes from the kernel is not there (here: it is broken): the second one does the same."""
    shutil.copytree(ROOT / "dataplane", tmp_path / "dataplane", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "dataplane" / "offload.bpf.o").write_bytes(b"no program")
    monkeypatch.setattr("tests.lab.firewall.ROOT", tmp_path)
    with lab.firewall(settings()) as running:
        for net in (V4, V6):
            with datagrams(lab, running, net) as talk, connection(lab, running, net, PLAIN) as ends:
                before = counters(running)["pkt_recv"]
                for _ in range(20):
                    talk.exchange()
                    assert_stream(*ends)
                assert counters(running)["pkt_recv"] == before
        assert "nothing is offloaded" not in running.log()


def test_an_ingress_qdisc_of_somebody_else_is_shared(lab):
    """The older kind, which holds filters of one direction: ours stands behind theirs, and theirs is left as it was."""
    for words in (["qdisc", "add", "dev", "in0", "ingress"], ["filter", "add", "dev", "in0", "ingress", *NO_MATCH]):
        lab.run("firewall", ["tc", *words], check=True)
    with lab.firewall(settings()) as running, datagrams(lab, running, V4) as talk:
        talk.exchange()
    assert "ingress" in lab.run("firewall", ["tc", "qdisc", "show", "dev", "in0"]).stdout
    assert "pref 7" in lab.run("firewall", ["tc", "filter", "show", "dev", "in0", "ingress"]).stdout


def test_without_a_program_it_runs_and_says_why(lab, tmp_path, monkeypatch):
    """Built without clang: everything goes through the queues, and sessions say `unavailable`."""
    leavings = shutil.ignore_patterns("*.bpf.o", "__pycache__")
    shutil.copytree(ROOT / "dataplane", tmp_path / "dataplane", ignore=leavings)
    monkeypatch.setattr("tests.lab.firewall.ROOT", tmp_path)
    with lab.firewall(settings()) as running:
        talk = Datagrams(lab, running, V4)
        with talk.client, talk.server:
            for _ in range(10):
                talk.exchange()
            session = talk.session()
            assert (session["offload"], session["offload_reason"]) == (False, "unavailable")
            shown = running.json("show", "session", "id", str(session["id"]))
        assert (shown["offload"], shown["offload_reason"]) == (False, "unavailable")
        assert running.log().count("nothing is offloaded") == 1
        assert "clsact" not in lab.run("firewall", ["tc", "qdisc", "show"]).stdout
