"""The control socket's server: every command that an operator types ends here (wire format: client.py).

CONNECTIONS threads serve one connection each at a time (serving.py). Nothing that a client does or omits reaches
further than its own connection: it has READ_TIMEOUT seconds to say one line and SEND_TIMEOUT seconds to take each batch
of rows.

Rows are made while they are sent: a handler is a generator, and no more than BATCH bytes of its rows exist at once.
What a handler returns (a dict or None) joins the last line, beside `done`.

Two daemons that start on one path in the same instant are not told apart here; the lock of the pid file does that.
"""

import logging
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import msgspec

from dataplane.client import MAX_REQUEST
from dataplane.errors import DataplaneError, UsageError
from dataplane.serving import Threads, listen_at

CONNECTIONS = 16
BACKLOG = 256  # clients that wait for one of them
READ_TIMEOUT = 5.0  # seconds for the whole request
SEND_TIMEOUT = 60.0  # seconds for one batch: an operator may read a page of `| less` before the next is wanted
BATCH = 65536  # bytes

Handler = Callable[[dict[str, object]], Iterator[object]]

logger = logging.getLogger(__name__)


class Lines(bytes):
    """Rows that their handler has made lines of: each {"row": X} and a newline."""


class Request(msgspec.Struct, frozen=True):
    command: str
    arguments: dict[str, object] = {}


class ControlServer:
    """Answers commands at `path` with the handlers of their names, from start() to stop(). Its directory must exist."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._threads = Threads("control", CONNECTIONS, self._serve)
        self._started = False

    def start(self) -> None:
        """Listen; DataplaneError when another daemon answers at the path or the socket cannot be made."""
        try:
            self._threads.start(listen_at(self._path, 0o600, BACKLOG))
        except OSError as error:
            raise DataplaneError(f"{self._path}: {error.strerror or error}") from error
        self._started = True

    def stop(self) -> None:
        """Cut off every client, wait until no handler runs, remove the socket. Does nothing unless started."""
        if self._started:
            self._path.unlink(missing_ok=True)
            self._threads.stop()

    def _serve(self, connection: socket.socket) -> None:
        _send(connection, self._answer(connection))

    def _answer(self, connection: socket.socket) -> Iterator[bytes]:
        """Every line of the answer; the last one tells how it ended."""
        try:
            request = _decode(_read_line(connection))
            extras = yield from self._rows(request)
            yield _encode({"done": True, **extras})
        except DataplaneError as error:
            yield _encode({"error": str(error), "exit_code": error.exit_code})
        except Exception as error:  # a handler's bug ends one command, not the server
            logger.exception("a command failed")
            yield _encode({"error": f"internal error: {error}", "exit_code": DataplaneError.exit_code})

    def _rows(self, request: Request) -> Generator[bytes, None, dict[str, object]]:
        """The handler's rows as lines; returns what the handler returns."""
        handler = self._handlers.get(request.command)
        if handler is None:
            raise UsageError(f"unknown command {request.command!r}")
        rows = handler(request.arguments)
        while True:
            try:
                row = next(rows)
            except StopIteration as end:
                return end.value or {}
            yield row if isinstance(row, Lines) else _encode({"row": row})


def _read_line(connection: socket.socket) -> bytes:
    """The request without its newline; UsageError when it is too long, too slow or cut short."""
    deadline = time.monotonic() + READ_TIMEOUT
    line = bytearray()
    while True:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            chunk = connection.recv(BATCH)
        except OSError as error:
            raise UsageError(f"no complete request came within {READ_TIMEOUT:.0f} seconds: {error}") from error
        if not chunk:
            raise UsageError("the request is cut short: its newline is missing")
        head, newline, _ = chunk.partition(b"\n")
        line += head
        if len(line) > MAX_REQUEST:
            raise UsageError(f"the request is longer than {MAX_REQUEST} bytes")
        if newline:
            return bytes(line)


def _decode(line: bytes) -> Request:
    try:
        return msgspec.json.decode(line, type=Request)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"malformed request: {error}") from error


def _encode(line: dict[str, object]) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def _send(connection: socket.socket, lines: Iterator[bytes]) -> None:
    """Send lines in batches; OSError when the client has gone or takes none for SEND_TIMEOUT seconds."""
    batch = bytearray()
    for line in lines:
        batch += line
        if len(batch) >= BATCH:
            connection.settimeout(SEND_TIMEOUT)
            connection.sendall(batch)
            batch.clear()
    connection.settimeout(SEND_TIMEOUT)
    connection.sendall(batch)
