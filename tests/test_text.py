"""Layouts against real PAN-OS output, byte for byte, and what happens where that output is silent."""

import io
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from dataplane import text

PING_AND_PREDICT = """\
--------------------------------------------------------------------------------
ID          Application    State   Type Flag  Src[Sport]/Zone/Proto (translated IP[Port])
Vsys                                          Dst[Dport]/Zone (translated IP[Port])
--------------------------------------------------------------------------------
20           ping           ACTIVE  FLOW  NS   192.168.1.20[1]/Inside/1  (10.2.62.150[1])
vsys1                                          1.1.1.1[26]/Outside  (1.1.1.1[26])
504          ftp-data       ACTIVE  PRED       10.59.59.132[0]/L3-DMZ/6  (10.59.59.132[0])
vsys1                                          172.16.59.100[16889]/L3-Inside  (172.16.59.100[16889])
"""

# The flows are a real sample; the details follow its form in the documented order.
PING_BY_ID = """\
Session              25

        c2s flow:
                source:      192.168.1.20 [Inside]
                dst:         1.1.1.1
                proto:       1
                sport:       1               dport:      31
                state:       INIT            type:       FLOW
                src user:    unknown
                dst user:    unknown

        s2c flow:
                source:      1.1.1.1 [Outside]
                dst:         10.2.62.150
                proto:       1
                sport:       31              dport:      1
                state:       INIT            type:       FLOW
                src user:    unknown
                dst user:    unknown

        start time                           : Sat May  6 09:58:41 2023
        timeout                              : 6 sec
        total byte count(c2s)                : 98
        total byte count(s2c)                : 84
        layer7 packet count(c2s)             : 1
        layer7 packet count(s2c)             : 2
        vsys                                 : vsys1
        application                          : ping
        rule                                 : lan-out
        service timeout override(index)      : False
        session to be logged at end          : True
        session in session ager              : False
        session updated by HA peer           : False
        address/port translation             : source
        nat-rule                             : lan-snat(vsys1)
        layer7 processing                    : completed
        offload                              : No
        URL filtering enabled                : False
        session via syn-cookies              : False
        session terminated on host           : False
        session traverses tunnel             : False
        session terminate tunnel             : False
        captive portal session               : False
        ingress interface                    : ethernet1/2
        egress interface                     : ethernet1/1
        session QoS rule                     : N/A (class 4)
        tracker stage firewall               : Aged out
        end-reason                           : aged-out
"""

PREDICT_DETAILS = """\
        start time                           : Tue Mar 19 01:57:08 2013
        timeout                              : 60 sec
        time to live                         : 1 sec
        total byte count(c2s)                : 0
        total byte count(s2c)                : 0
        layer7 packet count(c2s)             : 0
        layer7 packet count(s2c)             : 0
        vsys                                 : vsys1
        application                          : ftp-data
        rule                                 : 
        service timeout override(index)      : False
        session to be logged at end          : False
        session in session ager              : True
        session updated by HA peer           : False
        address/port translation             : source + destination
        nat-rule                             : All-Traffic(vsys1)
        parent session                       : 503
        prediction triggered by              : client
        prediction matched once              : True
        end-reason                           : unknown
"""  # noqa: W291 - PAN-OS prints the empty value so

INFO = """\
target-dp: *.dp0
--------------------------------------------------------------------------------
Number of sessions supported:                    196606
Number of allocated sessions:                    0
Number of active TCP sessions:                   0
Number of active UDP sessions:                   0
Number of active ICMP sessions:                  0
Number of active predict sessions:               0
Number of discard sessions:                      7
Session table utilization:                       0%
Number of sessions created since bootup:         5044051
Packet rate:                                     0/s
Throughput:                                      0 kbps
New connection establish rate:                   0 cps
--------------------------------------------------------------------------------
Session timeout
  TCP default timeout:                           3600 secs
  TCP session timeout before SYN-ACK received:      5 secs
  TCP session timeout before 3-way handshaking:    10 secs
  TCP half-closed session timeout:                120 secs
  TCP session timeout in TIME_WAIT:                15 secs
  TCP session timeout for unverified RST:          30 secs
  UDP default timeout:                             30 secs
  ICMP default timeout:                             6 secs
  other IP default timeout:                        30 secs
  Session timeout in discard state:
    TCP: 90 secs, UDP: 60 secs, other IP protocols: 60 secs
--------------------------------------------------------------------------------
Session accelerated aging:                       True
  Accelerated aging threshold:                   80% of utilization
  Scaling factor:                                2 X
--------------------------------------------------------------------------------
Session setup
  TCP - reject non-SYN first packet:             True
  Hardware session offloading:                   True
  IPv6 firewalling:                              True
  ICMP Unreachable Packet Rate:                  200 pps
--------------------------------------------------------------------------------
"""

COUNTERS = """\
Global counters:
Elapsed time since last sampling: 349.576 seconds

name                                   value     rate severity  category  aspect    description
--------------------------------------------------------------------------------
pkt_recv                                  29        0 info      packet    pktproc   Packets received
pkt_sent                                  21        0 info      packet    pktproc   Packets transmitted
flow_rcv_dot1q_tag_err                     1        0 drop      flow      parse     Packets dropped: 802.1q tag not configured
flow_no_interface                          1        0 drop      flow      parse     Packets dropped: invalid interface
--------------------------------------------------------------------------------
Total counters shown: 4
--------------------------------------------------------------------------------
"""  # noqa: E501 - as printed

DNS_RULE = """\
"DNS Outbound; index: 3" {
        from Trust;
        source 10.1.1.0/24;
        source-region none;
        to Untrust;
        destination [ 8.8.8.8 8.8.4.4 ];
        destination-region none;
        user any;
        source-device any;
        destinataion-device any;
        category any;
        application/service  0:dns/udp/any/53;
        action allow;
        icmp-unreachable: no
        terminal yes;
}
"""

INTERZONE_DEFAULT = """\
interzone-default {
        from any;
        source any;
        source-region none;
        to any;
        destination any;
        destination-region none;
        category any;
        application/service  any/any/any/any;
        action deny;
        icmp-unreachable: no
        terminal yes;
        type interzone;
}
"""

NAT_RULE = """\
"DMZ-PROXY-NAT; index: 1" {
        nat-type ipv4;
        from DMZ-APPS;
        source [ 10.1.1.1 10.1.1.2 ];
        to UNTRUSTED;
        to-interface ethernet1/5 ;
        destination any;
        service 0:any/any/any;
        translate-to "src: 2.2.2.2 (dynamic-ip-and-port) (pool idx: 1)";
        terminal no;
}
"""

IPPOOL = """\
VSYS 1 has 1 NAT rules, DIP and DIPP rules:
Rule                             Type            Used       Available  Mem Size Ratio
-------------------------------- --------------- ---------- ---------- -------- -----
Trusted-to-Untrusted             Dynamic IP/Port 273        128751        20336    2
"""


def flow(source: str, zone: str, dst: str, proto: int, sport: int, dport: int, **changes: object) -> dict[str, object]:
    known = {"source": source, "source_zone": zone, "dst": dst, "proto": proto, "sport": sport, "dport": dport}
    users = {"src_user": "unknown", "dst_user": "unknown"}
    return {**known, "state": "ACTIVE", "type": "FLOW", **users, **changes}


def session(**changes: object) -> dict[str, Any]:
    """A live ping through source NAT, as the daemon tells it."""
    return {
        "id": 20,
        "vsys": "vsys1",
        "application": "ping",
        "state": "ACTIVE",
        "type": "FLOW",
        "flags": "NS",
        "c2s": flow("192.168.1.20", "Inside", "1.1.1.1", 1, 1, 26),
        "s2c": flow("1.1.1.1", "Outside", "10.2.62.150", 1, 26, 1),
        "start_time": "2023-05-06T09:58:41Z",
        "timeout": 6,
        "time_to_live": 4,
        "bytes_c2s": 98,
        "bytes_s2c": 84,
        "packets_c2s": 1,
        "packets_s2c": 2,
        "rule": "lan-out",
        "nat_rule": "lan-snat",
        "address_port_translation": "source",
        "logged_at_end": True,
        "in_ager": True,
        "synced_from_ha_peer": False,
        "layer7_processing": "completed",
        "offload": False,
        "offload_reason": "disabled",
        "via_syn_cookies": False,
        "terminated_on_host": False,
        "ingress_interface": "ethernet1/2",
        "egress_interface": "ethernet1/1",
        "qos_rule": "N/A (class 4)",
        "parent_session": None,
        "prediction_triggered_by": None,
        "prediction_matched_once": None,
        "end_reason": "unknown",
        **changes,
    }


def predict(**changes: object) -> dict[str, Any]:
    known = {
        "id": 504,
        "application": "ftp-data",
        "type": "PREDICT",
        "flags": "",
        "c2s": flow("10.59.59.132", "L3-DMZ", "172.16.59.100", 6, 0, 16889, type="PREDICT"),
        "s2c": flow("172.16.59.100", "L3-Inside", "10.59.59.132", 6, 16889, 0, type="PREDICT", state="OPENING"),
    }
    return session(**known, **changes)


def columns(session: dict[str, Any]) -> list[object]:
    """What a list on a terminal shows of a session, in its order."""
    c2s, s2c = session["c2s"], session["s2c"]
    return [
        *(session[key] for key in ("id", "application", "state", "type", "flags")),
        *(c2s[key] for key in ("source", "sport", "source_zone", "proto")),
        *(s2c["dst"], s2c["dport"], session["vsys"]),
        *(c2s["dst"], c2s["dport"], s2c["source_zone"], s2c["source"], s2c["sport"]),
    ]


def session_lines(*sessions: dict[str, Any]) -> list[str]:
    """`show session all`, line by line."""
    return printed(text.session_all([map(columns, sessions)])).splitlines()


def counter(name: str, value: int, severity: str, category: str, aspect: str, description: str) -> dict[str, object]:
    kind = {"severity": severity, "category": category, "aspect": aspect, "description": description}
    return {"name": name, "value": value, "rate": 0, **kind}


def security_rule(**changes: object) -> dict[str, object]:
    return {
        "name": "DNS Outbound",
        "index": 3,
        "from": ["Trust"],
        "source": ["10.1.1.0/24"],
        "negate_source": False,
        "to": ["Untrust"],
        "destination": ["8.8.8.8", "8.8.4.4"],
        "negate_destination": False,
        "application_service": ["dns/udp/any/53"],
        "action": "allow",
        "icmp_unreachable": False,
        "log_start": False,
        "log_end": True,
        "disabled": False,
        "type": None,
        **changes,
    }


def default_rule() -> dict[str, object]:
    anything = {"from": ["any"], "source": ["any"], "to": ["any"], "destination": ["any"]}
    named = {"name": "interzone-default", "index": None, "type": "interzone", "action": "deny"}
    return security_rule(**anything, **named, application_service=["any/any/any/any"])


def nat_rule(**changes: object) -> dict[str, object]:
    return {
        "name": "DMZ-PROXY-NAT",
        "index": 1,
        "nat_type": "ipv4",
        "from": ["DMZ-APPS"],
        "source": ["10.1.1.1", "10.1.1.2"],
        "to": "UNTRUSTED",
        "to_interface": "ethernet1/5",
        "destination": ["any"],
        "service": ["any/any/any"],
        "translate_to": "src: 2.2.2.2 (dynamic-ip-and-port) (pool idx: 1)",
        "disabled": False,
        **changes,
    }


def printed(lines) -> str:
    return "".join(f"{line}\n" for line in lines)


@pytest.fixture(autouse=True)
def _utc(monkeypatch):
    """Start times are printed in the machine's own time zone."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_session_all():
    """Both rows of the sample, NAT and PREDICT."""
    assert "\n".join([*session_lines(session(), predict()), ""]) == PING_AND_PREDICT


def test_session_all_keeps_its_columns():
    """The longest application is cut; a full 32-bit id and IPv6 move nothing."""
    ipv6 = flow("2001:db8::1", "Inside", "2001:db8::2", 6, 1025, 443)
    wide = session(id=4294967295, application="google-translate-base", state="DISCARD", c2s=ipv6)
    rows = session_lines(wide)
    assert rows[4].startswith("4294967295   google-transla DISCARD FLOW  NS   2001:db8::1[1025]/Inside/6  (")
    assert rows[5].index("2001:db8::2[443]/Outside") == rows[4].index("2001:db8::1") == 47


def test_session_all_shows_what_the_other_side_sees():
    """With both translations, the parenthesised tuples are the return flow's ends."""
    c2s = flow("10.1.0.5", "trust", "192.0.2.1", 6, 4000, 8080)
    s2c = flow("10.3.0.9", "dmz", "10.3.0.1", 6, 80, 1030)
    rows = session_lines(session(c2s=c2s, s2c=s2c, flags="NB"))
    assert rows[4][42:] == "NB   10.1.0.5[4000]/trust/6  (10.3.0.1[1030])"
    assert rows[5][47:] == "192.0.2.1[8080]/dmz  (10.3.0.9[80])"


def test_session_all_is_lazy():
    """Sessions are laid out as they come: the header does not wait for the first, nor these for others."""

    def sessions():
        yield [columns(session())]
        raise AssertionError("asked for more than there was")

    lines = text.session_all(sessions())
    assert [next(lines) for _ in range(5)][4].startswith("20 ")


def test_session_id():
    """A session that has ended: its slot keeps the data, the ager has let it go."""
    ended = session(
        id=25,
        c2s=flow("192.168.1.20", "Inside", "1.1.1.1", 1, 1, 31, state="INIT"),
        s2c=flow("1.1.1.1", "Outside", "10.2.62.150", 1, 31, 1, state="INIT"),
        in_ager=False,
        end_reason="aged-out",
    )
    assert printed(text.session_id(ended)) == PING_BY_ID


def test_start_time_is_local(monkeypatch):
    """An operator compares it with the clock on the wall."""
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    line = list(text.session_id(session(start_time="2026-01-01T23:30:00Z")))[20]
    assert line == "        start time                           : Fri Jan  2 01:30:00 2026"


def test_session_id_of_a_live_session():
    """Time to live only while it counts, no tracker stage before the end, no line for NAT that did not happen."""
    lines = list(text.session_id(session(address_port_translation=None, nat_rule=None)))
    labels = [line.partition(" :")[0].strip() for line in lines[20:]]
    assert labels[1:3] == ["timeout", "time to live"]
    assert lines[22] == "        time to live                         : 4 sec"
    absent = {"tracker stage firewall", "nat-rule", "address/port translation", "parent session"}
    assert not absent & set(labels)
    assert not [label for label in labels if label.startswith("prediction")]
    assert lines[-1] == "        end-reason                           : unknown"


def test_session_id_of_a_prediction():
    """Shorter: no packet has passed, so nothing is known of its path; the rule is empty."""
    waiting = predict(
        start_time="2013-03-19T01:57:08Z",
        timeout=60,
        time_to_live=1,
        bytes_c2s=0,
        bytes_s2c=0,
        packets_c2s=0,
        packets_s2c=0,
        rule=None,
        nat_rule="All-Traffic",
        address_port_translation="source + destination",
        logged_at_end=False,
        parent_session=503,
        prediction_triggered_by="client",
        prediction_matched_once=True,
    )
    lines = list(text.session_id(waiting))
    assert printed(lines[20:]) == PREDICT_DETAILS
    assert lines[16].split() == ["state:", "OPENING", "type:", "PRED"]


@pytest.mark.parametrize(
    ("reason", "stage"),
    [
        ("tcp-fin", "TCP FIN"),
        ("tcp-rst-from-client", "TCP RST - client"),
        ("tcp-rst-from-server", "TCP RST - server"),
        ("policy-deny", "appid policy lookup deny"),
        ("resources-unavailable", "resource limit"),
    ],
)
def test_tracker_stage_follows_the_end_reason(reason, stage):
    """PAN-OS's own words for why a session ended, before the reason itself."""
    lines = list(text.session_id(session(end_reason=reason)))
    assert lines[-2:] == [
        f"        tracker stage firewall               : {stage}",
        f"        end-reason                           : {reason}",
    ]


def test_session_info():
    """The sample without the lines of features that this product lacks, with the discard sessions it has."""
    info = {
        "num_max": 196606,
        "num_active": 0,
        "num_tcp": 0,
        "num_udp": 0,
        "num_icmp": 0,
        "num_predict": 0,
        "num_discard": 7,
        "utilization_percent": 0,
        "num_installed": 5044051,
        "pps": 0,
        "kbps": 0,
        "cps": 0,
        "timeouts": {
            "tcp": 3600,
            "tcp_init": 5,
            "tcp_handshake": 10,
            "tcp_half_closed": 120,
            "tcp_time_wait": 15,
            "tcp_unverified_rst": 30,
            "udp": 30,
            "icmp": 6,
            "default": 30,
            "discard_tcp": 90,
            "discard_udp": 60,
            "discard_default": 60,
        },
        "session_accelerated_aging": True,
        "accelerated_aging_threshold": 80,
        "scaling_factor": 2,
        "tcp_reject_non_syn_first_packet": True,
        "hardware_session_offloading": True,
        "ipv6_firewalling": True,
        "icmp_unreachable_packet_rate": 200,
    }
    assert printed(text.session_info(info)) == INFO


def test_session_meter():
    """Numbers stand under their heading."""
    lines = list(text.session_meter([{"vsys": "vsys1", "maximum": 262144, "current": 12, "throttled": 0}]))
    assert lines == [
        "vsys                 Maximum     Current   Throttled",
        "vsys1                 262144          12           0",
    ]


def test_counters():
    """The sample's four counters."""
    rows = [
        counter("pkt_recv", 29, "info", "packet", "pktproc", "Packets received"),
        counter("pkt_sent", 21, "info", "packet", "pktproc", "Packets transmitted"),
        counter("flow_rcv_dot1q_tag_err", 1, "drop", "flow", "parse", "Packets dropped: 802.1q tag not configured"),
        counter("flow_no_interface", 1, "drop", "flow", "parse", "Packets dropped: invalid interface"),
    ]
    assert printed(text.counters(rows, 349.576)) == COUNTERS


@pytest.mark.parametrize(
    ("name", "value"),
    [("session_duplicate_ip_alt_srcnat_xlat", 9), ("pkt_recv", 123456789012345)],
)
def test_long_names_and_values_share_their_columns(name, value):
    """The value ends in its column as long as both fit before it, one blank between."""
    row = list(text.counters([counter(name, value, "info", "session", "resource", "d")], 1.0))[5]
    assert row.split() == [name, str(value), "0", "info", "session", "resource", "d"]
    assert row.index(f" {value} ") + 1 + len(str(value)) == 44
    assert row.index("info") == 54


def test_running_security_policy():
    """An explicit rule and a predefined one, a blank line between."""
    assert printed(text.security_policy([security_rule(), default_rule()])) == f"{DNS_RULE}\n{INTERZONE_DEFAULT}"


def test_running_security_policy_says_what_changes_a_rule():
    """Several services are numbered; negation, ICMP answers and disabled rules are shown; a deny is not terminal."""
    rule = security_rule(
        negate_source=True,
        negate_destination=True,
        application_service=["any/tcp/any/8000", "any/tcp/any/80"],
        action="drop",
        icmp_unreachable=True,
        disabled=True,
    )
    lines = [line.strip() for line in text.security_policy([rule])]
    assert "application/service  [ 0:any/tcp/any/8000 1:any/tcp/any/80 ];" in lines
    assert lines[lines.index("source 10.1.1.0/24;") + 1] == "negate-source yes;"
    assert lines[lines.index("destination [ 8.8.8.8 8.8.4.4 ];") + 1] == "negate-destination yes;"
    assert lines[-5:] == ["action drop;", "icmp-unreachable: yes", "terminal no;", "disabled yes;", "}"]


def test_running_nat_policy():
    """The sample's rule."""
    assert printed(text.nat_policy([nat_rule()])) == NAT_RULE


def test_running_nat_policy_without_interface_and_translation():
    """An empty interface leaves PAN-OS's two blanks; a rule that exempts translates to nothing."""
    lines = list(text.nat_policy([nat_rule(to_interface="", translate_to=None)]))
    assert "        to-interface  ;" in lines
    assert not [line for line in lines if "translate-to" in line]


def test_matches_print_the_rule():
    """A test answers with the stanza of `show running`, or says that there is none."""
    assert printed(text.security_match({"rule": "DNS Outbound", "stanza": security_rule()})) == DNS_RULE
    assert printed(text.nat_match({"rule": "DMZ-PROXY-NAT", "stanza": nat_rule()})) == NAT_RULE
    assert printed(text.nat_match({"rule": None, "action": None, "stanza": None})) == "No rule matches\n"


def test_ippool():
    """The sample's columns, then the address, which PAN-OS does not show."""
    pool = {"rule": "Trusted-to-Untrusted", "type": "Dynamic IP/Port", "address": "192.0.2.1"}
    known = {**pool, "used": 273, "available": 128751, "ratio": 2, "memory": 20336}
    lines = list(text.ippool([known]))
    assert lines[0] == IPPOOL.splitlines()[0]
    assert all(line.startswith(sample) for line, sample in zip(lines, IPPOOL.splitlines(), strict=True))
    assert lines[3].endswith("  192.0.2.1")


def test_ippool_counts_rules_not_addresses():
    """A pool of two addresses is one rule's; memory is not always known."""
    pool = {"rule": "snat", "type": "Dynamic IP", "used": 0, "available": 1, "ratio": 1}
    lines = list(text.ippool([{**pool, "address": "192.0.2.1"}, {**pool, "address": "192.0.2.2"}]))
    assert lines[0] == "VSYS 1 has 1 NAT rules, DIP and DIPP rules:"
    assert lines[4].split() == ["snat", "Dynamic", "IP", "0", "1", "-", "1", "192.0.2.2"]


def test_rule_hit_count():
    """Name and count first; a rule that was never hit has no times."""
    hit = {"rule": "lan-out", "hit_count": 3, "first_hit": "2026-01-01T00:00:00Z", "last_hit": "2026-01-02T00:00:00Z"}
    never = {"rule": "old", "hit_count": 0, "first_hit": None, "last_hit": None}
    assert list(text.rule_hit_count([hit, never])) == [
        "lan-out 3 first 2026-01-01T00:00:00Z last 2026-01-02T00:00:00Z",
        "old 0",
    ]


CONFIG = {
    "zones": [{"name": "trust", "interfaces": ["in0", "in1"]}, {"name": "on", "interfaces": []}],
    "virtual-wires": [],
    "addresses": {"lan": "10.1.0.0/24", "pool": "192.0.2.10-192.0.2.20", "v6": "2001:db8::/64", "dmz 1": "10.3.0.1"},
    "service-groups": {},
    "services": {"http": {"protocol": "tcp", "destination-port": "8000-8080"}, "x": {"destination-port": [80, 443]}},
    "nat-rules": [{"source-translation": {"type": "static-ip", "addresses": ["192.0.2.99"]}, "name": "10"}, {}],
    "settings": {"offload": True, "text": ["no", "null", "1e3", "0x1f", "~", "-", "a: b", "#c", "12:30", "", "é"]},
    "log": None,
}


def test_config_is_yaml_that_says_the_same():
    """What is printed may be fed back: every string stays a string, to YAML 1.2 and to the older readers."""
    lines = printed(text.config(CONFIG))
    for version in ((1, 2), (1, 1)):
        yaml = YAML(typ="safe", pure=True)
        yaml.version = version
        assert yaml.load(io.StringIO(lines)) == CONFIG


def test_config_reads_like_the_file():
    """Short things stay on one line, words go without quotes."""
    assert list(text.config(CONFIG))[:10] == [
        "zones:",
        "  - name: trust",
        "    interfaces: [in0, in1]",
        '  - name: "on"',
        "    interfaces: []",
        "virtual-wires: []",
        "addresses:",
        "  lan: 10.1.0.0/24",
        "  pool: 192.0.2.10-192.0.2.20",
        '  v6: "2001:db8::/64"',
    ]


@given(st.text())
def test_what_is_printed_moves_no_cursor_and_stays_json(name):
    """Whatever a name holds; and a program that reads the JSON finds the name."""
    shown = text.printable(json.dumps(name, ensure_ascii=False))
    assert shown.isprintable()
    assert json.loads(shown) == name
    assert text.printable_lines(f"{name}\n{name}") == "\n".join(map(text.printable, f"{name}\n{name}".split("\n")))
