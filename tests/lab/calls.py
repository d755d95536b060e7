"""Calls from the client through the firewall, and as whom the server sees the caller: what NAT is judged by."""

import errno
import random
import socket
from typing import Any

from tests.lab.firewall import Firewall
from tests.lab.lab import Lab, poll

Address = tuple[str, int]


def exchange(client: socket.socket, server: socket.socket, to: Address) -> Address:
    """A datagram to the server and its answer; whom the server saw. The client must see whom it called."""
    question = random.randbytes(100)
    client.sendto(question, to)
    received, peer = server.recvfrom(2000)
    assert received == question
    server.sendto(question[::-1], peer)
    answer, source = client.recvfrom(2000)
    assert (answer, source[:2]) == (question[::-1], to)
    return peer[0], peer[1]


def port_of(made: socket.socket) -> int:
    port: int = made.getsockname()[1]
    return port


def connect(lab: Lab, source: Address, to: Address, timeout: float = 3) -> socket.socket:
    """A TCP connection from an address and port of the client; the port may be in use towards others."""
    with lab.inside("client"):
        made = socket.socket(socket.AF_INET6 if ":" in source[0] else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(timeout)
    made.bind(source)
    made.connect(to)
    return made


def connect_again(lab: Lab, source: Address, to: Address) -> socket.socket:
    """As connect(), once the kernel has heard the last of the connection before it."""
    made: list[socket.socket] = []

    def forgotten() -> bool:
        try:
            made.append(connect(lab, source, to))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
        return bool(made)

    poll(forgotten, 3, "the connection before to be over")
    return made[0]


def called_by(listening: socket.socket, caller: socket.socket) -> Address:
    """Whom the listening socket sees as the caller, once a word has gone both ways."""
    accepted, peer = listening.accept()
    with accepted:
        accepted.settimeout(3)
        caller.sendall(b"question")
        assert accepted.recv(100) == b"question"
        accepted.sendall(b"answer")
        assert caller.recv(100) == b"answer"
    return peer[0], peer[1]


def source_rule(name: str, sources: list[str], address: str, **source: object) -> dict[str, Any]:
    """A NAT rule of the outgoing direction, for those sources and to that address."""
    return {
        "name": name,
        "nat-type": "ipv6" if ":" in address else "ipv4",
        "from": ["trust"],
        "to": "untrust",
        "source": sources,
        "source-translation": {"addresses": [address], **source},
    }


def pool_row(firewall: Firewall, rule: str) -> dict[str, Any]:
    """What `show running ippool` says of one rule's pool."""
    rows: list[dict[str, Any]] = firewall.json("show", "running", "ippool")
    return next(row for row in rows if row["rule"] == rule)
