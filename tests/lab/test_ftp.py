"""FTP between real clients and real servers, each kind of data connection through each kind of translation.

Only the control ports are in the policy, and whatever else is tried is reset. The same on both sides, whoever serves:
vsftpd on port 21, pyftpdlib on 2121, a test on 2122.

      client side                  seen from the other side
        10.1.0.2   fd00:1::2         as itself
        10.1.0.3   fd00:1::3         10.2.0.130  fd00:2::130    of a pool, ports 20000-20999
        10.1.0.4                     10.2.0.104                 serves there, by destination translation
        10.1.0.5                     10.2.0.105                 serves there, bi-directional
        10.1.0.6                     10.2.0.106                 goes out by a rule that says `alg: false`
        10.1.0.7                     10.2.0.130                 another one of the pool
"""

import os
import random
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import TCP

from dataplane.predict import PER_PARENT
from tests.lab.calls import connect, source_rule
from tests.lab.capture import ETHERNET, Capture
from tests.lab.console import IN_ORDER, counters, record, rule, sessions, zones
from tests.lab.firewall import Firewall
from tests.lab.kernel import kernel_helps, publishes, translates
from tests.lab.lab import CLIENT, CLIENT6, MACS, SERVER, SERVER6, Lab, poll
from tests.lab.servers import UP, Channel, FtpClient, Way, directory, pyftpd, six, vsftpd

VSFTPD, PYFTPD, SPOKEN = 21, 2121, 2122
SERVERS = {"vsftpd": VSFTPD, "pyftpdlib": PYFTPD}
POOL, POOL6, WIRE_POOL = "10.2.0.130", "fd00:2::130", "10.9.0.10"
HIDDEN, NEIGHBOUR, HIDDEN6, UNREAD = "10.1.0.3", "10.1.0.7", "fd00:1::3", "10.1.0.6"
BEHIND, PUBLIC = ("10.1.0.4", "10.1.0.5"), ("10.2.0.104", "10.2.0.105")
FILES = {"large": random.Random(21).randbytes(300_000), "small": b"?"}
ACTIVE, PASSIVE = ("PORT", "EPRT"), ("PASV", "EPSV")
CURL = {"PORT": ["-P", "-", "--disable-eprt"], "EPRT": ["-P", "-"], "PASV": ["--disable-epsv"], "EPSV": []}
LFTP = {"PORT": "passive-mode no", "EPRT": "passive-mode no", "PASV": "prefer-epsv no", "EPSV": "prefer-epsv yes"}
ANNOUNCEMENTS = 100
MTU, MSS = 1500, 1448  # bytes of a packet, and of a segment in it with timestamps
PREDICTED = 60  # seconds
INITIAL_WINDOW = 10  # segments that a sender may have on the way (RFC 6928); more are put together


PLAIN = Way("plain", "client", CLIENT, SERVER, CLIENT, SERVER)
SNAT = Way("snat", "client", HIDDEN, SERVER, POOL, SERVER, nat="pool")
WAYS = (
    PLAIN,
    SNAT,
    Way("dnat", "server", SERVER, PUBLIC[0], SERVER, BEHIND[0], "in", "published"),
    Way("static", "server", SERVER, PUBLIC[1], SERVER, BEHIND[1], "in", "static"),
    Way("plain6", "client", CLIENT6, SERVER6, CLIENT6, SERVER6),
    Way("nat66", "client", HIDDEN6, SERVER6, POOL6, SERVER6, nat="pool6"),
)
MODES = [
    pytest.param(way, mode, id=f"{way.name}-{mode}")
    for way in WAYS
    for mode in (*ACTIVE, *PASSIVE)
    if not way.ipv6 or mode.startswith("E")
]

OUT: dict[str, Any] = {"from_": ["trust"], "to": ["untrust"]}
IN: dict[str, Any] = {"from_": ["untrust"], "to": ["trust"]}


POOLED: dict[str, Any] = {"type": "dynamic-ip-and-port", "port-range": "20000-20999"}
CONFIG: dict[str, Any] = {
    "zones": zones(),
    "security-rules": [
        rule("unread", source=[UNREAD], application=["ftp"], alg=False, log_start=True, **OUT),
        rule("out", application=["ftp", "ping"], log_start=True, **OUT),
        rule("in", application=["ftp"], log_start=True, **IN),
        rule("rest", "reset-both"),
    ],
    "nat-rules": [
        source_rule("pool", [HIDDEN, NEIGHBOUR], POOL, **POOLED),
        source_rule("pool6", [HIDDEN6], POOL6, **POOLED),
        source_rule("unread", [UNREAD], "10.2.0.106", type="static-ip"),
        source_rule("static", [BEHIND[1]], PUBLIC[1], type="static-ip", **{"bi-directional": True}),
        {
            "name": "published",
            "from": ["untrust"],
            "to": "untrust",
            "destination": [PUBLIC[0]],
            "destination-translation": {"address": BEHIND[0]},
        },
    ],
    "settings": {
        "alg": {"ftp": {"ports": [VSFTPD, PYFTPD, SPOKEN]}},
        "session": {"timeouts": {"tcp-time-wait": 1}},
        **IN_ORDER,
    },
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with served() as made:
        yield made


@contextmanager
def served() -> Iterator[Lab]:
    """Both servers on both sides; whoever calls a public address knows the way there."""
    with Lab(client_addresses=[HIDDEN, HIDDEN6, *BEHIND, UNREAD, NEIGHBOUR]) as made:
        for ns in ("client", "server"):
            root = directory(made, ns, FILES)
            vsftpd(made, ns, root, VSFTPD)
            pyftpd(made, ns, root, PYFTPD)
        made.reaches("server", *PUBLIC)
        yield made


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(CONFIG) as running:
        yield running


# Clients


def curl(lab: Lab, way: Way, mode: str, port: int, seconds: int = 5) -> subprocess.CompletedProcess[str]:
    """One file down, one up, on one control connection."""
    url, name = f"ftp://{way.url}:{port}", os.urandom(4).hex()
    options = ["-sS", "--interface", way.source, "--no-ftp-skip-pasv-ip", *CURL[mode]]
    down = [*options, f"{url}/large", "-o", str(lab.directory / "down")]
    up = [*options, "-T", str(lab.directory / way.server_ns / "large"), f"{url}/{UP}/{name}"]
    done = lab.run(way.ns, ["curl", "-m", str(seconds), *down, "--next", "-m", str(seconds), *up])
    if not done.returncode:
        assert taken(lab.directory / "down") == taken(lab.directory / way.server_ns / UP / name) == FILES["large"]
    return done


def lftp(lab: Lab, way: Way, mode: str, port: int) -> subprocess.CompletedProcess[str]:
    """Two files down, two up, on one control connection."""
    name, root = os.urandom(4).hex(), lab.directory / way.server_ns
    settings = {
        "ftp:ssl-allow": "no",
        "ftp:fix-pasv-address": "no",
        "cmd:fail-exit": "yes",
        "net:max-retries": "1",
        "net:timeout": "3",
        f"net:socket-bind-ipv{6 if way.ipv6 else 4}": way.source,
    }
    lines = [f"set {key} {value}" for key, value in settings.items()]
    lines += [f"set ftp:{LFTP[mode]}", f"open -p {port} -u anonymous,x {way.url}"]
    lines += [f"get {file} -o {lab.directory}/{name}-{file}" for file in FILES]
    lines += [f"put {root}/{file} -o {UP}/{name}-{file}" for file in FILES]
    done = lab.run(way.ns, ["lftp", "-c", "; ".join(lines)])
    for file, content in FILES.items() if not done.returncode else ():
        assert taken(lab.directory / f"{name}-{file}") == taken(root / UP / f"{name}-{file}") == content
    return done


def taken(path: Path) -> bytes:
    """What a transfer has written, which goes away with that."""
    content = path.read_bytes()
    path.unlink()
    return content


@contextmanager
def logged_in(lab: Lab, way: Way, port: int) -> Iterator[FtpClient]:
    client = FtpClient(connect_from(lab, way, port))
    try:
        client.login()
        yield client
    finally:
        client.close()


def connect_from(lab: Lab, way: Way, port: int, own_port: int = 0) -> socket.socket:
    """To the server of a way, from the client's own address of it."""
    if way.ns == "client":
        return connect(lab, (way.source, own_port), (way.called, port))
    return lab.connect("server", (way.called, port), own_port)


def announce(lab: Lab, way: Way, mode: str, client: FtpClient) -> tuple[socket.socket | None, int]:
    """Agree on a data connection: where the server will call, or None, and the port that was said or heard."""
    if mode in PASSIVE:
        heard = client.command(mode)
        numbers = re.findall(r"\d+", heard.partition("(")[2])
        if mode == "PASV":
            assert ".".join(numbers[:4]) == way.called
        return None, int(numbers[-1]) if mode == "EPSV" else int(numbers[4]) << 8 | int(numbers[5])
    listening = lab.listener(way.ns, 0, way.any)
    port = listening.getsockname()[1]
    said = f"|{2 if way.ipv6 else 1}|{way.source}|{port}|" if mode == "EPRT" else six(way.source, port)
    assert client.command(f"{mode} {said}").startswith("200")
    return listening, port


def fetch(lab: Lab, way: Way, client: FtpClient, listening: socket.socket | None, port: int) -> socket.socket:
    """The large file over the data connection that was agreed on; the connection, at its end."""
    client.send("RETR large")
    data = connect_from(lab, way, port) if listening is None else listening.accept()[0]
    data.settimeout(3)
    with data.makefile("rb") as file:
        assert file.read() == FILES["large"]
    assert client.answer().startswith("150")
    assert client.answer().startswith("226")
    return data


def control_of(firewall: Firewall, client: FtpClient) -> dict[str, Any]:
    address, port = client.socket.getsockname()[:2]
    (found,) = sessions(firewall, application="ftp", source=address, source_port=port, state="active")
    return found


def children(firewall: Firewall, parent: int, kind: str = "predict") -> list[dict[str, Any]]:
    return [session for session in sessions(firewall, type=kind) if session["parent_session"] == parent]


def control_text(capture: Capture, port: int) -> bytes:
    """What a control connection's client has said, as it went by: each segment in its place by sequence number."""
    said = bytearray()
    start = None
    for packet in capture.packets():
        if packet[TCP].dport != port:
            continue
        start = packet[TCP].seq + 1 if packet[TCP].flags.S else start
        at = (packet[TCP].seq - (start or 0)) % (1 << 32)
        payload = bytes(packet[TCP].payload)
        said[at : at + len(payload)] = payload
    return bytes(said)


# Programs


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(("way", "mode"), MODES)
def test_files_go_down_and_up(lab, firewall, way, mode, server):
    """Programs of other people's making notice nothing: every file arrives, and every data connection is a child."""
    port, before = SERVERS[server], len(firewall.traffic_log(event="start"))
    with lab.capture(way.server_ns, "eth0", f"tcp port {port}") as control:
        assert not (done := curl(lab, way, mode, port)).returncode, done.stderr
        runs = 2
        if mode != "EPRT" or way.ipv6:
            assert not (done := lftp(lab, way, mode, port)).returncode, done.stderr
            runs += 4 + 1
    count = runs + 1
    log = poll(lambda: started(firewall, before, count), 3, f"{count} records")
    parents = {entry["session_id"]: entry for entry in log if entry["application"] == "ftp"}
    data = [entry for entry in log if entry["session_id"] not in parents]
    assert len(parents) == (1 if runs == 2 else 2)
    assert {(entry["application"], entry["rule"], entry["nat_rule"]) for entry in data} == {
        ("ftp-data", way.rule, way.nat)
    }
    assert {entry["parent_session_id"] for entry in data} == set(parents)
    assert control.wrong_checksums() == []
    assert {frame.source for frame in control.received()} == {way.seen}


@pytest.fixture(scope="module")
def kernel_lab() -> Iterator[Lab]:
    with served() as made:
        made.reaches("server", POOL, POOL6)
        outgoing = [translates(HIDDEN, POOL), translates(HIDDEN6, POOL6), translates(BEHIND[1], PUBLIC[1])]
        kernel_helps(made, "ftp", VSFTPD, ["tcp"], [*map(publishes, PUBLIC, BEHIND)], outgoing)
        yield made


@pytest.mark.parametrize(("way", "mode"), MODES)
def test_the_kernel_does_the_same(kernel_lab, way, mode):
    """The control of all this: nf_conntrack_ftp and nf_nat_ftp in our place."""
    with kernel_lab.capture(way.server_ns, "eth0", f"tcp port {VSFTPD}") as control:
        assert not (done := curl(kernel_lab, way, mode, VSFTPD)).returncode, done.stderr
    assert {frame.source for frame in control.received()} == {way.seen}


def started(firewall: Firewall, before: int, count: int) -> list[dict[str, Any]]:
    log = firewall.traffic_log(event="start")[before:]
    return log if len(log) >= count else []


# What is shown


@pytest.mark.parametrize(("way", "mode"), MODES)
def test_an_announced_connection_is_expected_until_it_comes(lab, firewall, way, mode):
    """A PREDICT session that becomes a FLOW session of the parent's rule; it is logged as a child."""
    with logged_in(lab, way, VSFTPD) as client, lab.capture(way.server_ns, "eth0", f"tcp port {VSFTPD}") as control:
        parent = control_of(firewall, client)["id"]
        listening, port = announce(lab, way, mode, client)
        (expected,) = children(firewall, parent)
        data = fetch(lab, way, client, listening, port)
        (came,) = children(firewall, parent, "flow")
        assert children(firewall, parent) == []
        text = control_text(control, VSFTPD)
    server, callee = (way.called, way.called) if mode in PASSIVE else (way.serving, way.seen)
    caller = way.source if mode in PASSIVE else server
    assert (expected["c2s"]["source"], expected["c2s"]["sport"], expected["c2s"]["dst"]) == (caller, 0, callee)
    assert expected["s2c"]["dport"] == 0
    assert (expected["state"], expected["timeout"]) == ("ACTIVE", PREDICTED)
    assert expected["prediction_matched_once"] is False
    assert (came["application"], came["rule"], came["nat_rule"]) == ("ftp-data", way.rule, way.nat)
    assert came["prediction_matched_once"] is True
    assert came["id"] != parent
    for shown in (expected, came):
        assert shown["prediction_triggered_by"] == ("server" if mode in PASSIVE else "client")
    if mode in ACTIVE:
        assert came["s2c"]["sport"] == port
        assert announced_in(text, mode) == (way.seen, came["c2s"]["dport"])
    assert record(firewall, event="start", session_id=came["id"], parent_session_id=parent, dport=came["c2s"]["dport"])
    assert control.wrong_checksums() == []
    data.close()


def test_a_prediction_has_no_rule(lab, firewall):
    """No rule was asked for it, so none is shown."""
    with logged_in(lab, SNAT, VSFTPD) as client:
        parent = control_of(firewall, client)["id"]
        announce(lab, SNAT, "PORT", client)
        (expected,) = children(firewall, parent)
        assert expected["rule"] is None


def announced_in(text: bytes, mode: str) -> tuple[str, int]:
    """Address and port of the PORT or EPRT that a server has heard."""
    (said,) = re.findall(rf"{mode} (\S+)", text.decode())
    if mode == "EPRT":
        _, _, address, port, _ = said.split("|")
        return address, int(port)
    *numbers, high, low = said.split(",")
    return ".".join(numbers), int(high) << 8 | int(low)


# Switched off


@pytest.mark.parametrize("mode", ACTIVE)
def test_a_rule_without_alg_leaves_the_text_alone(lab, firewall, mode):
    """What the client says arrives byte for byte, inside address and all, and the server does not believe it."""
    with unread(lab, firewall, Way("unread", "client", UNREAD, SERVER, "10.2.0.106", SERVER)) as way:
        assert curl(lab, way, mode, PYFTPD).returncode


@pytest.mark.parametrize("mode", [*ACTIVE, *PASSIVE])
def test_nothing_is_opened_with_the_alg_off(unreading, mode):
    """Without translation the text would be true, but no rule lets the data connection through."""
    lab, firewall = unreading
    with unread(lab, firewall, PLAIN) as way:
        assert curl(lab, way, mode, VSFTPD).returncode


@contextmanager
def unread(lab: Lab, firewall: Firewall, way: Way) -> Iterator[Way]:
    """What happens inside is the same text on both sides, and announces nothing to the firewall."""
    before = counters(firewall)
    ports = "tcp port 21 or tcp port 2121"
    with lab.capture("client", "eth0", ports) as near, lab.capture("server", "eth0", ports) as far:
        yield way
    assert segments(near) == segments(far)
    assert any(re.match(rb"E?P(ORT|RT|ASV|SV)", payload) for _, payload in segments(far))
    after = counters(firewall)
    assert [after[name] - before[name] for name in ("session_predicted", "alg_payload_changed")] == [0, 0]


def segments(capture: Capture) -> list[tuple[bool, bytes]]:
    """Every segment with text: whether it goes to a server, and the text. Retransmissions count once."""
    found = {}
    for packet in capture.packets():
        if payload := bytes(packet[TCP].payload):
            found[packet[TCP].sport, packet[TCP].seq] = (packet[TCP].dport in SERVERS.values(), payload)
    return [*found.values()]


@pytest.fixture(scope="module")
def unreading() -> Iterator[tuple[Lab, Firewall]]:
    """A lab whose firewall reads nothing."""
    with Lab() as lab:
        vsftpd(lab, "server", directory(lab, "server", FILES), VSFTPD)
        with lab.firewall(CONFIG | {"nat-rules": [], "settings": {"alg": {"ftp": False}}}) as firewall:
            yield lab, firewall


# Control connections as a test speaks them


@contextmanager
def spoken(lab: Lab, way: Way, own_port: int = 0) -> Iterator[Channel]:
    with lab.listener(way.server_ns, SPOKEN, way.any) as listening:
        caller = connect_from(lab, way, SPOKEN, own_port)
        channel = Channel(caller, listening.accept()[0])
        try:
            yield channel
        finally:
            channel.close()


def test_what_is_encrypted_is_left_alone(lab, firewall):
    """After AUTH and 234 nothing is read any more, even if it looks like a command."""
    before = counters(firewall)
    command = f"PORT {six(HIDDEN, 5000)}\r\n".encode()
    with spoken(lab, SNAT) as channel:
        channel.client_says(b"AUTH TLS\r\n")
        channel.server_says(b"234 proceed\r\n")
        for text in (bytes(range(256)) + b"\n", command):
            assert channel.client_says(text) == text
            assert channel.server_says(text) == text
    assert counters(firewall)["session_predicted"] == before["session_predicted"]


def test_a_refused_auth_changes_nothing(lab, firewall):
    """The server does not agree, so the text goes on and is read."""
    with spoken(lab, SNAT) as channel:
        channel.client_says(b"AUTH TLS\r\n")
        channel.server_says(b"502 no\r\n")
        assert channel.client_says(f"PORT {six(HIDDEN, 5000)}\r\n".encode()).startswith(b"PORT 10,2,0,130,")


@pytest.mark.parametrize("nodelay", [True, False], ids=["nodelay", "nagle"])
@pytest.mark.parametrize("way", [PLAIN, SNAT], ids=lambda way: way.name)
def test_a_command_comes_byte_by_byte(lab, firewall, way, nodelay):
    """One byte to a segment, or what Nagle's algorithm makes of it: the server hears the same command."""
    with logged_in(lab, way, VSFTPD) as client, lab.listener("client", 0) as listening:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, nodelay)
        with lab.capture("client", "eth0", f"tcp dst port {VSFTPD} and greater 67") as capture:
            said = f"PORT {six(way.source, listening.getsockname()[1])}\r\n".encode()
            for value in said:
                client.socket.send(bytes([value]))
            assert client.answer().startswith("200")
            assert len(capture.frames()) >= (INITIAL_WINDOW if nodelay else 2)
        fetch(lab, way, client, listening, 0).close()
        assert client.command("NOOP").startswith("200")


@pytest.mark.parametrize("way", [PLAIN, SNAT], ids=lambda way: way.name)
def test_several_commands_come_in_one_segment(lab, firewall, way):
    """Each is read; the last PORT counts, and its file arrives."""
    with logged_in(lab, way, VSFTPD) as client, lab.listener("client", 0) as listening:
        announced = [six(way.source, port) for port in (5001, 60001, listening.getsockname()[1])]
        client.socket.sendall("".join(f"PORT {text}\r\nNOOP\r\n" for text in announced).encode())
        assert [client.answer()[:3] for _ in range(6)] == ["200"] * 6
        assert len(children(firewall, control_of(firewall, client)["id"])) == 3
        fetch(lab, way, client, listening, 0).close()


def test_a_full_segment_may_grow(lab, firewall):
    """A command at its end becomes longer, and it still fits into the MTU of the other side."""
    said = f"PORT {six(HIDDEN, 5003)}\r\n".encode()
    line = b"NOOP".ljust(MSS - len(said) - 2) + b"\r\n"
    with spoken(lab, SNAT) as channel, lab.capture("server", "eth0", f"tcp dst port {SPOKEN}") as capture:
        heard = channel.client_says(line + said)
        assert heard.startswith(line + b"PORT 10,2,0,130,")
        assert len(heard) > MSS
        assert max(len(frame.data) for frame in capture.frames()) <= ETHERNET + MTU


@pytest.mark.parametrize(("way", "mode"), [(SNAT, "PORT"), (WAYS[2], "PASV")], ids=["PORT", "227"])
def test_an_edited_segment_is_lost(lab, firewall, way, mode):
    """Its repetition is edited in the same way, and both ends go on."""
    word, hearer = ("PORT ", way.server_ns) if mode == "PORT" else ("227 ", way.ns)
    with logged_in(lab, way, VSFTPD) as client:
        with lab.capture(hearer, "eth0", f"tcp port {VSFTPD}") as capture, ThreadPoolExecutor(1) as thread:
            with lost(lab, hearer, word):
                agreed = thread.submit(announce, lab, way, mode, client)
                (first,) = poll(lambda: copies(capture, word), 3, f"the first {word}")
            agreed.result()
            assert set(copies(capture, word)) == {first}
            assert len(copies(capture, word)) > 1
        fetch(lab, way, client, *agreed.result()).close()
        assert client.command("NOOP").startswith("200")


@contextmanager
def lost(lab: Lab, ns: str, word: str) -> Iterator[None]:
    """The kernel of an endpoint does not see packets with this word."""
    drop = ["INPUT", "-p", "tcp", "-m", "string", "--algo", "bm", "--string", word, "-j", "DROP"]
    lab.run(ns, ["iptables", "-w", "-A", *drop], check=True)
    yield
    lab.run(ns, ["iptables", "-w", "-D", *drop], check=True)


def copies(capture: Capture, word: str) -> list[tuple[int, bytes]]:
    """Sequence number and text of each segment that came in and begins with the word."""
    found = [(frame.packet[TCP].seq, bytes(frame.packet[TCP].payload)) for frame in capture.received()]
    return [(seq, text) for seq, text in found if text.startswith(word.encode())]


def test_numbers_stay_right_after_many_edits(lab, firewall):
    """Two clients announce the same hundred ports from behind one address: what is heard differs in length."""
    ports = random.Random(9).sample(range(1024, 30000), ANNOUNCEMENTS)
    ways = [SNAT, Way("neighbour", "client", NEIGHBOUR, SERVER, POOL, SERVER)]
    with ExitStack() as stack:
        capture = stack.enter_context(lab.capture("server", "eth0", f"tcp port {VSFTPD}"))
        clients = [stack.enter_context(logged_in(lab, way, VSFTPD)) for way in ways]
        for port in ports:
            for way, client in zip(ways, clients, strict=True):
                assert client.command(f"PORT {six(way.source, port)}").startswith("200")
        for way, client in zip(ways, clients, strict=True):
            listening = stack.enter_context(lab.listener("client", ports[-1], way.source))
            fetch(lab, way, client, listening, 0).close()
            assert client.command("NOOP").startswith("200")
        heard = [text for dport, text in segments(capture) if dport and text.startswith(b"PORT")]
    assert capture.wrong_checksums() == []
    assert len(heard) == 2 * ANNOUNCEMENTS
    assert len(set(heard[-2 * PER_PARENT :])) == 2 * PER_PARENT
    assert all(text.startswith(b"PORT 10,2,0,130,") for text in heard)
    said = [len(f"PORT {six(way.source, port)}\r\n") for port in ports for way in ways]
    assert len({len(text) - length for text, length in zip(heard, said, strict=True)}) > 3


# Ends


@pytest.mark.parametrize("way", [SNAT, WAYS[2]], ids=lambda way: way.name)
def test_half_a_command_at_the_end(lab, firewall, way):
    """Whoever stops in the middle of a command has said it; the other end hears that, and then the end."""
    with spoken(lab, way) as channel:
        for sender, receiver, text in (
            (channel.client, channel.server, b"PORT 10,1"),
            (channel.server, channel.client, b"227 (10,1"),
        ):
            sender.sendall(text)
            sender.shutdown(socket.SHUT_WR)
            with receiver.makefile("rb") as heard:
                assert heard.read() == text


def test_the_server_goes_in_the_middle(lab, firewall):
    """The session ends as one of TCP does, and nobody waits for its data connection any more."""
    with spoken(lab, SNAT) as channel:
        parent = awaiting(firewall, channel)
        channel.server.close()
        assert channel.client.recv(1) == b""
        channel.client.close()
        assert (
            record(firewall, event="end", session_id=parent["id"], sport=parent["c2s"]["sport"])["session_end_reason"]
            == "tcp-fin"
        )
        poll(lambda: not children(firewall, parent["id"]), 3, "the prediction to go")


def test_the_client_resets_in_the_middle(lab, firewall):
    """Half a command is held at that moment: it is forgotten with the rest."""
    with spoken(lab, SNAT) as channel:
        parent = awaiting(firewall, channel)
        channel.client.sendall(b"PORT 10,1,0")
        channel.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        channel.client.close()
        with pytest.raises(ConnectionResetError):
            channel.server.recv(1)
        assert (
            record(firewall, event="end", session_id=parent["id"], sport=parent["c2s"]["sport"])["session_end_reason"]
            == "tcp-rst-from-client"
        )
        poll(lambda: not children(firewall, parent["id"]), 3, "the prediction to go")


def awaiting(firewall: Firewall, channel: Channel) -> dict[str, Any]:
    """The session of a channel whose client has announced a port."""
    channel.client_says(f"PORT {six(HIDDEN, 5002)}\r\n".encode())
    port = channel.client.getsockname()[1]
    (parent,) = sessions(firewall, source_port=port, destination_port=SPOKEN, state="active")
    assert len(children(firewall, parent["id"])) == 1
    return parent


# Other middles


@pytest.mark.parametrize("seen", [CLIENT, WIRE_POOL], ids=["untranslated", "pool"])
def test_over_a_virtual_wire(seen):
    """A firewall without addresses does the same, whether the client appears as itself or as an address of a pool."""
    translated = [source_rule("pool", [CLIENT], WIRE_POOL, type="dynamic-ip-and-port")] if seen == WIRE_POOL else []
    wire = {"virtual-wires": [{"name": "wire", "interfaces": ["in0", "out0"]}], "nat-rules": translated}
    with Lab(bridge=True) as lab:
        vsftpd(lab, "server", directory(lab, "server", FILES), VSFTPD)
        back = ["lladdr", MACS["client", "eth0"], "dev", "eth0", "nud", "permanent"]
        lab.run("server", ["ip", "neighbour", "replace", seen, *back], check=True)
        with lab.firewall(CONFIG | wire), lab.capture("server", "eth0", f"tcp port {VSFTPD}") as control:
            for mode in (*ACTIVE, *PASSIVE):
                way = Way("wire", "client", CLIENT, SERVER, seen, SERVER)
                assert not (done := curl(lab, way, mode, VSFTPD)).returncode, done.stderr
            assert {frame.source for frame in control.received()} == {seen}
