"""The way to a log server: datagrams, streams, TLS, unix sockets. Opened by the first send, closed by any failure.

A connection gives up after some seconds, however the other side is silent: unanswered segments by TCP_USER_TIMEOUT, a
reader that takes nothing by the socket's timeout. Then the sink opens another one.
"""

import errno
import socket
import ssl
from pathlib import Path
from typing import Any

from dataplane.policy.servers import Server

CONNECT_TIMEOUT = 3.0  # seconds; shorter than a sink may take to stop
SEND_TIMEOUT = 4.0  # seconds without any progress
SEND_BUFFER = 1 << 20  # bytes of datagrams that may wait for the wire
HEARD, HEARINGS = 1 << 16, 16  # bytes of what a server says that are passed over at once, and how often before a send


class Transport:
    """One server. `stream` is known once it is open: a unix socket may be either."""

    def __init__(self, server: Server, ca_file: Path | None = None) -> None:
        self._server = server
        self._ca_file = ca_file
        self._socket: socket.socket | None = None
        self.stream = server.transport in ("tcp", "tls")

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def open(self) -> None:
        """Raises OSError, which ssl.SSLError and a name that is not found are, too."""
        if self._socket is None:
            self._socket = self._open()

    def send(self, payload: bytes) -> None:
        """One datagram, or all of it into the stream. Raises OSError."""
        self.open()
        assert self._socket is not None
        if self.stream:
            self._refuse_a_closed_peer(self._socket)
            self._socket.sendall(payload)
        else:
            self._socket.send(payload)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> socket.socket:
        if self._server.transport == "unix":
            return self._open_unix()
        kind = socket.SOCK_STREAM if self.stream else socket.SOCK_DGRAM
        error: OSError = OSError(errno.EADDRNOTAVAIL, f"{self._server.host} has no address")
        for family, _, _, _, address in socket.getaddrinfo(self._server.host, self._server.port, type=kind):
            opened = socket.socket(family, kind)
            try:
                return self._connect(opened, address)
            except OSError as refused:
                opened.close()
                error = refused
        raise error

    def _connect(self, opened: socket.socket, address: Any) -> socket.socket:
        opened.settimeout(CONNECT_TIMEOUT)
        if self.stream:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SEND_TIMEOUT * 1000))
        else:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        opened.connect(address)
        if self._server.transport == "tls":
            context = ssl.create_default_context(cafile=self._ca_file)
            opened = context.wrap_socket(opened, server_hostname=self._server.host)
        opened.settimeout(SEND_TIMEOUT)
        return opened

    def _open_unix(self) -> socket.socket:
        """A datagram socket, as /dev/log is, else a stream."""
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            opened = socket.socket(socket.AF_UNIX, kind)
            opened.settimeout(SEND_TIMEOUT)
            try:
                opened.connect(self._server.host)
            except OSError as error:
                opened.close()
                if error.errno != errno.EPROTOTYPE or kind is socket.SOCK_STREAM:
                    raise
            else:
                self.stream = kind is socket.SOCK_STREAM
                return opened
        raise AssertionError("a loop over two kinds has ended without either")

    def _refuse_a_closed_peer(self, opened: socket.socket) -> None:
        """A server that has gone would swallow one more send: the kernel learns of it by the answer.

        What a server says meanwhile is passed over; its end may stand behind it.
        """
        opened.setblocking(False)
        try:
            if not all(opened.recv(HEARD) for _ in range(HEARINGS)):
                raise ConnectionResetError(errno.ECONNRESET, "the server has closed the connection")
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        finally:
            opened.settimeout(SEND_TIMEOUT)
