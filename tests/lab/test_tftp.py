"""TFTP between real programs: the answer to a request comes from a port that nobody has called.

Only port 69 is in the policy (and 6969, where a test answers itself), and whatever else is tried is reset. What the
server is called decides about the translation, because the client program cannot choose its own address:

    10.2.0.2    fd00:2::2     none
    10.2.0.3    fd00:2::3     the client becomes 10.2.0.130, fd00:2::130
    10.2.0.4                  by a rule that says `alg: false`
    10.2.0.104                the other way: the client's side serves, by destination translation
"""

import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.lab.calls import Address
from tests.lab.console import IN_ORDER, counters, rule, sessions, zones
from tests.lab.firewall import Firewall
from tests.lab.kernel import kernel_helps, publishes, translates
from tests.lab.lab import CLIENT, CLIENT6, SERVER, SERVER6, Lab, poll
from tests.lab.servers import UP, Way, directory, tftpd

SPOKEN = 6969  # a port where a test serves
HIDDEN, HIDDEN6, UNREAD, PUBLIC = "10.2.0.3", "fd00:2::3", "10.2.0.4", "10.2.0.104"
NEIGHBOUR = "10.1.0.7"
POOL, POOL6 = "10.2.0.130", "fd00:2::130"
FILES = {"large": random.Random(69).randbytes(60_000), "exact": b"512!" * 128}
READ = b"\0\1large\0octet\0"
NO_REQUESTS = {
    "data": b"\0\3\0\1" + READ,
    "no mode": b"\0\1large\0octet",
    "unknown opcode": b"\0\7" + READ[2:],
    "too short": b"\0\1\0\0",
}


SNAT = Way("snat", "client", CLIENT, HIDDEN, POOL, HIDDEN, nat="pool")
WAYS = (
    Way("plain", "client", CLIENT, SERVER, CLIENT, SERVER),
    SNAT,
    Way("dnat", "server", SERVER, PUBLIC, SERVER, CLIENT, "in", "published"),
    Way("plain6", "client", CLIENT6, SERVER6, CLIENT6, SERVER6),
    Way("nat66", "client", CLIENT6, HIDDEN6, POOL6, HIDDEN6, nat="pool6"),
)
EVERY_WAY = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)


def pool(name: str, called: str, address: str) -> dict[str, Any]:
    return {
        "name": name,
        "nat-type": "ipv6" if ":" in address else "ipv4",
        "from": ["trust"],
        "to": "untrust",
        "destination": [called],
        "source-translation": {"type": "dynamic-ip-and-port", "addresses": [address]},
    }


OUT: dict[str, Any] = {"from_": ["trust"], "to": ["untrust"]}
IN: dict[str, Any] = {"from_": ["untrust"], "to": ["trust"]}
CONFIG: dict[str, Any] = {
    "zones": zones(),
    "security-rules": [
        rule("unread", destination=[UNREAD], application=["tftp"], alg=False, **OUT),
        rule("out", application=["tftp"], log_start=True, **OUT),
        rule("in", application=["tftp"], log_start=True, **IN),
        rule("rest", "deny"),
    ],
    "nat-rules": [
        pool("pool", HIDDEN, POOL),
        pool("pool6", HIDDEN6, POOL6),
        {
            "name": "published",
            "from": ["untrust"],
            "to": "untrust",
            "destination": [PUBLIC],
            "destination-translation": {"address": CLIENT},
        },
    ],
    "settings": {"alg": {"tftp": {"ports": [69, SPOKEN]}}, **IN_ORDER},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with served() as made:
        yield made


@contextmanager
def served() -> Iterator[Lab]:
    """A server on both sides; whoever calls the public address knows the way there."""
    with Lab(client_addresses=[NEIGHBOUR], server_addresses=[HIDDEN, HIDDEN6, UNREAD]) as made:
        roots = {ns: directory(made, ns, FILES) for ns in ("client", "server")}
        for way in WAYS:
            tftpd(made, way.server_ns, roots[way.server_ns], way.serving)
        made.reaches("server", PUBLIC)
        yield made


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(CONFIG) as running:
        yield running


def tftp(lab: Lab, way: Way, *words: str) -> None:
    done = lab.run(way.ns, ["tftp", way.called, "-m", "octet", "-c", *words])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def talk(lab: Lab, way: Way, to: str | None = None) -> tuple[socket.socket, socket.socket]:
    """A client, and the port of a server that the test speaks for."""
    server = lab.udp(way.server_ns, SPOKEN, to or way.serving)
    return lab.udp(way.ns, 0, way.source), server


def ask(client: socket.socket, server: socket.socket, called: str, request: bytes = READ) -> Address:
    """As whom the server sees the client that sends this."""
    client.sendto(request, (called, SPOKEN))
    received, peer = server.recvfrom(1000)
    assert received == request
    return peer[0], peer[1]


def answer(lab: Lab, way: Way, client: socket.socket, peer: Address) -> int:
    """The server answers from a new port, and the client from there on; which port that is."""
    transfer = lab.udp(way.server_ns, 0, way.serving)
    port: int = transfer.getsockname()[1]
    for word in (b"\0\3\0\1first", b"\0\3\0\2second"):
        transfer.sendto(word, peer)
        received, source = client.recvfrom(1000)
        assert (received, source[:2]) == (word, (way.called, port))
        client.sendto(b"\0\4" + word[2:4], source)
        received, source = transfer.recvfrom(1000)
        assert (received, source[:2]) == (b"\0\4" + word[2:4], peer)
    return port


def expected_of(firewall: Firewall, client: socket.socket) -> list[dict[str, Any]]:
    """The PREDICT sessions of the session from the client's port."""
    address, port = client.getsockname()[:2]
    parents = [session["id"] for session in sessions(firewall, source=address, source_port=port, application="tftp")]
    return [session for session in sessions(firewall, type="predict") if session["parent_session"] in parents]


@EVERY_WAY
def test_a_file_is_read_and_written(lab, firewall, way):
    """Each transfer is a child of its request, by the rule that let the request pass."""
    before = len(firewall.traffic_log(event="start"))
    read_and_write(lab, way)
    count = 4 * len(FILES)
    log = poll(lambda: started(firewall, before, count), 3, f"{count} records")
    requests = [entry for entry in log if entry["application"] == "tftp"]
    transfers = [entry for entry in log if entry not in requests]
    assert {(entry["application"], entry["rule"], entry["nat_rule"]) for entry in transfers} == {
        ("tftp-data", way.rule, way.nat)
    }
    assert sorted(entry["parent_session_id"] for entry in transfers) == sorted(
        entry["session_id"] for entry in requests
    )


def read_and_write(lab: Lab, way: Way) -> None:
    """Every file both ways, with the server seeing the client as it should."""
    name = os.urandom(4).hex()
    near, far = lab.directory / name, lab.directory / way.server_ns
    with lab.capture(way.server_ns, "eth0", "udp") as capture:
        for file, content in FILES.items():
            tftp(lab, way, "get", file, str(near))
            assert near.read_bytes() == content
            tftp(lab, way, "put", str(far / file), f"{UP}/{name}-{file}")
            assert (far / UP / f"{name}-{file}").read_bytes() == content
    assert {frame.source for frame in capture.received()} == {way.seen}
    assert capture.wrong_checksums() == []


def started(firewall: Firewall, before: int, count: int) -> list[dict[str, Any]]:
    log = firewall.traffic_log(event="start")[before:]
    return log if len(log) >= count else []


@pytest.fixture(scope="module")
def kernel_lab() -> Iterator[Lab]:
    with served() as made:
        made.reaches("server", POOL, POOL6)
        outgoing = [translates(CLIENT, POOL, HIDDEN), translates(CLIENT6, POOL6, HIDDEN6)]
        kernel_helps(made, "tftp", 69, ["udp"], [publishes(PUBLIC, CLIENT)], outgoing)
        yield made


@EVERY_WAY
def test_the_kernel_does_the_same(kernel_lab, way):
    """The control of all this: nf_conntrack_tftp and nf_nat_tftp in our place."""
    read_and_write(kernel_lab, way)


@EVERY_WAY
def test_an_answer_is_expected_until_it_comes(lab, firewall, way):
    """A PREDICT session to the client's port from any of the server's, which becomes a FLOW session."""
    client, server = talk(lab, way)
    peer = ask(client, server, way.called)
    (expected,) = expected_of(firewall, client)
    port = answer(lab, way, client, peer)
    assert peer[0] == way.seen
    assert (expected["c2s"]["source"], expected["c2s"]["sport"]) == (way.serving, 0)
    assert (expected["c2s"]["dst"], expected["c2s"]["dport"]) == peer
    assert (expected["rule"], expected["prediction_triggered_by"]) == (None, "client")
    assert expected["prediction_matched_once"] is False
    assert expected_of(firewall, client) == []
    (came,) = sessions(firewall, application="tftp-data", source_port=port)
    assert (came["parent_session"], came["rule"], came["nat_rule"]) == (expected["parent_session"], way.rule, way.nat)
    assert came["prediction_matched_once"] is True


def test_two_clients_have_the_same_port(lab, firewall):
    """Behind one address they get one port each, and either its own answer."""
    server = lab.udp("server", SPOKEN, HIDDEN)
    clients = [lab.udp("client", 3000, address) for address in (CLIENT, NEIGHBOUR)]
    peers = [ask(client, server, HIDDEN) for client in clients]
    assert len(set(peers)) == 2
    assert {address for address, _ in peers} == {POOL}
    for client, peer in reversed([*zip(clients, peers, strict=True)]):
        answer(lab, SNAT, client, peer)


@EVERY_WAY
def test_a_request_is_repeated(lab, firewall, way):
    """Three times the same request, one answer is expected; asked again later, another one is."""
    client, server = talk(lab, way)
    (peer,) = {ask(client, server, way.called) for _ in range(3)}
    assert len(expected_of(firewall, client)) == 1
    first = answer(lab, way, client, peer)
    assert expected_of(firewall, client) == []
    assert ask(client, server, way.called) == peer
    assert answer(lab, way, client, peer) != first


def test_a_stranger_does_not_answer(lab, firewall):
    """The server that was asked may answer from any port; another address of its side may not."""
    client, server = talk(lab, SNAT)
    peer = ask(client, server, HIDDEN)
    stranger = lab.udp("server", 0, SERVER)
    stranger.sendto(b"\0\3\0\1wrong", peer)
    answer(lab, SNAT, client, peer)
    assert heard(client) == []


@pytest.mark.parametrize("datagram", NO_REQUESTS.values(), ids=NO_REQUESTS)
def test_what_is_no_request_opens_nothing(lab, firewall, datagram):
    """It goes on as it is."""
    opens_nothing(lab, firewall, SNAT, datagram)


def test_a_rule_without_alg_opens_nothing(lab, firewall):
    """The request passes, the answer from another port does not."""
    opens_nothing(lab, firewall, Way("unread", "client", CLIENT, UNREAD, CLIENT, UNREAD), READ)


def test_nothing_is_opened_with_the_alg_off():
    """The same for everybody; the real client waits in vain for a file."""
    plain = WAYS[0]
    with Lab() as lab:
        tftpd(lab, "server", directory(lab, "server", FILES), SERVER)
        services = {"tftp-too": {"protocol": "udp", "destination-port": [69, SPOKEN]}}
        rules = [rule("out", service=["tftp-too"], **OUT), rule("rest", "deny")]
        settings = {"alg": {"tftp": False}, **IN_ORDER}
        config = {"zones": zones(), "services": services, "security-rules": rules, "settings": settings}
        with lab.firewall(config) as firewall:
            opens_nothing(lab, firewall, plain, READ)


def opens_nothing(lab: Lab, firewall: Firewall, way: Way, request: bytes) -> None:
    """Of two answers only the one from the port that was called arrives."""
    before = counters(firewall)["session_predicted"]
    client, server = talk(lab, way)
    peer = ask(client, server, way.called, request)
    transfer = lab.udp(way.server_ns, 0, way.serving)
    transfer.sendto(b"from another port", peer)
    server.sendto(b"from the port", peer)
    assert client.recv(100) == b"from the port"
    assert counters(firewall)["session_predicted"] == before
    assert heard(client) == []


def heard(client: socket.socket) -> list[bytes]:
    """What else has arrived at a client."""
    client.setblocking(False)
    words = []
    while True:
        try:
            words.append(client.recv(1000))
        except BlockingIOError:
            return words
