"""Who writes what an ALG reads may not open more than the protocol allows: nothing for others, nothing that stays.

The client (10.1.0.2 as itself, 10.1.0.3 behind 10.2.0.130) and the server of a control connection are the test's. The
policy allows only control connections; whatever else comes is refused, although somebody listens there. That nothing
was opened is proved by calling from the far side, and the same call of what was rightly announced shows that it could
be.

      client side                          server side
        10.1.0.2, 10.1.0.3   clients         10.2.0.2   server, ports 21 and 5060
        10.1.0.9             a third host    10.2.0.9   a stranger
"""

import random
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP

from dataplane.predict import PER_PARENT
from tests.lab import console, witness
from tests.lab.calls import Address, connect, pool_row
from tests.lab.console import IN_ORDER, Control, counters, outcome, port, rule, sessions, zones
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, SERVER, Lab, poll
from tests.lab.servers import Channel, six
from tests.lab.witness import receive

HIDDEN, THIRD, STRANGER, POOL = "10.1.0.3", "10.1.0.9", "10.2.0.9", "10.2.0.130"
FTP, SIP = 21, 5060
SEEN = {CLIENT: CLIENT, HIDDEN: POOL}
ANNOUNCED = 5000  # a port where a client listens
FLOOD, BURST = 1000, 10  # commands, and of them in one segment
TIME_WAIT = 1  # seconds
CLIENTS = pytest.mark.parametrize("source", SEEN, ids=["plain", "snat"])

OUT: dict[str, Any] = {"from_": ["trust"], "to": ["untrust"]}
CONFIG: dict[str, Any] = {
    "zones": [zones()[0] | {"anti-spoof": False}, zones()[1]],
    "services": {"ping-pong": port(console.CONTROL_PORT, "udp"), "byte": port(witness.CONTROL_PORT)},
    "security-rules": [
        rule("out", application=["ftp", "sip", "ping"], **OUT),
        rule("controls", service=["ping-pong", "byte"], **OUT),
        rule("rest", "drop"),
    ],
    "nat-rules": [
        {
            "name": "pool",
            "from": ["trust"],
            "to": "untrust",
            "source": [HIDDEN],
            "source-translation": {"type": "dynamic-ip-and-port", "addresses": [POOL]},
        }
    ],
    "settings": {"session": {"timeouts": {"tcp-time-wait": TIME_WAIT}}, **IN_ORDER},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(client_addresses=[HIDDEN, THIRD], server_addresses=[STRANGER]) as made:
        yield made


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def controls(lab: Lab) -> witness.Controls:
    return witness.Controls(lab)


@pytest.fixture(scope="module")
def control(lab: Lab) -> Control:
    return Control(lab)


@pytest.fixture(autouse=True)
def unharmed(controls: witness.Controls, firewall: Firewall) -> Iterator[None]:
    """A ping and a connection pass before and after each test, and the daemon is the same."""
    with controls.unharmed(firewall):
        yield


@contextmanager
def channel(lab: Lab, source: str) -> Iterator[Channel]:
    with lab.listener("server", FTP) as listening:
        made = Channel(connect(lab, (source, 0), (SERVER, FTP)), listening.accept()[0])
        try:
            yield made
        finally:
            made.close()


def parent_of(firewall: Firewall, opened: Channel) -> int:
    source, sport = opened.client.getsockname()
    (found,) = sessions(firewall, source=source, source_port=sport, destination_port=FTP, state="active")
    number: int = found["id"]
    return number


def children(firewall: Firewall, parent: int) -> list[dict[str, Any]]:
    """What is expected of a control connection."""
    waiting = sessions(firewall, type="predict", state="active")
    return [session for session in waiting if session["parent_session"] == parent]


def announce(opened: Channel, number: int = ANNOUNCED) -> Address:
    """A PORT command that tells the truth: where the server hears that it shall call."""
    heard = opened.client_says(f"PORT {six(opened.client.getsockname()[0], number)}\r\n".encode())
    *address, high, low = map(int, re.findall(rb"\d+", heard))
    return ".".join(map(str, address)), high << 8 | low


def call(lab: Lab, to: Address, source: str = SERVER, ns: str = "server") -> socket.socket:
    """A connection from the far side."""
    made = calling(lab, to, source, ns)
    poll(lambda: outcome(made) == "connected", 3, f"a connection to {to}")
    made.settimeout(3)
    return made


def is_shut(lab: Lab, control: Control, to: Address, source: str = SERVER, ns: str = "server") -> bool:
    """Whether a call is not answered: what is said later than it has come through."""
    with calling(lab, to, source, ns) as made:
        control()
        return outcome(made) != "connected"


def calling(lab: Lab, to: Address, source: str, ns: str) -> socket.socket:
    with lab.inside(ns):
        made = socket.socket()
    made.setblocking(False)
    made.bind((source, 0))
    made.connect_ex(to)
    return made


@contextmanager
def nothing_opens(firewall: Firewall) -> Iterator[None]:
    """No prediction is made, and no payload changed."""
    before = counters(firewall)
    yield
    after = counters(firewall)
    assert [after[name] - before[name] for name in ("session_predicted", "alg_payload_changed")] == [0, 0]


# Announcements that are no business of the announcer's

FORBIDDEN = {
    "third host": (THIRD, ANNOUNCED),
    "third host on the other side": (STRANGER, ANNOUNCED),
    "server": (SERVER, ANNOUNCED),
    "outside address": (POOL, ANNOUNCED),
    "no address": ("0.0.0.0", ANNOUNCED),
    "everybody": ("255.255.255.255", ANNOUNCED),
    "loopback": ("127.0.0.1", ANNOUNCED),
    "web server": (None, 80),
    "last port of services": (None, 1023),
    "no port": (None, 0),
}


@CLIENTS
@pytest.mark.parametrize("verb", ["PORT", "EPRT"])
@pytest.mark.parametrize(("address", "number"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_bounce(lab, firewall, control, source, verb, address, number):
    """The server hears what the client said, and finds nothing open; a true announcement afterwards counts."""
    named = (address or source, number)
    text = six(*named) if verb == "PORT" else f"|1|{named[0]}|{number}|"
    with channel(lab, source) as opened, lab.listener("client", ANNOUNCED) as listening:
        said = f"{verb} {text}\r\n".encode()
        with nothing_opens(firewall):
            assert opened.client_says(said) == said
            assert children(firewall, parent_of(firewall, opened)) == []
            for target in {(SEEN[source], number or ANNOUNCED), (THIRD, number or ANNOUNCED)}:
                assert is_shut(lab, control, target)
        call(lab, announce(opened)).close()
        listening.accept()[0].close()
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


@CLIENTS
@pytest.mark.parametrize(
    "text",
    [
        f"227 ok ({six(STRANGER, ANNOUNCED)})",
        f"227 ok ({six(THIRD, ANNOUNCED)})",
        f"227 ok ({six(SERVER, 80)})",
        f"227 ok ({six(SERVER, ANNOUNCED)[:-3]})",
        "227 ok (10,2,0,2,300,1)",
        "229 ok (|||80|)",
        "229 ok (|||70000|)",
        "229 ok (||5000|)",
        f"327 ok ({six(SERVER, ANNOUNCED)})",
        f"150 227 ok ({six(SERVER, ANNOUNCED)})",
    ],
)
def test_a_server_sends_the_client_elsewhere(lab, firewall, control, source, text):
    """Nor does a server's reply open a way to others, or one that is none; a true one afterwards counts."""
    with channel(lab, source) as opened, lab.listener("server", ANNOUNCED) as listening:
        said = f"{text}\r\n".encode()
        with nothing_opens(firewall):
            assert opened.server_says(said) == said
            for target in ((STRANGER, ANNOUNCED), (SERVER, ANNOUNCED)):
                assert is_shut(lab, control, target, source, "client")
        opened.server_says(f"227 ok ({six(SERVER, ANNOUNCED)})\r\n".encode())
        call(lab, (SERVER, ANNOUNCED), source, "client").close()
        listening.accept()[0].close()


@CLIENTS
def test_long_and_odd_lines(lab, firewall, control, source):
    """Lines without end, without sense and without text pass as they are; the next announcement counts."""
    lines = [
        b"PORT " + b"1," * 5000 + b"\r\n",
        b"PORT 10,1,0,2,19,136,\r\n",
        b"PORT 10,1,0,2,19\r\n",
        b" PORT 10,1,0,2,19,136\r\n",
        b"XPORT 10,1,0,3,19,136\r\n",
        b"EPRT |3|10.1.0.3|5000|\r\n",
        b"EPRT ||||\r\n",
        b"\r\n",
        b"\n",
        random.Random(7).randbytes(20_000).replace(b"\n", b"") + b"\r\n",
    ]
    with channel(lab, source) as opened, lab.listener("client", ANNOUNCED):
        with nothing_opens(firewall):
            for line in lines:
                assert opened.client_says(line) == line
                assert opened.server_says(line) == line
        call(lab, announce(opened)).close()


# Too many


def test_a_flood_of_announcements(lab, firewall):
    """At most so many are waited for, the newest; afterwards the pool has all its ports again."""
    await_idle_pool(firewall)
    with channel(lab, HIDDEN) as opened:
        parent = parent_of(firewall, opened)
        for first in range(20000, 20000 + FLOOD, BURST):
            commands = [f"PORT {six(HIDDEN, number)}\r\n" for number in range(first, first + BURST)]
            heard = opened.client_says("".join(commands).encode())
            assert heard.count(b"PORT 10,2,0,130,") == BURST
            assert len(children(firewall, parent)) <= PER_PARENT
        assert pool_row(firewall, "pool")["used"] == 1 + PER_PARENT
        waiting = {session["s2c"]["sport"] for session in children(firewall, parent)}
        assert waiting == set(range(20000 + FLOOD - PER_PARENT, 20000 + FLOOD))
        with lab.listener("client", ANNOUNCED):
            call(lab, announce(opened)).close()
    await_idle_pool(firewall)
    assert children(firewall, parent) == []


def await_idle_pool(firewall: Firewall) -> None:
    poll(lambda: pool_row(firewall, "pool")["used"] == 0, TIME_WAIT + 5, "every port of the pool to be free")


def test_the_same_announcement_again_and_again(lab, firewall):
    """It is one: one prediction, one port, the same text each time."""
    await_idle_pool(firewall)
    with channel(lab, HIDDEN) as opened:
        assert len({announce(opened) for _ in range(100)}) == 1
        assert len(children(firewall, parent_of(firewall, opened))) == 1
        assert pool_row(firewall, "pool")["used"] == 2


# Whom it is for, and how long


@CLIENTS
def test_an_announcement_is_good_for_one_connection(lab, firewall, control, source):
    """Who has called once may not call again."""
    with channel(lab, source) as opened, lab.listener("client", ANNOUNCED) as listening:
        target = announce(opened)
        with call(lab, target), listening.accept()[0]:
            assert is_shut(lab, control, target)
        assert is_shut(lab, control, target)


@CLIENTS
def test_a_stranger_may_not_call(lab, firewall, control, source):
    """Only the server that was told may; the stranger's attempt uses nothing up."""
    with channel(lab, source) as opened, lab.listener("client", ANNOUNCED) as listening:
        target = announce(opened)
        assert is_shut(lab, control, target, STRANGER)
        with call(lab, target), listening.accept()[0] as accepted:
            assert accepted.getpeername()[0] == SERVER


@CLIENTS
def test_another_zone_may_not_call(lab, firewall, control, source):
    """The server's address is not enough: what comes from the inside is judged by the rules, even if it may lie."""
    with channel(lab, source) as opened, lab.listener("client", ANNOUNCED) as listening:
        target = announce(opened)
        matched, denied = counters(firewall)["session_predict_matched"], refusals(firewall)
        lab.inject("client", IP(src=SERVER, dst=target[0]) / TCP(sport=4444, dport=target[1], flags="S"))
        poll(lambda: refusals(firewall) == denied + 1, 3, "the policy to be asked")
        assert counters(firewall)["session_predict_matched"] == matched
        with call(lab, target), listening.accept()[0] as accepted:
            assert accepted.getpeername()[0] == SERVER


def refusals(firewall: Firewall) -> int:
    """First packets that a rule has denied, or that were for the firewall itself."""
    shown = counters(firewall)
    return shown["flow_policy_deny"] + shown["flow_host_service_deny"]


@CLIENTS
@pytest.mark.parametrize("end", ["closed", "cleared"])
def test_an_announcement_dies_with_its_parent(lab, firewall, control, source, end):
    """Nobody may call when the control connection is over."""
    with lab.listener("client", ANNOUNCED), channel(lab, source) as opened:
        target, parent = announce(opened), parent_of(firewall, opened)
        assert len(children(firewall, parent)) == 1
        if end == "cleared":
            assert firewall.cli("clear", "session", "id", str(parent)).returncode == 0
        else:
            opened.close()
        poll(lambda: children(firewall, parent) == [], TIME_WAIT + 3, "the prediction to go")
        assert is_shut(lab, control, target)


# NAT slipstreaming: a browser is made to say what an ALG would believe

PAGE = b"POST / HTTP/1.1\r\nHost: attacker\r\nContent-Length: 9999\r\n\r\n" + b"x" * 600 + b"\r\n"
GREETINGS = {"silent": b"", "greeting": b"220 attacker\r\n"}
CUTS = pytest.mark.parametrize("apart", [False, True], ids=["inside", "apart"])


@CLIENTS
@CUTS
@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
def test_a_page_is_posted_to_the_port_of_ftp(lab, firewall, control, source, apart, greeting):
    """The stream did not begin as FTP does, whatever the attacker says first: no line in it is a command."""
    command = f"PORT {six(source, ANNOUNCED)}\r\n".encode()
    slips(lab, firewall, control, (source, FTP), greeting, cut(command, apart))


@CLIENTS
@CUTS
def test_a_page_is_posted_to_the_port_of_sip(lab, firewall, control, source, apart):
    """Nor is a REGISTER that happens to begin a segment."""
    message = (
        f"REGISTER sip:{SERVER} SIP/2.0\r\n"
        f"Via: SIP/2.0/TCP {source}:{ANNOUNCED};branch=z9hG4bK1\r\n"
        f"From: <sip:a@{SERVER}>;tag=1\r\nTo: <sip:a@{SERVER}>\r\nCall-ID: 1@{source}\r\nCSeq: 1 REGISTER\r\n"
        f"Contact: <sip:a@{source}:{ANNOUNCED};transport=tcp>\r\nExpires: 60\r\nContent-Length: 0\r\n\r\n"
    ).encode()
    slips(lab, firewall, control, (source, SIP), b"", cut(message, apart))


def cut(text: bytes, apart: bool) -> list[bytes]:
    """The page with the text in it, or with the text at the beginning of a segment of its own."""
    return [PAGE, text] if apart else [PAGE + text]


def slips(
    lab: Lab, firewall: Firewall, control: Control, source: Address, greeting: bytes, segments: list[bytes]
) -> None:
    """The attacker's server gets all of the page as it was sent, and cannot call the browser's host."""
    address, number = source
    with lab.listener("server", number) as listening, lab.listener("client", ANNOUNCED), nothing_opens(firewall):
        browser = connect(lab, (address, 0), (SERVER, number))
        browser.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with browser, listening.accept()[0] as attacker:
            attacker.settimeout(3)
            attacker.sendall(greeting)
            assert receive(browser, len(greeting)) == greeting
            for segment in segments:
                browser.sendall(segment)
                assert receive(attacker, len(segment)) == segment
            attacker.sendall(b"200 OK\r\n")
            assert receive(browser, 8) == b"200 OK\r\n"
            for target in ((SEEN[address], ANNOUNCED), (address, ANNOUNCED)):
                assert is_shut(lab, control, target)
