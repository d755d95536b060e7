"""What becomes of a first packet: decide() asked about flows, without a kernel and without a packet.

10.1.0.0/24 fd00:1::/64 --- in0 trust  [ firewall ]  untrust out0 --- 10.2.0.0/24 fd00:2::/64, default
                             mgmt0 in no zone | dmz0 dmz --- 10.3.0.0/24
"""

import socket
from dataclasses import dataclass, replace
from typing import Any

import pytest

from dataplane.flow import Decision, FlowKey, Translation
from dataplane.policy.compile import CompiledSecurityRule, compile_policy
from dataplane.policy.model import Config
from dataplane.routes import LOCAL, MAIN, Entry, Fib, Link, Links, Route, address_from_text, is_ipv4, span
from dataplane.sessions import COUNTERS, HOST_ZONE
from dataplane.slowpath import First, Refused, World, decide
from tests.talk import endpoint

TCP, UDP, ICMP = 6, 17, 1
TRUST, UNTRUST, DMZ, OPEN = 1, 2, 3, 4
IN0, OUT0, DMZ0, MGMT0, OPEN0 = 1, 2, 3, 4, 5
HOST_INBOUND, NO_RULE = 90, 91
POOL = "10.2.0.50"

CONFIG: dict[str, Any] = {
    "zones": [
        {"name": "trust", "interfaces": ["in0"]},
        {"name": "untrust", "interfaces": ["out0"]},
        {"name": "dmz", "interfaces": ["dmz0"]},
        {"name": "open", "interfaces": ["open0"], "anti-spoof": False},
    ],
    "services": {
        "http": {"protocol": "tcp", "destination-port": "80"},
        "ssh-outside": {"protocol": "tcp", "destination-port": "2222"},
        "http-8080": {"protocol": "tcp", "destination-port": "8080"},
        "nowhere": {"protocol": "tcp", "destination-port": "81"},
    },
    "nat-rules": [
        {
            "name": "u-turn",
            "from": ["trust"],
            "to": "untrust",
            "destination": ["10.2.0.80"],
            "source-translation": {"type": "dynamic-ip-and-port", "interface": "dmz0", "port-range": "2000-2999"},
            "destination-translation": {"address": "10.3.0.80"},
        },
        {
            "name": "web-in",
            "to": "untrust",
            "destination": ["10.2.0.80"],
            "service": "http",
            "destination-translation": {"address": "10.3.0.80", "port": 8080},
        },
        {
            "name": "ssh-in",
            "to": "untrust",
            "destination": [POOL],
            "service": "ssh-outside",
            "destination-translation": {"address": "10.2.0.1", "port": 22},
        },
        {
            "name": "into-the-void",
            "to": "untrust",
            "destination": ["10.2.0.80"],
            "service": "nowhere",
            "destination-translation": {"address": "192.0.2.1"},
        },
        {"name": "exempt", "from": ["trust"], "to": "untrust", "destination": ["198.51.100.0/24"]},
        {
            "name": "no-address",
            "from": ["dmz"],
            "to": "untrust",
            "source-translation": {"type": "dynamic-ip-and-port", "interface": "gone0"},
        },
        {
            "name": "lan-snat",
            "from": ["trust"],
            "to": "untrust",
            "source-translation": {"type": "dynamic-ip-and-port", "addresses": [POOL]},
        },
    ],
    "security-rules": [
        {"name": "translated-address", "to": ["dmz"], "destination": ["10.3.0.80"], "action": "drop"},
        {"name": "translated-port", "to": ["dmz"], "service": ["http-8080"], "action": "drop"},
        {"name": "original-zone", "to": ["untrust"], "destination": ["10.2.0.80"], "action": "drop"},
        {"name": "web", "to": ["dmz"], "destination": ["10.2.0.80"], "action": "allow", "log-end": False},
        {"name": "no-telnet", "to": ["untrust"], "application": ["telnet"], "action": "reset-both"},
        {"name": "out", "from": ["trust", "dmz"], "to": ["untrust"], "action": "allow"},
    ],
    "host-inbound": {"trust": ["ping", "ssh", "dhcp"], "untrust": ["ssh"]},
}
INTERFACES = {
    IN0: ("in0", "10.1.0.1/24", "fd00:1::1/64", "fe80::1/64"),
    OUT0: ("out0", "10.2.0.1/24", "fd00:2::1/64"),
    DMZ0: ("dmz0", "10.3.0.1/24"),
    MGMT0: ("mgmt0", "10.9.0.1/24"),
    OPEN0: ("open0", "10.4.0.1/24"),
}


def entry(prefix: str, kind: str, ifindex: int, table: int = MAIN) -> Entry:
    text, _, length = prefix.partition("/")
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return Entry(family, table, address_from_text(text), 0, Route(kind, ifindex, None, int(length)))


def interface(ifindex: int, name: str, *prefixes: str) -> tuple[Link, list[Entry]]:
    """A link and the routes that the kernel makes for its addresses."""
    rows, addresses, subnets = [], [], []
    for prefix in prefixes:
        text, _, length = prefix.partition("/")
        address = address_from_text(text)
        addresses.append(address)
        subnets.append(span(address, int(length)))
        first, last = subnets[-1]
        family = socket.AF_INET if is_ipv4(address) else socket.AF_INET6
        bits = 32 if is_ipv4(address) else 128
        rows.append(Entry(family, MAIN, first, 0, Route("unicast", ifindex, None, int(length))))
        rows.append(Entry(family, LOCAL, address, 0, Route("local", ifindex, None, bits)))
        if is_ipv4(address):
            rows.append(Entry(family, LOCAL, last, 0, Route("broadcast", ifindex, None, bits)))
    return Link(name, ifindex, True, 1500, tuple(addresses), tuple(subnets)), rows


def make_world(**changes: Any) -> World:
    """The world of the drawing; `changes` replace parts of the configuration."""
    policy = compile_policy(Config.model_validate(CONFIG | changes))
    made = [interface(ifindex, *described) for ifindex, described in INTERFACES.items()]
    rows = [row for _, rows in made for row in rows]
    rows += [entry("0.0.0.0/0", "unicast", OUT0), entry("192.0.2.0/24", "unreachable", 0)]
    rows += [entry(f"{POOL}/32", "local", OUT0, LOCAL)]  # as the kernel has it while we answer for the pool
    return World(
        policy=policy,
        fib=Fib(rows),
        links=Links(link for link, _ in made),
        zone_by_interface={IN0: TRUST, OUT0: UNTRUST, DMZ0: DMZ, OPEN0: OPEN},
        rule_numbers=tuple(range(len(policy.security_rules))),
        nat_rule_numbers=tuple(range(10, 10 + len(policy.nat_rules))),
        application_rows={name: row for row, name in enumerate(policy.applications.by_name)},
        host_inbound_rule=HOST_INBOUND,
        no_rule=NO_RULE,
    )


WORLD = make_world()
ZONE_INTERFACES = {TRUST: IN0, UNTRUST: OUT0, DMZ: DMZ0, OPEN: OPEN0, HOST_ZONE: 0}


@dataclass(frozen=True)
class Decided:
    """An outcome in words."""

    decision: Decision
    matched: CompiledSecurityRule | None

    @property
    def rule(self) -> str | None:
        """The security rule that was asked and said so."""
        return self.matched.name if self.matched else None

    @property
    def nat_rule(self) -> str | None:
        number = self.decision.nat_rule
        return None if number is None else WORLD.policy.nat_rules[number - 10].name

    @property
    def application(self) -> str:
        return list(WORLD.policy.applications.by_name)[self.decision.application]


def first(source: str, destination: str, proto: int = TCP, zone: int = TRUST, echo: bool = False) -> First:
    (src, sport), (dst, dport) = endpoint(source), endpoint(destination)
    family = 6 if ":" in src else 4
    key = FlowKey(address_from_text(src), address_from_text(dst), sport, dport, proto, zone, family)
    return First(key, ZONE_INTERFACES[zone], OUT0 if zone == HOST_ZONE else 0, echo)


def decided(source: str, destination: str, proto: int = TCP, zone: int = TRUST, **more: Any) -> Decided:
    world = more.pop("world", WORLD)
    return Decided(*decide(first(source, destination, proto, zone, **more), world))


def refused(source: str, destination: str, proto: int = TCP, zone: int = TRUST) -> str:
    """The name of the counter under which the packet is refused without a session."""
    with pytest.raises(Refused) as refusal:
        decide(first(source, destination, proto, zone), WORLD)
    return COUNTERS[refusal.value.counter]


def address(text: str) -> int:
    return address_from_text(text)


# ---- through the firewall ----


def test_an_allowed_flow_is_translated_and_shows_both_rules():
    """Everything that the session needs stands in one value."""
    outcome = decided("10.1.0.2:4000", "8.8.8.8:443")
    assert (outcome.rule, outcome.nat_rule, outcome.application) == ("out", "lan-snat", "ssl")
    decision = outcome.decision
    assert not decision.discard
    assert decision.translation == Translation(source=address(POOL), ports=(1024, 65535))
    assert (decision.ingress, decision.egress, decision.egress_zone) == (IN0, OUT0, UNTRUST)
    assert (decision.log_end, decision.host) == (True, False)


def test_a_denied_flow_is_a_discard_session_without_translation():
    """No port of a pool is spent on a flow that goes nowhere; the NAT rule that matched is still named."""
    outcome = decided("10.1.0.2:4000", "8.8.8.8:23")
    assert (outcome.rule, outcome.nat_rule) == ("no-telnet", "lan-snat")
    assert outcome.decision.discard
    assert outcome.decision.translation is None


def test_security_sees_the_original_address_and_the_zone_behind_the_translation():
    """PAN-OS: pre-NAT address, pre-NAT port, post-NAT zone."""
    outcome = decided("8.8.8.8:4000", "10.2.0.80:80", zone=UNTRUST)
    assert (outcome.rule, outcome.nat_rule, outcome.application) == ("web", "web-in", "web-browsing")
    assert outcome.decision.translation == Translation(destination=address("10.3.0.80"), destination_port=8080)
    assert (outcome.decision.egress, outcome.decision.egress_zone) == (DMZ0, DMZ)
    assert not outcome.decision.log_end


def test_without_its_translation_the_same_destination_is_in_its_own_zone():
    """The NAT rule's service does not match, so neither does the rule for the zone behind it."""
    assert decided("8.8.8.8:4000", "10.2.0.80:443", zone=UNTRUST).rule == "original-zone"


def test_u_turn_translates_both_sides():
    """An inside client reaches the server by its outside address: source and destination change."""
    outcome = decided("10.1.0.2:4000", "10.2.0.80:80")
    assert (outcome.rule, outcome.nat_rule) == ("web", "u-turn")
    assert outcome.decision.translation == Translation(
        source=address("10.3.0.1"), ports=(2000, 2999), destination=address("10.3.0.80")
    )


def test_a_no_nat_rule_counts_as_the_match():
    """It is named, and the rules below it are not asked."""
    outcome = decided("10.1.0.2:4000", "198.51.100.9:443")
    assert (outcome.rule, outcome.nat_rule, outcome.decision.translation) == ("out", "exempt", None)


@pytest.mark.parametrize(
    ("source", "destination", "zone", "rule", "discard"),
    [
        ("10.1.0.2:1", "10.1.0.3:80", TRUST, "intrazone-default", False),
        ("10.3.0.2:1", "10.1.0.3:80", DMZ, "interzone-default", True),
        ("[fd00:1::2]:1", "[fd00:1::3]:80", TRUST, "intrazone-default", False),
        ("[fd00:2::2]:1", "[fd00:1::3]:80", UNTRUST, "interzone-default", True),
    ],
)
def test_the_two_defaults_decide_what_no_rule_matches(source, destination, zone, rule, discard):
    """Inside a zone traffic is allowed, between zones denied, and neither is logged."""
    outcome = decided(source, destination, zone=zone)
    assert (outcome.rule, outcome.decision.discard, outcome.decision.log_end) == (rule, discard, False)


def test_an_ipv4_nat_rule_leaves_ipv6_alone():
    """nat-type ipv4 never matches the other family, `any` or not."""
    world = make_world(**{"security-rules": [{"name": "all", "action": "allow"}]})
    outcome = decided("[fd00:1::2]:4000", "[fd00:2::2]:443", world=world)
    assert (outcome.rule, outcome.nat_rule, outcome.decision.translation) == ("all", None, None)


def test_an_interface_without_an_address_has_no_pool():
    """The session is refused and counted, not sent out untranslated."""
    assert refused("10.3.0.2:4000", "8.8.8.8:443", zone=DMZ) == "nat_dipp_alloc_failure"


@pytest.mark.parametrize("echo", [True, False])
def test_ping_is_an_application_and_other_icmp_is_icmp(echo):
    """Both have port 0; only the type tells them apart."""
    assert decided("10.1.0.2", "8.8.8.8", ICMP, echo=echo).application == ("ping" if echo else "icmp")


# ---- over a virtual wire ----

WIRED = replace(make_world(), peers={IN0: OUT0, OUT0: IN0})


def test_a_wire_leads_to_its_other_end_whatever_the_addresses_are():
    """No route is asked and no source is false; nothing is for the firewall, not even its own address."""
    for source, destination in (("192.0.2.7:1", "10.1.0.1:22"), ("10.2.0.1:1", "192.0.2.9:80")):
        outcome = decided(source, destination, world=WIRED)
        assert (outcome.rule, outcome.decision.host) == ("out", False)
        assert (outcome.decision.ingress, outcome.decision.egress) == (IN0, OUT0)
        assert outcome.decision.egress_zone == UNTRUST


def test_the_zone_of_a_nat_rule_is_that_of_the_other_end():
    """For the original destination and for the translated one, which is in no other place."""
    outcome = decided("10.1.0.2:4000", "10.1.0.9:443", world=WIRED)
    assert (outcome.nat_rule, outcome.decision.translation) == (
        "lan-snat",
        Translation(source=address(POOL), ports=(1024, 65535)),
    )
    outcome = decided("8.8.8.8:4000", "10.2.0.80:80", zone=UNTRUST, world=WIRED)
    assert (outcome.nat_rule, outcome.decision.egress) == (None, IN0)


# ---- in whose name a refusal is answered ----


@pytest.mark.parametrize(
    ("ingress", "ipv4", "expected"),
    [(IN0, True, "10.1.0.1"), (IN0, False, "fd00:1::1"), (OUT0, False, "fd00:2::1")],
)
def test_a_refusal_is_answered_by_the_interface_that_it_came_to(ingress, ipv4, expected):
    """In the family of the refused packet, and by no link-local address."""
    assert WORLD.address_at(ingress, ipv4) == address(expected)


def test_an_interface_without_an_address_answers_nothing():
    """Of the family, or of either (a port of a virtual wire); nor does one that is gone."""
    port, _ = interface(9, "port0")
    world = replace(WORLD, links=Links([*WORLD.links, port]))
    assert WORLD.address_at(DMZ0, False) is None
    assert [world.address_at(ifindex, True) for ifindex in (9, 10)] == [None, None]


# ---- no way ----


@pytest.mark.parametrize("destination", ["192.0.2.7:80", "10.9.0.5:80", "[2001:db8::1]:80"])
def test_no_way_to_the_destination(destination):
    """A route that refuses, an interface in no zone, no route at all."""
    source = "[fd00:1::2]:1" if "[" in destination else "10.1.0.2:1"
    assert refused(source, destination) == "flow_fwd_l3_noroute"


def test_no_way_to_the_translated_destination():
    """The second lookup counts: the original destination had a route."""
    assert refused("8.8.8.8:4000", "10.2.0.80:81", zone=UNTRUST) == "flow_fwd_l3_noroute"


# ---- anti-spoofing ----


@pytest.mark.parametrize(
    ("source", "zone"),
    [
        ("8.8.8.8:1", TRUST),
        ("10.1.0.2:1", UNTRUST),
        ("10.3.0.2:1", TRUST),
        ("10.9.0.5:1", TRUST),
        ("10.1.0.1:1", TRUST),
        ("10.2.0.1:1", TRUST),
        (f"{POOL}:1", UNTRUST),
        ("10.1.0.255:1", TRUST),
        ("224.0.0.5:1", TRUST),
        ("255.255.255.255:1", TRUST),
        ("[fd00:2::2]:1", TRUST),
        ("[fd00:1::1]:1", TRUST),
        ("[ff02::1]:1", TRUST),
    ],
)
def test_a_source_that_cannot_be_there_is_a_spoof(source, zone):
    """Another zone's address, no zone's, one of our own, a translated one, a broadcast or multicast group."""
    destination = "[fd00:2::9]:80" if "[" in source else "10.2.0.9:80"
    assert refused(source, destination, zone=zone) == "flow_ip_spoof"


def test_anti_spoofing_is_switched_off_by_zone():
    """Another zone's addresses may come from there; our own never do."""
    assert decided("10.1.0.2:1", "10.2.0.9:80", zone=OPEN).rule == "interzone-default"
    assert refused("10.1.0.1:1", "10.2.0.9:80", zone=OPEN) == "flow_ip_spoof"


# ---- the firewall itself ----


@pytest.mark.parametrize(
    ("source", "destination", "proto", "zone", "allowed"),
    [
        ("10.1.0.2:1", "10.1.0.1:22", TCP, TRUST, True),
        ("10.1.0.2:1", "10.2.0.1:22", TCP, TRUST, True),
        ("10.1.0.2:1", "10.1.0.1:23", TCP, TRUST, False),
        ("10.1.0.2:1", "10.1.0.1:22", UDP, TRUST, False),
        ("10.1.0.2", "10.1.0.1", ICMP, TRUST, True),
        ("10.2.0.2", "10.2.0.1", ICMP, UNTRUST, False),
        ("10.2.0.2:1", "10.2.0.1:22", TCP, UNTRUST, True),
        ("10.3.0.2:1", "10.3.0.1:22", TCP, DMZ, False),
        ("[fd00:1::2]:1", "[fd00:1::1]:22", TCP, TRUST, True),
        ("[fe80::2]:1", "[fe80::1]:22", TCP, TRUST, True),
        ("0.0.0.0:68", "255.255.255.255:67", UDP, TRUST, True),
        ("10.1.0.2:68", "10.1.0.255:67", UDP, TRUST, True),
        ("10.1.0.2:1", "224.0.0.5:9", UDP, TRUST, False),
        ("[fe80::2]:546", "[ff02::1:2]:547", UDP, TRUST, True),
        ("10.1.0.2:1", f"{POOL}:22", TCP, TRUST, False),
    ],
)
def test_host_inbound_decides_what_reaches_the_firewall(source, destination, proto, zone, allowed):
    """By the zone that the packet comes from, on any address of ours; a NAT pool's address is not one of them."""
    outcome = decided(source, destination, proto, zone)
    decision = outcome.decision
    assert (outcome.matched, decision.rule) == (None, HOST_INBOUND)
    assert (decision.discard, decision.host) == (not allowed, True)
    assert (decision.egress, decision.egress_zone) == (0, HOST_ZONE)


def test_a_destination_translation_may_end_on_the_firewall():
    """host-inbound sees the translated port, and the zone that it came from."""
    outcome = decided("8.8.8.8:4000", f"{POOL}:2222", zone=UNTRUST)
    assert (outcome.nat_rule, outcome.decision.discard, outcome.decision.host) == ("ssh-in", False, True)
    assert outcome.decision.translation == Translation(destination=address("10.2.0.1"), destination_port=22)
    assert decided("10.3.0.2:4000", f"{POOL}:2222", zone=DMZ).decision.discard


def test_the_firewalls_own_traffic_needs_no_rule():
    """Not even where a rule would deny it; it has a session without a name for its rule."""
    outcome = decided("10.2.0.1:4000", "8.8.8.8:23", zone=HOST_ZONE)
    decision = outcome.decision
    assert (outcome.matched, outcome.nat_rule, outcome.application) == (None, None, "telnet")
    assert (decision.discard, decision.host, decision.rule, decision.translation) == (False, True, NO_RULE, None)
    assert (decision.ingress, decision.egress, decision.egress_zone) == (0, OUT0, UNTRUST)


def test_own_traffic_through_an_unzoned_interface_has_no_zone():
    """The management interface is none of our business, but a packet of ours is never refused."""
    own = first("10.9.0.1:4000", "10.9.0.5:443", zone=HOST_ZONE)._replace(egress=MGMT0)
    decision, _ = decide(own, WORLD)
    assert (decision.discard, decision.egress_zone) == (False, 0)
