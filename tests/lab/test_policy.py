"""Security rules, host-inbound and the firewall's own traffic, as the two ends and the firewall's sockets see them.

Every rule of the configuration is about a port of its own (the numbers below), so that a test tells which rule decided
by the port that it uses; SERVER listens on all of them.
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6

from tests.lab.console import (
    CONTROL_PORT,
    IN_ORDER,
    Control,
    ask,
    attempt,
    counters,
    outcome,
    port,
    record,
    rule,
    session_of,
    sessions,
    zones,
)
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, IN0, IN06, OUT0, SERVER, SERVER6, Lab, poll

TCP_KIND, UDP_KIND = socket.SOCK_STREAM, socket.SOCK_DGRAM
DENIALS = ("deny", "drop", "reset-client", "reset-server", "reset-both")
QUIET_PORTS = {action: 2000 + n for n, action in enumerate(("allow", *DENIALS))}
ANSWERING_PORTS = {action: 2010 + n for n, action in enumerate(DENIALS)}
FIRST, NOT_FROM, NOT_TO, GROUPED, DISABLED, DEFAULTED = 2100, 2101, 2102, 2103, 2104, 2105
RADIO, RADIO_ELSEWHERE, SOLD = 2200, 2201, 2202
SSH, HIDDEN = 22, 2222  # of the firewall
ANOTHER_CLIENT, THIRD_CLIENT, NEIGHBOUR = "10.1.0.3", "10.1.0.4", "10.1.0.200"
ANOTHER_SERVER = "10.2.0.3"


def by_action(ports: dict[str, int], unreachable: bool) -> list[dict[str, Any]]:
    """A rule per action, named by it."""
    suffix = "-unreachable" if unreachable else ""
    return [
        rule(f"{action}{suffix}", action, service=[f"t{number}", f"u{number}"], icmp_unreachable=unreachable)
        for action, number in ports.items()
    ]


def services(*numbers: int) -> dict[str, Any]:
    """tN and uN for each number."""
    return {f"{kind[0]}{number}": port(number, kind) for number in numbers for kind in ("tcp", "udp")}


CONFIG: dict[str, Any] = {
    "zones": zones(),
    "addresses": {"another-client": ANOTHER_CLIENT, "third-client": THIRD_CLIENT, "another-server": ANOTHER_SERVER},
    "address-groups": {"some": ["another-client"], "clients": ["some", "third-client"]},
    "services": services(
        CONTROL_PORT, *QUIET_PORTS.values(), *ANSWERING_PORTS.values(), FIRST, NOT_FROM, NOT_TO, GROUPED, DISABLED
    ),
    "service-groups": {"inner": [f"t{GROUPED}"], "outer": ["inner", f"u{GROUPED}"]},
    "applications": {
        "radio": {"default-ports": [f"udp/{RADIO}"]},
        "sold": {"default-ports": [f"udp/{SOLD}"]},
    },
    "security-rules": [
        rule("control", service=[f"u{CONTROL_PORT}"], log_end=False),
        *by_action(QUIET_PORTS, unreachable=False),
        *by_action(ANSWERING_PORTS, unreachable=True),
        rule("first", service=[f"u{FIRST}"]),
        rule("second", "deny", service=[f"u{FIRST}"]),
        rule("not-from", service=[f"u{NOT_FROM}"], source=["clients"], negate_source=True),
        rule("not-to", service=[f"u{NOT_TO}"], destination=["another-server"], negate_destination=True),
        rule("grouped", service=["outer"], source=["clients"]),
        rule("disabled", service=[f"u{DISABLED}"], disabled=True),
        rule("radio-only-at-home", application=["radio"], service=["application-default"]),
        rule("sold-anywhere", application=["sold"]),
        rule("ping", application=["ping"], from_=["trust"], to=["untrust"]),
        rule("interzone-default", "deny", log_end=True),
    ],
    "host-inbound": {"trust": ["ping", "ssh", "dns", "dhcp"], "untrust": ["ping"]},
    "settings": IN_ORDER,
}


@dataclass
class Net:
    """A lab with the firewall in it."""

    lab: Lab
    firewall: Firewall
    control: Control

    def udp(self, number: int, server: str = SERVER, client: str = CLIENT) -> tuple[bool, socket.socket]:
        """Whether a datagram from the client to that port arrives, and the socket that sent it."""
        receiver = self.lab.udp("server", number, "::" if ":" in server else "0.0.0.0")
        sender = self.lab.udp("client", 0, client)
        with receiver:
            sender.connect((server, number))
            sender.send(b"question")
            self.control()
            receiver.setblocking(False)
            try:
                return receiver.recv(100) == b"question", sender
            except BlockingIOError:
                return False, sender


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with Lab(
        client_addresses=[ANOTHER_CLIENT, THIRD_CLIENT],
        client_phantoms=[NEIGHBOUR],
        server_addresses=[ANOTHER_SERVER],
    ) as lab:
        for number in (*QUIET_PORTS.values(), *ANSWERING_PORTS.values()):
            lab.listener("server", number, "::")  # IPv4 too
        with lab.firewall(CONFIG) as firewall:
            yield Net(lab, firewall, Control(lab))


# ---- actions ----


@pytest.mark.parametrize("server", [SERVER, SERVER6])
@pytest.mark.parametrize(
    ("action", "tcp"),
    [
        ("allow", "connected"),
        ("deny", "silence"),
        ("drop", "silence"),
        ("reset-client", "ECONNREFUSED"),
        ("reset-server", "silence"),
        ("reset-both", "ECONNREFUSED"),
    ],
)
def test_what_a_client_meets(net: Net, action: str, tcp: str, server: str) -> None:
    """A connection is made, refused at once, or never answered; a datagram is never answered."""
    number = QUIET_PORTS[action]
    udp = "ECONNREFUSED" if action == "allow" else "silence"  # nobody listens there: the server's own kernel says so
    with net.control.around(net.firewall), net.lab.capture("server", "eth0", f"port {number}") as at_server:
        stream, datagram = (attempt(net.lab, (server, number), kind) for kind in (TCP_KIND, UDP_KIND))
        net.control()
        with stream, datagram:
            assert (outcome(stream), outcome(datagram)) == (tcp, udp)
            assert {session["rule"] for session in sessions(net.firewall, destination_port=number)} == {action}
    assert bool(at_server.frames()) == (action == "allow")


@pytest.mark.parametrize(("server", "error"), [(SERVER, "EHOSTUNREACH"), (SERVER6, "EACCES")])
@pytest.mark.parametrize(
    ("action", "tcp"),
    [
        ("deny", None),
        ("drop", None),
        ("reset-client", "ECONNREFUSED"),
        ("reset-server", "silence"),
        ("reset-both", "ECONNREFUSED"),
    ],
)
def test_what_a_client_meets_with_icmp_unreachable(
    net: Net, action: str, tcp: str | None, server: str, error: str
) -> None:
    """An error that names the reason, once per session; a TCP reset is never accompanied by one (PAN-OS)."""
    number = ANSWERING_PORTS[action]
    with net.control.around(net.firewall), net.lab.capture("client", "eth0", "icmp or icmp6") as at_client:
        stream, datagram = (attempt(net.lab, (server, number), kind) for kind in (TCP_KIND, UDP_KIND))
        net.control()
        with stream, datagram:
            assert outcome(stream) == (tcp or error)
            assert outcome(datagram) == error
    assert at_client.wrong_checksums() == []


def test_the_unreachable_comes_from_the_firewall_and_quotes_the_packet(net: Net) -> None:
    """Administratively prohibited: type 3 code 13, type 1 code 1; repeats are not answered."""
    number = ANSWERING_PORTS["drop"]
    with net.lab.capture("client", "eth0", "icmp or icmp6") as at_client:
        for server in (SERVER, SERVER6):
            with attempt(net.lab, (server, number), UDP_KIND) as sock:
                net.control()
                assert outcome(sock) in ("EHOSTUNREACH", "EACCES")
                sock.send(b"again")
                net.control()
    four, six = at_client.packets()
    assert (four[IP].src, four[ICMP].type, four[ICMP].code) == (IN0, 3, 13)
    assert (four["UDP in ICMP"].dport, four["IP in ICMP"].dst) == (number, SERVER)
    assert (six[IPv6].src, six[ICMPv6DestUnreach].code) == (IN06, 1)
    assert six["UDP in ICMP"].dport == number


def test_a_reset_ends_the_attempt_and_comes_in_the_servers_name(net: Net) -> None:
    """One RST, acknowledging the SYN; a second SYN of the refused flow dies in the DISCARD session."""
    number = QUIET_PORTS["reset-both"]
    expression = f"tcp src port {number}"
    syn = IP(src=CLIENT, dst=SERVER) / TCP(sport=40001, dport=number, flags="S", seq=7000)
    with net.control.around(net.firewall), net.lab.capture("client", "eth0", expression) as at_client:
        before = counters(net.firewall)
        net.lab.inject("client", syn)
        net.control()
        net.lab.inject("client", syn)
        net.control()
    after = counters(net.firewall)
    (reset,) = at_client.packets()
    assert (reset[IP].src, reset[TCP].flags, reset[TCP].ack) == (SERVER, "RA", 7001)
    grown = {name: after[name] - before[name] for name in ("flow_policy_deny", "flow_action_reset", "flow_discard_hit")}
    assert grown == {"flow_policy_deny": 1, "flow_action_reset": 1, "flow_discard_hit": 1}


@pytest.mark.parametrize("action", ["deny", "drop"])
def test_a_denied_session_names_its_rule(net: Net, action: str) -> None:
    """A DISCARD session with the rule, the discard timer and the packet that was refused."""
    with attempt(net.lab, (SERVER, QUIET_PORTS[action]), UDP_KIND) as sock:
        net.control()
        session = session_of(net.firewall, sock)
    assert (session["state"], session["rule"], session["timeout"]) == ("DISCARD", action, 60)
    assert (session["c2s"]["state"], session["s2c"]["state"], session["flags"]) == ("DISCARD", "DISCARD", "")
    assert (session["packets_c2s"], session["bytes_c2s"], session["packets_s2c"]) == (1, 20 + 8 + len("question"), 0)


# ---- which rule ----


def test_the_first_match_decides(net: Net) -> None:
    """A rule below is never asked."""
    passed, sock = net.udp(FIRST)
    assert passed
    assert session_of(net.firewall, sock)["rule"] == "first"


@pytest.mark.parametrize(
    ("number", "client", "server", "passes"),
    [
        (NOT_FROM, CLIENT, SERVER, True),
        (NOT_FROM, ANOTHER_CLIENT, SERVER, False),
        (NOT_FROM, THIRD_CLIENT, SERVER, False),
        (NOT_TO, CLIENT, SERVER, True),
        (NOT_TO, CLIENT, ANOTHER_SERVER, False),
        (GROUPED, ANOTHER_CLIENT, SERVER, True),
        (GROUPED, THIRD_CLIENT, SERVER, True),
        (GROUPED, CLIENT, SERVER, False),
        (DISABLED, CLIENT, SERVER, False),
        (DEFAULTED, CLIENT, SERVER, False),
        (RADIO, CLIENT, SERVER, True),
        (RADIO_ELSEWHERE, CLIENT, SERVER, False),
        (SOLD, CLIENT, SERVER, True),
    ],
)
def test_what_a_rule_matches(net: Net, number: int, client: str, server: str, passes: bool) -> None:
    """Negation, nested groups, a disabled rule, none, applications and their default ports."""
    with net.control.around(net.firewall):
        passed, sock = net.udp(number, server, client)
    session = session_of(net.firewall, sock)
    assert (passed, session["state"]) == (passes, "ACTIVE" if passes else "DISCARD")
    assert (session["rule"] == "interzone-default") == (not passes)


def test_the_application_follows_from_the_port(net: Net) -> None:
    """A configured one, a built-in one, an unknown one, ping."""
    names = []
    for number in (RADIO, 53, FIRST):
        _, sock = net.udp(number)
        names.append(session_of(net.firewall, sock)["application"])
    assert net.lab.run("client", ["ping", "-n", "-c", "1", "-W", "3", SERVER]).returncode == 0
    (ping,) = sessions(net.firewall, protocol=1, destination=SERVER)
    assert [*names, ping["application"]] == ["radio", "dns", "unknown-udp", "ping"]
    assert (ping["rule"], ping["c2s"]["dport"], ping["c2s"]["sport"] != 0) == ("ping", 0, True)


def test_an_overridden_default_logs(net: Net) -> None:
    """A rule of the default's name, given last: what nothing else matches is denied by it and logged."""
    _, sock = net.udp(DEFAULTED)
    made = record(net.firewall, sport=sock.getsockname()[1], dport=DEFAULTED)
    assert (made["event"], made["rule"], made["action"]) == ("deny", "interzone-default", "deny")


def test_inside_a_zone_traffic_is_allowed_and_not_logged(net: Net) -> None:
    """From one neighbour on in0 to another, by way of the firewall."""
    datagram = IP(src=CLIENT, dst=NEIGHBOUR) / UDP(sport=40002, dport=40003) / b"neighbour"
    with net.lab.capture("client", "eth0", "udp port 40003") as at_client:
        net.lab.inject("client", datagram)
        poll(at_client.received, 3, "the datagram to come back to its segment")
    (session,) = sessions(net.firewall, source_port=40002)
    assert (session["rule"], session["c2s"]["source_zone"], session["s2c"]["source_zone"]) == (
        "intrazone-default",
        "trust",
        "trust",
    )
    assert (session["ingress_interface"], session["egress_interface"]) == ("in0", "in0")
    assert not session["logged_at_end"]


def test_outside_may_not_come_in(net: Net) -> None:
    """The same rules in the other direction: nobody allows untrust to trust but for the ports that any zone may use."""
    client, server = net.lab.udp("client", 40004), net.lab.udp("server")
    with net.control.around(net.firewall):
        server.sendto(b"unasked", (CLIENT, 40004))
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(100)
    (session,) = sessions(net.firewall, destination_port=40004)
    assert (session["state"], session["c2s"]["source_zone"]) == ("DISCARD", "untrust")


def test_hits_are_counted_by_rule(net: Net) -> None:
    """One per new session or denied first packet, however many packets follow."""

    def hits() -> dict[str, int]:
        return {row["rule"]: row["hit_count"] for row in ask(net.firewall, "show rule-hit-count")}

    before = hits()
    net.udp(FIRST)
    _, denied = net.udp(QUIET_PORTS["drop"])
    for _ in range(3):
        denied.send(b"more")
    net.control()
    after = hits()
    assert {name: after[name] - before[name] for name in ("first", "drop", "second")} == {
        "first": 1,
        "drop": 1,
        "second": 0,
    }


# ---- to the firewall ----


@pytest.mark.parametrize("to", [IN0, OUT0, IN06])
def test_a_service_of_the_firewall(net: Net, to: str) -> None:
    """host-inbound allows ssh from trust, on every address that the firewall has."""
    any_address = "::" if ":" in to else "0.0.0.0"
    with net.lab.listener("firewall", SSH, any_address) as listening, net.lab.connect("client", (to, SSH)) as client:
        accepted, _ = listening.accept()
        with accepted:
            accepted.sendall(b"SSH-2.0-test\r\n")
            assert client.recv(100) == b"SSH-2.0-test\r\n"
            session = session_of(net.firewall, client, state="active")
    assert (session["rule"], session["application"]) == ("host-inbound", "ssh")
    assert (session["terminated_on_host"], session["s2c"]["source_zone"]) == (True, "host")
    assert (session["ingress_interface"], session["egress_interface"]) == ("in0", "")
    assert session["packets_s2c"] >= 2


@pytest.mark.parametrize(("ns", "number"), [("client", HIDDEN), ("server", SSH), ("server", HIDDEN)])
def test_other_services_of_the_firewall_are_hidden(net: Net, ns: str, number: int) -> None:
    """Dropped without an answer and counted, although somebody listens there."""
    to = IN0 if ns == "client" else OUT0
    with net.lab.listener("firewall", number) as listening, net.control.around(net.firewall):
        before = counters(net.firewall)["flow_host_service_deny"]
        with attempt(net.lab, (to, number), TCP_KIND, ns) as sock:
            net.control()
            assert outcome(sock) == "silence"
            session = session_of(net.firewall, sock, destination_port=number)
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert (session["state"], session["rule"], session["terminated_on_host"]) == ("DISCARD", "host-inbound", True)
    assert counters(net.firewall)["flow_host_service_deny"] == before + 1


@pytest.mark.parametrize(("ns", "to"), [("client", IN0), ("client", IN06), ("server", OUT0), ("client", OUT0)])
def test_the_firewall_answers_pings(net: Net, ns: str, to: str) -> None:
    """As host-inbound of each zone says."""
    assert net.lab.run(ns, ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "3", to]).returncode == 0


@pytest.mark.parametrize("to", [IN0, IN06])
@pytest.mark.parametrize(("kind", "number"), [(TCP_KIND, SSH), (UDP_KIND, 53)])
def test_a_service_that_nobody_serves(net: Net, kind: socket.SocketKind, number: int, to: str) -> None:
    """host-inbound lets the packet in, and the firewall's kernel refuses it: its RST and its ICMP error arrive."""
    with attempt(net.lab, (to, number), kind) as sock:
        net.control()
        poll(lambda: outcome(sock) == "ECONNREFUSED", 3, "the refusal")
        assert session_of(net.firewall, sock, destination_port=number)["state"] == "ACTIVE"


def test_dhcp_is_broadcast_both_ways(net: Net) -> None:
    """From a client without an address to everybody, and back."""
    discover = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / b"discover"
    with net.lab.udp("firewall", 67) as server, net.lab.capture("client", "eth0", "udp src port 67") as at_client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"in0")
        net.lab.inject("client", discover)
        assert server.recv(100) == b"discover"
        server.sendto(b"offer", ("255.255.255.255", 68))
        (offer,) = at_client.wait(1)
    assert (offer.source, offer.destination) == (IN0, "255.255.255.255")


def test_link_local_pings(net: Net) -> None:
    """Addresses of the link itself, one's own and all routers', belong to the zone of the interface."""
    listing = net.lab.run("firewall", ["ip", "-6", "-o", "address", "show", "dev", "in0", "scope", "link"]).stdout
    (own,) = [word.split("/")[0] for word in listing.split() if word.startswith("fe80:")]
    for target in (own, "ff02::2"):
        done = net.lab.run("client", ["ping", "-n", "-c", "1", "-W", "3", f"{target}%eth0"])
        assert done.returncode == 0, done.stdout
        assert own in done.stdout


# ---- from the firewall ----


@pytest.mark.parametrize("server", [SERVER, SERVER6])
def test_the_firewalls_own_connections(net: Net, server: str) -> None:
    """TCP and UDP from the firewall work without a rule and are sessions; answers come back."""
    any_address = "::" if ":" in server else "0.0.0.0"
    with net.lab.listener("server", 2300, any_address) as listening, net.lab.connect("firewall", (server, 2300)) as own:
        accepted, _ = listening.accept()
        with accepted:
            accepted.sendall(b"answer")
            assert own.recv(100) == b"answer"
            assert_own(session_of(net.firewall, own), 6)
    answering, asking = net.lab.udp("server", 2301, any_address), net.lab.udp("firewall", 0, any_address)
    with answering, asking:
        asking.connect((server, 2301))
        asking.send(b"question")
        received, peer = answering.recvfrom(100)
        answering.sendto(b"answer", peer)
        assert (received, asking.recv(100)) == (b"question", b"answer")
        assert_own(session_of(net.firewall, asking), 17)


def assert_own(session: dict[str, Any], protocol: int) -> None:
    """A session that the firewall opened towards untrust and that was answered."""
    assert (session["state"], session["rule"], session["c2s"]["proto"]) == ("ACTIVE", None, protocol)
    assert (session["terminated_on_host"], session["c2s"]["source_zone"]) == (True, "host")
    assert (session["s2c"]["source_zone"], session["egress_interface"]) == ("untrust", "out0")
    assert session["packets_c2s"] >= 1
    assert session["packets_s2c"] >= 1


@pytest.mark.parametrize(("server", "protocol"), [(SERVER, 1), (SERVER6, 58)])
def test_the_firewalls_own_pings(net: Net, server: str, protocol: int) -> None:
    """Echo replies find the session."""
    assert net.lab.run("firewall", ["ping", "-n", "-c", "1", "-W", "3", server]).returncode == 0
    (session,) = [one for one in sessions(net.firewall, protocol=protocol, destination=server) if one["rule"] is None]
    assert_own(session, protocol)
    assert session["application"] == "ping"


def test_an_unasked_answer_to_the_firewall_is_dropped(net: Net) -> None:
    """The reply must be one: of the same addresses, ports and protocol as what the firewall sent."""
    asking = net.lab.udp("firewall", 2302)
    stranger = net.lab.udp("server", 2303)
    with asking, stranger, net.control.around(net.firewall):
        asking.sendto(b"question", (SERVER, 2304))
        stranger.sendto(b"answer", (OUT0, 2302))
        net.control()
        asking.setblocking(False)
        with pytest.raises(BlockingIOError):
            asking.recv(100)
