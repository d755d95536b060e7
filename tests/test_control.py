"""The control socket from both ends: answers, refusals, and clients that mean no good."""

import json
import logging
import os
import socket
import stat
import threading
import tracemalloc
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from dataplane import control
from dataplane.client import MAX_REQUEST, SOCKET_NAME, request
from dataplane.control import ControlServer
from dataplane.errors import ConfigError, DataplaneError, Unreachable, UsageError


def count_to(arguments: dict[str, object]) -> Iterator[object]:
    last = arguments["last"]
    assert isinstance(last, int)
    yield from range(last)


def timed(_arguments: dict[str, object]) -> Generator[object, None, dict[str, object]]:
    yield "row"
    return {"elapsed": 1.5}


def refuse(_arguments: dict[str, object]) -> Iterator[object]:
    raise DataplaneError("session 7 is unknown")


def misconfigured(_arguments: dict[str, object]) -> Iterator[object]:
    raise ConfigError(["a.yaml:1: zones: none", "a.yaml:2: nat-rules: none"])


def break_off(_arguments: dict[str, object]) -> Iterator[object]:
    yield "row"
    raise UsageError("no such row")


def buggy(_arguments: dict[str, object]) -> Iterator[object]:
    yield {"unencodable": object()}


HANDLERS: dict[str, control.Handler] = {
    "count": count_to,
    "timed": timed,
    "refuse": refuse,
    "misconfigured": misconfigured,
    "break off": break_off,
    "buggy": buggy,
}


@pytest.fixture
def server(tmp_path):
    server = ControlServer(tmp_path / SOCKET_NAME, HANDLERS)
    server.start()
    yield server
    server.stop()


def connect(directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(20)
    connection.connect(str(directory / SOCKET_NAME))
    return connection


def say(directory: Path, data: bytes) -> dict[str, object]:
    """The last line of the answer to raw bytes."""
    with connect(directory) as connection, connection.makefile("rb") as lines:
        try:
            connection.sendall(data)
        except BrokenPipeError:
            pass  # refused before it was read to its end
        while True:
            line = json.loads(lines.readline())
            if "row" not in line:
                return dict(line)


def alive(directory: Path) -> bool:
    return list(request(directory, "count", {"last": 3})) == [0, 1, 2]


@pytest.mark.usefixtures("server")
class TestAnswers:
    def test_rows_come_in_order(self, tmp_path):
        """More rows than fit in one batch."""
        assert list(request(tmp_path, "count", {"last": 20_000})) == list(range(20_000))

    def test_no_rows(self, tmp_path):
        """An empty list is an answer too, and stays empty."""
        answer = request(tmp_path, "count", {"last": 0})
        assert list(answer) == []
        assert list(answer) == []

    def test_extras_follow_the_rows(self, tmp_path):
        """What a handler returns stands in the last line."""
        answer = request(tmp_path, "timed", {})
        assert list(answer) == ["row"]
        assert answer.done == {"done": True, "elapsed": 1.5}

    def test_a_refusal_keeps_its_reason_and_exit_code(self, tmp_path):
        """The daemon's error is raised at once, of the kind that it was there."""
        with pytest.raises(DataplaneError, match="session 7 is unknown") as refused:
            request(tmp_path, "refuse", {})
        assert refused.value.exit_code == 1
        with pytest.raises(ConfigError) as invalid:
            request(tmp_path, "misconfigured", {})
        assert invalid.value.problems == ["a.yaml:1: zones: none", "a.yaml:2: nat-rules: none"]

    def test_an_error_after_rows(self, tmp_path):
        """Rows that were sent before the failure arrive."""
        answer = request(tmp_path, "break off", {})
        assert next(answer) == "row"
        with pytest.raises(UsageError, match="no such row"):
            next(answer)

    def test_a_bug_ends_one_command_and_is_logged(self, tmp_path, caplog):
        """The traceback is for the log, the message for the operator; the server goes on."""
        with caplog.at_level(logging.ERROR), pytest.raises(DataplaneError, match="internal error: ") as failed:
            request(tmp_path, "buggy", {})
        assert failed.value.exit_code == 1
        assert "Traceback" in caplog.text
        assert alive(tmp_path)

    def test_unknown_command(self, tmp_path):
        """A newer client is told what the daemon does not know."""
        with pytest.raises(UsageError, match="unknown command 'show wisdom'"):
            request(tmp_path, "show wisdom", {})


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"nonsense\n",
        b"[]\n",
        b'{"command": 1}\n',
        b'{"command": "count", "arguments": []}\n',
        b'{"arguments": {}}\n',
        b'{"command": "\xff"}\n',
        b'{"command": "count", "arguments": {"last": ' + b"[" * 40_000 + b"\n",
    ],
    ids=range(8),
)
def test_malformed_requests_are_refused(tmp_path, line):
    """Whatever is not a request gets a reason, and the next client an answer."""
    answer = say(tmp_path, line)
    assert answer["exit_code"] == 2
    assert str(answer["error"]).startswith("malformed request")
    assert alive(tmp_path)


@pytest.mark.usefixtures("server")
def test_the_longest_request_passes_and_one_byte_more_does_not(tmp_path):
    """The limit holds for the line, wherever its newline is."""
    shell = b'{"command":"count","arguments":{"last":1,"pad":"%s"}}'
    pad = b"x" * (MAX_REQUEST - len(shell % b""))
    assert say(tmp_path, shell % pad + b"\n") == {"done": True}
    assert f"longer than {MAX_REQUEST} bytes" in str(say(tmp_path, shell % (pad + b"x") + b"\n")["error"])


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("size", [MAX_REQUEST + 1, MAX_REQUEST + (4 << 20)])
def test_a_huge_request_is_refused_before_it_ends(tmp_path, size):
    """Nobody can make the daemon collect bytes."""
    answer = say(tmp_path, b"x" * size)
    assert answer["exit_code"] == 2
    assert f"longer than {MAX_REQUEST} bytes" in str(answer["error"])
    assert alive(tmp_path)


def test_a_request_without_end_is_refused(server, tmp_path):
    """Half a line and a closed connection are no request."""
    with connect(tmp_path) as connection, connection.makefile("rb") as lines:
        connection.sendall(b'{"command": "count"')
        connection.shutdown(socket.SHUT_WR)
        assert "cut short" in json.loads(lines.read())["error"]


def test_slow_clients_are_refused_and_keep_nobody_waiting_for_long(server, tmp_path, monkeypatch):
    """As many silent clients as there are threads. The time is for the whole line: a byte now and then buys none."""
    monkeypatch.setattr(control, "READ_TIMEOUT", 0.3)
    silent = [connect(tmp_path) for _ in range(control.CONNECTIONS)]
    assert alive(tmp_path)
    with connect(tmp_path) as connection, connection.makefile("rb") as lines:
        stop = threading.Event()

        def dribble() -> None:
            while not stop.wait(0.02):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

        dribbler = threading.Thread(target=dribble)
        dribbler.start()
        assert "no complete request" in json.loads(lines.readline())["error"]
        stop.set()
        dribbler.join()
    for connection in silent:
        assert "no complete request" in json.loads(connection.makefile("rb").readline())["error"]
        connection.close()


def test_a_client_that_takes_no_rows_is_cut_off(tmp_path, monkeypatch):
    """Its handler ends as if its loop had been left, so that it may release what it holds."""
    monkeypatch.setattr(control, "SEND_TIMEOUT", 0.2)
    released = threading.Event()

    def endless(_arguments: dict[str, object]) -> Iterator[object]:
        try:
            while True:
                yield "x" * 1000
        finally:
            released.set()

    server = ControlServer(tmp_path / SOCKET_NAME, {**HANDLERS, "endless": endless})
    server.start()
    with connect(tmp_path) as connection:
        connection.sendall(b'{"command": "endless"}\n')
        assert released.wait(10)
    assert alive(tmp_path)
    server.stop()


def test_rows_are_sent_while_they_are_made(tmp_path):
    """A long list starts to arrive before its handler has come to its end."""
    seen = threading.Event()

    def patient(_arguments: dict[str, object]) -> Iterator[object]:
        yield from ["x" * 1000] * 200
        assert seen.wait(10)

    server = ControlServer(tmp_path / SOCKET_NAME, {"patient": patient})
    server.start()
    answer = request(tmp_path, "patient", {})
    next(answer)
    seen.set()
    assert sum(1 for _ in answer) == 199
    server.stop()


@pytest.mark.usefixtures("server")
def test_neither_end_holds_a_long_list(tmp_path):
    """Fifty thousand rows, 1.2 MB on the wire: both ends together stay under half of that."""
    tracemalloc.start()
    try:
        total = sum(1 for _ in request(tmp_path, "count", {"last": 50_000}))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 50_000
    assert peak < 600_000


@pytest.mark.usefixtures("server")
def test_more_clients_than_threads_are_all_answered(tmp_path):
    """Those beyond the bound wait their turn; none is lost and none gets another's rows."""
    results: dict[int, list[object]] = {}

    def ask(last: int) -> None:
        results[last] = list(request(tmp_path, "count", {"last": last}))

    clients = [threading.Thread(target=ask, args=(last,)) for last in range(3 * control.CONNECTIONS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert results == {last: list(range(last)) for last in range(3 * control.CONNECTIONS)}


class TestSocket:
    def test_only_its_owner_may_connect(self, server, tmp_path):
        """Mode 0600, whatever the umask."""
        assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600

    def test_only_its_owner_may_connect_under_an_open_umask(self, tmp_path):
        """A daemon that was started with umask 0 opens nothing."""
        old = os.umask(0)
        try:
            server = ControlServer(tmp_path / SOCKET_NAME, HANDLERS)
            server.start()
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600
        server.stop()

    def test_a_live_daemon_is_not_replaced(self, server, tmp_path):
        """The second start fails and leaves the first one's socket."""
        with pytest.raises(DataplaneError, match="another daemon answers"):
            ControlServer(tmp_path / SOCKET_NAME, HANDLERS).start()
        assert alive(tmp_path)

    def test_a_dead_daemons_socket_is_replaced(self, tmp_path):
        """A socket file that nobody listens on is what kill -9 leaves."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
            dead.bind(str(tmp_path / SOCKET_NAME))
        with pytest.raises(Unreachable):
            request(tmp_path, "count", {"last": 1})
        server = ControlServer(tmp_path / SOCKET_NAME, HANDLERS)
        server.start()
        assert alive(tmp_path)
        server.stop()

    def test_a_file_that_is_no_socket_is_left_alone(self, tmp_path):
        """Somebody else's file is not ours to remove."""
        path = tmp_path / SOCKET_NAME
        path.write_text("notes")
        with pytest.raises(DataplaneError, match="not a socket"):
            ControlServer(path, HANDLERS).start()
        assert path.read_text() == "notes"

    @pytest.mark.parametrize("directory", ["missing", "x" * 200])
    def test_a_socket_that_cannot_be_made(self, tmp_path, directory):
        """The reason is the system's, with the path."""
        with pytest.raises(DataplaneError, match=SOCKET_NAME):
            ControlServer(tmp_path / directory / SOCKET_NAME, HANDLERS).start()

    def test_stop_removes_the_socket_and_every_thread(self, server, tmp_path):
        """A client that has not spoken is cut off, an idle thread ends, a second stop is harmless."""
        waiting = connect(tmp_path)
        server.stop()
        server.stop()
        assert not (tmp_path / SOCKET_NAME).exists()
        assert b'"row"' not in waiting.makefile("rb").read()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("control-")]
        with pytest.raises(Unreachable):
            request(tmp_path, "count", {"last": 1})


class TestClient:
    def test_nobody_there(self, tmp_path):
        """No socket and no directory are the same to an operator."""
        for directory in (tmp_path, tmp_path / "missing", tmp_path / ("x" * 200)):
            with pytest.raises(Unreachable, match="no daemon answers") as unreachable:
                request(directory, "count", {})
            assert unreachable.value.exit_code == 4

    @pytest.mark.parametrize("said", [b"", b'{"row": 1}\n', b'{"row": 1}\n{"ro'])
    def test_a_daemon_that_dies_in_its_answer(self, tmp_path, said):
        """An answer without its last line is a failure, however much of it came."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(tmp_path / SOCKET_NAME))
            listener.listen()

            def die() -> None:
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.sendall(said)
                connection.close()

            dying = threading.Thread(target=die)
            dying.start()
            with pytest.raises(DataplaneError, match="went away") as died:
                list(request(tmp_path, "count", {}))
            assert died.value.exit_code == 1
            dying.join()

    def test_a_request_that_is_too_long_is_not_sent(self, tmp_path):
        """The limit is known before the daemon is asked."""
        with pytest.raises(UsageError, match=f"longer than {MAX_REQUEST} bytes"):
            request(tmp_path, "count", {"pad": "x" * MAX_REQUEST})

    def test_a_silent_daemon(self, tmp_path, monkeypatch):
        """A stopped process listens and never answers."""
        monkeypatch.setattr("dataplane.client.PATIENCE", 0.1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(tmp_path / SOCKET_NAME))
            listener.listen()
            with pytest.raises(DataplaneError, match="has been silent"):
                request(tmp_path, "count", {})
