"""What a matched NAT rule makes of one session: a pure function of the rule and the packet's addresses.

The port of a dynamic translation is not chosen here: C draws it when the session is installed, because only the session
table knows whether the answer's key is free.
"""

from collections.abc import Callable

from dataplane.flow import Translation
from dataplane.policy.compile import CompiledNatRule, Pool

InterfaceAddress = Callable[[str, bool], int | None]  # name, is it IPv4 -> its first address of that family

# Knuth's multiplicative hash: neighbouring sources go to different addresses, one source always to the same.
SPREAD = 0x9E3779B97F4A7C15


class NoAddress(Exception):
    """The interface whose address a rule translates to has none now."""


def translate(
    rule: CompiledNatRule, src: int, dst: int, ipv4: bool, interface_address: InterfaceAddress
) -> Translation | None:
    """The translation of a session that matched the rule; None where the rule exempts it. Raises NoAddress."""
    source = ports = None
    if rule.pool is not None:
        source, ports = pool_address(rule.pool, src, ipv4, interface_address), rule.pool.ports
    elif rule.source_map is not None:
        source = rule.source_map.translate(src)
    destination = rule.destination_map.translate(dst) if rule.destination_map is not None else None
    if source is None and destination is None:
        return None
    return Translation(source, ports, destination, rule.destination_port)


def pool_address(pool: Pool, src: int, ipv4: bool, interface_address: InterfaceAddress) -> int:
    """The pool's address for a source: PAN-OS chooses by a hash of it, so that a client keeps one public address."""
    if pool.interface is not None:
        address = interface_address(pool.interface, ipv4)
        if address is None:
            raise NoAddress(pool.interface)
        return address
    return pool.address((src * SPREAD & (1 << 64) - 1) * pool.size >> 64)
