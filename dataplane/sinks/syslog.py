"""The traffic log as syslog (RFC 5424): over UDP (RFC 5426), TCP with octet counting (RFC 6587), TLS (RFC 5425), or a
unix socket, which is a datagram or else a stream whose messages end with a newline.

    <134>1 2026-01-01T00:00:00.000Z fw dataplane 4711 TRAFFIC [meta sequenceId="1"] {"event":"end", ...}

sequenceId counts per sink, so that a server sees what it has missed. After a connection broke, the last few messages
may come twice, with the numbers that they had.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from dataplane.policy.servers import Server
from dataplane.sinks.base import Outlet, Parcel
from dataplane.sinks.transport import Transport

FACILITIES = (
    {
        word: number
        for number, word in enumerate(
            ("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron")
        )
    }
    | {"authpriv": 10, "ftp": 11}
    | {f"local{number}": 16 + number for number in range(8)}
)
INFORMATIONAL = 6
MAX_SEQUENCE = 2**31 - 1  # then 1 again (RFC 5424, 7.3.1)
TOGETHER = 64  # messages of one write to a stream
MAX_DATAGRAM = 65000  # bytes

Bodies = Callable[[bytes], Iterable[bytes]]


class Syslog(Outlet):
    """One server; `bodies` turns JSON lines into what the messages say."""

    patient = True

    def __init__(self, server: Server, transport: Transport, bodies: Bodies, facility: str, app_name: str) -> None:
        self._server = server
        self._transport = transport
        self._bodies = bodies
        self._priority = FACILITIES[facility] * 8 + INFORMATIONAL
        self._from = f"{socket.gethostname() or '-'} {app_name} {os.getpid()} TRAFFIC"
        self._sequence = 0

    def pack(self, lines: bytes, records: int) -> Iterator[Parcel]:
        del records
        messages = map(self._message, lines.splitlines(), self._bodies(lines))
        if self._server.transport in ("udp", "unix"):
            yield from ((message[:MAX_DATAGRAM], 1) for message in messages)
            return
        while held := list(islice(messages, TOGETHER)):
            yield b"".join(b"%d %s" % (len(message), message) for message in held), len(held)

    def send(self, payload: bytes) -> None:
        self._transport.open()
        by_newline = self._transport.stream and self._server.transport == "unix"
        self._transport.send(payload + b"\n" if by_newline else payload)

    def close(self) -> None:
        self._transport.close()

    def tells_of_earlier(self, error: OSError) -> bool:
        """A refusal over UDP answers the datagram before."""
        return self._server.transport == "udp" and isinstance(error, ConnectionRefusedError)

    def _message(self, line: bytes, body: bytes) -> bytes:
        self._sequence = self._sequence % MAX_SEQUENCE + 1
        head = f'<{self._priority}>1 {time_of(line)} {self._from} [meta sequenceId="{self._sequence}"] '
        return head.encode() + body


def time_of(line: bytes) -> str:
    """The time that a JSON line tells, or the nil value."""
    _, key, rest = line.partition(b'"time":"')
    return rest.partition(b'"')[0].decode() if key else "-"


def json_bodies(lines: bytes) -> Iterable[bytes]:
    """The records as they are in traffic.json."""
    return lines.splitlines()
