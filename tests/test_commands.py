"""What the control socket's commands answer, from a real session table and policy but without a kernel."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.commands import handlers
from dataplane.commands.complete import id_ranges
from dataplane.commit import Committer
from dataplane.control import Handler, Lines
from dataplane.counters import GlobalCounters, HitCounts, NatCounts
from dataplane.engine import Engine
from dataplane.errors import DataplaneError, UsageError
from dataplane.ffi import lib
from dataplane.flow import Decision, FlowKey, Translation
from dataplane.latency import Latency
from dataplane.names import Names
from dataplane.offload import Offload
from dataplane.policy.changes import identify
from dataplane.policy.compile import compile_policy
from dataplane.policy.load import parse
from dataplane.records import Records
from dataplane.resources import History
from dataplane.routes import address_from_text as address
from dataplane.sessions import HOST_ZONE, MAX_APPLICATIONS, SessionTable
from tests.talk import endpoint

TRUST, UNTRUST = 1, 2
IN0, OUT0 = 3, 4
OUTSIDE = "192.0.2.1"

CONFIG = """
zones:
  - {name: trust, interfaces: [in0]}
  - {name: untrust, interfaces: [out0]}
services:
  http: {protocol: tcp, destination-port: 80}
security-rules:
  - {name: no-dns, from: [trust], to: [untrust], application: [dns], action: drop}
  - {name: web only, from: [trust], to: [untrust], service: [http], action: allow}
  - {name: off, action: reset-both, disabled: true}
nat-rules:
  - {name: exempt, from: [trust], to: untrust, destination: [198.51.100.0/24]}
  - name: snat
    from: [trust]
    to: untrust
    source-translation: {type: dynamic-ip-and-port, addresses: [192.0.2.1-192.0.2.2], port-range: 5000-5099}
  - name: out
    from: [trust]
    to: untrust
    source-translation: {type: dynamic-ip-and-port, interface: out0}
  - name: kept
    from: [trust]
    source-translation: {type: persistent-dynamic-ip-and-port, addresses: [192.0.2.3], port-range: 5000-5009}
  - name: whole
    from: [trust]
    source-translation: {type: dynamic-ip, addresses: [192.0.2.4/30], fallback: {addresses: [192.0.2.9]}}
settings:
  session: {max-sessions: 20000, timeouts: {udp: 45}}
"""


class Bench:
    """The commands around an engine of which only the parts that they read exist."""

    def __init__(self) -> None:
        config = parse(CONFIG, "test.yaml")
        policy = compile_policy(config)
        self.names = names = Names(MAX_APPLICATIONS, HOST_ZONE)
        names.set_zones(policy.zone_ids)
        names.set_interfaces({IN0: "in0", OUT0: "out0"})
        names.rules.numbers(["", *(rule.name for rule in policy.security_rules)])
        names.nat_rules.numbers(rule.name for rule in policy.nat_rules)
        names.applications.numbers(["dns", "web-browsing", "ssl"])
        self.table = SessionTable(config.settings.session.max_sessions)
        self.records = Records()
        self.hits = HitCounts()
        world = SimpleNamespace(interface_address=lambda _name, ipv4: address(OUTSIDE) if ipv4 else None)
        engine = SimpleNamespace(
            config=config,
            policy=policy,
            ids=identify(config),
            names=names,
            table=self.table,
            bindings=SimpleNamespace(held={"kept": 3, "whole": 1}.__getitem__),
            hits=self.hits,
            nat=NatCounts(),
            latency=Latency(),
            queues={0: "hot", 1: "hot", 2: "slow"},
            resources=SimpleNamespace(load=History(), utilization=History()),
            catch_up=lambda: None,
            counters=GlobalCounters(),
            ager=SimpleNamespace(
                rates=SimpleNamespace(packets=12.6, kilobits=99.4, connections=3.0), lag=0.1, deepest=Counter({1: 9})
            ),
            slowpath=SimpleNamespace(world=world),
            offload=Offload(self.table, cast(Any, SimpleNamespace()), enabled=False),
            records=self.records,
        )
        self.engine = engine
        self._handlers: dict[str, Handler] = handlers(cast(Engine, engine), cast(Committer, None))

    def ask(self, command: str, **arguments: object) -> list[Any]:
        """The rows of an answer."""
        self.records.know(self.names, {})
        made: list[Any] = []
        for row in self._handlers[command](arguments):
            made += [json.loads(line)["row"] for line in row.splitlines()] if isinstance(row, Lines) else [row]
        return made

    def ids(self, **pairs: str) -> list[int]:
        """Sessions that pass a filter whose keys are written with underscores; a final one is cut (from_)."""
        words = {key.strip("_").replace("_", "-"): value for key, value in pairs.items()}
        return [row["id"] for row in self.ask("show session all", filter=words)]

    def open(self, source: str, destination: str, proto: int = 17, **fields: Any) -> int:
        """Install a session; its id."""
        (src, sport), (dst, dport) = endpoint(source), endpoint(destination)
        zones = fields.pop("zones", (TRUST, UNTRUST))
        key = FlowKey(address(src), address(dst), sport, dport, proto, zones[0], 6 if ":" in src else 4)
        defaults: dict[str, Any] = {"discard": False, "egress_zone": zones[1], "ingress": IN0, "egress": OUT0}
        named = {"application": self.names.applications, "rule": self.names.rules, "nat_rule": self.names.nat_rules}
        numbers = {kind: named[kind].number(fields.pop(kind)) for kind in named if kind in fields}
        translation = fields.get("translation")
        if translation is not None and translation.ports:
            self.table.open_pool(translation.source)
        decision = Decision(**{"application": 0, "rule": 0, **defaults, **numbers, **fields})
        return self.table.install(key, decision, 100)


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.table.close()


# ---- sessions ----


@pytest.fixture
def four(bench):
    """Four sessions that differ in every way a filter can see."""
    source = Translation(source=address(OUTSIDE), ports=(5000, 5099))
    target = Translation(destination=address("10.1.0.99"), destination_port=80)
    bench.dns = bench.open("10.1.0.2:4000", "8.8.8.8:53", rule="web only", nat_rule="snat", translation=source)
    bench.web = bench.open(
        "8.8.8.8:4001", "192.0.2.9:8080", 6, zones=(UNTRUST, TRUST), ingress=OUT0, egress=IN0,
        application="web-browsing", nat_rule="exempt", translation=target,
    )  # fmt: skip
    bench.six = bench.open("[fd00:1::2]:4002", "[fd00:2::2]:443", 6, application="ssl", rule="intrazone-default")
    bench.denied = bench.open("10.1.0.3:4003", "8.8.4.4:53", discard=True, rule="no-dns")
    return bench


def test_all_sessions_in_the_order_of_their_ids(four):
    """And no filter at all is one that everything passes."""
    assert four.ids() == sorted([four.dns, four.web, four.six, four.denied])


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("nat", "none", ["six", "denied"]),
        ("nat", "source", ["dns"]),
        ("nat", "destination", ["web"]),
        ("nat", "both", []),
        ("ip6", "yes", ["six"]),
        ("ip6", "no", ["dns", "web", "denied"]),
        ("type", "flow", ["dns", "web", "six", "denied"]),
        ("type", "predict", []),
        ("state", "active", ["dns", "web", "six"]),
        ("state", "discard", ["denied"]),
        ("state", "closing", []),
        ("state", "initial", []),
        ("from_", "untrust", ["web"]),
        ("to", "untrust", ["dns", "six", "denied"]),
        ("from_", "no-such-zone", []),
        ("source", "10.1.0.0/24", ["dns", "denied"]),
        ("source", "10.1.0.3", ["denied"]),
        ("source", "fd00:1::/64", ["six"]),
        ("destination", "8.8.0.0/16", ["dns", "denied"]),
        ("destination", "192.0.2.9", ["web"]),
        ("destination", "10.1.0.99", []),
        ("source_port", "4001", ["web"]),
        ("destination_port", "53", ["dns", "denied"]),
        ("destination_port", "80", []),
        ("protocol", "6", ["web", "six"]),
        ("application", "dns", ["dns", "denied"]),
        ("application", "no-such-application", []),
        ("rule", "no-dns", ["denied"]),
        ("rule", "no such rule", []),
        ("nat_rule", "snat", ["dns"]),
        ("nat_rule", "exempt", ["web"]),
        ("nat_rule", "no such rule", []),
        ("ingress_interface", "out0", ["web"]),
        ("egress_interface", "out0", ["dns", "six", "denied"]),
        ("egress_interface", "eth9", []),
        ("min_kb", "1", []),
        ("max_kb", "1", ["dns", "web", "six", "denied"]),
        ("min_age", "4194304", []),
    ],
)
def test_a_filter_shows_what_it_says(four, key, value, shown):
    """Every key, on the client's side of the session; a name that nothing has shows nothing."""
    assert four.ids(**{key: value}) == [getattr(four, name) for name in shown]


def test_every_condition_of_a_filter_must_hold(four):
    """Together, not one of them."""
    assert four.ids(protocol="6", destination_port="443") == [four.six]
    assert four.ids(protocol="17", destination_port="443") == []


def test_counting_and_starting_at_an_id(four):
    """`count` is one number; `start-at` is the first id that may be shown."""
    assert four.ask("show session all", count=True, filter={"protocol": "6"}) == [2]
    assert four.ask("show session all", count=True, filter={"rule": "no such rule"}) == [0]
    rows = four.ask("show session all", start_at=four.web, filter={})
    assert [row["id"] for row in rows] == [four.web, four.six, four.denied]
    assert four.ask("show session all", start_at=2**32 - 1, filter={}) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"filter": {"colour": "red"}},
        {"filter": {"protocol": "tcp"}},
        {"filter": {"source": "10.1.0.300"}},
        {"filter": {"source-port": 53}},
        {"filter": ["protocol", "6"]},
        {"filter": "everything"},
        {"filter": None},
        {"start_at": "first"},
        {"start_at": -1},
        {"start_at": 2**40},
        {"start_at": True},
        {"start_at": 1.5},
    ],
)
def test_nonsense_is_refused(bench, arguments):
    """A socket brings any JSON."""
    with pytest.raises(UsageError):
        bench.ask("show session all", **arguments)


def test_one_session(four):
    """By its id, translation and all."""
    (row,) = four.ask("show session id", id=four.dns)
    assert (row["id"], row["flags"], row["nat_rule"], row["s2c"]["dst"]) == (four.dns, "NS", "snat", OUTSIDE)
    assert 5000 <= row["s2c"]["dport"] <= 5099


@pytest.mark.parametrize("session_id", [0, 5, 20000, 20001, 2**32 - 1])
def test_a_session_that_never_was(four, session_id):
    """An id without a session, and one beyond the table."""
    for command in ("show session id", "clear session id"):
        with pytest.raises(DataplaneError) as refused:
            four.ask(command, id=session_id)
        assert refused.value.exit_code == 1


@pytest.mark.parametrize("session_id", ["1", None, True, 1.0, [1], -1, 2**32, 2**70])
def test_what_is_no_id(four, session_id):
    """Refused, and never an internal error."""
    for command in ("show session id", "clear session id"):
        with pytest.raises(UsageError):
            four.ask(command, id=session_id)
        with pytest.raises(UsageError):
            four.ask(command)


def test_clearing_ends_what_passes_the_filter(four):
    """With the reason `unknown`, at the ager's next look; the others stay."""
    assert four.ask("clear session all", filter={"protocol": "6"}) == [2]
    assert four.ids(state="active") == [four.dns]
    ended = {session.id: session.end_reason for session in four.table.expire()}
    assert ended == {four.web: "unknown", four.six: "unknown"}


def test_clearing_nothing(four):
    """A filter that nothing passes ends nothing."""
    assert four.ask("clear session all", filter={"rule": "no such rule"}) == [0]
    assert four.ask("clear session all", filter={"source-port": "9"}) == [0]
    assert len(four.ids()) == 4


def test_clearing_one_session_twice(four):
    """The second time it is gone, and still shown with its end reason."""
    assert four.ask("clear session id", id=four.denied) == [1]
    with pytest.raises(DataplaneError):
        four.ask("clear session id", id=four.denied)
    four.table.free(four.table.expire())
    (row,) = four.ask("show session id", id=four.denied)
    assert (row["state"], row["in_ager"], row["end_reason"]) == ("INIT", False, "unknown")
    assert four.denied not in four.ids()


def test_info_counts_by_kind(four):
    """ACTIVE sessions by protocol, DISCARD ones apart, and the configuration's timers."""
    (info,) = four.ask("show session info")
    assert (info["num_max"], info["num_active"], info["num_installed"]) == (20000, 4, 4)
    assert (info["num_tcp"], info["num_udp"], info["num_icmp"], info["num_discard"]) == (2, 1, 0, 1)
    assert (info["num_predict"], info["utilization_percent"]) == (0, 0)
    assert (info["pps"], info["kbps"], info["cps"]) == (13, 99, 3)
    assert (info["ager_lag_ms"], info["slow_path_p50_us"], info["slow_path_p99_us"]) == (100, 0, 0)
    assert (info["timeouts"]["udp"], info["timeouts"]["tcp_half_closed"]) == (45, 120)
    assert info["bytes_per_session"] <= 256


def test_the_meter(four):
    """How many there may be and are."""
    assert four.ask("show session meter") == [{"vsys": "vsys1", "maximum": 20000, "current": 4, "throttled": 0}]


# ---- counters, rules, pools ----


def test_counters_are_filtered_by_the_daemon(bench):
    """The rows are the contract's; unknown keys and values are refused."""
    bench.table.count(lib.FLOW_POLICY_DENY, 3)
    (row,) = bench.ask("show counter global", filter={"severity": "drop", "value": "non-zero"})
    assert (row["name"], row["value"], row["category"]) == ("flow_policy_deny", 3, "flow")
    assert set(row) == {"name", "value", "rate", "severity", "category", "aspect", "description"}
    nonsense = ({"severity": "loud"}, {"delta": "maybe"}, {"colour": "red"}, {"category": "flwo"}, {"aspect": "fast"})
    for pairs in nonsense:
        with pytest.raises(UsageError):
            bench.ask("show counter global", filter=pairs)


def test_one_counter_by_its_name(bench):
    """A name that no counter has is refused."""
    assert [row["name"] for row in bench.ask("show counter global", name="pkt_recv")] == ["pkt_recv"]
    for wrong in ("no_such_counter", 5, ["pkt_recv"]):
        with pytest.raises(UsageError):
            bench.ask("show counter global", name=wrong)


def test_a_delta_is_the_callers_own(bench):
    """What one has read is still new to the other; who is no caller is refused."""
    for caller in ("0 /dev/pts/1", "0 /dev/pts/2"):
        bench.table.count(lib.FLOW_POLICY_DENY, 3)
        (row,) = bench.ask("show counter global", caller=caller, filter={"delta": "yes", "value": "non-zero"})
        assert row["value"] == (3 if caller.endswith("1") else 6)
    for nobody in (None, 7, "x" * 201):
        with pytest.raises(UsageError):
            bench.ask("show counter global", caller=nobody, filter={"delta": "yes"})


def test_queues_that_nobody_has_bound(bench):
    """Every queue has a row, and a worker's own counters where there is a worker."""
    lib.table_count(bench.table.pointer, 1, lib.QUEUE_VERDICT_ERROR, 2)
    rows = bench.ask("show counter queue")
    assert [(row["queue"], row["role"], row["highest"]) for row in rows] == [
        (0, "hot", 0),
        (1, "hot", 9),
        (2, "slow", 0),
    ]
    assert [row["verdict_errors"] for row in rows] == [0, 2, None]


def test_running_rules_are_numbered_and_the_defaults_are_not(bench):
    """In order, the disabled one too."""
    rows = bench.ask("show running security-policy")
    assert [(row["name"], row["index"], row["disabled"]) for row in rows] == [
        ("no-dns", 1, False),
        ("web only", 2, False),
        ("off", 3, True),
        ("intrazone-default", None, False),
        ("interzone-default", None, False),
    ]
    assert [row["type"] for row in rows[-2:]] == ["intrazone", "interzone"]
    assert rows[1]["application_service"] == ["any/tcp/any/80"]


def test_running_nat_rules_show_the_address_of_an_interface(bench):
    """As it is now; a no-NAT rule translates to nothing."""
    rows = bench.ask("show running nat-policy")
    assert [row["translate_to"] for row in rows] == [
        None,
        "src: 192.0.2.1-192.0.2.2 (dynamic-ip-and-port)",
        "src: out0 192.0.2.1 (dynamic-ip-and-port)",
        "src: 192.0.2.3 (persistent-dynamic-ip-and-port)",
        "src: 192.0.2.4/30 (dynamic-ip) fallback 192.0.2.9 (dynamic-ip-and-port)",
    ]


def test_the_running_configuration_is_the_file(bench):
    """In the file's keys; what it gives back loads again."""
    (config,) = bench.ask("show running config")
    assert config["security-rules"][1]["name"] == "web only"
    assert config["settings"]["session"]["timeouts"]["udp"] == 45


def test_pools_show_what_is_used(four):
    """Capacity is addresses times ports; the port of the one session is taken."""
    snat, out, *_ = four.ask("show running ippool")
    assert snat == {
        "rule": "snat",
        "address": "192.0.2.1-192.0.2.2",
        "type": "Dynamic IP/Port",
        "used": 1,
        "available": 199,
        "ratio": 1,
        "failures": 0,
    }
    assert (out["rule"], out["address"], out["used"] + out["available"]) == ("out", OUTSIDE, 64512)


def test_pools_of_bindings_show_how_many_are_bound(bench):
    """A persistent pool counts its ports, a dynamic-ip one its addresses; a fallback is a pool of its own."""
    kept, whole, fallback = bench.ask("show running ippool")[2:]
    assert (kept["type"], kept["used"], kept["available"], kept["ratio"]) == ("Persistent DIPP", 3, 7, 1)
    assert (whole["type"], whole["used"], whole["available"], whole["ratio"]) == ("Dynamic IP", 1, 3, 1)
    assert (fallback["rule"], fallback["type"], fallback["available"]) == ("whole", "Dynamic IP/Port", 64512)


def test_a_shared_port_counts_once_for_each_session_that_may_have_it(bench):
    """Capacity is what fits: addresses times ports times the oversubscription ratio."""
    bench.table.close()
    bench.table.__init__(100, oversubscription=2)
    snat = bench.ask("show running ippool")[0]
    assert (snat["used"], snat["available"], snat["ratio"]) == (0, 400, 2)


def test_hits_of_rules(bench):
    """Every rule is listed, in order; times only where there was a hit."""
    bench.hits.add(bench.names.rules.find("web only"))
    bench.hits.add(bench.names.rules.find("web only"))
    rows = bench.ask("show rule-hit-count")
    assert [(row["rule"], row["hit_count"]) for row in rows] == [
        ("no-dns", 0),
        ("web only", 2),
        ("off", 0),
        ("intrazone-default", 0),
        ("interzone-default", 0),
    ]
    assert rows[0]["first_hit"] is rows[0]["last_hit"] is None
    assert rows[1]["first_hit"].endswith("Z")


def test_hits_of_nat_rules(bench):
    """They are counted by number, and shown by name."""
    bench.engine.nat.hit(bench.names.nat_rules.find("snat"))
    bench.engine.nat.hit(None)
    rows = bench.ask("show rule-hit-count", rule_base="nat")
    assert [(row["rule"], row["hit_count"]) for row in rows[:3]] == [("exempt", 0), ("snat", 1), ("out", 0)]
    with pytest.raises(UsageError):
        bench.ask("show rule-hit-count", rule_base="pbf")


def test_hits_begin_anew(bench):
    """Of one rule, or of all; a rule that is not there is said to be none."""
    bench.hits.add(bench.names.rules.find("web only"))
    bench.hits.add(bench.names.rules.find("no-dns"))
    bench.engine.nat.hit(bench.names.nat_rules.find("snat"))
    assert bench.ask("clear rule-hit-count", rule="no-dns") == [1]
    assert [row["hit_count"] for row in bench.ask("show rule-hit-count")] == [0, 1, 0, 0, 0]
    assert bench.ask("clear rule-hit-count") == [5]
    assert {row["hit_count"] for row in bench.ask("show rule-hit-count")} == {0}
    assert bench.ask("show rule-hit-count", rule_base="nat")[1]["hit_count"] == 1
    assert bench.ask("clear rule-hit-count", rule_base="nat") == [5]
    assert bench.ask("show rule-hit-count", rule_base="nat")[1]["hit_count"] == 0
    with pytest.raises(DataplaneError, match="no security rule is named 'snat'"):
        bench.ask("clear rule-hit-count", rule="snat")


def test_failures_stand_beside_the_pool(bench):
    """Those of its rule that concern translation."""
    number = bench.names.nat_rules.find("snat")
    bench.engine.nat.failed(number, "nat_dipp_alloc_failure")
    bench.engine.nat.failed(number, "session_alloc_failure")
    bench.engine.nat.failed(None, "nat_dipp_alloc_failure")
    assert [row["failures"] for row in bench.ask("show running ippool")][:2] == [1, 0]


# ---- top talkers, resources ----


@pytest.mark.parametrize(
    ("what", "shown"),
    [
        ("source", {"10.1.0.2": 1, "8.8.8.8": 1, "fd00:1::2": 1, "10.1.0.3": 1}),
        ("destination", {"8.8.8.8": 1, "192.0.2.9": 1, "fd00:2::2": 1, "8.8.4.4": 1}),
        ("rule", {"web only": 1, "": 1, "intrazone-default": 1, "no-dns": 1}),
        ("application", {"dns": 2, "web-browsing": 1, "ssl": 1}),
        ("zone", {"trust": 3, "untrust": 1}),
    ],
)
def test_top_sums_up_by_name(four, what, shown):
    """Each group once, the largest first."""
    rows = four.ask("show session top", what=what, by="sessions")
    assert {row[what]: row["sessions"] for row in rows} == shown
    assert [row["sessions"] for row in rows] == sorted(shown.values(), reverse=True)
    assert all(row["percent"] == 25 * row["sessions"] and row["kbps"] is None for row in rows)


def test_top_of_those_that_a_filter_means(four):
    """`last` limits the rows; a filter that nothing can pass leaves none."""
    assert len(four.ask("show session top", what="source", last=2)) == 2
    (row,) = four.ask("show session top", what="source", filter={"state": "discard"}, by="bytes")
    assert (row["source"], row["bytes"], row["packets"], row["percent"]) == ("10.1.0.3", 100, 1, 100.0)
    assert four.ask("show session top", what="rule", filter={"rule": "no such rule"}) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"what": "colour"},
        {"what": ["source"]},
        {"what": "source", "by": "name"},
        {"what": "source", "last": 0},
        {"what": "source", "last": 1001},
        {"what": "source", "last": "5"},
        {"what": "source", "filter": {"colour": "red"}},
    ],
)
def test_top_refuses_nonsense(bench, arguments):
    """A socket brings any JSON."""
    with pytest.raises(UsageError):
        bench.ask("show session top", **arguments)


def test_resources_by_period(bench):
    """All periods, or one of them with as many samples as there are; the newest comes first."""
    for load in (10.4, 20.6):
        bench.engine.resources.load.add({"worker-0": load})
    rows = bench.ask("show running resource-monitor")
    assert [row["period"] for row in rows] == ["second", "minute", "hour", "day", "week"]
    assert rows[0]["cpu"] == {"worker-0": {"average": [21, 10], "maximum": [21, 10]}}
    assert rows[1]["cpu"] == {}
    (row,) = bench.ask("show running resource-monitor", period="second", last=1)
    assert (row["last"], row["cpu"]["worker-0"]["average"]) == (1, [21])
    for arguments in ({"period": "year"}, {"period": "week", "last": 14}, {"period": "second", "last": 0}):
        with pytest.raises(UsageError):
            bench.ask("show running resource-monitor", **arguments)


# ---- test ...-match ----


def flow(**changes: object) -> dict[str, object]:
    fields: dict[str, object] = {
        "from": "trust",
        "to": "untrust",
        "source": "10.1.0.2",
        "destination": "8.8.8.8",
        "destination_port": 80,
        "protocol": 6,
    }
    return fields | changes


@pytest.mark.parametrize(
    ("changes", "rule", "action"),
    [
        ({}, "web only", "allow"),
        ({"destination_port": 53, "protocol": 17}, "no-dns", "drop"),
        ({"application": "dns"}, "no-dns", "drop"),
        ({"destination_port": 81}, "interzone-default", "deny"),
        ({"to": "trust", "destination_port": 81}, "intrazone-default", "allow"),
        ({"protocol": 1, "destination_port": 0}, "interzone-default", "deny"),
    ],
)
def test_security_match(bench, changes, rule, action):
    """The same answer that a first packet would get, with the rule's stanza."""
    (match,) = bench.ask("test security-policy-match", **flow(**changes))
    assert (match["rule"], match["action"], match["stanza"]["name"]) == (rule, action, rule)


@pytest.mark.parametrize(
    ("changes", "rule", "action"),
    [
        ({}, "snat", "translate"),
        ({"destination": "198.51.100.7"}, "exempt", "no-nat"),
        ({"from": "untrust"}, None, None),
        ({"source": "fd00:1::2", "destination": "fd00:2::2"}, None, None),
    ],
)
def test_nat_match(bench, changes, rule, action):
    """Without a match everything is null."""
    (match,) = bench.ask("test nat-policy-match", **flow(**changes))
    assert (match["rule"], match["action"], match["stanza"] is None) == (rule, action, rule is None)


@pytest.mark.parametrize(
    "changes",
    [
        {"from": "nowhere"},
        {"to": "nowhere"},
        {"source": "10.1.0.0/24"},
        {"destination": "fd00::1"},
        {"protocol": 256},
        {"destination_port": None},
        {"application": "no-such-application"},
        {"colour": "red"},
    ],
)
def test_a_flow_that_cannot_be(bench, changes):
    """Unknown zones, addresses that are none or of two families, unknown words."""
    with pytest.raises(UsageError):
        bench.ask("test security-policy-match", **flow(**changes))


def test_every_command_of_the_wire_has_a_handler():
    """The list of the client and the daemon is one."""
    package = Path(__file__).parent.parent / "dataplane"
    text = "".join(path.read_text() for path in [*package.glob("cli/*.py"), package / "live.py"])
    made = Bench()
    try:
        missing = [command for command in made._handlers if f'"{command}"' not in text]
    finally:
        made.table.close()
    assert missing == []


# ---- names to complete a line with ----


@pytest.mark.parametrize(
    ("kind", "prefix", "rows"),
    [
        ("zone", "", [["trust", "in0"], ["untrust", "out0"]]),
        ("zone", "u", [["untrust", "out0"]]),
        ("rule", "w", [["web only", "allow"]]),
        ("nat-rule", "e", [["exempt", "no-nat"]]),
        ("application", "web-b", [["web-browsing", ""]]),
        ("interface", "o", [["out0", ""]]),
        ("counter-aspect", "pars", [["parse", ""]]),
        ("zone", "\x1b", []),
    ],
)
def test_names_that_begin_so(bench, kind, prefix, rows):
    """Each with what it stands for."""
    assert bench.ask("complete", kind=kind, prefix=prefix) == rows


def test_session_ids_are_completed_by_their_digits(four):
    """With the application and the two ends; leading zeros and other nonsense are no session's."""
    named = dict(four.ask("complete", kind="session", prefix=""))
    assert named[str(four.dns)] == "dns 10.1.0.2 to 8.8.8.8"
    assert len(named) == 4
    assert [word for word, _ in four.ask("complete", kind="session", prefix=str(four.web))] == [str(four.web)]
    for nonsense in ("0", "x", "9" * 30, "-1", "１"):
        assert four.ask("complete", kind="session", prefix=nonsense) == []


@given(st.integers(1, 12000), st.integers(1, 4))
def test_id_ranges_are_the_numbers_that_begin_so(most, digits):
    """Compared with looking at every number."""
    prefix = "1203"[:digits]
    found = [number for first, last in id_ranges(prefix, most) for number in range(first, min(last, most) + 1)]
    assert sorted(found) == [number for number in range(1, most + 1) if str(number).startswith(prefix)]


@pytest.mark.parametrize("arguments", [{}, {"kind": "moon"}, {"kind": ["zone"]}, {"kind": "zone", "prefix": 7}])
def test_kinds_that_are_none(bench, arguments):
    """Are refused like any other word."""
    with pytest.raises(UsageError):
        bench.ask("complete", **arguments)
