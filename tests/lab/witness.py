"""What a test of faults and attacks asks meanwhile: does the firewall still forward, is it the same one, where did the
packets go?

Nothing here believes the firewall: the answers come from sockets of the two ends, from /proc and from the kernel.
"""

import os
import signal
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from tests.lab.capture import ones_complement
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, CLIENT6, SERVER, SERVER6, Lab, poll

CONTROL_PORT = 7000  # of the server, TCP: what the controls connect to
DENIED_PORT = 23  # TCP and UDP, by rule deny-telnet
CHUNK = 1000  # bytes that one exchange of a stream carries each way
ECHO_REQUEST, ECHO_REPLY = 8, 0
UNACKED = struct.Struct("24xI")  # tcpi_unacked of struct tcp_info
SOL_RAW, ICMP_FILTER = 255, 1  # linux/icmp.h; Python's socket module lacks them

SHORT_TIMEOUTS = {
    "tcp-init": 2, "tcp-handshake": 2, "tcp-half-closed": 2, "tcp-time-wait": 1, "tcp-unverified-rst": 1,
    "udp": 2, "icmp": 2, "default": 2, "discard-tcp": 2, "discard-udp": 2, "discard-default": 2,
}  # fmt: skip


def config(timeouts: Mapping[str, int] = {}, **session: object) -> dict[str, Any]:
    """Trust may go out behind out0's address, but not to port 23; untrust may come in to port 80; both may ping us.

    timeouts, session: what goes into settings.session, with underscores for hyphens.
    """
    telnet = {"protocol": "tcp", "destination-port": DENIED_PORT}
    anything = {"source": ["any"], "destination": ["any"], "application": ["any"]}
    outward, inward = {"from": ["trust"], "to": ["untrust"]}, {"from": ["untrust"], "to": ["trust"]}
    logged = {"log-start": True, "log-end": True}
    return {
        "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
        "services": {
            "telnet": telnet,
            "telnet-udp": {**telnet, "protocol": "udp"},
            "http": {"protocol": "tcp", "destination-port": 80},
        },
        "security-rules": [
            {
                "name": "deny-telnet",
                **outward,
                **anything,
                "service": ["telnet", "telnet-udp"],
                "action": "deny",
                **logged,
            },
            {"name": "lan-out", **outward, **anything, "service": ["any"], "action": "allow", **logged},
            {"name": "web-in", **inward, **anything, "service": ["http"], "action": "allow", **logged},
        ],
        "nat-rules": [
            {
                "name": "lan-snat",
                "from": ["trust"],
                "to": "untrust",
                "source": ["10.1.0.0/24"],
                "destination": ["any"],
                "service": "any",
                "source-translation": {"type": "dynamic-ip-and-port", "interface": "out0"},
            }
        ],
        "host-inbound": {"trust": ["ping"], "untrust": ["ping"]},
        "settings": {
            "session": {
                **{key.replace("_", "-"): value for key, value in session.items()},
                "timeouts": dict(timeouts),
            }
        },
    }


class Controls:
    """An allowed ping and an allowed connection from client to server, each a new session. One per lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._listening = lab.listener("server", CONTROL_PORT)

    def assert_pass(self) -> None:
        """Both cross, the connection with a byte each way."""
        ping = self._lab.run("client", ["ping", "-n", "-c", "1", "-W", "3", SERVER])
        assert ping.returncode == 0, ping.stdout
        with self._lab.connect("client", (SERVER, CONTROL_PORT)) as client, self._listening.accept()[0] as accepted:
            accepted.settimeout(3)
            client.sendall(b"?")
            assert accepted.recv(1) == b"?"
            accepted.sendall(b"!")
            assert client.recv(1) == b"!"

    def assert_shut(self) -> None:
        """Nothing crosses, of either family: neither datagrams nor an attempt to connect, nor a ping."""
        first = [
            IP(src=CLIENT, dst=SERVER) / UDP(sport=4001, dport=CONTROL_PORT) / b"4",
            IP(src=CLIENT, dst=SERVER) / TCP(sport=4001, dport=CONTROL_PORT, flags="S"),
            IPv6(src=CLIENT6, dst=SERVER6) / UDP(sport=4001, dport=CONTROL_PORT) / b"6",
        ]
        with self._lab.capture("server", "eth0", "udp or tcp or icmp") as capture:
            self._lab.inject("client", *first)
            ping = self._lab.run("client", ["ping", "-n", "-c", "1", "-W", "0.3", SERVER])
            assert ping.returncode, ping.stdout
            assert capture.received() == []

    @contextmanager
    def unharmed(self, firewall: Firewall) -> Iterator[None]:
        """What happens inside harms nobody: the controls pass before and after, and the daemon is the same process."""
        pid = firewall.pid
        self.assert_pass()
        yield
        self.assert_pass()
        assert firewall.running
        assert firewall.pid == pid


def quiet(*ends: socket.socket) -> bool:
    """Nothing that was said waits for an acknowledgement."""
    infos = (end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, UNACKED.size) for end in ends)
    return not any(UNACKED.unpack(told)[0] for told in infos)


class Established:
    """Three sessions that exist already: a TCP stream, a UDP ping-pong and a ping to one of the server's addresses."""

    def __init__(self, lab: Lab, address: str = SERVER) -> None:
        self._address = address
        with lab.listener("server", 0) as listening:
            self.client = lab.connect("client", (address, listening.getsockname()[1]))
            self.server, self.peer = listening.accept()
        self.server.settimeout(3)
        self.datagrams, self.answers = lab.udp("client"), lab.udp("server", 0, address)
        self.datagrams.connect((address, self.answers.getsockname()[1]))
        with lab.inside("client"):
            self._echo = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._echo.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", ~(1 << ECHO_REPLY) & 0xFFFFFFFF))
        self._echo.settimeout(3)
        self._echo_id = self.client.getsockname()[1]
        self._count = 0
        self.exchange()

    def exchange(self) -> None:
        """One round of each; TimeoutError when one of them waits for more than three seconds."""
        self._count += 1
        self.exchange_stream()
        self.exchange_datagrams()
        self.exchange_echo()

    def exchange_stream(self) -> None:
        """CHUNK bytes each way."""
        for sender, receiver in ((self.client, self.server), (self.server, self.client)):
            sent = os.urandom(CHUNK)
            sender.sendall(sent)
            assert receive(receiver, CHUNK) == sent

    def exchange_datagrams(self) -> None:
        """A datagram and its answer."""
        question = struct.pack("!I", self._count)
        self.datagrams.send(question)
        received, peer = self.answers.recvfrom(100)
        assert received == question
        self.answers.sendto(received, peer)
        assert self.datagrams.recv(100) == question

    def exchange_echo(self) -> None:
        """An echo request and its reply."""
        body = struct.pack("!HH", self._echo_id, self._count & 0xFFFF)
        checksum = ~ones_complement(struct.pack("!BBH", ECHO_REQUEST, 0, 0) + body) & 0xFFFF
        self._echo.sendto(struct.pack("!BBH", ECHO_REQUEST, 0, checksum) + body, (self._address, 0))
        while not (received := self._echo.recv(1500)[20:]).startswith(b"\0\0") or received[4:8] != body:
            pass

    def close(self) -> None:
        for sock in (self.client, self.server, self.datagrams, self.answers, self._echo):
            sock.close()


@contextmanager
def stopped(firewall: Firewall) -> Iterator[None]:
    """The whole daemon stands still."""
    os.kill(firewall.pid, signal.SIGSTOP)
    try:
        poll(lambda: thread_states(firewall.pid) == {"T"}, 3, "every thread to stop")
        yield
    finally:
        os.kill(firewall.pid, signal.SIGCONT)


def thread_states(pid: int) -> set[str]:
    """The letters of proc(5) for what the threads of a process do; T is stopped by a signal."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}


def receive(sock: socket.socket, length: int) -> bytes:
    """Exactly so many bytes of a stream; fewer when it ends before."""
    received = bytearray()
    while len(received) < length and (data := sock.recv(length - len(received))):
        received += data
    return bytes(received)


def arrives(client: socket.socket, server: socket.socket, seconds: float = 0.5) -> bool:
    """Whether a datagram from one UDP socket to the other, at SERVER, is received in time."""
    token = os.urandom(8)
    client.sendto(token, (SERVER, server.getsockname()[1]))
    server.settimeout(seconds)
    try:
        while server.recv(100) != token:
            pass
    except TimeoutError:
        return False
    return True


def drain(sock: socket.socket) -> list[bytes]:
    """Every datagram that has arrived at a socket."""
    sock.setblocking(False)
    received = []
    try:
        while True:
            received.append(sock.recv(65535))
    except BlockingIOError:
        return received
    finally:
        sock.settimeout(3)


@dataclass(frozen=True, slots=True)
class Queue:
    """One row of /proc/net/netfilter/nfnetlink_queue: packets that wait, that were dropped, and all there ever were."""

    waiting: int
    dropped: int  # the queue was full
    unsent: int  # the reader's socket was full
    packets: int


def queues(lab: Lab) -> dict[int, Queue]:
    """The firewall's queues by number."""
    with lab.inside("firewall"):
        rows = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text().splitlines()
    fields = [list(map(int, row.split())) for row in rows]
    return {row[0]: Queue(row[2], row[5], row[6], row[7]) for row in fields}


def received_packets(lab: Lab, ns: str) -> int:
    """Frames that have arrived at an endpoint."""
    with lab.inside(ns), Path("/proc/thread-self/net/dev").open() as file:
        return next(int(line.split()[2]) for line in file if line.split()[0] == "eth0:")


def resident(pid: int) -> int:
    """Bytes of memory that the process has in use."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def drop_counters(firewall: Firewall) -> dict[str, int]:
    """Every counter of severity drop by its name."""
    shown = firewall.json("show", "counter", "global", "filter", "severity", "drop", "value", "all")
    return {counter["name"]: counter["value"] for counter in shown}
