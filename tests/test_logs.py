"""The logs: what a record of the traffic log says, and what one of the system log says."""

import logging
from datetime import UTC, datetime
from typing import Any

from dataplane.flow import FlowKey
from dataplane.logs import SystemLog, traffic_record
from tests.samples import CLIENT, LOG_KEYS, OUTSIDE, SERVER, UNTRUST, names, session


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


def test_the_daemons_own_messages_are_records():
    """system.json: when, how bad, who, what."""
    written: list[Any] = []
    logger = logging.getLogger("test-of-the-system-log")
    handler = SystemLog(written.append)
    logger.addHandler(handler)
    logger.warning("queue %d: %s", 3, "overrun")
    logger.removeHandler(handler)
    (record,) = written
    assert (record["severity"], record["source"]) == ("warning", "test-of-the-system-log")
    assert record["message"] == "queue 3: overrun"
    assert datetime.fromisoformat(record["time"]).utcoffset() == datetime.now(UTC).utcoffset()
