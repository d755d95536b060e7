"""New sessions of a class that is decided: none of their packets reaches Python, and everything else is as ever.

    client 10.1.0.2 --- in0 trust [ firewall ] untrust out0 --- server 10.2.0.2, 10.2.0.50

Everything that goes out is translated to out0's address; DENIED is not allowed, and logged. There is one hot queue, so
a control that has come through says that what C alone decides of what was sent before it is decided.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count, pairwise
from typing import Any

import pytest

from tests.lab.calls import connect_again
from tests.lab.console import Control, ask, attempt, counters, port, record, rule, sessions, zones
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, OUT0, SERVER, Lab, poll

ALONE = "10.2.0.50"  # an address of the server's with a route of its own, sometimes
OPEN, DENIED = 9000, 9001
MANY = 40
PORTS = count(20000)  # of the client: no flow goes on where another one ended


def config(**settings: Any) -> dict[str, Any]:
    snat = {"type": "dynamic-ip-and-port", "interface": "out0"}
    return {
        "zones": zones(),
        "services": {"denied": port(DENIED, "udp")},
        "security-rules": [
            rule("no", "deny", service=["denied"]),
            rule("out", from_=["trust"], to=["untrust"], log_start=True),
        ],
        "nat-rules": [{"name": "snat", "from": ["trust"], "to": "untrust", "source-translation": snat}],
        "settings": {"queue": {"workers": 1}, "session": {"timeouts": {"udp": 2, "discard-udp": 2}}, **settings},
    }


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(server_addresses=[ALONE]) as made:
        yield made


@pytest.fixture(scope="module")
def control(lab: Lab) -> Control:
    return Control(lab)


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(config()) as running:
        yield running


@pytest.fixture(scope="module")
def server(lab: Lab) -> socket.socket:
    return lab.udp("server", OPEN)


def ask_from_many(lab: Lab, server: socket.socket, n: int = MANY) -> list[tuple[int, tuple[str, int]]]:
    """A question from each of so many ports, answered: (port, whom the server saw)."""
    seen = []
    with ExitStack() as stack:
        for number in range(n):
            client = stack.enter_context(lab.udp("client", next(PORTS)))
            client.sendto(b"%d" % number, (SERVER, OPEN))
            data, peer = server.recvfrom(100)
            server.sendto(data, peer)
            assert client.recv(100) == data == b"%d" % number
            seen.append((client.getsockname()[1], peer))
    return seen


def grown(firewall: Firewall, before: dict[str, int], name: str) -> int:
    return counters(firewall).get(name, 0) - before.get(name, 0)


def hits(firewall: Firewall, name: str) -> int:
    return next(int(row["hit_count"]) for row in ask(firewall, "show rule-hit-count") if row["rule"] == name)


def test_the_first_session_of_a_class_is_decided_and_the_others_are_begun(lab, firewall, server):
    """Not one of their packets is handed to the slow path, and every one is translated to a port of its own."""
    ask_from_many(lab, server, 1)
    before = counters(firewall)
    seen = ask_from_many(lab, server)
    assert grown(firewall, before, "pkt_punt") == 0
    assert grown(firewall, before, "session_cached") == MANY
    assert {address for _, (address, _) in seen} == {OUT0}
    ports = [outside for _, (_, outside) in seen]
    assert len({*ports}) == MANY
    steps = {abs(one - next_) for one, next_ in pairwise(ports)}
    assert len(steps) > MANY / 2, f"predictable: {ports}"


def test_starts_ends_and_hits_are_told_as_ever(lab, firewall, server):
    """The log names who has begun a session; the rule's hits count every one."""
    ask_from_many(lab, server, 1)
    before = hits(firewall, "out")
    seen = ask_from_many(lab, server)
    poll(lambda: hits(firewall, "out") == before + MANY, 2, "the hits of the rule")
    for inside, (_, outside) in seen:
        start = record(firewall, event="start", sport=inside, nat_sport=outside)
        assert (start["via"], start["rule"], start["nat_rule"], start["action"]) == ("cache", "out", "snat", "allow")
        assert (start["packets_sent"], start["session_end_reason"]) == (0, None)
        end = record(firewall, 6, event="end", sport=inside, nat_sport=outside)
        assert (end["via"], end["session_id"]) == ("cache", start["session_id"])
        assert (end["packets_sent"], end["packets_received"]) == (1, 1)
    log = [row["event"] for row in firewall.traffic_log(sport=seen[-1][0], nat_sport=seen[-1][1][1])]
    assert log == ["start", "end"]


def test_a_connection_is_followed_from_its_first_segment(lab, firewall):
    """Handshake, data and both FINs of a session that C has begun."""
    with lab.listener("server", OPEN) as listening:
        for number in range(2):
            before = counters(firewall)
            with lab.connect("client", (SERVER, OPEN)) as client, listening.accept()[0] as accepted:
                client.sendall(b"x")
                assert accepted.recv(1) == b"x"
                inside = client.getsockname()[1]
                (session,) = sessions(firewall, source_port=inside, destination_port=OPEN)
                assert (session["state"], session["timeout"]) == ("ACTIVE", 3600)
            if number:
                assert grown(firewall, before, "pkt_punt") == 0
                assert record(firewall, event="start", sport=inside, proto=6)["via"] == "cache"


def test_the_same_port_again_is_another_session(lab, firewall):
    """Of a connection that has just ended: C ends the old session and begins the new one."""
    before, inside = counters(firewall), next(PORTS)
    with lab.listener("server", OPEN) as listening:
        for _ in range(5):
            with connect_again(lab, (CLIENT, inside), (SERVER, OPEN)) as client, listening.accept()[0] as accepted:
                accepted.close()  # the server first: it is the one that remembers
                assert client.recv(1) == b""
    assert grown(firewall, before, "tcp_session_reused") == 4
    assert grown(firewall, before, "pkt_punt") <= 1  # the first of its class, if it is that
    ended = poll(lambda: reused(firewall, inside), 6, "four ends")
    assert {row["session_end_reason"] for row in ended} == {"tcp-fin"}


def reused(firewall: Firewall, inside: int) -> list[dict[str, Any]]:
    rows = firewall.traffic_log(event="end", sport=inside, proto=6)
    return rows if len(rows) >= 4 else []


def test_what_is_denied_is_denied_without_python(lab, firewall, control):
    """A DISCARD session, a record and a hit for each."""
    with attempt(lab, (SERVER, DENIED), socket.SOCK_DGRAM) as taught, control.around(firewall):
        record(firewall, event="deny", sport=taught.getsockname()[1])
    before, denied = counters(firewall), hits(firewall, "no")
    with ExitStack() as stack:
        flows = [stack.enter_context(attempt(lab, (SERVER, DENIED), socket.SOCK_DGRAM)) for _ in range(5)]
        ports = [flow.getsockname()[1] for flow in flows]
        control()
    assert grown(firewall, before, "flow_policy_deny") == 5
    assert grown(firewall, before, "pkt_punt") == 0
    for inside in ports:
        found = record(firewall, event="deny", sport=inside)
        assert (found["rule"], found["via"], found["session_end_reason"]) == ("no", "cache", "policy-deny")
    assert {row["state"] for row in sessions(firewall, destination_port=DENIED)} == {"DISCARD"}
    poll(lambda: hits(firewall, "no") == denied + 5, 2, "the hits of the rule")


def test_a_changed_route_is_asked_about_anew(lab, firewall, server):
    """What was decided by the old one is not repeated."""

    server.settimeout(0.2)

    def goes_out() -> bool:
        with attempt(lab, (ALONE, OPEN), socket.SOCK_DGRAM):
            try:
                return bool(server.recv(100) == b"question")
            except TimeoutError:
                return False

    assert goes_out()
    before = counters(firewall)
    assert goes_out()
    assert grown(firewall, before, "session_cached") == 1
    lab.run("firewall", ["ip", "route", "add", "unreachable", f"{ALONE}/32"], check=True)
    poll(lambda: not goes_out(), 3, "the route to be followed")
    lab.run("firewall", ["ip", "route", "delete", "unreachable", f"{ALONE}/32"], check=True)
    poll(goes_out, 3, "the route to be followed back")
    assert grown(firewall, before, "flow_fwd_l3_noroute") > 0


def test_switched_off_every_session_is_decided():
    """Another daemon, with the setting."""
    with Lab() as lab, lab.firewall(config(**{"dispatch-cache": False})) as firewall:
        before = counters(firewall)
        seen = ask_from_many(lab, lab.udp("server", OPEN), 5)
        assert grown(firewall, before, "pkt_punt") == 5
        assert record(firewall, event="start", sport=seen[-1][0])["via"] == "slow"
