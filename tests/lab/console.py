"""What tests of policy, sessions and logs say to the daemon and to the far side: questions, attempts, controls.

Questions go straight to the control socket, which takes a millisecond; the words of the command line have tests of
their own. An attempt is made without waiting for its outcome. With the settings IN_ORDER packets keep their order in
the firewall, so once a control that was sent later has come through, what it does about the attempt is done.
"""

import errno
import os
import select
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dataplane.client import request
from tests.lab.firewall import Firewall
from tests.lab.lab import SERVER, Lab, poll

CONTROL_PORT = 7777  # of the server, TCP and UDP; the policy of a test must allow it
PATIENCE = 3.0  # seconds
# Settings: all packets go through one hot queue, and all first packets through the slow one behind it.
IN_ORDER = {"queue": {"workers": 1}, "dispatch-cache": False}


def ask(firewall: Firewall, command: str, **arguments: object) -> list[Any]:
    """The rows that the daemon answers."""
    return list(request(firewall.directory / "runtime", command, arguments))


def sessions(firewall: Firewall, **filters: object) -> list[dict[str, Any]]:
    """`show session all`, filtered: sessions(firewall, state="active", source_port=4000)."""
    pairs = {key.replace("_", "-"): str(value) for key, value in filters.items()}
    return ask(firewall, "show session all", filter=pairs)


def session_of(firewall: Firewall, sock: socket.socket, **filters: object) -> dict[str, Any]:
    """The one session that a client's socket has opened; destination_port is needed for one that is not connected."""
    if "destination_port" not in filters:
        filters["destination_port"] = sock.getpeername()[1]
    (session,) = sessions(firewall, source_port=sock.getsockname()[1], **filters)
    return session


def counters(firewall: Firewall) -> dict[str, int]:
    """Every global counter."""
    return {row["name"]: row["value"] for row in ask(firewall, "show counter global")}


def info(firewall: Firewall) -> dict[str, Any]:
    """`show session info`."""
    (row,) = ask(firewall, "show session info")
    return dict(row)


def record(firewall: Firewall, seconds: float = PATIENCE, **fields: object) -> dict[str, Any]:
    """The one record of the traffic log with these fields, waited for."""
    found = poll(lambda: firewall.traffic_log(**fields), seconds, f"a record of {fields}")
    assert len(found) == 1, found
    return found[0]


def attempt(lab: Lab, to: tuple[str, int], kind: socket.SocketKind, ns: str = "client", port: int = 0) -> socket.socket:
    """A socket that has sent its first packet; what comes of it is outcome()'s to say. The caller closes it."""
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    with lab.inside(ns):
        sock = socket.socket(family, kind)
    sock.setblocking(False)
    sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    sock.connect_ex(to)
    if kind == socket.SOCK_DGRAM:
        sock.send(b"question")
    return sock


def outcome(sock: socket.socket) -> str:
    """`connected` (TCP only), `silence`, or the name of the error that the socket has met so far."""
    if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return errno.errorcode[error]
    stream = sock.type == socket.SOCK_STREAM
    return "connected" if stream and select.select([], [sock], [], 0)[1] else "silence"


class Control:
    """A datagram from client to server and back on a session of its own, each time it is asked."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._server = lab.udp("server", CONTROL_PORT)

    def __call__(self) -> None:
        """Crosses both ways, or TimeoutError."""
        token = os.urandom(8)
        with self._lab.udp("client") as client:
            client.sendto(token, (SERVER, CONTROL_PORT))
            received, peer = self._server.recvfrom(100)
            self._server.sendto(received, peer)
            assert received == client.recv(100) == token

    @contextmanager
    def around(self, firewall: Firewall) -> Iterator[None]:
        """Allowed traffic passes before and after, and the daemon is the same."""
        pid = firewall.pid
        self()
        yield
        self()
        assert firewall.running
        assert firewall.pid == pid


def zones() -> list[dict[str, Any]]:
    """trust on in0, untrust on out0."""
    return [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}]


def rule(name: str, action: str = "allow", **fields: object) -> dict[str, Any]:
    """A security rule; field names with underscores, a final one cut (from_)."""
    made: Mapping[str, object] = {key.strip("_").replace("_", "-"): value for key, value in fields.items()}
    return {"name": name, "action": action, **made}


def port(number: int | str, protocol: str = "tcp") -> dict[str, Any]:
    """A service."""
    return {"protocol": protocol, "destination-port": str(number)}
