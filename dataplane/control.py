"""The control socket's server: every command that an operator types ends here (wire format: client.py).

CONNECTIONS threads wait in accept(); each serves one connection at a time, so no client can start a thread or hold more
than one. Further clients wait in the kernel's backlog. Nothing that a client does or omits reaches further than its own
connection: it has READ_TIMEOUT seconds to say one line and SEND_TIMEOUT seconds to take each batch of rows.

Rows are made while they are sent: a handler is a generator, and no more than BATCH bytes of its rows exist at once.
What a handler returns (a dict or None) joins the last line, beside `done`.

Two daemons that start on one path in the same instant are not told apart here; the lock of the pid file does that.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import msgspec

from dataplane.client import MAX_REQUEST
from dataplane.errors import DataplaneError, UsageError

CONNECTIONS = 16
BACKLOG = 256  # clients that wait for one of them
READ_TIMEOUT = 5.0  # seconds for the whole request
SEND_TIMEOUT = 60.0  # seconds for one batch: an operator may read a page of `| less` before the next is wanted
STOP_TIMEOUT = 5.0  # seconds that a handler gets to notice that its client is cut off
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
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # whoever holds it may hang up: no connection is closed meanwhile
        self._connections: set[socket.socket] = set()

    def start(self) -> None:
        """Listen; DataplaneError when another daemon answers at the path or the socket cannot be made."""
        try:
            _remove_stale(self._path)
            self._listener = listener = _listen(self._path)
        except OSError as error:
            raise DataplaneError(f"{self._path}: {error.strerror or error}") from error
        for number in range(CONNECTIONS):
            thread = threading.Thread(target=self._serve, args=(listener,), name=f"control-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Cut off every client, wait until no handler runs, remove the socket. Does nothing unless started."""
        if self._listener is None:
            return
        self._path.unlink(missing_ok=True)
        with self._lock:
            self._stopping.set()
            for connection in (self._listener, *self._connections):
                _hang_up(connection)
        deadline = time.monotonic() + STOP_TIMEOUT
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                logger.warning("%s still answers a command that nobody waits for", thread.name)
        self._listener.close()
        self._listener = None

    def _serve(self, listener: socket.socket) -> None:
        while (connection := self._accept(listener)) is not None:
            try:
                _send(connection, self._answer(connection))
            except OSError as error:
                logger.info("a client left before its answer was complete: %s", error)
            finally:
                with self._lock:
                    self._connections.remove(connection)
                    connection.close()

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        """The next connection; None once the server stops."""
        while not self._stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if not self._stopping.wait(0.1):  # out of file descriptors, most likely: the cause lasts
                    logger.warning("accept: %s", error)
                continue
            with self._lock:
                if not self._stopping.is_set():
                    self._connections.add(connection)
                    return connection
            connection.close()
        return None

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


def _remove_stale(path: Path) -> None:
    """Make room where a daemon died; DataplaneError where one lives, or where something else than a socket lies."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if not path.is_socket():
                raise DataplaneError(f"{path} is not a socket") from None
            path.unlink()
            return
        except BlockingIOError:
            pass  # alive: its backlog is full
    raise DataplaneError(f"another daemon answers at {path}")


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # nobody can connect before listen(), so the umask never matters
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _hang_up(connection: socket.socket) -> None:
    """Wake whoever waits on the socket; closing it alone would not."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side was faster


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
