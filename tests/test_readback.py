"""The logs read back: the newest record first, through rotated files, whatever the end of the file looks like."""

import json
import os
import random
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dataplane import readback, text
from dataplane.cli.log import log_selection
from dataplane.errors import UsageError
from dataplane.filters import LOG_KEYS, LogFilter, parse_log_filter
from dataplane.logs import traffic_record
from dataplane.readback import Reader
from tests.samples import names, session


def record(n: int, **changes: Any) -> dict[str, Any]:
    return traffic_record("end", session(id=n), names(), "allow", "aged-out") | changes


def write(path: Path, *records: dict[str, Any], tail: bytes = b"") -> None:
    lines = b"".join(json.dumps(each, separators=(",", ":")).encode() + b"\n" for each in records)
    path.write_bytes(lines + tail)


def ids(path: Path, limit: int = readback.LIMIT, **words: str) -> list[int]:
    """The session ids of what a filter lets pass."""
    wanted = parse_log_filter({key.rstrip("_").replace("_", "-"): word for key, word in words.items()})
    return [found["session_id"] for found in Reader(path, wanted, limit).records()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.json"


def test_the_newest_comes_first(path):
    """Through the rotated files, of which the highest number is the oldest."""
    write(path, record(5), record(6))
    write(path.with_name("traffic.json.1"), record(3), record(4))
    write(path.with_name("traffic.json.2"), record(1), record(2))
    assert ids(path) == [6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("tail", [b"", b'{"event":"end","ti', b"\n", b"\xff\n", b"[1]\n", b"{}", b"null\n"])
def test_what_is_no_record_is_passed_over(path, tail):
    """A torn last line, an empty one, other JSON, no text at all."""
    write(path, record(1), record(2), tail=tail)
    assert ids(path) == [2, 1]


def test_a_file_that_is_not_there_has_no_records(path):
    """Nor has an empty one."""
    assert ids(path) == []
    path.write_bytes(b"")
    assert ids(path) == []
    path.write_bytes(b"torn")
    assert ids(path) == []


@pytest.mark.parametrize("seed", range(20))
def test_blocks_of_any_size_read_the_same_lines(path, monkeypatch, seed):
    """As `splitlines` does, the wrong way round; a line may be longer than a block."""
    rng = random.Random(seed)
    monkeypatch.setattr(readback, "BLOCK", rng.randint(1, 3000))
    expected = list(range(rng.randint(1, 30)))
    write(path, *(record(n, rule="x" * rng.randint(0, 2000)) for n in expected))
    assert ids(path) == expected[::-1]


def test_a_hole_that_a_power_cut_has_left_takes_no_memory(path):
    """Zeroes without an end of line: the records on both sides of them are read, and the zeroes are not kept."""
    write(path, record(1), record(2))
    os.truncate(path, 8 << 20)
    with path.open("ab") as file:
        file.write(b"\n" + json.dumps(record(3), separators=(",", ":")).encode() + b"\n")
    tracemalloc.start()
    try:
        assert ids(path) == [3, 2, 1]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_is_rotated_meanwhile_is_read_once(path, monkeypatch):
    """It was open already; under its new name it is known by its inode."""
    write(path, record(2))
    write(path.with_name("traffic.json.1"), record(1))
    reader = Reader(path, LogFilter())
    found = reader.records()
    first = next(found)["session_id"]
    path.with_name("traffic.json.1").rename(path.with_name("traffic.json.2"))
    path.rename(path.with_name("traffic.json.1"))
    write(path, record(3))
    assert [first, *(each["session_id"] for each in found)] == [2, 1]


def test_the_work_is_bounded(path, monkeypatch):
    """What lies beyond the limit is not looked at, and that is said."""
    monkeypatch.setattr(readback, "BLOCK", 1000)
    write(path, *(record(n) for n in range(100)))
    reader = Reader(path, LogFilter(), limit=3000)
    found = [each["session_id"] for each in reader.records()]
    assert 2 <= len(found) <= 6
    assert found[0] == 99
    assert not reader.complete


@pytest.mark.parametrize(
    ("key", "word", "other"),
    [
        ("src", "192.0.2.1", "192.0.2.2"),
        ("src", "2001:db8::1", "2001:db8::2"),
        ("src", "192.0.2.0/24", "192.0.3.0/24"),
        ("dst", "2001:db8::/32", "2001:db9::/32"),
        ("sport", "1234", "1235"),
        ("dport", "0", "1"),
        ("proto", "tcp", "udp"),
        ("proto", "6", "17"),
        ("app", "ssl", "dns"),
        ("rule", 'a "rule"', "another"),
        ("nat-rule", "naïve", "nat"),
        ("from", "dmz", "trust"),
        ("to", "dmz", "trust"),
        ("action", "deny", "allow"),
        ("event", "deny", "end"),
        ("subtype", "deny", "start"),
        ("session-end-reason", "tcp-fin", "aged-out"),
        ("session-id", "2", "3"),
    ],
)
def test_each_key_finds_its_record(path, key, word, other):
    """And none that differs in it alone."""
    field = {
        "src": {"src": {"192.0.2.0/24": "192.0.2.7"}.get(word, word)},
        "dst": {"dst": "2001:db8:1::5"},
        "proto": {"proto": 6},
        "app": {"application": word},
        "nat-rule": {"nat_rule": word},
        "subtype": {"event": word},
        "session-end-reason": {"session_end_reason": word},
        "session-id": {},
    }.get(key, {key: int(word) if word.isdigit() else word})
    path.write_bytes(b"")
    with path.open("ab") as file:
        for each in (record(1), record(2, **field)):
            file.write(json.dumps(each, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    assert ids(path, **{key.replace("-", "_"): word}) == [2]
    assert 2 not in ids(path, **{key.replace("-", "_"): other})


def test_since_ends_the_search(path):
    """The first record that is too old is the last one looked at."""

    def ago(seconds: int) -> str:
        return (
            (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        )

    write(path, record(1, time=ago(1)), record(2, time=ago(500)), record(3, time=ago(50)), record(4, time=ago(5)))
    assert ids(path, since="100") == [4, 3]


def test_every_key_has_a_place_in_the_filter():
    """What an operator may type is a field."""
    renamed = {"from": "from_zone", "to": "to_zone", "subtype": "event"}
    assert {renamed.get(key, key.replace("-", "_")) for key in LOG_KEYS} == set(LogFilter.__dataclass_fields__)


@pytest.mark.parametrize(
    "words",
    [
        "filter nonsense 1",
        "filter event end subtype deny",
        "filter dport 99999",
        "filter src trust",
        "filter",
        "last 0",
        "last",
        "lots 5",
    ],
)
def test_nonsense_is_refused_before_the_daemon_is_asked(words):
    """With exit code 2."""
    with pytest.raises(UsageError):
        log_selection(words.split())


def test_a_selection():
    """`last` before or after; 20 if it is not said."""
    assert log_selection(["last", "5", "filter", "rule", "out"]) == {"filter": {"rule": "out"}, "last": 5}
    assert log_selection(["filter", "rule", "out", "last", "5"]) == {"filter": {"rule": "out"}, "last": 5}
    assert log_selection([]) == {"filter": {}, "last": 20}


def test_the_layouts():
    """PAN-OS's columns; nulls are blanks."""
    *_, first, second, third = text.traffic_log([record(7, rule=None)])
    assert first.split()[2:] == ["dns", "trust", "4000", "10.1.0.2", "(10.2.0.1[40000])"]
    assert second.split() == ["allow", "untrust", "53", "10.2.0.2"]
    assert third.split() == ["end", "7", "180", "aged-out"]
    said = {"time": "2026-01-01T00:00:00.000Z", "severity": "info", "source": "dataplane.daemon", "message": "ready"}
    assert list(text.system_log([said]))[-1].split() == [
        "2026/01/01", "00:00:00", "info", "dataplane.daemon", "ready",
    ]  # fmt: skip
    row = {"sink": "traffic.json", "state": "failing", "written": 1, "lost": 2, "waiting": 3, "error": "No space left"}
    *_, counts, why, long, _ = text.log_status([row, row | {"sink": "syslog tls://" + "x" * 40}])
    assert counts.split() == ["traffic.json", "failing", "1", "2", "3"]
    assert long.split()[2:] == ["failing", "1", "2", "3"]
    assert why.strip() == "No space left"
