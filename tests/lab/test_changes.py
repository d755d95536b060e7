"""The host changes under live sessions: each one goes on, or ends with a record; none is lost without a word.

What is here besides the changes of test_lifecycle.py: addresses that sessions are translated to, interfaces that are
made anew, and routes that go away.

    firewall                                server
    out0  10.2.0.1, fd00:2::1 (untrust) --- eth0
    late0 10.4.0.1/24         (untrust) --- late0 10.4.0.2/24           192.0.2.1 on lo
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import UDPerror

from tests.lab.console import counters, record, sessions
from tests.lab.firewall import Firewall
from tests.lab.lab import OUT0, OUT06, SERVER, SERVER6, Lab, poll
from tests.lab.witness import SHORT_TIMEOUTS, Controls, Established, config

INNER = "192.0.2.1"


@dataclass(frozen=True)
class Net:
    """One family's names for the same places."""

    family: str
    server: str
    outside: str
    prefix: int
    another: str  # what out0's address becomes
    any: str


V4 = Net("ipv4", SERVER, OUT0, 24, "10.2.0.77", "0.0.0.0")
V6 = Net("ipv6", SERVER6, OUT06, 64, "fd00:2::77", "::")
BOTH = (V4, V6)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The server asks for the firewall's addresses, as a server does: no permanent entry knows them."""
    with Lab() as made:
        for net in BOTH:
            made.run("server", ["ip", "neighbour", "delete", net.outside, "dev", "eth0"], check=True)
        made.run("server", ["ip", "address", "add", f"{INNER}/32", "dev", "lo"], check=True)
        yield made


@pytest.fixture(scope="module")
def controls(lab: Lab) -> Controls:
    return Controls(lab)


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    settings = config({**SHORT_TIMEOUTS, "udp": 30})
    settings["zones"][1]["interfaces"].append("late0")
    rule = settings["nat-rules"][0] | {"name": "lan-snat6", "nat-type": "ipv6", "source": ["fd00:1::/64"]}
    settings["nat-rules"].append(rule)
    with lab.firewall(settings) as running:
        yield running


@pytest.fixture(params=BOTH, ids=lambda net: net.family)
def net(request: pytest.FixtureRequest) -> Net:
    chosen: Net = request.param
    return chosen


def ip(lab: Lab, *words: str, ns: str = "firewall") -> None:
    lab.run(ns, ["ip", *words], check=True)


class Talk:
    """Datagrams and a connection between the client and an address of the server's."""

    def __init__(self, lab: Lab, net: Net) -> None:
        listening = lab.listener("server", 0, net.any)
        self._stream = lab.connect("client", (net.server, listening.getsockname()[1]))
        self._accepted, self.peer = listening.accept()
        self._accepted.settimeout(3)
        listening.close()
        self.datagrams, self._answers = lab.udp("client", 0, net.any), lab.udp("server", 0, net.any)
        self.datagrams.connect((net.server, self._answers.getsockname()[1]))
        self.exchange()

    def __enter__(self) -> "Talk":
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._stream, self._accepted, self.datagrams, self._answers):
            sock.close()

    @property
    def ports(self) -> tuple[int, int]:
        return int(self._stream.getsockname()[1]), int(self.datagrams.getsockname()[1])

    def exchange(self) -> None:
        """A round trip of each."""
        self._stream.sendall(b"?")
        assert self._accepted.recv(1) == b"?"
        self._accepted.sendall(b"!")
        assert self._stream.recv(1) == b"!"
        self.datagrams.send(b"?")
        asked, peer = self._answers.recvfrom(10)
        self._answers.sendto(asked, peer)
        assert self.datagrams.recv(10) == asked


# Addresses


@pytest.fixture
def change(lab: Lab, net: Net) -> Iterator[None]:
    """out0 has its own address again when the test is over."""
    yield
    lab.run("firewall", ["ip", "address", "delete", f"{net.another}/{net.prefix}", "dev", "out0"])
    give(lab, net, net.outside)
    lab.run("server", ["ip", "neighbour", "flush", "dev", "eth0"])


def give(lab: Lab, net: Net, address: str) -> None:
    flags = ["nodad"] if net is V6 else []
    ip(lab, "address", "replace", f"{address}/{net.prefix}", "dev", "out0", *flags)


def take_away(lab: Lab, net: Net, address: str) -> None:
    ip(lab, "address", "delete", f"{address}/{net.prefix}", "dev", "out0")


def test_an_address_that_is_exchanged(lab, firewall, controls, net, change):
    """Nobody answers for the old one any more: its sessions end and say so, and new ones have the new address."""
    before = counters(firewall)["session_addresschange"]
    with Talk(lab, net) as old:
        take_away(lab, net, net.outside)
        give(lab, net, net.another)
        for port in old.ports:
            assert record(firewall, sport=port, event="end")["session_end_reason"] == "unknown"
    assert counters(firewall)["session_addresschange"] >= before + 2
    with Talk(lab, net) as new:
        assert new.peer[0] == net.another


def test_an_address_that_comes_back(lab, firewall, controls, net, change):
    """Without another one in its place the sessions wait for it."""
    with Talk(lab, net) as talk:
        found = {port: sessions(firewall, source_port=port)[0]["id"] for port in talk.ports}
        take_away(lab, net, net.outside)
        give(lab, net, net.outside)
        talk.exchange()
        assert {port: sessions(firewall, source_port=port)[0]["id"] for port in talk.ports} == found


def test_an_address_beside_the_old_one(lab, firewall, controls, net, change):
    """A second address changes nothing for anybody."""
    with Talk(lab, net) as talk:
        give(lab, net, net.another)
        talk.exchange()
        with Talk(lab, net) as other:
            assert other.peer[0] == net.outside
        talk.exchange()


# Interfaces and routes


@pytest.fixture
def late(lab: Lab, firewall: Firewall) -> Iterator[None]:
    """late0, and INNER behind it."""
    add_link(lab)
    poll(lambda: reaches(lab), 5, "the new interface to be seen")
    yield
    for name in ("late0", "other0"):
        lab.run("firewall", ["ip", "link", "delete", name])


def add_link(lab: Lab) -> None:
    ip(lab, "link", "add", "late0", "type", "veth", "peer", "name", "late0", "netns", lab.names["server"])
    for ns, host in (("firewall", 1), ("server", 2)):
        ip(lab, "address", "add", f"10.4.0.{host}/24", "dev", "late0", ns=ns)
        ip(lab, "link", "set", "late0", "up", ns=ns)
    ip(lab, "route", "replace", INNER, "via", "10.4.0.2")


def reaches(lab: Lab) -> bool:
    return lab.run("client", ["ping", "-n", "-c", "1", "-W", "0.3", INNER]).returncode == 0


def stream_session(firewall: Firewall, established: Established) -> dict[str, Any]:
    (found,) = sessions(firewall, source_port=established.client.getsockname()[1], protocol=6)
    return found


def test_an_interface_that_is_made_anew(lab, firewall, controls, late):
    """Its sessions go on over the new one, under the same ids."""
    with controls.unharmed(firewall):
        established = Established(lab, INNER)
        before = stream_session(firewall, established)
        ip(lab, "link", "delete", "late0")
        add_link(lab)
        poll(lambda: reaches(lab), 5, "the new interface to be seen")
        established.exchange_stream()
        established.exchange_datagrams()
        after = stream_session(firewall, established)
        assert (after["id"], after["egress_interface"]) == (before["id"], "late0")
        established.close()


def test_an_interface_that_changes_its_name(lab, firewall, controls, late):
    """Under another name it is in no zone: its sessions end as if their route had left the zone, and say so."""
    with controls.unharmed(firewall):
        established = Established(lab, INNER)
        for old, new in (("late0", "other0"), ("other0", "late0")):
            ip(lab, "link", "set", old, "down")
            ip(lab, "link", "set", old, "name", new)
            ip(lab, "link", "set", new, "up")
            ip(lab, "route", "replace", INNER, "via", "10.4.0.2")
            if new == "other0":
                ended = record(firewall, sport=established.client.getsockname()[1], proto=6, event="end")
                assert ended["session_end_reason"] == "unknown"
                assert not reaches(lab)
        poll(lambda: reaches(lab), 5, "the zone to come back")
        established.close()


def test_a_route_that_goes_and_comes(lab, firewall, controls, late):
    """The sender is told that there is no way; with the way back its session goes on."""
    with controls.unharmed(firewall):
        established = Established(lab, INNER)
        before = stream_session(firewall, established)["id"]
        ip(lab, "route", "delete", INNER)
        ip(lab, "route", "add", "unreachable", INNER)
        with lab.capture("client", "eth0", "icmp[0] = 3") as capture:
            established.datagrams.send(b"anybody there?")
            (error,) = (frame.packet for frame in capture.wait(1))
        assert error[UDPerror].sport == established.datagrams.getsockname()[1]
        ip(lab, "route", "delete", INNER)
        ip(lab, "route", "add", INNER, "via", "10.4.0.2")
        established.exchange_stream()
        established.exchange_datagrams()
        assert stream_session(firewall, established)["id"] == before
        established.close()


def test_a_link_that_fails_before_another(lab, firewall, controls, late):
    """Two ways into one zone: when the better one loses its link its sessions take the other."""
    with controls.unharmed(firewall):
        ip(lab, "route", "add", INNER, "via", SERVER, "metric", "100")
        established = Established(lab, INNER)
        assert stream_session(firewall, established)["egress_interface"] == "late0"
        ip(lab, "link", "set", "late0", "down")
        poll(lambda: stream_session(firewall, established)["egress_interface"] == "out0", 3, "the session to follow")
        established.exchange()
        established.close()
        ip(lab, "route", "flush", INNER)
