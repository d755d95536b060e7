"""The cached routing table against a loop that tries every route."""

import socket
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.errors import DataplaneError
from dataplane.routes import (
    DEFAULT,
    DEFAULT_ORDERS,
    LOCAL,
    MAIN,
    MAPPED,
    Entry,
    Fib,
    Link,
    Links,
    Order,
    Route,
    address_from_text,
    address_to_text,
    span,
)

WIDTH = {socket.AF_INET: 32, socket.AF_INET6: 128}
ORDERS: dict[int, Order] = {socket.AF_INET: (LOCAL, MAIN, DEFAULT), socket.AF_INET6: (MAIN, LOCAL)}


def entry(prefix: str, kind: str = "unicast", ifindex: int = 1, table: int = MAIN, priority: int = 0) -> Entry:
    text, _, length = prefix.partition("/")
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return Entry(family, table, address_from_text(text), priority, Route(kind, ifindex, None, int(length)))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Prefixes crowd around few values, so that they nest, touch and repeat."""
    family = draw(st.sampled_from([socket.AF_INET, socket.AF_INET6]))
    width = WIDTH[family]
    length = draw(st.sampled_from([0, 1, 8, 15, 16, 31, 32, 64, 127, 128]).filter(lambda n: n <= width))
    base = MAPPED if family == socket.AF_INET else 0
    prefix, _ = span(base | draw(st.integers(0, 7)) << (width - 16) | draw(st.sampled_from([0, 1, 255])), length)
    kind = draw(st.sampled_from(["unicast", "local", "blackhole", "throw"]))
    route = Route(kind, draw(st.integers(1, 3)), draw(st.none() | st.integers(1, 9)), length)
    return Entry(family, draw(st.sampled_from([LOCAL, MAIN, DEFAULT])), prefix, draw(st.integers(0, 2)), route)


def naive_lookup(rows: Sequence[Entry], orders: dict[int, Order], address: int) -> Route | None:
    """Tables in order; in each the longest prefix, then the lowest priority, then the earliest row."""
    family = socket.AF_INET if address >> 32 == 0xFFFF else socket.AF_INET6
    for table in orders[family] or ():
        found = [row for row in rows if row.family == family and row.table == table and covers(row, address)]
        if not found:
            continue
        best = min(found, key=lambda row: (-row.route.prefix_length, row.priority))
        if best.route.kind != "throw":
            return best.route
    return None


def covers(row: Entry, address: int) -> bool:
    first, last = span(row.prefix, row.route.prefix_length)
    return first <= address <= last


@given(st.lists(entries(), max_size=30), st.data())
def test_lookup_agrees_with_a_loop_over_all_routes(rows, data):
    """Every table order, nesting, tie and throw route gives what the loop gives, on and beside each boundary."""
    fib = Fib(rows, ORDERS)
    edges = {edge + step for row in rows for edge in span(row.prefix, row.route.prefix_length) for step in (-1, 0, 1)}
    addresses = [address for address in edges if 0 <= address < 224 << 120 and not is_multicast_v4(address)]
    addresses.append(MAPPED | data.draw(st.integers(0, (224 << 24) - 1)))
    assert [fib.lookup(address) for address in addresses] == [naive_lookup(rows, ORDERS, a) for a in addresses]


def is_multicast_v4(address: int) -> bool:
    return MAPPED | 224 << 24 <= address <= MAPPED | 0xFFFFFFFF


def test_an_ipv6_default_route_does_not_carry_ipv4():
    """Mapped addresses lie inside ::/0 on the number line and are another family all the same."""
    fib = Fib([entry("::/0")])
    assert fib.lookup(address_from_text("192.0.2.1")) is None
    assert fib.lookup(address_from_text("2001:db8::1")) == Route("unicast", 1, None, 0)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("ff02::1", "multicast"),
        ("223.255.255.255", "unicast"),
        ("240.0.0.1", "unicast"),
        ("fe00::1", "unicast"),
    ],
)
def test_multicast_and_broadcast_are_known_without_a_route(address, kind):
    """A default route does not turn them into unicast."""
    route = Fib([entry("0.0.0.0/0"), entry("::/0")]).lookup(address_from_text(address))
    assert route is not None
    assert route.kind == kind


def test_the_kernel_is_asked_once_until_the_next_change():
    """With rules that look at more than the destination the kernel decides, and its answer is remembered."""
    asked = []

    def ask(address: int) -> Route | None:
        asked.append(address)
        return Route("unicast", 7, None, 24)

    orders = {**DEFAULT_ORDERS, socket.AF_INET: None}
    fib = Fib([entry("10.0.0.0/8", ifindex=3)], orders, ask)
    address = address_from_text("10.1.1.1")
    assert [fib.lookup(address), fib.lookup(address)] == [Route("unicast", 7, None, 24)] * 2
    assert fib.lookup(address_from_text("224.0.0.5")) == Route("multicast", 0, None, 4)
    assert asked == [address]
    fib.replace([], orders)
    fib.lookup(address)
    assert asked == [address, address]


def test_no_one_to_ask_is_an_error():
    """A table that cannot answer says so when it is made, not when a packet comes."""
    with pytest.raises(DataplaneError, match="more than the destination"):
        Fib([], {**DEFAULT_ORDERS, socket.AF_INET6: None})


@given(st.integers(0, (1 << 128) - 1) | st.integers(MAPPED, MAPPED | 0xFFFFFFFF))
def test_addresses_keep_their_value_as_text(address):
    """Text and number are two forms of one address, in both families."""
    assert address_from_text(address_to_text(address)) == address


def test_links_are_found_by_name_and_index():
    """A snapshot replaces the old one whole."""
    link = Link("out0", 4, True, 1500, (address_from_text("192.0.2.1"),), (span(address_from_text("192.0.2.1"), 24),))
    links = Links([link])
    assert (links.by_name("out0"), links.by_index(4), list(links)) == (link, link, [link])
    links.replace([])
    assert (links.by_name("out0"), links.by_index(4), list(links)) == (None, None, [])
