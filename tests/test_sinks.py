"""The sinks of the logs: queues that nobody waits for, files that rotate, servers that die and come back."""

import csv
import json
import logging
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from dataplane.logs import traffic_record
from dataplane.policy.model import LogSettings
from dataplane.policy.servers import parse_syslog_server
from dataplane.sinks import TrafficLog, base
from dataplane.sinks.base import Outlet, Sink
from dataplane.sinks.file import LogFile, pieces, rotated
from dataplane.sinks.pancsv import COLUMNS, PanCsv, quoted
from dataplane.sinks.syslog import Syslog, json_bodies
from dataplane.sinks.transport import Transport
from tests.samples import names, session


class Lost:
    """Counts what a sink says it could not write."""

    def __init__(self) -> None:
        self.records = 0

    def __call__(self, n: int) -> None:
        self.records += n


def file_sink(path: Path, lost: Lost | None = None, limit: int = 0, keep: int = 5) -> Sink:
    return Sink(path.name, LogFile(path, limit, keep), lost or Lost())


def read(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()] if path.exists() else []


def until(done: Callable[[], Any], what: str = "it to happen") -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.01)


def wait_for(path: Path, expected: list[int]) -> None:
    until(lambda: read(path) == expected, f"{expected} in {path}")


def line(n: int = 1, **changes: Any) -> bytes:
    """A record of the traffic log as the sinks get it, n in its session id."""
    made = traffic_record("end", session(id=n), names(), "allow", "aged-out") | changes
    return json.dumps(made, separators=(",", ":")).encode() + b"\n"


# ---- the queue and the thread ----


def test_records_are_lines_in_order(tmp_path):
    """More than one batch of them; stop() writes what is still waiting."""
    lost, path = Lost(), tmp_path / "traffic.json"
    sink = file_sink(path, lost)
    numbers = list(range(base.BATCH * 2 + 1))
    for n in numbers:
        sink.write({"n": n})
    sink.start()
    sink.stop()
    assert read(path) == numbers
    assert lost.records == 0
    assert (sink.status()["written"], sink.status()["waiting"]) == (len(numbers), 0)


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path):
    """Log rotation needs no signal: every batch opens the file."""
    path = tmp_path / "traffic.json"
    sink = file_sink(path)
    sink.start()
    sink.write({"n": 1})
    wait_for(path, [1])
    path.rename(tmp_path / "traffic.json.1")
    sink.write({"n": 2})
    wait_for(path, [2])
    sink.stop()


def test_a_disk_that_refuses_loses_records_and_recovers(tmp_path, caplog):
    """Each lost record is counted, the reason is said once, and the next record after the repair is written."""
    lost, path = Lost(), tmp_path / "missing" / "traffic.json"
    sink = file_sink(path, lost)
    sink.start()
    with caplog.at_level(logging.WARNING):
        sink.write({"n": 1})
        until(lambda: lost.records == 1)
        sink.write({"n": 2})
        until(lambda: lost.records == 2)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert (sink.status()["state"], sink.status()["lost"]) == ("failing", 2)
        path.parent.mkdir()
        sink.write({"n": 3})
        wait_for(path, [3])
        until(lambda: sink.status()["state"] == "up")
        sink.stop()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert (sink.status()["state"], lost.records) == ("up", 2)


def test_a_sink_that_flaps_is_said_to_fail_once(caplog, monkeypatch):
    """Every other send fails: neither the failures nor the successes between them fill the system log."""
    monkeypatch.setattr(base, "SETTLE", 60)

    class Flapping(Outlet):
        sends = 0

        def send(self, payload):
            self.sends += 1
            if self.sends % 2:
                raise OSError("refused")

    lost = Lost()
    sink = Sink("flapping", Flapping(), lost)
    sink.start()
    for n in range(6):
        sink.write_lines(b"record\n", 1)
        until(lambda n=n: lost.records + int(str(sink.status()["written"])) > n)  # type: ignore[misc]
    sink.stop()
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    assert lost.records == 3


def test_a_full_queue_loses_the_newest_and_never_waits(tmp_path):
    """Whoever logs goes on at once; what did not fit is counted."""
    lost, path = Lost(), tmp_path / "traffic.json"
    sink = Sink("traffic.json", LogFile(path), lost, limit=3)
    for n in range(5):
        sink.write({"n": n})
    sink.start()
    sink.stop()
    assert read(path) == [0, 1, 2]
    assert lost.records == 2


@pytest.mark.parametrize("text", ["a rule", 'quote " and \\', "naïve – 規則", "line\nbreak"])
def test_a_name_cannot_break_a_line(tmp_path, text):
    """One record is one line, whatever a rule is called."""
    path = tmp_path / "traffic.json"
    sink = file_sink(path)
    sink.write({"rule": text})
    sink.start()
    sink.stop()
    (written,) = path.read_text().split("\n")[:-1]
    assert json.loads(written) == {"rule": text}


def test_a_record_that_cannot_be_packed_costs_no_other(caplog):
    """It is counted as lost; those of the same batch are sent, and so are later ones."""

    sent = []

    class Picky(Outlet):
        def pack(self, lines, records):
            if b"bad" in lines:
                raise ValueError("bad")
            return ((lines, records),)

        def send(self, payload):
            sent.append(payload)

    lost = Lost()
    sink = Sink("picky", Picky(), lost)
    sink.write_lines(b"good\nbad\nbetter\n", 3)
    sink.start()
    until(lambda: lost.records == 1)
    sink.write_lines(b"bad\n", 1)
    sink.write_lines(b"best\n", 1)
    sink.stop()
    assert sent == [b"good\n", b"better\n", b"best\n"]
    assert (lost.records, len(caplog.records)) == (2, 1)


# ---- files ----


def test_a_file_rotates_by_size_and_loses_nothing(tmp_path):
    """Under load: every record is in exactly one of the files, whole and in order, and no file is over the limit."""
    lost, path = Lost(), tmp_path / "traffic.json"
    sink = file_sink(path, lost, limit=20_000, keep=50)
    sink.start()
    for n in range(20_000):
        sink.write({"n": n})
        if n % 1000 == 0:
            until(lambda: int(str(sink.status()["waiting"])) < 1000)
    sink.stop()
    files = [rotated(path, number) for number in reversed(range(51)) if rotated(path, number).exists()]
    assert len(files) > 5
    assert [n for file in files for n in read(file)] == list(range(20_000))
    assert all(file.stat().st_size <= 20_000 for file in files)
    assert lost.records == 0


def test_a_batch_that_is_longer_than_a_file_is_cut_between_lines():
    """At the limit, before it, and past it where a line alone is longer."""
    assert list(pieces(b"a\nbb\nccccccc\nd\n", 5)) == [(b"a\nbb\n", 2), (b"ccccccc\n", 1), (b"d\n", 1)]
    assert list(pieces(b"ab\ncd\n", 6)) == [(b"ab\ncd\n", 2)]


def test_only_so_many_older_files_stay(tmp_path):
    """The oldest goes."""
    path = tmp_path / "traffic.json"
    file = LogFile(path, limit=10, keep=2)
    for n in range(5):
        file.send(b'{"n": %d}\n' % n)
    assert [read(rotated(path, number)) for number in range(3)] == [[4], [3], [2]]
    assert not rotated(path, 3).exists()


def test_a_file_that_cannot_be_rotated_grows(tmp_path, caplog):
    """A directory lies in the way: that is said once, and costs no record."""
    path = tmp_path / "traffic.json"
    (tmp_path / "traffic.json.1" / "x").mkdir(parents=True)
    file = LogFile(path, limit=10, keep=1)
    for n in range(3):
        file.send(b'{"n": %d}\n' % n)
    assert read(path) == [0, 1, 2]
    assert len(caplog.records) == 1


def test_a_line_that_a_killed_daemon_left_torn_spoils_no_other(tmp_path):
    """The next daemon ends it first."""
    path = tmp_path / "traffic.json"
    path.write_bytes(b'{"n": 1}\n{"n"')
    LogFile(path).send(b'{"n": 2}\n')
    assert path.read_bytes() == b'{"n": 1}\n{"n"\n{"n": 2}\n'


def test_reopen_is_harmless_at_any_time(tmp_path):
    """Records before and after are all there."""
    path = tmp_path / "traffic.json"
    sink = file_sink(path)
    sink.start()
    for n in range(1000):
        sink.write({"n": n})
        sink.reopen()
    sink.stop()
    assert read(path) == list(range(1000))


# ---- PAN-OS's CSV ----


def fields(**changes: Any) -> dict[str, str]:
    """The CSV line of a record, by column."""
    (made,) = PanCsv(lambda rule: f"uuid of {rule}", "fw").lines(line(**changes))
    (row,) = csv.reader([made], strict=True)
    assert len(row) == len(COLUMNS) == 117
    return dict(zip(COLUMNS, row, strict=True))


def test_a_csv_line_has_the_fields_of_pan_os():
    """By position: the ones that PAN-OS numbers."""
    found = fields()
    assert [COLUMNS.index(name) for name in ("type", "src", "sessionid", "flags", "action", "start")] == [
        3, 7, 22, 28, 30, 35,
    ]  # fmt: skip
    assert [COLUMNS.index(name) for name in ("pkts_sent", "session_end_reason", "rule_uuid", "dynusergroup_name")] == [
        44, 46, 65, 74,
    ]  # fmt: skip
    assert [COLUMNS.index(name) for name in ("src_category", "dst_category", "high_res_timestamp")] == [76, 84, 102]
    assert (found["type"], found["subtype"], found["action"]) == ("TRAFFIC", "end", "allow")
    assert (found["src"], found["sport"], found["natsrc"], found["natsport"]) == (
        "10.1.0.2", "4000", "10.2.0.1", "40000",
    )  # fmt: skip
    assert (found["bytes"], found["bytes_sent"], found["bytes_received"]) == ("180", "60", "120")
    assert (found["packets"], found["pkts_sent"], found["pkts_received"]) == ("2", "1", "1")
    assert (found["start"], found["elapsed"], found["flags"]) == ("2026/01/01 00:00:00", "1", "0x400000")
    assert (found["proto"], found["rule"], found["rule_uuid"]) == ("udp", "lan-out", "uuid of lan-out")
    assert (found["session_end_reason"], found["device_name"]) == ("aged-out", "fw")
    assert found["srcuser"] == found["tunnelid"] == found["offloaded"] == ""


def test_the_words_of_pan_os():
    """Actions with a blank, IPv6 as a flag, n/a for what has not ended."""
    assert fields(action="reset-both", event="deny")["action"] == "reset both"
    assert fields(src="fd00::1", flags="")["flags"] == "0x2000000"
    assert fields(session_end_reason=None)["session_end_reason"] == "n/a"
    assert fields(proto=200)["proto"] == "200"
    assert fields(rule=None, parent_session_id=None)["parent_session_id"] == "0"


@pytest.mark.parametrize("name", ['a "quoted" rule', "one, two", "100 %s", "naïve"])
def test_a_name_cannot_break_a_csv_line(name):
    """RFC 4180."""
    assert fields(rule=name)["rule"] == name
    assert next(csv.reader([quoted(name)])) == [name]


def test_sequence_numbers_grow():
    """From line to line."""
    made = PanCsv(device="fw")
    first, second = (int(next(csv.reader([text]))[39]) for text in made.lines(line(1) + line(2)))
    assert second == first + 1


# ---- syslog ----


class Receiver:
    """A server of datagrams on a port of loopback."""

    def __init__(self, port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(10)
        self.socket.bind(("127.0.0.1", port))
        self.port = self.socket.getsockname()[1]


def syslog(to: str, lost: Lost, ca_file: Path | None = None, limit: int = 1000) -> Sink:
    server = parse_syslog_server(to)
    outlet = Syslog(server, Transport(server, ca_file), json_bodies, "local3", "fw")
    return Sink(f"syslog {to}", outlet, lost, limit)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A server is tried again soon, and said to be well soon."""
    monkeypatch.setattr(base, "RETRY", 0.05)
    monkeypatch.setattr(base, "SETTLE", 0.1)


def parts(message: bytes) -> tuple[list[str], dict[str, Any]]:
    """The header's words with the structured data, and the JSON body."""
    head, _, body = message.decode().partition("] ")
    return head.split(" "), json.loads(body)


def counted(stream: Any) -> Generator[bytes, None, None]:
    """Messages out of a stream with octet counting."""
    while count := b"".join(iter(lambda: stream.read(1).strip(), b"")):
        yield stream.read(int(count))


def test_syslog_over_udp():
    """One datagram for each record: RFC 5424's header with the record's own time, then the record."""
    lost, receiver = Lost(), Receiver()
    sink = syslog(f"udp://127.0.0.1:{receiver.port}", lost)
    sink.start()
    sink.write_lines(line(1) + line(2), 2)
    messages = [parts(receiver.socket.recv(65536)) for _ in range(2)]
    sink.stop()
    for number, (words, body) in enumerate(messages, 1):
        assert words[0] == f"<{19 * 8 + 6}>1"
        assert (words[1], words[3], words[5]) == (body["time"], "fw", "TRAFFIC")
        assert words[6:] == ["[meta", f'sequenceId="{number}"']
        assert body["session_id"] == number
    assert lost.records == 0


def test_a_udp_server_that_is_dead_is_counted_and_comes_back(caplog):
    """A refused datagram counts; what waits is sent when somebody listens again."""
    lost, receiver = Lost(), Receiver()
    sink = syslog(f"udp://127.0.0.1:{receiver.port}", lost)
    receiver.socket.close()
    sink.start()
    for n in range(1, 6):
        sink.write_lines(line(n), 1)
    until(lambda: lost.records)
    again = Receiver(receiver.port)
    sink.write_lines(line(99), 1)
    seen = []
    while 99 not in seen:
        seen.append(parts(again.socket.recv(65536))[1]["session_id"])
    until(lambda: sink.status()["state"] == "up")
    sink.stop()
    assert lost.records + len(seen) in (5, 6)  # the last refusal may have told of a datagram, or not yet
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_syslog_over_tcp_survives_a_server_that_goes(caplog):
    """Octet counting; after the server has come back, the records that waited arrive in order."""
    lost = Lost()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    sink = syslog(f"tcp://127.0.0.1:{port}", lost)
    sink.start()
    sink.write_lines(line(1) + line(2), 2)
    first, _ = listener.accept()
    stream = counted(first.makefile("rb"))
    assert [parts(next(stream))[1]["session_id"] for _ in range(2)] == [1, 2]
    listener.close()
    stream.close()
    first.close()
    sink.write_lines(line(3), 1)
    until(lambda: sink.status()["state"] == "failing")
    sink.write_lines(line(4), 1)
    with socket.create_server(("127.0.0.1", port)) as listener:
        second, _ = listener.accept()
        stream = counted(second.makefile("rb"))
        assert [parts(next(stream))[1]["session_id"] for _ in range(2)] == [3, 4]
        until(lambda: sink.status()["state"] == "up")
        sink.stop()
    assert lost.records == 0


def test_a_tcp_server_that_talks_and_goes_costs_no_record():
    """Its end stands behind what it has said."""
    lost = Lost()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = syslog(f"tcp://127.0.0.1:{listener.getsockname()[1]}", lost)
        sink.start()
        for n in range(3):
            sink.write_lines(line(n), 1)
            server, _ = listener.accept()
            stream = counted(server.makefile("rb"))
            assert parts(next(stream))[1]["session_id"] == n
            server.sendall(b"220 what do you want?\r\n" * 1000)
            stream.close()
            server.close()
        sink.stop()
    assert lost.records == 0


def test_a_tcp_server_that_reads_nothing_delays_nobody():
    """Whoever logs goes on; what no longer fits is counted, and stopping takes its own limit at most."""
    lost = Lost()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = syslog(f"tcp://127.0.0.1:{listener.getsockname()[1]}", lost, limit=2000)
        sink.start()
        slowest = 0.0
        sent = 0
        while not lost.records:
            before = time.monotonic()
            sink.write_lines(line(sent) * 100, 100)
            slowest = max(slowest, time.monotonic() - before)
            sent += 100
            assert sent < 1_000_000
        sink.stop()
    assert slowest < 1
    assert lost.records + int(str(sink.status()["written"])) >= sent - 64


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_syslog_over_a_unix_socket(tmp_path, kind):
    """Whichever kind of socket lies there."""
    lost, path = Lost(), tmp_path / "log"
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(str(path))
        server.settimeout(10)
        if kind is socket.SOCK_STREAM:
            server.listen()
        sink = syslog(f"unix://{path}", lost)
        sink.start()
        sink.write_lines(line(1) + line(2), 2)
        if kind is socket.SOCK_STREAM:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as stream:
                messages = [stream.readline() for _ in range(2)]
        else:
            messages = [server.recv(65536) for _ in range(2)]
        sink.stop()
    assert [parts(message)[1]["session_id"] for message in messages] == [1, 2]
    assert lost.records == 0


def test_syslog_over_tls(tmp_path):
    """The server proves who it is; one that cannot gets nothing."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    received: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as secured, secured.makefile("rb") as stream:
            received.extend(counted(stream))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        sink = syslog(f"tls://127.0.0.1:{listener.getsockname()[1]}", Lost(), certificate)
        sink.start()
        sink.write_lines(line(1) + line(2), 2)
        until(lambda: sink.status()["written"] == 2)
        sink.stop()
        server.join(10)
    assert [parts(message)[1]["session_id"] for message in received] == [1, 2]


# ---- all of them ----


def test_a_configuration_makes_its_sinks(tmp_path):
    """One feed: the JSON file, the CSV file and two servers have the same records."""
    lost, first, second = Lost(), Receiver(), Receiver()
    written = {
        "csv": True,
        "rotate": {"size-mb": 1, "keep": 2},
        "syslog": [
            {"to": f"udp://127.0.0.1:{first.port}"},
            {"to": f"udp://127.0.0.1:{second.port}", "format": "csv", "app-name": "pan", "facility": "daemon"},
        ],
    }
    log = TrafficLog(LogSettings.model_validate(written), tmp_path, lost, lambda name: None, lambda rule: "u-1")
    log.start()
    log.write(traffic_record("end", session(), names(), "allow", "aged-out"))
    log.reopen()
    assert parts(first.socket.recv(65536))[1]["session_id"] == 7
    message = second.socket.recv(65536).decode()
    log.stop()
    assert message.startswith("<30>1 ")
    (row,) = csv.reader((tmp_path / "traffic.csv").read_text().splitlines())
    (sent,) = csv.reader([message.partition("] ")[2]])
    assert (row[22], row[65]) == (sent[22], sent[65]) == ("7", "u-1")
    assert json.loads((tmp_path / "traffic.json").read_text())["session_id"] == 7
    assert [sink.status()["written"] for sink in log.sinks] == [1, 1, 1, 1]
    assert lost.records == 0


def test_other_settings_change_only_what_they_change(tmp_path):
    """The old sinks write what they hold before the new ones begin; the one that stays is the same."""
    lost, receiver = Lost(), Receiver()
    server = {"to": f"udp://127.0.0.1:{receiver.port}"}
    log = TrafficLog(LogSettings.model_validate({"syslog": [server]}), tmp_path, lost, lambda name: None)
    log.start()
    before = log.sinks
    log.write_lines(line(1), 1)
    log.follow(LogSettings.model_validate({"syslog": [server], "rotate": {"size-mb": 9}, "csv": True}))
    log.write_lines(line(2), 1)
    assert log.sinks[2] is before[1]
    assert not before[0].is_alive()
    log.follow(LogSettings(traffic=False))
    assert log.sinks == ()
    log.write_lines(line(3), 1)
    written = (tmp_path / "traffic.json").read_text().splitlines()
    assert [json.loads(each)["session_id"] for each in written] == [1, 2]
    assert len((tmp_path / "traffic.csv").read_text().splitlines()) == 1
    assert [parts(receiver.socket.recv(65536))[1]["session_id"] for _ in range(2)] == [1, 2]
    assert lost.records == 0


def test_a_log_that_is_off_has_no_sink(tmp_path):
    """And takes records without a word."""
    log = TrafficLog(LogSettings(traffic=False), tmp_path, Lost(), lambda name: None)
    log.start()
    log.write({"n": 1})
    log.stop()
    assert (log.sinks, list(tmp_path.iterdir())) == ((), [])
