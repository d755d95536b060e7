"""What an operator reads: the daemon's JSON laid out as PAN-OS lays it out. Pure functions, JSON in, lines out.

Columns are measured from real PAN-OS output. A name that is too long for its column is cut in `show session all`, where
the application stands between other columns, and pushes the rest of its own line elsewhere, where nothing may be lost.
Lines of `show session info` for what this product lacks (GTP, SCTP, captive portal ...) are left out.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

Json = Mapping[str, Any]

RULE = "-" * 80

TYPES = {"PREDICT": "PRED"}

TRACKER_STAGES = {
    "aged-out": "Aged out",
    "tcp-fin": "TCP FIN",
    "tcp-rst-from-client": "TCP RST - client",
    "tcp-rst-from-server": "TCP RST - server",
    "policy-deny": "appid policy lookup deny",
    "threat": "mitigation tdb",
    "resources-unavailable": "resource limit",
}


def session_all(sessions: Iterable[Json]) -> Iterator[str]:
    """`show session all`: two lines for each session."""
    yield RULE
    yield "ID          Application    State   Type Flag  Src[Sport]/Zone/Proto (translated IP[Port])"
    yield "Vsys                                          Dst[Dport]/Zone (translated IP[Port])"
    yield RULE
    for session in sessions:
        yield from _session_row(session)


def _session_row(session: Json) -> Iterator[str]:
    """A translated address is what the other flow calls its far end."""
    c2s, s2c = session["c2s"], session["s2c"]
    kind = TYPES.get(session["type"], session["type"])
    name = f"{session['id']:<13}{session['application'][:14]:<15}{session['state']:<8}{kind:<6}{session['flags']:<5}"
    source = f"{c2s['source']}[{c2s['sport']}]/{c2s['source_zone']}/{c2s['proto']}"
    yield f"{name}{source}  ({s2c['dst']}[{s2c['dport']}])"
    destination = f"{c2s['dst']}[{c2s['dport']}]/{s2c['source_zone']}"
    yield f"{session['vsys'][:46]:<47}{destination}  ({s2c['source']}[{s2c['sport']}])"


def session_id(session: Json) -> Iterator[str]:
    """`show session id`: both flows, then a line for every detail that applies."""
    yield f"Session{session['id']:>16}"
    yield ""
    for side in ("c2s", "s2c"):
        yield f"        {side} flow:"
        yield from _flow(session[side])
        yield ""
    for label, value in _details(session):
        yield f"        {label:<37}: {value}"


def _flow(flow: Json) -> Iterator[str]:
    kind = TYPES.get(flow["type"], flow["type"])
    lines = (
        f"source:      {flow['source']} [{flow['source_zone']}]",
        f"dst:         {flow['dst']}",
        f"proto:       {flow['proto']}",
        f"sport:       {flow['sport']:<16}dport:      {flow['dport']}",
        f"state:       {flow['state']:<16}type:       {kind}",
        f"src user:    {flow['src_user']}",
        f"dst user:    {flow['dst_user']}",
    )
    return (" " * 16 + line for line in lines)


def _details(session: Json) -> Iterator[tuple[str, object]]:
    """Labels and values in printed order; a PREDICT session has met no packet, so it lacks what packets decide."""
    yield "start time", datetime.fromisoformat(session["start_time"]).astimezone().ctime()
    yield "timeout", f"{session['timeout']} sec"
    if session["in_ager"]:
        yield "time to live", f"{session['time_to_live']} sec"
    yield "total byte count(c2s)", session["bytes_c2s"]
    yield "total byte count(s2c)", session["bytes_s2c"]
    yield "layer7 packet count(c2s)", session["packets_c2s"]
    yield "layer7 packet count(s2c)", session["packets_s2c"]
    yield "vsys", session["vsys"]
    yield "application", session["application"]
    yield "rule", session["rule"] or ""
    yield "service timeout override(index)", False
    yield "session to be logged at end", session["logged_at_end"]
    yield "session in session ager", session["in_ager"]
    yield "session updated by HA peer", session["synced_from_ha_peer"]
    if session["address_port_translation"]:
        yield "address/port translation", session["address_port_translation"]
    if session["nat_rule"]:
        yield "nat-rule", f"{session['nat_rule']}({session['vsys']})"
    if session["type"] != "PREDICT":
        yield from _path_details(session)
    yield from _origin_and_end(session)


def _path_details(session: Json) -> Iterator[tuple[str, object]]:
    yield "layer7 processing", session["layer7_processing"]
    yield "offload", "Yes" if session["offload"] else "No"
    yield "URL filtering enabled", False
    yield "session via syn-cookies", session["via_syn_cookies"]
    yield "session terminated on host", session["terminated_on_host"]
    yield "session traverses tunnel", False
    yield "session terminate tunnel", False
    yield "captive portal session", False
    yield "ingress interface", session["ingress_interface"]
    yield "egress interface", session["egress_interface"]
    yield "session QoS rule", session["qos_rule"]


def _origin_and_end(session: Json) -> Iterator[tuple[str, object]]:
    if session["parent_session"] is not None:
        yield "parent session", session["parent_session"]
    if session["prediction_triggered_by"] is not None:
        yield "prediction triggered by", session["prediction_triggered_by"]
    if session["prediction_matched_once"] is not None:
        yield "prediction matched once", session["prediction_matched_once"]
    if session["end_reason"] in TRACKER_STAGES:
        yield "tracker stage firewall", TRACKER_STAGES[session["end_reason"]]
    yield "end-reason", session["end_reason"]


def session_info(info: Json) -> Iterator[str]:
    """`show session info`; of its settings only those that the daemon sends."""
    yield "target-dp: *.dp0"
    yield RULE
    yield from _labelled(info, INFO_COUNTS)
    yield RULE
    yield from _timeouts(info["timeouts"])
    yield RULE
    for title, lines in INFO_SETTINGS:
        if settings := list(_labelled(info, lines)):
            yield from ([title] if title else []) + settings
            yield RULE


INFO_COUNTS = (
    ("Number of sessions supported:", "num_max", ""),
    ("Number of allocated sessions:", "num_active", ""),
    ("Number of active TCP sessions:", "num_tcp", ""),
    ("Number of active UDP sessions:", "num_udp", ""),
    ("Number of active ICMP sessions:", "num_icmp", ""),
    ("Number of active predict sessions:", "num_predict", ""),
    ("Number of discard sessions:", "num_discard", ""),
    ("Session table utilization:", "utilization_percent", "%"),
    ("Number of sessions created since bootup:", "num_installed", ""),
    ("Packet rate:", "pps", "/s"),
    ("Throughput:", "kbps", " kbps"),
    ("New connection establish rate:", "cps", " cps"),
)

INFO_TIMEOUTS = (
    ("TCP default timeout:", "tcp"),
    ("TCP session timeout before SYN-ACK received:", "tcp_init"),
    ("TCP session timeout before 3-way handshaking:", "tcp_handshake"),
    ("TCP half-closed session timeout:", "tcp_half_closed"),
    ("TCP session timeout in TIME_WAIT:", "tcp_time_wait"),
    ("TCP session timeout for unverified RST:", "tcp_unverified_rst"),
    ("UDP default timeout:", "udp"),
    ("ICMP default timeout:", "icmp"),
    ("other IP default timeout:", "default"),
)

INFO_SETTINGS = (
    (
        "",
        (
            ("Session accelerated aging:", "session_accelerated_aging", ""),
            ("  Accelerated aging threshold:", "accelerated_aging_threshold", "% of utilization"),
            ("  Scaling factor:", "scaling_factor", " X"),
        ),
    ),
    (
        "Session setup",
        (
            ("  TCP - reject non-SYN first packet:", "tcp_reject_non_syn_first_packet", ""),
            ("  Hardware session offloading:", "hardware_session_offloading", ""),
            ("  IPv6 firewalling:", "ipv6_firewalling", ""),
            ("  ICMP Unreachable Packet Rate:", "icmp_unreachable_packet_rate", " pps"),
        ),
    ),
)


def _labelled(info: Json, lines: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    return (f"{label:<49}{info[key]}{unit}" for label, key, unit in lines if key in info)


def _timeouts(timeouts: Json) -> Iterator[str]:
    yield "Session timeout"
    for label, key in INFO_TIMEOUTS:
        yield f"  {label:<47}{timeouts[key]:>4} secs"
    yield "  Session timeout in discard state:"
    tcp, udp, other = (timeouts[key] for key in ("discard_tcp", "discard_udp", "discard_default"))
    yield f"    TCP: {tcp} secs, UDP: {udp} secs, other IP protocols: {other} secs"


def session_meter(meters: Iterable[Json]) -> Iterator[str]:
    """`show session meter`: one line for each vsys."""
    yield f"{'vsys':<16}{'Maximum':>12}{'Current':>12}{'Throttled':>12}"
    for meter in meters:
        yield f"{meter['vsys']:<16}{meter['maximum']:>12}{meter['current']:>12}{meter['throttled']:>12}"


def alg(rows: Iterable[Json]) -> Iterator[str]:
    """`show alg`: one line for each application layer gateway."""
    yield f"{'Application':<16}{'Enabled':<9}{'Ports':<24}{'Sessions':>9}{'Predict':>9}"
    for row in rows:
        ports = ",".join(map(str, row["ports"]))
        enabled = "yes" if row["enabled"] else "no"
        yield f"{row['application']:<16}{enabled:<9}{ports:<24}{row['sessions']:>9}{row['predictions']:>9}"


def counters(rows: Sequence[Json], elapsed: float) -> Iterator[str]:
    """`show counter global`; `elapsed` is in seconds."""
    yield "Global counters:"
    yield f"Elapsed time since last sampling: {elapsed:.3f} seconds"
    yield ""
    yield "name                                   value     rate severity  category  aspect    description"
    yield RULE
    for row in rows:
        name = f"{row['name']} {row['value']:>{max(43 - len(row['name']), 1)}}{row['rate']:>9.0f}"
        yield f"{name} {row['severity']:<10}{row['category']:<10}{row['aspect']:<10}{row['description']}"
    yield RULE
    yield f"Total counters shown: {len(rows)}"
    yield RULE


def security_policy(rules: Iterable[Json]) -> Iterator[str]:
    """`show running security-policy`: one stanza for each rule, a blank line between."""
    return _stanzas(_security_stanza(rule) for rule in rules)


def nat_policy(rules: Iterable[Json]) -> Iterator[str]:
    """`show running nat-policy`, likewise."""
    return _stanzas(_nat_stanza(rule) for rule in rules)


def _stanzas(stanzas: Iterable[Iterable[str]]) -> Iterator[str]:
    for number, stanza in enumerate(stanzas):
        if number:
            yield ""
        yield from stanza


def _security_stanza(rule: Json) -> Iterator[str]:
    """The two predefined rules have no index, no user and device lines, and a type."""
    written = rule["index"] is not None
    yield f"{_stanza_name(rule)} {{"
    yield f"        from {_words(rule['from'])};"
    yield f"        source {_words(rule['source'])};"
    if rule["negate_source"]:
        yield "        negate-source yes;"
    yield "        source-region none;"
    yield f"        to {_words(rule['to'])};"
    yield f"        destination {_words(rule['destination'])};"
    if rule["negate_destination"]:
        yield "        negate-destination yes;"
    yield "        destination-region none;"
    if written:
        yield "        user any;"
        yield "        source-device any;"
        yield "        destinataion-device any;"  # PAN-OS's own spelling
    yield "        category any;"
    services = _numbered(rule["application_service"]) if written else rule["application_service"]
    yield f"        application/service  {_words(services)};"
    yield f"        action {rule['action']};"
    yield f"        icmp-unreachable: {_yes_no(rule['icmp_unreachable'])}"
    yield f"        terminal {_yes_no(not written or rule['action'] == 'allow')};"
    if rule["type"]:
        yield f"        type {rule['type']};"
    if rule["disabled"]:
        yield "        disabled yes;"
    yield "}"


def _nat_stanza(rule: Json) -> Iterator[str]:
    yield f"{_stanza_name(rule)} {{"
    yield f"        nat-type {rule['nat_type']};"
    yield f"        from {_words(rule['from'])};"
    yield f"        source {_words(rule['source'])};"
    yield f"        to {rule['to']};"
    yield f"        to-interface {rule['to_interface']} ;"
    yield f"        destination {_words(rule['destination'])};"
    yield f"        service {_words(_numbered(rule['service']))};"
    if rule["translate_to"]:
        yield f'        translate-to "{rule["translate_to"]}";'
    yield "        terminal no;"
    if rule["disabled"]:
        yield "        disabled yes;"
    yield "}"


def _stanza_name(rule: Json) -> str:
    if rule["index"] is None:
        return str(rule["name"])
    return f'"{rule["name"]}; index: {rule["index"]}"'


def _words(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"[ {' '.join(words)} ]"


def _numbered(services: list[str]) -> list[str]:
    return [f"{number}:{service}" for number, service in enumerate(services)]


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def security_match(match: Json) -> Iterator[str]:
    """`test security-policy-match`: the stanza of the rule that matches."""
    return _security_stanza(match["stanza"]) if match["stanza"] else iter(["No rule matches"])


def nat_match(match: Json) -> Iterator[str]:
    """`test nat-policy-match`: the stanza of the rule that matches."""
    return _nat_stanza(match["stanza"]) if match["stanza"] else iter(["No rule matches"])


POOL_TYPES = {
    "dynamic-ip-and-port": "Dynamic IP/Port",
    "persistent-dynamic-ip-and-port": "Persistent DIPP",
    "dynamic-ip": "Dynamic IP",
}


def ippool(pools: Iterable[Json]) -> Iterator[str]:
    """`show running ippool`: one line for each address, which stands behind PAN-OS's own columns."""
    pools = list(pools)
    rules = len({pool["rule"] for pool in pools})
    yield f"VSYS 1 has {rules} NAT rules, DIP and DIPP rules:"
    yield "Rule                             Type            Used       Available  Mem Size Ratio Address"
    yield "-------------------------------- --------------- ---------- ---------- -------- ----- -------"
    for pool in pools:
        kind = POOL_TYPES.get(pool["type"], pool["type"])
        numbers = f"{pool['used']:<10} {pool['available']:<10} {pool.get('memory', '-'):>8} {pool['ratio']:>4}"
        yield f"{pool['rule']:<32} {kind:<15} {numbers}  {pool['address']}"


def rule_hit_count(rules: Iterable[Json]) -> Iterator[str]:
    """`show rule-hit-count`: name and count, then when the rule was first and last hit, if ever."""
    for rule in rules:
        times = f" first {rule['first_hit']} last {rule['last_hit']}" if rule["hit_count"] else ""
        yield f"{rule['rule']} {rule['hit_count']}{times}"


def config(value: Json) -> Iterator[str]:
    """`show running config` as the YAML that `check` and `run` read."""
    for key, item in value.items():
        yield from _yaml_entry(f"{_yaml_scalar(key)}:", item)


def _yaml_entry(head: str, item: object) -> Iterator[str]:
    """`head` with its value: beside it when it fits on a line, else below it and indented."""
    if isinstance(item, Mapping) and item:
        yield head
        yield from (f"  {line}" for line in config(item))
    elif isinstance(item, list) and any(isinstance(element, Mapping | list) for element in item):
        yield head
        for element in item:
            lines = list(config(element)) if isinstance(element, Mapping) and element else [_yaml_flow(element)]
            yield f"  - {lines[0]}"
            yield from (f"    {line}" for line in lines[1:])
    else:
        yield f"{head} {_yaml_flow(item)}"


def _yaml_flow(item: object) -> str:
    if isinstance(item, list):
        return f"[{', '.join(_yaml_flow(element) for element in item)}]"
    if isinstance(item, Mapping):
        return f"{{{', '.join(f'{_yaml_scalar(key)}: {_yaml_flow(value)}' for key, value in item.items())}}}"
    return _yaml_scalar(item)


PLAIN = re.compile(r"[A-Za-z_][\w./-]*|\d+\.\d+\.\d+\.\d+[\d./-]*", re.ASCII)
NOT_A_STRING = {"true", "false", "null", "yes", "no", "on", "off"}  # to YAML 1.2 or to readers of YAML 1.1


def _yaml_scalar(item: object) -> str:
    """JSON is YAML, so whatever is not plainly a word is written as JSON."""
    if isinstance(item, str) and PLAIN.fullmatch(item) and item.lower() not in NOT_A_STRING:
        return item
    return json.dumps(item)
