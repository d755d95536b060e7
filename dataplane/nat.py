"""What a matched NAT rule makes of one session: a pure function of the rule and the packet's addresses.

The port of a dynamic translation is not chosen here: C draws it when the session is installed, because only the session
table knows whether the answer's key is free. Nor is what a source is bound to beyond one session: see bindings.py.
"""

from collections.abc import Callable

from dataplane.flow import Translation
from dataplane.policy.compile import CompiledNatRule, Pool
from dataplane.policy.model import SourceType

InterfaceAddress = Callable[[str, bool], int | None]  # name, is it IPv4 -> its first address of that family

# Knuth's multiplicative hash: neighbouring sources go to different addresses, one source always to the same.
SPREAD = 0x9E3779B97F4A7C15


class NoAddress(Exception):
    """The interface whose address a rule translates to has none now."""


def translate(
    rule: CompiledNatRule, src: int, dst: int, ipv4: bool, interface_address: InterfaceAddress
) -> Translation | None:
    """The translation of a session that matched the rule; None where the rule exempts it.

    Raises NoAddress, or Unmappable of an NPTv6 rule.
    """
    destination = rule.destination_map.translate(dst) if rule.destination_map is not None else None
    if rule.pool is not None:
        source, ports = drawn_from(rule.pool, src, ipv4, interface_address)
        binding = None if rule.pool.type is SourceType.DYNAMIC_IP_AND_PORT else rule.pool
        return Translation(source, ports, destination, rule.destination_port, binding=binding)
    source = rule.source_map.translate(src) if rule.source_map is not None else None
    if source is None and destination is None:
        return None
    return Translation(source, None, destination, rule.destination_port)


def drawn_from(
    pool: Pool, src: int, ipv4: bool, interface_address: InterfaceAddress
) -> tuple[int | None, tuple[int, int] | None]:
    """Address and ports for a source; of a dynamic-ip pool those of its fallback, None where that has none."""
    if pool.type is not SourceType.DYNAMIC_IP:
        return pool_address(pool, src, ipv4, interface_address), pool.ports
    if pool.fallback is None:
        return None, None
    try:
        return pool_address(pool.fallback, src, ipv4, interface_address), pool.fallback.ports
    except NoAddress:
        return None, None


def pool_address(pool: Pool, src: int, ipv4: bool, interface_address: InterfaceAddress) -> int:
    """The pool's address for a source: PAN-OS chooses by a hash of it, so that a client keeps one public address."""
    if pool.interface is not None:
        address = interface_address(pool.interface, ipv4)
        if address is None:
            raise NoAddress(pool.interface)
        return address
    return pool.address((src * SPREAD & (1 << 64) - 1) * pool.size >> 64)
