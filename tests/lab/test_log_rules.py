"""log-start and log-end hold on every way by which a session can begin: slow path, dispatch cache, an ALG's child."""

from typing import Any

import pytest

from tests.lab.console import CONTROL_PORT, Control, ask, port, rule, zones
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, SERVER, Lab, poll

OPEN, DENIED, TFTP = 8200, 8201, 69
MANY = 12
READ = b"\x00\x01file\x00octet\x00"
DATA = b"\x00\x03\x00\x01last"


def config(log_start: bool, log_end: bool) -> dict[str, Any]:
    """The control logs nothing, everything else as it is told."""
    logs: dict[str, Any] = {"log_start": log_start, "log_end": log_end}
    return {
        "zones": zones(),
        "services": {"open": port(OPEN, "udp"), "denied": port(DENIED, "udp"), "control": port(CONTROL_PORT, "udp")},
        "security-rules": [
            rule("control", service=["control"], log_end=False),
            rule("open", service=["open"], **logs),
            rule("denied", "deny", service=["denied"], **logs),
            rule("tftp", application=["tftp"], **logs),
        ],
        "settings": {"queue": {"workers": 1}, "session": {"timeouts": {"udp": 1, "discard-udp": 1}}},
    }


def flows(lab: Lab, firewall: Firewall, control: Control, number: int) -> None:
    """Datagrams of MANY flows, the first of which is decided in Python and the others, most likely, in C."""
    for n in range(MANY):
        with lab.udp("client") as sender:
            sender.sendto(b"question", (SERVER, number))
        if n == 0:
            poll(lambda: of_port(firewall, number), 3, "the first session")
            control()


def transfer(lab: Lab) -> None:
    """A file over TFTP: the data comes from a port of its own."""
    with lab.udp("server", TFTP) as server, lab.udp("server") as data, lab.udp("client") as client:
        client.sendto(READ, (SERVER, TFTP))
        assert server.recv(100) == READ
        data.sendto(DATA, (CLIENT, client.getsockname()[1]))
        assert client.recv(100) == DATA


def events(firewall: Firewall, name: str) -> list[tuple[str, str]]:
    """(event, via) of the records that name a rule."""
    return [(row["event"], row["via"]) for row in firewall.traffic_log(rule=name)]


@pytest.mark.parametrize("log_start", [False, True])
@pytest.mark.parametrize("log_end", [False, True])
def test_a_rule_logs_what_it_says_on_every_way(lab: Lab, log_start: bool, log_end: bool) -> None:
    """A denial is logged if either is on, once; a child is logged as its parent's rule says."""
    control = Control(lab)
    with lab.firewall(config(log_start, log_end)) as firewall, control.around(firewall):
        flows(lab, firewall, control, OPEN)
        flows(lab, firewall, control, DENIED)
        transfer(lab)
        control()
        poll(lambda: not any(of_port(firewall, number) for number in (OPEN, DENIED, TFTP)), 10, "all of them to end")
        sessions = {"start": log_start, "end": log_end}
        wanted = sorted(event for event, on in sessions.items() if on for _ in range(MANY))
        poll(lambda: len(events(firewall, "open")) >= len(wanted), 5, "the records")
        control()
    assert sorted(event for event, _ in events(firewall, "open")) == wanted
    assert not wanted or {via for _, via in events(firewall, "open")} == {"slow", "cache"}
    denials = events(firewall, "denied")
    assert [event for event, _ in denials] == ["deny"] * (MANY if log_start or log_end else 0)
    assert not denials or {via for _, via in denials} == {"slow", "cache"}
    transfers = sorted(event for event, _ in events(firewall, "tftp"))
    assert transfers == sorted(event for event, on in sessions.items() if on for _ in range(2))
    assert events(firewall, "control") == []


def of_port(firewall: Firewall, number: int) -> list[Any]:
    return ask(firewall, "show session all", filter={"destination-port": str(number)})
