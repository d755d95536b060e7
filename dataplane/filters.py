"""What may follow `filter` and `test ...-match` on a command line, checked and turned into values.

The words of an operator travel to the daemon as they were typed. The client runs them through these functions to
refuse nonsense before it asks; the daemon runs them again, because a socket brings any JSON, and uses the values.
Keys and ranges: PAN-OS `show session all filter`, of which keys for features that this product lacks are unknown keys.

A key's Kind says how its value is read and also what may be typed there, so that the line that is parsed and the line
that is completed (grammar.py) cannot differ. A plain function is a parser as well; it merely helps nobody to type.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dataplane.errors import UsageError

IPV4_MAPPED = 0xFFFF << 32  # ::ffff:0:0/96, where IPv4 lies on the 128-bit line

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Parser = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Kind:
    """The kind of a value: a parser that knows what may be typed."""

    parse: Parser
    hint: str = "<value>"  # what stands for the value in help
    words: tuple[str, ...] = ()  # all that it may be, where that is a fixed few
    live: str | None = None  # what the daemon calls such names (commands/complete.py)
    about: str = ""  # what the key means

    def __call__(self, text: str) -> object:
        return self.parse(text)


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions are meant: every field that is not None must hold."""

    nat: str | None = None  # none source destination both
    ip6: bool | None = None
    type: str | None = None  # flow predict
    state: str | None = None  # initial opening active discard closing closed
    from_zone: str | None = None
    to_zone: str | None = None
    source: tuple[int, int] | None = None  # first and last address, 128 bits
    destination: tuple[int, int] | None = None
    source_port: int | None = None
    destination_port: int | None = None
    protocol: int | None = None
    application: str | None = None
    rule: str | None = None
    nat_rule: str | None = None
    ingress_interface: str | None = None
    egress_interface: str | None = None
    min_kb: int | None = None  # 1024 bytes, both directions together
    max_kb: int | None = None
    min_age: int | None = None  # seconds since the session's start
    start_at: int = 0  # the first session id to show
    count: bool = False  # the number of sessions is wanted, not the sessions


@dataclass(frozen=True, slots=True)
class CounterFilter:
    """Which counters are meant, and since when they count."""

    severity: str | None = None
    category: str | None = None
    aspect: str | None = None
    delta: bool = False  # since the last call that said so, not since the start
    value: str = "all"  # all non-zero
    packet_filter: bool = False  # only of the packets that packet diagnosis follows


@dataclass(frozen=True, slots=True)
class PacketFilter:
    """Which packets are diagnosed, as they come in: every field that is not None must hold."""

    source: tuple[int, int] | None = None  # first and last address, 128 bits
    destination: tuple[int, int] | None = None
    source_port: int | None = None
    destination_port: int | None = None
    protocol: int | None = None
    ingress_interface: str | None = None

    @property
    def is_ipv4(self) -> bool | None:
        """None: of either family."""
        named = self.source or self.destination
        return None if named is None else _is_ipv4(named[0])


@dataclass(frozen=True, slots=True)
class Stage:
    """What is copied at one stage of a packet's way, and how much of it."""

    file: str
    packet_count: int = 10_000
    byte_count: int = 16 << 20
    snaplen: int = 65535


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which records of the traffic log are meant: every field that is not None must hold."""

    src: tuple[int, int] | None = None  # first and last address, 128 bits
    dst: tuple[int, int] | None = None
    sport: int | None = None
    dport: int | None = None
    proto: int | None = None
    app: str | None = None
    rule: str | None = None
    nat_rule: str | None = None
    from_zone: str | None = None
    to_zone: str | None = None
    action: str | None = None
    event: str | None = None  # start end deny drop
    session_end_reason: str | None = None
    session_id: int | None = None
    since: int | None = None  # seconds


@dataclass(frozen=True, slots=True)
class Match:
    """The first packet of a flow that `test security-policy-match` and `test nat-policy-match` ask about."""

    from_zone: str
    to_zone: str
    source: int  # 128 bits
    destination: int
    protocol: int
    destination_port: int = 0
    application: str | None = None


def parse_filter(pairs: object) -> SessionFilter:
    """The session filter that KEY VALUE pairs spell; UsageError for an unknown key or an impossible value."""
    return SessionFilter(**_values("filter", pairs, SESSION_KEYS))


def parse_counter_filter(pairs: object) -> CounterFilter:
    """The counter filter that KEY VALUE pairs spell; UsageError for an unknown key or an impossible value."""
    return CounterFilter(**_values("filter", pairs, COUNTER_KEYS))


def parse_packet_filter(pairs: object) -> PacketFilter:
    """The packet filter that KEY VALUE pairs spell; UsageError for an unknown key, an impossible value, or no pair."""
    if not pairs:
        raise UsageError(f"match: KEY VALUE pairs must follow; known: {' '.join(PACKET_KEYS)}")
    wanted = PacketFilter(**_values("match", pairs, PACKET_KEYS))
    if wanted.source and wanted.destination and _is_ipv4(wanted.source[0]) != _is_ipv4(wanted.destination[0]):
        raise UsageError("source and destination are of different families")
    return wanted


def parse_stage(pairs: object) -> Stage:
    """A stage's settings; UsageError for an unknown key or an impossible value, and where the file is not named."""
    values = _values("capture", pairs, STAGE_KEYS)
    if "file" not in values:
        raise UsageError("file: a name must be given")
    return Stage(**values)


def parse_log_filter(pairs: object) -> LogFilter:
    """The filter of the traffic log that KEY VALUE pairs spell; UsageError for what makes no sense."""
    return LogFilter(**_values("filter", pairs, LOG_KEYS))


def parse_match(pairs: Mapping[str, object], *, application: bool) -> Match:
    """The flow that KEY VALUE pairs spell; TCP and UDP need a destination port.

    UsageError for an unknown, missing or impossible word, and for two addresses of different families.
    """
    keys = MATCH_KEYS if application else {key: MATCH_KEYS[key] for key in MATCH_KEYS if key != "application"}
    values = _values("match", pairs, keys)
    needed = ["from", "to", "source", "destination", "protocol"]
    if values.get("protocol") in (6, 17):
        needed.append("destination-port")
    if missing := [key for key in needed if key not in pairs]:
        raise UsageError(f"missing: {', '.join(missing)}")
    match = Match(**values)
    if _is_ipv4(match.source) != _is_ipv4(match.destination):
        raise UsageError("source and destination are of different families")
    return match


def match_of(arguments: Mapping[str, object], *, application: bool) -> Match:
    """The same from the arguments of a request: keys with underscores, numbers as numbers, null for what is absent."""
    pairs = {key.replace("_", "-"): str(value) for key, value in arguments.items() if value is not None}
    return parse_match(pairs, application=application)


def number(first: int, last: int, about: str = "", live: str | None = None) -> Kind:
    """Decimal numbers from `first` to `last`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and first <= int(text) <= last):
            raise ValueError(f"{text!r} is not a number from {first} to {last}")
        return int(text)

    return Kind(parse, f"<{first}-{last}>", live=live, about=about)


def _values(kind: str, pairs: object, parsers: Mapping[str, Parser]) -> dict[str, Any]:
    """Every value parsed, by the name of its field."""
    if not isinstance(pairs, Mapping):
        raise UsageError(f"{kind}: {pairs!r} is not a list of pairs")
    values: dict[str, Any] = {}
    for key, text in pairs.items():
        if key not in parsers:
            raise UsageError(f"unknown {kind} key {key!r}; known: {' '.join(parsers)}")
        if not isinstance(text, str):
            raise UsageError(f"{key}: {text!r} is not a word")
        field = FIELDS.get(key, key.replace("-", "_"))
        if field in values:
            raise UsageError(f"{key}: said twice, by another name")
        try:
            values[field] = parsers[key](text)
        except ValueError as error:
            raise UsageError(f"{key}: {error}") from None
    return values


def choice(*words: str, about: str = "") -> Kind:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is none of {' '.join(words)}")
        return text

    return Kind(parse, "|".join(words), words=words, about=about)


def _yes_no(about: str) -> Kind:
    words = choice("yes", "no")
    return Kind(lambda text: words(text) == "yes", words.hint, words=words.words, about=about)


def named(live: str, about: str) -> Kind:
    """Names that the daemon knows."""
    return Kind(_name, "<name>", live=live, about=about)


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError("an empty name")
    return text


def _file_name(text: str) -> str:
    """A name in the directory of captures, and nothing that could lead out of it."""
    if not FILE_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a name of 1 to 64 letters, digits, dots, dashes and underscores")
    return text


def _address(text: str) -> int:
    first, last = _network(text)
    if first != last:
        raise ValueError(f"{text!r} is not one address")
    return first


def _protocol(text: str) -> int:
    """By number or by its usual name."""
    return PROTOCOLS.get(text) or int(str(number(1, 255)(text)))


def _network(text: str) -> tuple[int, int]:
    """First and last address of `ip`, `ip/length` or `ip/netmask`; host bits may be set."""
    if "%" in text:
        raise ValueError(f"{text!r} has a scope")
    network = ipaddress.ip_network(text, strict=False)
    base = IPV4_MAPPED if network.version == 4 else 0
    return base | int(network.network_address), base | int(network.broadcast_address)


def _is_ipv4(address: int) -> bool:
    return address >> 32 == 0xFFFF


FIELDS = {"from": "from_zone", "to": "to_zone", "subtype": "event"}
"""Words that Python keeps for itself, and their partner; a word that PAN-OS has beside ours."""
LAST = 20  # records of a log that are shown if nothing is said
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "ipv6-icmp": 58, "sctp": 132}

SESSION_KEYS: dict[str, Parser] = {
    "nat": choice("none", "source", "destination", "both", about="which addresses are translated"),
    "ip6": _yes_no("whether it is an IPv6 session"),
    "type": choice("flow", "predict", about="an open session, or one that an ALG has announced"),
    "state": choice("initial", "opening", "active", "discard", "closing", "closed", about="state of the session"),
    "from": named("zone", "zone that the first packet came from"),
    "to": named("zone", "zone that the first packet went to"),
    "source": Kind(_network, "<ip/netmask>", about="source of the first packet, before translation"),
    "destination": Kind(_network, "<ip/netmask>", about="destination of the first packet, before translation"),
    "source-port": number(1, 65535, "source port, before translation"),
    "destination-port": number(1, 65535, "destination port, before translation"),
    "protocol": number(1, 255, "IP protocol: 6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6"),
    "application": named("application", "application"),
    "rule": named("rule", "security rule that decided the session"),
    "nat-rule": named("nat-rule", "NAT rule that matched"),
    "ingress-interface": named("interface", "interface that the first packet came in by"),
    "egress-interface": named("interface", "interface that the first packet went out by"),
    "min-kb": number(1, 1048576, "at least so many kilobytes, both directions together"),
    "max-kb": number(1, 1048576, "at most so many kilobytes, both directions together"),
    "min-age": number(1, 4194304, "seconds since the session began, at least"),
    "start-at": number(1, 2**32 - 1, "first session id to list", live="session"),
    "count": _yes_no("print the number of sessions, not the sessions"),
}

COUNTER_KEYS: dict[str, Parser] = {
    "severity": choice("info", "warn", "error", "drop", about="how grave it is that the counter counts"),
    "category": named("counter-category", "part of the firewall that counts"),
    "aspect": named("counter-aspect", "what the counter is about"),
    "delta": _yes_no("count since the last call that said so"),
    "value": choice("all", "non-zero", about="whether counters of zero are shown"),
    "packet-filter": _yes_no("count only packets that packet-diag's filters mean"),
}

PACKET_KEYS: dict[str, Parser] = {
    "source": Kind(_network, "<ip/netmask>", about="source as the packet comes in"),
    "destination": Kind(_network, "<ip/netmask>", about="destination as the packet comes in"),
    "source-port": number(1, 65535, "source port as the packet comes in"),
    "destination-port": number(1, 65535, "destination port as the packet comes in"),
    "protocol": number(1, 255, "IP protocol: 6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6"),
    "ingress-interface": named("interface", "interface that the packet comes in by"),
}

MAX_CAPTURED = 64 << 20  # bytes, of all stages together

STAGE_KEYS: dict[str, Parser] = {
    "file": Kind(_file_name, "<name>", about="file in the directory of captures"),
    "packet-count": number(1, 100_000, "packets after which the capture ends"),
    "byte-count": number(64, MAX_CAPTURED, "bytes after which the capture ends"),
    "snaplen": number(64, 65535, "bytes that are kept of each packet"),
}

COUNTER_NAME = named("counter", "one counter")

MATCH_KEYS: dict[str, Parser] = {
    "from": named("zone", "zone that the packet comes from"),
    "to": named("zone", "zone that the packet goes to"),
    "source": Kind(_address, "<ip>", about="source address"),
    "destination": Kind(_address, "<ip>", about="destination address, before translation"),
    "destination-port": number(0, 65535, "destination port, which TCP and UDP need"),
    "protocol": number(1, 255, "IP protocol: 6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6"),
    "application": named("application", "application, else the one of the destination port"),
}

_EVENT = choice("start", "end", "deny", "drop", about="what happened to the session")
LOG_KEYS: dict[str, Parser] = {
    "src": Kind(_network, "<ip/netmask>", about="source, before translation"),
    "dst": Kind(_network, "<ip/netmask>", about="destination, before translation"),
    "sport": number(0, 65535, "source port, before translation"),
    "dport": number(0, 65535, "destination port, before translation"),
    "proto": Kind(_protocol, "<protocol>", about="IP protocol, a number or a name: tcp udp icmp"),
    "app": named("application", "application"),
    "rule": named("rule", "security rule that decided the session"),
    "nat-rule": named("nat-rule", "NAT rule that matched"),
    "from": named("zone", "zone that the first packet came from"),
    "to": named("zone", "zone that the first packet went to"),
    "action": choice(
        "allow", "deny", "drop", "reset-client", "reset-server", "reset-both", about="what the rule has done"
    ),
    "event": _EVENT,
    "subtype": _EVENT,
    "session-end-reason": Kind(_name, "<reason>", about="why the session ended"),
    "session-id": number(1, 2**32 - 1, "id that the session had", live="session"),
    "since": number(1, 4_294_967_295, "seconds: what was written since then"),
}
