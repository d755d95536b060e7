"""The operator's end of the control socket. Standard library only: a `show` must answer at once.

One connection carries one command, as JSON lines:

    request   {"command": "show session all", "arguments": {...}}          one line of at most MAX_REQUEST bytes
    answer    {"row": X}                                                   any number of times, then one of
              {"done": true}  or  {"error": "text", "exit_code": 1|2|3}
"""

import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from dataplane.errors import ConfigError, DataplaneError, Unreachable, UsageError

SOCKET_NAME = "control.sock"  # in the runtime directory
MAX_REQUEST = 16 << 20  # bytes, the newline not counted: a commit carries its configuration
PATIENCE = 30.0  # seconds that the daemon may be silent


class Answer(Iterator[object]):
    """The rows of one command as they arrive; no more than one is held.

    Iteration raises what the daemon's last line says, and DataplaneError when the daemon goes away before it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._patience = connection.gettimeout()
        self._lines = connection.makefile("rb")
        self._ahead: dict[str, object] | None = self._read()
        self.done: dict[str, object] = {}  # the last line, once the rows are read

    def __next__(self) -> object:
        line = self._ahead or self._read()
        if "row" not in line:
            self._ahead = self.done = line  # an iterator that has ended stays so
            raise StopIteration
        self._ahead = None
        return line["row"]

    def _read(self) -> dict[str, object]:
        try:
            text = self._lines.readline()
            line = json.loads(text) if text.endswith(b"\n") else None
        except TimeoutError:
            raise DataplaneError(f"the daemon has been silent for {self._patience:g} seconds") from None
        except (OSError, ValueError) as error:
            raise DataplaneError(f"the daemon's answer broke off: {error}") from error
        if line is None:
            raise DataplaneError("the daemon went away before its answer was complete")
        if "error" in line:
            raise _failure(line["error"], line["exit_code"])
        return dict(line)


def request(runtime_dir: Path, command: str, arguments: Mapping[str, object], patience: float = PATIENCE) -> Answer:
    """Ask the daemon of `runtime_dir`; what it refuses outright is raised here, before the first row.

    Raises Unreachable when nobody listens there, else what the daemon's error says.
    """
    line = json.dumps({"command": command, "arguments": arguments}).encode()
    if len(line) > MAX_REQUEST:
        raise UsageError(f"the command is longer than {MAX_REQUEST} bytes")
    connection = _connect(runtime_dir / SOCKET_NAME, patience)
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


def _failure(text: str, exit_code: int) -> DataplaneError:
    if exit_code == UsageError.exit_code:
        return UsageError(text)
    if exit_code == ConfigError.exit_code:
        return ConfigError(text.splitlines())
    return DataplaneError(text)
