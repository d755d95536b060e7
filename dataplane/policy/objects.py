"""What the names and literals of a configuration stand for: text to ranges of numbers.

Addresses are 128-bit integers with IPv4 mapped into ::ffff:0:0/96, so both families share one number line. The
families stay apart all the same: an IPv6 prefix that spans the mapped block (::/0) leaves it out and so never matches
IPv4.

A prefix with host bits set (10.1.0.5/24) is refused. It may mean the host or the network, and the wrong guess opens
255 addresses or closes them.
"""

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from dataplane.policy.model import Config

Range = tuple[int, int]
"""First and last value, both included."""
PortRange = tuple[int, int, int]
"""IP protocol number, first and last port."""

ANY = "any"
IPV4: Range = (0xFFFF << 32, 0xFFFF << 32 | 0xFFFF_FFFF)
LAST_ADDRESS = (1 << 128) - 1
EVERY_ADDRESS: tuple[Range, ...] = ((0, LAST_ADDRESS),)
LAST_PORT = 65535
LAST_TAG = 4094
TRANSPORTS = {"tcp": 6, "udp": 17}

_Part = TypeVar("_Part")


def is_ipv4(address: int) -> bool:
    """Whether a 128-bit address stands for an IPv4 one."""
    return IPV4[0] <= address <= IPV4[1]


def parse_address(text: str) -> tuple[Range, ...]:
    """Ranges of a host, prefix or first-last range; two only for an IPv6 literal around the IPv4 block.

    Raises ValueError with what an operator should know about the text.
    """
    if "-" in text:
        return _parse_range(*text.split("-", 1))
    host, slash, length = text.partition("/")
    first, bits = _parse_host(host)
    if not slash:
        return ((first, first),)
    if not (length.isascii() and length.isdecimal()) or int(length[:4]) > bits:
        raise ValueError(f"prefix length '{length}' is not a number from 0 to {bits}")
    size = 1 << (bits - int(length))
    base = first & ~(size - 1) if bits == 128 else IPV4[0] | (first - IPV4[0]) & ~(size - 1)
    if base != first:
        raise ValueError(f"host bits are set; write {address_text(base)}/{length} or {host}")
    return _without_ipv4(first, first + size - 1) if bits == 128 else ((first, first + size - 1),)


def _parse_host(text: str) -> tuple[int, int]:
    """A literal address on the number line, and the bits of its family (32 or 128)."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"'{text}' is not an IPv4 or IPv6 address") from None
    if isinstance(address, ipaddress.IPv4Address):
        return IPV4[0] | int(address), 32
    if address.scope_id is not None:
        raise ValueError("an address with a scope cannot be matched")
    if is_ipv4(int(address)):
        raise ValueError("an IPv4 address is written in dotted form")
    return int(address), 128


def _parse_range(start: str, end: str) -> tuple[Range, ...]:
    (first, bits), (last, last_bits) = _parse_host(start), _parse_host(end)
    if bits != last_bits:
        raise ValueError("a range has both ends in one family")
    if last < first:
        raise ValueError("the range is reversed")
    return _without_ipv4(first, last) if bits == 128 else ((first, last),)


def _without_ipv4(first: int, last: int) -> tuple[Range, ...]:
    if last < IPV4[0] or first > IPV4[1]:
        return ((first, last),)
    return ((first, IPV4[0] - 1), (IPV4[1] + 1, last))


@lru_cache(maxsize=16384)  # every log record spells four, most of them again and again
def address_text(address: int) -> str:
    """The usual spelling of a 128-bit address, IPv4 in dotted form."""
    if is_ipv4(address):  # by hand: ipaddress takes ten times as long
        return f"{address >> 24 & 255}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"
    return str(ipaddress.IPv6Address(address))


def parse_ports(text: str) -> Range:
    """First and last port of "80" or "1000-2000". Raises ValueError."""
    first, dash, last = text.partition("-")
    try:
        ports = _parse_port(first), _parse_port(last if dash else first)
    except ValueError:
        raise ValueError(f"'{text}' is not a port from 1 to {LAST_PORT} or a range of ports") from None
    if ports[1] < ports[0]:
        raise ValueError(f"the range '{text}' is reversed")
    return ports


def _parse_port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= LAST_PORT):
        raise ValueError(text)
    return int(text)


def parse_tags(text: str) -> Range:
    """First and last VLAN id of "5" or "100-199". Raises ValueError."""
    ids = text.split("-", 1)
    if not all(part.isascii() and part.isdecimal() and len(part) <= 4 and int(part) <= LAST_TAG for part in ids):
        raise ValueError(f"'{text}' is not a VLAN id from 0 to {LAST_TAG} or a range of ids")
    first, last = int(ids[0]), int(ids[-1])
    if last < first:
        raise ValueError(f"the range '{text}' is reversed")
    return first, last


def parse_default_port(text: str) -> PortRange:
    """Protocol and ports of "tcp/1234" or "udp/1000-2000". Raises ValueError."""
    protocol, slash, ports = text.partition("/")
    if not slash or protocol not in TRANSPORTS:
        raise ValueError(f"'{text}' is not of the form tcp/PORT or udp/PORT")
    return (TRANSPORTS[protocol], *parse_ports(ports))


def merge(ranges: Iterable[Range]) -> list[Range]:
    """The same set of values as sorted ranges that neither overlap nor touch."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def complement(ranges: Iterable[Range]) -> list[Range]:
    """Every address, of either family, that is in none of the ranges."""
    gaps: list[Range] = []
    start = 0
    for first, last in merge(ranges):
        if start < first:
            gaps.append((start, first - 1))
        start = last + 1
    return [*gaps, (start, LAST_ADDRESS)] if start <= LAST_ADDRESS else gaps


def intersect(ranges: Iterable[Range], window: Range) -> list[Range]:
    """The part of each range that lies in the window."""
    clipped = ((max(first, window[0]), min(last, window[1])) for first, last in ranges)
    return [(first, last) for first, last in clipped if first <= last]


def prefix_length(block: Range) -> int:
    """The length of the IPv6 prefix that covers the block and nothing else; -1 if none does."""
    length = 128 - (block[1] - block[0]).bit_length()
    first, last = block
    return length if last - first + 1 == 1 << 128 - length and not first & last - first else -1


def size(ranges: Iterable[Range]) -> int:
    """Number of values in ranges that do not overlap."""
    return sum(last - first + 1 for first, last in ranges)


class Objects:
    """Looks up the address and service names of one configuration; each is worked out once.

    A name that is defined nowhere is taken for a literal, so that an unknown one raises ValueError. Groups that contain
    each other are followed once; load.py refuses them.
    """

    def __init__(self, config: "Config") -> None:
        self._config = config
        self._ranges: dict[str, tuple[Range, ...]] = {ANY: EVERY_ADDRESS}
        self._ports: dict[str, tuple[PortRange, ...]] = {}

    def literals(self, names: Iterable[str]) -> list[str]:
        """Addresses as they are written, with names and groups resolved."""
        leaves = _leaves(names, self._config.address_groups)
        return list(dict.fromkeys(self._config.addresses.get(leaf, leaf) for leaf in leaves))

    def ranges(self, names: Iterable[str]) -> list[Range]:
        """Address ranges in the order written; they may overlap. Raises ValueError."""
        return [part for name in names for part in _once(self._ranges, name, self._resolve_address)]

    def is_service(self, name: str) -> bool:
        """Whether the configuration defines a service or service group of this name."""
        return name in self._config.services or name in self._config.service_groups

    def ports(self, names: Iterable[str]) -> list[PortRange]:
        """Protocols and ports of services and service groups. Raises KeyError for an unknown one."""
        return [part for name in names for part in _once(self._ports, name, self._resolve_service)]

    def _resolve_address(self, name: str) -> tuple[Range, ...]:
        return tuple(part for text in self.literals([name]) for part in parse_address(text))

    def _resolve_service(self, name: str) -> tuple[PortRange, ...]:
        services = [self._config.services[leaf] for leaf in _leaves([name], self._config.service_groups)]
        return tuple((TRANSPORTS[s.protocol], *parse_ports(text)) for s in services for text in s.destination_port)


def _once(
    known: dict[str, tuple[_Part, ...]], name: str, resolve: Callable[[str], tuple[_Part, ...]]
) -> tuple[_Part, ...]:
    if name not in known:
        known[name] = resolve(name)
    return known[name]


def _leaves(names: Iterable[str], groups: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Members that are no groups, depth first in the order written, each once."""
    leaves: dict[str, None] = {}
    entered: set[str] = set()
    waiting = list(names)[::-1]
    while waiting:
        name = waiting.pop()
        if name not in groups:
            leaves[name] = None
        elif name not in entered:
            entered.add(name)
            waiting.extend(reversed(groups[name]))
    return list(leaves)
