"""Threads that wait in accept(): a server whose clients cannot start a thread or hold more than one.

Each thread serves one connection at a time; further clients wait in the kernel's backlog. What a client may say, and
how long it may take, is the business of whoever serves it.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dataplane.errors import DataplaneError

STOP_TIMEOUT = 5.0  # seconds that whoever serves gets to notice that its client is cut off

logger = logging.getLogger(__name__)


class Threads:
    """`n` of them, from start() to stop(); `serve` gets each connection, which is closed when it returns.

    OSError of `serve` means that the client has gone or is too slow.
    """

    def __init__(self, name: str, n: int, serve: Callable[[socket.socket], None]) -> None:
        self._name = name
        self._n = n
        self._serve = serve
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # whoever holds it may hang up: no connection is closed meanwhile
        self._connections: set[socket.socket] = set()

    def start(self, listener: socket.socket) -> None:
        """Serve whoever connects to a socket that listens, which is ours from now on."""
        self._listener = listener
        for number in range(self._n):
            thread = threading.Thread(target=self._run, args=(listener,), name=f"{self._name}-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Cut off every client and wait until nobody is served. Does nothing unless started."""
        if self._listener is None:
            return
        with self._lock:
            self._stopping.set()
            for connection in (self._listener, *self._connections):
                _hang_up(connection)
        deadline = time.monotonic() + STOP_TIMEOUT
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                logger.warning("%s still answers somebody who does not wait any more", thread.name)
        self._listener.close()
        self._listener = None

    def _run(self, listener: socket.socket) -> None:
        while (connection := self._accept(listener)) is not None:
            try:
                self._serve(connection)
            except OSError as error:
                logger.info("a client left before its answer was complete: %s", error)
            except Exception:  # a bug ends one answer, not the server
                logger.exception("an answer failed")
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


def listen_at(path: Path, mode: int, backlog: int) -> socket.socket:
    """A Unix socket that listens. DataplaneError where somebody else does, OSError as bind(2) reports it."""
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(mode)  # nobody can connect before listen(), so the umask never matters
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


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


def _hang_up(connection: socket.socket) -> None:
    """Wake whoever waits on the socket; closing it alone would not."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side was faster
