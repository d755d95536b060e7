"""The life of sessions on real traffic: timers, the DISCARD share, a full table, accelerated aging, mid-stream starts.

Nobody but the test speaks for the two phantoms, so a TCP connection stands in the state in which it was left:

    HOST 10.1.0.200 --- in0 [ firewall ] out0 --- PEER 10.2.0.200
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import GRE
from scapy.packet import Packet, Raw

from tests.lab.console import ask, counters, info, port, record, rule, sessions, zones
from tests.lab.firewall import Firewall
from tests.lab.lab import Lab, poll

HOST, PEER, HOST6, PEER6 = "10.1.0.200", "10.2.0.200", "fd00:1::200", "fd00:2::200"
PLAIN, BRIEF, DENIED = 9000, 9001, 9002  # ports of the peer
TIMEOUTS = {
    "tcp-init": 1,
    "tcp-handshake": 2,
    "tcp-time-wait": 2,
    "tcp-half-closed": 3,
    "tcp": 4,
    "tcp-unverified-rst": 1,
    "udp": 2,
    "icmp": 1,
    "default": 3,
    "discard-tcp": 2,
    "discard-udp": 3,
    "discard-default": 1,
}
REPEATS = 2.5  # seconds for which some flows go on sending
CLIENT_ISN, SERVER_ISN, WINDOW = 1000, 5000, 8192
Step = tuple[str, Packet]  # who sends it: client or server
MOST = 20  # sessions in a small table
SLOW, FAST = 12, 3  # seconds


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(client_phantoms=[HOST, HOST6], server_phantoms=[PEER, PEER6]) as made:
        yield made


def config(*rules: dict[str, Any], **session: object) -> dict[str, Any]:
    """Everything may pass and is logged, unless one of the rules says otherwise."""
    settings = {key.replace("_", "-"): value for key, value in session.items()}
    return {
        "zones": zones(),
        "services": {"denied": port(DENIED), "denied-udp": port(DENIED, "udp")},
        "applications": {
            "brief": {
                "default-ports": [f"tcp/{BRIEF}", f"udp/{BRIEF}"],
                "tcp-timeout": 2,
                "udp-timeout": 1,
                "tcp-half-closed-timeout": 3,
                "tcp-time-wait-timeout": 1,
            }
        },
        "security-rules": [
            rule("deny-port", "deny", service=["denied", "denied-udp"], log_end=False),
            *rules,
            rule("all", log_start=True),
        ],
        "settings": {"session": settings},
    }


def segment(number: int, flags: str, seq: int, ack: int = 0, dport: int = PLAIN, payload: bytes = b"") -> Packet:
    """From the client's port to the peer."""
    tcp = TCP(sport=number, dport=dport, flags=flags, seq=seq, ack=ack, window=WINDOW)
    return IP(src=HOST, dst=PEER) / tcp / Raw(payload)


def answer(number: int, flags: str, seq: int, ack: int, sport: int = PLAIN) -> Packet:
    """From the peer to the client's port."""
    return IP(src=PEER, dst=HOST) / TCP(sport=sport, dport=number, flags=flags, seq=seq, ack=ack, window=WINDOW)


def datagram(number: int, dport: int = PLAIN, host: str = HOST, peer: str = PEER) -> Packet:
    header = IPv6 if ":" in host else IP
    return header(src=host, dst=peer) / UDP(sport=number, dport=dport) / Raw(b"datagram")


# ---- timers ----


@dataclass(frozen=True)
class Flow:
    """How a session is brought into its state: packets by their sender, one after the other; and what is expected."""

    steps: tuple[Step, ...]
    timeout: int
    reason: str | None = "aged-out"  # None: a DISCARD session, which has no end record
    repeated: Packet | None = None  # sent again and again by the client for REPEATS seconds
    extended: bool = False  # whether that restarts its timer

    @property
    def number(self) -> int:
        """The client's port, by which the session is found; 0 for a protocol without ports."""
        transport = self.steps[0][1].payload
        return int(getattr(transport, "sport", 0) or getattr(transport, "id", 0))


def connection(number: int, states: str, *last: Step, dport: int = PLAIN) -> tuple[Step, ...]:
    """`states`: how many letters of SAE are done: SYN, SYN-ACK, ACK; then the last segments."""
    c, s = CLIENT_ISN, SERVER_ISN
    handshake = {
        "S": ("client", segment(number, "S", c, dport=dport)),
        "A": ("server", answer(number, "SA", s, c + 1, sport=dport)),
        "E": ("client", segment(number, "A", c + 1, s + 1, dport=dport)),
    }
    return (*(handshake[letter] for letter in states), *last)


def fin_by_client(number: int, dport: int = PLAIN) -> Step:
    return "client", segment(number, "FA", CLIENT_ISN + 1, SERVER_ISN + 1, dport=dport)


def fin_by_server(number: int, sport: int = PLAIN) -> Step:
    return "server", answer(number, "FA", SERVER_ISN + 1, CLIENT_ISN + 2, sport=sport)


def make_flows() -> dict[str, Flow]:
    """One of every timer; each with a client's port of its own."""
    exact = segment(30006, "R", CLIENT_ISN + 1)
    exact_by_server = answer(30007, "R", SERVER_ISN + 1, 0)
    inexact = answer(30008, "R", SERVER_ISN + 101, 0)
    inexact_too = answer(30009, "R", SERVER_ISN + 101, 0)
    data = segment(30009, "PA", CLIENT_ISN + 1, SERVER_ISN + 1, payload=b"data")
    outside = segment(30010, "PA", CLIENT_ISN + 200_000, SERVER_ISN + 1, payload=b"blind")
    more = segment(30016, "PA", CLIENT_ISN + 1, SERVER_ISN + 1, payload=b"same")
    return {
        "init": Flow(connection(30001, "S"), 1),
        "handshake": Flow(connection(30002, "SA"), 2),
        "established": Flow(connection(30003, "SAE"), 4),
        "half-closed": Flow(connection(30004, "SAE", fin_by_client(30004)), 3),
        "time-wait": Flow(connection(30005, "SAE", fin_by_client(30005), fin_by_server(30005)), 2, "tcp-fin"),
        "reset": Flow(connection(30006, "SAE", ("client", exact)), 2, "tcp-rst-from-client"),
        "reset-by-server": Flow(connection(30007, "SAE", ("server", exact_by_server)), 2, "tcp-rst-from-server"),
        "unverified-reset": Flow(connection(30008, "SAE", ("server", inexact)), 1),
        "restored": Flow(connection(30009, "SAE", ("server", inexact_too), ("client", data)), 4),
        "attacked": Flow(connection(30010, "SAE", dport=BRIEF), 2, repeated=outside),
        "brief": Flow(connection(30011, "SAE", dport=BRIEF), 2),
        "brief-init": Flow(connection(30012, "S", dport=BRIEF), 1),
        "brief-half-closed": Flow(connection(30013, "SAE", fin_by_client(30013, BRIEF), dport=BRIEF), 3),
        "brief-time-wait": Flow(
            connection(30014, "SAE", fin_by_client(30014, BRIEF), fin_by_server(30014, BRIEF), dport=BRIEF),
            1,
            "tcp-fin",
        ),
        "refreshed": Flow(connection(30016, "SAE"), 4, repeated=more, extended=True),
        "udp": Flow((("client", datagram(30020)),), 2),
        "udp-v6": Flow((("client", datagram(30021, host=HOST6, peer=PEER6)),), 2),
        "udp-brief": Flow((("client", datagram(30022, BRIEF)),), 1),
        "udp-refreshed": Flow((("client", datagram(30023)),), 2, repeated=datagram(30023), extended=True),
        "icmp": Flow((("client", IP(src=HOST, dst=PEER) / ICMP(id=30030)),), 1),
        "icmp-v6": Flow((("client", IPv6(src=HOST6, dst=PEER6) / ICMPv6EchoRequest(id=30031)),), 1),
        "other": Flow((("client", IP(src=HOST, dst=PEER) / GRE() / Raw(b"inside")),), 3),
        "denied-tcp": Flow((("client", segment(30040, "S", 1, dport=DENIED)),), 2, None),
        "denied-udp": Flow((("client", datagram(30041, DENIED)),), 3, None, repeated=datagram(30041, DENIED)),
        "denied-other": Flow((("client", IP(src=HOST, dst=PEER, proto=99) / Raw(b"inside")),), 1, None),
    }


FLOWS = make_flows()


@dataclass
class Life:
    """What was seen of one session; moments by time.time()."""

    session: dict[str, Any]  # when it had reached its state
    began: float  # before its last packet was sent (extended: the last repetition)
    ended: float  # when it was seen no more
    alive: float  # when it was seen last
    record: dict[str, Any] | None


def fits(flow: Flow, session: dict[str, Any]) -> bool:
    """Whether a session is that flow's."""
    first = flow.steps[0][1]
    protocol = first.proto if isinstance(first, IP) else first.nh
    return bool(session["c2s"]["sport"] == flow.number and session["c2s"]["proto"] == protocol)


def bring_into_state(lab: Lab, firewall: Firewall) -> dict[str, float]:
    """Send every flow's steps, side by side and so that all end in the same round; when each was complete."""
    done = {}
    sent = 0

    def all_seen() -> bool:
        seen: int = sum(session["packets_c2s"] + session["packets_s2c"] for session in sessions(firewall))
        return seen == sent

    for left in reversed(range(max(len(flow.steps) for flow in FLOWS.values()))):
        for name, flow in FLOWS.items():
            if left < len(flow.steps):
                sender, packet = flow.steps[-1 - left]
                done[name] = time.time()
                lab.inject(sender, packet)
                sent += 1
        poll(all_seen, 3, f"{sent} packets in sessions")
    return done


@pytest.fixture(scope="class")
def lives(lab: Lab) -> Iterator[dict[str, Life]]:
    """All flows' sessions from their last packet to their end."""
    deny_other = rule("deny-other", "drop", application=["unknown-p2p"], log_end=False)
    with lab.firewall(config(deny_other, timeouts=TIMEOUTS)) as firewall:
        began = bring_into_state(lab, firewall)
        found: dict[str, Life] = {}
        alive = {
            name: next(session for session in sessions(firewall) if fits(flow, session)) for name, flow in FLOWS.items()
        }
        start = time.time()
        ids = {session["id"]: name for name, session in alive.items()}
        seen = dict.fromkeys(alive, start)
        ended: dict[str, float] = {}

        def all_over() -> bool:
            now = time.time()
            for name, flow in FLOWS.items():
                if flow.repeated and name not in ended and now - start < REPEATS:
                    lab.inject("client", flow.repeated)
                    began[name] = now if flow.extended else began[name]
            listed = {ids.get(session["id"]) for session in sessions(firewall)}
            now = time.time()
            for name in seen.keys() - ended.keys():
                if name in listed:
                    seen[name] = now
                else:
                    ended[name] = now
            return len(ended) == len(alive)

        poll(all_over, 20, "every session to end")
        for name, session in alive.items():
            logged = FLOWS[name].reason is not None
            made = record(firewall, event="end", session_id=session["id"]) if logged else None
            found[name] = Life(session, began[name], ended[name], seen[name], made)
        assert firewall.traffic_log(event="end", rule="deny-port") == []
        yield found


class TestTimers:
    @pytest.mark.parametrize("name", FLOWS)
    def test_the_timer_in_force_is_shown(self, lives: dict[str, Life], name: str) -> None:
        """By protocol, state and application; what is left of it never exceeds it."""
        session = lives[name].session
        assert session["timeout"] == FLOWS[name].timeout
        assert FLOWS[name].timeout - 2 <= session["time_to_live"] <= FLOWS[name].timeout
        assert session["state"] == ("DISCARD" if FLOWS[name].reason is None else "ACTIVE")

    @pytest.mark.parametrize("name", FLOWS)
    def test_a_session_ends_when_its_timer_does(self, lives: dict[str, Life], name: str) -> None:
        """Not before, and within a second after; what is sent into a DISCARD session or outside the window is no
        excuse."""
        life = lives[name]
        assert life.ended - life.began >= FLOWS[name].timeout
        assert life.alive - life.began <= FLOWS[name].timeout + 1

    @pytest.mark.parametrize("name", [name for name, flow in FLOWS.items() if flow.reason])
    def test_the_log_says_why(self, lives: dict[str, Life], name: str) -> None:
        """A connection that closed or was reset says so when its last timer runs out; everything else aged out."""
        made = lives[name].record
        assert made is not None
        assert made["session_end_reason"] == FLOWS[name].reason


# ---- the table's limits ----


@pytest.fixture(scope="class")
def small(lab: Lab) -> Iterator[Firewall]:
    """A table of MOST sessions that do not age faster when it is full."""
    with lab.firewall(config(max_sessions=MOST, accelerated_aging={"enabled": False}, timeouts={"udp": 60})) as made:
        yield made


@pytest.fixture(scope="class")
def relaxed(lab: Lab) -> Iterator[Firewall]:
    """From half of the table on timers are FAST / SLOW of what they were; connections may be picked up."""
    aging = {"enabled": True, "threshold": 50, "scaling-factor": SLOW // FAST}
    timeouts = {"udp": SLOW, "tcp": 100}
    settings = {"max_sessions": MOST, "tcp_reject_non_syn": False, "accelerated_aging": aging}
    with lab.firewall(config(timeouts=timeouts, **settings)) as made:
        yield made


class TestFullTable:
    """Twenty sessions at most, so two DISCARD ones while ACTIVE ones want the room."""

    @pytest.fixture(autouse=True)
    def empty(self, small: Firewall) -> None:
        """Every test begins with no session."""
        ask(small, "clear session all", filter={})
        poll(lambda: info(small)["num_active"] == 0, 3, "an empty table")

    def fill(self, lab: Lab, small: Firewall, first: int, count: int, dport: int = PLAIN) -> set[int]:
        """So many new sessions; their ports."""
        wanted = info(small)["num_installed"] + count
        ports = range(first, first + count)
        lab.inject("client", *(datagram(number, dport) for number in ports))
        poll(lambda: info(small)["num_installed"] == wanted, 3, f"{count} sessions")
        return set(ports)

    def ports(self, small: Firewall, **filters: object) -> set[int]:
        """The clients' ports of the sessions."""
        return {session["c2s"]["sport"] for session in sessions(small, **filters)}

    def test_a_full_table_refuses_and_evicts_no_active_session(self, lab: Lab, small: Firewall) -> None:
        """The new flow is dropped, counted and throttled; the old ones go on; room that is made is used."""
        active = self.fill(lab, small, 31000, MOST)
        before, (meter,) = counters(small), ask(small, "show session meter")
        assert (meter["maximum"], meter["current"]) == (MOST, MOST)
        with lab.capture("server", "eth0", "udp") as at_server:
            lab.inject("client", *(datagram(31100 + n) for n in range(5)))
            poll(
                lambda: counters(small)["session_alloc_failure"] == before["session_alloc_failure"] + 5,
                3,
                "refusals",
            )
            lab.inject("client", *(datagram(31000 + n) for n in range(MOST)))
            at_server.wait(MOST)
        assert {packet[UDP].sport for packet in at_server.packets()} == set(range(31000, 31000 + MOST))
        assert self.ports(small) == active
        assert ask(small, "show session meter")[0]["throttled"] == meter["throttled"] + 5
        assert info(small)["utilization_percent"] == 100
        ask(small, "clear session all", filter={"source-port": "31000"})
        poll(lambda: info(small)["num_active"] == MOST - 1, 3, "room for one")
        self.fill(lab, small, 31200, 1)
        assert small.running

    def test_discard_sessions_take_a_tenth_and_the_oldest_make_room(self, lab: Lab, small: Firewall) -> None:
        """However many flows are denied, two DISCARD sessions stay: the last two."""
        before = counters(small)["session_discard_evicted"]
        kept = self.fill(lab, small, 31300, 1)
        self.fill(lab, small, 31310, 7, DENIED)
        assert self.ports(small, state="discard") == {31315, 31316}
        assert counters(small)["session_discard_evicted"] == before + 5
        assert self.ports(small, state="active") == kept
        assert info(small)["num_discard"] == 2

    def test_discard_sessions_make_room_for_active_ones(self, lab: Lab, small: Firewall) -> None:
        """In a full table a new allowed flow takes the oldest DISCARD session's place, and a denied one none of an
        ACTIVE session's."""
        self.fill(lab, small, 31410, 2, DENIED)
        active = self.fill(lab, small, 31420, MOST - 2)
        assert info(small)["num_active"] == MOST
        active |= self.fill(lab, small, 31450, 1)
        assert self.ports(small, state="discard") == {31411}
        active |= self.fill(lab, small, 31451, 1)
        assert self.ports(small) == active
        refused = counters(small)["session_alloc_failure"]
        lab.inject("client", datagram(31412, DENIED))
        poll(lambda: counters(small)["session_alloc_failure"] == refused + 1, 3, "the denied flow to be refused")
        assert self.ports(small) == active

    def test_a_first_packet_must_be_a_syn(self, lab: Lab, small: Firewall) -> None:
        """The default: every other segment is dropped and counted, and leaves no session."""
        before = counters(small)["flow_tcp_non_syn_drop"]
        flags = ("A", "PA", "SA", "FA", "R", "RA")
        with lab.capture("server", "eth0", "tcp or udp") as at_server:
            lab.inject("client", *(segment(31500 + n, kind, 1, 1) for n, kind in enumerate(flags)))
            poll(lambda: counters(small)["flow_tcp_non_syn_drop"] == before + len(flags), 3, "six drops")
            self.fill(lab, small, 31510, 1)
            at_server.wait(1)
        assert [packet[UDP].sport for packet in at_server.packets()] == [31510]
        assert sessions(small, protocol=6) == []


class TestRelaxed:
    """Connections may be picked up in the middle, and timers are a quarter from half of the table on."""

    def test_a_connection_is_picked_up_in_the_middle(self, lab: Lab, relaxed: Firewall) -> None:
        """An acknowledgement opens an established session, and the answer belongs to it; RST and SYN-ACK open none."""
        before = counters(relaxed)["flow_tcp_non_syn_drop"]
        with lab.capture("server", "eth0", "tcp") as at_server, lab.capture("client", "eth0", "tcp") as at_client:
            lab.inject("client", segment(32000, "R", 1), segment(32001, "SA", 1, 1))
            poll(lambda: counters(relaxed)["flow_tcp_non_syn_drop"] == before + 2, 3, "two drops")
            lab.inject("client", segment(32002, "PA", 1000, 2000, payload=b"middle"))
            at_server.wait(1)
            lab.inject("server", answer(32002, "A", 2000, 1006))
            poll(at_client.received, 3, "the answer")
        assert [frame.packet[TCP].sport for frame in at_server.received()] == [32002]
        (session,) = sessions(relaxed, protocol=6)
        assert (session["state"], session["timeout"], session["packets_s2c"]) == ("ACTIVE", 100, 1)

    def test_timers_are_shorter_while_the_table_is_filled(self, lab: Lab, relaxed: Firewall) -> None:
        """From the threshold on every session's, those opened before too; below it they are as configured."""
        ask(relaxed, "clear session all", filter={})
        poll(lambda: info(relaxed)["num_active"] == 0, 3, "an empty table")
        lab.inject("client", *(datagram(32100 + n) for n in range(MOST // 2 - 1)))
        poll(lambda: info(relaxed)["num_active"] == MOST // 2 - 1, 3, "sessions just below the threshold")
        assert {session["timeout"] for session in sessions(relaxed)} == {SLOW}
        before = time.time()
        lab.inject("client", *(datagram(32200 + n) for n in range(3)))
        poll(lambda: {one["timeout"] for one in sessions(relaxed)} == {FAST}, 3, "timers a quarter as long")
        poll(lambda: info(relaxed)["num_active"] < MOST // 2, FAST + 3, "sessions to age")
        assert time.time() - before >= FAST - 1
        poll(lambda: relaxed.traffic_log(event="end", session_end_reason="aged-out"), 3, "a record")
        poll(lambda: {one["timeout"] for one in sessions(relaxed)} <= {SLOW}, 3, "timers as configured")
