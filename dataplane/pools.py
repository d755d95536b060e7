"""How much of a NAT pool is in use."""

from typing import NamedTuple

from dataplane.bindings import Bindings
from dataplane.policy.compile import Pool
from dataplane.policy.model import SourceType
from dataplane.policy.objects import Range, size
from dataplane.sessions import SessionTable
from dataplane.slowpath import World


class PoolUse(NamedTuple):
    """Of a dynamic-ip pool its addresses; else its ports, TCP and UDP counted together, times the sessions that may
    share one (contract section 3)."""

    ranges: tuple[Range, ...]
    used: int
    capacity: int
    ratio: int

    @property
    def percent(self) -> float:
        return 100 * self.used / self.capacity if self.capacity else 0.0


def pool_use(pool: Pool, table: SessionTable, bindings: Bindings, world: World) -> PoolUse:
    """The state of one pool; that of an interface without an address is empty."""
    ranges = pool_ranges(pool, world)
    if pool.type is SourceType.DYNAMIC_IP_AND_PORT:
        used, ratio = sum(table.ports_used_between(*ends, pool.ports) for ends in ranges), table.oversubscription
    else:
        used, ratio = bindings.held(pool.rule), 1
    ports = 1 if pool.type is SourceType.DYNAMIC_IP else pool.ports[1] - pool.ports[0] + 1
    return PoolUse(ranges, used, size(ranges) * ports * ratio, ratio)


def pool_ranges(pool: Pool, world: World) -> tuple[Range, ...]:
    """The pool's addresses; of an interface the one that it has now."""
    if pool.interface is None:
        return pool.addresses
    own = world.interface_address(pool.interface, pool.nat_type.value == "ipv4")
    return () if own is None else ((own, own),)
