"""What the counters of session.h are called and mean, and how often each rule was hit.

`enum counter` and this list are one list: a test compares them. Names and the three words of classification follow
PAN-OS where it has them.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from dataplane.filters import CounterFilter

MAX_CALLERS = 64

# name: (severity, category, aspect, description)
DESCRIPTIONS: dict[str, tuple[str, str, str, str]] = {
    "pkt_recv": ("info", "packet", "pktproc", "Packets received"),
    "bytes_recv": ("info", "packet", "pktproc", "Bytes received"),
    "pkt_again": ("info", "packet", "pktproc", "Packets received a second time, from the slow path"),
    "bytes_again": ("info", "packet", "pktproc", "Bytes received a second time, from the slow path"),
    "pkt_sent": ("info", "packet", "pktproc", "Packets transmitted"),
    "pkt_punt": ("info", "packet", "pktproc", "Packets handed to the slow path"),
    "pkt_inspect": ("info", "packet", "pktproc", "Packets handed to the slow path for inspection"),
    "pkt_link_control": ("info", "packet", "pktproc", "Neighbor and listener discovery packets accepted"),
    "pkt_icmp_error": ("info", "packet", "pktproc", "ICMP errors delivered for a session"),
    "flow_parse_ip_hdr": ("drop", "flow", "parse", "Packets dropped: malformed IP header"),
    "flow_parse_ip_frag": ("drop", "flow", "parse", "Packets dropped: fragment that was not reassembled"),
    "flow_parse_ext_hdr": ("drop", "flow", "parse", "Packets dropped: IPv6 headers malformed, too many or a detour"),
    "flow_parse_l4_hdr": ("drop", "flow", "parse", "Packets dropped: malformed transport header"),
    "flow_parse_l4_cksm": ("drop", "flow", "parse", "Packets dropped: wrong transport checksum"),
    "flow_parse_land": ("drop", "flow", "parse", "Packets dropped: source is destination (land attack)"),
    "flow_parse_icmp_quote": ("drop", "flow", "parse", "Packets dropped: ICMP error that quotes no whole header"),
    "flow_no_interface": ("drop", "flow", "parse", "Packets dropped: interface belongs to no zone"),
    "flow_policy_deny": ("drop", "flow", "session", "Session setup: denied by policy"),
    "flow_host_service_deny": ("drop", "flow", "session", "Session setup: service of the firewall not enabled in zone"),
    "flow_discard_hit": ("drop", "flow", "session", "Packets dropped: session is in discard state"),
    "flow_ip_spoof": ("drop", "flow", "session", "Packets dropped: source address not routed to its zone"),
    "flow_fwd_l3_noroute": ("drop", "flow", "forward", "Packets dropped: no route"),
    "flow_fwd_l3_mcast_drop": ("drop", "flow", "forward", "Packets dropped: no route for multicast or broadcast"),
    "flow_icmp_error_no_session": ("drop", "flow", "session", "Packets dropped: ICMP error that quotes no session"),
    "flow_icmp_error_spoof": ("drop", "flow", "session", "Packets dropped: ICMP error in the name of another zone"),
    "flow_icmp_redirect": ("drop", "flow", "session", "Packets dropped: ICMP redirect for a translated session"),
    "flow_link_control_transit": (
        "drop",
        "flow",
        "forward",
        "Packets dropped: neighbor discovery in transit",
    ),
    "flow_nat_checksum": ("drop", "flow", "nat", "Packets dropped: translation cannot complete the checksum"),
    "flow_marked_miss": (
        "drop",
        "flow",
        "session",
        "Packets dropped: session gone when its first packet came round",
    ),
    "flow_queued_too_long": ("drop", "flow", "resource", "Packets dropped: waited too long in a queue"),
    "flow_queue_truncated": ("drop", "flow", "resource", "Packets dropped: too large for a queue"),
    "flow_queue_full": ("drop", "flow", "resource", "Packets dropped: the kernel found a queue full"),
    "flow_slowpath_error": ("drop", "flow", "session", "Packets dropped: the slow path failed on them"),
    "flow_tcp_non_syn_drop": ("drop", "flow", "session", "Packets dropped: non-SYN TCP without session match"),
    "tcp_flag_zero": ("drop", "tcp", "pktproc", "Packets dropped: TCP segment without flags"),
    "tcp_flag_invalid": ("drop", "tcp", "pktproc", "Packets dropped: impossible combination of TCP flags"),
    "tcp_drop_out_of_wnd": ("drop", "tcp", "pktproc", "Packets dropped: TCP segment outside the window"),
    "tcp_drop_state": ("drop", "tcp", "pktproc", "Packets dropped: TCP segment impossible in its connection's state"),
    "tcp_drop_rst_out_of_wnd": ("drop", "tcp", "pktproc", "Packets dropped: TCP RST outside the window"),
    "session_alloc_failure": ("drop", "session", "resource", "Sessions refused: session table is full"),
    "session_source_limit": ("drop", "session", "resource", "Sessions refused: limit of their source is reached"),
    "session_duplicate_key": ("drop", "session", "session", "Sessions refused: return key belongs to a live session"),
    "nat_dipp_alloc_failure": ("drop", "nat", "resource", "Sessions refused: no free port for source translation"),
    "nat_dip_alloc_failure": ("drop", "nat", "resource", "Sessions refused: no free address for source translation"),
    "nat_nptv6_unmappable": ("drop", "nat", "session", "Sessions refused: address that no prefix translation can have"),
    "alg_oversize_drop": ("drop", "alg", "pktproc", "Packets dropped: too large for inspection"),
    "alg_stream_gap": ("drop", "alg", "pktproc", "Packets dropped: inspected stream has a gap before them"),
    "alg_stream_held": ("drop", "alg", "pktproc", "Packets dropped: their bytes go on with the rest of a command"),
    "pkt_offload": ("info", "packet", "offload", "Packets forwarded by the kernel for a session"),
    "bytes_offload": ("info", "packet", "offload", "Bytes forwarded by the kernel for a session"),
    "session_offloaded": ("info", "session", "offload", "Sessions offloaded to the kernel"),
    "session_onloaded": ("info", "session", "offload", "Sessions taken back from the kernel"),
    "session_installed": ("info", "session", "session", "Sessions installed"),
    "session_cached": ("info", "session", "session", "Sessions installed by the dispatch cache"),
    "dispatch_learned": ("info", "flow", "dispatch", "Classes of first packets that were decided once for all"),
    "dispatch_unknown": ("info", "flow", "dispatch", "First packets handed to Python: class not decided yet"),
    "dispatch_closed": ("info", "flow", "dispatch", "First packets handed to Python: dispatch cache is closed"),
    "dispatch_predict": ("info", "flow", "dispatch", "First packets handed to Python: a predicted session is awaited"),
    "dispatch_refused": ("info", "flow", "dispatch", "First packets handed to Python: no room, port or record left"),
    "flow_slowpath_allow": ("info", "flow", "session", "First packets decided by Python: allowed"),
    "flow_slowpath_deny": ("info", "flow", "session", "First packets decided by Python: denied"),
    "flow_slowpath_host": ("info", "flow", "session", "First packets decided by Python: for the firewall itself"),
    "flow_slowpath_own": ("info", "flow", "session", "First packets decided by Python: sent by the firewall itself"),
    "flow_slowpath_predict": ("info", "flow", "session", "First packets decided by Python: session was predicted"),
    "flow_slowpath_again": ("info", "flow", "session", "Packets whose session was there when Python took them"),
    "flow_slowpath_inspect": ("info", "flow", "session", "Packets read by an application layer gateway"),
    "session_freed": ("info", "session", "session", "Sessions freed"),
    "session_expired": ("info", "session", "session", "Sessions ended and logged by the ager"),
    "session_end_threat": ("info", "session", "session", "Sessions ended: threat"),
    "session_end_policy_deny": ("info", "session", "session", "Sessions ended: denied by policy"),
    "session_end_tcp_rst_from_client": ("info", "session", "session", "Sessions ended: TCP RST from the client"),
    "session_end_tcp_rst_from_server": ("info", "session", "session", "Sessions ended: TCP RST from the server"),
    "session_end_resources_unavailable": ("info", "session", "session", "Sessions ended: no resources"),
    "session_end_tcp_fin": ("info", "session", "session", "Sessions ended: both sides closed"),
    "session_end_tcp_reuse": ("info", "session", "session", "Sessions ended: tuple used by a new connection"),
    "session_end_decoder": ("info", "session", "session", "Sessions ended: by the decoder of their protocol"),
    "session_end_aged_out": ("info", "session", "session", "Sessions ended: their timer ran out"),
    "session_end_unknown": ("info", "session", "session", "Sessions ended: cleared, or for a reason not known"),
    "session_discard_evicted": ("info", "session", "resource", "Discard sessions ended early to make room"),
    "session_zonechange": ("info", "session", "forward", "Sessions ended: route moved to another zone"),
    "session_addresschange": ("info", "session", "forward", "Sessions ended: interface has lost their address"),
    "tcp_rst_unverified": ("info", "tcp", "pktproc", "TCP RST inside the window, not at the expected sequence"),
    "tcp_session_reused": ("info", "tcp", "session", "Sessions ended by a new connection on the same tuple"),
    "session_predicted": ("info", "session", "session", "Predict sessions made"),
    "session_predict_matched": ("info", "session", "session", "Predict sessions matched by a packet"),
    "session_predict_limit": ("warn", "session", "resource", "Predict sessions refused or ended early: limit reached"),
    "alg_oversize_pass": ("info", "alg", "pktproc", "Packets too large for inspection, passed unread"),
    "alg_given_up": ("info", "alg", "pktproc", "Inspections ended: not the protocol, or encrypted, or too long"),
    "alg_payload_changed": ("info", "alg", "pktproc", "Packets whose text was translated"),
    "nat_port_reallocated": ("info", "nat", "session", "Source ports changed because two sessions would be one"),
    "flow_action_reset": ("info", "flow", "session", "TCP RST sent"),
    "flow_action_unreachable": ("info", "flow", "session", "ICMP unreachable sent"),
    "flow_action_acknowledged": ("info", "flow", "session", "TCP ACK sent for bytes that an ALG holds"),
    "flow_action_limited": ("warn", "flow", "resource", "TCP RST or ICMP unreachable not sent: rate limit"),
    "queue_receive_overrun": ("warn", "packet", "resource", "Receive buffer of a queue overrun"),
    "queue_verdict_error": ("error", "packet", "resource", "Verdicts that the kernel refused"),
    "queue_send_error": ("error", "packet", "resource", "Batches of verdicts that could not be sent"),
    "log_record_lost": ("warn", "log", "resource", "Log records lost"),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """All counters at one moment."""

    values: Mapping[str, int]
    time: float  # seconds, monotonic


class GlobalCounters:
    """`show counter global`: counters since the start, or since the same caller said `delta yes` last.

    Of MAX_CALLERS callers the one that has not asked for longest is forgotten first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._last: dict[str, Sample] = {}  # by caller, in the order of asking

    def rows(
        self, values: Mapping[str, int], wanted: CounterFilter, caller: str = ""
    ) -> tuple[list[dict[str, object]], float]:
        """One row per counter that passes the filter, and the seconds that the values cover."""
        now = Sample(values, time.monotonic())
        since = self._exchange(caller, now) if wanted.delta else Sample({}, self._start)
        elapsed = now.time - since.time
        rows = [_row(name, value - since.values.get(name, 0), elapsed) for name, value in values.items()]
        return [row for row in rows if _passes(row, wanted)], elapsed

    def _exchange(self, caller: str, now: Sample) -> Sample:
        """The caller's last sample, of which `now` takes the place."""
        with self._lock:
            since = self._last.pop(caller, None) or Sample({}, self._start)
            self._last[caller] = now
            if len(self._last) > MAX_CALLERS:
                del self._last[next(iter(self._last))]
        return since


def _row(name: str, value: int, elapsed: float) -> dict[str, object]:
    severity, category, aspect, description = DESCRIPTIONS[name]
    return {
        "name": name,
        "value": value,
        "rate": round(value / elapsed) if elapsed > 0 else 0,
        "severity": severity,
        "category": category,
        "aspect": aspect,
        "description": description,
    }


def _passes(row: Mapping[str, object], wanted: CounterFilter) -> bool:
    if wanted.value == "non-zero" and not row["value"]:
        return False
    words = {"severity": wanted.severity, "category": wanted.category, "aspect": wanted.aspect}
    return all(word is None or row[key] == word for key, word in words.items())


@dataclass(slots=True)
class Hits:
    """How often and when a rule was matched; seconds since 1970, 0: never."""

    count: int = 0
    first: float = 0.0
    last: float = 0.0


class HitCounts:
    """Hits by a rule's number; one per session or denied first packet. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits: dict[int, Hits] = {}

    def add(self, rule: int, n: int = 1) -> None:
        now = time.time()
        with self._lock:
            hits = self._hits.get(rule)
            if hits is None:
                hits = self._hits[rule] = Hits(first=now)
            hits.count += n
            hits.last = now

    def of(self, rule: int | None) -> Hits:
        return NEVER if rule is None else self._hits.get(rule, NEVER)

    def clear(self, rule: int | None) -> None:
        """As if the rule had never been hit."""
        with self._lock:
            if rule is not None:
                self._hits.pop(rule, None)


NEVER = Hits()


class NatCounts:
    """Hits and failures of NAT rules, by the rule's number. Any thread."""

    def __init__(self) -> None:
        self.hits = HitCounts()
        self.failures = HitCounts()

    def hit(self, rule: int | None) -> None:
        """A session or a denied first packet has matched the rule; None: it has matched none."""
        if rule is not None:
            self.hits.add(rule)

    def failed(self, rule: int | None, counter: str) -> None:
        """A session could not be; what concerns no translation is not counted here."""
        if rule is not None and counter.startswith("nat_"):
            self.failures.add(rule)
