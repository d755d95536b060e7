"""Configuration to a value that decides: bit sets over elementary intervals (the theory is at the head of the package).

For every field a `_Line` holds the sorted starts of its elementary intervals and beside each the set of rules, as one
int, that match there. Zones and applications are few, so their sets stand in a list and a dict. A decision is some
bisections and intersections; its cost grows with the logarithm of the number of ranges and with the words of a bit
set.

Nothing here depends on the state of the host: an interface's address, a route or a port in use are the caller's.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import xor
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

from dataplane.policy.applications import (
    ECHO_PROTOCOLS,
    HOST_SERVICES,
    ICMP,
    PROTOCOL_NAMES,
    TCP,
    UDP,
    Application,
    ApplicationTable,
)
from dataplane.policy.model import (
    APPLICATION_DEFAULT,
    DEFAULT_RULES,
    Action,
    Config,
    Fallback,
    NatRule,
    NatType,
    SecurityRule,
    SessionSettings,
    SourceTranslation,
    SourceType,
)
from dataplane.policy.objects import (
    ANY,
    EVERY_ADDRESS,
    IPV4,
    LAST_PORT,
    Objects,
    PortRange,
    Range,
    complement,
    intersect,
    merge,
    parse_ports,
    prefix_length,
    size,
)
from dataplane.policy.prefix import PrefixMap

ZONE_IDS = 256
"""The last one is the firewall itself."""
DEFAULT_PORT_RANGE: Range = (1024, LAST_PORT)
_OTHER = 0
"""Stands for the protocols without timers of their own."""
_EVERY_PROTOCOL = -1
_IPV6: tuple[Range, ...] = tuple(complement([IPV4]))
_T = TypeVar("_T")


class Timeouts(NamedTuple):
    """Seconds of one session's timers; without TCP's states all but `discard` are the idle timer."""

    init: int
    handshake: int
    idle: int
    half_closed: int
    time_wait: int
    unverified_rst: int
    discard: int


@dataclass(frozen=True, slots=True)
class CompiledSecurityRule:
    """What a decision needs of a security rule once it has matched."""

    name: str
    action: Action
    icmp_unreachable: bool
    log_start: bool
    log_end: bool
    disabled: bool = False
    alg: bool = True
    kind: str | None = None
    """`intrazone` or `interzone` for the two defaults."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The addresses and ports a source translation draws from."""

    rule: str
    rule_index: int
    type: SourceType
    nat_type: NatType
    interface: str | None
    """The interface whose address is the pool; `addresses` is then empty."""
    addresses: tuple[Range, ...]
    ports: Range
    fallback: "Pool | None" = None
    """What a dynamic-ip pool without a free address gives instead."""

    @property
    def size(self) -> int:
        """Number of addresses."""
        return size(self.addresses)

    def address(self, position: int) -> int:
        """The address at a position from 0 to size - 1."""
        for first, last in self.addresses:
            if position <= last - first:
                return first + position
            position -= last - first + 1
        raise IndexError(position)


@dataclass(frozen=True, slots=True)
class AddressMap:
    """Original to translated addresses; segments are (first, last, translation of first)."""

    segments: tuple[tuple[int, int, int], ...]
    fixed: bool = False
    """Every address of a segment has the same translation."""

    def translate(self, address: int) -> int:
        """The translation of an address that the rule matched."""
        for first, last, target in self.segments:
            if first <= address <= last:
                return target if self.fixed else target + address - first
        raise KeyError(address)

    def reverse(self) -> "AddressMap":
        """Translated to original addresses of a map that is not fixed."""
        return AddressMap(tuple((target, target + last - first, first) for first, last, target in self.segments))


@dataclass(frozen=True, slots=True)
class CompiledNatRule:
    """What becomes of a session that matches; with neither pool nor map it is exempt from translation."""

    name: str
    nat_type: NatType
    disabled: bool
    pool: Pool | None = None
    source_map: AddressMap | PrefixMap | None = None
    destination_map: AddressMap | PrefixMap | None = None
    destination_port: int | None = None
    generated: bool = False
    """The reverse of a bi-directional rule."""

    @property
    def translates(self) -> bool:
        """False for a no-NAT rule."""
        return any((self.pool, self.source_map, self.destination_map))


class _Line:
    """One field's number line: which rules match at a value."""

    __slots__ = ("_rules", "_starts")

    def __init__(self, rules: Iterable[tuple[int, Iterable[Range]]]) -> None:
        """Each rule's ranges are disjoint."""
        changes = {0: 0}
        for index, ranges in rules:
            bit = 1 << index
            for first, last in ranges:
                changes[first] = changes.get(first, 0) ^ bit
                changes[last + 1] = changes.get(last + 1, 0) ^ bit
        self._starts = sorted(changes)
        self._rules: list[int] = list(accumulate((changes[start] for start in self._starts), xor))

    @property
    def starts(self) -> Sequence[int]:
        return self._starts

    def at(self, value: int) -> int:
        return self._rules[bisect_right(self._starts, value) - 1]


class Edges(NamedTuple):
    """The values at which something changes along each field's number line; ports by protocol."""

    source: set[int]
    destination: set[int]
    ports: dict[int, set[int]]


class _Row(NamedTuple):
    """The fields of one enabled rule, as numbers; None matches everything."""

    rule: int
    from_zones: Sequence[int] | None
    to_zones: Sequence[int] | None
    source: Iterable[Range]
    destination: Iterable[Range]
    ports: Sequence[PortRange] | None


class _Matcher:
    """The fields that security and NAT rules have in common."""

    __slots__ = ("_any_service", "_destination", "_from_zone", "_services", "_source", "_to_zone")

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._from_zone = _zone_sets((row.rule, row.from_zones) for row in rows)
        self._to_zone = _zone_sets((row.rule, row.to_zones) for row in rows)
        self._source = _Line((row.rule, row.source) for row in rows)
        self._destination = _Line((row.rule, row.destination) for row in rows)
        self._any_service = _bits(row.rule for row in rows if row.ports is None)
        self._services = {proto: self._service_line(rows, proto) for proto in (TCP, UDP)}

    def flow(self, from_zone: int, to_zone: int, src: int, dst: int) -> int:
        """Rules whose zones and addresses match."""
        zones = self._from_zone[from_zone] & self._to_zone[to_zone]
        return zones & self._source.at(src) & self._destination.at(dst) if zones else 0

    def service(self, proto: int, dport: int) -> int:
        """Rules whose services match."""
        line = self._services.get(proto)
        return line.at(dport) if line else self._any_service

    def edges(self) -> "Edges":
        """Where the answers of flow() and service() change."""
        ports = {proto: {*line.starts} for proto, line in self._services.items()}
        return Edges({*self._source.starts}, {*self._destination.starts}, ports)

    @staticmethod
    def _service_line(rows: Iterable[_Row], proto: int) -> _Line:
        every_port: Sequence[PortRange] = ((proto, 0, LAST_PORT),)
        return _Line(
            (row.rule, merge((first, last) for own, first, last in row.ports or every_port if own == proto))
            for row in rows
            if row.ports is None or row.ports
        )


def _bits(indices: Iterable[int]) -> int:
    rules = 0
    for index in indices:
        rules |= 1 << index
    return rules


def _zone_sets(rules: Iterable[tuple[int, Sequence[int] | None]]) -> tuple[int, ...]:
    """Rules by zone id; a rule of any zone is in every set, those of the host and of no zone included."""
    sets = [0] * ZONE_IDS
    everywhere = 0
    for index, zones in rules:
        everywhere |= 1 << index if zones is None else 0
        for zone in zones or ():
            sets[zone] |= 1 << index
    return tuple(own | everywhere for own in sets)


def _map_edges(maps: Iterable[AddressMap | PrefixMap | None]) -> set[int]:
    segments = (segment for addresses in maps if addresses is not None for segment in addresses.segments)
    return {edge for first, last, _ in segments for edge in (first, last + 1)}


def _first(rules: int) -> int:
    """Position of the lowest set bit; -1 if none is."""
    return (rules & -rules).bit_length() - 1


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """Every answer of a configuration. Zones are ids from 1, addresses 128-bit integers; no port is port 0."""

    config: Config
    zone_ids: Mapping[str, int]
    zone_names: tuple[str, ...]
    """By id; id 0 is no zone and has an empty name."""
    interface_zone: Mapping[str, int]
    anti_spoof: tuple[bool, ...]
    """By zone id."""
    reset_non_syn: tuple[bool, ...]
    """By zone id."""
    mss_clamps: Mapping[str, int | Literal["auto"]]
    """By interface, of IPv4."""
    security_rules: tuple[CompiledSecurityRule, ...]
    """In order, the intrazone and the interzone default last."""
    nat_rules: tuple[CompiledNatRule, ...]
    """In order, the reverse of a bi-directional rule right behind it."""
    nat_meanings: tuple[object, ...]
    """What each says, but for its name and place: equal for two rules that match and translate alike."""
    pools: tuple[Pool, ...]
    answered: tuple[Range, ...]
    """Addresses the firewall answers for (ARP, neighbour discovery) where they lie in an interface's subnet."""
    applications: ApplicationTable
    _security: _Matcher
    _application_sets: Mapping[str, int]
    _any_application: int
    _application_default: int
    _nat: _Matcher
    _timers: Mapping[tuple[str, int], Timeouts]
    _host_ports: Mapping[int, tuple[PortRange, ...]]
    _security_views: tuple[dict[str, Any], ...]
    _nat_views: tuple[dict[str, Any], ...]

    def security_rule(
        self, from_zone: int, to_zone: int, src: int, dst: int, proto: int, dport: int, application: str
    ) -> int:
        """Index of the first matching rule, the two defaults included; addresses and port are the original ones."""
        rules = self._security.flow(from_zone, to_zone, src, dst)
        rules &= self._application_sets.get(application, self._any_application)
        services = self._security.service(proto, dport)
        if self._application_default:
            known = self.applications.by_name.get(application)
            if known is not None and known.is_default_port(proto, dport):
                services |= self._application_default
        first = _first(rules & services)
        return first if first >= 0 else len(self.security_rules) - (2 if from_zone == to_zone else 1)

    def nat_rule(self, from_zone: int, to_zone: int, src: int, dst: int, proto: int, dport: int) -> int | None:
        """Index of the first matching rule, or None; `to_zone` is that of the original destination."""
        first = _first(self._nat.flow(from_zone, to_zone, src, dst) & self._nat.service(proto, dport))
        return first if first >= 0 else None

    def application(self, proto: int, dport: int, echo: bool = True) -> Application:
        """The application of a new session; `echo` is false for ICMP that is no echo."""
        return self.applications.find(proto, dport, echo)

    def edges(self) -> Edges:
        """Every value at which a rule, a translation or an application begins, or the next after one ends: between two
        of them all answers for sessions through the firewall are the same, but for translation by offset."""
        edges, nat = self._security.edges(), self._nat.edges()
        for proto, first, last in (ports for app in self.applications.by_name.values() for ports in app.ports):
            edges.ports.setdefault(proto, set()).update((first, last + 1))
        return Edges(
            edges.source | nat.source | _map_edges(rule.source_map for rule in self.nat_rules),
            edges.destination | nat.destination | _map_edges(rule.destination_map for rule in self.nat_rules),
            {proto: edges.ports[proto] | nat.ports[proto] for proto in (TCP, UDP)},
        )

    def timeouts(self, application: str, proto: int) -> Timeouts:
        """The timers of a session. Raises KeyError for an application that is defined nowhere."""
        return self._timers[application, _timer_class(proto)]

    def host_inbound(self, zone: int, proto: int, dport: int) -> bool:
        """Whether a new session from the zone may be opened to the firewall itself."""
        return any(
            own in (proto, _EVERY_PROTOCOL) and first <= dport <= last
            for own, first, last in self._host_ports.get(zone, ())
        )

    def security_rule_view(self, index: int) -> dict[str, Any]:
        """The rule as `show running security-policy` prints it."""
        return self._security_views[index]

    def nat_rule_view(self, index: int) -> dict[str, Any]:
        """The rule as `show running nat-policy` prints it."""
        return self._nat_views[index]


class _NatPart(NamedTuple):
    """A NAT rule as written, or the destination translation that a bi-directional one implies."""

    number: int
    """Of the written rule, from 1."""
    rule: NatRule
    reverse: bool


def number_zones(config: Config, before: Mapping[str, int]) -> dict[str, int]:
    """Ids for the zones: a zone keeps the one that it had, a new one gets one that no zone had just before, if any."""
    kept = {before[zone.name] for zone in config.zones if zone.name in before}
    unused = [number for number in range(1, ZONE_IDS - 1) if number not in before.values()]
    left = iter([*unused, *(number for number in before.values() if number not in kept)])
    return {zone.name: before.get(zone.name) or next(left) for zone in config.zones}


def compile_policy(config: Config, zones_before: Mapping[str, int] = MappingProxyType({})) -> CompiledPolicy:
    """A policy from a configuration that load.py accepted; `zones_before` are the ids of the policy it follows."""
    objects = Objects(config)
    zone_ids = number_zones(config, zones_before)
    applications = ApplicationTable(config.applications, config.settings.alg)
    written = [rule for rule in config.security_rules if rule.name not in DEFAULT_RULES]
    defaults = [_default_rule(kind, config) for kind in ("intrazone", "interzone")]
    parts = _nat_parts(config)
    nat_rules = tuple(_nat_rule(index, part, objects) for index, part in enumerate(parts))
    enabled = {index: rule for index, rule in enumerate(written) if not rule.disabled}
    any_application = _bits(index for index, rule in enabled.items() if ANY in rule.application)
    return CompiledPolicy(
        config=config,
        zone_ids=MappingProxyType(zone_ids),
        zone_names=_by_zone({number: name for name, number in zone_ids.items()}, ""),
        interface_zone=MappingProxyType(
            {name: zone_ids[zone.name] for zone in config.zones for name in zone.interfaces}
        ),
        anti_spoof=_by_zone({zone_ids[zone.name]: zone.anti_spoof for zone in config.zones}, False),
        reset_non_syn=_by_zone({zone_ids[zone.name]: zone.non_syn == "reset" for zone in config.zones}, False),
        mss_clamps={name: own.mss_clamp for name, own in config.interfaces.items() if own.mss_clamp is not None},
        security_rules=(*(_security_rule(rule) for rule in written), *defaults),
        nat_rules=nat_rules,
        nat_meanings=tuple(_nat_meaning(part, zone_ids, objects) for part in parts),
        pools=tuple(_pools(nat_rules)),
        answered=tuple(merge(_answered(nat_rules))),
        applications=applications,
        _security=_Matcher([_security_row(index, rule, zone_ids, objects) for index, rule in enabled.items()]),
        _application_sets=_application_sets(enabled, any_application),
        _any_application=any_application,
        _application_default=_bits(i for i, rule in enabled.items() if APPLICATION_DEFAULT in rule.service),
        _nat=_Matcher([_nat_row(i, part, zone_ids, objects) for i, part in enumerate(parts) if not part.rule.disabled]),
        _timers=_timers(applications, config.settings.session),
        _host_ports={zone_ids[zone]: _host_ports(words, objects) for zone, words in config.host_inbound.items()},
        _security_views=(
            *(_security_view(number, rule, objects, applications) for number, rule in enumerate(written, 1)),
            *(_default_view(rule) for rule in defaults),
        ),
        _nat_views=tuple(_nat_view(part, objects) for part in parts),
    )


def _by_zone(values: Mapping[int, _T], none: _T) -> tuple[_T, ...]:
    """By zone id, as far as the last one goes."""
    return tuple(values.get(number, none) for number in range(max(values) + 1))


# --- security rules ---


def _default_rule(kind: str, config: Config) -> CompiledSecurityRule:
    """Inside a zone traffic is allowed, between zones denied, neither logged, unless a rule of that name says else."""
    name = f"{kind}-default"
    for rule in config.security_rules:
        if rule.name == name and not rule.disabled:
            return _security_rule(rule, kind)
    action = Action.ALLOW if kind == "intrazone" else Action.DENY
    return CompiledSecurityRule(name, action, icmp_unreachable=False, log_start=False, log_end=False, kind=kind)


def _security_rule(rule: SecurityRule, kind: str | None = None) -> CompiledSecurityRule:
    return CompiledSecurityRule(
        rule.name, rule.action, rule.icmp_unreachable, rule.log_start, rule.log_end, rule.disabled, rule.alg, kind
    )


def _security_row(index: int, rule: SecurityRule, zone_ids: Mapping[str, int], objects: Objects) -> _Row:
    source, destination = objects.ranges(rule.source), objects.ranges(rule.destination)
    return _Row(
        index,
        _zones(rule.from_zones, zone_ids),
        _zones(rule.to_zones, zone_ids),
        complement(source) if rule.negate_source else merge(source),
        complement(destination) if rule.negate_destination else merge(destination),
        () if APPLICATION_DEFAULT in rule.service else _ports(rule.service, objects),
    )


def _zones(names: Sequence[str], zone_ids: Mapping[str, int]) -> Sequence[int] | None:
    return None if ANY in names else [zone_ids[name] for name in names]


def _ports(services: Sequence[str], objects: Objects) -> Sequence[PortRange] | None:
    return None if ANY in services else objects.ports(services)


def _application_sets(rules: Mapping[int, SecurityRule], any_application: int) -> Mapping[str, int]:
    """Rules by application name, those of any application included; a name that no rule has is absent."""
    sets: dict[str, int] = {}
    for index, rule in rules.items():
        for name in rule.application:
            sets[name] = sets.get(name, any_application) | 1 << index
    return sets


# --- NAT rules ---


def _nat_parts(config: Config) -> list[_NatPart]:
    parts = []
    for number, rule in enumerate(config.nat_rules, 1):
        parts.append(_NatPart(number, rule, reverse=False))
        if rule.source_translation and rule.source_translation.bi_directional:
            parts.append(_NatPart(number, rule, reverse=True))
    return parts


def _nat_rule(index: int, part: _NatPart, objects: Objects) -> CompiledNatRule:
    rule = part.rule
    if part.reverse:
        reverse = _static_map(rule, objects).reverse()
        return CompiledNatRule(rule.name, rule.nat_type, rule.disabled, destination_map=reverse, generated=True)
    source, destination = rule.source_translation, rule.destination_translation
    static = source is not None and source.type is SourceType.STATIC_IP
    return CompiledNatRule(
        rule.name,
        rule.nat_type,
        rule.disabled,
        pool=_pool(index, rule, source, objects) if source and not static else None,
        source_map=_static_map(rule, objects) if static else None,
        destination_map=_destination_map(rule, destination.address, objects) if destination else None,
        destination_port=destination.port if destination else None,
    )


def _pool(index: int, rule: NatRule, source: SourceTranslation, objects: Objects) -> Pool:
    ports = parse_ports(source.port_range) if source.port_range else DEFAULT_PORT_RANGE
    addresses = tuple(merge(objects.ranges(source.addresses or ())))
    fallback = _fallback(index, rule, source.fallback, objects) if source.fallback else None
    return Pool(rule.name, index, source.type, rule.nat_type, source.interface, addresses, ports, fallback)


def _fallback(index: int, rule: NatRule, fallback: Fallback, objects: Objects) -> Pool:
    kind = SourceType.DYNAMIC_IP_AND_PORT
    addresses = tuple(merge(objects.ranges(fallback.addresses or ())))
    return Pool(rule.name, index, kind, rule.nat_type, fallback.interface, addresses, DEFAULT_PORT_RANGE)


def _pools(rules: Iterable[CompiledNatRule]) -> Iterable[Pool]:
    """Those of the enabled rules, each with its fallback behind it."""
    for rule in rules:
        if rule.pool and not rule.disabled:
            yield rule.pool
            if rule.pool.fallback:
                yield rule.pool.fallback


def _static_map(rule: NatRule, objects: Objects) -> AddressMap | PrefixMap:
    translated = rule.source_translation.addresses if rule.source_translation else None
    original, target = objects.ranges(rule.source), objects.ranges(translated or ())
    if rule.nat_type is NatType.NPTV6:
        return PrefixMap(original[0][0], target[0][0], prefix_length(original[0]))
    return AddressMap(_segments(original, target))


def _destination_map(rule: NatRule, address: str, objects: Objects) -> AddressMap:
    """One translated address stands for every destination, several for as many, in order."""
    original, translated = objects.ranges(rule.destination), objects.ranges((address,))
    if size(translated) > 1:
        return AddressMap(_segments(original, translated))
    return AddressMap(tuple((first, last, translated[0][0]) for first, last in merge(original)), fixed=True)


def _segments(original: Sequence[Range], translated: Sequence[Range]) -> tuple[tuple[int, int, int], ...]:
    """Pair two lists of equally many addresses in the order written."""
    segments = []
    targets = list(translated)[::-1]
    for start, last in original:
        first = start
        while first <= last:
            target, target_last = targets.pop()
            length = min(last - first, target_last - target) + 1
            segments.append((first, first + length - 1, target))
            first += length
            if target + length <= target_last:
                targets.append((target + length, target_last))
    return tuple(segments)


def _nat_row(index: int, part: _NatPart, zone_ids: Mapping[str, int], objects: Objects) -> _Row:
    rule = part.rule
    to_zones = _zones((rule.to_zone,), zone_ids)
    if part.reverse:
        translated = _static_map(rule, objects).reverse().segments
        mapped = merge((first, last) for first, last, _ in translated)
        return _Row(index, None, to_zones, EVERY_ADDRESS, mapped, None)
    return _Row(
        index,
        _zones(rule.from_zones, zone_ids),
        to_zones,
        merge(objects.ranges(rule.source)),
        _of_family(merge(objects.ranges(rule.destination)), rule.nat_type),
        _ports(rule.service, objects),
    )


def _nat_meaning(part: _NatPart, zone_ids: Mapping[str, int], objects: Objects) -> object:
    """The rule compiled as if it were alone and had no name."""
    alone = part._replace(rule=part.rule.model_copy(update={"name": ""}))
    return _nat_rule(0, alone, objects), [field and list(field) for field in _nat_row(0, alone, zone_ids, objects)[1:]]


def _of_family(ranges: Sequence[Range], nat_type: NatType) -> list[Range]:
    """The addresses of a rule's own family; both addresses of a packet have one, so that of the destination decides."""
    windows = (IPV4,) if nat_type is NatType.IPV4 else _IPV6
    return [part for window in windows for part in intersect(ranges, window)]


def _answered(rules: Sequence[CompiledNatRule]) -> Iterable[Range]:
    """Pools, static translations and the original destinations of a destination translation that names them."""
    for pool in _pools(rules):
        yield from pool.addresses
    for rule in rules:
        if rule.disabled:
            continue
        if rule.source_map:
            yield from ((target, target + last - first) for first, last, target in rule.source_map.segments)
        if rule.destination_map and rule.destination_map.segments[0][:2] not in EVERY_ADDRESS:
            yield from ((first, last) for first, last, _ in rule.destination_map.segments)


# --- timers and the firewall's own services ---


def _timer_class(proto: int) -> int:
    if proto in ECHO_PROTOCOLS:
        return ICMP
    return proto if proto in (TCP, UDP) else _OTHER


def _timers(table: ApplicationTable, settings: SessionSettings) -> Mapping[tuple[str, int], Timeouts]:
    """Timers by application and protocol; an application's own go before the protocol's."""
    timers = {}
    own = settings.timeouts
    idle = {UDP: own.udp, ICMP: own.icmp, _OTHER: own.default}
    for name, app in table.by_name.items():
        timers[name, TCP] = _tcp_timers(app, settings)
        for proto, default in idle.items():
            seconds = (app.udp_timeout if proto == UDP else 0) or app.timeout or default
            discard = own.discard_udp if proto == UDP else own.discard_default
            timers[name, proto] = Timeouts(seconds, seconds, seconds, seconds, seconds, seconds, discard)
    return timers


def _tcp_timers(app: Application, settings: SessionSettings) -> Timeouts:
    """TIME_WAIT never outlasts the half-closed timer, whatever is configured."""
    own = settings.timeouts
    half_closed = app.tcp_half_closed_timeout or own.tcp_half_closed
    return Timeouts(
        init=own.tcp_init,
        handshake=own.tcp_handshake,
        idle=app.tcp_timeout or app.timeout or own.tcp,
        half_closed=half_closed,
        time_wait=min(app.tcp_time_wait_timeout or own.tcp_time_wait, half_closed),
        unverified_rst=own.tcp_unverified_rst,
        discard=own.discard_tcp,
    )


def _host_ports(words: Iterable[str], objects: Objects) -> tuple[PortRange, ...]:
    ports: list[PortRange] = []
    for word in words:
        if word == ANY:
            ports.append((_EVERY_PROTOCOL, 0, LAST_PORT))
        elif objects.is_service(word):
            ports += objects.ports((word,))
        else:
            ports += HOST_SERVICES[word]
    return tuple(ports)


# --- what `show running` prints ---


def _security_view(number: int, rule: SecurityRule, objects: Objects, table: ApplicationTable) -> dict[str, Any]:
    return {
        "name": rule.name,
        "index": number,
        "from": list(rule.from_zones),
        "source": objects.literals(rule.source),
        "negate_source": rule.negate_source,
        "to": list(rule.to_zones),
        "destination": objects.literals(rule.destination),
        "negate_destination": rule.negate_destination,
        "application_service": [
            text for name in rule.application for text in _application_services(name, rule.service, objects, table)
        ],
        "action": rule.action.value,
        "icmp_unreachable": rule.icmp_unreachable,
        "log_start": rule.log_start,
        "log_end": rule.log_end,
        "disabled": rule.disabled,
        "type": None,
    }


def _default_view(rule: CompiledSecurityRule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "index": None,
        "from": [ANY],
        "source": [ANY],
        "negate_source": False,
        "to": [ANY],
        "destination": [ANY],
        "negate_destination": False,
        "application_service": ["any/any/any/any"],
        "action": rule.action.value,
        "icmp_unreachable": rule.icmp_unreachable,
        "log_start": rule.log_start,
        "log_end": rule.log_end,
        "disabled": False,
        "type": rule.kind,
    }


def _application_services(name: str, services: Sequence[str], objects: Objects, table: ApplicationTable) -> list[str]:
    """Application, protocol, source port and destination port of each combination, as `dns/udp/any/53`."""
    if APPLICATION_DEFAULT not in services:
        return [f"{name}/{text}" for text in _service_texts(services, objects)]
    if name == ANY:
        return ["any/any/any/app-default"]
    return [f"{name}/{_port_text(ports)}" for ports in table.by_name[name].ports]


def _service_texts(services: Sequence[str], objects: Objects) -> list[str]:
    ports = _ports(services, objects)
    return ["any/any/any"] if ports is None else [_port_text(part) for part in ports]


def _port_text(ports: PortRange) -> str:
    proto, first, last = ports
    if (first, last) == (0, LAST_PORT):
        return f"{PROTOCOL_NAMES[proto]}/any/any"
    return f"{PROTOCOL_NAMES[proto]}/any/{first}" + (f"-{last}" if last > first else "")


def _nat_view(part: _NatPart, objects: Objects) -> dict[str, Any]:
    rule = part.rule
    view = {
        "name": rule.name,
        "index": part.number,
        "nat_type": rule.nat_type.value,
        "from": list(rule.from_zones),
        "source": objects.literals(rule.source),
        "to": rule.to_zone,
        "to_interface": "",
        "destination": objects.literals(rule.destination),
        "service": _service_texts(rule.service, objects),
        "translate_to": _translate_to(rule, objects),
        "disabled": rule.disabled,
    }
    return view | _reverse_view(rule, objects) if part.reverse else view


def _reverse_view(rule: NatRule, objects: Objects) -> dict[str, Any]:
    """What the reverse of a bi-directional rule does not share with it."""
    translated = rule.source_translation.addresses if rule.source_translation else None
    return {
        "from": [ANY],
        "source": [ANY],
        "destination": objects.literals(translated or ()),
        "service": ["any/any/any"],
        "translate_to": f"dst: {' '.join(objects.literals(rule.source))}",
    }


def _translate_to(rule: NatRule, objects: Objects) -> str | None:
    """Both translations as text; None for a no-NAT rule."""
    texts = []
    if source := rule.source_translation:
        addresses = source.interface or " ".join(objects.literals(source.addresses or ()))
        texts.append(f"src: {addresses} ({source.type})" + _fallback_text(source.fallback, objects))
    if destination := rule.destination_translation:
        address = " ".join(objects.literals((destination.address,)))
        texts.append(f"dst: {_with_port(address, destination.port)}")
    return "; ".join(texts) or None


def _fallback_text(fallback: Fallback | None, objects: Objects) -> str:
    if fallback is None:
        return ""
    addresses = fallback.interface or " ".join(objects.literals(fallback.addresses or ()))
    return f" fallback {addresses} ({SourceType.DYNAMIC_IP_AND_PORT})"


def _with_port(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
