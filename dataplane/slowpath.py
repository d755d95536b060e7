"""First packet of a flow: decide once, so that the fast path never has to.

A packet that no session claims is verdicted by a hot worker into the slow queue, where this thread takes it:

    predicted? -> source check -> route -> NAT rule -> route again -> egress zone -> security rule -> install -> REPEAT

Rules see addresses and ports as the packet brought them; the egress zone is that of the translated destination
(PAN-OS). The packet is never changed here: REPEAT sends it round, and a hot worker finds the session and rewrites it. A
second packet of the flow that was queued meanwhile finds the session too, by the look that comes before deciding.

A refused packet leaves a DISCARD session, so that its successors die in C. Where nothing but its class matters, what is
decided for a flow is decided for all of the class: then C repeats it for the next one (dispatch.py).

Packets that an ALG has to read come here as well, tracked already; only of them the payload may change (inspection.py).
"""

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, Protocol

from netfilterqueue import NetfilterQueue

from dataplane.bindings import Bindings
from dataplane.counters import HitCounts, NatCounts
from dataplane.dispatch import Dispatch
from dataplane.errors import DataplaneError
from dataplane.ffi import ffi, lib
from dataplane.flow import Decision, FlowKey, Session, Translation
from dataplane.inspection import AlgFactory, Inspection, Surroundings
from dataplane.latency import Latency
from dataplane.nat import NoAddress, translate
from dataplane.policy.compile import AddressMap, CompiledNatRule, CompiledPolicy, CompiledSecurityRule
from dataplane.policy.model import Action
from dataplane.policy.prefix import PrefixMap, Unmappable
from dataplane.quotas import Quotas
from dataplane.replies import RateLimit, Replies, tcp_reset, unreachable
from dataplane.routes import Fib, Links, Route, is_ipv4, is_link_local
from dataplane.sessions import (
    HOST_ZONE,
    MARK_SEEN,
    MARK_TRACKED,
    AlreadyInstalled,
    InstallError,
    SessionTable,
    read_key,
)

QUEUE_LENGTH = 4096  # packets that may wait in the kernel for a decision
RECEIVE_BUFFER = 8 << 20
# Bytes: what fits into netfilterqueue's buffer of 4,096 with the attributes around it. Longer first packets
# (reassembled datagrams, jumbo frames) are decided by their beginning.
COPY_RANGE: int = lib.INSPECT_MAX
WAIT_MAX = 1.0  # seconds that a packet may wait for its verdict
WAIT_ABSURD = 60.0  # a clock was set: believe nobody
STOP_LATENCY = 0.1  # seconds

HOST_INBOUND = "host-inbound"  # the name under which sessions to the firewall itself are shown and denied
RESETS = (Action.RESET_CLIENT, Action.RESET_SERVER, Action.RESET_BOTH)
TCP = 6

log = logging.getLogger(__name__)


class Refused(Exception):
    """A packet that cannot even have a session; `counter` says why."""

    def __init__(self, counter: int) -> None:
        super().__init__(counter)
        self.counter = counter


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a decision depends on besides the packet. Replaced as a whole when any of it changes."""

    policy: CompiledPolicy
    fib: Fib
    links: Links
    zone_by_interface: Mapping[int, int]  # interface index -> zone id
    rule_numbers: tuple[int, ...]  # by index in policy.security_rules
    nat_rule_numbers: tuple[int, ...]
    application_rows: Mapping[str, int]
    host_inbound_rule: int  # number
    no_rule: int  # number of the rule without a name
    peers: Mapping[int, int] = field(default_factory=dict)  # ports of virtual wires -> the port at the other end
    only_tagged: frozenset[int] = frozenset()  # ports of the wires over which no frame passes without a tag
    algs: Mapping[tuple[int, int], AlgFactory] = field(default_factory=dict)  # application row and protocol -> reader

    def zone_of(self, route: Route | None) -> int:
        """Zone of a route's interface; Refused where there is no way or the interface is in no zone."""
        if route is None or route.kind not in ("unicast", "local", "broadcast"):
            raise Refused(lib.FLOW_FWD_L3_NOROUTE)
        zone = self.zone_by_interface.get(route.ifindex)
        if zone is None:
            raise Refused(lib.FLOW_FWD_L3_NOROUTE)
        return zone

    def interface_address(self, name: str, ipv4: bool) -> int | None:
        """The first address of a family that an interface has, link-local ones aside."""
        link = self.links.by_name(name)
        addresses = link.addresses if link is not None else ()
        return next((a for a in addresses if is_ipv4(a) == ipv4 and not is_link_local(a)), None)

    def address_at(self, ifindex: int, ipv4: bool) -> int | None:
        """The same by interface index: in whose name a packet that came in there is answered."""
        link = self.links.by_index(ifindex)
        return None if link is None else self.interface_address(link.name, ipv4)

    def nat_rules(self) -> dict[int, CompiledNatRule]:
        """The rules by the numbers that sessions hold."""
        return dict(zip(self.nat_rule_numbers, self.policy.nat_rules, strict=True))

    def surroundings(self) -> Surroundings:
        """What inspection needs to know of all this."""
        return Surroundings(
            rows=self.application_rows,
            applications=self.policy.applications.by_name,
            factories=self.algs,
            ports={number: rule.pool.ports for number, rule in self.nat_rules().items() if rule.pool is not None},
            no_rule=self.no_rule,
        )

    def is_host(self, address: int) -> bool:
        """An address that the firewall itself listens to. The kernel calls NAT pools local too, which they are not."""
        route = self.fib.lookup(address)
        if route is not None and route.kind in ("multicast", "broadcast"):
            return True
        return any(address in link.addresses for link in self.links)


class First(NamedTuple):
    """A first packet: its flow and what the key does not say."""

    key: FlowKey
    ingress: int  # interface index; 0 for the firewall's own
    egress: int  # of the firewall's own packets, else 0
    echo: bool


class Witness(Protocol):
    """Whoever watches the slow path while packets are diagnosed: diag/witness.py."""

    def begin(self, packet: Any) -> None: ...
    def end(self, packet: Any, repeated: bool) -> None: ...
    def world(self, world: World, first: First) -> World: ...


Outcome = tuple[Decision, CompiledSecurityRule | None]


def decide(first: First, world: World) -> Outcome:
    """What becomes of the flow, and the security rule that said so (None: no rule was asked). Raises Refused."""
    key = first.key
    if key.zone == HOST_ZONE:
        return own_traffic(first, world), None
    if (peer := world.peers.get(first.ingress)) is not None:
        return over_wire(first, peer, world)
    route = world.fib.lookup(key.dst)
    check_source(key, world)
    if route is not None and route.kind in ("multicast", "broadcast"):
        return to_host(first, None, world), None
    nat_index = nat_rule_to(route, key, world)
    nat = None if nat_index is None else world.policy.nat_rules[nat_index]
    if nat is not None and nat.destination_map is not None:
        route = world.fib.lookup(translated_destination(nat.destination_map, key.dst))
    if route is not None and route.kind == "local":
        return to_host(first, nat_index, world), None
    return by_policy(first, route, nat_index, world)


def over_wire(first: First, peer: int, world: World) -> Outcome:
    """A session over a virtual wire leaves by the port at its other end, whatever its addresses are: nothing is routed,
    no source can be false, and nothing is for the firewall itself."""
    route = Route("unicast", peer, None, 0)
    return by_policy(first, route, nat_rule_to(route, first.key, world), world)


def nat_rule_to(route: Route | None, key: FlowKey, world: World) -> int | None:
    """Index of the NAT rule of a flow whose original destination has this route."""
    return world.policy.nat_rule(key.zone, world.zone_of(route), key.src, key.dst, key.proto, key.dport)


def nat_rule_of(first: First, world: World) -> CompiledNatRule | None:
    """The NAT rule that decide() has found."""
    peer = world.peers.get(first.ingress)
    route = world.fib.lookup(first.key.dst) if peer is None else Route("unicast", peer, None, 0)
    index = nat_rule_to(route, first.key, world)
    return None if index is None else world.policy.nat_rules[index]


def check_source(key: FlowKey, world: World) -> None:
    """Anti-spoofing: the source must be routed back into the zone it comes from; Refused if not."""
    route = world.fib.lookup(key.src)
    if route is not None and route.kind in ("local", "broadcast", "multicast"):
        raise Refused(lib.FLOW_IP_SPOOF)
    if not world.policy.anti_spoof[key.zone] or is_link_local(key.src) or _is_unspecified(key.src):
        return
    if route is None or world.zone_by_interface.get(route.ifindex) != key.zone:
        raise Refused(lib.FLOW_IP_SPOOF)


def own_traffic(first: First, world: World) -> Decision:
    """What the firewall sends itself always has a session and needs no rule."""
    return Decision(
        discard=False,
        egress_zone=world.zone_by_interface.get(first.egress, 0),
        application=application_row(first, world),
        rule=world.no_rule,
        ingress=0,
        egress=first.egress,
        host=True,
    )


def to_host(first: First, nat_index: int | None, world: World) -> Decision:
    """A session with the firewall itself, as the zone's host-inbound says. Its source is never translated: the answer
    would come from the firewall to the firewall."""
    key = first.key
    nat = None if nat_index is None else world.policy.nat_rules[nat_index]
    translation = None if nat is None else destination_only(translation_of(nat, key, world))
    target, port = key.dst, key.dport
    if translation is not None and translation.destination is not None:
        target, port = translation.destination, translation.destination_port or port
    allowed = world.policy.host_inbound(key.zone, key.proto, port) and world.is_host(target)
    return Decision(
        discard=not allowed,
        egress_zone=HOST_ZONE,
        application=application_row(first, world),
        rule=world.host_inbound_rule,
        ingress=first.ingress,
        egress=0,
        nat_rule=None if translation is None or nat_index is None else world.nat_rule_numbers[nat_index],
        translation=translation if allowed else None,
        host=True,
    )


def destination_only(translation: Translation | None) -> Translation | None:
    if translation is None or translation.destination is None:
        return None
    return Translation(destination=translation.destination, destination_port=translation.destination_port)


def by_policy(first: First, route: Route | None, nat_index: int | None, world: World) -> Outcome:
    """A session through the firewall, as the first matching security rule says."""
    key, policy = first.key, world.policy
    egress_zone = world.zone_of(route)
    application = policy.application(key.proto, key.dport, first.echo)
    index = policy.security_rule(key.zone, egress_zone, key.src, key.dst, key.proto, key.dport, application.name)
    rule = policy.security_rules[index]
    allowed = rule.action is Action.ALLOW
    row = world.application_rows[application.name]
    nat = None if nat_index is None else policy.nat_rules[nat_index]
    decision = Decision(
        discard=not allowed,
        egress_zone=egress_zone,
        application=row,
        rule=world.rule_numbers[index],
        ingress=first.ingress,
        egress=route.ifindex if route is not None else 0,
        nat_rule=None if nat_index is None else world.nat_rule_numbers[nat_index],
        translation=translation_of(nat, key, world) if allowed and nat is not None else None,
        log_end=rule.log_end,
        inspected=allowed and rule.alg and (row, key.proto) in world.algs,
    )
    return decision, rule


def translated_destination(destinations: AddressMap | PrefixMap, dst: int) -> int:
    try:
        return destinations.translate(dst)
    except Unmappable:
        raise Refused(lib.NAT_NPTV6_UNMAPPABLE) from None


def translation_of(nat: CompiledNatRule, key: FlowKey, world: World) -> Translation | None:
    try:
        return translate(nat, key.src, key.dst, key.family == 4, world.interface_address)
    except NoAddress:
        raise Refused(lib.NAT_DIPP_ALLOC_FAILURE) from None
    except Unmappable:
        raise Refused(lib.NAT_NPTV6_UNMAPPABLE) from None


def application_row(first: First, world: World) -> int:
    return world.application_rows[world.policy.application(first.key.proto, first.key.dport, first.echo).name]


def outcome(key: FlowKey, decision: Decision, rule: CompiledSecurityRule | None) -> int:
    """The counter of what was decided."""
    if decision.discard:
        return int(lib.FLOW_SLOWPATH_DENY)
    if rule is not None:
        return int(lib.FLOW_SLOWPATH_ALLOW)
    return int(lib.FLOW_SLOWPATH_OWN if key.zone == HOST_ZONE else lib.FLOW_SLOWPATH_HOST)


def _is_unspecified(address: int) -> bool:
    return address in (0, 0xFFFF << 32)


def refused_session(key: FlowKey, decision: Decision) -> Session:
    """What would have been a session, for the record that says why it is none."""
    back = FlowKey(key.dst, key.src, key.dport, key.sport, key.proto, decision.egress_zone, key.family)
    return Session(
        id=0,
        generation=0,
        c2s=key,
        s2c=back,
        state="INIT",
        type="FLOW",
        end_reason="resources-unavailable",
        bytes=(0, 0),
        packets=(0, 0),
        timeout=0,
        time_to_live=0,
        start=int(time.time()),
        elapsed=0,
        application=decision.application,
        rule=decision.rule,
        nat_rule=decision.nat_rule,
        ingress=decision.ingress,
        egress=decision.egress,
        source_nat=False,
        destination_nat=False,
        log_end=False,
        host=decision.host,
        parent=0,
    )


class SlowPath(threading.Thread):
    """The thread of the slow queue; sets `failed` if it ends by itself.

    `world` may be replaced at any time; the next packet is decided by the new one.
    """

    def __init__(
        self,
        queue: int,
        table: SessionTable,
        bindings: Bindings,
        quotas: Quotas,
        inspection: Inspection,
        dispatch: Dispatch,
        world: World,
        hits: HitCounts,
        nat: NatCounts,
        latency: Latency,
        replies: Replies,
        record: Callable[[str, Session, str, str | None], None],
        failed: threading.Event,
    ) -> None:
        super().__init__(name="slowpath", daemon=True)
        self._deciding = threading.Lock()
        self.turns = 0  # for the watchdog
        self._inspection = inspection
        self._dispatch = dispatch
        self.set_world(world)
        self._table = table
        self._bindings = bindings
        self._quotas = quotas
        self._hits = hits
        self._nat = nat
        self._latency = latency
        self._replies = replies
        self._record = record  # event, session, action, end reason
        self.witness: Witness | None = None  # may be set at any time, from the next packet on
        self._packet = ffi.new("struct packet *")
        self._complaints = RateLimit(1)
        self._failed = failed
        self._ending = threading.Event()
        self._queue = NetfilterQueue()
        try:
            self._queue.bind(queue, self._take, max_len=QUEUE_LENGTH, range=COPY_RANGE, sock_len=RECEIVE_BUFFER)
        except OSError as error:
            raise DataplaneError(f"NFQUEUE {queue}: another program reads it") from error

    def set_world(self, world: World) -> None:
        """From the next packet on; no session that is installed after this was decided by the one before."""
        with self._deciding:
            self.world = world
            self._inspection.surroundings = world.surroundings()
            if world.policy.config.settings.dispatch_cache:
                self._dispatch.follow(world, world.policy, world.fib)
            else:
                self._dispatch.forget()

    def run(self) -> None:
        try:
            self._serve()
        except Exception:
            log.critical("the slow path ended", exc_info=True)
            self._failed.set()

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._queue.get_fd(), select.POLLIN)
        while not self._ending.is_set():
            self.turns += 1
            if poller.poll(STOP_LATENCY * 1000):
                self._queue.run(block=False)

    def stop(self) -> None:
        self._ending.set()
        self.join()
        self._queue.unbind()

    def _take(self, queued: Any) -> None:
        """Every packet gets exactly one verdict, whatever happens on the way to it."""
        self.turns += 1  # here too: under a flood one run of the queue has no end
        verdict, witness, repeated = queued.drop, self.witness, False
        if witness is not None:
            witness.begin(self._packet)
        try:
            with self._deciding:
                goes_round = self._handle(queued, witness)
            if goes_round:
                queued.set_mark(queued.get_mark() | MARK_SEEN)
                verdict, repeated = queued.repeat, True
        except Refused as refusal:
            self._table.count(refusal.counter)
        except InstallError:
            pass  # counted by C
        except Exception:
            self._table.count(lib.FLOW_SLOWPATH_ERROR)
            if self._complaints.allows():
                log.exception("a first packet could not be decided")
        if witness is not None:
            self._testify(queued, witness, repeated)
        verdict()
        self._latency.add(time.time() - queued.get_timestamp())

    def _testify(self, queued: Any, witness: Witness, repeated: bool) -> None:
        """Tell the witness what became of a packet; it may have been changed, or never been parsed."""
        try:
            witness.end(self._parse(queued, queued.get_payload()), repeated)
        except Exception:
            if self._complaints.allows():
                log.exception("a first packet could not be diagnosed")

    def _handle(self, queued: Any, witness: Witness | None) -> bool:
        """True if the packet is to be sent round, because a session waits for it."""
        age = time.time() - queued.get_timestamp()
        if WAIT_MAX < age < WAIT_ABSURD:
            raise Refused(lib.FLOW_QUEUED_TOO_LONG)
        payload = queued.get_payload()
        packet = self._parse(queued, payload)
        look = lib.slowpath_look(self._table.pointer, packet)
        if look == lib.VERDICT_DROP:
            return False
        if look == lib.VERDICT_ACCEPT:
            tracked = packet.mark & MARK_TRACKED
            self._table.count(lib.FLOW_SLOWPATH_INSPECT if tracked else lib.FLOW_SLOWPATH_AGAIN)
            if tracked:
                self._inspect(queued, packet, payload)
            return True
        first = First(
            read_key(ffi.buffer(ffi.addressof(packet, "key"))),
            queued.physindev or queued.indev,
            queued.outdev,
            bool(packet.echo),
        )
        world = self.world
        if look == lib.VERDICT_RESET:
            self._disown(payload, packet.l4, first, world, queued.get_hw())
        if (fulfilled := self._fulfil(first, socket.ntohs(packet.call), packet.ip_len)) is not None:
            return fulfilled
        decision, rule = decide(first, world if witness is None else witness.world(world, first))
        try:
            session_id = self._install(first.key, decision, packet.ip_len)
        except AlreadyInstalled:
            self._table.count(lib.FLOW_SLOWPATH_AGAIN)
            return True
        except InstallError as error:
            self._nat.failed(decision.nat_rule, error.counter)
            self._turn_away(payload, first, decision, rule, world, error)
            raise
        if rule is not None:
            self._teach(packet, first, decision, rule, world)
        self._table.count(outcome(first.key, decision, rule))
        self._nat.hit(decision.nat_rule)
        self._begun(session_id, rule, decision.rule)
        if decision.discard:
            self._refuse(payload, packet.l4, first, rule, world, queued.get_hw())
        return not decision.discard

    def _teach(self, packet: Any, first: First, decision: Decision, rule: CompiledSecurityRule, world: World) -> None:
        """Let C repeat what has just been installed, if it may."""
        basis = self._dispatch.basis_of(world)
        if basis is None or not (decision.discard or self._quotas.unlimited):
            return
        nat = None if decision.translation is None else nat_rule_of(first, world)
        self._dispatch.learn(basis, packet, first.key, decision, rule, nat)

    def _inspect(self, queued: Any, packet: Any, payload: bytes) -> None:
        """Let an ALG read it; Refused if it does not go on as a packet of its own."""
        neighbour, world, ingress = queued.get_hw(), self.world, packet.ifindex
        reading = self._inspection.read(packet, payload)
        if reading.answer is not None:
            self._answer_at(reading.answer, ingress, world, neighbour, lib.FLOW_ACTION_ACKNOWLEDGED)
        if reading.counter is not None:
            raise Refused(reading.counter)
        if reading.payload is not None:
            queued.set_payload(reading.payload)

    def _fulfil(self, first: First, call: int, length: int) -> bool | None:
        """Install what this flow was announced as: nothing is asked again. None: nobody has announced it."""
        key = first.key._replace(dport=call) if call else first.key
        match = self._inspection.match(key)
        if match is None:
            return None
        try:
            session_id = self._install(key, match.decision._replace(ingress=first.ingress), length)
        except (InstallError, AlreadyInstalled) as error:
            if isinstance(error, InstallError):
                self._nat.failed(match.decision.nat_rule, error.counter)
            self._inspection.failed(match)
            return isinstance(error, AlreadyInstalled)
        self._inspection.installed(match, session_id)
        self._table.count(lib.FLOW_SLOWPATH_PREDICT)
        self._nat.hit(match.decision.nat_rule)
        self._begun(session_id, self._rule(match.decision.rule), match.decision.rule)
        return True

    def _rule(self, number: int) -> CompiledSecurityRule | None:
        """The rule of a parent, if the policy still has it."""
        world = self.world
        try:
            return world.policy.security_rules[world.rule_numbers.index(number)]
        except ValueError:
            return None

    def _parse(self, queued: Any, payload: bytes) -> Any:
        """The packet as C wants it. Its checksum was judged by the hot queue that sent it here."""
        packet = self._packet
        self._payload = ffi.from_buffer("uint8_t[]", payload)
        packet.data = self._payload
        packet.len = len(payload)
        packet.ifindex = queued.physindev or queued.indev
        packet.hook = queued.hook
        packet.mark = queued.get_mark()
        packet.checksum = lib.CHECKSUM_TRUSTED
        packet.cut = len(payload) == COPY_RANGE
        return packet

    def _install(self, key: FlowKey, decision: Decision, length: int) -> int:
        translation = decision.translation
        if translation is not None and translation.binding is not None:
            return self._bindings.install(key, decision, length)
        if translation is not None and translation.ports and translation.source is not None:
            self._table.open_pool(translation.source)
        return self._quotas.install(key, decision, length)

    def _begun(self, session_id: int, rule: CompiledSecurityRule | None, number: int) -> None:
        """A hit of the rule, and the record that it wants."""
        if rule is not None:
            self._hits.add(number)
            self._log(session_id, rule)

    def _log(self, session_id: int, rule: CompiledSecurityRule) -> None:
        denied = rule.action is not Action.ALLOW
        if not (rule.log_start or (denied and rule.log_end)):
            return
        session = self._table.read(session_id)
        if session is None:
            return
        if denied:
            self._record("drop" if rule.action is Action.DROP else "deny", session, rule.action.value, "policy-deny")
        else:
            self._record("start", session, rule.action.value, None)

    def _turn_away(
        self,
        payload: bytes,
        first: First,
        decision: Decision,
        rule: CompiledSecurityRule | None,
        world: World,
        error: InstallError,
    ) -> None:
        """A session that the rule allows and that cannot be: its record has no id.

        Where room is lacking, in the table, in the pool or in the source's quota, the sender is told (RFC 5508 REQ-8,
        RFC 6888 REQ-11).
        """
        if rule is None or decision.discard:
            return
        if rule.log_start or rule.log_end:
            self._record("drop", refused_session(first.key, decision), rule.action.value, "resources-unavailable")
        if error.counter != "session_duplicate_key":
            self._send_unreachable(payload, first, world)

    def _refuse(
        self,
        payload: bytes,
        l4: int,
        first: First,
        rule: CompiledSecurityRule | None,
        world: World,
        neighbour: bytes | None,
    ) -> None:
        """Count the refusal and send what the rule's action promises to the client; the server has seen nothing.

        A rule that resets TCP never answers it with an unreachable (PAN-OS). `neighbour`: the MAC address that the
        packet came from, with two bytes of padding.
        """
        self._table.count(lib.FLOW_POLICY_DENY if rule is not None else lib.FLOW_HOST_SERVICE_DENY)
        if rule is None:
            return
        resets = first.key.proto == TCP and rule.action in RESETS
        if resets and rule.action is not Action.RESET_SERVER:
            self._reset(tcp_reset(payload, l4), first, world, neighbour)
        elif rule.icmp_unreachable and not resets:
            self._send_unreachable(payload, first, world)

    def _send_unreachable(self, payload: bytes, first: First, world: World) -> None:
        """From the interface that the packet came in by; a port of a virtual wire has no address to send it from."""
        own = world.address_at(first.ingress, first.key.family == 4)
        if own is not None:
            self._answer(unreachable(payload, own), lib.FLOW_ACTION_UNREACHABLE)

    def _reset(self, packet: bytes | None, first: First, world: World, neighbour: bytes | None) -> None:
        self._answer_at(packet, first.ingress, world, neighbour, lib.FLOW_ACTION_RESET)

    def _answer_at(
        self, packet: bytes | None, ingress: int, world: World, neighbour: bytes | None, counter: int
    ) -> None:
        """A virtual wire has no route for the answer: it goes back to the neighbour."""
        port = world.links.by_index(ingress) if ingress in world.peers else None
        if port is None:
            self._answer(packet, counter)
        elif packet is not None and neighbour is not None:
            sent = self._replies.send_over_wire(packet, port.name, neighbour[:6])
            self._table.count(counter if sent else lib.FLOW_ACTION_LIMITED)

    def _disown(self, payload: bytes, l4: int, first: First, world: World, neighbour: bytes | None) -> NoReturn:
        """Answer a segment of a connection that nobody remembers as its receiver would, if there can be one.

        On a virtual wire nothing is routed, so there always can.
        """
        if first.ingress not in world.peers:
            check_source(first.key, world)
            route = world.fib.lookup(first.key.dst)
            if route is None or route.kind not in ("unicast", "local"):
                raise Refused(lib.FLOW_TCP_NON_SYN_DROP)
        self._reset(tcp_reset(payload, l4), first, world, neighbour)
        raise Refused(lib.FLOW_TCP_NON_SYN_DROP)

    def _answer(self, packet: bytes | None, counter: int) -> None:
        if packet is not None:
            self._table.count(counter if self._replies.send(packet) else lib.FLOW_ACTION_LIMITED)
