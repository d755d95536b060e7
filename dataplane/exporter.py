"""The HTTP server that Prometheus asks: GET /metrics and nothing else, off unless the configuration says where.

CONNECTIONS threads serve one connection each at a time (serving.py). Whoever connects has READ_TIMEOUT seconds for his
whole request of at most MAX_HEAD bytes and SEND_TIMEOUT to take the whole answer; then he is cut off. Nothing of the
firewall waits for this, and nobody can fill its log by it.
"""

import io
import logging
import socket
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataplane.engine import Engine
from dataplane.errors import DataplaneError
from dataplane.policy.listen import Listen, parse_listen
from dataplane.serving import Threads, listen_at

if TYPE_CHECKING:
    from dataplane.metrics import Scrapes

CONNECTIONS = 4
BACKLOG = 32  # of those that wait for one of them
READ_TIMEOUT = 5.0  # seconds
SEND_TIMEOUT = 10.0
MAX_HEAD = 8192  # bytes of a request
PATH = "/metrics"

log = logging.getLogger(__name__)


class Exporter:
    """Serves an engine's metrics from start() to stop(), if its configuration wants that."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._written: str | None = None  # where it listens
        self._path: Path | None = None
        self._threads: Threads | None = None

    def start(self) -> None:
        """Listen; DataplaneError where that cannot be done."""
        written = self._engine.config.metrics.listen
        if written is None:
            return
        from dataplane.metrics import Scrapes  # prometheus-client: who does not listen does not load it

        scrapes = Scrapes(self._engine)
        try:
            listener = self._listen(parse_listen(written))
        except OSError as error:
            raise DataplaneError(f"metrics: {written}: {error.strerror or error}") from error
        self._threads = Threads("metrics", CONNECTIONS, lambda connection: answer(connection, scrapes))
        self._threads.start(listener)
        self._written = written
        log.info("metrics at %s", written)

    def follow(self) -> None:
        """Listen where a committed configuration says, if that is somewhere else; DataplaneError as in start()."""
        if self._engine.config.metrics.listen != self._written:
            self.stop()
            self.start()

    def stop(self) -> None:
        """Cut off every client and wait until nobody is served. Does nothing unless started."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._threads is not None:
            self._threads.stop()
        self._written = self._path = self._threads = None

    def _listen(self, where: Listen) -> socket.socket:
        if where.path:
            listener = listen_at(Path(where.path), 0o660, BACKLOG)
            self._path = Path(where.path)
            return listener
        family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
        return socket.create_server((where.host, where.port), family=family, backlog=BACKLOG)


def answer(connection: socket.socket, scrapes: "Scrapes") -> None:
    """One request, if a whole one comes in time."""
    try:
        Request(connection, scrapes)
    except OSError as error:
        log.debug("a scrape was not served: %s", error)


class Request(BaseHTTPRequestHandler):
    """One request and its answer, made by being constructed."""

    def __init__(self, connection: socket.socket, scrapes: "Scrapes") -> None:
        self._scrapes = scrapes
        super().__init__(connection, ("", 0), None)  # type: ignore[arg-type] # it asks its server nothing

    def setup(self) -> None:
        """The whole head is read before a byte of it is looked at, and the whole answer is made before it is sent."""
        self.connection = self.request
        self.rfile = io.BytesIO(_read_head(self.connection))
        self.wfile = self._answer = io.BytesIO()

    def finish(self) -> None:
        self.connection.settimeout(SEND_TIMEOUT)
        self.connection.sendall(self._answer.getvalue())

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self.send_error(404, explain=f"metrics are at {PATH}")
            return
        content_type, body = self._scrapes.text(self.headers.get("Accept", ""))
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def version_string(self) -> str:
        return "dataplane"

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _read_head(connection: socket.socket) -> bytes:
    """All of a request up to its empty line, or what came of it: the parser refuses the rest."""
    deadline = time.monotonic() + READ_TIMEOUT
    head = bytearray()
    while b"\r\n\r\n" not in head and len(head) <= MAX_HEAD:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        chunk = connection.recv(MAX_HEAD)
        if not chunk:
            raise ConnectionError("the request is cut short")
        head += chunk
    if b"\r\n\r\n" not in head:
        raise ConnectionError(f"the request is longer than {MAX_HEAD} bytes")
    return bytes(head)
