"""A session as programs read it: the keys and values of contract section 4."""

import json

import pytest

from dataplane.flow import FlowKey
from dataplane.views import iso_time, session_json
from tests.samples import CLIENT, HOST, OUTSIDE, SERVER, TRUST, names, session

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


def test_the_keys_are_those_of_the_contract_in_its_order():
    """Of the session and of each of its flows; the values have the contract's types where they are not null."""
    sample, shown = json.loads(CONTRACT), session_json(session(), names())
    for promised, made in ((sample, shown), (sample["c2s"], shown["c2s"]), (sample["s2c"], shown["s2c"])):
        assert list(made) == list(promised)
        differ = [key for key, value in promised.items() if value is not None and type(made[key]) is not type(value)]
        assert differ == []


def test_the_pair_of_flows_documents_the_translation():
    """The s2c flow is what the server's side shows: the translated address and port are its destination."""
    shown = session_json(session(), names())
    c2s, s2c = shown["c2s"], shown["s2c"]
    assert (c2s["source"], c2s["sport"], c2s["dst"], c2s["dport"]) == ("10.1.0.2", 4000, "10.2.0.2", 53)
    assert (s2c["source"], s2c["sport"], s2c["dst"], s2c["dport"]) == ("10.2.0.2", 53, "10.2.0.1", 40000)
    assert (c2s["source_zone"], s2c["source_zone"]) == ("trust", "untrust")


def test_numbers_become_names():
    """Rule, NAT rule, application, interfaces; times are cut to the second below."""
    shown = session_json(session(), names())
    assert (shown["rule"], shown["nat_rule"], shown["application"]) == ("lan-out", "lan-snat", "dns")
    assert (shown["ingress_interface"], shown["egress_interface"]) == ("in0", "out0")
    assert (shown["start_time"], shown["timeout"], shown["time_to_live"]) == ("2026-01-01T00:00:00Z", 30, 28)
    assert (shown["bytes_c2s"], shown["bytes_s2c"], shown["packets_c2s"], shown["packets_s2c"]) == (60, 120, 1, 1)


@pytest.mark.parametrize(
    ("source", "destination", "flags", "text"),
    [
        (False, False, "", None),
        (True, False, "NS", "source"),
        (False, True, "ND", "destination"),
        (True, True, "NB", "source + destination"),
    ],
)
def test_what_is_translated_stands_in_flags_and_words(source, destination, flags, text):
    """Two spellings of the same two bits."""
    shown = session_json(session(source_nat=source, destination_nat=destination), names())
    assert (shown["flags"], shown["address_port_translation"]) == (flags, text)


def test_no_nat_rule_is_not_the_first_one():
    """Number 0 is a rule; None is none."""
    assert session_json(session(nat_rule=None), names())["nat_rule"] is None


def test_the_firewalls_own_session_has_no_rule():
    """Its source zone is the firewall itself, and it came in by no interface."""
    own = FlowKey(OUTSIDE, SERVER, 5000, 53, 17, HOST, 4)
    shown = session_json(session(c2s=own, rule=0, ingress=0, host=True), names())
    assert (shown["rule"], shown["c2s"]["source_zone"], shown["ingress_interface"]) == (None, "host", "")
    assert shown["terminated_on_host"]


@pytest.mark.parametrize("state", ["ACTIVE", "DISCARD", "CLOSING", "CLOSED", "INIT"])
def test_only_the_living_are_in_the_ager(state):
    """CLOSING and CLOSED sessions have left it; INIT is one that has ended and can still be shown."""
    shown = session_json(session(state=state, end_reason="tcp-fin"), names())
    assert shown["in_ager"] == (state in ("ACTIVE", "DISCARD"))
    assert (shown["c2s"]["state"], shown["s2c"]["state"], shown["end_reason"]) == (state, state, "tcp-fin")


def test_an_address_is_written_in_its_family():
    """Mapped addresses are IPv4 again."""
    six = FlowKey(1 << 127 | 1, 2, 1, 2, 17, TRUST, 6)
    assert session_json(session(c2s=six), names())["c2s"]["source"] == "8000::1"
    assert session_json(session(), names())["c2s"]["source"] == "10.1.0.2"
    assert CLIENT >> 32 == SERVER >> 32 == 0xFFFF


def test_time_is_utc_to_the_second():
    """Fractions are cut, not rounded."""
    assert iso_time(0.999) == "1970-01-01T00:00:00Z"
