"""TCP as real kernels speak it, through the firewall and its source translation: whatever two hosts may do with a
connection works, and the session says how it ended."""

import contextlib
import hashlib
import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import TCP

from tests.lab.capture import Capture
from tests.lab.firewall import Firewall
from tests.lab.lab import OUT0, SERVER, Lab, poll
from tests.lab.witness import CHUNK, config, drop_counters, receive, stopped

PHANTOM = "10.2.0.200"  # never answers
TIMEOUTS = {"tcp-init": 1, "tcp-time-wait": 1}
TCP_REPAIR = 19  # linux/tcp.h
MSG_FASTOPEN = 0x20000000
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger
PARALLEL = 1000


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(server_phantoms=[PHANTOM]) as made:
        yield made


@pytest.fixture(scope="module")
def running(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(config(TIMEOUTS)) as made:
        yield made


@pytest.fixture
def firewall(running: Firewall) -> Iterator[Firewall]:
    """None of the segments that two kernels send here is ever dropped."""
    before = drop_counters(running)
    yield running
    after = drop_counters(running)
    assert {name: value - before[name] for name, value in after.items() if value != before[name]} == {}


@contextlib.contextmanager
def connection(lab: Lab, port: int = 0, **options: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's and a server's socket, connected; options: SOL_SOCKET options of both before they connect."""
    with lab.listener("server", 0) as listening, unconnected(lab, port) as client:
        for sock in (listening, client):
            for name, value in options.items():
                sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        client.connect((SERVER, listening.getsockname()[1]))
        server, peer = listening.accept()
        assert peer[0] == OUT0
        server.settimeout(3)
        with server:
            yield client, server


def unconnected(lab: Lab, port: int = 0) -> socket.socket:
    """A client's TCP socket."""
    with lab.inside("client"):
        sock = socket.socket()
    sock.settimeout(3)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", port))
    return sock


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def assert_exchange(client: socket.socket, server: socket.socket) -> None:
    """CHUNK bytes each way."""
    for sender, receiver in ((client, server), (server, client)):
        data = os.urandom(CHUNK)
        sender.sendall(data)
        assert receive(receiver, CHUNK) == data


def send_and_end(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def wait_until_forgotten(lab: Lab, port: int) -> None:
    """Until no socket of the client holds the port."""
    poll(lambda: not lab.run("client", ["ss", "-Htan", f"sport = :{port}"]).stdout, 3, "the client to forget")


def end_of(firewall: Firewall, sport: int) -> str:
    """Why the last session from that client port ended, once the log says so."""
    records = poll(lambda: firewall.traffic_log(event="end", proto=6, sport=sport), 5, "an end record")
    return str(records[-1]["session_end_reason"])


def session_of(firewall: Firewall, client: socket.socket) -> dict[str, Any]:
    (found,) = firewall.sessions(source_port=port_of(client), protocol=6)
    return found


# Closing


def test_both_sides_close(lab, firewall):
    """Orderly end: the session waits in time-wait and is logged as tcp-fin."""
    with connection(lab) as (client, server):
        port = port_of(client)
        assert_exchange(client, server)
    assert end_of(firewall, port) == "tcp-fin"


def test_a_half_closed_connection_still_carries_data(lab, firewall):
    """The client has said all it will; the server's answer of several megabytes arrives whole."""
    answer = os.urandom(4 << 20)
    with connection(lab) as (client, server):
        port = port_of(client)
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert receive(server, 100) == b"question"
        poll(lambda: session_of(firewall, client)["timeout"] == 120, 3, "the timer of a half-closed session")
        sender = threading.Thread(target=send_and_end, args=(server, answer))
        sender.start()
        assert hashlib.sha256(receive(client, 1 << 30)).digest() == hashlib.sha256(answer).digest()
        sender.join()
    assert end_of(firewall, port) == "tcp-fin"


def test_both_sides_close_at_the_same_time(lab, firewall):
    """Two FINs cross on the way, as neither is delivered before both are sent."""
    with connection(lab) as (client, server):
        port = port_of(client)
        assert_exchange(client, server)
        with stopped(firewall):
            client.shutdown(socket.SHUT_WR)
            server.shutdown(socket.SHUT_WR)
        assert (client.recv(1), server.recv(1)) == (b"", b"")
    assert end_of(firewall, port) == "tcp-fin"


@pytest.mark.parametrize(("side", "reason"), [(0, "tcp-rst-from-client"), (1, "tcp-rst-from-server")])
def test_a_reset(lab, firewall, side, reason):
    """The other side learns of it, and the log knows who it was."""
    with connection(lab) as ends:
        port = port_of(ends[0])
        assert_exchange(*ends)
        ends[side].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        ends[side].close()
        with pytest.raises(ConnectionResetError):
            ends[not side].recv(1)
    assert end_of(firewall, port) == reason


def test_a_refused_connection(lab, firewall):
    """The server's RST comes back as if there were no firewall."""
    with unconnected(lab) as client:
        with pytest.raises(ConnectionRefusedError):
            client.connect((SERVER, 1))
        port = port_of(client)
    assert end_of(firewall, port) == "tcp-rst-from-server"


def test_a_server_that_does_not_answer(lab, firewall):
    """The client runs into its own timeout, the session into that of an unanswered SYN."""
    with unconnected(lab) as client:
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.connect((PHANTOM, 80))
        assert session_of(firewall, client)["timeout"] == 1
        port = port_of(client)
    assert end_of(firewall, port) == "aged-out"


# The same ports again


@pytest.mark.parametrize("abortive", [False, True])
def test_the_same_port_again_at_once(lab, firewall, abortive):
    """Twenty connections one after the other between the same two ports, closed in order or by a RST."""
    before = firewall.counter("tcp_session_reused")
    with lab.listener("server", 0) as listening:
        port = 0
        for _ in range(20):
            with unconnected(lab, port) as client:
                client.connect((SERVER, port_of(listening)))
                port, server = port_of(client), listening.accept()[0]
                assert_exchange(client, server)
                if abortive:
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
                server.close()  # first: it is the server that remembers the connection
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(1) == b""
            wait_until_forgotten(lab, port)
    assert firewall.counter("tcp_session_reused") >= before + 15
    assert end_of(firewall, port) == ("tcp-rst-from-server" if abortive else "tcp-fin")


def test_a_client_that_has_lost_its_memory(lab, firewall):
    """It connects again from the same port; the server challenges, is reset, and takes the new connection."""
    with lab.listener("server", 0) as listening:
        lost = unconnected(lab)
        lost.connect((SERVER, port_of(listening)))
        port, old = port_of(lost), listening.accept()[0]
        assert_exchange(lost, old)
        lost.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        lost.close()  # in repair mode: without a word to the other side
        with unconnected(lab, port) as client, old:
            client.connect((SERVER, port_of(listening)))
            with listening.accept()[0] as server:
                assert_exchange(client, server)
            with pytest.raises(ConnectionResetError):
                old.recv(1)


# What segments carry


def test_options_arrive_as_they_were_sent(lab, firewall):
    """MSS, SACK, timestamps and window scale of both SYNs are the peers' own affair."""
    syns = "tcp[tcpflags] & tcp-syn != 0"
    with lab.capture("client", "eth0", syns) as here, lab.capture("server", "eth0", syns) as there, connection(lab):
        sent, received = options(here), options(there)
    assert sent == received
    assert {name for name, _ in sent[0]} >= {"MSS", "SAckOK", "Timestamp", "WScale"}


def options(capture: Capture) -> list[list[tuple[str, Any]]]:
    """The options of the SYN and of the SYN-ACK."""
    return [frame.packet[TCP].options for frame in capture.wait(2)]


@pytest.mark.parametrize("buffer", [4096, 4 << 20])
def test_windows_of_every_size(lab, firewall, buffer):
    """Small windows that fill and open again, and large ones that need scaling: both directions at once."""
    data = os.urandom(8 << 20 if buffer > 65536 else 1 << 20)
    received: dict[int, bytes] = {}
    with connection(lab, SO_RCVBUF=buffer) as ends:

        def take(number: int) -> None:
            received[number] = receive(ends[number], len(data))

        threads = [threading.Thread(target=send_and_end, args=(sock, data)) for sock in ends]
        threads += [threading.Thread(target=take, args=(number,)) for number in (0, 1)]
        for sock in ends:
            sock.settimeout(20)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(received[number] == data for number in (0, 1))


def test_keep_alives_pass_and_restart_the_timer(lab, firewall):
    """A probe repeats a sequence number that was acknowledged; it is answered and counts as a packet."""
    with connection(lab) as (client, server):
        assert_exchange(client, server)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 1)):
            client.setsockopt(socket.IPPROTO_TCP, option, value)
        before = session_of(firewall, client)["packets_s2c"]
        poll(lambda: session_of(firewall, client)["packets_s2c"] > before, 4, "an answer to a keep-alive")
        assert session_of(firewall, client)["time_to_live"] >= 3598
        assert_exchange(client, server)


def test_urgent_data(lab, firewall):
    """The urgent pointer points to the same byte on the other side."""
    with connection(lab) as (client, server):
        client.sendall(b"normal")
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"more")
        assert receive(server, 6) == b"normal"
        assert server.recv(1, socket.MSG_OOB) == b"!"
        assert receive(server, 4) == b"more"


def test_data_in_the_syn(lab, firewall):
    """TCP Fast Open: with the cookie of the first connection the second one's SYN brings the request along."""
    for ns in ("client", "server"):
        lab.sysctl(ns, {"ipv4/tcp_fastopen": "3"})
    syns = "tcp[tcpflags] & (tcp-syn | tcp-ack) == tcp-syn"
    with lab.listener("server", 0) as listening, lab.capture("server", "eth0", syns) as capture:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        for _ in range(2):
            with unconnected(lab) as client:
                client.setblocking(True)
                client.sendto(b"request", MSG_FASTOPEN, (SERVER, port_of(listening)))
                with listening.accept()[0] as server:
                    assert receive(server, 7) == b"request"
                    server.sendall(b"answer")
                    assert receive(client, 6) == b"answer"
        assert [bytes(frame.packet[TCP].payload) for frame in capture.wait(2)] == [b"", b"request"]


def test_a_thousand_connections_at_once(lab, firewall):
    """Each has a session and a port of its own, and no byte goes to a neighbour."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    before = firewall.json("show", "session", "info")["num_installed"]
    with contextlib.ExitStack() as stack, lab.listener("server", 0) as listening:
        listening.listen(PARALLEL)
        clients = [stack.enter_context(unconnected(lab)) for _ in range(PARALLEL)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex((SERVER, port_of(listening)))
        servers = [listening.accept() for _ in clients]
        for number, client in enumerate(clients):
            client.settimeout(3)
            client.sendall(struct.pack("!I", number))
        for server, _ in servers:
            server.sendall(receive(stack.enter_context(server), 4))
        assert [struct.unpack("!I", receive(client, 4))[0] for client in clients] == list(range(PARALLEL))
        assert len({peer for _, peer in servers}) == PARALLEL
        assert firewall.json("show", "session", "info")["num_installed"] == before + PARALLEL
