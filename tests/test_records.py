"""Records written in C beside those of logs.py: two writers, one format."""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from dataplane import records
from dataplane.ffi import ffi, lib
from dataplane.flow import Decision, FlowKey, Translation
from dataplane.logs import traffic_record
from dataplane.names import Names
from dataplane.records import Records
from dataplane.routes import address_from_text
from dataplane.sessions import HOST_ZONE, Copies, SessionTable

RULES = ("", "out", 'quoted "name"', "Zürich", "dropped", "denied")
ACTIONS = {1: "allow", 2: "allow", 3: "allow", 4: "drop", 5: "reset-client"}
IPV4 = ("10.1.0.2", "192.0.2.255", "0.0.0.0", "255.255.255.255")
IPV6 = ("fd00::1", "::1", "::1:2", "::ffff", "2001:db8:0:1:0:0:0:1", "1:0:2:3:4:5:6:7", "64:ff9b::192.0.2.1")


def known_names() -> Names:
    names = Names(16, HOST_ZONE)
    names.set_zones({"trust": 1, "untrust": 2})
    names.set_interfaces({3: "in0", 700: "out\\0"})
    names.rules.numbers(RULES)
    names.nat_rules.numbers(["snat", "dnat"])
    names.applications.numbers(["unknown-udp", "dns"])
    return names


@pytest.fixture
def table() -> Iterator[SessionTable]:
    made = SessionTable(64)
    yield made
    made.close()


def install(table: SessionTable, rng: random.Random, sport: int) -> None:
    """A session of any kind."""
    rule, texts = rng.randrange(1, len(RULES)), rng.choice([IPV4, IPV6])
    addresses = [address_from_text(text) for text in rng.choices(texts, k=4)]
    family = 4 if texts is IPV4 else 6
    key = FlowKey(
        addresses[0], addresses[1], sport, rng.randint(1, 65535), rng.choice([6, 17]), rng.choice([1, 9]), family
    )
    source, destination = (rng.choice([None, address]) for address in addresses[2:])
    decision = Decision(
        discard=ACTIONS[rule] != "allow",
        egress_zone=rng.choice([2, HOST_ZONE]),
        application=rng.randrange(2),
        rule=rule,
        ingress=rng.choice([0, 3]),
        egress=700,
        nat_rule=rng.choice([None, 0, 1]),
        translation=rng.choice([None, Translation(source=source, destination=destination)]),
        log_end=rng.random() < 0.8,
        parent=rng.choice([0, 7]),
    )
    table.install(key, decision, rng.randint(20, 1500))


def ended(table: SessionTable, seed: int) -> Copies:
    rng = random.Random(seed)
    for sport in range(1000, 1020):
        install(table, rng, sport)
    reason = rng.choice(["unknown", "tcp-fin", "aged-out"])
    table.close_matching(ffi.new("struct session_filter *"), reason)
    return table.expire()


def lines_of(made: Iterator[tuple[bytes, int]]) -> list[dict[str, Any]]:
    """Every record, without its time; each is a line, and as many as were said."""
    found = []
    for text, n in made:
        assert text.endswith(b"\n")
        lines = text.splitlines()
        assert len(lines) == n
        found += [json.loads(line) for line in lines]
    return [without_time(record) for record in found]


def without_time(record: dict[str, Any]) -> dict[str, Any]:
    assert len(record["time"]) == len("2026-01-01T00:00:00.000Z")
    return {key: value for key, value in record.items() if key not in ("time", "elapsed")}


@pytest.mark.parametrize("seed", range(20))
def test_c_writes_the_record_that_python_writes(table, seed):
    """The same keys in the same order with the same values; those that are not to be logged are left out."""
    writer, names = Records(), known_names()
    writer.know(names, ACTIONS)
    copies = ended(table, seed)
    expected = [
        traffic_record("end", session, names, "allow", session.end_reason)
        for session in copies
        if session.log_end and ACTIONS[session.rule] == "allow"
    ]
    found = lines_of(writer.ended(copies))
    assert found == [without_time(record) for record in expected]
    assert [list(record) for record in found] == [list(without_time(record)) for record in expected]


def test_a_beginning_is_told_as_the_rule_says(table):
    """Start, deny or drop, and why."""
    writer, names = Records(), known_names()
    writer.know(names, ACTIONS)
    for rule, action in ACTIONS.items():
        key = FlowKey(address_from_text("10.1.0.2"), address_from_text("10.2.0.2"), 1000 + rule, 53, 17, 1, 4)
        table.install(key, Decision(action != "allow", 2, 1, rule, 3, 700), 60)
    batch = ffi.new("struct session_copy[]", 64)
    n = lib.table_scan(table.pointer, ffi.new("struct session_filter *"), ffi.new("uint32_t *"), batch, 64)
    events = {"drop": "drop", "allow": "start"}
    expected = [
        traffic_record(
            events.get(ACTIONS[session.rule], "deny"),
            session,
            names,
            ACTIONS[session.rule],
            None if session.state == "ACTIVE" else "policy-deny",
        )
        for session in Copies(batch, n)
    ]
    assert lines_of(writer.begun(Copies(batch, n))) == [without_time(record) for record in expected]


def test_what_does_not_fit_comes_in_the_next_piece(table, monkeypatch):
    """No record is lost or torn, however small the room."""
    monkeypatch.setattr(records, "ROOM", 2500)
    writer = Records()
    writer.know(known_names(), ACTIONS)
    copies = ended(table, 1)
    pieces = [n for _, n in writer.ended(copies)]
    assert len(pieces) > 2
    assert sum(pieces) == sum(session.log_end and ACTIONS[session.rule] == "allow" for session in copies)
