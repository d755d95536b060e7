"""The slow path, watched while it decides.

decide() is a function of a packet and the world. A witness hands it a world whose routes and policy answer as the real
ones do and write down what they were asked. So what the flow log tells is the decision itself and no second opinion,
and while nothing is traced the slow path decides by the real world.

One packet at a time, in the slow path's thread.
"""

from dataclasses import replace
from typing import Any, cast

from dataplane.ffi import lib
from dataplane.flow import FlowKey
from dataplane.names import Names
from dataplane.policy.compile import CompiledPolicy
from dataplane.policy.objects import address_text
from dataplane.routes import Fib, Route
from dataplane.sessions import HOST_ZONE, SessionTable
from dataplane.slowpath import First, World


class Witness:
    """What the slow path tells about each packet while packets are diagnosed."""

    def __init__(self, table: SessionTable, names: Names) -> None:
        self.tracing = False  # set by whoever switches the flow log
        self._table = table
        self._names = names
        self._watching = False
        self._told: list[str] = []

    def begin(self, packet: Any) -> None:
        """The slow path takes a packet from its queue."""
        self._told.clear()
        self._watching = lib.diag_slow_begin(self._table.pointer, packet)

    def end(self, packet: Any, repeated: bool) -> None:
        """It is done with it; `packet` holds it as it came. `repeated`: it goes round, else it was dropped."""
        if self._watching:
            text = "\n".join(self._told).encode()
            lib.diag_slow_end(self._table.pointer, packet, repeated, text, len(text))

    def world(self, world: World, first: First) -> World:
        """The world by which the packet is to be decided."""
        if not (self._watching and self.tracing):
            return world
        self.tell("Predict lookup: nobody has announced this flow")
        if first.key.zone == HOST_ZONE:
            self.tell("Policy lookup: none, the firewall itself sends it")
        elif (peer := world.peers.get(first.ingress)) is not None:
            self.tell(f"Forwarding lookup: none, the virtual wire ends at {self.place(peer, world)}")
        fib, policy = _Routes(world, first.key, self), _Rules(world.policy, self)
        return replace(world, fib=cast(Fib, fib), policy=cast(CompiledPolicy, policy))

    def tell(self, step: str) -> None:
        self._told.append(step)

    def place(self, ifindex: int, world: World) -> str:
        """An interface and the zone that it is in now."""
        zone = world.zone_by_interface.get(ifindex)
        return f"{self._names.interface(ifindex)} ({'in no zone' if zone is None else f'zone {self.zone(zone)}'})"

    def zone(self, number: int) -> str:
        return self._names.zone(number)


class _Routes:
    """The FIB, in the order of decide(): for the destination, for the source, for a translated destination."""

    def __init__(self, world: World, key: FlowKey, witness: Witness) -> None:
        self._world = world
        self._key = key
        self._witness = witness
        self._asked: set[int] = set()

    def lookup(self, address: int) -> Route | None:
        route = self._world.fib.lookup(address)
        if address not in self._asked:
            self._asked.add(address)
            self._witness.tell(f"{self._question(address)}: {address_text(address)} {self._answer(route)}")
        return route

    def _question(self, address: int) -> str:
        if address == self._key.dst:
            return "Forwarding lookup"
        if address == self._key.src:
            return f"Source check, from zone {self._witness.zone(self._key.zone)}"
        return "Forwarding lookup of the translated destination"

    def _answer(self, route: Route | None) -> str:
        if route is None:
            return "has no route"
        place = self._witness.place(route.ifindex, self._world)
        if route.kind != "unicast":
            return f"is {route.kind} on {place}" if route.ifindex else f"is {route.kind}"
        gateway = "" if route.gateway is None else f" by gateway {address_text(route.gateway)}"
        return f"is routed to {place}{gateway}"


class _Rules:
    """The policy: what it answers about the packet's rules is told, the rest is as it was."""

    def __init__(self, policy: CompiledPolicy, witness: Witness) -> None:
        self._policy = policy
        self._witness = witness

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def nat_rule(self, from_zone: int, to_zone: int, *packet: int) -> int | None:
        index = self._policy.nat_rule(from_zone, to_zone, *packet)
        way = self._way(from_zone, to_zone)
        if index is None:
            self._witness.tell(f"NAT policy lookup: {way}, no rule matches")
            return None
        rule = self._policy.nat_rules[index]
        exempt = "" if rule.translates else ", which exempts it from translation"
        self._witness.tell(f"NAT policy lookup: {way}, matched rule {rule.name!r} (index {index + 1}){exempt}")
        return index

    def security_rule(
        self, from_zone: int, to_zone: int, src: int, dst: int, proto: int, dport: int, application: str
    ) -> int:
        index = self._policy.security_rule(from_zone, to_zone, src, dst, proto, dport, application)
        rule = self._policy.security_rules[index]
        place = "default" if rule.kind else f"index {index + 1}"
        way = f"{self._way(from_zone, to_zone)}, application {application}"
        self._witness.tell(f"Policy lookup: {way}, matched rule {rule.name!r} ({place}), action {rule.action.value}")
        return index

    def host_inbound(self, zone: int, proto: int, dport: int) -> bool:
        allowed = self._policy.host_inbound(zone, proto, dport)
        answer = "open" if allowed else "not open"
        self._witness.tell(
            f"Host inbound of zone {self._witness.zone(zone)}: protocol {proto} port {dport} is {answer}"
        )
        return allowed

    def _way(self, from_zone: int, to_zone: int) -> str:
        return f"from {self._witness.zone(from_zone)} to {self._witness.zone(to_zone)}"
