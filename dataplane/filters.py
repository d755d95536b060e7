"""What may follow `filter` and `test ...-match` on a command line, checked and turned into values.

The words of an operator travel to the daemon as they were typed. The client runs them through these functions to
refuse nonsense before it asks; the daemon runs them again, because a socket brings any JSON, and uses the values.
Keys and ranges: PAN-OS `show session all filter`, of which keys for features that this product lacks are unknown keys.
"""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dataplane.errors import UsageError

IPV4_MAPPED = 0xFFFF << 32  # ::ffff:0:0/96, where IPv4 lies on the 128-bit line

Parser = Callable[[str], object]


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


def number(first: int, last: int) -> Callable[[str], int]:
    """A parser of decimal numbers from `first` to `last`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and first <= int(text) <= last):
            raise ValueError(f"{text!r} is not a number from {first} to {last}")
        return int(text)

    return parse


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
        try:
            values[FIELDS.get(key, key.replace("-", "_"))] = parsers[key](text)
        except ValueError as error:
            raise UsageError(f"{key}: {error}") from None
    return values


def _choice(*words: str) -> Parser:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is none of {' '.join(words)}")
        return text

    return parse


def _yes_no(text: str) -> bool:
    return _choice("yes", "no")(text) == "yes"


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError("an empty name")
    return text


def _address(text: str) -> int:
    first, last = _network(text)
    if first != last:
        raise ValueError(f"{text!r} is not one address")
    return first


def _protocol(text: str) -> int:
    """By number or by its usual name."""
    return PROTOCOLS.get(text) or number(1, 255)(text)


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
    "nat": _choice("none", "source", "destination", "both"),
    "ip6": _yes_no,
    "type": _choice("flow", "predict"),
    "state": _choice("initial", "opening", "active", "discard", "closing", "closed"),
    "from": _name,
    "to": _name,
    "source": _network,
    "destination": _network,
    "source-port": number(1, 65535),
    "destination-port": number(1, 65535),
    "protocol": number(1, 255),
    "application": _name,
    "rule": _name,
    "nat-rule": _name,
    "ingress-interface": _name,
    "egress-interface": _name,
    "min-kb": number(1, 1048576),
    "max-kb": number(1, 1048576),
    "min-age": number(1, 4194304),
    "start-at": number(1, 2**32 - 1),
    "count": _yes_no,
}

COUNTER_KEYS: dict[str, Parser] = {
    "severity": _choice("info", "warn", "error", "drop"),
    "category": _name,
    "aspect": _name,
    "delta": _yes_no,
    "value": _choice("all", "non-zero"),
}

_EVENT = _choice("start", "end", "deny", "drop")
LOG_KEYS: dict[str, Parser] = {
    "src": _network,
    "dst": _network,
    "sport": number(0, 65535),
    "dport": number(0, 65535),
    "proto": _protocol,
    "app": _name,
    "rule": _name,
    "nat-rule": _name,
    "from": _name,
    "to": _name,
    "action": _choice("allow", "deny", "drop", "reset-client", "reset-server", "reset-both"),
    "event": _EVENT,
    "subtype": _EVENT,
    "session-end-reason": _name,
    "session-id": number(1, 2**32 - 1),
    "since": number(1, 4_294_967_295),
}

MATCH_KEYS: dict[str, Parser] = {
    "from": _name,
    "to": _name,
    "source": _address,
    "destination": _address,
    "destination-port": number(0, 65535),
    "protocol": number(1, 255),
    "application": _name,
}
