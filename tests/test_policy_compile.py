"""The compiled policy decides as a person would who reads the rules from the top."""

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.policy.compile import CompiledPolicy, compile_policy
from dataplane.policy.load import parse
from dataplane.policy.model import Action, Config, NatRule, SecurityRule

CONFIG = Path(__file__).parent.parent / "config"
ZONES = """\
zones:
  - {name: trust, interfaces: [in0, in1]}
  - {name: untrust, interfaces: [out0], anti-spoof: false}
"""
TRUST, UNTRUST = 1, 2
Zones = tuple[int, int]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def number(text: str) -> int:
    address = ipaddress.ip_address(text)
    return int(address) if address.version == 6 else 0xFFFF << 32 | int(address)


def policy(more: str = "") -> CompiledPolicy:
    return compile_policy(parse(ZONES + more, "test.yaml"))


def ask(
    running: CompiledPolicy, src: str, dst: str, proto: int, dport: int, zones: Zones = (TRUST, UNTRUST), app: str = ""
) -> str:
    """Name of the security rule that decides."""
    application = app or running.application(proto, dport).name
    index = running.security_rule(*zones, number(src), number(dst), proto, dport, application)
    return running.security_rules[index].name


def ask_nat(
    running: CompiledPolicy, src: str, dst: str, proto: int, dport: int, zones: Zones = (TRUST, UNTRUST)
) -> str | None:
    """Name of the NAT rule that decides."""
    index = running.nat_rule(*zones, number(src), number(dst), proto, dport)
    return None if index is None else running.nat_rules[index].name


# --- the naive reading: rule by rule, with the standard library's addresses ---

_ADDRESSES = {"lan": "10.0.0.0/24", "host": "10.0.0.7", "span": "10.0.0.200-10.0.1.9", "six": "2001:db8::/64"}
_GROUPS = {"inner": ["host", "six"], "outer": ["inner", "span"]}
_SERVICES = {"web": ("tcp", ["80", "8080-8081"]), "names": ("udp", ["53"]), "low": ("tcp", ["1-1023"])}
_SERVICE_GROUPS = {"both": ["web", "names"]}
_DEFAULT_PORTS = {"dns": {(6, 53), (17, 53)}, "web-browsing": {(6, 80), (6, 8080)}, "ping": {(1, 0), (58, 0)}}


def in_address(name: str, address: Address) -> bool:
    if name in _GROUPS:
        return any(in_address(member, address) for member in _GROUPS[name])
    text = _ADDRESSES.get(name, name)
    if text == "any":
        return True
    if "-" in text:
        first, last = map(ipaddress.ip_address, text.split("-"))
        return first.version == address.version and int(first) <= int(address) <= int(last)
    return address in ipaddress.ip_network(text)


def in_service(name: str, proto: int, dport: int) -> bool:
    if name in _SERVICE_GROUPS:
        return any(in_service(member, proto, dport) for member in _SERVICE_GROUPS[name])
    if name == "any":
        return True
    protocol, ports = _SERVICES[name]
    bounds = [list(map(int, text.split("-"))) for text in ports]
    return proto == {"tcp": 6, "udp": 17}[protocol] and any(b[0] <= dport <= b[-1] for b in bounds)


def matches(rule: SecurityRule | NatRule, src: Address, dst: Address, from_zone: str) -> bool:
    return (
        not rule.disabled
        and ("any" in rule.from_zones or from_zone in rule.from_zones)
        and any(in_address(name, src) for name in rule.source) != getattr(rule, "negate_source", False)
        and any(in_address(name, dst) for name in rule.destination) != getattr(rule, "negate_destination", False)
    )


def naive_security(
    config: Config, src: Address, dst: Address, proto: int, dport: int, zones: tuple[str, str], app: str
) -> str:
    for rule in config.security_rules:
        if not matches(rule, src, dst, zones[0]) or not {"any", zones[1]} & set(rule.to_zones):
            continue
        if not {"any", app} & set(rule.application):
            continue
        if rule.service == ("application-default",):
            if (proto, dport) in _DEFAULT_PORTS.get(app, ()):
                return rule.name
        elif any(in_service(name, proto, dport) for name in rule.service):
            return rule.name
    return "intrazone-default" if zones[0] == zones[1] else "interzone-default"


def naive_nat(config: Config, src: Address, dst: Address, proto: int, dport: int, zones: tuple[str, str]) -> str | None:
    for rule in config.nat_rules:
        if rule.disabled or rule.to_zone not in ("any", zones[1]):
            continue
        family = 4 if rule.nat_type == "ipv4" else 6
        service = any(in_service(name, proto, dport) for name in rule.service)
        if dst.version == family and service and matches(rule, src, dst, zones[0]):
            return rule.name
        if rule.source_translation and dst == ipaddress.ip_address("192.0.2.7"):
            return rule.name
    return None


_zones = st.just(["any"]) | st.lists(st.sampled_from(["trust", "untrust"]), min_size=1, max_size=2)
_named = ["lan", "host", "span", "six", "inner", "outer", "10.0.0.128/25", "::/0", "0.0.0.0/0", "2001:db8::5"]
_addresses = st.just(["any"]) | st.lists(st.sampled_from(_named), min_size=1, max_size=3)
_services = st.just(["any"]) | st.lists(st.sampled_from(["web", "names", "low", "both"]), min_size=1, max_size=2)
_apps = st.just(["any"]) | st.lists(st.sampled_from([*_DEFAULT_PORTS, "unknown-tcp"]), min_size=1, max_size=2)


@st.composite
def security_rules(draw):
    source, destination = draw(_addresses), draw(_addresses)
    return {
        "from": draw(_zones),
        "to": draw(_zones),
        "source": source,
        "negate-source": source != ["any"] and draw(st.booleans()),
        "destination": destination,
        "negate-destination": destination != ["any"] and draw(st.booleans()),
        "application": draw(_apps),
        "service": draw(_services | st.just(["application-default"])),
        "action": draw(st.sampled_from([action.value for action in Action])),
        "disabled": draw(st.integers(0, 4)) == 0,
    }


@st.composite
def nat_rules(draw):
    rule = {
        "nat-type": draw(st.sampled_from(["ipv4", "ipv6"])),
        "from": draw(_zones),
        "to": draw(st.sampled_from(["any", "trust", "untrust"])),
        "source": draw(_addresses),
        "destination": draw(_addresses),
        "service": draw(_services),
        "disabled": draw(st.integers(0, 4)) == 0,
    }
    if draw(st.integers(0, 3)) == 0:
        translation = {"type": "static-ip", "addresses": ["192.0.2.7"], "bi-directional": True}
        rule |= {"nat-type": "ipv4", "source": ["host"], "source-translation": translation}
    return rule


def configuration(security, nat) -> Config:
    services = {name: {"protocol": proto, "destination-port": ports} for name, (proto, ports) in _SERVICES.items()}
    return Config.model_validate(
        {
            "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
            "addresses": _ADDRESSES,
            "address-groups": _GROUPS,
            "services": services,
            "service-groups": _SERVICE_GROUPS,
            "security-rules": [{"name": f"s{i}", **rule} for i, rule in enumerate(security)],
            "nat-rules": [{"name": f"n{i}", **rule} for i, rule in enumerate(nat)],
        }
    )


_v4 = ["0.0.0.0", "9.255.255.255", "10.0.0.0", "10.0.0.7", "10.0.0.127", "10.0.0.128", "10.0.0.200", "10.0.0.255"]
_v4 += ["10.0.1.0", "10.0.1.9", "10.0.1.10", "192.0.2.7", "255.255.255.255"]
_v6 = [
    "::",
    "::fffe:ffff:ffff",
    "::1:0:0:0",
    "2001:db7:ffff::",
    "2001:db8::",
    "2001:db8::5",
    "2001:db8:0:1::",
    "ffff::",
]
_pairs = st.sampled_from([_v4, _v6]).flatmap(lambda family: st.tuples(st.sampled_from(family), st.sampled_from(family)))
_ports = st.tuples(st.sampled_from([6, 17]), st.sampled_from([0, 1, 53, 80, 1023, 1024, 8080, 8081, 8082, 65535]))
_packets = st.tuples(
    _pairs,
    _ports | st.sampled_from([(1, 0), (58, 0), (47, 0)]),
    st.tuples(st.sampled_from(["trust", "untrust"]), st.sampled_from(["trust", "untrust"])),
    st.sampled_from([*_DEFAULT_PORTS, "unknown-tcp", "nobody-knows"]),
)


@settings(deadline=None)  # the first example pays for building the strategies
@given(st.lists(security_rules(), max_size=12), st.lists(_packets, min_size=1, max_size=20))
def test_security_decisions_equal_the_first_match_from_the_top(rules, packets):
    """Bit sets over intervals are only a faster way of reading the rules in order."""
    config = configuration(rules, [])
    running = compile_policy(config)
    for (src, dst), (proto, dport), zones, app in packets:
        ids = running.zone_ids[zones[0]], running.zone_ids[zones[1]]
        expected = naive_security(
            config, ipaddress.ip_address(src), ipaddress.ip_address(dst), proto, dport, zones, app
        )
        assert ask(running, src, dst, proto, dport, ids, app) == expected


@settings(deadline=None)  # the first example pays for building the strategies
@given(st.lists(nat_rules(), max_size=12), st.lists(_packets, min_size=1, max_size=20))
def test_nat_decisions_equal_the_first_match_from_the_top(rules, packets):
    """Families stay apart, and the reverse of a bi-directional rule stands right behind it."""
    config = configuration([], rules)
    running = compile_policy(config)
    for (src, dst), (proto, dport), zones, _ in packets:
        ids = running.zone_ids[zones[0]], running.zone_ids[zones[1]]
        expected = naive_nat(config, ipaddress.ip_address(src), ipaddress.ip_address(dst), proto, dport, zones)
        assert ask_nat(running, src, dst, proto, dport, ids) == expected


# --- what an operator relies on ---


@pytest.mark.parametrize("path", sorted(CONFIG.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_we_ship_compiles(path):
    """Each rule can be shown as well."""
    running = compile_policy(parse(path.read_text(), path.name))
    shown = [running.security_rule_view(i)["name"] for i in range(len(running.security_rules))]
    assert shown[-2:] == ["intrazone-default", "interzone-default"]
    assert [running.nat_rule_view(i)["name"] for i in range(len(running.nat_rules))] == [
        r.name for r in running.nat_rules
    ]


def test_zones_are_numbered_in_the_order_of_the_file():
    """Zone 0 is no zone."""
    running = policy()
    assert running.zone_ids == {"trust": 1, "untrust": 2}
    assert running.zone_names == ("", "trust", "untrust")
    assert running.interface_zone == {"in0": 1, "in1": 1, "out0": 2}
    assert running.anti_spoof == (False, True, False)


def test_without_rules_a_zone_trusts_itself_and_nobody_else():
    """The two defaults, neither of which logs."""
    running = policy()
    assert ask(running, "10.0.0.1", "10.0.0.2", 6, 80, (TRUST, TRUST)) == "intrazone-default"
    assert ask(running, "10.0.0.1", "10.0.0.2", 6, 80) == "interzone-default"
    assert [(r.action, r.log_start, r.log_end, r.kind) for r in running.security_rules] == [
        (Action.ALLOW, False, False, "intrazone"),
        (Action.DENY, False, False, "interzone"),
    ]


def test_a_default_rule_can_be_made_to_log():
    """The rule of that name is the default, not one more rule."""
    running = policy("security-rules: [{name: interzone-default, action: drop, log-start: true}]")
    assert [(r.name, r.action, r.log_start) for r in running.security_rules] == [
        ("intrazone-default", Action.ALLOW, False),
        ("interzone-default", Action.DROP, True),
    ]
    assert running.security_rule_view(1)["index"] is None


def test_any_ipv6_prefix_leaves_ipv4_alone():
    """::/0 spans the place where IPv4 is mapped, and still does not match it."""
    running = policy("security-rules: [{name: six, action: allow, destination: ['::/0']}]")
    assert ask(running, "2001:db8::1", "2001:db8::2", 6, 80) == "six"
    assert ask(running, "10.0.0.1", "10.0.0.2", 6, 80) == "interzone-default"


def test_application_default_admits_an_application_on_its_own_ports_only():
    """ssh on another port is no longer what the rule meant."""
    running = policy("security-rules: [{name: r, action: allow, application: [ssh], service: [application-default]}]")
    assert ask(running, "10.0.0.1", "10.0.0.2", 6, 22) == "r"
    assert ask(running, "10.0.0.1", "10.0.0.2", 6, 2222, app="ssh") == "interzone-default"
    assert ask(running, "10.0.0.1", "10.0.0.2", 17, 22) == "interzone-default"


def test_a_service_of_tcp_never_matches_a_ping():
    """Only `any` and the application's own default reach protocols without ports."""
    running = policy(
        "services: {all-tcp: {protocol: tcp, destination-port: 1-65535}}\n"
        "security-rules:\n"
        "  - {name: tcp, action: allow, service: [all-tcp]}\n"
        "  - {name: ping, action: allow, application: [ping], service: [application-default]}\n"
    )
    assert ask(running, "10.0.0.1", "10.0.0.2", 1, 0) == "ping"
    assert ask(running, "2001:db8::1", "2001:db8::2", 58, 0) == "ping"
    assert ask(running, "10.0.0.1", "10.0.0.2", 47, 0) == "interzone-default"


def test_a_static_range_is_mapped_by_offset_and_back():
    """The tenth server has the tenth address, in both directions."""
    running = compile_policy(parse((CONFIG / "examples/static-nat.yaml").read_text(), "static-nat.yaml"))
    forward, reverse = running.nat_rules
    assert forward.source_map is not None
    assert reverse.destination_map is not None
    assert forward.source_map.translate(number("10.1.0.106")) == number("192.0.2.106")
    assert reverse.destination_map.translate(number("192.0.2.106")) == number("10.1.0.106")
    assert ask_nat(running, "198.51.100.1", "192.0.2.111", 6, 443, (UNTRUST, UNTRUST)) == "servers-static"
    assert ask_nat(running, "198.51.100.1", "192.0.2.112", 6, 443, (UNTRUST, UNTRUST)) is None
    assert running.nat_rule_view(1) == {
        "name": "servers-static",
        "index": 1,
        "nat_type": "ipv4",
        "from": ["any"],
        "source": ["any"],
        "to": "untrust",
        "to_interface": "",
        "destination": ["192.0.2.96/28"],
        "service": ["any/any/any"],
        "translate_to": "dst: 10.1.0.96/28",
        "disabled": False,
    }


def test_ranges_cut_differently_are_still_mapped_in_order():
    """Two lists of five addresses, whatever their pieces."""
    running = policy(
        "nat-rules:\n"
        "  - name: n\n"
        "    destination: [192.0.2.1, 192.0.2.8/30]\n"
        "    destination-translation: {address: shelf}\n"
        "addresses: {a: 10.0.0.4/31, b: 10.0.0.9-10.0.0.11}\n"
        "address-groups: {shelf: [b, a]}\n"
    )
    mapping = running.nat_rules[0].destination_map
    assert mapping is not None
    original = ["192.0.2.1", "192.0.2.8", "192.0.2.9", "192.0.2.10", "192.0.2.11"]
    translated = ["10.0.0.9", "10.0.0.10", "10.0.0.11", "10.0.0.4", "10.0.0.5"]
    assert [mapping.translate(number(text)) for text in original] == [number(text) for text in translated]


def test_one_server_may_stand_for_many_destinations():
    """A single translated address takes whatever the rule matches."""
    running = policy(
        "nat-rules: [{name: n, destination: [192.0.2.0/24], destination-translation: {address: 10.0.0.1}}]"
    )
    mapping = running.nat_rules[0].destination_map
    assert mapping is not None
    assert {mapping.translate(number(text)) for text in ("192.0.2.0", "192.0.2.255")} == {number("10.0.0.1")}


def test_a_rule_without_translation_exempts():
    """No-NAT is a match, so that the rules below it are not tried."""
    running = policy(
        "nat-rules:\n"
        "  - {name: exempt, to: untrust, destination: [198.51.100.0/24]}\n"
        "  - {name: snat, to: untrust, source-translation: {type: dynamic-ip-and-port, interface: out0}}\n"
    )
    assert ask_nat(running, "10.0.0.1", "198.51.100.9", 6, 80) == "exempt"
    assert ask_nat(running, "10.0.0.1", "198.51.101.9", 6, 80) == "snat"
    assert [rule.translates for rule in running.nat_rules] == [False, True]


def test_a_pool_is_counted_and_numbered_across_its_ranges():
    """The address follows from a position, whatever the pieces of the pool; a disabled rule has none."""
    running = policy(
        "nat-rules:\n"
        "  - name: n\n"
        "    source-translation:\n"
        "      {type: dynamic-ip-and-port, addresses: [192.0.2.8/31, 192.0.2.1], port-range: 2000-2999}\n"
        "  - {name: off, disabled: true, source-translation: {type: dynamic-ip-and-port, addresses: [192.0.2.99]}}\n"
        "  - {name: own, source-translation: {type: dynamic-ip-and-port, interface: out0}}\n"
    )
    pool, own = running.pools
    assert (pool.rule, pool.rule_index, pool.interface, pool.ports, pool.size) == ("n", 0, None, (2000, 2999), 3)
    assert [pool.address(i) for i in range(3)] == [number(f"192.0.2.{last}") for last in (1, 8, 9)]
    assert (own.interface, own.addresses, own.ports) == ("out0", (), (1024, 65535))


def test_the_firewall_answers_for_translated_addresses():
    """Pools, static addresses and the outside of a destination rule; never for every address there is."""
    running = policy(
        "nat-rules:\n"
        "  - {name: a, source-translation: {type: dynamic-ip-and-port, addresses: [192.0.2.8/30]}}\n"
        "  - {name: b, destination: [192.0.2.80], destination-translation: {address: 10.0.0.1}}\n"
        "  - {name: c, destination-translation: {address: 10.0.0.2}}\n"
    )
    assert running.answered == (
        (number("192.0.2.8"), number("192.0.2.11")),
        (number("192.0.2.80"), number("192.0.2.80")),
    )


def test_host_inbound_opens_what_a_zone_names_and_nothing_else():
    """Words, services and groups; a service of one's own takes the place of a word."""
    running = policy(
        "services: {ssh: {protocol: tcp, destination-port: 2222}, api: {protocol: tcp, destination-port: 8443}}\n"
        "service-groups: {management: [ssh, api]}\n"
        "host-inbound: {trust: [ping, dns, management]}\n"
    )
    open_ports = [(1, 0), (58, 0), (6, 53), (17, 53), (6, 2222), (6, 8443)]
    assert all(running.host_inbound(TRUST, *port) for port in open_ports)
    assert not any(running.host_inbound(TRUST, *port) for port in [(6, 22), (17, 2222), (6, 80), (47, 0)])
    assert not any(running.host_inbound(UNTRUST, *port) for port in open_ports)
    assert policy("host-inbound: {untrust: [any]}").host_inbound(UNTRUST, 47, 0)


def test_a_shown_rule_has_its_names_resolved():
    """What is printed is what is matched."""
    running = policy(
        "addresses: {lan: 10.0.0.0/24, web: 10.0.1.80}\n"
        "address-groups: {all: [lan, web]}\n"
        "services: {alt: {protocol: tcp, destination-port: [8000, 9000-9010]}}\n"
        "security-rules:\n"
        "  - {name: a, from: [trust], to: [untrust], source: [all], action: allow, service: [alt]}\n"
        "  - {name: b, application: [dns, ping], service: [application-default], action: drop, disabled: true}\n"
        "  - {name: c, service: [application-default], action: deny}\n"
    )
    assert running.security_rule_view(0) == {
        "name": "a",
        "index": 1,
        "from": ["trust"],
        "source": ["10.0.0.0/24", "10.0.1.80"],
        "negate_source": False,
        "to": ["untrust"],
        "destination": ["any"],
        "negate_destination": False,
        "application_service": ["any/tcp/any/8000", "any/tcp/any/9000-9010"],
        "action": "allow",
        "icmp_unreachable": False,
        "log_start": False,
        "log_end": True,
        "disabled": False,
        "type": None,
    }
    dns_and_ping = ["dns/udp/any/53", "dns/tcp/any/53", "ping/icmp/any/any", "ping/ipv6-icmp/any/any"]
    assert running.security_rule_view(1)["application_service"] == dns_and_ping
    assert running.security_rule_view(2)["application_service"] == ["any/any/any/app-default"]


def test_both_translations_of_a_rule_are_shown():
    """The U-turn of the examples, in one line."""
    running = compile_policy(parse((CONFIG / "examples/u-turn.yaml").read_text(), "u-turn.yaml"))
    assert running.nat_rule_view(0)["translate_to"] == "src: in0 (dynamic-ip-and-port); dst: 10.1.0.99"


def test_ten_thousand_rules_decide_like_ten():
    """The first match is found wherever it stands."""
    rules = [{"source": [f"10.{i >> 8}.{i & 255}.0/24"], "action": "allow"} for i in range(10_000)]
    running = compile_policy(configuration(rules, []))
    assert ask(running, "10.0.0.9", "8.8.8.8", 6, 80) == "s0"
    assert ask(running, "10.39.15.9", "8.8.8.8", 6, 80) == "s9999"
    assert ask(running, "10.39.16.9", "8.8.8.8", 6, 80) == "interzone-default"
