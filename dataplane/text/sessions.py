"""Sessions, one a pair of lines or one in every detail, and the session table's use.

Columns are measured from real PAN-OS output. A name that is too long for its column is cut in `show session all`, where
the application stands between other columns, and pushes the rest of its own line elsewhere, where nothing may be lost.
Lines of `show session info` for what this product lacks (GTP, SCTP, captive portal ...) are left out.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime

from dataplane.text.base import RULE, Json

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


# The columns of a list in their order (row.c): a row of them is printed by one operator, as there may be a million.
ROW = "%-13d%-15.14s%-8s%-6.4s%-5s%s[%d]/%s/%d  (%s[%d])\n%-47.46s%s[%d]/%s  (%s[%d])"


def session_all(lists: Iterable[Iterable[Iterable[object]]]) -> Iterator[str]:
    """`show session all`: two lines for each session, many sessions at once."""
    yield RULE
    yield "ID          Application    State   Type Flag  Src[Sport]/Zone/Proto (translated IP[Port])"
    yield "Vsys                                          Dst[Dport]/Zone (translated IP[Port])"
    yield RULE
    for sessions in lists:
        yield "\n".join([ROW % tuple(columns) for columns in sessions])


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
    ("Slow path latency, median:", "slow_path_p50_us", " us"),
    ("Slow path latency, 99th percentile:", "slow_path_p99_us", " us"),
    ("Session ager lag:", "ager_lag_ms", " ms"),
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
