"""YAML to a Config, or every reason why not.

One run reports everything: the text's own faults (document.py), then each value's type and range (model.py), then
what needs two places to be seen together, such as a name that is defined nowhere. So that a wrong value does not hide
the third kind, it is replaced by a harmless stand-in once it has been reported, and the checks run on what is left.
Every impossible setting is an error: a firewall must not seem to do what it does not do.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dataplane.errors import ConfigError
from dataplane.policy.applications import BUILT_IN, HOST_SERVICES
from dataplane.policy.document import MAX_CHARACTERS, Document, Problem, Unreadable, describe, read
from dataplane.policy.document import Path as Place
from dataplane.policy.listen import parse_listen
from dataplane.policy.model import (
    APPLICATION_DEFAULT,
    DEFAULT_RULES,
    MAX_NAME,
    Action,
    Config,
    NatRule,
    NatType,
    SecurityRule,
    SourceTranslation,
    SourceType,
)
from dataplane.policy.objects import (
    ANY,
    Objects,
    Range,
    is_ipv4,
    merge,
    parse_address,
    parse_default_port,
    prefix_length,
    size,
)
from dataplane.policy.prefix import LONGEST

MAX_POOL = 4096
"""Addresses of one pool; each costs 24 KiB of port bitmaps, more where ports are shared."""
MAX_DYNAMIC_IP = 32_768
"""Addresses of a dynamic-ip pool, which has no ports (PAN-OS)."""

_LAST_QUEUE = 65535
_NO_ADDRESS = "a virtual wire has no address; translate to addresses"
_MATCH_FIELDS = {
    "from_zones", "to_zones", "source", "negate_source", "destination", "negate_destination", "application", "service",
}  # fmt: skip
_PORT_TYPES = (SourceType.DYNAMIC_IP_AND_PORT, SourceType.PERSISTENT_DYNAMIC_IP_AND_PORT)


def load(path: Path) -> Config:
    """Read a configuration file. Raises ConfigError with every problem; the file is named as `path` is written."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CHARACTERS + 1)
    except OSError as error:
        raise ConfigError([f"{path}:1: file: {error.strerror or error}"]) from None
    try:
        return parse(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: file: not UTF-8"]) from None


def parse(text: str, name: str) -> Config:
    """The configuration in `text`; `name` stands for the file in what ConfigError says."""
    try:
        document = read(text)
    except Unreadable as error:
        raise ConfigError([f"{name}:{error.line}: file: {error.reason}"]) from None
    config, problems = _validate(document)
    if config is not None:
        problems += _unexplained(_Check(config).problems(), problems)
    if config is None or problems:
        raise ConfigError(_report(document, problems, name))
    return config


def check(config: Config) -> list[str]:
    """What does not fit together in a configuration that was not read from a file: `PATH: message` each."""
    return [f"{describe(problem.path)}: {problem.message}" for problem in _Check(config).problems()]


def _report(document: Document, problems: Iterable[Problem], name: str) -> list[str]:
    lines = [(p.line or document.line(p.path), describe(p.path) or "file", p.message) for p in problems]
    return [f"{name}:{line}: {place}: {message}" for line, place, message in sorted(set(lines))]


def _unexplained(found: Iterable[Problem], known: Iterable[Problem]) -> list[Problem]:
    """Problems that do not follow from a value which is known to be wrong."""
    wrong = {problem.path[: 3 if problem.path[:1] in _ITEMS else 2] for problem in known}
    return [problem for problem in found if not any(problem.path[:depth] in wrong for depth in (2, 3))]


# --- one value at a time ---


def _validate(document: Document) -> tuple[Config | None, list[Problem]]:
    """The configuration with stand-ins for faulty values, and the faults; None if names lost their definitions."""
    plain = document.plain()
    problems = list(document.problems)
    try:
        return Config.model_validate(plain), problems
    except ValidationError as error:
        faults = error.errors(include_url=False)
    problems += [_fault(detail) for detail in faults]
    for detail in sorted(faults, key=lambda detail: detail["loc"][-1:] == (_KEY,)):
        if not _mend(plain, detail["loc"]):
            return None, problems
    return Config.model_validate(plain), problems


def _fault(detail: Any) -> Problem:
    place = tuple(part for part in detail["loc"] if part != _KEY)
    return Problem(place, _explain(detail["type"], detail.get("ctx", {}), detail["input"], detail["msg"]))


def _explain(kind: str, context: Mapping[str, Any], given: object, message: str) -> str:
    """Pydantic's verdict in an operator's words."""
    match kind:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return "unknown key"
        case "value_error":
            return str(context["error"])
        case "enum" | "literal_error":
            return f"must be {context['expected']}, not {_shown(given)}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}, not {_shown(given)}"
        case "less_than_equal":
            return f"must be at most {context['le']}, not {_shown(given)}"
        case "too_short":
            return f"must hold at least {context['min_length']}, not {context['actual_length']}"
        case "too_long":
            return f"must hold at most {context['max_length']}, not {context['actual_length']}"
    return f"must be {_TYPES[kind]}, not {_shown(given)}" if kind in _TYPES else message


def _shown(given: object) -> str:
    match given:
        case None:
            return "null"
        case bool():
            return str(given).lower()
        case dict():
            return "a mapping"
        case list():
            return "a list"
    text = repr(given)
    return text if len(text) <= MAX_NAME + 2 else f"{text[:MAX_NAME]}..."


_KEY = "[key]"
"""Pydantic's mark of a fault in a mapping's key."""
_TYPES = {
    "string_type": "a string",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
_ITEMS = (("zones",), ("virtual-wires",), ("security-rules",), ("nat-rules",))
_DEFINITIONS = (("zones",), ("addresses",), ("address-groups",), ("services",), ("service-groups",), ("applications",))
_ENTRY_STAND_INS: dict[str, object] = {
    "interfaces": {},
    "addresses": "0.0.0.0",
    "address-groups": ["0.0.0.0"],
    "services": {"protocol": "tcp", "destination-port": 1},
    "service-groups": ["?"],
    "applications": {},
    "host-inbound": [],
}
_ITEM_STAND_INS: dict[str, dict[str, object]] = {
    "zones": {"interfaces": []},
    "virtual-wires": {"name": "?", "interfaces": ["?0", "?1"]},
    "security-rules": {"action": "deny"},
    "nat-rules": {},
}


def _mend(plain: Any, location: Sequence[str | int]) -> bool:
    """Put a stand-in where a fault is, so that the rest can be checked; False if that would make names unknown."""
    if not location or location in _DEFINITIONS:
        return False
    section, *inside = location
    if not inside:
        plain.pop(section)
    elif section in _ITEM_STAND_INS:
        _mend_item(plain[section], str(section), inside)
    elif section in _ENTRY_STAND_INS and inside[-1] != _KEY:
        plain[section][inside[0]] = _ENTRY_STAND_INS[str(section)]
    else:
        plain[section].pop(inside[0], None)
    return True


def _mend_item(items: Any, section: str, inside: Sequence[str | int]) -> None:
    index, *rest = inside
    if rest:
        items[index].pop(rest[0], None)
    else:
        items[index] = {}
    for key, value in {"name": f"<{section}[{index}]>", **_ITEM_STAND_INS[section]}.items():
        items[index].setdefault(key, value)


# --- what needs two places to be seen together ---


class _Check:
    """Goes through a configuration whose values are well-formed, and yields what does not fit together."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.objects = Objects(config)
        self.zones = {zone.name for zone in config.zones}
        self.zone_of = {interface: zone.name for zone in reversed(config.zones) for interface in zone.interfaces}
        self.wire_zones = {
            self.zone_of[port] for wire in config.virtual_wires for port in wire.interfaces if port in self.zone_of
        }
        self.address_names = {*config.addresses, *config.address_groups}
        self.service_names = {*config.services, *config.service_groups}
        self.applications = {*BUILT_IN, *config.applications}

    def problems(self) -> Iterator[Problem]:
        config = self.config
        yield from self._zones()
        yield from _shared_names("address-groups", config.addresses, config.address_groups)
        yield from _shared_names("service-groups", config.services, config.service_groups)
        for group, members in config.address_groups.items():
            yield from self._each(("address-groups", group), members, self._address)
        for group, members in config.service_groups.items():
            yield from self._each(("service-groups", group), members, self._service)
        yield from _cycles("address-groups", config.address_groups)
        yield from _cycles("service-groups", config.service_groups)
        yield from self._applications()
        yield from _repeated("security-rules", [rule.name for rule in config.security_rules])
        yield from _repeated("nat-rules", [rule.name for rule in config.nat_rules])
        for i, security_rule in enumerate(config.security_rules):
            yield from self._security_rule(("security-rules", i), security_rule)
        for i, nat_rule in enumerate(config.nat_rules):
            yield from self._nat_rule(("nat-rules", i), nat_rule)
        yield from self._host_inbound()
        yield from self._queues()
        yield from self._metrics()

    def _metrics(self) -> Iterator[Problem]:
        metrics = self.config.metrics
        if metrics.listen is not None and not metrics.allow_remote and not parse_listen(metrics.listen).is_local:
            yield Problem(("metrics", "listen"), f"other hosts could reach {metrics.listen}; say allow-remote: true")
        yield from self._log()

    def _zones(self) -> Iterator[Problem]:
        yield from _repeated("zones", [zone.name for zone in self.config.zones])
        seen: dict[str, str] = {}
        for i, zone in enumerate(self.config.zones):
            for j, interface in enumerate(zone.interfaces):
                if interface in seen:
                    yield Problem(
                        ("zones", i, "interfaces", j), f"interface '{interface}' is already in zone '{seen[interface]}'"
                    )
                seen.setdefault(interface, zone.name)
        for name in self.config.interfaces:
            if name not in self.zone_of:
                yield Problem(("interfaces", name), f"interface '{name}' is in no zone")
        yield from self._virtual_wires()

    def _virtual_wires(self) -> Iterator[Problem]:
        wires = self.config.virtual_wires
        yield from _repeated("virtual-wires", [wire.name for wire in wires])
        uses = Counter(interface for wire in wires for interface in wire.interfaces)
        for i, wire in enumerate(wires):
            place = ("virtual-wires", i, "interfaces")
            if wire.name in self.zone_of or wire.name in uses:
                yield Problem(("virtual-wires", i, "name"), f"'{wire.name}' is the name of an interface")
            for j, interface in enumerate(wire.interfaces):
                if interface not in self.zone_of:
                    yield Problem((*place, j), f"interface '{interface}' is in no zone")
                if uses[interface] > 1:
                    yield Problem((*place, j), f"interface '{interface}' is on more than one end of a virtual wire")
        for i, zone in enumerate(self.config.zones):
            if zone.name in self.wire_zones and len(zone.interfaces) > 1:
                yield Problem(("zones", i, "interfaces"), "an end of a virtual wire needs a zone of its own")

    def _applications(self) -> Iterator[Problem]:
        claimed: list[tuple[str, int, int, int]] = []
        for name, application in self.config.applications.items():
            place = ("applications", name)
            if application.default_ports is None and name not in BUILT_IN:
                yield Problem(place, "needs default-ports; an application is recognised by its port")
            for j, text in enumerate(application.default_ports or ()):
                proto, first, last = parse_default_port(text)
                for other, *ports in claimed:
                    if ports[0] == proto and first <= ports[2] and ports[1] <= last:
                        yield Problem((*place, "default-ports", j), f"{text} already belongs to application '{other}'")
                claimed.append((name, proto, first, last))

    def _host_inbound(self) -> Iterator[Problem]:
        for zone, services in self.config.host_inbound.items():
            if zone not in self.zones:
                yield Problem(("host-inbound", zone), f"unknown zone '{zone}'")
            if zone in self.wire_zones:
                yield Problem(("host-inbound", zone), "the firewall has no address on a virtual wire")
            yield from self._each(("host-inbound", zone), services, self._host_service)

    def _queues(self) -> Iterator[Problem]:
        queue = self.config.settings.queue
        workers = queue.workers if isinstance(queue.workers, int) else 1
        if queue.first + workers > _LAST_QUEUE:
            yield Problem(
                ("settings", "queue", "first"), f"the slow queue {queue.first + workers} is beyond {_LAST_QUEUE}"
            )

    def _log(self) -> Iterator[Problem]:
        log = self.config.log
        if not log.traffic:
            for key in ("csv", "syslog", "ipfix"):
                if getattr(log, key):
                    yield Problem(("log", key), "needs traffic: true")
        for i, server in enumerate(log.syslog):
            if server.ca_file is not None and not server.to.startswith("tls:"):
                yield Problem(("log", "syslog", i, "ca-file"), "is for tls:// alone")
        for key, servers in (("syslog", log.syslog), ("ipfix", log.ipfix)):
            seen = [server.to for server in servers]
            for i, to in enumerate(seen):
                if to in seen[:i]:
                    yield Problem(("log", key, i, "to"), f"'{to}' is already there")

    # One name: the reason why it cannot stand where it does, or None.

    def _zone(self, name: str) -> str | None:
        return None if name in self.zones else f"unknown zone '{name}'"

    def _address(self, name: str) -> str | None:
        if name in self.address_names:
            return None
        try:
            parse_address(name)
        except ValueError as error:
            return f"unknown address '{name}'" + (f": {error}" if any(sign in name for sign in ".:/") else "")
        return None

    def _service(self, name: str) -> str | None:
        return None if name in self.service_names else f"unknown service '{name}'"

    def _host_service(self, name: str) -> str | None:
        return None if name in (*HOST_SERVICES, ANY) else self._service(name)

    def _application(self, name: str) -> str | None:
        return None if name in self.applications else f"unknown application '{name}'"

    def _each(self, place: Place, names: Sequence[str], wrong: Callable[[str], str | None]) -> Iterator[Problem]:
        for i, name in enumerate(names):
            if reason := wrong(name):
                yield Problem((*place, i), reason)

    def _names(
        self, place: Place, names: Sequence[str], wrong: Callable[[str], str | None], alone: Collection[str] = (ANY,)
    ) -> Iterator[Problem]:
        """References of a rule: each is known, and a word that says it all stands alone."""
        for i, name in enumerate(names):
            if name in alone:
                if len(names) > 1:
                    yield Problem((*place, i), f"'{name}' cannot be mixed with others")
            elif reason := wrong(name):
                yield Problem((*place, i), reason)

    # Rules

    def _security_rule(self, place: Place, rule: SecurityRule) -> Iterator[Problem]:
        if rule.name in DEFAULT_RULES:
            yield from self._default_rule(place, rule)
        yield from self._names((*place, "from"), rule.from_zones, self._zone)
        yield from self._names((*place, "to"), rule.to_zones, self._zone)
        yield from self._names((*place, "source"), rule.source, self._address)
        yield from self._names((*place, "destination"), rule.destination, self._address)
        yield from self._names((*place, "application"), rule.application, self._application)
        yield from self._names((*place, "service"), rule.service, self._service, (ANY, APPLICATION_DEFAULT))
        if rule.negate_source and ANY in rule.source:
            yield Problem((*place, "negate-source"), "the negation of 'any' matches nothing")
        if rule.negate_destination and ANY in rule.destination:
            yield Problem((*place, "negate-destination"), "the negation of 'any' matches nothing")
        if rule.icmp_unreachable and rule.action is Action.ALLOW:
            yield Problem((*place, "icmp-unreachable"), "a rule that allows sends no ICMP unreachable")

    def _default_rule(self, place: Place, rule: SecurityRule) -> Iterator[Problem]:
        after = self.config.security_rules[int(place[1]) + 1 :]
        if any(other.name not in DEFAULT_RULES for other in after):
            yield Problem((*place, "name"), f"'{rule.name}' must stand after all other rules")
        matches = rule.model_dump(by_alias=True, include=_MATCH_FIELDS)
        for key, value in matches.items():
            if value not in ((ANY,), False):
                yield Problem((*place, key), f"'{rule.name}' overrides only action and logging")

    def _nat_rule(self, place: Place, rule: NatRule) -> Iterator[Problem]:
        yield from self._names((*place, "from"), rule.from_zones, self._zone)
        yield from self._names((*place, "to"), (rule.to_zone,), self._zone)
        yield from self._names((*place, "source"), rule.source, self._address)
        yield from self._names((*place, "destination"), rule.destination, self._address)
        yield from self._names((*place, "service"), rule.service, self._service)
        for key, names in (("source", rule.source), ("destination", rule.destination)):
            ranges = self._ranges(names) if ANY not in names else None
            if ranges is not None and all(is_ipv4(first) != _is_ipv4(rule.nat_type) for first, _ in ranges):
                yield Problem((*place, key), f"holds no {_family(rule.nat_type)} address, which nat-type needs")
        if rule.source_translation is not None:
            yield from self._source_translation((*place, "source-translation"), rule, rule.source_translation)
        if rule.nat_type is NatType.NPTV6:
            yield from self._nptv6(place, rule)
        elif rule.destination_translation is not None:
            address = rule.destination_translation.address
            target = (*place, "destination-translation", "address")
            yield from self._mapping(target, rule, (address,), "destination", rule.destination)

    def _nptv6(self, place: Place, rule: NatRule) -> Iterator[Problem]:
        """One prefix stands for another of its length; the rest of an address goes with it."""
        source = rule.source_translation
        if rule.destination_translation is not None:
            yield Problem((*place, "destination-translation"), "nptv6 translates sources; bi-directional is the way in")
        if source is None:
            return
        if source.type is not SourceType.STATIC_IP:
            yield Problem((*place, "source-translation", "type"), f"nptv6 needs {SourceType.STATIC_IP}")
            return
        places = ((*place, "source"), (*place, "source-translation", "addresses"))
        for where, names in zip(places, (rule.source, source.addresses or ()), strict=True):
            ranges = self._ranges(names)
            if ranges is not None and not (len(ranges) == 1 and 0 < prefix_length(ranges[0]) <= LONGEST):
                yield Problem(where, f"nptv6 needs one prefix of at most {LONGEST} bits")

    def _source_translation(self, place: Place, rule: NatRule, source: SourceTranslation) -> Iterator[Problem]:
        yield from self._source_shape(place, source)
        yield from self._fallback((*place, "fallback"), rule, source)
        if source.interface is not None and source.interface not in self.zone_of:
            yield Problem((*place, "interface"), f"interface '{source.interface}' is in no zone")
        if source.interface is not None and self._matches_wires(rule):
            yield Problem((*place, "interface"), _NO_ADDRESS)
        if source.addresses is None:
            return
        key = (*place, "addresses")
        if source.type is SourceType.STATIC_IP:
            yield from self._mapping(key, rule, source.addresses, "source", rule.source)
        else:
            most = MAX_DYNAMIC_IP if source.type is SourceType.DYNAMIC_IP else MAX_POOL
            yield from self._pool(key, rule, source.addresses, most)

    def _pool(self, place: Place, rule: NatRule, names: Sequence[str], most: int) -> Iterator[Problem]:
        found = list(self._translated(place, rule, names))
        yield from found
        ranges = self._ranges(names)
        if not found and ranges is not None and size(merge(ranges)) > most:
            yield Problem(place, f"a pool holds at most {most} addresses")

    def _fallback(self, place: Place, rule: NatRule, source: SourceTranslation) -> Iterator[Problem]:
        fallback = source.fallback
        if fallback is None:
            return
        if source.type is not SourceType.DYNAMIC_IP:
            yield Problem(place, f"only {SourceType.DYNAMIC_IP} falls back")
        if (fallback.interface is None) == (fallback.addresses is None):
            yield Problem(place, "needs interface or addresses")
        if fallback.interface is not None and fallback.interface not in self.zone_of:
            yield Problem((*place, "interface"), f"interface '{fallback.interface}' is in no zone")
        if fallback.interface is not None and self._matches_wires(rule):
            yield Problem((*place, "interface"), _NO_ADDRESS)
        if fallback.addresses is not None:
            yield from self._pool((*place, "addresses"), rule, fallback.addresses, MAX_POOL)

    def _matches_wires(self, rule: NatRule) -> bool:
        """Whether a session over a virtual wire may match the rule."""
        to_wire = rule.to_zone in (ANY, *self.wire_zones)
        return bool(self.wire_zones) and to_wire and any(zone in (ANY, *self.wire_zones) for zone in rule.from_zones)

    def _source_shape(self, place: Place, source: SourceTranslation) -> Iterator[Problem]:
        if source.bi_directional and source.type is not SourceType.STATIC_IP:
            yield Problem((*place, "bi-directional"), "only static-ip can be bi-directional")
        if source.port_range is not None and source.type not in _PORT_TYPES:
            yield Problem((*place, "port-range"), f"{source.type} keeps the port")
        if source.interface is not None and source.type not in _PORT_TYPES:
            yield Problem((*place, "interface"), f"{source.type} needs addresses, not an interface")
        elif source.interface is not None and source.addresses is not None:
            yield Problem((*place, "interface"), "give interface or addresses, not both")
        elif source.interface is None and source.addresses is None:
            yield Problem(place, "needs interface or addresses" if source.type in _PORT_TYPES else "needs addresses")

    def _translated(self, place: Place, rule: NatRule, names: Sequence[str]) -> Iterator[Problem]:
        """Translated addresses are known and all of the rule's family."""
        found = list(self._each(place, names, self._address))
        yield from found
        ranges = self._ranges(names)
        if not found and ranges is not None and any(is_ipv4(first) != _is_ipv4(rule.nat_type) for first, _ in ranges):
            yield Problem(place, f"must be {_family(rule.nat_type)} in a rule of nat-type {rule.nat_type}")

    def _mapping(
        self, place: Place, rule: NatRule, names: Sequence[str], side: str, matched: Sequence[str]
    ) -> Iterator[Problem]:
        """Addresses are mapped in order, so both sides are equal in number; one destination may stand for many."""
        found = list(self._translated(place, rule, names))
        yield from found
        to, of = self._ranges(names), self._ranges(matched)
        if found or to is None or of is None or (side == "destination" and size(to) == 1):
            return
        if ANY in matched:
            yield Problem(place, f"addresses are mapped one to one, so {side} cannot be any")
        elif any(size(merge(ranges)) < size(ranges) for ranges in (to, of)):
            yield Problem(place, f"addresses are mapped one to one, but {side} or translation names some twice")
        elif size(to) != size(of):
            yield Problem(place, f"{size(to)} addresses cannot stand for the {size(of)} of {side}")
        elif any(is_ipv4(first) != _is_ipv4(rule.nat_type) for first, _ in of):
            yield Problem(place, f"{side} holds addresses that are not {_family(rule.nat_type)}")

    def _ranges(self, names: Sequence[str]) -> list[Range] | None:
        """Address ranges; None if a name leads nowhere, to an unknown one or back to itself, as is reported there."""
        try:
            return self.objects.ranges(names) or None
        except ValueError:
            return None


def _family(kind: NatType) -> str:
    return "IPv4" if _is_ipv4(kind) else "IPv6"


def _is_ipv4(kind: NatType) -> bool:
    return kind is NatType.IPV4


def _repeated(section: str, names: Sequence[str]) -> Iterator[Problem]:
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            yield Problem((section, i, "name"), f"duplicate name '{name}'")
        seen.add(name)


def _shared_names(section: str, members: Collection[str], groups: Collection[str]) -> Iterator[Problem]:
    for name in groups:
        if name in members:
            yield Problem((section, name), f"'{name}' is also the name of a member")


def _cycles(section: str, groups: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    """Groups that contain themselves, each reported with the way back to it."""
    for group in groups:
        if way := _way_back(group, groups):
            yield Problem((section, group), f"the group contains itself: {' -> '.join(way)}")


def _way_back(group: str, groups: Mapping[str, Sequence[str]]) -> list[str] | None:
    visited: set[str] = set()
    waiting = [[group]]
    while waiting:
        way = waiting.pop()
        for member in groups.get(way[-1], ()):
            if member == group:
                return [*way, group]
            if member not in visited:
                visited.add(member)
                waiting.append([*way, member])
    return None
