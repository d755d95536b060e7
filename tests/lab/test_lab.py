"""The lab itself: every other test of real packets relies on these promises."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6

from tests.lab.capture import Capture
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, CLIENT6, IN0, SERVER, SERVER6, Lab, LabError, poll

PHANTOM = "10.2.0.200"
KILLED_LAB = """
import os
from tests.lab.lab import Lab
lab = Lab().__enter__()
lab.popen("client", ["sleep", "60"])
os._exit(9)
"""


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout


def assert_exchange(lab: Lab, address: str, any_address: str) -> None:
    """One datagram to the server and its answer."""
    server, client = lab.udp("server", 0, any_address), lab.udp("client", 0, any_address)
    client.sendto(b"question", (address, server.getsockname()[1]))
    question, peer = server.recvfrom(100)
    server.sendto(b"answer", peer)
    assert (question, client.recv(100)) == (b"question", b"answer")


def test_plain_forwarding_carries_the_first_packet(lab: Lab) -> None:
    """No first packet is lost to ARP, ND or DAD, in either family."""
    assert_exchange(lab, SERVER, "0.0.0.0")
    assert_exchange(lab, SERVER6, "::")


def test_a_stream_crosses(lab: Lab) -> None:
    """TCP sockets opened by the test itself live in the namespaces."""
    listening = lab.listener("server", 80)
    client = lab.connect("client", (SERVER, 80))
    accepted, peer = listening.accept()
    with accepted:
        client.sendall(b"hello")
        assert (accepted.recv(100), peer[0]) == (b"hello", CLIENT)


def test_capture_sees_the_first_and_the_last_packet(lab: Lab) -> None:
    """Nothing is missed at either end of a capture, and the direction of each packet is known."""
    server, client = lab.udp("server", 5000), lab.udp("client")
    with lab.capture("server", "eth0", "udp port 5000") as capture:
        for number in range(100):
            client.sendto(b"%d" % number, (SERVER, 5000))
        for _ in range(100):
            peer = server.recvfrom(100)[1]
        server.sendto(b"end", peer)
    assert [bytes(frame.packet[UDP].payload) for frame in capture.received()] == [b"%d" % n for n in range(100)]
    assert [frame.destination for frame in capture.frames() if frame.outgoing] == [CLIENT]


@pytest.mark.parametrize("offload", [True, False])
def test_kernel_traffic_has_no_wrong_checksum(offload: bool) -> None:
    """A checksum left to the hardware is not taken for a wrong one; without offload all of them are made."""
    with Lab(offload=offload) as lab, lab.capture("server") as capture:
        assert_exchange(lab, SERVER, "0.0.0.0")
        assert_exchange(lab, SERVER6, "::")
        frames = capture.wait(4)
        assert capture.wrong_checksums() == []
        assert any(frame.partial for frame in frames) == offload


@pytest.mark.parametrize(
    "datagram",
    [IP(src=CLIENT, dst=SERVER) / UDP(sport=1, dport=2, chksum=1) / b"x", IP(src=CLIENT, dst=SERVER) / ICMP(chksum=1)],
)
def test_a_wrong_checksum_is_seen(lab: Lab, datagram: IP) -> None:
    """Packets that the test injects keep what is wrong with them."""
    with lab.capture("server", "eth0", "ip") as capture:
        lab.inject("client", datagram)
        capture.wait(1)
    assert len(capture.wrong_checksums()) == 1


def test_scapy_agrees_about_checksums(lab: Lab) -> None:
    """What scapy makes, IPv4 with options, odd lengths and IPv6 included, is taken as valid."""
    made = [
        IP(src=CLIENT, dst=SERVER) / UDP(sport=1, dport=2) / b"odd",
        IP(src=CLIENT, dst=SERVER, options=b"\x01\x01\x01\x00") / ICMP() / b"even",
        IPv6(src=CLIENT6, dst=SERVER6) / ICMPv6EchoRequest(data=b"six"),
    ]
    with lab.capture("server", "eth0", "icmp6 or ip") as capture:
        lab.inject("client", *made)
        capture.wait(3)
    assert capture.wrong_checksums() == []


def test_a_phantom_answers_only_by_the_test() -> None:
    """The firewall forwards to an address that no kernel owns, and no kernel answers for it."""
    with Lab(server_phantoms=[PHANTOM]) as lab, lab.capture("server", "eth0", "ip") as capture:
        client = lab.udp("client", 4000)
        client.sendto(b"anyone?", (PHANTOM, 5000))
        capture.wait(1)
        lab.inject("server", IP(src=PHANTOM, dst=CLIENT) / UDP(sport=5000, dport=4000) / b"phantom")
        assert client.recv(100) == b"phantom"
    assert [frame.destination for frame in capture.received()] == [PHANTOM]


def test_a_small_link_makes_the_firewall_complain() -> None:
    """ICMP errors of the firewall's own kernel are not rate limited."""
    with Lab(mtu=(1500, 1280)) as lab, lab.capture("client", "eth0", "icmp[icmptype] == icmp-unreach") as capture:
        for _ in range(20):
            lab.inject("client", IP(src=CLIENT, dst=SERVER, flags="DF") / UDP(sport=1, dport=2) / bytes(1400))
        assert {frame.source for frame in capture.wait(20)} == {IN0}


def test_servers_are_ready_when_serve_returns(lab: Lab) -> None:
    """No retry is needed after `serve()`."""
    lab.serve("server", [sys.executable, "-m", "http.server", "8000"], 8000)
    lab.connect("client", (SERVER, 8000)).close()
    with pytest.raises(LabError, match="exit 1"):
        lab.serve("server", ["false"], 9)


def test_nothing_is_left() -> None:
    """Namespaces, processes and directories are gone after an error too."""
    lab = Lab()

    def fail() -> None:
        with lab:
            lab.popen("client", ["sleep", "60"])
            assert lab.names["client"] in namespaces()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not any(Path("/proc", str(pid)).exists() for pid in lab.started())
    assert not lab.directory.exists()
    assert not any(name in namespaces() for name in lab.names.values())


def test_a_killed_lab_is_swept_by_the_next() -> None:
    """The namespaces of a dead process, and what still runs in them, do not outlive the next lab."""
    killed = subprocess.Popen([sys.executable, "-c", KILLED_LAB])
    killed.wait(20)
    assert f"dplab{killed.pid}x0-client" in namespaces()
    with Lab():
        assert f"dplab{killed.pid}x" not in namespaces()
        assert not list(Path(tempfile.gettempdir()).glob(f"dplab{killed.pid}x*"))


def test_two_labs_do_not_meet() -> None:
    """The same addresses twice, side by side."""
    with Lab() as one, Lab() as two, one.capture("server") as here, two.capture("server", "eth0", "udp") as there:
        assert_exchange(one, SERVER, "0.0.0.0")
        here.wait(2)
    assert there.frames() == []


@pytest.mark.parametrize(
    "leaving",
    [
        "iptables -t mangle -A PREROUTING -j ACCEPT",
        "nft add table inet left",
        "tc qdisc add dev in0 clsact",
        "echo 2 > /proc/sys/net/ipv4/conf/in0/rp_filter",
        "sleep 60 &",
    ],
)
def test_what_a_daemon_leaves_is_found(lab: Lab, leaving: str) -> None:
    """The footprint of the firewall namespace shows rules, qdiscs, settings and processes."""
    firewall = Firewall(lab, {})
    firewall._footprint = firewall.footprint()  # as start() does before the daemon runs
    firewall.assert_nothing_left()
    lab.run("firewall", ["sh", "-c", f"({leaving}) >/dev/null 2>&1"], check=True)
    with pytest.raises(LabError, match="left behind"):
        firewall.assert_nothing_left()


def test_a_capture_that_overflows_says_so(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture with holes is no evidence."""
    monkeypatch.setattr("tests.lab.capture.BUFFER", 4096)
    with lab.inside("server"):
        capture = Capture("eth0")
    lab.inject("client", *[IP(src=CLIENT, dst=SERVER) / UDP() / bytes(1000)] * 100)
    with pytest.raises(LabError, match="lost"):
        poll(lambda: capture.frames() and False, 3, "an overflow")
    with pytest.raises(LabError, match="in vain"):
        poll(lambda: False, 0.05, "what never comes")
