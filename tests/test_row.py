"""Rows of sessions as C writes them, beside a naive model: contract section 4, and the columns of the list."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import rows
from dataplane.client import ROW, ROW_END
from dataplane.ffi import ffi, lib
from dataplane.flow import Decision, FlowKey
from dataplane.names import Names
from dataplane.offload import Offload, Refusals
from dataplane.policy.objects import address_text
from dataplane.records import Records
from dataplane.routes import address_from_text
from dataplane.rows import Rows
from dataplane.sessions import END_REASONS, STATES, TYPES, SessionTable
from tests.test_records import ACTIONS, known_names
from tests.test_text import columns

CONTRACT = """
{"id": 524342, "vsys": "vsys1", "application": "ssl", "state": "ACTIVE", "type": "FLOW", "flags": "NS",
 "c2s": {"source": "192.168.42.132", "source_zone": "trust", "dst": "74.125.136.100", "proto": 6,
         "sport": 4674, "dport": 80, "state": "ACTIVE", "type": "FLOW", "src_user": "unknown", "dst_user": "unknown"},
 "s2c": {"source": "74.125.136.100", "source_zone": "untrust", "dst": "172.24.12.42", "proto": 6,
         "sport": 80, "dport": 1030, "state": "ACTIVE", "type": "FLOW", "src_user": "unknown", "dst_user": "unknown"},
 "start_time": "2026-01-01T00:00:00Z", "timeout": 3600, "time_to_live": 3598,
 "bytes_c2s": 0, "bytes_s2c": 0, "packets_c2s": 0, "packets_s2c": 0,
 "rule": "lan-out", "nat_rule": "lan-snat", "address_port_translation": "source",
 "logged_at_end": true, "in_ager": true, "synced_from_ha_peer": false, "layer7_processing": "completed",
 "offload": true, "offload_reason": null, "via_syn_cookies": false, "terminated_on_host": false,
 "ingress_interface": "in0", "egress_interface": "out0", "qos_rule": "N/A (class 4)",
 "parent_session": null, "prediction_triggered_by": null, "prediction_matched_once": null, "end_reason": "unknown"}
"""
NOW = 100_000  # tick
NAT_WORDS = ((None, ""), ("source", "NS"), ("destination", "ND"), ("source + destination", "NB"))
REASONS = ("", "no-neighbour", "map-full")
PLACES: int = lib.REFUSED_PLACES


# ---- the model ----


def model(copy: Any, names: Names, disabled: str | None, refused: dict[tuple[int, int], str]) -> dict[str, Any]:
    """A session as the contract has it; `refused` by id and generation."""
    s, flags = copy.session, copy.session.flags
    kind, state = TYPES[s.type], STATES[s.state[0]]
    translation, letters = NAT_WORDS[flags & (lib.FLAG_SNAT | lib.FLAG_DNAT)]
    predicted = bool(flags & lib.FLAG_PREDICTED)
    return {
        "id": copy.id,
        "vsys": "vsys1",
        "application": known(names.applications.names(), s.application),
        "state": state,
        "type": kind,
        "flags": letters,
        "c2s": side(s.key[0], names, state, kind),
        "s2c": side(s.key[1], names, "OPENING" if kind == "PREDICT" else state, kind),
        "start_time": datetime.fromtimestamp(s.start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "timeout": copy.timeout // 10,
        "time_to_live": max(copy.timeout - (NOW - s.last_seen) % 2**32, 0) // 10,
        "bytes_c2s": s.bytes[0],
        "bytes_s2c": s.bytes[1],
        "packets_c2s": s.packets[0],
        "packets_s2c": s.packets[1],
        "rule": known(names.rules.names(), s.rule) or None,
        "nat_rule": known(names.nat_rules.names(), s.nat_rule - 1) if s.nat_rule else None,
        "address_port_translation": translation,
        "logged_at_end": bool(flags & lib.FLAG_LOG_END),
        "in_ager": state in ("ACTIVE", "DISCARD"),
        "synced_from_ha_peer": False,
        "layer7_processing": "enabled" if flags & lib.FLAG_INSPECTED else "completed",
        "offload": bool(flags & lib.FLAG_OFFLOADED),
        "offload_reason": obstacle(copy, disabled, refused),
        "via_syn_cookies": False,
        "terminated_on_host": bool(flags & lib.FLAG_HOST),
        "ingress_interface": names.interface(s.ingress),
        "egress_interface": names.interface(s.egress),
        "qos_rule": "N/A (class 4)",
        "parent_session": s.parent or None,
        "prediction_triggered_by": ("server" if flags & lib.FLAG_BY_SERVER else "client") if predicted else None,
        "prediction_matched_once": kind == "FLOW" if predicted else None,
        "end_reason": "unknown" if END_REASONS[s.end_reason] == "none" else END_REASONS[s.end_reason],
    }


def side(key: Any, names: Names, state: str, kind: str) -> dict[str, Any]:
    return {
        "source": host(key.src, key.family),
        "source_zone": names.zone(key.zone),
        "dst": host(key.dst, key.family),
        "proto": key.proto,
        "sport": swapped(key.sport),
        "dport": swapped(key.dport),
        "state": state,
        "type": kind,
        "src_user": "unknown",
        "dst_user": "unknown",
    }


def host(raw: Any, family: int) -> str:
    address = int.from_bytes(bytes(raw))
    return address_text(address) if address or family == 6 else "0.0.0.0"


def swapped(port: int) -> int:
    return port >> 8 | (port & 0xFF) << 8


def known(words: tuple[str, ...], number: int) -> str | None:
    return words[number] if number < len(words) else None


def obstacle(copy: Any, disabled: str | None, refused: dict[tuple[int, int], str]) -> str | None:
    """Why it is not offloaded: the first that holds."""
    flags = copy.session.flags
    if flags & lib.FLAG_OFFLOADED:
        return None
    if flags & (lib.FLAG_INSPECTED | lib.FLAG_ADJUSTED):
        return "alg"
    if disabled:
        return disabled
    if flags & lib.FLAG_HOST:
        return "host"
    if copy.session.key[0].proto not in (1, 6, 17, 58):
        return "protocol"
    return refused.get((copy.id, copy.session.generation), "not-established")


# ---- C ----


def refusals(disabled: str | None = None, refused: dict[tuple[int, int], str] | None = None) -> Refusals:
    """As offload.py makes them."""
    places = ffi.new("uint64_t[]", PLACES)
    for (session, generation), reason in (refused or {}).items():
        places[session % PLACES] = generation << 32 | session // PLACES << 8 | REASONS.index(reason)
    spelled = [ffi.new("char[]", json.dumps(reason).encode()) for reason in REASONS]
    words = {"json": ffi.new("char *[]", spelled), "n": len(REASONS)}
    whole = ffi.new("char[]", json.dumps(disabled).encode()) if disabled else ffi.NULL
    return Refusals(ffi.new("struct refusals *", [words, whole, places]), (words, spelled, whole, places))


def written(copies: list[Any], names: Names, why: Refusals, *, columns: bool = False, size: int = 1 << 20) -> list[Any]:
    """The rows, however many calls they take."""
    records = Records()
    records.know(names, ACTIONS)
    spelled = records.known.copy()
    spelled.now = NOW
    array = ffi.new("struct session_copy[]", [copy[0] for copy in copies])
    text = ffi.new("char[]", size)
    out = ffi.new("struct record_text *", {"text": text, "size": size})
    found, done = [], 0
    while done < len(copies):
        n = lib.row_write(array + done, len(copies) - done, columns, spelled, why.pointer, out)
        lines = ffi.buffer(text, out.used)[:].splitlines(keepends=True)
        assert len(lines) == n == out.lines > 0
        assert all(line.startswith(ROW) and line.endswith(ROW_END) for line in lines)
        found += [json.loads(line)["row"] for line in lines]
        done += n
    return found


def session_copy(**fields: Any) -> Any:
    """A copy of an ordinary session, fields changed: DNS through source translation."""
    client, server, outside = (address_from_text(text).to_bytes(16) for text in ("10.1.0.2", "10.2.0.2", "10.2.0.1"))
    copy, dns = ffi.new("struct session_copy *", {"id": 7, "timeout": 300}), {"proto": 17, "family": 4}
    ordinary = {
        "key": [
            {"src": client, "dst": server, "sport": swapped(4000), "dport": swapped(53), "zone": 1, **dns},
            {"src": server, "dst": outside, "sport": swapped(53), "dport": swapped(1030), "zone": 2, **dns},
        ],
        "generation": 1,
        "last_seen": NOW - 11,
        "state": [lib.SESSION_ACTIVE] * 2,
        "end_reason": lib.END_NONE,
        "application": 1,
        "flags": lib.FLAG_SNAT | lib.FLAG_LOG_END,
        "rule": 1,
        "nat_rule": 1,
        "ingress": 3,
        "egress": 700,
        "start": 1_767_225_600,
    }
    for name, value in (ordinary | fields).items():
        setattr(copy.session, name, value)
    return copy


def row(**fields: Any) -> Any:
    """The row of an ordinary session with these fields changed."""
    (made,) = written([session_copy(**fields)], known_names(), refusals())
    return made


addresses = st.one_of(
    st.sampled_from(["0.0.0.0", "10.1.0.2", "255.255.255.255", "::", "::1", "::1:2", "::ffff", "2001:db8:0:1::1"]).map(
        lambda text: address_from_text(text).to_bytes(16)
    ),
    st.binary(min_size=16, max_size=16),
    st.just(bytes(16)),
)
ports = st.integers(0, 65535)
keys = st.fixed_dictionaries(
    {
        "src": addresses,
        "dst": addresses,
        "sport": ports,
        "dport": ports,
        "proto": st.sampled_from([1, 6, 17, 47, 58, 132, 255]),
        "zone": st.sampled_from([0, 1, 2, 9, 255]),
        "family": st.sampled_from([4, 6]),
    }
)
amounts = st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2)
ticks = st.one_of(st.integers(NOW - 500, NOW + 5), st.integers(0, 2**32 - 1))
copies = st.builds(
    lambda number, timeout, fields: _numbered(session_copy(**fields), number, timeout),
    st.sampled_from([1, 7, 7 + PLACES, 2**32 - 1]),
    st.integers(0, 2**32 - 1),
    st.fixed_dictionaries(
        {
            "key": st.lists(keys, min_size=2, max_size=2),
            "generation": st.integers(1, 3),
            "bytes": amounts,
            "packets": amounts,
            "last_seen": ticks,
            "state": st.lists(st.integers(0, len(STATES) - 1), min_size=2, max_size=2),
            "type": st.integers(0, len(TYPES) - 1),
            "end_reason": st.integers(0, len(END_REASONS) - 1),
            "application": st.integers(0, 3),
            "flags": st.integers(0, 2**13 - 1),
            "rule": st.integers(0, 7),
            "nat_rule": st.integers(0, 4),
            "ingress": st.sampled_from([0, 3, 12, 700, 2**32 - 1]),
            "egress": st.sampled_from([0, 3, 12, 700]),
            "start": st.integers(0, 2**32 - 1),
            "parent": st.sampled_from([0, 1, 2**32 - 1]),
        }
    ),
)
refused_ones = st.dictionaries(
    st.tuples(st.sampled_from([1, 7, 7 + PLACES, 2**32 - 1]), st.integers(1, 3)),
    st.sampled_from(REASONS[1:]),
    max_size=1,
)


def _numbered(copy: Any, number: int, timeout: int) -> Any:
    copy.id, copy.timeout = number, timeout
    return copy


@given(st.lists(copies, min_size=1, max_size=5), st.sampled_from([None, "disabled", "unavailable"]), refused_ones)
def test_c_writes_what_the_model_says(made, disabled, refused):
    """Every state, type, flag and family: the same keys, order and values, as object and as columns."""
    names = known_names()
    expected = [model(copy, names, disabled, refused) for copy in made]
    why = refusals(disabled, refused)
    assert [json.dumps(found) for found in written(made, names, why)] == [json.dumps(one) for one in expected]
    assert written(made, names, why, columns=True) == [columns(one) for one in expected]


@given(st.lists(copies, min_size=2, max_size=8))
def test_what_does_not_fit_comes_in_the_next_piece(made):
    """No row is lost or torn where there is room for one or two."""
    names = known_names()
    found = written(made, names, refusals(), size=2 * lib.ROW_ROOM)
    assert [one["id"] for one in found] == [copy.id for copy in made]


def test_the_longest_row_fits_in_its_room():
    """Every number and name as long as it gets: what ROW_ROOM and ROW_NAMES promise."""
    names = Names(16, lib.ZONE_HOST)
    names.set_zones({"z" * 5000: 1})
    names.set_interfaces({3: "i" * 5000})
    for numbering in (names.rules, names.nat_rules, names.applications):
        numbering.number("n" * 5000)
    long = {
        "src": b"\x20" * 16,
        "dst": b"\x20" * 16,
        "sport": 65535,
        "dport": 65535,
        "proto": 255,
        "zone": 1,
        "family": 6,
    }
    copy = session_copy(
        key=[long, long], bytes=[2**64 - 1] * 2, packets=[2**64 - 1] * 2, ingress=3, egress=3, rule=0, nat_rule=1,
        application=0, flags=2**13 - 1 - lib.FLAG_OFFLOADED, end_reason=4, parent=2**32 - 1, state=[3, 3], type=1,
    )  # fmt: skip
    _numbered(copy, 2**32 - 1, 2**32 - 1)
    (found,) = written([copy], names, refusals("u" * 5000), size=lib.ROW_ROOM + lib.ROW_NAMES * 5002)
    assert len(json.dumps(found, separators=(",", ":"))) < lib.ROW_ROOM + lib.ROW_NAMES * 5002


# ---- what it means ----


def test_the_keys_are_those_of_the_contract_in_its_order():
    """Of the session and of each of its flows; the values have the contract's types where they are not null."""
    sample, shown = json.loads(CONTRACT), row()
    for promised, made in ((sample, shown), (sample["c2s"], shown["c2s"]), (sample["s2c"], shown["s2c"])):
        assert list(made) == list(promised)
        differ = [
            key
            for key, value in promised.items()
            if value is not None and made[key] is not None and type(made[key]) is not type(value)
        ]
        assert differ == []


def test_the_pair_of_flows_documents_the_translation():
    """The s2c flow is what the server's side shows: the translated address and port are its destination."""
    c2s, s2c = row()["c2s"], row()["s2c"]
    assert (c2s["source"], c2s["sport"], c2s["dst"], c2s["dport"]) == ("10.1.0.2", 4000, "10.2.0.2", 53)
    assert (s2c["source"], s2c["sport"], s2c["dst"], s2c["dport"]) == ("10.2.0.2", 53, "10.2.0.1", 1030)
    assert (c2s["source_zone"], s2c["source_zone"]) == ("trust", "untrust")


def test_numbers_become_names():
    """Rule, NAT rule, application, interfaces; times are cut to the second below."""
    shown = row()
    assert (shown["rule"], shown["nat_rule"], shown["application"]) == ("out", "snat", "dns")
    assert (shown["ingress_interface"], shown["egress_interface"]) == ("in0", "out\\0")
    assert (shown["start_time"], shown["timeout"], shown["time_to_live"]) == ("2026-01-01T00:00:00Z", 30, 28)


def test_the_firewalls_own_session_has_no_rule():
    """Rule 0 is nameless, and it came in by no interface."""
    shown = row(rule=0, nat_rule=0, ingress=0, flags=lib.FLAG_HOST)
    assert (shown["rule"], shown["nat_rule"], shown["ingress_interface"]) == (None, None, "")
    assert (shown["terminated_on_host"], shown["offload_reason"]) == (True, "host")


# ---- from a table ----


@pytest.fixture
def table() -> Iterator[SessionTable]:
    made = SessionTable(4096)
    yield made
    made.close()


def rows_of(table: SessionTable, names: Names, *, columns: bool = False) -> Rows:
    records = Records()
    records.know(names, ACTIONS)
    offload: Any = SimpleNamespace()
    return Rows(table, records, Offload(table, offload, enabled=False).refusals(), columns)


def install(table: SessionTable, n: int) -> list[int]:
    client, server = map(address_from_text, ("10.1.0.2", "10.2.0.2"))
    keys = [FlowKey(client, server, 1000 + number, 53, 17, 1, 4) for number in range(n)]
    return [table.install(key, Decision(False, 2, 1, 1, 3, 700), 60) for key in keys]


@pytest.mark.parametrize("room", [0, 1 << 18])
def test_a_table_is_listed_in_pieces(table, monkeypatch, room):
    """Every session once, in the order of the ids, from where the caller says; the pieces are whole lines."""
    monkeypatch.setattr(rows, "BATCH", 64)
    monkeypatch.setattr(rows, "ROOM", room)
    ids = sorted(install(table, 1000))
    nothing = ffi.new("struct session_filter *")
    for start_at, left in ((0, ids), (ids[500], ids[500:]), (2**32 - 1, [])):
        pieces = list(rows_of(table, known_names()).all(nothing, start_at))
        assert all(piece.endswith(b"\n") for piece in pieces)
        assert [json.loads(line)["row"]["id"] for line in b"".join(pieces).splitlines()] == left


def test_a_list_and_a_single_session_say_the_same(table):
    """`show session id` is the same writer: the switched-off offload, the time left, everything."""
    (number,) = install(table, 1)
    made = rows_of(table, known_names())
    (alone,) = made.of(table.copy(number), 1)
    (listed,) = made.all(ffi.new("struct session_filter *"), 0)
    alone, listed = (json.loads(line)["row"] for line in (alone, listed))
    assert alone["offload_reason"] == listed["offload_reason"] == "disabled"
    assert alone | {"time_to_live": 0} == listed | {"time_to_live": 0}
    assert abs(alone["time_to_live"] - listed["time_to_live"]) <= 1


def test_names_that_a_policy_brings_during_a_list_are_known_in_it(table):
    """A batch is named by what is known when it is written, not when the list began."""
    names = known_names()
    records = Records()
    records.know(names, ACTIONS)
    offload: Any = SimpleNamespace()
    listing = Rows(table, records, Offload(table, offload, enabled=False).refusals()).all(
        ffi.new("struct session_filter *"), 0
    )
    client = address_from_text("10.1.0.2")
    new = names.rules.number("new")
    table.install(FlowKey(client, client + 1, 1, 2, 17, 1, 4), Decision(False, 2, 1, new, 3, 700), 60)
    records.know(names, ACTIONS)
    assert json.loads(next(listing))["row"]["rule"] == "new"
