"""A configuration is accepted as it is meant or refused with every reason, each with its file, line and path."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from dataplane.errors import ConfigError
from dataplane.policy import document
from dataplane.policy.load import load, parse
from dataplane.policy.model import Action, Config
from dataplane.policy.servers import parse_syslog_server

CONFIG = Path(__file__).parent.parent / "config"
ZONES = """\
zones:
  - {name: trust, interfaces: [in0]}
  - {name: untrust, interfaces: [out0]}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse(text, "f.yaml")
    return refused.value.problems


def rule(text: str) -> list[str]:
    """Problems of one security rule, without file and line."""
    return [p.split(": ", 1)[1] for p in problems(f"{ZONES}security-rules: [{{name: r, action: allow, {text}}}]")]


def nat(text: str) -> list[str]:
    """Problems of one NAT rule, without file and line."""
    return [p.split(": ", 1)[1] for p in problems(f"{ZONES}nat-rules: [{{name: n, to: untrust, {text}}}]")]


@pytest.mark.parametrize("path", sorted(CONFIG.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_we_ship_loads(path):
    """What an operator copies from works."""
    assert load(path).zones


def test_a_shipped_configuration_survives_being_printed_and_read_again():
    """`show running config` gives a file that means the same."""
    config = load(CONFIG / "firewall.yaml")
    assert Config.model_validate(config.model_dump(by_alias=True, mode="json", exclude_none=True)) == config


@pytest.mark.parametrize("value", ["536", "1360", "9000", "auto"])
def test_an_interface_may_clamp(value):
    """536 to 9000, or by its MTU."""
    config = parse(f"{ZONES}interfaces: {{out0: {{mss-clamp: {value}}}}}", "f.yaml")
    assert str(config.interfaces["out0"].mss_clamp) == value


@pytest.mark.parametrize("value", ["535", "9001", "true", "'1360'", "half"])
def test_a_clamp_that_is_none(value):
    """The range is said, and the faults of other interfaces are found in the same run."""
    assert problems(f"{ZONES}interfaces: {{out0: {{mss-clamp: {value}}}, in0: {{mtu: 1}}, eth9: {{}}}}") == [
        "f.yaml:4: interfaces.eth9: interface 'eth9' is in no zone",
        "f.yaml:4: interfaces.in0.mtu: unknown key",
        "f.yaml:4: interfaces.out0.mss-clamp: must be auto or a number from 536 to 9000",
    ]


def test_a_zone_drops_or_resets_what_is_no_syn():
    """Nothing else."""
    zone = ZONES + "  - {name: dmz, interfaces: [dmz0], non-syn: %s}"
    assert parse(zone % "reset", "f.yaml").zones[2].non_syn == "reset"
    assert problems(zone % "ignore") == ["f.yaml:4: zones[2].non-syn: must be 'drop' or 'reset', not 'ignore'"]


def test_what_is_left_out_has_the_documented_value():
    """A file of zones alone is a whole configuration."""
    config = parse(ZONES, "f.yaml")
    session = config.settings.session
    assert config.zones[0].anti_spoof
    assert (config.zones[0].non_syn, config.interfaces) == ("drop", {})
    assert session.max_sessions == 262144
    assert session.timeouts.model_dump(by_alias=True) == {
        "tcp": 3600,
        "tcp-init": 5,
        "tcp-handshake": 10,
        "tcp-half-closed": 120,
        "tcp-time-wait": 15,
        "tcp-unverified-rst": 30,
        "udp": 30,
        "icmp": 6,
        "default": 30,
        "discard-tcp": 90,
        "discard-udp": 60,
        "discard-default": 60,
    }
    assert (config.settings.queue.first, config.settings.queue.workers, config.settings.queue.fail_open) == (
        0,
        "auto",
        False,
    )
    assert config.log.traffic


def test_a_rule_logs_at_its_end_and_matches_everything_it_does_not_name():
    """The defaults of a rule are those of PAN-OS."""
    (written,) = parse(f"{ZONES}security-rules: [{{name: r, action: reset-both}}]", "f.yaml").security_rules
    assert written.action is Action.RESET_BOTH
    assert (written.log_start, written.log_end, written.disabled) == (False, True, False)
    assert written.source == written.destination == written.application == written.service == ("any",)


def test_all_faults_of_a_file_are_reported_at_once():
    """An operator mends a file in one go: types, ranges, names and what this release lacks, in the order of lines."""
    text = """\
zones:
  - name: trust
    interfaces: [in0]
  - name: trust
    interfaces: [in0]
    colour: red
addresses:
  net: 10.0.0.5/24
  web: 10.0.0.80
  web: 10.0.0.81
address-groups:
  g1: [g2]
  g2: [g1, nope]
security-rules:
  - name: first
    from: [trust, any]
    to: [dmz]
    source:
      - web
      - dmz
    action: alow
    log-end: yes
  - {name: first, action: allow, service: [web], application: [foo]}
  - action: deny
  - not a rule
nat-rules:
  - name: static
    source: [10.0.0.0/24]
    source-translation: {type: static-ip, addresses: [192.0.2.0/25]}
  - name: pool
    source-translation: {type: dynamic-ip-and-port, interface: zz0, bi-directional: true}
  - name: later
    source-translation: {type: dynamic-ip, interface: in0}
settings:
  session: {timeouts: {tcp-init: 61, udp: on}}
  nat: {oversubscription: 3}
host-inbound:
  lan: [ping, telnet]
policies: []
"""
    actions = "'allow', 'deny', 'drop', 'reset-client', 'reset-server' or 'reset-both'"
    assert problems(text) == [
        "f.yaml:4: zones[1].name: duplicate name 'trust'",
        "f.yaml:5: zones[1].interfaces: interface 'in0' is already in zone 'trust'",
        "f.yaml:6: zones[1].colour: unknown key",
        "f.yaml:8: addresses.net: host bits are set; write 10.0.0.0/24 or 10.0.0.5",
        "f.yaml:10: addresses.web: duplicate key, first seen on line 9",
        "f.yaml:12: address-groups.g1: the group contains itself: g1 -> g2 -> g1",
        "f.yaml:13: address-groups.g2: the group contains itself: g2 -> g1 -> g2",
        "f.yaml:13: address-groups.g2: unknown address 'nope'",
        "f.yaml:16: security-rules[0].from: 'any' cannot be mixed with others",
        "f.yaml:17: security-rules[0].to: unknown zone 'dmz'",
        "f.yaml:20: security-rules[0].source: unknown address 'dmz'",
        f"f.yaml:21: security-rules[0].action: must be {actions}, not 'alow'",
        "f.yaml:22: security-rules[0].log-end: must be true or false, not 'yes'",
        "f.yaml:23: security-rules[1].application: unknown application 'foo'",
        "f.yaml:23: security-rules[1].name: duplicate name 'first'",
        "f.yaml:23: security-rules[1].service: unknown service 'web'",
        "f.yaml:24: security-rules[2].name: is missing",
        "f.yaml:25: security-rules[3]: must be a mapping, not 'not a rule'",
        "f.yaml:29: nat-rules[0].source-translation.addresses: 128 addresses cannot stand for the 256 of source",
        "f.yaml:31: nat-rules[1].source-translation.bi-directional: only static-ip can be bi-directional",
        "f.yaml:31: nat-rules[1].source-translation.interface: interface 'zz0' is in no zone",
        "f.yaml:33: nat-rules[2].source-translation.interface: dynamic-ip needs addresses, not an interface",
        "f.yaml:35: settings.session.timeouts.tcp-init: must be at most 60, not 61",
        "f.yaml:35: settings.session.timeouts.udp: must be a whole number, not 'on'",
        "f.yaml:36: settings.nat.oversubscription: must be 1, 2, 4 or 8, not 3",
        "f.yaml:38: host-inbound.lan: unknown service 'telnet'",
        "f.yaml:38: host-inbound.lan: unknown zone 'lan'",
        "f.yaml:39: policies: unknown key",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "f.yaml:1: file: the file is empty"),
        ("# nothing\n", "f.yaml:1: file: the file is empty"),
        ("- a\n", "f.yaml:1: file: must be a mapping, not a list"),
        ("zones: [\n", "f.yaml:2: file: not YAML: expected the node content, but found '<stream end>'"),
        (f"{ZONES}---\n{ZONES}", "f.yaml:4: file: a second document begins here; a configuration is one document"),
        (f"{ZONES}log: !!map {{}}\n", "f.yaml:4: file: the tag tag:yaml.org,2002:map is not used in a configuration"),
        (f"{ZONES}? [a]\n: b\n", "f.yaml:4: file: a key must be a plain word"),
        (f"{ZONES}log: *x\n", "f.yaml:4: file: the alias *x has no anchor before it"),
        (f"{ZONES}log: &x [*x]\n", "f.yaml:4: file: the alias *x has no anchor before it"),
        (f"{ZONES}\0", "f.yaml:4: file: not YAML: character U+0000 is not allowed"),
        ("zones: []", "f.yaml:1: zones: must hold at least 1, not 0"),
        (f"{ZONES}nat-rules:\n", "f.yaml:4: nat-rules: must be a list, not null"),
        (f"{ZONES}log: {'[' * 99}{']' * 99}\n", "f.yaml:4: file: nested deeper than 32 levels"),
    ],
)
def test_a_text_that_is_no_configuration_is_refused_in_one_line(text, problem):
    """Whatever is wrong with the YAML, the operator sees a line, never a traceback."""
    assert problems(text) == [problem]


def test_a_bomb_of_aliases_is_refused_before_it_grows():
    """Nine lines that stand for a thousand million values cost nothing."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert problems("\n".join(lines)) == [f"f.yaml:7: file: more than {document.MAX_NODES} values, aliases included"]


def test_a_huge_file_is_refused_unread(tmp_path):
    """The bound holds for what is read, so that an endless file ends too."""
    with pytest.raises(ConfigError, match="1: file: the file is larger than 16 MiB"):
        load(Path("/dev/zero"))


def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path):
    """Missing, a directory, or not UTF-8; named as the operator wrote it."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml:1: file: No such file or directory"):
        load(Path("nowhere.yaml"))
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"zones: []\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: file: not UTF-8"):
        load(tmp_path / "latin.yaml")


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@`#?, \n\t0~", max_size=60))
def test_no_text_breaks_the_loader(text):
    """Whatever is typed ends in a configuration or in a ConfigError."""
    with pytest.raises(ConfigError):
        parse(text, "f.yaml")


_words = st.sampled_from(["any", "trust", "10.0.0.0/8", "::/0", "", "static-ip", "tcp", "x" * 70])
_scalars = st.none() | st.booleans() | st.integers(-1, 70000) | _words
_values = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3))


@given(st.dictionaries(st.sampled_from(sorted(f.alias or "" for f in Config.model_fields.values())), _values))
def test_no_value_in_any_section_breaks_the_loader(tmp_path_factory, sections):
    """Every mixture of types and sections is accepted or refused, never a traceback."""
    path = tmp_path_factory.mktemp("fuzz") / "f.yaml"
    YAML(typ="safe").dump(sections, path)
    with suppress(ConfigError):
        load(path)


def test_yaml_1_2_knows_two_booleans_and_no_octals():
    """`on` and `no` are names like any other, 010 is ten, and a key is the text that was written."""
    config = parse(
        "zones: [{name: on, interfaces: [no]}]\n"
        "addresses: {010: 10.0.0.10}\n"
        "settings: {session: {timeouts: {tcp-handshake: 010}}}\n",
        "f.yaml",
    )
    assert (config.zones[0].name, config.zones[0].interfaces) == ("on", ("no",))
    assert config.addresses == {"010": "10.0.0.10"}
    assert config.settings.session.timeouts.tcp_handshake == 10


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("from: trust", "from: must be a list, not 'trust'"),
        ("source: []", "source: must hold at least 1, not 0"),
        ("source: [10.0.0.256]", "source: unknown address '10.0.0.256': '10.0.0.256' is not an IPv4 or IPv6 address"),
        (
            "source: [10.0.0.0/33]",
            "source: unknown address '10.0.0.0/33': prefix length '33' is not a number from 0 to 32",
        ),
        ("source: [10.0.0.9-10.0.0.1]", "source: unknown address '10.0.0.9-10.0.0.1': the range is reversed"),
        ("source: ['10.0.0.1-::1']", "source: unknown address '10.0.0.1-::1': a range has both ends in one family"),
        (
            "source: ['::ffff:10.0.0.1']",
            "source: unknown address '::ffff:10.0.0.1': an IPv4 address is written in dotted form",
        ),
        ("service: [any, application-default]", "service: 'any' cannot be mixed with others"),
        ("service: [http]", "service: unknown service 'http'"),
        ("negate-destination: true", "negate-destination: the negation of 'any' matches nothing"),
        ("icmp-unreachable: true", "icmp-unreachable: a rule that allows sends no ICMP unreachable"),
        ("negate_source: false", "negate_source: unknown key"),
        ("log-start: 1", "log-start: must be true or false, not 1"),
    ],
)
def test_an_impossible_security_rule_is_refused(text, problem):
    """What can never match, or never be done, is an error where it is written."""
    assert f"security-rules[0].{problem}" in rule(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("to: [untrust]", "to: duplicate key, first seen on line 4"),
        ("source: ['2001:db8::/32']", "source: holds no IPv4 address, which nat-type needs"),
        (
            "source-translation: {type: static-ip, addresses: [192.0.2.1]}",
            "source-translation.addresses: addresses are mapped one to one, so source cannot be any",
        ),
        (
            "source: [10.0.0.1], source-translation: {type: static-ip, interface: out0}",
            "source-translation.interface: static-ip needs addresses, not an interface",
        ),
        (
            "source: [10.0.0.1, 10.0.0.0/31], source-translation: {type: static-ip, addresses: [192.0.2.1-192.0.2.3]}",
            "source-translation.addresses: addresses are mapped one to one, but source or translation names some twice",
        ),
        ("source-translation: {type: dynamic-ip-and-port}", "source-translation: needs interface or addresses"),
        (
            "source-translation: {type: dynamic-ip-and-port, interface: out0, addresses: [192.0.2.1]}",
            "source-translation.interface: give interface or addresses, not both",
        ),
        (
            "source-translation: {type: dynamic-ip-and-port, addresses: [10.0.0.0/8]}",
            "source-translation.addresses: a pool holds at most 4096 addresses",
        ),
        (
            "source-translation: {type: dynamic-ip-and-port, interface: out0, port-range: 2000-1000}",
            "source-translation.port-range: the range '2000-1000' is reversed",
        ),
        (
            "nat-type: ipv6, source-translation: {type: dynamic-ip-and-port, addresses: [192.0.2.1]}",
            "source-translation.addresses: must be IPv6 in a rule of nat-type ipv6",
        ),
        (
            "destination: [192.0.2.0/30], destination-translation: {address: 10.0.0.0/29}",
            "destination-translation.address: 8 addresses cannot stand for the 4 of destination",
        ),
        (
            "destination: [192.0.2.1], destination-translation: {address: 10.0.0.1, port: 0}",
            "destination-translation.port: must be at least 1, not 0",
        ),
        (
            "source-translation: {type: dynamic-ip-and-port, interface: out0, fallback: {interface: out0}}",
            "source-translation.fallback: only dynamic-ip falls back",
        ),
        (
            "source-translation: {type: dynamic-ip, addresses: [192.0.2.1], fallback: {}}",
            "source-translation.fallback: needs interface or addresses",
        ),
        (
            "source-translation: {type: dynamic-ip, addresses: [192.0.2.1], fallback: {interface: zz0}}",
            "source-translation.fallback.interface: interface 'zz0' is in no zone",
        ),
        (
            "source-translation: {type: dynamic-ip, addresses: [192.0.2.1], fallback: {addresses: [fd00::1]}}",
            "source-translation.fallback.addresses: must be IPv4 in a rule of nat-type ipv4",
        ),
        (
            "source-translation: {type: dynamic-ip, addresses: [10.0.0.0/16]}",
            "source-translation.addresses: a pool holds at most 32768 addresses",
        ),
        (
            "nat-type: nptv6, source: [fd00::/48], source-translation: {type: dynamic-ip, addresses: [fd01::/120]}",
            "source-translation.type: nptv6 needs static-ip",
        ),
        (
            "nat-type: nptv6, source: [fd00::/48], source-translation: {type: static-ip, addresses: [fd01::1-fd01::2]}",
            "source-translation.addresses: nptv6 needs one prefix of at most 64 bits",
        ),
        (
            "nat-type: nptv6, source: [fd00::/72], source-translation: {type: static-ip, addresses: [fd01::/72]}",
            "source: nptv6 needs one prefix of at most 64 bits",
        ),
        (
            "nat-type: nptv6, destination: [fd00::/48], destination-translation: {address: fd01::/48}",
            "destination-translation: nptv6 translates sources; bi-directional is the way in",
        ),
    ],
)
def test_an_impossible_nat_rule_is_refused(text, problem):
    """Unequal ranges, mixed families and settings of another type of translation."""
    assert f"nat-rules[0].{problem}" in nat(text)


WIRE = f"{ZONES}  - {{name: lan, interfaces: [lan0, lan1]}}\nvirtual-wires: [{{name: w, interfaces: [in0, out0]}}]\n"


def test_a_virtual_wire_carries_untagged_frames():
    """What PAN-OS allows unless it is told otherwise."""
    (wire,) = parse(WIRE, "f.yaml").virtual_wires
    assert (wire.name, wire.interfaces, wire.tag_allowed) == ("w", ("in0", "out0"), ("0",))


@pytest.mark.parametrize(
    ("wires", "problem"),
    [
        ("{name: w, interfaces: [in0, eth9]}", "virtual-wires[0].interfaces: interface 'eth9' is in no zone"),
        ("{name: in0, interfaces: [in0, out0]}", "virtual-wires[0].name: 'in0' is the name of an interface"),
        ("{name: a/b, interfaces: [in0, out0]}", "virtual-wires[0].name: 'a/b' cannot be the name of an interface"),
        ("{name: w, interfaces: [in0]}", "virtual-wires[0].interfaces: must hold at least 2, not 1"),
        (
            "{name: w, interfaces: [lan0, out0]}",
            "zones[2].interfaces: an end of a virtual wire needs a zone of its own",
        ),
        (
            "{name: w, interfaces: [in0, out0], tag-allowed: [4095]}",
            "virtual-wires[0].tag-allowed: '4095' is not a VLAN id from 0 to 4094 or a range of ids",
        ),
        (
            "{name: w, interfaces: [in0, out0], tag-allowed: [9-3]}",
            "virtual-wires[0].tag-allowed: the range '9-3' is reversed",
        ),
        (
            "{name: w, interfaces: [in0, out0], tag-allowed: 0}",
            "virtual-wires[0].tag-allowed: must be a list of VLAN ids and ranges",
        ),
    ],
)
def test_an_impossible_virtual_wire_is_refused(wires, problem):
    """Ports in zones of their own, names that a device can have, VLAN ids that exist."""
    text = f"{ZONES}  - {{name: lan, interfaces: [lan0, lan1]}}\nvirtual-wires: [{wires}]"
    assert problem in [line.split(": ", 1)[1] for line in problems(text)]


@pytest.mark.parametrize(
    ("zones", "refused"),
    [("from: [trust], to: untrust", True), ("from: [any], to: any", True), ("from: [lan], to: any", False),
     ("from: [any], to: lan", False)],
)  # fmt: skip
def test_a_wire_has_no_address_to_translate_to(zones, refused):
    """Only a rule that a session over the wire may match is refused."""
    text = (
        f"{WIRE}nat-rules: [{{name: n, {zones}, source-translation: {{type: dynamic-ip-and-port, interface: lan0}}}}]"
    )
    with suppress(ConfigError):
        parse(text, "f.yaml")
        assert not refused
        return
    assert problems(text) == [
        "f.yaml:6: nat-rules[0].source-translation.interface: a virtual wire has no address; translate to addresses"
    ]


def test_nothing_is_inbound_to_the_host_over_a_wire():
    """It has no address there."""
    assert problems(f"{WIRE}host-inbound: {{trust: [ping]}}") == [
        "f.yaml:6: host-inbound.trust: the firewall has no address on a virtual wire"
    ]


def test_a_default_rule_is_overridden_in_action_and_logging_only_and_last():
    """What else such a rule says would not be done."""
    text = f"""{ZONES}security-rules:
  - {{name: interzone-default, action: deny, from: [trust]}}
  - {{name: r, action: allow}}
"""
    assert problems(text) == [
        "f.yaml:5: security-rules[0].from: 'interzone-default' overrides only action and logging",
        "f.yaml:5: security-rules[0].name: 'interzone-default' must stand after all other rules",
    ]


@pytest.mark.parametrize(
    ("members", "problem"),
    [("[nope]", "unknown address 'nope'"), ("[g]", "the group contains itself: g -> g")],
)
def test_a_rule_is_not_blamed_for_the_group_it_uses(members, problem):
    """The group is reported where it is wrong, and the rules that name it are not."""
    text = f"""{ZONES}address-groups: {{g: {members}}}
nat-rules:
  - {{name: a, source: [g], source-translation: {{type: dynamic-ip-and-port, addresses: [g]}}}}
  - {{name: b, source: [g], source-translation: {{type: static-ip, addresses: [g]}}}}
  - {{name: c, destination: [g], destination-translation: {{address: g}}}}
"""
    assert problems(text) == [f"f.yaml:4: address-groups.g: {problem}"]


@pytest.mark.parametrize("name", ["any", "x" * 64, "' a'", "10.0.0.1", '"a\\nb"', "''"])
def test_a_name_is_short_printable_and_no_address(name):
    """A name can stand in a line of output, and cannot be taken for something else."""
    assert len(problems(f"{ZONES}addresses: {{{name}: 10.0.0.1}}")) == 1


def test_a_wrong_name_with_a_wrong_value_is_two_faults():
    """Neither hides the other, nor what is wrong elsewhere."""
    text = f"{ZONES}addresses: {{any: 5}}\nhost-inbound: 7\nsecurity-rules: [{{name: r, action: deny, to: [dmz]}}]"
    assert problems(text) == [
        "f.yaml:4: addresses.any: 'any' cannot be a name",
        "f.yaml:4: addresses.any: must be a string, not 5",
        "f.yaml:5: host-inbound: must be a mapping, not 7",
        "f.yaml:6: security-rules[0].to: unknown zone 'dmz'",
    ]


def test_a_group_shares_no_name_with_a_member():
    """A reference has one meaning."""
    text = f"{ZONES}addresses: {{a: 10.0.0.1}}\naddress-groups: {{a: [10.0.0.2]}}"
    assert problems(text) == ["f.yaml:5: address-groups.a: 'a' is also the name of a member"]


def test_applications_share_no_port_and_have_one():
    """Until payload is inspected a port is how an application is recognised."""
    text = f"{ZONES}applications:\n  a: {{default-ports: [tcp/70-80]}}\n  b: {{default-ports: [tcp/80]}}\n  c: {{}}\n"
    assert problems(text) == [
        "f.yaml:6: applications.b.default-ports: tcp/80 already belongs to application 'a'",
        "f.yaml:7: applications.c: needs default-ports; an application is recognised by its port",
    ]


def test_a_wrong_definition_is_not_reported_again_where_it_is_used():
    """One fault, one line."""
    text = f"{ZONES}addresses: {{a: 10.0.0.300}}\nsecurity-rules: [{{name: r, action: deny, source: [a]}}]"
    assert problems(text) == ["f.yaml:4: addresses.a: '10.0.0.300' is not an IPv4 or IPv6 address"]


LOGS = """{traffic: true, csv: true, rotate: {size-mb: 100, keep: 9}, syslog: [{to: "udp://192.0.2.9", format: csv},
  {to: "tls://log.example:7000", ca-file: /etc/ca.pem, facility: daemon, app-name: fw1}, {to: "unix:///dev/log"}],
  ipfix: [{to: "tcp://[2001:db8::9]:9995", domain: 7}]}"""


def test_the_logs_have_sinks():
    """Ports are those of the RFCs unless said; what is not said is as before."""
    log = parse(f"{ZONES}log: {LOGS}", "f.yaml").log
    assert [server.to for server in log.syslog] == ["udp://192.0.2.9", "tls://log.example:7000", "unix:///dev/log"]
    assert (log.rotate.size_mb, log.rotate.keep, log.ipfix[0].domain) == (100, 9, 7)
    assert parse_syslog_server("udp://192.0.2.9").port == 514
    assert parse_syslog_server("udp://[2001:db8::9]").host == "2001:db8::9"
    assert parse_syslog_server("unix:///run/log#1?").host == "/run/log#1?"
    assert parse_syslog_server("tls://log.example").port == 6514
    before = parse(f"{ZONES}log: {{traffic: true}}", "f.yaml").log
    assert (before.csv, before.rotate.size_mb, before.syslog, before.ipfix) == (False, 0, (), ())


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        ("{sylog: []}", "log.sylog: unknown key"),
        ("{rotate: {size: 1}}", "log.rotate.size: unknown key"),
        ("{rotate: {keep: 0}}", "log.rotate.keep: must be at least 1, not 0"),
        ("{syslog: [{format: csv}]}", "log.syslog[0].to: is missing"),
        ("{syslog: [{to: 192.0.2.9}]}",
         "log.syslog[0].to: '192.0.2.9' must begin with udp:// or tcp:// or tls:// or unix://"),
        ("{syslog: [{to: 'udp://'}]}", "log.syslog[0].to: 'udp://' must be udp://HOST or udp://HOST:PORT"),
        ("{syslog: [{to: 'unix://x/y'}]}", "log.syslog[0].to: 'unix://x/y' must be unix:///PATH, of at most 107 bytes"),
        ('{syslog: [{to: "unix:///a\\0"}]}',
         "log.syslog[0].to: 'unix:///a\0' must be unix:///PATH, of at most 107 bytes"),
        ("{syslog: [{to: 'udp://a..b'}]}", "log.syslog[0].to: 'a..b' is no name of a host"),
        ("{syslog: [{to: 'tcp://%s'}]}" % ("a" * 64), f"log.syslog[0].to: '{'a' * 64}' is no name of a host"),
        ("{ipfix: [{to: 'udp://a b'}]}", "log.ipfix[0].to: 'a b' is no name of a host"),
        ("{syslog: [{to: 'udp://a:0'}]}", "log.syslog[0].to: port 0 is no port"),
        ("{syslog: [{to: 'udp://a', app-name: 'a b'}]}",
         "log.syslog[0].app-name: must be 1 to 48 printable ASCII characters without a blank"),
        ("{syslog: [{to: 'udp://a', ca-file: x}]}", "log.syslog[0].ca-file: is for tls:// alone"),
        ("{syslog: [{to: 'udp://a'}, {to: 'udp://a'}]}", "log.syslog[1].to: 'udp://a' is already there"),
        ("{ipfix: [{to: 'tls://a'}]}", "log.ipfix[0].to: 'tls://a' must begin with udp:// or tcp://"),
        ("{traffic: false, csv: true}", "log.csv: needs traffic: true"),
    ],
)  # fmt: skip
def test_an_impossible_sink_is_refused(log, problem):
    """At its place."""
    assert problem in [line.split(": ", 1)[1] for line in problems(f"{ZONES}log: {log}")]


@pytest.mark.parametrize("port", ["99999", "x", "-1"])
def test_a_port_that_is_none_is_refused(port):
    """Whatever urllib says of it."""
    (problem,) = problems(f"{ZONES}log: {{syslog: [{{to: 'udp://a:{port}'}}]}}")
    assert "log.syslog[0].to: " in problem
