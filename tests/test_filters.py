"""Filters and match queries: what an operator may type, what it comes to, and what is refused."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.errors import UsageError
from dataplane.filters import (
    CounterFilter,
    Match,
    SessionFilter,
    match_of,
    parse_counter_filter,
    parse_filter,
    parse_match,
)

MATCH = {"from": "trust", "to": "untrust", "source": "10.1.0.5", "destination": "192.0.2.9", "protocol": "6"}


def v4(text: str) -> int:
    return int(ipaddress.IPv6Address(f"::ffff:{text}"))


def test_every_key_has_a_place():
    """All keys at once, each with another value, so that none lands in its neighbour's field."""
    pairs = {
        "nat": "both",
        "ip6": "no",
        "type": "predict",
        "state": "active",
        "from": "trust",
        "to": "untrust",
        "source": "10.1.0.0/16",
        "destination": "192.0.2.9",
        "source-port": "1",
        "destination-port": "65535",
        "protocol": "255",
        "application": "dns",
        "rule": "lan out",
        "nat-rule": "lan-snat",
        "ingress-interface": "in0",
        "egress-interface": "out0",
        "min-kb": "2",
        "max-kb": "1048576",
        "min-age": "4194304",
        "start-at": "7",
        "count": "yes",
    }
    assert parse_filter(pairs) == SessionFilter(
        nat="both",
        ip6=False,
        type="predict",
        state="active",
        from_zone="trust",
        to_zone="untrust",
        source=(v4("10.1.0.0"), v4("10.1.255.255")),
        destination=(v4("192.0.2.9"), v4("192.0.2.9")),
        source_port=1,
        destination_port=65535,
        protocol=255,
        application="dns",
        rule="lan out",
        nat_rule="lan-snat",
        ingress_interface="in0",
        egress_interface="out0",
        min_kb=2,
        max_kb=1048576,
        min_age=4194304,
        start_at=7,
        count=True,
    )


def test_no_pairs_mean_every_session():
    """A field that was not named must not restrict."""
    assert parse_filter({}) == SessionFilter()


@pytest.mark.parametrize(
    ("typed", "first", "last"),
    [
        ("10.0.0.5/24", v4("10.0.0.0"), v4("10.0.0.255")),
        ("10.0.0.5/255.255.255.0", v4("10.0.0.0"), v4("10.0.0.255")),
        ("0.0.0.0/0", v4("0.0.0.0"), v4("255.255.255.255")),
        ("2001:db8::/127", 0x20010DB8 << 96, (0x20010DB8 << 96) + 1),
        ("::ffff:10.0.0.5", v4("10.0.0.5"), v4("10.0.0.5")),
        ("::/0", 0, 2**128 - 1),
    ],
)
def test_addresses_lie_on_one_line(typed, first, last):
    """IPv4 is mapped, so that ::/0 covers both families and 0.0.0.0/0 only its own."""
    assert parse_filter({"source": typed}).source == (first, last)


@given(address=st.ip_addresses(), other=st.ip_addresses(), data=st.data())
def test_a_network_holds_the_addresses_that_ipaddress_says(address, other, data):
    """The 128-bit range decides as the standard library does, and never across families."""
    network = ipaddress.ip_network((address, data.draw(st.integers(0, address.max_prefixlen))), strict=False)
    found = parse_filter({"destination": str(network)}).destination
    assert found is not None
    number = v4(str(other)) if other.version == 4 else int(other)
    if other.version == network.version:
        assert (found[0] <= number <= found[1]) == (other in network)
    elif network.version == 4:
        assert not found[0] <= number <= found[1] or other in ipaddress.ip_network("::ffff:0:0/96")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ssl-decrypt", "yes"),
        ("sourc", "10.0.0.1"),
        ("filter", "x"),
        ("nat", "yes"),
        ("ip6", "maybe"),
        ("type", "tunnel"),
        ("state", "banana"),
        ("state", "ACTIVE"),
        ("from", ""),
        ("rule", "  "),
        ("source", "10.0.0.300"),
        ("source", "10.0.0.1/33"),
        ("source", "010.0.0.1"),
        ("source", "fe80::1%in0"),
        ("destination", "web1"),
        ("source-port", "0"),
        ("destination-port", "65536"),
        ("destination-port", "80-90"),
        ("protocol", "300"),
        ("protocol", "0"),
        ("protocol", "tcp"),
        ("protocol", "1_7"),
        ("protocol", " 6"),
        ("protocol", "+6"),
        ("protocol", "٦"),
        ("min-kb", "0"),
        ("min-age", "-1"),
        ("max-kb", "9" * 5000),
        ("start-at", "0"),
        ("count", "true"),
    ],
)
def test_nonsense_is_refused_by_its_key(key, value):
    """The reason names the key, so that the operator sees which of ten words was wrong."""
    with pytest.raises(UsageError, match=key):
        parse_filter({key: value})


def test_a_value_that_is_no_word_is_refused():
    """The daemon reads filters from a socket, where a value may be any JSON."""
    for value in (None, 6, ["6"], {"6": 6}):
        with pytest.raises(UsageError, match="not a word"):
            parse_filter({"protocol": value})
    for pairs in (None, 6, ["protocol", "6"], "protocol 6"):
        with pytest.raises(UsageError, match="not a list of pairs"):
            parse_filter(pairs)


def test_counter_filter():
    """Without words every counter is meant, since the start."""
    assert parse_counter_filter({}) == CounterFilter(delta=False, value="all")
    typed = {"severity": "drop", "category": "flow", "aspect": "parse", "delta": "yes", "value": "non-zero"}
    assert parse_counter_filter(typed) == CounterFilter("drop", "flow", "parse", True, "non-zero")


@pytest.mark.parametrize(
    ("key", "value"),
    [("severity", "loud"), ("delta", "1"), ("value", "zero"), ("state", "active"), ("category", "")],
)
def test_counter_nonsense_is_refused(key, value):
    """Counter filters share no key with session filters."""
    with pytest.raises(UsageError, match=key):
        parse_counter_filter({key: value})


def test_match_of_a_tcp_packet():
    """The words of a test become one flow."""
    match = parse_match({**MATCH, "destination-port": "443", "application": "ssl"}, application=True)
    assert match == Match("trust", "untrust", v4("10.1.0.5"), v4("192.0.2.9"), 6, 443, "ssl")


def test_match_without_ports():
    """A ping has no destination port to name."""
    assert parse_match({**MATCH, "protocol": "1"}, application=False).destination_port == 0


@pytest.mark.parametrize("protocol", ["6", "17"])
def test_match_needs_the_port_of_tcp_and_udp(protocol):
    """A rule's service could not be judged without."""
    with pytest.raises(UsageError, match="missing: destination-port"):
        parse_match({**MATCH, "protocol": protocol}, application=True)


@pytest.mark.parametrize("key", list(MATCH))
def test_match_names_what_is_missing(key):
    """Every word but the application is needed."""
    with pytest.raises(UsageError, match=f"missing: {key}"):
        parse_match({word: MATCH[word] for word in MATCH if word != key} | {"destination-port": "80"}, application=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source": "10.0.0.0/8"}, "not one address"),
        ({"source": "2001:db8::1"}, "different families"),
        ({"source-port": "80"}, "unknown match key"),
        ({"application": "ssl"}, "unknown match key"),
    ],
)
def test_impossible_matches_are_refused(change, reason):
    """NAT rules know no applications; a packet has one source, of its destination's family."""
    with pytest.raises(UsageError, match=reason):
        parse_match({**MATCH, "destination-port": "80", **change}, application=False)


def test_arguments_of_a_request_come_to_the_same_match():
    """The daemon gets numbers as numbers and null for an application that was not named."""
    arguments = {**MATCH, "protocol": 6, "destination_port": 443, "application": None}
    expected = parse_match({**MATCH, "destination-port": "443"}, application=True)
    assert match_of(arguments, application=True) == expected
