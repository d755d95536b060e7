"""The dispatch cache: what was decided for one first packet is repeated in C for every other of its class.

A class is an interface, a protocol, and one elementary interval of the source, of the destination and of the
destination port each. The intervals are cut wherever a rule, a translation or a route begins or ends (compile.py,
routes.py), for packets on their way back as well (anti-spoofing), so nothing that decide() looks at differs within a
class: the cached decision is the decision. How C finds a class, and what it does then, is told at the head of cache.c.

Not cached is what depends on more: ALGs, bindings, quotas, the firewall's own services, refusals that are answered,
translations that differ within an interval but for the spreading over one range of addresses, and everything while a
session is predicted or the kernel has to be asked for routes.

The cache is emptied before anything changes and opened with the world that holds afterwards; what the slow path has
decided by another world, or by routes that are not those of the intervals, is not learnt.
"""

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from dataplane.ffi import lib
from dataplane.flow import Decision, FlowKey
from dataplane.policy.applications import TCP, UDP
from dataplane.policy.compile import AddressMap, CompiledNatRule, CompiledPolicy, CompiledSecurityRule, Pool
from dataplane.policy.model import Action, SourceType
from dataplane.policy.objects import LAST_ADDRESS, LAST_PORT
from dataplane.policy.prefix import PrefixMap
from dataplane.routes import Fib, Snapshot
from dataplane.sessions import SessionTable

LINK_LOCAL = (0xFE80 << 112, 0xFEC0 << 112)
UNSPECIFIED = (0, 1, 0xFFFF << 32, (0xFFFF << 32) + 1)
SILENT = (Action.DENY, Action.DROP)
MAX_SPREAD = (1 << 32) - 1  # addresses

log = logging.getLogger(__name__)


class Starts(NamedTuple):
    """Where the intervals of each field begin, ascending, the first at 0."""

    source: list[int]
    destination: list[int]
    tcp: list[int]
    udp: list[int]


def starts_of(policy: CompiledPolicy, routes: Iterable[int]) -> Starts:
    """Every place at which a decision may change; `routes` are those at which the route does."""
    edges, routed = policy.edges(), {*routes}
    return Starts(
        _line(edges.source | routed | {*LINK_LOCAL, *UNSPECIFIED}, LAST_ADDRESS),
        _line(edges.destination | routed, LAST_ADDRESS),
        _line(edges.ports[TCP], LAST_PORT),
        _line(edges.ports[UDP], LAST_PORT),
    )


def _line(starts: set[int], last: int) -> list[int]:
    return sorted({0, *(start for start in starts if start <= last)})


def is_repeatable(decision: Decision, rule: CompiledSecurityRule, nat: CompiledNatRule | None, key: FlowKey) -> bool:
    """Whether the decision for this flow, by these rules, is that for every flow of its class: but for the address of
    a pool, which pool_of() tells.
    """
    if decision.host or decision.inspected:
        return False
    if decision.discard:
        return rule.action in SILENT and not rule.icmp_unreachable
    if nat is None:
        return True
    if nat.pool is not None and not _is_spread(nat.pool):
        return False
    return _is_constant(nat.source_map, key.src) and _is_constant(nat.destination_map, key.dst)


def pool_of(nat: CompiledNatRule | None) -> Pool | None:
    """The pool over whose addresses the sources of a class are spread; None where they all get one."""
    pool = None if nat is None else nat.pool
    return None if pool is None or pool.interface is not None or pool.size == 1 else pool


def _is_spread(pool: Pool) -> bool:
    """C can choose the address itself: one, or one of a single range."""
    if pool.type is not SourceType.DYNAMIC_IP_AND_PORT:
        return False
    return pool.interface is not None or (len(pool.addresses) == 1 and pool.size <= MAX_SPREAD)


def _is_constant(addresses: AddressMap | PrefixMap | None, address: int) -> bool:
    """Whether the whole interval of the address is translated alike: to one address, or it is one address."""
    if addresses is None:
        return True
    if isinstance(addresses, PrefixMap):
        return False
    return addresses.fixed or any(first == address == last for first, last, _ in addresses.segments)


class Basis(NamedTuple):
    """What the templates of an epoch rest on."""

    world: object
    fib: Fib
    routes: Snapshot
    epoch: int


class Dispatch:
    """The cache of one table. follow() and forget() by whoever changes the world, learn() by the slow path alone."""

    def __init__(self, table: SessionTable) -> None:
        self._table = table
        self._basis: Basis | None = None

    def forget(self) -> None:
        """Before anything changes: until follow() every first packet goes the long way."""
        self._basis = None
        self._table.close_cache()

    def follow(self, world: object, policy: CompiledPolicy, fib: Fib) -> None:
        """From now on what is decided by this world is learnt; `world` itself is only compared."""
        self.forget()
        routes = fib.snapshot
        edges = routes.starts()
        if edges is None:
            return
        starts = starts_of(policy, edges)
        if max(len(starts.source), len(starts.destination)) > lib.MAX_STARTS:
            log.warning("too many routes and addresses for the dispatch cache: it is off")
            return
        self._basis = Basis(world, fib, routes, self._table.open_cache(starts))

    def basis_of(self, world: object) -> Basis | None:
        """What a decision that this world has just made rests on; None where it is not to be learnt."""
        basis = self._basis
        if basis is None or basis.world is not world or basis.fib.snapshot is not basis.routes:
            return None
        return basis

    def learn(
        self,
        basis: Basis,
        packet: Any,
        key: FlowKey,
        decision: Decision,
        rule: CompiledSecurityRule,
        nat: CompiledNatRule | None,
    ) -> None:
        """What was installed last, for a parsed packet with this key by these rules, is decided for its class, if it
        may be. `nat` need not be named where nothing is translated."""
        if not is_repeatable(decision, rule, nat, key):
            return
        pool = pool_of(nat)
        spread = None if pool is None else (pool.address(0), pool.size)
        self._table.learn(basis.epoch, packet, spread, rule.log_start or (decision.discard and rule.log_end))
