"""The ALGs that are off by default, between sockets that speak their protocols.

Only the control ports are in the policy, and whatever else is tried is reset. Sockets of the firewall itself hold every
port that is announced, so that each of them has to become another one outside.

         client side                   server side
     INSIDE     10.1.0.2  is OUTSIDE   PEER      10.2.0.2      OUT    INSIDE calls PEER: source translation
     NEIGHBOUR  10.1.0.3  is OUTSIDE   STRANGER  10.2.0.9      NEXT   NEIGHBOUR does so too
     BARE       10.1.0.4  is itself    OUTSIDE   10.2.0.1      PLAIN  BARE calls PEER
     TUNNEL     10.1.0.5  is OUTSIDE                           IN     PEER calls OUTSIDE, which is INSIDE

OUT6 and IN6 are the same with fd00:1::2, fd00:2::1 and fd00:2::2.
"""

import fcntl
import random
import re
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, NamedTuple, Self

import pytest

from dataplane.alg.base import CLIENT, GRE, SERVER
from dataplane.alg.msrpc import ENDPOINT_MAPPER, NDR
from dataplane.streams import MAX_EDITS
from tests import test_alg_h323 as h323_text
from tests import test_alg_irc as irc_text
from tests import test_alg_mgcp as mgcp_text
from tests import test_alg_msrpc as msrpc_text
from tests import test_alg_pptp as pptp_text
from tests import test_alg_rtsp as rtsp_text
from tests import test_alg_sccp as sccp_text
from tests import test_alg_tns as tns_text
from tests.lab.capture import Capture
from tests.lab.console import CONTROL_PORT, IN_ORDER, Control, ask, attempt, port, record, rule, sessions, zones
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT as INSIDE
from tests.lab.lab import CLIENT6 as INSIDE6
from tests.lab.lab import OUT0 as OUTSIDE
from tests.lab.lab import OUT06 as OUTSIDE6
from tests.lab.lab import SERVER as PEER
from tests.lab.lab import SERVER6 as PEER6
from tests.lab.lab import Lab, poll

NEIGHBOUR, BARE, TUNNEL, STRANGER = "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.2.0.9"
NEIGHBOUR6, STRANGER6 = "fd00:1::3", "fd00:2::9"
OTHERS = {INSIDE: NEIGHBOUR, INSIDE6: NEIGHBOUR6, PEER: STRANGER, PEER6: STRANGER6}
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
RTP, SERVER_RTP, VOICE = 5000, 6970, 24000
H245, H245_BACK, DATABASE, SERVICE, ERRORS, FILE = 30000, 30002, 1600, 49152, 5002, 5004
HELD_STREAMS = (H245, H245_BACK, DATABASE, DATABASE + 1, SERVICE, ERRORS, FILE)
HELD_DATAGRAMS = tuple(first + step for first in (RTP, SERVER_RTP, VOICE) for step in (0, 1))
PORTS = {
    "rtsp": 554,
    "pptp": 1723,
    "h.323": 1720,
    "mgcp": 2727,
    "rsh": 514,
    "sccp": 2000,
    "oracle": 1521,
    "irc": 6667,
    "msrpc": 135,
}
NOT_THE_PROTOCOL = b"POST / HTTP/1.1\r\nContent-Length: 9000\r\n\r\n"
BLANK = b"\r\n\r\n"
FRAME = 60000  # bytes

Address = tuple[str, int]


@dataclass(frozen=True)
class Way:
    """Both ends of a control channel, CLIENT and SERVER: where they are, and as whom each is known to the other."""

    ns: tuple[str, str]
    own: tuple[str, str]
    seen: tuple[str, str]
    rule: str
    nat: str


OUT = Way(("client", "server"), (INSIDE, PEER), (OUTSIDE, PEER), "out", "hide")
NEXT = replace(OUT, own=(NEIGHBOUR, PEER))
PLAIN = Way(("client", "server"), (BARE, PEER), (BARE, PEER), "out", "exempt")
IN = Way(("server", "client"), (PEER, INSIDE), (PEER, OUTSIDE), "in", "publish")
OUT6 = Way(("client", "server"), (INSIDE6, PEER6), (OUTSIDE6, PEER6), "out", "hide6")
IN6 = Way(("server", "client"), (PEER6, INSIDE6), (PEER6, OUTSIDE6), "in", "publish6")


def config(**algs: bool) -> dict[str, Any]:
    """Nothing but the protocols' own ports, from either side."""
    out: dict[str, Any] = {"from_": ["trust"], "to": ["untrust"]}
    outward = {"from": ["trust"], "to": "untrust"}
    pool = {"type": "dynamic-ip-and-port", "interface": "out0", "port-range": "20000-29999"}
    published = {name: port(number) for name, number in PORTS.items() if name != "mgcp"}
    return {
        "zones": zones(),
        "services": {"control": port(CONTROL_PORT, "udp"), **published},
        "security-rules": [
            rule("control", service=["control"], **out),
            rule("out", application=[*PORTS], log_start=True, **out),
            rule("in", application=[*PORTS], log_start=True, from_=["untrust"], to=["trust"]),
            rule("tunnels", application=["gre"], source=[TUNNEL], **out),
            rule("rest", "reset-both"),
        ],
        "nat-rules": [
            {"name": "exempt", "source": [BARE], **outward},
            {"name": "hide", "source-translation": pool, **outward},
            {"name": "hide6", "nat-type": "ipv6", "source-translation": pool, **outward},
            publication("publish", OUTSIDE, INSIDE, service=[*published]),
            publication("publish6", OUTSIDE6, INSIDE6, service=[*published]) | {"nat-type": "ipv6"},
        ],
        "settings": {"alg": algs, "session": {"timeouts": {"tcp-time-wait": 1}}, **IN_ORDER},
    }


def publication(name: str, outside: str, inside: str, service: list[str]) -> dict[str, Any]:
    """Destination translation."""
    where = {"from": ["untrust"], "to": "untrust", "destination": [outside], "service": service}
    return {"name": name, **where, "destination-translation": {"address": inside}}


class Announced(NamedTuple):
    """A port on which a side waits, and where whoever calls has read that it does."""

    way: Way
    side: int
    kind: socket.SocketKind
    port: int
    read: Address
    application: str
    caller: str  # his own address


class Site(NamedTuple):
    """A firewall and what is around it."""

    lab: Lab
    firewall: Firewall
    control: Control

    def wait(self, announced: Announced) -> socket.socket:
        """The socket of the side that has announced a port."""
        make = self.lab.listener if announced.kind == STREAM else self.lab.udp
        return make(announced.way.ns[announced.side], announced.port, announced.way.own[announced.side])

    def call(self, announced: Announced) -> socket.socket:
        """A socket of the caller, connected to what he has read."""
        with self.lab.inside(announced.way.ns[1 - announced.side]):
            caller = socket.socket(socket.AF_INET6 if ":" in announced.caller else socket.AF_INET, announced.kind)
        caller.settimeout(3)
        caller.bind((announced.caller, 0))
        caller.connect(announced.read)
        return caller

    def is_denied(self, announced: Announced) -> bool:
        """Whether a call of the announced port does not get through."""
        back = announced.way.ns[1 - announced.side]
        with ExitStack() as stack:
            return not self.lets_through(
                back,
                f"dst port {announced.read[1]}",
                f"dst port {announced.port}",
                lambda: stack.enter_context(attempt(self.lab, announced.read, announced.kind, back)),
            )

    def lets_through(self, ns: str, arriving: str, leaving: str, send: Callable[[], object]) -> bool:
        """Whether what is sent from an end leaves the firewall towards the other one.

        The first packet of a session that is read goes through the slow queue twice, and so do two controls.
        """
        near, far = ("in0", "out0") if ns == "client" else ("out0", "in0")
        with (
            self.lab.capture("firewall", near, arriving) as arrived,
            self.lab.capture("firewall", far, leaving) as left,
        ):
            send()
            arrived.wait(1)
            self.control()
            self.control()
            return any(frame.outgoing for frame in left.frames())

    def predicted(self) -> list[dict[str, Any]]:
        return sessions(self.firewall, type="predict", state="active")

    def children(self, parent: int, kind: str) -> list[dict[str, Any]]:
        found = sessions(self.firewall, type=kind, state="active")
        return [session for session in found if session["parent_session"] == parent]


def site(**algs: bool) -> Iterator[Site]:
    clients = [NEIGHBOUR, NEIGHBOUR6, BARE, TUNNEL]
    with Lab(client_addresses=clients, server_addresses=[STRANGER, STRANGER6]) as lab:
        for address in (OUTSIDE, OUTSIDE6):
            for number in HELD_STREAMS:
                lab.listener("firewall", number, address)
            for number in HELD_DATAGRAMS:
                lab.udp("firewall", number, address)
        with lab.firewall(config(**algs)) as firewall:
            yield Site(lab, firewall, Control(lab))


@pytest.fixture(scope="module")
def off() -> Iterator[Site]:
    """As it is by default."""
    yield from site()


@pytest.fixture(scope="module")
def everything_on() -> Iterator[Site]:
    yield from site(**dict.fromkeys(PORTS, True))


@pytest.fixture
def on(everything_on: Site) -> Site:
    """All of them on, and nothing left of the test before."""
    ask(everything_on.firewall, "clear session all")
    return everything_on


class Channel:
    """Both ends of a connection, or of a flow of datagrams, which the test speaks; each knows the other as it should.

    foreign: each end announces its neighbour's address in place of its own.  halves: it sends everything in two
    segments, the second one when the first has been acknowledged.
    """

    def __init__(self, site: Site, called: Announced, *, foreign: bool = False, halves: bool = False) -> None:
        self.way = called.way
        self.claims = tuple(OTHERS[own] if foreign else own for own in self.way.own)
        self.changed = False  # whether anybody has read what the other had not said
        self._halves = halves
        self._application = called.application
        strange = called.caller not in self.way.own
        self._known = called.caller if strange else self.way.seen[1 - called.side]
        waiting = site.wait(called)
        caller = site.call(called)
        callee = waiting if called.kind == DATAGRAM else self._accepted(waiting)
        self.ends = (callee, caller) if called.side == CLIENT else (caller, callee)
        self._caller: Address = caller.getsockname()[:2]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            end.close()

    def session(self, site: Site) -> int:
        """Its id."""
        address, number = self._caller
        (found,) = sessions(site.firewall, application=self._application, source=address, source_port=number)
        return int(found["id"])

    def say(self, side: int, message: bytes, end: bytes = b"") -> bytes:
        """What the other side reads of it: as many bytes, or up to an end."""
        sender, receiver = self.ends[side], self.ends[1 - side]
        if sender.type == DATAGRAM:
            sender.send(message)
            heard, peer = receiver.recvfrom(4096)
            assert peer[0] in (self._known, *self.way.seen)
            receiver.connect(peer)
        else:
            self._send(sender, message)
            heard = receiver.recv(4096)
            while not (heard.endswith(end) if end else len(heard) >= len(message)):
                heard += receiver.recv(4096)
        self.changed = self.changed or heard != message
        return heard

    def _accepted(self, listening: socket.socket) -> socket.socket:
        with listening:
            accepted, peer = listening.accept()
        accepted.settimeout(3)
        assert peer[0] == self._known
        return accepted

    def _send(self, sender: socket.socket, message: bytes) -> None:
        half = len(message) // 2 if self._halves else 0
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sender.sendall(message[:half])
        poll(lambda: not unacknowledged(sender), 3, "the first half to be acknowledged")
        sender.sendall(message[half:])

    def announced(
        self, side: int, kind: socket.SocketKind, number: int, read: Address, application: str, caller: str = ""
    ) -> Announced:
        return Announced(self.way, side, kind, number, read, application, caller or self.way.own[1 - side])

    def media(self, side: int, number: int, read: Address, caller: str = "") -> list[Announced]:
        """RTP, and RTCP beside it."""
        return [
            self.announced(side, DATAGRAM, number + step, (read[0], read[1] + step), application, caller)
            for step, application in enumerate(("rtp", "rtcp"))
        ]


def control(site: Site, way: Way, name: str, *, foreign: bool = False, halves: bool = False) -> Channel:
    """The control channel of a protocol, whose port everybody knows."""
    kind = DATAGRAM if name == "mgcp" else STREAM
    called = Announced(way, SERVER, kind, PORTS[name], (way.seen[SERVER], PORTS[name]), name, way.own[CLIENT])
    return Channel(site, called, foreign=foreign, halves=halves)


def carries(site: Site, announced: Announced) -> None:
    """A word goes both ways."""
    with Channel(site, announced) as channel:
        assert channel.say(1 - announced.side, b"question") == b"question"
        assert channel.say(announced.side, b"answer") == b"answer"


def unacknowledged(sender: socket.socket) -> int:
    """Bytes that the other side's kernel has not confirmed (SIOCOUTQ is TIOCOUTQ)."""
    answer: bytes = fcntl.ioctl(sender, termios.TIOCOUTQ, bytes(4))
    return int(struct.unpack("i", answer)[0])


@contextmanager
def outside(site: Site) -> Iterator[Capture]:
    """All that is seen out there: valid checksums, and nowhere an inside address."""
    with site.lab.capture("server", "eth0", "ip or ip6") as capture:
        yield capture
    assert capture.wrong_checksums() == []
    for inside in (INSIDE, NEIGHBOUR, INSIDE6, NEIGHBOUR6):
        number = packed(inside)
        for frame in capture.frames():
            for form in (number, inside.encode(), b"%d" % int.from_bytes(number)):
                assert form not in frame.data, frame.packet


def field(pattern: bytes, text: bytes) -> str:
    """What stands there."""
    match = re.search(pattern, text)
    assert match, text
    return match[1].decode()


def packed(address: str, *numbers: int) -> bytes:
    """An address in network order, and ports behind it."""
    return ip_address(address).packed + b"".join(number.to_bytes(2) for number in numbers)


def unpacked(text: bytes) -> Address:
    """An address and the port behind it."""
    return str(ip_address(text[:-2])), int.from_bytes(text[-2:])


def place(said: bytes, what: bytes, heard: bytes) -> bytes:
    """What is read where the speaker had put this."""
    at = said.index(what)
    return heard[at : at + len(what)]


# What is said: each opens a control channel and announces its second ones


def rtsp(channel: Channel) -> list[Announced]:
    """A stream is set up and played; the server repeats the client's transport as it has read it."""
    mine, theirs = (claim.encode() for claim in channel.claims)
    channel.say(CLIENT, rtsp_text.OPTIONS)
    channel.say(SERVER, rtsp_text.PUBLIC)
    asked = rtsp_text.UNICAST + b"%d-%d;destination=%s" % (RTP, RTP + 1, mine)
    heard = channel.say(CLIENT, rtsp_text.setup(asked), BLANK)
    granted = field(rb"Transport: (.*)\r", heard).encode() + b";source=%s;server_port=%d-%d"
    answer = channel.say(SERVER, rtsp_text.granted(granted % (theirs, SERVER_RTP, SERVER_RTP + 1)), BLANK)
    assert asked in answer
    channel.say(CLIENT, b"PLAY rtsp://x/x RTSP/1.0\r\nCSeq: 3\r\nSession: 47\r\n\r\n")
    channel.say(SERVER, b"RTSP/1.0 200 OK\r\nCSeq: 3\r\nSession: 47\r\n\r\n")
    read = [
        (field(b"destination=([0-9a-f.:]+)", heard), int(field(rb"client_port=(\d+)", heard))),
        (field(b"source=([0-9a-f.:]+)", answer), int(field(rb"server_port=(\d+)", answer))),
    ]
    return channel.media(CLIENT, RTP, read[CLIENT]) + channel.media(SERVER, SERVER_RTP, read[SERVER])


def h323(channel: Channel) -> list[Announced]:
    """The caller offers media at once, and each waits for the other's media control."""
    mine, theirs = channel.claims
    rtp, rtcp = (f"{mine}:{RTP + step}" for step in (0, 1))
    offer = [h323_text.fast(1, "", rtcp), h323_text.fast(2, rtp, rtcp, reverse=True)]
    setup = h323_text.setup(fastStart=offer, h245Address=f"{mine}:{H245_BACK}")
    connect = h323_text.connect(h245Address=f"{theirs}:{H245}")
    called = channel.say(CLIENT, setup)
    offered, back = (place(setup, packed(mine, number), called) for number in (RTP, H245_BACK))
    forth = place(connect, packed(theirs, H245), channel.say(SERVER, connect))
    return [
        channel.announced(SERVER, STREAM, H245, unpacked(forth), "h.245"),
        channel.announced(CLIENT, STREAM, H245_BACK, unpacked(back), "h.245"),
        *channel.media(CLIENT, RTP, unpacked(offered)),
    ]


def mgcp(channel: Channel) -> list[Announced]:
    """A gateway registers and gets a connection, whose media come from the call agent itself."""
    channel.say(CLIENT, mgcp_text.RESTART)
    channel.say(SERVER, b"200 1 OK\r\n")
    channel.say(SERVER, mgcp_text.CREATE)
    gateway = channel.claims[CLIENT]
    description = mgcp_text.sdp(gateway.encode(), RTP, b"IP6" if ":" in gateway else b"IP4")
    heard = channel.say(CLIENT, mgcp_text.created(description))
    read = field(rb"c=IN IP. (\S+)", heard), int(field(rb"m=audio (\d+)", heard))
    return channel.media(CLIENT, RTP, read)


def rsh(channel: Channel) -> list[Announced]:
    """There is no address in it: errors go to whoever has called."""
    heard = channel.say(CLIENT, b"%d\0alice\0bob\0uptime\0" % ERRORS, b"uptime\0")
    channel.say(SERVER, b"\0")
    read = channel.way.seen[CLIENT] if channel.changed else channel.claims[CLIENT]
    return [channel.announced(CLIENT, STREAM, ERRORS, (read, int(heard.partition(b"\0")[0])), "rsh-error")]


def sccp(channel: Channel) -> list[Announced]:
    """A phone is asked to receive; another phone is going to send."""
    phone = channel.claims[CLIENT]
    channel.say(CLIENT, sccp_text.ALARM)
    channel.say(CLIENT, sccp_text.register("0.0.0.0" if ":" in phone else phone))
    channel.say(SERVER, sccp_text.REGISTERED + sccp_text.OPEN)
    said = (sccp_text.opened_wide if ":" in phone else sccp_text.opened)(VOICE, phone)
    read = place(said, packed(phone) + VOICE.to_bytes(4, "little"), channel.say(CLIENT, said))
    where = str(ip_address(read[:-4])), int.from_bytes(read[-4:], "little")
    return channel.media(CLIENT, VOICE, where, OTHERS[channel.way.own[SERVER]])


def oracle(channel: Channel) -> list[Announced]:
    """The listener sends its client on to another port."""
    channel.say(CLIENT, tns_text.CONNECT)
    address = tns_text.address(DATABASE, channel.claims[SERVER].encode())
    heard = channel.say(SERVER, tns_text.redirect(address), b"))")
    read = field(rb"HOST=([0-9a-f.:]+)", heard), int(field(rb"PORT=(\d+)", heard))
    return [channel.announced(SERVER, STREAM, DATABASE, read, "oracle")]


def irc(channel: Channel) -> list[Announced]:
    """A file is offered to somebody else, who has a part of it already."""
    channel.say(CLIENT, irc_text.LOGIN)
    channel.say(SERVER, irc_text.WELCOME)
    own = channel.claims[CLIENT]
    word = own.encode() if ":" in own else b"%d" % int.from_bytes(packed(own))
    heard = channel.say(CLIENT, irc_text.OFFER % (word, b"%d" % FILE), b"\n")
    where, opened = heard.split()[-3:-1]
    read = str(ip_address(int(where) if where.isdigit() else where.decode())), int(opened)
    resume = channel.say(SERVER, irc_text.TO_CLIENT % (b"RESUME", opened), b"\n")
    assert resume == irc_text.TO_CLIENT % (b"RESUME", b"%d" % FILE)
    return [channel.announced(CLIENT, STREAM, FILE, read, "irc-dcc", OTHERS[channel.way.own[SERVER]])]


def msrpc(channel: Channel) -> list[Announced]:
    """The endpoint mapper is asked for a service."""
    channel.say(CLIENT, msrpc_text.bind(ENDPOINT_MAPPER))
    channel.say(SERVER, msrpc_text.bound(NDR))
    channel.say(CLIENT, msrpc_text.ask())
    server = channel.claims[SERVER]
    host = msrpc_text.ANY if ":" in server else server  # a tower has no room for another
    said = msrpc_text.tell(msrpc_text.tower(SERVICE, host))
    floors = SERVICE.to_bytes(2) + b"\1\0\x09\4\0" + packed(host)  # a port, the next floor's protocol, an address
    heard = place(said, floors, channel.say(SERVER, said))
    read = channel.way.seen[SERVER] if ":" in server else str(ip_address(heard[-4:]))
    return [channel.announced(SERVER, STREAM, SERVICE, (read, int.from_bytes(heard[:2])), "msrpc")]


Conversation = Callable[[Channel], list[Announced]]
SPOKEN: dict[str, tuple[str, Conversation, Way]] = {
    "rtsp": ("rtsp", rtsp, OUT),
    "rtsp-in": ("rtsp", rtsp, IN),
    "h.323": ("h.323", h323, OUT),
    "h.323-in": ("h.323", h323, IN),
    "mgcp": ("mgcp", mgcp, OUT),
    "rsh": ("rsh", rsh, OUT),
    "sccp": ("sccp", sccp, OUT),
    "irc": ("irc", irc, OUT),
    "oracle-in": ("oracle", oracle, IN),
    "msrpc-in": ("msrpc", msrpc, IN),
    "rtsp-6": ("rtsp", rtsp, OUT6),
    "h.323-6": ("h.323", h323, OUT6),
    "h.323-in6": ("h.323", h323, IN6),
    "mgcp-6": ("mgcp", mgcp, OUT6),
    "rsh-6": ("rsh", rsh, OUT6),
    "sccp-6": ("sccp", sccp, OUT6),
    "irc-6": ("irc", irc, OUT6),
    "oracle-in6": ("oracle", oracle, IN6),
    "msrpc-in6": ("msrpc", msrpc, IN6),
}
REPEATED = {"msrpc"}  # a service is called as often as its client likes


def each_protocol(*left_out: str, ways: tuple[Way, ...] = (OUT, IN, OUT6, IN6)) -> pytest.MarkDecorator:
    """All but those left out, by key or by name."""
    chosen = {
        key: spoken
        for key, spoken in SPOKEN.items()
        if spoken[2] in ways and not {key, spoken[0]}.intersection(left_out)
    }
    return pytest.mark.parametrize(("name", "talk", "way"), chosen.values(), ids=chosen)


# Off


@each_protocol(ways=(OUT, IN))
def test_off_by_default(off, name, talk, way):
    """Every byte goes on as it was, and nobody comes through on what was announced."""
    with control(off, way, name) as channel:
        for announced in talk(channel):
            assert announced.read[1] == announced.port
            assert off.is_denied(announced)
        assert not channel.changed
        assert off.predicted() == []


# On


@each_protocol()
def test_the_control_port_is_all_that_the_policy_needs(on, name, talk, way):
    """Every announced channel is expected, comes through, and is a child under its parent's rule."""
    with outside(on), control(on, way, name) as channel:
        second = talk(channel)
        parent = channel.session(on)
        assert announcements(on.children(parent, "predict")) == sorted(
            (("client", "server")[each.side], each.port, each.application, False) for each in second
        )
        for announced in second:
            assert way.seen[announced.side] == way.own[announced.side] or announced.read[1] != announced.port
            carries(on, announced)
        came = on.children(parent, "flow")
    assert {(each["rule"], each["nat_rule"]) for each in came} == {(way.rule, way.nat)}
    assert announcements(came) == sorted(
        (("client", "server")[each.side], each.port, each.application, True) for each in second
    )
    for each in came:
        assert record(on.firewall, event="start", session_id=each["id"], parent_session_id=parent)


def announcements(shown: list[dict[str, Any]]) -> list[tuple[str, int, str, bool]]:
    """By whom, on which port, for what, and whether it has come."""
    return sorted(
        (
            each["prediction_triggered_by"],
            each["s2c"]["sport"],
            each["application"],
            each["prediction_matched_once"],
        )
        for each in shown
    )


@each_protocol("rtsp-in", "h.323-in", ways=(OUT, IN))
def test_without_translation(on, name, talk, way):
    """Every byte goes on as it was, and the way is open."""
    with control(on, PLAIN, name) as channel:
        for announced in talk(channel):
            assert announced.read == (PLAIN.own[announced.side], announced.port)
            carries(on, announced)
        assert not channel.changed


@each_protocol(ways=(OUT, IN))
def test_what_has_come_does_not_come_again(on, name, talk, way):
    """A prediction is used up by the first caller; only a mapped service may be called more often."""
    with control(on, way, name) as channel:
        for announced in talk(channel):
            carries(on, announced)
            assert on.is_denied(announced) is (name not in REPEATED)
            if name in REPEATED:
                carries(on, announced)
                carries(on, announced)


@each_protocol(ways=(OUT,))
def test_two_clients_announce_the_same_port(on, name, talk, way):
    """To the same server and at once: outside they are two, and each is called by its own."""
    with outside(on), control(on, OUT, name) as first, ExitStack() as stack:
        both = talk(first) + talk(stack.enter_context(control(on, NEXT, name)))
        opened = [announced for announced in both if announced.side == CLIENT]
        assert len({(announced.kind, announced.read) for announced in opened}) == len(opened)
        for announced in opened:
            carries(on, announced)


@each_protocol("mgcp")
def test_messages_in_two_segments(on, name, talk, way):
    """The first one is acknowledged before the second is sent, whether the firewall holds it or not."""
    with outside(on), control(on, way, name, halves=True) as channel:
        for announced in talk(channel):
            carries(on, announced)


ENDINGS: dict[str, tuple[int, bytes]] = {
    "rtsp": (CLIENT, rtsp_text.teardown()),
    "h.323": (SERVER, h323_text.release()),
    "mgcp": (SERVER, mgcp_text.DELETE % b"C: A3C4\r\n"),
    "sccp": (SERVER, sccp_text.close()),
}


@each_protocol("rsh", "irc", ways=(OUT,))
def test_the_end_of_a_call_closes_what_has_not_come(on, name, talk, way):
    """While its control channel goes on."""
    with control(on, way, name) as channel:
        second = talk(channel)
        channel.say(*ENDINGS[name])
        assert on.children(channel.session(on), "predict") == []
        assert all(on.is_denied(announced) for announced in second)


@each_protocol("rtsp", "oracle", ways=(IN,))
def test_predictions_die_with_their_control_connection(on, name, talk, way):
    """When a reset has ended it."""
    with control(on, way, name) as channel:
        second = talk(channel)
        channel.ends[CLIENT].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    poll(lambda: not on.predicted(), 3, "the predictions to be gone")
    assert all(on.is_denied(announced) for announced in second)


# Attacks


@each_protocol("rsh", "msrpc-in6")
def test_other_peoples_addresses_open_nothing(on, name, talk, way):
    """An end that announces its neighbour is not believed: its words pass, the way stays closed."""
    with control(on, way, name, foreign=True) as channel:
        assert all(on.is_denied(announced) for announced in talk(channel))
        assert not channel.changed
        assert on.predicted() == []


@each_protocol()
def test_a_stream_that_began_as_something_else_opens_nothing(on, name, talk, way):
    """Slipstreaming: a page makes its browser send to the port, cut so that a segment begins as the protocol does."""
    with control(on, way, name) as channel:
        channel.say(CLIENT, NOT_THE_PROTOCOL)
        assert all(on.is_denied(announced) for announced in talk(channel))
        assert not channel.changed
        assert on.predicted() == []


# RTSP, H.323, Oracle


@pytest.mark.parametrize("way", [OUT, IN], ids=["out", "in"])
@pytest.mark.parametrize("first", [CLIENT, SERVER], ids=["client", "server"])
def test_an_rtsp_stream_is_one_session_both_ways(on, way, first):
    """From announced port to announced port, whoever sends first: players punch holes, and reports go back."""
    with control(on, way, "rtsp") as channel:
        read = {(each.side, each.application): each.read for each in rtsp(channel)}
        for step, application in enumerate(("rtp", "rtcp")):
            ends = [on.lab.udp(way.ns[side], (RTP, SERVER_RTP)[side] + step, way.own[side]) for side in (0, 1)]
            for side in (first, 1 - first):
                ends[side].sendto(b"media", read[1 - side, application])
                assert ends[1 - side].recvfrom(100) == (b"media", read[side, application])
                assert ends[side].getsockname()[1] == (RTP, SERVER_RTP)[side] + step
            (session,) = sessions(on.firewall, application=application, state="active", type="flow")
            assert (session["packets_c2s"], session["packets_s2c"]) == (1, 1)
            for end in ends:
                end.close()


def test_a_connection_carries_on_after_its_text_has_changed(on):
    """More often than edits are remembered: requests grow, answers shrink, and frames of media pass between them."""
    asked = rtsp_text.UNICAST + b"%d-%d" % (RTP, RTP + 1)
    with outside(on), control(on, OUT, "rtsp") as channel:
        rtsp(channel)
        for cseq in range(10, 10 + 2 * MAX_EDITS):
            heard = channel.say(CLIENT, rtsp_text.setup(asked, cseq), BLANK)
            assert len(heard) > len(rtsp_text.setup(asked, cseq))
            granted = field(rb"Transport: (.*)\r", heard).encode()
            assert asked in channel.say(SERVER, rtsp_text.granted(granted, cseq), BLANK)
            for side in (CLIENT, SERVER):
                frame = b"$\0" + FRAME.to_bytes(2) + random.Random(cseq).randbytes(FRAME)
                assert channel.say(side, frame) == frame


@pytest.mark.parametrize("way", [OUT, PLAIN, IN, OUT6, IN6], ids=["out", "plain", "in", "out6", "in6"])
def test_media_control_opens_the_media_of_a_call(on, way):
    """Each opens a channel to the other, whose ports stand in two messages."""
    with control(on, way, "h.323") as call, Channel(on, h323(call)[0]) as channel:
        second = h245(channel)
        parent = channel.session(on)
        assert len(on.children(parent, "predict")) == 4
        for announced in second:
            carries(on, announced)
        came = on.children(parent, "flow")
        assert sorted(each["application"] for each in came) == ["rtcp", "rtcp", "rtp", "rtp"]
        assert {each["rule"] for each in came} == {way.rule}
        assert parent in {each["id"] for each in on.children(call.session(on), "flow")}


def h245(channel: Channel) -> list[Announced]:
    """Capabilities; then each opens a channel and names its RTCP, and the other acknowledges with his own ports."""
    hello = h323_text.tpkt(h323_text.CAPABILITIES) + h323_text.tpkt(h323_text.DETERMINATION)
    for side in (CLIENT, SERVER):
        assert channel.say(side, hello) == hello
    opened = []
    for side, number in ((CLIENT, RTP + 100), (SERVER, SERVER_RTP + 100)):
        own = channel.way.own[side]
        rtp, rtcp = (f"{own}:{number + step}" for step in (0, 1))
        opening = h323_text.tpkt(h323_text.opening(1 + side, rtcp=rtcp))
        accepting = h323_text.tpkt(h323_text.accepting(2 - side, rtp, rtcp))
        reports = place(opening, packed(own, number + 1), channel.say(side, opening))
        heard = channel.say(side, accepting)
        assert place(accepting, packed(own, number + 1), heard) == reports
        opened += channel.media(side, number, unpacked(place(accepting, packed(own, number), heard)))
    return opened


def test_a_redirected_client_may_be_redirected_again(on):
    """The connection to which a listener has sent it is read as well."""
    with outside(on), control(on, IN, "oracle") as first, Channel(on, oracle(first)[0]) as second:
        second.say(CLIENT, tns_text.CONNECT)
        heard = second.say(SERVER, tns_text.redirect(tns_text.address(DATABASE + 1, INSIDE.encode())), b"))")
        read = field(rb"HOST=([0-9a-f.:]+)", heard), int(field(rb"PORT=(\d+)", heard))
        carries(on, second.announced(SERVER, STREAM, DATABASE + 1, read, "oracle"))
        assert len(on.children(second.session(on), "flow")) == 1


# PPTP: calls have ids where other protocols have ports


CALL, ANSWERED = 7, 100
ANY_GRE = f"ip proto {GRE}"


class Tunnel:
    """One host's end of GRE."""

    def __init__(self, stack: ExitStack, site: Site, ns: str, address: str) -> None:
        with site.lab.inside(ns):
            self._socket = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, GRE))
        self._socket.settimeout(3)
        self._socket.bind((address, 0))

    def send(self, to: str, header: bytes, data: bytes = b"frame") -> None:
        self._socket.sendto(header + data, (to, 0))

    def receive(self) -> tuple[str, bytes, bytes]:
        """From whom, the GRE header, and what is in it."""
        packet = self._socket.recv(2000)
        return socket.inet_ntoa(packet[12:16]), packet[20:-5], packet[-5:]


def enhanced(call: int) -> bytes:
    """The GRE header of a call (RFC 2637 section 4.1): key and sequence number present, version 1."""
    return struct.pack("!BBHHHI", 0x30, 0x01, 0x880B, 5, call, 1)


ORDINARY = struct.pack("!HH", 0, 0x6558)  # RFC 2784, Ethernet inside


def pptp(channel: Channel, answered: int = ANSWERED) -> tuple[int, int]:
    """A call; the id of each side as the other one has read it."""
    channel.say(CLIENT, pptp_text.START)
    channel.say(SERVER, pptp_text.STARTED)
    heard = channel.say(CLIENT, pptp_text.request(CALL))
    theirs = int.from_bytes(heard[12:14])
    answer = channel.say(SERVER, pptp_text.reply(answered, theirs))
    assert int.from_bytes(answer[14:16]) == CALL
    return theirs, int.from_bytes(answer[12:14])


def test_a_call_is_nothing_special_when_it_is_off(off):
    """Its id goes on as it was, and the server's packets do not come in."""
    with ExitStack() as stack, control(off, OUT, "pptp") as channel:
        assert pptp(channel) == (CALL, ANSWERED)
        assert not channel.changed
        server = Tunnel(stack, off, "server", PEER)
        for address in (INSIDE, OUTSIDE):
            assert not off.lets_through("server", ANY_GRE, ANY_GRE, lambda to=address: server.send(to, enhanced(CALL)))


@pytest.mark.parametrize("first", [CLIENT, SERVER], ids=["client", "server"])
def test_two_calls_of_one_id_through_one_address(on, first):
    """Outside their ids differ; each client's packets go out by its server's id, and each gets its own with its own."""
    with outside(on), ExitStack() as stack:
        ways = {INSIDE: OUT, NEIGHBOUR: NEXT}
        channels = {own: stack.enter_context(control(on, way, "pptp")) for own, way in ways.items()}
        calls = {own: pptp(channel, ANSWERED + n) for n, (own, channel) in enumerate(channels.items())}
        assert len({theirs for theirs, _ in calls.values()}) == 2
        server = Tunnel(stack, on, "server", PEER)
        for own, (theirs, mine) in calls.items():
            client = Tunnel(stack, on, "client", own)
            for side in (first, 1 - first):
                if side == CLIENT:
                    client.send(PEER, enhanced(mine), own[-5:].encode())
                    assert server.receive() == (OUTSIDE, enhanced(mine), own[-5:].encode())
                else:
                    server.send(OUTSIDE, enhanced(theirs), own[-5:].encode())
                    assert client.receive() == (PEER, enhanced(CALL), own[-5:].encode())
        for own, channel in channels.items():
            came = on.children(channel.session(on), "flow")
            assert {(each["application"], each["rule"], each["prediction_matched_once"]) for each in came} == {
                ("pptp-gre", "out", True)
            }
            assert sorted((each["packets_c2s"], each["packets_s2c"]) for each in came) == [(1, 0), (1, 0)], own


@pytest.mark.parametrize("way", [PLAIN, IN], ids=["plain", "in"])
def test_a_call_both_ways(on, way):
    """Without translation, and to a server inside."""
    with ExitStack() as stack, control(on, way, "pptp") as channel:
        theirs, mine = pptp(channel)
        client, server = (Tunnel(stack, on, way.ns[side], way.own[side]) for side in (CLIENT, SERVER))
        client.send(way.seen[SERVER], enhanced(mine))
        assert server.receive() == (way.seen[CLIENT], enhanced(ANSWERED), b"frame")
        server.send(way.seen[CLIENT], enhanced(theirs))
        assert client.receive() == (way.seen[SERVER], enhanced(CALL), b"frame")
        assert len(on.children(channel.session(on), "flow")) == 2


def test_a_cleared_call_is_awaited_no_more(on):
    """Its first packet comes too late."""
    with ExitStack() as stack, control(on, OUT, "pptp") as channel:
        theirs, _ = pptp(channel)
        channel.say(CLIENT, pptp_text.clear(CALL))
        assert on.predicted() == []
        server = Tunnel(stack, on, "server", PEER)
        assert not on.lets_through("server", ANY_GRE, ANY_GRE, lambda: server.send(OUTSIDE, enhanced(theirs)))


@pytest.mark.parametrize("header", [ORDINARY, enhanced(CALL)], ids=["ordinary", "enhanced"])
def test_gre_of_a_rule_needs_no_call(off, header):
    """Whatever is in the header, it is one session by addresses."""
    ask(off.firewall, "clear session all")
    with ExitStack() as stack:
        inside, peer = Tunnel(stack, off, "client", TUNNEL), Tunnel(stack, off, "server", PEER)
        inside.send(PEER, header)
        assert peer.receive() == (OUTSIDE, header, b"frame")
        peer.send(OUTSIDE, header, b"reply")
        assert inside.receive() == (PEER, header, b"reply")
    (session,) = sessions(off.firewall, source=TUNNEL, application="gre", state="active")
    assert (session["rule"], session["c2s"]["sport"], session["c2s"]["dport"]) == ("tunnels", 0, 0)


def test_calls_beside_gre_of_a_rule(on):
    """Through one address to one server: what belongs to a call goes to its client, the rest to the tunnel."""
    with outside(on), ExitStack() as stack, control(on, OUT, "pptp") as channel:
        peer, client = Tunnel(stack, on, "server", PEER), Tunnel(stack, on, "client", INSIDE)
        tunnel = Tunnel(stack, on, "client", TUNNEL)
        theirs, mine = pptp(channel)
        for _ in range(2):
            peer.send(OUTSIDE, enhanced(theirs))
            assert client.receive() == (PEER, enhanced(CALL), b"frame")
            client.send(PEER, enhanced(mine))
            assert peer.receive() == (OUTSIDE, enhanced(mine), b"frame")
            tunnel.send(PEER, ORDINARY)
            assert peer.receive() == (OUTSIDE, ORDINARY, b"frame")
            peer.send(OUTSIDE, ORDINARY, b"reply")
            assert tunnel.receive() == (PEER, ORDINARY, b"reply")
