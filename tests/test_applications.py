"""Sessions carry the PAN-OS name of their port, and the timers that belong to it."""

import pytest

from dataplane.policy.applications import BUILT_IN, ICMP, ICMPV6, TCP, UDP, ApplicationTable
from dataplane.policy.compile import CompiledPolicy, Timeouts, compile_policy
from dataplane.policy.load import parse


def policy(more: str = "") -> CompiledPolicy:
    return compile_policy(parse("zones: [{name: trust, interfaces: [in0]}]\n" + more, "test.yaml"))


@pytest.mark.parametrize(
    ("proto", "dport", "name"),
    [
        (TCP, 22, "ssh"),
        (TCP, 53, "dns"),
        (UDP, 53, "dns"),
        (TCP, 80, "web-browsing"),
        (TCP, 8080, "web-browsing"),
        (TCP, 443, "ssl"),
        (UDP, 443, "quic"),
        (TCP, 21, "ftp"),
        (UDP, 69, "tftp"),
        (UDP, 5060, "sip"),
        (TCP, 445, "ms-ds-smb"),
        (TCP, 5201, "unknown-tcp"),
        (UDP, 0, "unknown-udp"),
        (UDP, 65535, "unknown-udp"),
        (47, 0, "gre"),
        (50, 0, "esp"),
        (132, 0, "sctp"),
        (253, 0, "unknown-p2p"),
    ],
)
def test_the_destination_port_names_the_application(proto, dport, name):
    """Until payload is inspected, protocol and port are all there is to go by."""
    assert policy().application(proto, dport).name == name


def test_a_ping_is_told_from_other_icmp():
    """An echo is `ping` in both families; anything else goes by its protocol."""
    running = policy()
    assert [running.application(proto, 0).name for proto in (ICMP, ICMPV6)] == ["ping", "ping"]
    assert [running.application(proto, 0, echo=False).name for proto in (ICMP, ICMPV6)] == ["icmp", "ipv6-icmp"]


def test_no_port_belongs_to_two_built_in_applications():
    """The order of the table decides nothing."""
    claims = [
        (proto, port)
        for app in BUILT_IN.values()
        for proto, first, last in app.ports
        if proto in (TCP, UDP)
        for port in range(first, last + 1)
    ]
    assert len(claims) == len(set(claims))


def test_a_configured_application_takes_its_ports_from_a_built_in_one():
    """The operator knows better what listens on 8080."""
    running = policy("applications: {intranet: {default-ports: [tcp/8000-8099, udp/8000]}}")
    assert running.application(TCP, 8080).name == "intranet"
    assert running.application(UDP, 8000).name == "intranet"
    assert running.application(TCP, 80).name == "web-browsing"
    assert running.application(TCP, 8100).name == "unknown-tcp"


def test_overriding_a_timer_keeps_the_ports():
    """An entry that gives only timers leaves the application where it was."""
    running = policy("applications: {dns: {udp-timeout: 7}}")
    assert running.application(UDP, 53).name == "dns"
    assert running.timeouts("dns", UDP).idle == 7
    assert running.timeouts("dns", TCP).idle == 3600


def test_overriding_the_ports_gives_up_the_old_ones():
    """ssh moved to 2222 is unknown on 22."""
    running = policy("applications: {ssh: {default-ports: [tcp/2222]}}")
    assert running.application(TCP, 2222).name == "ssh"
    assert running.application(TCP, 22).name == "unknown-tcp"


def test_protocol_timers_hold_where_the_application_has_none():
    """PAN-OS defaults by protocol; ICMP and others know no TCP states."""
    running = policy()
    assert running.timeouts("ssh", TCP) == Timeouts(5, 10, 3600, 120, 15, 30, 90)
    assert running.timeouts("dns", UDP) == Timeouts(30, 30, 30, 30, 30, 30, 60)
    assert running.timeouts("ping", ICMPV6) == Timeouts(6, 6, 6, 6, 6, 6, 60)
    assert running.timeouts("gre", 47).idle == 30


def test_the_general_timer_of_an_application_yields_to_that_of_the_protocol():
    """`timeout` is for what has no `tcp-timeout` or `udp-timeout`."""
    running = policy("applications: {a: {default-ports: [tcp/7000, udp/7000], timeout: 44, tcp-timeout: 55}}")
    assert (running.timeouts("a", TCP).idle, running.timeouts("a", UDP).idle) == (55, 44)


def test_time_wait_never_outlasts_half_closed():
    """PAN-OS caps it silently, so that a closed session is not kept longer than a half-closed one."""
    running = policy("applications: {ssh: {tcp-half-closed-timeout: 10, tcp-time-wait-timeout: 300}}")
    assert running.timeouts("ssh", TCP)[3:5] == (10, 10)


def test_an_application_is_allowed_on_its_default_ports_only():
    """`application-default` asks this of the application itself."""
    dns = ApplicationTable({}).by_name["dns"]
    assert dns.is_default_port(UDP, 53)
    assert not dns.is_default_port(UDP, 5353)
    assert BUILT_IN["ping"].is_default_port(ICMPV6, 0)
    assert not BUILT_IN["unknown-tcp"].is_default_port(TCP, 1234)


def test_a_call_outlives_the_silence_of_its_signalling():
    """Over UDP as over TCP: what was opened for it would end with it. A timer of one's own still counts."""
    assert policy().timeouts("sip", UDP).idle == 3600
    assert policy("applications: {sip: {default-ports: [udp/5070]}}").timeouts("sip", UDP).idle == 3600
    assert policy("applications: {sip: {timeout: 60}}").timeouts("sip", UDP).idle == 60
