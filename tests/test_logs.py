"""The traffic log: what a record says, and a writer that nobody waits for."""

import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dataplane import logs
from dataplane.flow import FlowKey
from dataplane.logs import LogWriter, traffic_record
from tests.samples import CLIENT, LOG_KEYS, OUTSIDE, SERVER, UNTRUST, names, session

# ---- records ----


def test_a_record_has_the_keys_of_the_contract():
    """All of them, whatever the event, and no others."""
    for event in ("start", "end", "deny", "drop"):
        assert set(traffic_record(event, session(), names(), "allow", None)) == set(LOG_KEYS.split())


def test_a_record_of_a_translated_session():
    """Both the addresses that the client used and those that the server saw."""
    record = traffic_record("end", session(), names(), "allow", "aged-out")
    assert (record["src"], record["sport"], record["dst"], record["dport"]) == ("10.1.0.2", 4000, "10.2.0.2", 53)
    assert (record["nat_src"], record["nat_sport"]) == ("10.2.0.1", 40000)
    assert (record["nat_dst"], record["nat_dport"]) == ("10.2.0.2", 53)
    assert (record["from"], record["to"], record["flags"]) == ("trust", "untrust", "NS")
    assert (record["bytes_sent"], record["bytes_received"]) == (60, 120)
    assert (record["packets_sent"], record["packets_received"]) == (1, 1)
    assert (record["rule"], record["nat_rule"], record["application"]) == ("lan-out", "lan-snat", "dns")
    assert (record["start"], record["elapsed"]) == ("2026-01-01T00:00:00Z", 1)
    assert (record["session_end_reason"], record["parent_session_id"]) == ("aged-out", None)


def test_without_translation_the_nat_fields_repeat_the_others():
    """A reader need not ask whether there was a translation."""
    back = FlowKey(SERVER, CLIENT, 53, 4000, 17, UNTRUST, 4)
    record = traffic_record("start", session(s2c=back, source_nat=False, nat_rule=None), names(), "allow", None)
    pairs = (("src", "nat_src"), ("dst", "nat_dst"), ("sport", "nat_sport"), ("dport", "nat_dport"))
    assert all(record[own] == record[nat] for own, nat in pairs)
    assert (record["flags"], record["nat_rule"], record["session_end_reason"]) == ("", None, None)
    assert OUTSIDE not in back


def test_a_record_tells_when_it_was_made():
    """ISO 8601 in UTC."""
    before = datetime.now(UTC)
    made = datetime.fromisoformat(traffic_record("end", session(), names(), "allow", None)["time"])
    assert made.utcoffset() == before.utcoffset()
    assert -0.002 <= (made - before).total_seconds() < 60


# ---- the writer ----


class Lost:
    """Counts what the writer says it could not write."""

    def __init__(self) -> None:
        self.records = 0

    def __call__(self, n: int) -> None:
        self.records += n


def read(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(path: Path, expected: list[int]) -> None:
    deadline = time.monotonic() + 10
    while read(path) != expected:
        assert time.monotonic() < deadline, f"{read(path)[:5]}..."
        time.sleep(0.01)


def test_records_are_lines_in_order(tmp_path):
    """More than one batch of them; stop() writes what is still waiting."""
    lost, path = Lost(), tmp_path / "traffic.json"
    writer = LogWriter(path, lost)
    numbers = list(range(logs.BATCH * 2 + 1))
    for n in numbers:
        writer.write({"n": n})
    writer.start()
    writer.stop()
    assert read(path) == numbers
    assert lost.records == 0


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path):
    """Log rotation needs no signal: every batch opens the file."""
    path = tmp_path / "traffic.json"
    writer = LogWriter(path, Lost())
    writer.start()
    writer.write({"n": 1})
    wait_for(path, [1])
    path.rename(tmp_path / "traffic.json.1")
    writer.write({"n": 2})
    wait_for(path, [2])
    writer.stop()


def test_a_disk_that_refuses_loses_records_and_recovers(tmp_path, caplog):
    """Each lost record is counted, the reason is said once, and the next record after the repair is written."""
    lost, path = Lost(), tmp_path / "missing" / "traffic.json"
    writer = LogWriter(path, lost)
    writer.start()
    with caplog.at_level(logging.ERROR):
        for n in (1, 2):
            writer.write({"n": n})
            deadline = time.monotonic() + 10
            while lost.records < n:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    assert len(caplog.records) == 1
    path.parent.mkdir()
    writer.write({"n": 3})
    wait_for(path, [3])
    writer.stop()
    assert lost.records == 2


def test_a_full_queue_loses_the_newest_and_never_waits(tmp_path, monkeypatch):
    """Whoever logs goes on at once; what did not fit is counted."""
    monkeypatch.setattr(logs, "QUEUE_LENGTH", 3)
    lost, path = Lost(), tmp_path / "traffic.json"
    writer = LogWriter(path, lost)
    for n in range(5):
        writer.write({"n": n})
    writer.start()
    writer.stop()
    assert read(path) == [0, 1, 2]
    assert lost.records == 2


@pytest.mark.parametrize("text", ["a rule", 'quote " and \\', "naïve – 規則", "line\nbreak"])
def test_a_name_cannot_break_a_line(tmp_path, text):
    """One record is one line, whatever a rule is called."""
    path = tmp_path / "traffic.json"
    writer = LogWriter(path, Lost())
    writer.write({"rule": text})
    writer.start()
    writer.stop()
    (line,) = path.read_text().split("\n")[:-1]
    assert json.loads(line) == {"rule": text}


def test_the_daemons_own_messages_are_records(tmp_path):
    """system.json: when, how bad, who, what."""
    path = tmp_path / "system.json"
    writer = LogWriter(path, Lost())
    logger = logging.getLogger("test-of-the-system-log")
    handler = logs.SystemLog(writer)
    logger.addHandler(handler)
    logger.warning("queue %d: %s", 3, "overrun")
    logger.removeHandler(handler)
    writer.start()
    writer.stop()
    record = json.loads(path.read_text())
    assert (record["severity"], record["source"]) == ("warning", "test-of-the-system-log")
    assert record["message"] == "queue 3: overrun"
    assert datetime.fromisoformat(record["time"]).utcoffset() == datetime.now(UTC).utcoffset()
