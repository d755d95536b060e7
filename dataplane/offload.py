"""Which sessions the kernel forwards by itself (tier 0), and where it sends them.

    worker ── offer ──► Offload (thread): next hop of both directions ──► session_offload()
    neighbour, route, link ── event ──► what went by it comes back to the queues, and is offered again

C says which sessions are ripe (offload.c), and takes off what ends or is changed. Here is what depends on the host:
routes, links, neighbours. What is found for one session is told to C (hop.c), which offloads the next that go there by
itself, connections as soon as they are answered; whatever changes makes it forget. A hop is an interface, its MTU and
the two addresses of the frame; every hop that sessions go by has a number, and when it is not what it was, they are
taken off by that number. A neighbour that only the offload uses looks idle to the kernel, so it is asked after as the
kernel itself would ask.

Not offloaded: what routing rules send by more than the destination, interfaces that are no Ethernet, and virtual wires
over which no frame passes without a tag: the program leaves tagged frames alone, and comes before who drops the others.
"""

import logging
import os
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from dataplane.errors import DataplaneError
from dataplane.ffi import ffi, lib, unpacker
from dataplane.flow import FlowKey
from dataplane.neighbours import Neighbours
from dataplane.routes import Link
from dataplane.sessions import KEY, SessionTable, read_key
from dataplane.slowpath import World

INTERVAL = 20  # ms from an offer to the look at what is offered: others come meanwhile
SECOND = 1000  # ms
BATCH = 256
MAX_BATCHES = 16  # of offers in a turn: neighbours, routes and the sweep have theirs
MAX_HOPS = 65536
MAX_REMEMBERED = 65536  # destinations
REFUSED_PLACES: int = lib.REFUSED_PLACES
MAX_SESSIONS: int = lib.MAX_OFFLOADED
NO_NEIGHBOUR, NO_ROUTE, POLICY_ROUTING, NO_ETHERNET, TAGGED, MAP_FULL = (
    "no-neighbour", "no-route", "policy-routing", "no-ethernet", "tagged", "map-full",
)  # fmt: skip
WIRE_LINK = bytes(12)
REASONS = ("", NO_NEIGHBOUR, NO_ROUTE, POLICY_ROUTING, NO_ETHERNET, TAGGED, MAP_FULL)
SPELLED = [ffi.new("char[]", f'"{reason}"'.encode()) for reason in REASONS]

VIEW = unpacker("offload_view", ["id", "generation", "hop", "key", "ingress", "egress"])
VIEW_SIZE = ffi.sizeof("struct offload_view")

log = logging.getLogger(__name__)


class Filters(Protocol):
    """Where the program is attached: rules/ingress.py."""

    def load(self, table: Any, sessions: int) -> None: ...
    def set(self, ports: list[tuple[int, int, bool]]) -> None: ...
    def remove(self) -> None: ...


def _poller(*sources: Any) -> select.poll:
    poll = select.poll()
    for source in sources:
        poll.register(source, select.POLLIN)
    return poll


@dataclass(frozen=True, slots=True)
class Hop:
    """Where packets of one destination go; `neighbour` is None over a virtual wire."""

    ifindex: int
    mtu: int
    link: bytes
    neighbour: int | None


class Refusals(NamedTuple):
    """C's `struct refusals`, and what it points to."""

    pointer: Any
    kept: tuple[Any, ...]


class View:
    """One session of a batch that C has filled in."""

    __slots__ = ("egress", "generation", "hops", "id", "ingress", "keys")

    def __init__(self, raw: tuple[Any, ...]) -> None:
        self.id, self.generation, *self.hops, keys, self.ingress, self.egress = raw
        self.keys = read_key(keys), read_key(keys, KEY.size)


class Offload(threading.Thread):
    """follow() from the thread that has seen the change, refusals() from any, everything else from its own."""

    def __init__(self, table: SessionTable, filters: Filters, enabled: bool) -> None:
        super().__init__(name="offload", daemon=True)
        self._table = table
        self._filters = filters
        self._idle_reason: str | None = "disabled" if not enabled else "unavailable"
        self._lock = threading.Lock()  # what follows is changed by the thread and by follow()
        self._world: World | None = None
        self._resolved: dict[tuple[int, int], Any] = {}  # (destination, zone) -> C's hop, or why there is none
        self._hops: dict[Hop, Any] = {}
        self._free = list(range(MAX_HOPS - 1, -1, -1))
        self._refused = ffi.new("uint64_t[]", REFUSED_PLACES)  # as `struct refusals` has it
        self._reasons = ffi.new("char *[]", SPELLED)
        self._waiting: list[tuple[int, int]] = []  # id and generation: refused for a reason that may pass
        self._views = ffi.new("struct offload_view[]", BATCH)
        self._alive, self._hangup = socket.socketpair()
        self._swept = time.monotonic()
        self._behind = False  # more is offered than a turn could take

    @property
    def running(self) -> bool:
        return self._idle_reason is None

    def start(self) -> None:
        """Begin, if it is wanted and can be had; else say why not and leave it at that."""
        try:
            if self._idle_reason == "disabled":
                self._filters.remove()  # a dead predecessor's
                return
            self._filters.load(self._table.pointer, min(self._table.max_sessions, MAX_SESSIONS))
            self._neighbours = Neighbours()
        except (DataplaneError, OSError) as error:
            log.warning("nothing is offloaded: %s", error)
            self._filters.remove()
            return
        self._idle_reason = None
        if self._world is not None:
            self.follow(self._world)
        super().start()

    def stop(self) -> None:
        """Every session comes back, then nothing is attached any more."""
        self._hangup.close()
        if self.running:
            self.join()
        with self._lock:  # follow() may still be called
            if self.running:
                self._idle_reason = "unavailable"
                lib.offload_end(self._table.pointer)
                self._neighbours.close()
            self._filters.remove()
        self._alive.close()

    def follow(self, world: World) -> None:
        """Routes, links or zones are others than before: what goes another way now comes back."""
        with self._lock:
            self._world = world
            if not self.running:
                return
            self._filters.set(
                [
                    (link.ifindex, world.zone_by_interface[link.ifindex], link.ifindex in world.peers)
                    for link in world.links
                    if link.mac is not None
                    and link.ifindex in world.zone_by_interface
                    and link.ifindex not in world.only_tagged
                ]
            )
            self._forget_hops()
            self._take_off_what_moved(world)

    def refusals(self) -> Refusals:
        """Why sessions are not offloaded."""
        words = {"json": self._reasons, "n": len(REASONS)}
        whole = ffi.NULL if self._idle_reason is None else ffi.new("char[]", f'"{self._idle_reason}"'.encode())
        return Refusals(ffi.new("struct refusals *", [words, whole, self._refused]), (self, whole))

    # ---- the thread ----

    def run(self) -> None:
        bell = lib.offload_bell(self._table.pointer)
        collecting, idle = _poller(self._alive, self._neighbours), _poller(self._alive, self._neighbours, bell)
        while True:
            ready = dict(idle.poll(0 if self._behind else self._until_sweep()))
            if bell in ready:
                os.eventfd_read(bell)
                ready |= dict(collecting.poll(INTERVAL))
            if self._alive.fileno() in ready:
                return
            try:
                with self._lock:
                    self._turn()
            except Exception:
                log.exception("the offload stumbled and goes on")

    def _until_sweep(self) -> float:
        """ms."""
        return max(0.0, SECOND - 1000 * (time.monotonic() - self._swept))

    def _turn(self) -> None:
        if changed := self._neighbours.follow():
            self._forget_neighbours(changed)
        self._take_offers()
        if not self._until_sweep():
            self._swept = time.monotonic()
            self._every_second()

    def _take_offers(self) -> None:
        self._behind = True
        for _ in range(MAX_BATCHES):
            n = lib.offload_offers(self._table.pointer, self._views, BATCH)
            for view in self._read(n):
                self._offload(view)
            if n < BATCH:
                self._behind = False
                return

    def _offload(self, view: View) -> None:
        assert self._world is not None
        c2s, s2c = self._hop_of(view, 0), self._hop_of(view, 1)
        if view.ingress not in self._world.peers:
            self._tell(view.keys[1], c2s)
            self._tell(view.keys[0], s2c)
        reason = next((hop for hop in (c2s, s2c) if isinstance(hop, str)), None)
        if reason is None:
            done = lib.session_offload(self._table.pointer, view.id, view.generation, c2s, s2c)
            reason = MAP_FULL if done == lib.OFFLOAD_FULL else None
        if reason is not None:
            self._remember(view, reason)
            self._waiting.append((view.id, view.generation))

    def _remember(self, view: View, reason: str) -> None:
        """In one word, so that nobody reads half of it. What was there is told as `not-established` from now on."""
        high, place = divmod(view.id, REFUSED_PLACES)
        self._refused[place] = view.generation << 32 | high << 8 | REASONS.index(reason)

    def _tell(self, back: FlowKey, hop: Any) -> None:
        """The workers: by which hop, if by any, packets go where these come from."""
        known = ffi.NULL if isinstance(hop, str) else hop
        lib.hop_learn(self._table.pointer, back.src.to_bytes(16), back.zone, known)

    def _every_second(self) -> None:
        """Counts come in, hops that nobody goes by are forgotten, the others' neighbours are asked after."""
        used = bytearray(MAX_HOPS)
        lib.offload_sweep(self._table.pointer, ffi.from_buffer(used), MAX_HOPS)
        resolved = {id(hop) for hop in self._resolved.values()}
        for hop, raw in list(self._hops.items()):
            if used[raw.number]:
                if hop.neighbour is not None:
                    self._neighbours.use(hop.ifindex, hop.neighbour)
            elif id(raw) not in resolved:
                self._free.append(self._hops.pop(hop).number)
        if len(self._resolved) >= MAX_REMEMBERED:
            self._forget_hops()
        waiting, self._waiting = self._waiting, []
        for session, generation in waiting:
            lib.session_reconsider(self._table.pointer, session, generation)

    # ---- hops ----

    def _hop_of(self, view: View, direction: int) -> Any:
        """C's hop of a direction, or the reason why there is none."""
        assert self._world is not None
        back = view.keys[not direction]
        if view.ingress in self._world.peers:
            return self._over_wire((view.egress, view.ingress)[direction], self._world)
        place = back.src, back.zone
        if place not in self._resolved:
            self._resolved[place] = self._resolve(back.src, back.zone, self._world)
        return self._resolved[place]

    def _over_wire(self, ifindex: int, world: World) -> Any:
        if ifindex in world.only_tagged:
            return TAGGED
        link = world.links.by_index(ifindex)
        return NO_ROUTE if link is None else self._numbered(Hop(ifindex, link.mtu, WIRE_LINK, None))

    def _resolve(self, destination: int, zone: int, world: World) -> Any:
        if not world.fib.goes_by_destination(destination):
            return POLICY_ROUTING
        route = world.fib.lookup(destination)
        link = world.links.by_index(route.ifindex) if route is not None and route.kind == "unicast" else None
        if route is None or link is None or not link.up or world.zone_by_interface.get(link.ifindex) != zone:
            return NO_ROUTE
        if link.mac is None:
            return NO_ETHERNET
        return self._through(link, destination if route.gateway is None else route.gateway, route.mtu)

    def _through(self, link: Link, neighbour: int, mtu: int) -> Any:
        mac = self._neighbours.mac(link.ifindex, neighbour)
        if mac is None or link.mac is None:
            return NO_NEIGHBOUR
        return self._numbered(Hop(link.ifindex, min(mtu or link.mtu, link.mtu), mac + link.mac, neighbour))

    def _numbered(self, hop: Hop) -> Any:
        if hop not in self._hops:
            if not self._free:
                return MAP_FULL
            number = self._free.pop()
            self._hops[hop] = ffi.new("struct hop *", [hop.ifindex, hop.mtu, hop.link, number])
        return self._hops[hop]

    def _forget_hops(self) -> None:
        """What is resolved; the workers know no more than that."""
        self._resolved.clear()
        lib.hops_forget(self._table.pointer)

    def _forget_neighbours(self, changed: set[tuple[int, int]]) -> None:
        self._forget_hops()
        for hop in [hop for hop in self._hops if (hop.ifindex, hop.neighbour) in changed]:
            number = self._hops.pop(hop).number
            lib.offload_drop_hop(self._table.pointer, number)
            self._free.append(number)

    def _take_off_what_moved(self, world: World) -> None:
        following = ffi.new("uint32_t *")
        while True:
            n = lib.offload_scan(self._table.pointer, following, self._views, BATCH)
            for view in self._read(n):
                hops = [self._hop_of(view, direction) for direction in (0, 1)]
                if [getattr(hop, "number", None) for hop in hops] != view.hops:
                    lib.session_reconsider(self._table.pointer, view.id, view.generation)
            if not following[0]:
                return

    def _read(self, n: int) -> list[View]:
        raw = ffi.buffer(self._views, n * VIEW_SIZE)
        return [View(VIEW.unpack_from(raw, i * VIEW_SIZE)) for i in range(n)]
