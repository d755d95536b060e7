"""Where a packet would leave: the kernel's routes and links, kept as immutable snapshots that answer in microseconds.

    Monitor (thread) ── netlink event ──► re-read everything ──► Fib, Links ◄── lookup, by_name, by_index (any thread)

An event says only *that* something changed; a re-read says what is true now.  That costs a dump per burst (about 70 µs
per route) and in return a lost event, an overrun socket and a link that takes its routes down without a word all mend
the same way.  Readers take one reference to a tuple that is never changed, so they need no lock.

A lookup follows the `ip rule`s in order.  As long as each of them only names a table, their tables are laid over each
other into one row of intervals and a lookup is one bisect.  Rules that look at more than the destination (mark, source,
incoming interface) cannot be laid out like that: then the kernel is asked once per destination, without those
selectors.

Addresses are 128-bit ints, IPv4 mapped.  Not done: TOS, source-specific and per-flow multipath routing (the first
next hop that is alive stands for all), and tables so large that a dump per change is too slow.
"""

import errno
import logging
import select
import socket
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from dataplane.errors import DataplaneError

MAPPED = 0xFFFF << 32  # ::ffff:0:0/96, where IPv4 lives on the number line
KINDS = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "local",  # an IPv6 anycast address is delivered to the host
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
}
REFUSALS = {errno.EINVAL: "blackhole", errno.EHOSTUNREACH: "unreachable", errno.EACCES: "prohibit"}
TO_TABLE = 1  # FR_ACT_TO_TBL
PLAIN_RULE = {"FRA_TABLE", "FRA_PRIORITY", "FRA_PROTOCOL", "FRA_SUPPRESS_PREFIXLEN"}
NO_SUPPRESSION = 0xFFFFFFFF
RTNH_F_DEAD = 1
RTM_F_CLONED = 0x200
RTM_F_FIB_MATCH = 0x2000  # answer with the route that matched, not with a copy for this destination
ASKED_MAX = 65536  # destinations remembered between two events

IFF_RUNNING = 0x40
ARPHRD_ETHER = 1
IFA_F_DEPRECATED, IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x20, 0x08, 0x40

# Bits of RTMGRP_*: links, addresses, routes and rules of both families, next-hop objects.
GROUPS = 1 << 0 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 31
EVENT_BUFFER = 1 << 20  # bytes
QUIET = 0.01  # seconds without an event that end a burst
BURST = 0.2  # seconds after which a burst is read although it goes on
READ_ATTEMPTS = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """Where one destination goes.

    `kind` is unicast, local, broadcast, multicast, blackhole, unreachable or prohibit.  `ifindex` is the interface it
    leaves by, for a local address the one that owns it, 0 if there is none.  `gateway` is None for a neighbour on the
    link.  `prefix_length` counts in the address's own family (0 to 32 or 0 to 128).
    """

    kind: str
    ifindex: int
    gateway: int | None
    prefix_length: int
    mtu: int = 0  # bytes, where the route limits it


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a routing table; of rows with the same prefix the lowest priority counts, then the earlier one."""

    family: int  # socket.AF_INET or AF_INET6
    table: int
    prefix: int  # lowest address
    priority: int
    route: Route  # kind "throw" sends the search on to the next table


@dataclass(frozen=True, slots=True)
class Link:
    """An interface: `addresses` are its own, those fit for new connections first; `subnets` are (first, last)
    address."""

    name: str
    ifindex: int
    up: bool  # administratively and with carrier
    mtu: int  # bytes
    addresses: tuple[int, ...]
    subnets: tuple[tuple[int, int], ...]
    mac: bytes | None = None  # of an Ethernet device


Resolver = Callable[[int], Route | None]
Intervals = tuple[Sequence[int], Sequence[Route | None]]
Order = tuple[int, ...] | None  # tables in the order of the rules; None: the kernel must be asked
LOCAL, MAIN, DEFAULT = 255, 254, 253
DEFAULT_ORDERS: dict[int, Order] = {socket.AF_INET: (LOCAL, MAIN, DEFAULT), socket.AF_INET6: (LOCAL, MAIN)}


def address_from_text(text: str) -> int:
    """128-bit int of an IPv4 (then mapped) or IPv6 address; raises OSError if it is neither."""
    if ":" in text:
        return int.from_bytes(socket.inet_pton(socket.AF_INET6, text))
    return MAPPED | int.from_bytes(socket.inet_pton(socket.AF_INET, text))


def address_to_text(address: int) -> str:
    """The usual notation; IPv4 if the address is a mapped one."""
    if is_ipv4(address):
        return socket.inet_ntop(socket.AF_INET, (address & 0xFFFFFFFF).to_bytes(4))
    return socket.inet_ntop(socket.AF_INET6, address.to_bytes(16))


def is_ipv4(address: int) -> bool:
    return address >> 32 == 0xFFFF


def is_link_local(address: int) -> bool:
    """In fe80::/10."""
    return address >> 118 == 0xFE80 >> 6


def span(address: int, prefix_length: int) -> tuple[int, int]:
    """First and last address of the prefix that covers `address`; the length counts in the address's own family."""
    size = 1 << ((32 if is_ipv4(address) else 128) - prefix_length)
    first = address & ~(size - 1)
    return first, first + size - 1


# No table changes these: 224.0.0.0/4, 255.255.255.255 and ff00::/8.
MULTICAST_V4 = Entry(socket.AF_INET, 0, MAPPED | 0xE0000000, 0, Route("multicast", 0, None, 4))
BROADCAST_V4 = Entry(socket.AF_INET, 0, MAPPED | 0xFFFFFFFF, 0, Route("broadcast", 0, None, 32))
MULTICAST_V6 = Entry(socket.AF_INET6, 0, 0xFF << 120, 0, Route("multicast", 0, None, 8))
FIXED = (MULTICAST_V4, BROADCAST_V4, MULTICAST_V6)


class Links:
    """The interfaces of the namespace, by name and by index; safe from any thread."""

    def __init__(self, links: Iterable[Link] = ()) -> None:
        self.replace(links)

    def replace(self, links: Iterable[Link]) -> None:
        """Put a new snapshot in place of the old one."""
        by_index = {link.ifindex: link for link in links}
        self._maps = by_index, {link.name: link for link in by_index.values()}

    def by_index(self, ifindex: int) -> Link | None:
        return self._maps[0].get(ifindex)

    def by_name(self, name: str) -> Link | None:
        return self._maps[1].get(name)

    def __iter__(self) -> Iterator[Link]:
        return iter(self._maps[0].values())


class Fib:
    """Longest-prefix match over the tables that the rules name; safe from any thread.

    `ask` answers for one destination where the rules depend on more than the destination.
    """

    def __init__(
        self, entries: Iterable[Entry] = (), orders: Mapping[int, Order] = DEFAULT_ORDERS, ask: Resolver | None = None
    ) -> None:
        self._ask = ask
        self.replace(entries, orders)

    def replace(self, entries: Iterable[Entry], orders: Mapping[int, Order]) -> None:
        """Put new tables in place of the old ones and forget what the kernel was asked."""
        rows = (*FIXED, *entries)
        self.snapshot = Snapshot(
            self._resolver(rows, socket.AF_INET6, orders[socket.AF_INET6]),
            self._resolver(rows, socket.AF_INET, orders[socket.AF_INET]),
        )

    def lookup(self, address: int) -> Route | None:
        """The route that a new packet to `address` takes; None if there is none."""
        return self.snapshot.by_family[address >> 32 == 0xFFFF](address)

    def goes_by_destination(self, address: int) -> bool:
        """Whether nothing but the destination decides about the route there."""
        return self.snapshot.goes_by_destination(address)

    def _resolver(self, rows: Sequence[Entry], family: int, order: Order) -> "_Layered | _Asked":
        tables = [
            _intervals([row for row in rows if row.family == family and row.table == table])
            for table in (FIXED[0].table, *(order or ()))
        ]
        if order is not None:
            return _Layered(tables)
        if self._ask is None:
            raise DataplaneError("routing rules depend on more than the destination, and there is no kernel to ask")
        return _Asked(_Layered(tables), self._ask)


class Snapshot:
    """One state of a Fib: replaced, never changed."""

    def __init__(self, ipv6: "_Layered | _Asked", ipv4: "_Layered | _Asked") -> None:
        self._resolvers = ipv6, ipv4
        self.by_family: tuple[Resolver, Resolver] = ipv6.lookup, ipv4.lookup

    def goes_by_destination(self, address: int) -> bool:
        """Whether the kernel need not be asked about that address."""
        return isinstance(self._resolvers[is_ipv4(address)], _Layered)

    def starts(self) -> set[int] | None:
        """Where one route ends and another begins, along the number line; None where the kernel has to be asked."""
        starts = {MAPPED, MAPPED + (1 << 32)}
        for resolver in self._resolvers:
            if not isinstance(resolver, _Layered):
                return None
            starts.update(resolver.starts)
        return starts


class _Layered:
    """Tables laid over each other: in every interval the first table that has a route there."""

    def __init__(self, tables: Sequence[Intervals]) -> None:
        self.starts = sorted({start for starts, _ in tables for start in starts})
        self._routes = [_first_match(tables, start) for start in self.starts]

    def lookup(self, address: int) -> Route | None:
        return self._routes[bisect_right(self.starts, address) - 1]


class _Asked:
    """The kernel's own answers, remembered until the next event makes a new one of these."""

    def __init__(self, fixed: _Layered, ask: Resolver) -> None:
        self._fixed = fixed
        self._ask = ask
        self._known: dict[int, Route | None] = {}

    def lookup(self, address: int) -> Route | None:
        known = self._known
        if address in known:
            return known[address]
        if len(known) >= ASKED_MAX:
            known = self._known = {}
        route = self._fixed.lookup(address) or self._ask(address)
        known[address] = route
        return route


def _first_match(tables: Sequence[Intervals], address: int) -> Route | None:
    for starts, routes in tables:
        route = routes[bisect_right(starts, address) - 1]
        if route is not None:
            return route
    return None


def _intervals(rows: Iterable[Entry]) -> Intervals:
    """Starts (ascending, the first 0) and the route from each start on: nested prefixes, swept with a stack."""
    starts: list[int] = [0]
    routes: list[Route | None] = [None]
    open_prefixes: list[tuple[int, Route | None]] = []

    def begin(start: int, route: Route | None) -> None:
        if starts[-1] == start:
            routes[-1] = route
            return
        starts.append(start)
        routes.append(route)

    def close_before(address: int) -> None:
        while open_prefixes and open_prefixes[-1][0] < address:
            last, _ = open_prefixes.pop()
            begin(last + 1, open_prefixes[-1][1] if open_prefixes else None)

    for row in _best(rows):
        first, last = span(row.prefix, row.route.prefix_length)
        route = None if row.route.kind == "throw" else row.route
        close_before(first)
        open_prefixes.append((last, route))
        begin(first, route)
    close_before(1 << 128)
    return starts, routes


def _best(rows: Iterable[Entry]) -> list[Entry]:
    """The row that counts of each prefix, outer prefixes before inner ones."""
    best: dict[tuple[int, int], Entry] = {}
    for row in rows:
        key = (row.prefix, row.route.prefix_length)
        if key not in best or row.priority < best[key].priority:
            best[key] = row
    return [best[key] for key in sorted(best)]


class Monitor(threading.Thread):
    """Keeps `fib` and `links` true to the kernel of the namespace it is made in.

    `callback(kind)` is called by this thread for each of "link", "address" and "route" that has changed, once per burst
    of events and after the new state is in place.  Both are filled when the constructor returns.  Raises DataplaneError
    if the kernel's tables cannot be read.
    """

    def __init__(self, callback: Callable[[str], None]) -> None:
        super().__init__(name="route-monitor", daemon=True)
        self._callback = callback
        self._hangup, self._alive = socket.socketpair()
        self._events = _event_socket()
        self._netlink = IPRoute()
        self._questions = IPRoute()
        self._asking = threading.Lock()
        self._state = _read(self._netlink)
        self.links = Links(self._state.links)
        self.fib = Fib(self._state.entries, self._state.orders, self._ask)

    def run(self) -> None:
        while self._wait_for_burst():
            try:
                self._refresh()
            except Exception:  # a thread that ended here would leave everybody with old routes
                log.exception("routes could not be followed; the next event tries again")

    def stop(self) -> None:
        """End the thread and release its sockets; may be called on a monitor that was never started."""
        self._alive.close()
        if self.is_alive():
            self.join()
        self._hangup.close()
        self._events.close()
        self._netlink.close()
        with self._asking:
            self._questions.close()

    def _wait_for_burst(self) -> bool:
        """Wait for events and swallow them until they pause; False when the monitor is to stop."""
        poll = select.poll()
        poll.register(self._hangup, select.POLLIN)
        poll.register(self._events, select.POLLIN)
        ready = poll.poll()
        end = time.monotonic() + BURST
        while ready and time.monotonic() < end:
            if self._hangup.fileno() in dict(ready):
                return False
            _drain(self._events)
            ready = poll.poll(QUIET * 1000)
        return True

    def _refresh(self) -> None:
        old, new = self._state, _read(self._netlink)
        self._state = new
        self.links.replace(new.links)
        self.fib.replace(new.entries, new.orders)
        for kind in new.changes_since(old):
            self._callback(kind)

    def _ask(self, address: int) -> Route | None:
        """What the kernel does with a packet of its own to `address`; raises NetlinkError if it cannot say."""
        try:
            with self._asking:
                answer = next(iter(self._questions.route("get", dst=address_to_text(address), flags=RTM_F_FIB_MATCH)))
        except NetlinkError as error:
            if error.code == errno.ENETUNREACH:
                return None
            if error.code in REFUSALS:
                return Route(REFUSALS[error.code], 0, None, 32 if is_ipv4(address) else 128)
            raise
        entry = _entry(answer)
        return entry.route if entry else None


@dataclass(frozen=True, slots=True)
class _State:
    """All that was read at one moment."""

    links: tuple[Link, ...]
    entries: tuple[Entry, ...]
    orders: dict[int, Order]

    def changes_since(self, old: "_State") -> list[str]:
        kinds = []
        if _without_addresses(self.links) != _without_addresses(old.links):
            kinds.append("link")
        if _only_addresses(self.links) != _only_addresses(old.links):
            kinds.append("address")
        if self.entries != old.entries or self.orders != old.orders:
            kinds.append("route")
        return kinds


def _without_addresses(links: Iterable[Link]) -> list[tuple[Any, ...]]:
    return [(link.name, link.ifindex, link.up, link.mtu, link.mac) for link in links]


def _only_addresses(links: Iterable[Link]) -> list[tuple[Any, ...]]:
    return [(link.ifindex, link.addresses, link.subnets) for link in links]


def _event_socket() -> socket.socket:
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EVENT_BUFFER)
    events.bind((0, GROUPS))
    return events


def _drain(events: socket.socket) -> None:
    """Throw waiting events away: what they say will be read afresh, and so will what an overrun (ENOBUFS) has lost."""
    while True:
        try:
            events.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


def _read(netlink: IPRoute) -> _State:
    """Links, routes and rules as they are now; a dump that a change has interrupted is made again."""
    for _ in range(READ_ATTEMPTS):
        try:
            return _State(
                read_links(netlink),
                tuple(entry for entry in map(_entry, netlink.get_routes()) if entry),
                _orders(netlink.get_rules()),
            )
        except NetlinkDumpInterrupted:
            continue
        except (NetlinkError, OSError) as error:
            raise DataplaneError(f"cannot read the kernel's routes: {error}") from error
    raise DataplaneError("cannot read the kernel's routes: they change faster than they can be read")


def read_links(netlink: IPRoute) -> tuple[Link, ...]:
    """The links with their addresses, in the kernel's order; raises NetlinkError."""
    addresses: dict[int, list[Any]] = {}
    for message in netlink.get_addr():
        if not message.get_attr("IFA_FLAGS") & IFA_F_DADFAILED:
            addresses.setdefault(message["index"], []).append(message)
    return tuple(_link(message, addresses.get(message["index"], [])) for message in netlink.get_links())


def _link(message: Any, addresses: list[Any]) -> Link:
    ranked = sorted(addresses, key=_reluctance)
    own = [_own_address(address) for address in ranked]
    subnets = [span(address_from_text(address.get_attr("IFA_ADDRESS")), address["prefixlen"]) for address in ranked]
    return Link(
        name=message.get_attr("IFLA_IFNAME"),
        ifindex=message["index"],
        up=bool(message["flags"] & IFF_RUNNING),
        mtu=message.get_attr("IFLA_MTU"),
        addresses=tuple(own),
        subnets=tuple(dict.fromkeys(subnets)),
        mac=_mac(message),
    )


def _mac(message: Any) -> bytes | None:
    address = message.get_attr("IFLA_ADDRESS")
    return bytes.fromhex(address.replace(":", "")) if address and message["ifi_type"] == ARPHRD_ETHER else None


def _own_address(message: Any) -> int:
    """IFA_ADDRESS is the peer's on a point-to-point link; IFA_LOCAL, where there is one, is always our own."""
    return address_from_text(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))


def _reluctance(message: Any) -> tuple[bool, int]:
    """Sorts addresses in force before those that are not, then wide scopes (0 is global) before narrow ones."""
    return bool(message.get_attr("IFA_FLAGS") & (IFA_F_DEPRECATED | IFA_F_TENTATIVE)), message["scope"]


def _entry(message: Any) -> Entry | None:
    """A message of RTM_GETROUTE; None for what no lookup can find (dead next hops, TOS, cached copies)."""
    kind = KINDS.get(message["type"])
    hop = _next_hop(message)
    if kind is None or hop is None or message["tos"] or message["flags"] & RTM_F_CLONED:
        return None
    if message["family"] not in DEFAULT_ORDERS:
        return None
    ifindex, gateway = hop if kind in ("unicast", "local", "broadcast", "multicast") else (0, None)
    any_address = MAPPED if message["family"] == socket.AF_INET else 0
    destination = message.get_attr("RTA_DST")
    return Entry(
        family=message["family"],
        table=message.get_attr("RTA_TABLE") or message["table"],
        prefix=address_from_text(destination) if destination else any_address,
        priority=message.get_attr("RTA_PRIORITY") or 0,
        route=Route(kind, ifindex, gateway, message["dst_len"], _mtu(message)),
    )


def _mtu(message: Any) -> int:
    metrics = message.get_attr("RTA_METRICS")
    return (metrics.get_attr("RTAX_MTU") if metrics else None) or 0


def _next_hop(message: Any) -> tuple[int, int | None] | None:
    """Interface index (0 if none) and gateway of the first next hop that is alive; None if all are dead."""
    multipath = message.get_attr("RTA_MULTIPATH")
    for hop in multipath or [message]:
        if hop["flags"] & RTNH_F_DEAD:
            continue
        via = hop.get_attr("RTA_VIA")
        gateway = via["addr"] if via else hop.get_attr("RTA_GATEWAY")
        ifindex = hop["oif"] if multipath else hop.get_attr("RTA_OIF") or 0
        return ifindex, address_from_text(gateway) if gateway else None
    return None


def _orders(rules: Iterable[Any]) -> dict[int, Order]:
    """For each family the tables that the rules name, or None if a rule looks at more than the destination."""
    tables: dict[int, list[int]] = {family: [] for family in DEFAULT_ORDERS}
    asked = set()
    for rule in rules:
        family = rule["family"]
        if family not in tables:
            continue  # multicast routing has rules, too
        if not _names_a_table(rule):
            asked.add(family)
        tables[family].append(rule.get_attr("FRA_TABLE") or rule["table"])
    return {family: None if family in asked else tuple(named) for family, named in tables.items()}


def _names_a_table(rule: Any) -> bool:
    """True for a rule that applies to every packet and does nothing but look into its table."""
    if rule["action"] != TO_TABLE or rule["flags"] or rule["tos"] or rule["src_len"] or rule["dst_len"]:
        return False
    if rule.get_attr("FRA_SUPPRESS_PREFIXLEN") not in (None, NO_SUPPRESSION):
        return False
    return {name for name, _ in rule["attrs"]} <= PLAIN_RULE
