"""Conversations with the C fast path, without a kernel.

    client 10.0.0.5 --- ifindex 1, zone 1 [ firewall ] ifindex 2, zone 2 --- server 8.8.8.8

    firewall.decides(source="192.0.2.1", ports=(1024, 1024))
    firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53")).leaves_as("192.0.2.1:1024", "8.8.8.8:53")

The Firewall stands where queue, slow path and ager stand in the daemon: a first packet is punted, the decision is
installed, the packet goes round again. Time is `firewall.now`, in ticks, and moves only when a test says so.

scapy is the oracle: it builds every packet, and it dissects every packet that leaves and computes all checksums anew.
For each packet the books are checked: one verdict, and one drop counter if the verdict is a drop.
"""

import ipaddress
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from scapy.layers import inet, inet6
from scapy.packet import Packet, Raw

from dataplane.ffi import enum_names, ffi, lib

INSIDE, OUTSIDE = 1, 2  # ifindex and zone
SECOND: int = lib.TENTHS
COUNTERS = [name.lower() for name in enum_names("counter").values()][: lib.COUNTERS]
FIRST_DROP, END_OF_DROPS = lib.FLOW_PARSE_IP_HDR, lib.DROPS_END
STATES = enum_names("session_state")
TCP_STATES = enum_names("tcp_state")
END_REASONS = {
    value: name.removeprefix("END_").lower().replace("_", "-") for value, name in enum_names("end_reason").items()
}
TIMERS = {
    "tcp_init": 5,
    "tcp_handshake": 10,
    "tcp": 3600,
    "tcp_half_closed": 120,
    "tcp_time_wait": 15,
    "tcp_unverified_rst": 30,
    "udp": 30,
    "icmp": 6,
    "other": 30,
    "discard_tcp": 90,
    "discard_udp": 60,
    "discard_other": 60,
}


# ---- packets ----


def endpoint(text: str) -> tuple[str, int]:
    """ "10.0.0.5:4000", "[2001:db8::5]:4000", or an address alone, whose port is 0."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        return address, int(port.removeprefix(":") or 0)
    if text.count(":") > 1:
        return text, 0
    address, _, port = text.partition(":")
    return address, int(port or 0)


def mapped(address: str) -> bytes:
    """16 bytes, an IPv4 address mapped into IPv6."""
    ip = ipaddress.ip_address(address)
    return ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed


def ip_header(source: str, destination: str) -> Packet:
    kind = inet6.IPv6 if ":" in source else inet.IP
    return kind(src=source, dst=destination)


def UDP(source: str, destination: str, payload: bytes = b"question", **fields: Any) -> Packet:
    (src, sport), (dst, dport) = endpoint(source), endpoint(destination)
    return ip_header(src, dst) / inet.UDP(sport=sport, dport=dport, **fields) / Raw(payload)


def TCP(source: str, destination: str, flags: str = "S", payload: bytes = b"", **fields: Any) -> Packet:
    (src, sport), (dst, dport) = endpoint(source), endpoint(destination)
    return ip_header(src, dst) / inet.TCP(sport=sport, dport=dport, flags=flags, **fields) / Raw(payload)


def Echo(source: str, destination: str, payload: bytes = b"ping", **fields: Any) -> Packet:
    """An echo request; the identifier stands where a port would: in the source."""
    (src, identifier), (dst, _) = endpoint(source), endpoint(destination)
    if ":" in src:
        return ip_header(src, dst) / inet6.ICMPv6EchoRequest(id=identifier, data=payload, **fields)
    return ip_header(src, dst) / inet.ICMP(type=8, id=identifier, **fields) / Raw(payload)


def EchoReply(source: str, destination: str, payload: bytes = b"ping", **fields: Any) -> Packet:
    """An echo reply; the identifier stands in the destination."""
    (src, _), (dst, identifier) = endpoint(source), endpoint(destination)
    if ":" in src:
        return ip_header(src, dst) / inet6.ICMPv6EchoReply(id=identifier, data=payload, **fields)
    return ip_header(src, dst) / inet.ICMP(type=0, id=identifier, **fields) / Raw(payload)


def Error(source: str, destination: str, quoted: bytes, kind: int, code: int = 0) -> Packet:
    """An ICMP or ICMPv6 error about the packet whose bytes are `quoted`."""
    if ":" in source:
        return ip_header(source, destination) / inet6.ICMPv6Unknown(type=kind, code=code, msgbody=bytes(4) + quoted)
    return ip_header(source, destination) / inet.ICMP(type=kind, code=code) / Raw(quoted)


def dissect(data: bytes) -> Packet:
    return inet.IP(data) if data[0] >> 4 == 4 else inet6.IPv6(data)


def transport(packet: Packet) -> Packet:
    """The layer with the ports, or the ICMP message."""
    layer = packet
    while isinstance(layer, inet.IP | inet6.IPv6) or "ExtHdr" in type(layer).__name__:
        layer = layer.payload
    return layer


def endpoints(packet: Packet) -> tuple[tuple[str, int], tuple[str, int]]:
    """((source, port), (destination, port)); the identifier of an echo in the client's port."""
    layer = transport(packet)
    sport = dport = 0
    if isinstance(layer, inet.UDP | inet.TCP):
        sport, dport = layer.sport, layer.dport
    elif isinstance(layer, inet6.ICMPv6EchoReply) or (isinstance(layer, inet.ICMP) and layer.type == 0):
        dport = layer.id
    elif isinstance(layer, inet6.ICMPv6EchoRequest) or (isinstance(layer, inet.ICMP) and layer.type == 8):
        sport = layer.id
    return (packet.src, sport), (packet.dst, dport)


def normal(address: str) -> str:
    return str(ipaddress.ip_address(address))


def recomputed(data: bytes) -> bytes:
    """The packet with every outer checksum as scapy computes it; a UDP checksum of zero ("none") stays."""
    packet = dissect(data)
    layer = transport(packet)
    if isinstance(packet, inet.IP):
        packet.chksum = None
    if isinstance(layer, inet.UDP | inet.TCP) and not (isinstance(layer, inet.UDP) and layer.chksum == 0):
        layer.chksum = None
    if isinstance(layer, inet.ICMP):
        layer.chksum = None
    if hasattr(layer, "cksum"):
        layer.cksum = None
    return bytes(packet)


def without_translation(data: bytes) -> bytes:
    """The packet with addresses, ports, echo identifier and checksums blanked: what translation must not touch."""
    packet = dissect(data)
    blank = bytearray(data)
    addresses, check = (slice(12, 20), slice(10, 12)) if packet.version == 4 else (slice(8, 40), slice(0, 0))
    layer = transport(packet)
    at = len(data) - len(layer.original)
    fields = {inet.UDP: [(0, 4), (6, 8)], inet.TCP: [(0, 4), (16, 18)]}.get(type(layer), [(2, 6)])
    for part in [addresses, check, *(slice(at + first, at + end) for first, end in fields)]:
        blank[part] = bytes(len(blank[part]))
    return bytes(blank)


# ---- the firewall ----


@dataclass(frozen=True)
class Ended:
    """A session that the ager was handed."""

    id: int
    reason: str
    packets: tuple[int, int]
    bytes: tuple[int, int]


@dataclass(frozen=True)
class Outcome:
    """What became of one packet."""

    verdict: int
    before: bytes
    after: bytes
    counted: dict[str, int]

    @property
    def packet(self) -> Packet:
        """What left, dissected."""
        assert self.left, f"the packet did not leave: {self.counted}"
        return dissect(self.after)

    @property
    def left(self) -> bool:
        return self.verdict in (lib.VERDICT_ACCEPT, lib.VERDICT_REWRITTEN)

    def leaves_as(self, source: str, destination: str) -> "Outcome":
        """It left with these endpoints, right checksums, and nothing else changed."""
        found = endpoints(self.packet)
        assert [normal(found[0][0]), found[0][1]] == [normal(endpoint(source)[0]), endpoint(source)[1]]
        assert [normal(found[1][0]), found[1][1]] == [normal(endpoint(destination)[0]), endpoint(destination)[1]]
        assert self.after == recomputed(self.after)
        assert without_translation(self.after) == without_translation(self.before)
        return self

    def passes(self) -> "Outcome":
        """It left untouched, and its payload need not go back to the kernel."""
        assert self.verdict == lib.VERDICT_ACCEPT, self.counted
        assert self.after == self.before
        return self

    def is_dropped(self, counter: str) -> "Outcome":
        assert self.verdict == lib.VERDICT_DROP, self.counted
        assert counter in self.counted, f"dropped, but counted as {self.counted}"
        return self

    def is_punted(self) -> "Outcome":
        assert self.verdict == lib.VERDICT_PUNT, self.counted
        return self

    def is_inspected(self) -> "Outcome":
        assert self.verdict == lib.VERDICT_INSPECT, self.counted
        return self


class Firewall:
    """A session table with two zones, PAN-OS's timers and a clock; decisions come from decides()."""

    def __init__(self, max_sessions: int = 256, planes: int = 1, **timers: int) -> None:
        self.table = lib.table_create(max_sessions, planes)
        assert self.table != ffi.NULL
        self.now: int = lib.table_now()
        self.decision: dict[str, Any] | None = None
        self.installed = 0  # id of the newest session, or the last install_error
        self._counters = ffi.new("uint64_t[]", lib.COUNTERS)
        self._ended = ffi.new("struct session_copy[]", 4096)
        self.configure()
        self.set_timers(**timers)
        lib.table_set_zones(self.table, [INSIDE, OUTSIDE], bytes([INSIDE, OUTSIDE]), 2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        lib.table_destroy(self.table)

    # ---- configuration ----

    def configure(
        self,
        reject_non_syn: bool = True,
        aging_threshold: int = 0,
        aging_factor: int = 2,
        drop_oversize: bool = False,
        reset_non_syn: Collection[int] = (),
    ) -> None:
        """reset_non_syn: zones."""
        by_zone = [zone in reset_non_syn for zone in range(lib.MAX_ZONE_IDS)]
        settings = ffi.new(
            "struct settings *", [reject_non_syn, aging_threshold, aging_factor, 1, drop_oversize, by_zone]
        )
        lib.table_set_settings(self.table, settings)

    def clamp(self, clamps: Mapping[int, int]) -> None:
        """Largest MSS by interface, of IPv4."""
        lib.table_set_clamps(self.table, list(clamps), list(clamps.values()), len(clamps))

    def set_timers(self, application: int = 0, **seconds: int) -> None:
        lib.table_set_timers(self.table, application, ffi.new("struct timers *", TIMERS | seconds))

    def reserve(self, ports: set[int]) -> None:
        """Ports, TCP and UDP, that sockets of the firewall hold."""
        words = [sum(1 << bit for bit in range(64) if word * 64 + bit in ports) for word in range(1024)]
        lib.natpool_set_reserved(self.table, words, words)

    def decides(
        self,
        source: str | None = None,
        ports: tuple[int, int] | None = None,
        destination: str | None = None,
        egress_zone: int = OUTSIDE,
        **fields: Any,
    ) -> Self:
        """What the slow path says about first packets from now on. ports: DIPP; a source without them: static."""
        decision = {"egress_zone": egress_zone, "ingress": INSIDE, "egress": OUTSIDE} | fields
        if source:
            decision |= {"source": mapped(source), "source_nat": lib.SOURCE_STATIC}
        if source and ports:
            decision |= {"source_nat": lib.SOURCE_PORT, "port_min": ports[0], "port_max": ports[1]}
            assert lib.natpool_open(self.table, mapped(source)) >= 0
        if destination:
            address, port = endpoint(destination)
            decision |= {"destination_nat": 1, "destination": mapped(address), "destination_port": socket.htons(port)}
        self.decision = decision
        return self

    def refuses(self) -> Self:
        """From now on first packets are denied, and leave a DISCARD session behind."""
        self.decision = {"egress_zone": OUTSIDE, "ingress": INSIDE, "egress": OUTSIDE, "discard": 1}
        return self

    def asks(self) -> Self:
        """From now on first packets stay punted."""
        self.decision = None
        return self

    # ---- packets ----

    def c2s(self, packet: Packet | bytes, **how: Any) -> Outcome:
        """From the client's interface."""
        return self.send(packet, INSIDE, **how)

    def s2c(self, packet: Packet | bytes, **how: Any) -> Outcome:
        """From the server's interface."""
        return self.send(packet, OUTSIDE, **how)

    def own(self, packet: Packet | bytes, **how: Any) -> Outcome:
        """Sent by the firewall's own kernel, seen in OUTPUT."""
        return self.send(packet, 0, hook=lib.HOOK_OUTPUT, **how)

    def send(self, packet: Packet | bytes, ifindex: int, **how: Any) -> Outcome:
        """As the daemon would: fast path, and if need be slow path, install or inspection, fast path."""
        data = bytes(packet)
        outcome = self.take(data, ifindex, **how)
        if outcome.verdict == lib.VERDICT_INSPECT:
            return self.read(data, ifindex, **how)
        if outcome.verdict != lib.VERDICT_PUNT or self.decision is None:
            return outcome
        self.installed = self.install(data, ifindex, how.get("hook", lib.HOOK_PREROUTING))
        self.keep_up()
        if self.installed < 0:
            return outcome
        if "discard" in self.decision:
            lib.table_count(self.table, lib.SHARD_SLOW, lib.FLOW_POLICY_DENY, 1)
            return Outcome(lib.VERDICT_DROP, data, data, {"flow_policy_deny": 1})
        outcome = self.take(data, ifindex, **how | {"mark": lib.MARK_SEEN})
        return self.read(data, ifindex, **how) if outcome.verdict == lib.VERDICT_INSPECT else outcome

    def read(self, data: bytes, ifindex: int, **how: Any) -> Outcome:
        """The second time through the fast path, of a packet that an ALG has read and left as it is."""
        return self.take(data, ifindex, **how | {"mark": lib.MARK_SEEN | lib.MARK_TRACKED})

    def take(self, data: bytes, ifindex: int, **how: Any) -> Outcome:
        """Once through the fast path, at `now`."""
        memory = ffi.new("uint8_t[]", len(data))
        ffi.memmove(memory, data, len(data))
        packet = ffi.new("struct packet *", {"data": memory, "len": len(data), "ifindex": ifindex} | how)
        before = self.counters()
        verdict = lib.fastpath_take(self.table, 0, packet, self.now)
        counted = {name: n - before[name] for name, n in self.counters().items() if n != before[name]}
        check_books(verdict, counted)
        after = bytes(ffi.buffer(memory, len(data)))
        if verdict != lib.VERDICT_REWRITTEN:
            assert after == data
        return Outcome(verdict, data, after, counted)

    def look(
        self, packet: Packet | bytes, ifindex: int = INSIDE, hook: int = lib.HOOK_PREROUTING, mark: int = 0
    ) -> tuple[int, Any]:
        """What slowpath_look() says, and the parsed packet."""
        data = bytes(packet)
        memory = ffi.new("uint8_t[]", len(data))
        ffi.memmove(memory, data, len(data))
        fields = {"data": memory, "len": len(data), "ifindex": ifindex, "hook": hook, "mark": mark}
        parsed = ffi.new("struct packet *", fields)
        return lib.slowpath_look(self.table, parsed), parsed

    def install(self, packet: Packet | bytes, ifindex: int = INSIDE, hook: int = lib.HOOK_PREROUTING) -> int:
        """The decision for a first packet; a session id or an install_error."""
        verdict, parsed = self.look(packet, ifindex, hook)
        assert verdict == lib.VERDICT_PUNT
        return self.install_key(ffi.addressof(parsed, "key"), parsed.ip_len)

    def install_key(self, key: Any, ip_len: int = 1) -> int:
        decision = ffi.new("struct decision *", self.decision)
        decision.first_len = ip_len
        return int(lib.session_install(self.table, lib.SHARD_SLOW, key, decision))

    def expects(self, c2s: Any, s2c: Any, seconds: int = 60, **fields: Any) -> int:
        """A PREDICT session with these keys, its id; or an install_error."""
        keys = ffi.new("struct flow_key[2]")
        keys[0], keys[1] = c2s, s2c
        decision = ffi.new("struct decision *", {"egress_zone": OUTSIDE, "ingress": INSIDE, "egress": OUTSIDE} | fields)
        self.installed = int(lib.session_predict(self.table, lib.SHARD_SLOW, keys, decision, seconds))
        self.keep_up()
        return self.installed

    def adjusts(self, side: int, start: int, end: int, grown: int, session_id: int = 0, generation: int = 0) -> bool:
        """An ALG has sent so many more bytes than the ones it read, [start, end) of that side."""
        whose = (session_id or self.installed, generation)
        return bool(lib.session_adjust(self.table, *whose, side, start % 2**32, end % 2**32, grown))

    # ---- time and ends ----

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)

    def keep_up(self) -> None:
        """C installs and closes by the real clock, and ours may not lag behind that."""
        self.now = max(self.now, lib.table_now())

    def end(self, session_id: int, reason: int = lib.END_UNKNOWN, generation: int = 0) -> bool:
        """Close a session as an operator would."""
        closed = bool(lib.session_close(self.table, session_id, generation, reason))
        self.keep_up()
        return closed

    def expire(self) -> list[Ended]:
        """The ager's tick: what has ended by now, already freed."""
        ended = self.closed()
        lib.session_free(self.table, [session.id for session in ended], len(ended))
        return ended

    def closed(self) -> list[Ended]:
        """What has ended by now, still CLOSED."""
        n = lib.table_expire(self.table, self.now, self._ended, 4096)
        return [ended_from(self._ended[i]) for i in range(n)]

    # ---- views ----

    def session(self, session_id: int = 0) -> Any:
        """A copy of a session; of the newest one without an id."""
        self._copy = ffi.new("struct session *")  # ours: a caller who takes a field of it does not keep it
        assert lib.session_read(self.table, session_id or self.installed, self._copy)
        return self._copy

    def state(self, session_id: int = 0) -> str:
        return STATES[self.session(session_id).state[0]].removeprefix("SESSION_")

    def tcp_state(self, session_id: int = 0) -> str:
        return TCP_STATES[self.session(session_id).tcp_state].removeprefix("TCP_")

    def timeout(self, session_id: int = 0) -> float:
        """The timer in force, in seconds."""
        return float(self.session(session_id).timeout / SECOND)

    def counters(self) -> dict[str, int]:
        lib.table_read_counters(self.table, self._counters)
        return dict(zip(COUNTERS, self._counters, strict=True))

    def stats(self) -> dict[str, int]:
        stats = ffi.new("struct table_stats *")
        lib.table_read_stats(self.table, stats)
        return {name: getattr(stats, name) for name, _ in ffi.typeof("struct table_stats").fields}


def ended_from(copy: Any) -> Ended:
    s = copy.session
    return Ended(copy.id, END_REASONS[s.end_reason], tuple(s.packets), tuple(s.bytes))


def check_books(verdict: int, counted: dict[str, int]) -> None:
    """Every packet is received once and ends in one way."""
    drops = sum(counted.get(name, 0) for name in COUNTERS[FIRST_DROP:END_OF_DROPS])
    assert counted["pkt_recv"] == 1
    assert drops == (verdict == lib.VERDICT_DROP), counted
    assert counted.get("pkt_punt", 0) == (verdict == lib.VERDICT_PUNT), counted
    assert counted.get("pkt_inspect", 0) == (verdict == lib.VERDICT_INSPECT), counted


# ---- TCP ----


class Connection:
    """Two ends of one TCP connection, as seen by whoever sits between them.

    Each end sends with its next sequence number and acknowledges all it has been sent, unless told otherwise by `seq`,
    `ack` (absolute) or `ahead` (relative to the next sequence number; such a segment is not remembered as sent).
    The server knows the client as `public` where its address is translated.
    """

    def __init__(
        self,
        firewall: Firewall,
        client: str = "10.0.0.5:4000",
        server: str = "8.8.8.8:80",
        isn: tuple[int, int] = (1000, 5000),
        window: tuple[int, int] = (64000, 64000),
        scale: tuple[int | None, int | None] = (None, None),
        public: str | None = None,
    ) -> None:
        self.firewall = firewall
        self.ends = (client, server)
        self.peers = (server, public or client)
        self.next = list(isn)
        self.window = window
        self.scale = scale

    def c2s(self, flags: str = "A", payload: bytes = b"", **fields: Any) -> Outcome:
        return self.send(0, flags, payload, **fields)

    def s2c(self, flags: str = "A", payload: bytes = b"", **fields: Any) -> Outcome:
        return self.send(1, flags, payload, **fields)

    def send(self, side: int, flags: str, payload: bytes = b"", ahead: int | None = None, **fields: Any) -> Outcome:
        packet = self.segment(side, flags, payload, ahead or 0, **fields)
        if ahead is None and "seq" not in fields:
            taken = len(payload) + ("S" in flags) + ("F" in flags)
            self.next[side] = (self.next[side] + taken) % 2**32
        return self.firewall.send(packet, (INSIDE, OUTSIDE)[side])

    def segment(self, side: int, flags: str, payload: bytes, ahead: int, **fields: Any) -> Packet:
        fields = {"seq": (self.next[side] + ahead) % 2**32, "window": self.window[side]} | fields
        if "A" in flags:
            fields = {"ack": self.next[1 - side]} | fields
        if "S" in flags and self.scale[side] is not None:
            fields = {"options": [("MSS", 1460), ("NOP", None), ("WScale", self.scale[side])]} | fields
        return TCP(self.ends[side], self.peers[side], flags, payload, **fields)

    def open(self) -> "Connection":
        """Three segments, each delivered."""
        assert self.c2s("S").left
        assert self.s2c("SA").left
        assert self.c2s("A").left
        return self

    def shut(self) -> "Connection":
        """Both FINs, each acknowledged."""
        assert self.c2s("FA").left
        assert self.s2c("FA").left
        assert self.c2s("A").left
        return self
