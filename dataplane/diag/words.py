"""What a record says: in one line beside its packet, and step by step in the flow log.

The flow log speaks as PAN-OS's `flow basic` does: each stanza is one packet in one of the two paths, in the order in
which things were looked at.
"""

import re
from collections.abc import Iterator

from dataplane.counters import DESCRIPTIONS
from dataplane.diag.record import Record
from dataplane.ffi import lib
from dataplane.flow import FlowKey
from dataplane.names import Names
from dataplane.policy.applications import ICMP, ICMPV6, TCP, UDP
from dataplane.policy.objects import address_text

PROTOCOLS = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP", ICMPV6: "ICMPv6"}
PORTLESS = (ICMP, ICMPV6)
TCP_FLAGS = {"SYN": 2, "FIN": 1, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32}
DIRECTIONS = ("c2s", "s2c")
PLAIN = re.compile(r'[^\s"=]+')  # what needs no quotes in a comment


def comment(record: Record, names: Names) -> str:
    """A packet comment: words=values, so that it can be searched."""
    said: dict[str, object] = {"stage": record.stage}
    if record.slow:
        said["path"] = "slow"
    if record.session is not None:
        said |= {"session": record.session, "direction": DIRECTIONS[record.direction]}
        said["rule"] = names.rules.name(record.rule) or None
        said["nat-rule"] = None if record.nat_rule is None else names.nat_rules.name(record.nat_rule)
    said |= {"verdict": record.verdict or None, "reason": record.reason}
    if record.super_packet:
        said["super-packet"] = f"{record.length} bytes"
    if len(record.data) < record.length:
        said["cut"] = f"{len(record.data)} of {record.length} bytes"
    return " ".join(f"{word}={_quoted(str(value))}" for word, value in said.items() if value is not None)


def _quoted(text: str) -> str:
    return text if PLAIN.fullmatch(text) else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def story(record: Record, names: Names) -> list[str]:
    """The steps of one packet in one path."""
    steps = [_received(record, names), _info(record)]
    if record.slow:
        steps += record.data.decode(errors="replace").splitlines()
        steps += _set_up(record, names)
    else:
        steps += _looked_up(record, names)
    return [*steps, _verdict(record, names)]


def endpoints(key: FlowKey) -> str:
    return f"{_endpoint(key.src, key.sport, key)} -> {_endpoint(key.dst, key.dport, key)}"


def _endpoint(address: int, port: int, key: FlowKey) -> str:
    if key.proto not in (TCP, UDP):
        return address_text(address)
    return f"{address_text(address)}:{port}" if key.family == 4 else f"[{address_text(address)}]:{port}"


def _received(record: Record, names: Names) -> str:
    where = "sent by the firewall itself" if record.own else f"interface {names.interface(record.ifindex)}"
    zone = f", zone {names.zone(record.key.zone)}" if record.key.zone and not record.own else ""
    means = f"filter {record.filter}" if record.filter else "session is watched"
    again = record.mark & (lib.MARK_SEEN | lib.MARK_TRACKED) and not record.slow
    path = "slow path" if record.slow else "fast path again" if again else "fast path"
    return f"Packet received in the {path}: {where}{zone}, {means}"


def _info(record: Record) -> str:
    key = record.key
    if not record.parsed:
        known = f", ttl {record.hops}, {endpoints(key)}" if key.family else ""
        return f"Packet info: len {record.length}{known}, not well-formed"
    what = PROTOCOLS.get(key.proto, f"protocol {key.proto}")
    if record.tcp_flags:
        flags = "+".join(name for name, bit in TCP_FLAGS.items() if record.tcp_flags & bit)
        what += f" {flags} seq {record.seq} ack {record.ack} window {record.window}"
    elif key.proto in PORTLESS:
        what += f" type {record.icmp_type} id {key.sport or key.dport}"
    return f"Packet info: len {record.length}, ttl {record.hops}, {endpoints(key)}, {what}"


def _looked_up(record: Record, names: Names) -> Iterator[str]:
    if not record.parsed or (record.session is None and record.kind == lib.PACKET_LINK_CONTROL):
        return
    if record.session is None:
        yield "Flow lookup: no session found"
        return
    if record.begun:
        yield "Flow lookup: no session found"
        yield f"Dispatch cache: its class is decided, session {record.session} begun by {_rules(record, names)}"
    else:
        quoted = ", quoted by the error" if record.kind == lib.PACKET_ICMP_ERROR else ""
        flow = f"session {record.session} {DIRECTIONS[record.direction]}{quoted}"
        yield f"Flow lookup: {flow}, state {record.state}, {_rules(record, names)}"
    if record.state == "DISCARD":
        return
    if record.tcp_flags and not record.mark & lib.MARK_TRACKED:
        yield f"TCP: {_tracked(record)}"
    if record.verdict == "accept":
        yield from _translated(record)


def _rules(record: Record, names: Names) -> str:
    rule = names.rules.name(record.rule)
    nat = "" if record.nat_rule is None else f", NAT rule {names.nat_rules.name(record.nat_rule)!r}"
    return (f"rule {rule!r}" if rule else "no rule") + nat


def _tracked(record: Record) -> str:
    if record.reason and record.reason.startswith("tcp_"):
        return f"{record.tcp_before}, refused"
    moved = "stays" if record.tcp_before == record.tcp_state else f"{record.tcp_before} ->"
    return f"{moved} {record.tcp_state}, inside the window"


def _translated(record: Record) -> Iterator[str]:
    if record.kind == lib.PACKET_ICMP_ERROR:
        return
    if record.flags & (lib.FLAG_SNAT | lib.FLAG_DNAT):
        yield f"Translation: {endpoints(record.key)} becomes {endpoints(record.out)}"


def _set_up(record: Record, names: Names) -> Iterator[str]:
    """What the slow path has installed; its reasons came before."""
    if record.session is None:
        return
    if record.mark & lib.MARK_TRACKED:
        yield f"Inspection: session {record.session}, read by an application layer gateway"
        return
    if not record.begun:
        yield f"Flow lookup: session {record.session}, installed since the fast path looked"
        return
    if record.parent:
        yield f"Predict lookup: announced by session {record.parent}"
    if record.state == "DISCARD":
        yield f"Allocated discard session {record.session}, {_rules(record, names)}"
        return
    if record.flags & (lib.FLAG_SNAT | lib.FLAG_DNAT):
        yield f"Translation: {endpoints(record.key)} becomes {endpoints(record.out)}"
    to = f"{names.interface(record.egress) or 'the firewall itself'}, zone {names.zone(record.out.zone)}"
    yield f"Allocated session {record.session}: egress {to}, {_rules(record, names)}"


def _verdict(record: Record, names: Names) -> str:
    if record.reason is not None:
        return f"Verdict: dropped, {record.reason} ({DESCRIPTIONS[record.reason][3]})"
    if record.slow:
        return "Verdict: dropped" if record.verdict == "drop" else "Verdict: sent round to the fast path"
    if record.verdict in ("slow path", "inspection"):
        return f"Verdict: handed to the slow path{' for inspection' if record.verdict == 'inspection' else ''}"
    leaves = (record.egress, record.ingress)[record.direction] if record.session is not None else 0
    rewritten = ", rewritten" if record.rewritten else ""
    return f"Verdict: {record.verdict}{rewritten}{f', leaves by {names.interface(leaves)}' if leaves else ''}"
