"""Fib, Links and the port list against the kernel they mirror."""

import json
import random
import subprocess
from collections.abc import Iterator
from ipaddress import ip_interface

import pytest

from dataplane.routes import Monitor, Route, address_from_text, address_to_text
from dataplane.sockets import used_ports
from tests.lab.lab import IN0, IN06, OUT0, SERVER, SERVER6, Lab, poll

REFUSALS = {
    "Invalid argument": "blackhole",
    "No route to host": "unreachable",
    "Permission denied": "prohibit",
    "Network is unreachable": None,
}
# Enough to overrun the event socket of a monitor that does not read.
FLOOD = 4000


class Watch:
    """A monitor of the firewall's namespace, the kinds of change it reported, and if 192.0.2.1 had a route then."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.seen: list[bool] = []
        self.monitor = Monitor(self._changed)
        self.links, self.fib = self.monitor.links, self.monitor.fib

    def _changed(self, kind: str) -> None:
        self.seen.append(self.route("192.0.2.1") is not None)
        self.kinds.append(kind)

    def route(self, address: str) -> Route | None:
        return self.fib.lookup(address_from_text(address))


@pytest.fixture
def inside(lab: Lab) -> Iterator[Lab]:
    """The test itself runs in the firewall's namespace."""
    with lab.inside("firewall"):
        yield lab


@pytest.fixture
def watch(inside: Lab) -> Iterator[Watch]:
    made = Watch()
    made.monitor.start()
    yield made
    made.monitor.stop()


def ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def kernel_route(address: str) -> tuple[str, str, str | None, int | None] | str | None:
    """(kind, device, gateway, prefix length) by `ip route get`, the kind alone of a refusal, None for no route."""
    done = subprocess.run(["ip", "-j", "route", "get", "fibmatch", address], capture_output=True, text=True)
    if done.returncode:
        return REFUSALS[done.stderr.split("answers: ")[1].strip()]
    found = json.loads(done.stdout)[0]
    gateway = found.get("gateway") or found.get("via", {}).get("host")
    text, _, length = found["dst"].partition("/")
    width = 128 if ":" in address else 32
    kind = found.get("type", "unicast").replace("anycast", "local")  # both are delivered to the host
    return kind, found["dev"], gateway, int(length or (0 if text == "default" else width))


def cached_route(watch: Watch, address: str) -> tuple[str, str, str | None, int | None] | str | None:
    """The same of the cache."""
    route = watch.route(address)
    if route is None:
        return None
    if route.ifindex == 0:
        return route.kind
    link = watch.links.by_index(route.ifindex)
    assert link is not None
    gateway = None if route.gateway is None else address_to_text(route.gateway)
    return route.kind, link.name, gateway, route.prefix_length


def random_address(rng: random.Random, ipv6: bool) -> str:
    """From a space so small that the prefixes below nest and are hit."""
    if ipv6:
        return f"fd00:{rng.randrange(4):x}:{rng.randrange(4):x}::{rng.randrange(4):x}"
    return f"10.{rng.randrange(4)}.{rng.choice((0, 1, 128, 255))}.{rng.choice((0, 1, 2, 99, 255))}"


def random_routes(rng: random.Random, count: int) -> list[str]:
    """Lines for `ip -force -batch`; some repeat a prefix with another metric."""
    lines = []
    for _ in range(count):
        ipv6 = rng.random() < 0.5
        length = rng.choice((16, 32, 48, 64, 127, 128) if ipv6 else (8, 16, 17, 24, 31, 32))
        where = rng.choice(
            (f"via {SERVER6 if ipv6 else SERVER}", "dev in0", "unreachable", "blackhole", "prohibit", "throw")
        )
        kind, hop = ("", where) if " " in where else (where, "")
        table = rng.choice(("main", "main", "default" if not ipv6 else "main"))
        target = ip_interface(f"{random_address(rng, ipv6)}/{length}").network
        lines.append(f"{'-6 ' * ipv6}route add {kind} {target} {hop} metric {rng.randrange(1, 5)} table {table}")
    return lines


def add_routes(lines: list[str]) -> None:
    """Those that the kernel has already are refused, which leaves the others."""
    subprocess.run(["ip", "-force", "-batch", "-"], input="\n".join(lines), text=True, capture_output=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "rule", [None, "rule add fwmark 7 lookup 100", "rule add to 10.3.0.0/16 lookup default pref 10"]
)
def test_lookup_agrees_with_the_kernel(inside, seed, rule):
    """Random routes of every kind, and rules that name a table or look at more than the destination."""
    rng = random.Random(seed)
    lines = random_routes(rng, 400)
    add_routes(lines)
    if rule:
        ip(rule)
    watch = Watch()
    addresses = {random_address(rng, ipv6) for ipv6 in (False, True) for _ in range(60)} | {
        IN0,
        IN06,
        "127.0.0.1",
        "8.8.8.8",
    }
    try:
        assert {address: cached_route(watch, address) for address in addresses} == {
            address: kernel_route(address) for address in addresses
        }
    finally:
        watch.monitor.stop()


def test_first_living_next_hop_of_several(watch):
    """One next hop stands for all; one whose link is down does not count."""
    ip(f"route add 192.0.2.0/24 nexthop via 10.1.0.9 nexthop via {SERVER}")
    poll(lambda: watch.route("192.0.2.1"), 3, "the new route")
    assert cached_route(watch, "192.0.2.1") == ("unicast", "in0", "10.1.0.9", 24)
    ip("link set in0 down")
    poll(lambda: cached_route(watch, "192.0.2.1") == ("unicast", "out0", SERVER, 24), 3, "the other next hop")


def test_ipv4_over_an_ipv6_gateway(watch):
    """The gateway's family need not be the destination's."""
    ip(f"route add 192.0.2.0/24 via inet6 {SERVER6} dev out0")
    poll(lambda: cached_route(watch, "192.0.2.1") == ("unicast", "out0", SERVER6, 24), 3, "the route")


# Following changes


def test_routes_are_followed_and_reported(watch):
    """When the callback speaks, the new state is in place."""
    ip(f"route add 192.0.2.0/24 via {SERVER}")
    poll(lambda: watch.kinds, 3, "the report")
    assert (watch.kinds, watch.seen) == (["route"], [True])
    ip("route replace 192.0.2.0/24 via 10.1.0.9")
    poll(lambda: cached_route(watch, "192.0.2.1") == ("unicast", "in0", "10.1.0.9", 24), 3, "the new gateway")
    ip("route delete 192.0.2.0/24")
    poll(lambda: watch.route("192.0.2.1") is None, 3, "no route")


def test_a_link_takes_its_routes_down_without_a_word(watch):
    """The kernel reports no IPv4 route that goes with its link."""
    ip(f"route add 192.0.2.0/24 via {SERVER}", "link set out0 down")
    poll(lambda: watch.route("192.0.2.1") is None and watch.route(SERVER) is None, 3, "the routes to go")
    poll(lambda: {"link", "route"} <= set(watch.kinds), 3, "the reports")
    link = watch.links.by_name("out0")
    assert link is not None
    assert not link.up


def test_addresses_are_followed(watch):
    """A new address is local at once, with its interface; the first of a link stays the first."""
    ip("address add 10.2.0.77/24 dev out0", "address add fd00:2::77/64 dev out0 nodad")
    link = watch.links.by_name("out0")
    assert link is not None
    poll(lambda: cached_route(watch, "10.2.0.77") == ("local", "out0", None, 32), 3, "the address")
    poll(lambda: cached_route(watch, "fd00:2::77") == ("local", "out0", None, 128), 3, "the IPv6 address")
    poll(lambda: "address" in watch.kinds, 3, "the report")
    link = watch.links.by_name("out0")
    assert link is not None
    assert link.addresses[0] == address_from_text(OUT0)
    assert address_from_text("10.2.0.77") in link.addresses
    assert (address_from_text("10.2.0.0"), address_from_text("10.2.0.255")) in link.subnets


def test_interfaces_come_change_and_go(watch):
    """Name, MTU and index are those of the moment."""
    ip("link add new0 type veth peer name new1", "link set new0 mtu 1280")
    poll(lambda: (link := watch.links.by_name("new0")) and link.mtu == 1280, 3, "the interface")
    ip("link set new0 name other0")
    poll(lambda: watch.links.by_name("other0") and not watch.links.by_name("new0"), 3, "its new name")
    ip("link delete other0")
    poll(lambda: not watch.links.by_name("other0") and not watch.links.by_name("new1"), 3, "both to go")


def test_a_rule_that_looks_at_more_makes_the_kernel_answer(watch):
    """And its answers are forgotten when a route changes."""
    ip("rule add from 10.1.0.0/24 lookup 100", f"route add 192.0.2.0/24 via {SERVER}")
    poll(lambda: cached_route(watch, "192.0.2.1") == ("unicast", "out0", SERVER, 24), 3, "the kernel's answer")
    ip("route add blackhole 192.0.2.1")
    poll(lambda: cached_route(watch, "192.0.2.1") == "blackhole", 3, "the new answer")
    ip("rule delete from 10.1.0.0/24 lookup 100", "route delete blackhole 192.0.2.1")
    poll(lambda: cached_route(watch, "192.0.2.1") == ("unicast", "out0", SERVER, 24), 3, "the cache")


def test_an_overrun_event_socket_loses_nothing(inside):
    """More events than its buffer holds come before the monitor reads the first; thousands are a handful of reports."""
    watch = Watch()
    ip(*(f"route add 172.16.{number >> 8}.{number & 255}/32 via {SERVER}" for number in range(FLOOD)))
    watch.monitor.start()
    poll(lambda: watch.route("172.16.0.0") and watch.route(f"172.16.{(FLOOD - 1) >> 8}.{(FLOOD - 1) & 255}"), 10, "all")
    ip("route delete 172.16.0.0/32")
    poll(lambda: watch.route("172.16.0.0") is None, 10, "events after the overrun")
    assert set(watch.kinds) == {"route"}
    assert len(watch.kinds) < 10
    watch.monitor.stop()


def test_a_failing_callback_does_not_end_the_monitor(inside, caplog):
    """Old routes for everybody would be worse than one missed report."""

    def fail(kind: str) -> None:
        raise ZeroDivisionError(kind)

    monitor = Monitor(fail)
    monitor.start()
    for number in range(2):
        ip(f"route add 192.0.2.{number} via {SERVER}")
        poll(lambda: monitor.fib.lookup(address_from_text(f"192.0.2.{number}")), 3, "the route")  # noqa: B023 - polled at once
    monitor.stop()
    assert "could not be followed" in caplog.text


def test_a_monitor_that_never_ran_can_be_stopped(inside):
    """A start that fails half-way takes back what it has."""
    Monitor(lambda kind: None).stop()


# Ports of the firewall's own sockets


def test_ports_of_every_kind_of_socket_are_used(inside):
    """Listening, connected and bound, in both families; and nothing else."""
    assert used_ports() == (frozenset(), frozenset())
    inside.listener("firewall", 7001)
    inside.listener("firewall", 7002, "::")
    inside.udp("firewall", 7003)
    inside.udp("firewall", 7004, "::")
    inside.listener("server", 7005)
    inside.connect("firewall", (SERVER, 7005), port=7006)
    assert used_ports() == (frozenset({7001, 7002, 7006}), frozenset({7003, 7004}))
