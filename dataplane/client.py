"""The operator's end of the control socket. Standard library only: a `show` must answer at once.

One connection carries one command, as JSON lines:

    request   {"command": "show session all", "arguments": {...}}          one line of at most MAX_REQUEST bytes
    answer    {"row":X}                                                    any number of times, then one of
              {"done": true}  or  {"error": "text", "exit_code": 1|2|3}
"""

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dataplane.errors import ConfigError, DataplaneError, Unreachable, UsageError

SOCKET_NAME = "control.sock"  # in the runtime directory
MAX_REQUEST = 16 << 20  # bytes, the newline not counted: a commit carries its configuration
PATIENCE = 30.0  # seconds that the daemon may be silent
BLOCK = 1 << 18  # bytes taken at once, where many rows are
ROW, ROW_END = b'{"row":', b"}\n"  # what stands around a row; no newline is in one, so they cannot be mistaken


class Answer(Iterator[object]):
    """The rows of one command as they arrive; no more than one is held, or one block.

    Iteration raises what the daemon's last line says, and DataplaneError when the daemon goes away before it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._patience = connection.gettimeout()
        self._lines = connection.makefile("rb")
        self.done: dict[str, object] = {}  # the last line, once the rows are read
        self._ahead = self._line()  # a line that was read and not yet given out
        if not self._ahead.startswith(ROW):
            self._end(self._ahead)

    def __next__(self) -> object:
        line = self._row()
        if not line:
            raise StopIteration
        return _decoded(line)["row"]

    def blocks(self) -> Iterator[bytes]:
        """The rows' JSON as it was sent, many rows at once with a comma and a newline between two of them.

        Nothing is decoded, which is what makes a long list fast.
        """
        while lines := self._rows():
            yield lines[len(ROW) : -len(ROW_END)].replace(ROW_END + ROW, b",\n")

    def _rows(self) -> bytes:
        """Some whole lines of rows; none at the end."""
        lines = self._row()
        if not lines:
            return b""
        lines += self._read(lambda: self._lines.read1(BLOCK))
        if not lines.endswith(b"\n"):
            lines += self._line()
        last = lines.rfind(b"\n", 0, -1) + 1
        if not lines.startswith(ROW, last):
            lines, self._ahead = lines[:last], lines[last:]
        return lines

    def _row(self) -> bytes:
        """One row's line; none at the end."""
        line, self._ahead = self._ahead or self._line(), b""
        if line.startswith(ROW):
            return line
        self._ahead = line  # an iterator that has ended stays so
        self._end(line)
        return b""

    def _end(self, line: bytes) -> None:
        self.done = _decoded(line)
        if "error" in self.done:
            raise _failure(str(self.done["error"]), self.done["exit_code"])

    def _line(self) -> bytes:
        line = self._read(self._lines.readline)
        if not line.endswith(b"\n"):
            raise DataplaneError("the daemon went away before its answer was complete")
        return line

    def _read(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except TimeoutError:
            raise DataplaneError(f"the daemon has been silent for {self._patience:g} seconds") from None
        except OSError as error:
            raise DataplaneError(f"the daemon's answer broke off: {error}") from error


def request(runtime_dir: Path, command: str, arguments: Mapping[str, object], patience: float = 0.0) -> Answer:
    """Ask the daemon of `runtime_dir`; what it refuses outright is raised here, before the first row.

    Raises Unreachable when nobody listens there, else what the daemon's error says. `patience`: seconds
    that it may be silent, PATIENCE unless it is said.
    """
    line = json.dumps({"command": command, "arguments": arguments}).encode()
    if len(line) > MAX_REQUEST:
        raise UsageError(f"the command is longer than {MAX_REQUEST} bytes")
    connection = _connect(runtime_dir / SOCKET_NAME, patience or PATIENCE)
    try:
        connection.sendall(line + b"\n")
    except OSError:
        pass  # refused unread; the answer says why
    return Answer(connection)


def _connect(path: Path, patience: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(patience)
    try:
        connection.connect(str(path))
    except OSError as error:
        raise Unreachable(f"no daemon answers at {path}: {error.strerror or error}") from error
    return connection


def _decoded(line: bytes) -> dict[str, object]:
    try:
        return dict(json.loads(line))
    except ValueError as error:
        raise DataplaneError(f"the daemon's answer broke off: {error}") from error


def _failure(text: str, exit_code: object) -> DataplaneError:
    if exit_code == UsageError.exit_code:
        return UsageError(text)
    if exit_code == ConfigError.exit_code:
        return ConfigError(text.splitlines())
    return DataplaneError(text)
