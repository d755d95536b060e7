"""What C has put into its ring: copies of packets, and lines of the flow log (`struct diag_record`)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from dataplane.ffi import enum_names, ffi, lib, unpacker
from dataplane.flow import FlowKey
from dataplane.sessions import STATES, read_key

FIELDS = [
    "size", "when", "len", "copied", "ifindex", "mark", "reason", "session", "rule", "nat_rule", "ingress", "egress",
    "parent", "seq", "ack", "window", "flags", "application", "stage", "filter", "slow", "verdict", "dir", "state",
    "tcp_before", "tcp_state", "kind", "hook", "checksum", "tcp_flags", "icmp_type", "hops", "parsed", "begun", "key",
    "out",
]  # fmt: skip
RECORD = unpacker("diag_record", FIELDS)

STAGES = tuple(
    name.removeprefix("DIAG_").lower() for name in enum_names("diag_stage").values() if name != "DIAG_STAGES"
)
CAPTURED = tuple(stage for stage in STAGES if stage != "trace")
TCP_STATES = tuple(
    name.removeprefix("TCP_").lower().replace("_", "-")
    for name in enum_names("tcp_state").values()
    if name != "TCP_STATES"
)
VERDICTS = {
    lib.VERDICT_ACCEPT: "accept",
    lib.VERDICT_REWRITTEN: "accept",
    lib.VERDICT_PUNT: "slow path",
    lib.VERDICT_INSPECT: "inspection",
    lib.VERDICT_DROP: "drop",
}
COUNTERS = tuple(name.lower() for name in enum_names("counter").values())


class Record(NamedTuple):
    """One of them. What is said of the session holds after the packet, but for `tcp_before`."""

    stage: str
    when: int  # nanoseconds since 1970
    length: int  # bytes of the packet
    data: bytes
    ifindex: int  # ingress; at `transmit` egress; 0: the firewall itself, or not known
    mark: int
    reason: str | None  # counter of a drop
    session: int | None
    rule: int
    nat_rule: int | None
    ingress: int
    egress: int
    parent: int
    seq: int
    ack: int
    window: int
    flags: int
    application: int
    filter: int  # 0: its session is watched
    slow: bool
    verdict: str  # empty: not known yet
    rewritten: bool
    direction: int
    state: str
    tcp_before: str
    tcp_state: str
    kind: int
    own: bool  # the firewall itself sends it
    super_packet: bool
    tcp_flags: int
    icmp_type: int
    hops: int
    parsed: bool
    begun: bool  # the packet has begun its session
    key: FlowKey
    out: FlowKey


def records_in(raw: Any) -> Iterator[Record]:
    """Each of the whole records that lie in these bytes."""
    at = 0
    while at < len(raw):
        values = dict(zip(FIELDS, RECORD.unpack_from(raw, at), strict=True))
        yield _record(values, bytes(raw[at + RECORD.size : at + RECORD.size + values["copied"]]))
        at += values["size"]


def _record(v: dict[str, Any], data: bytes) -> Record:
    return Record(
        stage=STAGES[v["stage"]],
        when=v["when"],
        length=v["len"],
        data=data,
        ifindex=v["ifindex"],
        mark=v["mark"],
        reason=COUNTERS[v["reason"]] if v["reason"] < lib.COUNTERS else None,
        session=v["session"] or None,
        rule=v["rule"],
        nat_rule=v["nat_rule"] - 1 if v["nat_rule"] else None,
        ingress=v["ingress"],
        egress=v["egress"],
        parent=v["parent"],
        seq=v["seq"],
        ack=v["ack"],
        window=v["window"],
        flags=v["flags"],
        application=v["application"],
        filter=v["filter"],
        slow=bool(v["slow"]),
        verdict=VERDICTS.get(v["verdict"], ""),
        rewritten=v["verdict"] == lib.VERDICT_REWRITTEN,
        direction=v["dir"],
        state=STATES[v["state"]],
        tcp_before=TCP_STATES[v["tcp_before"]],
        tcp_state=TCP_STATES[v["tcp_state"]],
        kind=v["kind"],
        own=v["hook"] == lib.HOOK_OUTPUT,
        super_packet=v["checksum"] == lib.CHECKSUM_SUPER,
        tcp_flags=v["tcp_flags"],
        icmp_type=v["icmp_type"],
        hops=v["hops"],
        parsed=bool(v["parsed"]),
        begun=bool(v["begun"]),
        key=read_key(v["key"]),
        out=read_key(v["out"]),
    )


assert ffi.sizeof("struct diag_record") == RECORD.size
