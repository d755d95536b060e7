"""SIP between real phones (sipp), and between phones that a test speaks itself, through each kind of translation.

Only the signalling port 5060 is in the policy: media pass where a message has announced them.

      client side                  seen from the other side
        10.1.0.2   fd00:1::2         as itself
        10.1.0.3   fd00:1::3         10.2.0.130  fd00:2::130    of a pool, ports 20000-20999
        10.1.0.4   fd00:1::4         10.2.0.104  fd00:2::104    is called there, by destination translation
        10.1.0.5                     10.2.0.105                 is called there, bi-directional
        10.1.0.7                     10.2.0.130                 another one of the pool

      server side: 10.2.0.2, fd00:2::2 the other phone, 10.2.0.3 a stranger
"""

import itertools
import re
import select
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab import servers
from tests.lab.calls import exchange, pool_row, source_rule
from tests.lab.capture import TCP, Capture
from tests.lab.console import CONTROL_PORT, IN_ORDER, Control, ask, counters, port, record, rule, sessions, zones
from tests.lab.firewall import Firewall
from tests.lab.kernel import kernel_helps, publishes, translates
from tests.lab.lab import CLIENT, CLIENT6, SERVER, SERVER6, Lab, poll

SIP = 5060
SCENARIOS = Path(__file__).parent / "sipp"
SOUND = "/usr/share/sip-tester/dtmf_2833_0.pcap"  # ten packets of RTP
SOUNDS = 10
TCP_REPAIR = 19  # linux/tcp.h
POOL_PORTS = range(20000, 21000)
CALLS = 20  # that one phone has at a time
COMPACT = {
    "Via": "v",
    "From": "f",
    "To": "t",
    "Call-ID": "i",
    "Contact": "m",
    "Content-Type": "c",
    "Content-Length": "l",
}

HIDDEN, HIDDEN6, NEIGHBOUR, POOL, POOL6 = "10.1.0.3", "fd00:1::3", "10.1.0.7", "10.2.0.130", "fd00:2::130"
BEHIND, BEHIND6, STATIC = "10.1.0.4", "fd00:1::4", "10.1.0.5"
PUBLIC, PUBLIC6, PUBLIC_STATIC = "10.2.0.104", "fd00:2::104", "10.2.0.105"
STRANGER = "10.2.0.3"

_ports = itertools.count(30000, 4)  # a fresh port, and those of media beside it, for everything


class Way(servers.Way):
    """Who calls whom, and how the two know each other. One of the two is inside, the other at SERVER."""

    @property
    def inside(self) -> str:
        return self.source if self.ns == "client" else self.serving

    @property
    def outside(self) -> str:
        """The phone inside as the other one knows it."""
        return self.seen if self.ns == "client" else self.called

    @property
    def peer(self) -> str:
        return self.serving if self.ns == "client" else self.source

    @property
    def back(self) -> "Way":
        """The other one calls where the caller is known."""
        return Way(f"{self.name}-back", self.server_ns, self.serving, self.seen, self.called, self.source)

    @property
    def pooled(self) -> bool:
        """The phone inside is known by ports of a range."""
        return self.outside in (POOL, POOL6)


PLAIN = Way("plain", "client", CLIENT, SERVER, CLIENT, SERVER)
SNAT = Way("snat", "client", HIDDEN, SERVER, POOL, SERVER, nat="pool")
DNAT = Way("dnat", "server", SERVER, PUBLIC, SERVER, BEHIND, "in", "published")
PLAIN6 = Way("plain6", "client", CLIENT6, SERVER6, CLIENT6, SERVER6)
NAT66 = Way("nat66", "client", HIDDEN6, SERVER6, POOL6, SERVER6, nat="pool6")
WAYS = (
    PLAIN,
    SNAT,
    DNAT,
    Way("static", "server", SERVER, PUBLIC_STATIC, SERVER, STATIC, "in", "static"),
    PLAIN6,
    NAT66,
    Way("dnat66", "server", SERVER6, PUBLIC6, SERVER6, BEHIND6, "in", "published6"),
)
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
both_transports = pytest.mark.parametrize("transport", ["UDP", "TCP"])

OUT: dict[str, Any] = {"from_": ["trust"], "to": ["untrust"]}
IN: dict[str, Any] = {"from_": ["untrust"], "to": ["trust"]}


def destination_rule(name: str, address: str, inside: str) -> dict[str, Any]:
    """Only signalling is translated by the rule."""
    return {
        "name": name,
        "nat-type": "ipv6" if ":" in address else "ipv4",
        "from": ["untrust"],
        "to": "untrust",
        "destination": [address],
        "service": ["sip-udp", "sip-tcp"],
        "destination-translation": {"address": inside},
    }


POOLED: dict[str, Any] = {"type": "dynamic-ip-and-port", "port-range": "20000-20999"}
CONFIG: dict[str, Any] = {
    "zones": zones(),
    "services": {
        "sip-udp": port(SIP, "udp"),
        "sip-tcp": port(SIP),
        "control-udp": port(CONTROL_PORT, "udp"),
    },
    "security-rules": [
        rule("out", application=["sip"], **OUT),
        rule("in", application=["sip"], **IN),
        rule("control", service=["control-udp"], **OUT),
        rule("rest", "deny"),
    ],
    "nat-rules": [
        source_rule("pool", [HIDDEN, NEIGHBOUR], POOL, **POOLED),
        source_rule("pool6", [HIDDEN6], POOL6, **POOLED),
        source_rule("static", [STATIC], PUBLIC_STATIC, type="static-ip", **{"bi-directional": True}),
        destination_rule("published", PUBLIC, BEHIND),
        destination_rule("published6", PUBLIC6, BEHIND6),
    ],
    "settings": IN_ORDER,
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with phones() as made:
        yield made


@contextmanager
def phones() -> Iterator[Lab]:
    """Whoever calls a public address knows the way there."""
    inside = [HIDDEN, HIDDEN6, NEIGHBOUR, BEHIND, BEHIND6, STATIC]
    with Lab(client_addresses=inside, server_addresses=[STRANGER]) as made:
        made.reaches("server", PUBLIC, PUBLIC6, PUBLIC_STATIC)
        yield made


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(CONFIG) as running:
        yield running


@pytest.fixture(autouse=True)
def _alone(firewall: Firewall) -> Iterator[None]:
    """Nothing of a test is left for the next."""
    yield
    clear(firewall)


def clear(firewall: Firewall) -> None:
    """End every session, and return when that is done."""
    ask(firewall, "clear session all", filter={})
    poll(lambda: not sessions(firewall), 3, "every session to end")


@pytest.fixture(scope="module")
def control(lab: Lab, firewall: Firewall) -> Control:
    return Control(lab)


# Messages


def length_of(head: bytes) -> int:
    """Bytes of the body, as the headers say."""
    found = re.search(rb"(?im)^(?:content-length|l): *(\d+)", head)
    assert found, head
    return int(found[1])


def messages(stream: bytes) -> list[bytes]:
    """A stream cut where each message ends as its Content-Length says; nothing may be left over."""
    found = []
    while stream:
        head = stream.partition(b"\r\n\r\n")[0]
        assert re.match(rb"[A-Z]+ sips?:\S+ SIP/2.0\r\n|SIP/2.0 \d{3} ", head), stream
        size = len(head) + 4 + length_of(head)
        assert size <= len(stream), stream
        found.append(stream[:size])
        stream = stream[size:]
    return found


def renamed(message: bytes, names: Mapping[bytes, bytes]) -> bytes:
    """A message as the other side has to read it: other names, another length, and not a byte more."""
    for old, new in names.items():
        message = message.replace(old, new)
    head, blank, body = message.partition(b"\r\n\r\n")
    return re.sub(rb"(?im)^((?:content-length|l): *)\d+", rb"\g<1>%d" % len(body), head) + blank + body


def names(session: Mapping[str, Any], media: Mapping[int, int]) -> dict[bytes, bytes]:
    """What the phone inside writes, and what the other one reads instead; `media`: its ports and those outside."""
    inner, outer = (session["c2s"], "source", "sport"), (session["s2c"], "dst", "dport")
    if session["c2s"]["source_zone"] == "untrust":
        inner, outer = (session["s2c"], "source", "sport"), (session["c2s"], "dst", "dport")
    (own, own_port), (seen, seen_port) = ((flow[address], flow[number]) for flow, address, number in (inner, outer))
    texts = {f"{host(own)}:{own_port}": f"{host(seen)}:{seen_port}", own: seen}
    texts |= {f"m=audio {old} ": f"m=audio {new} " for old, new in media.items()}
    return {old.encode(): new.encode() for old, new in texts.items()}


def host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def announced(message: bytes) -> int:
    """The port at which the sender of a description wants its sound."""
    found = re.search(rb"\nm=audio (\d+) ", message)
    assert found, message
    return int(found[1])


def said(capture: Capture, to_called: bool) -> list[bytes]:
    """What one of two phones has said, message by message; who is called listens on SIP."""
    texts: dict[int, bytes] = {}
    for datagram in (frame.datagram for frame in capture.frames()):
        if datagram is None or struct.unpack_from("!HH", datagram.payload)[to_called] != SIP:
            continue
        tcp = datagram.protocol == TCP
        start = (datagram.payload[12] >> 4) * 4 if tcp else 8
        key = int.from_bytes(datagram.payload[4:8], "big") if tcp else len(texts)
        if text := datagram.payload[start:]:
            texts[key] = text
    return messages(b"".join(texts.values()))


def heard(capture: Capture, address: str, number: int) -> int:
    """How many datagrams went to that port."""
    ports = [
        struct.unpack_from("!HH", frame.datagram.payload)[1]
        for frame in capture.frames()
        if frame.datagram is not None and frame.destination == address
    ]
    return ports.count(number)


# Real phones


@dataclass
class Traffic:
    """What a pair of real phones has sent, seen at both ends of the firewall."""

    port: int  # from which the caller signals
    inside: Capture
    outside: Capture


def talk(lab: Lab, way: Way, transport: str, names: tuple[str, str], media: tuple[int, int], calls: int = 1) -> Traffic:
    """Let one phone call the other until both are content; who is called sends back every sound."""
    mine = next(_ports)
    command = sipp(names[1], way.serving, SIP, media[1], transport, calls)
    called = lab.serve(way.server_ns, [*command, "-rtp_echo"], SIP, transport.lower())
    with lab.capture("client", "eth0", "udp or tcp") as inside, lab.capture("server", "eth0", "udp or tcp") as outside:
        command = sipp(names[0], way.source, mine, media[0], transport, calls)
        done = lab.run(way.ns, [*command, "-key", "sound", SOUND, "-r", "200", f"{host(way.called)}:{SIP}"])
        assert not done.returncode, done.stdout[-3000:] + done.stderr
        poll(lambda: called.poll() is not None, 5, "the phone that was called to end")
    assert not called.returncode, lab.output(called)[-3000:]
    assert not inside.wrong_checksums() + outside.wrong_checksums()
    return Traffic(mine, inside, outside)


def sipp(name: str, address: str, signalling: int, media: int, transport: str, calls: int) -> list[str]:
    """A phone that gives up after ten seconds. Its Call-ID names no address, because that is not translated."""
    where = ["-i", address, "-p", str(signalling), "-mi", address, "-mp", str(media)]
    how = ["-t", f"{transport[0].lower()}1", "-m", str(calls), "-nostdin", "-timeout", "10", "-timeout_error"]
    return ["sipp", "-sf", str(SCENARIOS / f"{name}.xml"), *where, *how, "-cid_str", "%u-%p@lab"]


def signalling(firewall: Firewall, number: int) -> dict[str, Any]:
    """The session that was opened from that port."""
    (session,) = sessions(firewall, source_port=number, application="sip")
    return session


def assert_translated(traffic: Traffic, names: Mapping[bytes, bytes]) -> None:
    """Each side has read the other's messages in its own terms, and nothing else was changed."""
    for to_called in (True, False):
        inside, outside = said(traffic.inside, to_called), said(traffic.outside, to_called)
        assert inside
        assert [renamed(message, names) for message in inside] == outside
        for own, seen in names.items():
            assert own == seen or not any(own in message for message in outside)
            assert own == seen or not any(seen in message for message in inside)


@both_transports
@every_way
def test_a_call(lab, firewall, way, transport):
    """REGISTER, INVITE, sound both ways, INVITE again, BYE: read on each side in its own terms, and nothing is left."""
    before, media = used(firewall, way), (next(_ports), next(_ports))
    own, other = media if way.ns == "client" else media[::-1]
    traffic = talk(lab, way, transport, ("caller", "called"), media)
    session = signalling(firewall, traffic.port)
    seen = announced(next(text for text in said(traffic.outside, way.ns == "client") if b"m=audio" in text))
    assert seen in POOL_PORTS if way.pooled else seen == own
    assert_translated(traffic, names(session, {own: seen}))
    assert_heard(traffic, way, own, seen, other)
    (sound,) = sessions(firewall, application="rtp", source_port=media[0])
    assert (sound["parent_session"], sound["prediction_matched_once"]) == (session["id"], True)
    assert not waiting(firewall)
    clear(firewall)
    assert used(firewall, way) == before


def assert_heard(traffic: Traffic, way: Way, own: int, seen: int, other: int) -> None:
    """Every sound came through both ways: to the phone inside, at `own` known as `seen`, and to the other one."""
    assert heard(traffic.inside, way.inside, own) == heard(traffic.outside, way.outside, seen) == SOUNDS
    assert heard(traffic.inside, way.peer, other) == heard(traffic.outside, way.peer, other) == SOUNDS


@pytest.fixture(scope="module")
def kernel_lab() -> Iterator[Lab]:
    with phones() as made:
        made.reaches("server", POOL, POOL6)
        outgoing = [translates(HIDDEN, POOL), translates(HIDDEN6, POOL6), translates(STATIC, PUBLIC_STATIC)]
        incoming = [publishes(PUBLIC, BEHIND), publishes(PUBLIC6, BEHIND6), publishes(PUBLIC_STATIC, STATIC)]
        kernel_helps(made, "sip", SIP, ["udp", "tcp"], incoming, outgoing)
        yield made


@both_transports
@every_way
def test_the_kernel_does_the_same(kernel_lab, way, transport):
    """The control of all this: nf_conntrack_sip and nf_nat_sip in our place."""
    media = next(_ports), next(_ports)
    own, other = media if way.ns == "client" else media[::-1]
    traffic = talk(kernel_lab, way, transport, ("caller", "called"), media)
    seen = announced(next(text for text in said(traffic.outside, way.ns == "client") if b"m=audio" in text))
    assert_heard(traffic, way, own, seen, other)


@both_transports
@pytest.mark.parametrize("way", [SNAT, DNAT, NAT66], ids=lambda way: way.name)
def test_a_call_that_is_cancelled(lab, firewall, way, transport):
    """CANCEL is answered by 487, which frees what the call would have needed."""
    before, media = used(firewall, way), (next(_ports), next(_ports))
    traffic = talk(lab, way, transport, ("canceller", "cancelled"), media)
    session = signalling(firewall, traffic.port)
    invite = next(text for text in said(traffic.outside, True) if text.startswith(b"INVITE"))
    assert_translated(traffic, names(session, {media[0]: announced(invite)} if way.ns == "client" else {}))
    assert not waiting(firewall)
    clear(firewall)
    assert used(firewall, way) == before


@both_transports
def test_many_calls_of_one_phone(lab, firewall, transport):
    """They share a port for media; it stays open until the last has ended."""
    before, media = used(firewall, SNAT), (next(_ports), next(_ports))
    traffic = talk(lab, SNAT, transport, ("caller", "called"), media, CALLS)
    outside = said(traffic.outside, True)
    assert sum(message.startswith(b"BYE") for message in outside) == CALLS
    assert len({announced(message) for message in outside if message.startswith(b"INVITE")}) == 1
    assert heard(traffic.inside, SNAT.inside, media[0]) == CALLS * SOUNDS
    assert not waiting(firewall)
    clear(firewall)
    assert used(firewall, SNAT) == before


def used(firewall: Firewall, way: Way) -> int:
    """Ports of the pool by which the phone inside is known."""
    return int(pool_row(firewall, way.nat)["used"]) if way.nat and way.pooled else 0


def waiting(firewall: Firewall) -> list[dict[str, Any]]:
    """What has been announced and has not come."""
    return sessions(firewall, type="predict", state="active")


# Phones as a test speaks them


class Phone:
    """An end of a call: what it says goes to where it has called, or to whoever has called it."""

    def __init__(self, sock: socket.socket, to: tuple[str, int] | None = None) -> None:
        self._sock = sock
        self._to = to
        self._rest = b""

    @property
    def name(self) -> str:
        address, number, *_ = self._sock.getsockname()
        return f"{host(address)}:{number}"

    def say(self, text: bytes) -> None:
        if self._sock.type == socket.SOCK_STREAM:
            self._sock.sendall(text)
        else:
            assert self._to
            self._sock.sendto(text, self._to)

    def hear(self) -> bytes:
        """One message."""
        if self._sock.type == socket.SOCK_DGRAM:
            text, self._to = self._sock.recvfrom(65536)
            return text
        while not (size := whole(self._rest)):
            self._rest += self.take()
        text, self._rest = self._rest[:size], self._rest[size:]
        return text

    def vanish(self) -> None:
        """Forget a connection without a word to the other end."""
        self._sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        self._sock.close()

    def take(self) -> bytes:
        """What has come next, whatever it is."""
        text = self._sock.recv(65536)
        assert text, "the other phone has closed"
        return text


@dataclass
class Call:
    """Two phones whose words a test chooses."""

    way: Way
    transport: str
    caller: Phone
    called: Phone
    port: int  # from which the caller signals
    number: int = 0  # CSeq
    request: bytes = b""  # as it was heard last

    def ask(self, method: str, media: int = 0, address: str = "", compact: bool = False) -> bytes:
        """What the other phone hears."""
        self.caller.say(self.asking(method, media, address, compact))
        self.request = self.called.hear()
        return self.request

    def turned(self) -> "Call":
        """The same call, as the one who was called goes on with it."""
        return Call(self.way.back, self.transport, self.called, self.caller, self.port)

    def register(self, number: int) -> bytes:
        """What the other phone hears of a caller that wants to be called at that port."""
        self.caller.say(self.registering(number))
        self.request = self.called.hear()
        return self.request

    def registering(self, number: int) -> bytes:
        me = f"Contact: <sip:alice@{self.caller.name}"
        there = f"Contact: <sip:alice@{host(self.way.source)}:{number}"
        return self.asking("REGISTER").replace(me.encode(), there.encode())

    def answer(self, status: str, media: int = 0, address: str = "") -> bytes:
        """What the caller hears."""
        kept = re.findall(rb"(?im)^(?:via|v|from|f|to|t|call-id|i|cseq):.*\r$", self.request)
        lines = [
            f"SIP/2.0 {status}",
            *(line.decode().rstrip() for line in kept),
            f"Contact: <sip:bob@{self.called.name}>",
        ]
        self.called.say(message(lines, description(address or self.way.serving, media)))
        return self.caller.hear()

    def asking(self, method: str, media: int = 0, address: str = "", compact: bool = False) -> bytes:
        """The next request; ACK and CANCEL have the number of the last."""
        self.number += method not in ("ACK", "CANCEL")
        me, other = self.caller.name, host(self.way.called)
        lines = [
            f"{method} sip:bob@{other} SIP/2.0",
            f"Via: SIP/2.0/{self.transport} {me};rport;branch=z9hG4bK{self.number}",
            f'From: "Alice" <sip:alice@{me}>;tag=a',
            f"To: <sip:bob@{other}>",
            f"Call-ID: {self.port}",
            f"CSeq: {self.number} {method}",
            f"Contact: <sip:alice@{me};ob>",
        ]
        return message(lines, description(address or self.way.source, media), compact)


def message(lines: Sequence[str], body: str, compact: bool = False) -> bytes:
    """A whole message, with long or short names."""
    kind = ["Content-Type: application/sdp"] if body else []
    text = "\r\n".join([*lines, *kind, f"Content-Length: {len(body)}", "", body])
    for name, letter in COMPACT.items() if compact else ():
        text = text.replace(f"\r\n{name}:", f"\r\n{letter}:")
    return text.encode()


def description(address: str, media: int) -> str:
    """Sound to that port; nothing for port 0."""
    where = f"IN IP{6 if ':' in address else 4} {address}"
    lines = ["v=0", f"o=- 1 1 {where}", "s=-", f"c={where}", "t=0 0", f"m=audio {media} RTP/AVP 0", ""]
    return "\r\n".join(lines) if media else ""


def whole(stream: bytes) -> int:
    """Bytes of the first message, 0 while they are not all there."""
    head, blank, body = stream.partition(b"\r\n\r\n")
    size = length_of(head) if blank else 0
    return len(head) + 4 + size if blank and len(body) >= size else 0


@contextmanager
def call(lab: Lab, way: Way, transport: str = "UDP", number: int = 0) -> Iterator[Call]:
    """Two phones; the caller, at that port or any, has not said anything yet."""
    number = number or next(_ports)
    with ExitStack() as stack:
        if transport == "UDP":
            caller = stack.enter_context(lab.udp(way.ns, number, way.source))
            called = stack.enter_context(lab.udp(way.server_ns, SIP, way.serving))
        else:
            with lab.listener(way.server_ns, SIP, way.serving) as listening:
                caller = stack.enter_context(connect_from(lab, way, number))
                called = stack.enter_context(listening.accept()[0])
            called.settimeout(3)
        yield Call(way, transport, Phone(caller, (way.called, SIP)), Phone(called), number)


def connect_from(lab: Lab, way: Way, number: int) -> socket.socket:
    with lab.inside(way.ns):
        made = socket.socket(socket.AF_INET6 if ":" in way.source else socket.AF_INET, socket.SOCK_STREAM)
    made.settimeout(3)
    made.bind((way.source, number))
    made.connect((way.called, SIP))
    return made


@dataclass
class Sound:
    """Sockets for the media of both phones of a call: RTP at even ports, RTCP at the next."""

    own: int  # the port of the phone inside
    other: int
    inside: dict[str, socket.socket]
    outside: dict[str, socket.socket]


@contextmanager
def sound(lab: Lab, way: Way) -> Iterator[Sound]:
    own, other = next(_ports), next(_ports)
    with ExitStack() as stack:

        def pair(ns: str, number: int, address: str) -> dict[str, socket.socket]:
            made = [lab.udp(ns, number + step, address) for step in range(2)]
            return dict(zip(("rtp", "rtcp"), map(stack.enter_context, made), strict=True))

        yield Sound(own, other, pair("client", own, way.inside), pair("server", other, way.peer))


def agree(call: Call, media: Sound) -> int:
    """INVITE, 200 and ACK: the port outside for the sound of the phone inside."""
    inward = call.way.ns == "server"
    ports = (media.other, media.own) if inward else (media.own, media.other)
    asked, answered = call.ask("INVITE", ports[0]), call.answer("200 OK", ports[1])
    call.ask("ACK")
    return announced(answered if inward else asked)


@both_transports
@every_way
def test_media_from_either_side(lab, firewall, way, transport):
    """RTP comes from outside to the port in the message, RTCP goes out from the next; both belong to the call."""
    with call(lab, way, transport) as talking, sound(lab, way) as media:
        seen = agree(talking, media)
        parent = signalling(firewall, talking.port)
        assert len(waiting(firewall)) == 4
        assert exchange(media.outside["rtp"], media.inside["rtp"], (way.outside, seen)) == (way.peer, media.other)
        to = (way.peer, media.other + 1)
        assert exchange(media.inside["rtcp"], media.outside["rtcp"], to) == (way.outside, seen + 1)
        assert len(waiting(firewall)) == 2
        announcers = ("client", "server") if way.ns == "client" else ("server", "client")
        for application, announcer in zip(("rtp", "rtcp"), announcers, strict=True):
            (child,) = sessions(firewall, application=application, type="flow")
            assert (child["parent_session"], child["prediction_matched_once"]) == (parent["id"], True)
            assert (child["prediction_triggered_by"], child["rule"]) == (announcer, way.rule)
        talking.ask("BYE")
        assert not waiting(firewall)
        assert exchange(media.outside["rtp"], media.inside["rtp"], (way.outside, seen)) == (way.peer, media.other)
        clear(firewall)
        ended = record(firewall, event="end", application="rtp", sport=media.other)
        assert ended["parent_session_id"] == parent["id"]


@both_transports
@pytest.mark.parametrize("end", ["BYE", "BYE by the other", "486 Busy Here", "487 Request Terminated"])
def test_the_end_of_a_call_frees_what_has_not_come(lab, firewall, end, transport):
    """Hung up, refused or cancelled: the way is closed at once, and its ports return to the pool."""
    before = used(firewall, SNAT)
    with call(lab, SNAT, transport) as talking, sound(lab, SNAT) as media:
        talking.ask("INVITE", media.own)
        assert [session["prediction_triggered_by"] for session in waiting(firewall)] == ["client"] * 2
        taken = used(firewall, SNAT)
        talking.answer("183 Session Progress", media.other)
        assert len(waiting(firewall)) == 4
        if end == "BYE":
            talking.ask("BYE")
        elif end == "BYE by the other":
            talking.turned().ask("BYE")
        else:
            talking.answer(end)
        assert not waiting(firewall)
        assert (taken - before, taken - used(firewall, SNAT)) == (3, 2)


@pytest.mark.parametrize("way", [SNAT, DNAT, NAT66], ids=lambda way: way.name)
def test_another_invite(lab, firewall, way):
    """The same port of a phone stays the same outside, before and after its sound has come; another gets another."""
    with call(lab, way) as talking, sound(lab, way) as media:
        seen = agree(talking, media)
        assert agree(talking, media) == seen
        exchange(media.outside["rtp"], media.inside["rtp"], (way.outside, seen))
        assert agree(talking, media) == seen
        exchange(media.inside["rtcp"], media.outside["rtcp"], (way.peer, media.other + 1))
        assert agree(talking, media) == seen
        with sound(lab, way) as moved:
            again = agree(talking, moved)
            assert again not in (seen, seen + 1)
            exchange(moved.outside["rtp"], moved.inside["rtp"], (way.outside, again))
            exchange(media.outside["rtp"], media.inside["rtp"], (way.outside, seen))


def test_two_phones_with_the_same_ports(lab, firewall):
    """Both have their sound at the same ports and call the same phone: each gets its own."""
    neighbour, number = Way("neighbour", "client", NEIGHBOUR, SERVER, POOL, SERVER, nat="pool"), next(_ports)
    with ExitStack() as stack:
        one, media = stack.enter_context(call(lab, SNAT)), stack.enter_context(sound(lab, SNAT))
        phone, rtp, rtcp = (
            stack.enter_context(lab.udp("client", port, NEIGHBOUR)) for port in (number, media.own, media.own + 1)
        )
        other = Call(neighbour, "UDP", Phone(phone, (SERVER, SIP)), one.called, number)
        first, second = agree(one, media), agree(other, media)
        assert first != second
        for seen, inside in ((first, media.inside), (second, {"rtp": rtp, "rtcp": rtcp})):
            for step, name in enumerate(("rtp", "rtcp")):
                caller = (SERVER, media.other + step)
                assert exchange(media.outside[name], inside[name], (POOL, seen + step)) == caller
        one.ask("BYE")
        assert {session["parent_session"] for session in waiting(firewall)} == {signalling(firewall, number)["id"]}
        other.ask("BYE")
        assert not waiting(firewall)


def test_two_that_call_one_phone(lab, firewall):
    """It has the sound of both calls at one port; outside, each call has a port of its own."""
    with call(lab, DNAT) as one, sound(lab, DNAT) as media, ExitStack() as stack:
        number, theirs = next(_ports), next(_ports)
        phone, rtp = (stack.enter_context(lab.udp("server", port, SERVER)) for port in (number, theirs))
        other = Call(DNAT, "UDP", Phone(phone, (PUBLIC, SIP)), one.called, number)
        first = agree(one, media)
        other.ask("INVITE", theirs)
        second = announced(other.answer("200 OK", media.own))
        assert first == media.own
        assert second not in (first, first + 1)
        assert second % 2 == 0
        assert exchange(media.outside["rtp"], media.inside["rtp"], (PUBLIC, first)) == (SERVER, media.other)
        assert exchange(rtp, media.inside["rtp"], (PUBLIC, second)) == (SERVER, theirs)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same port", "another port"])
@pytest.mark.parametrize("way", [SNAT, NAT66], ids=lambda way: way.name)
def test_the_phone_inside_is_called(lab, firewall, way, elsewhere):
    """It has registered, here or for calls at another port; who calls its outside contact reaches it, and its media."""
    with ExitStack() as stack:
        out, media = stack.enter_context(call(lab, way)), stack.enter_context(sound(lab, way))
        phone, number = out.caller, out.port
        if elsewhere:
            number = next(_ports)
            phone = Phone(stack.enter_context(lab.udp("client", number, way.source)))
        contact = contact_of(out.register(number))
        assert contact[0] == way.outside
        assert way.source.encode() not in out.request
        assert out.answer("200 OK").startswith(b"SIP/2.0 200 OK")

        caller = stack.enter_context(lab.udp("server", next(_ports), way.peer)) if elsewhere else None
        calling = Phone(caller, contact) if caller else out.called
        talking = Call(way.back, "UDP", calling, phone, 0)
        seen = agree(talking, media)
        assert way.outside.encode() not in talking.request
        assert exchange(media.outside["rtp"], media.inside["rtp"], (way.outside, seen)) == (way.peer, media.other)
        if elsewhere:
            (child,) = sessions(firewall, application="sip", type="flow", destination_port=contact[1])
            assert child["parent_session"] == signalling(firewall, out.port)["id"]
        talking.ask("BYE")
        assert [each["application"] for each in waiting(firewall) if each["application"] != "sip"] == []


def contact_of(message: bytes) -> tuple[str, int]:
    """Where the sender of a message takes calls."""
    found = re.search(rb"\nContact: <sip:alice@\[?([0-9a-f.:]+?)\]?:(\d+)[;>]", message)
    assert found, message
    return found[1].decode(), int(found[2])


# How messages are cut and spelled


@pytest.mark.parametrize("way", [SNAT, DNAT, NAT66], ids=lambda way: way.name)
@both_transports
def test_short_names(lab, firewall, way, transport):
    """Headers in their compact form are translated as the long ones are, and back in the answer."""
    with call(lab, way, transport) as talking:
        asked = talking.asking("INVITE", own := next(_ports), compact=True)
        talking.caller.say(asked)
        talking.request = read = talking.called.hear()
        outside = names(signalling(firewall, talking.port), {own: announced(read)} if way.ns == "client" else {})
        inside = {seen: name for name, seen in outside.items()}
        assert read == renamed(asked, outside if way.ns == "client" else inside)
        assert read != asked
        answer = talking.answer("180 Ringing")
        via = asked.split(b"\r\n")[1]
        assert via.startswith(b"v: ")
        assert via in answer.split(b"\r\n")


CUTS = {"one by one": None, "all at once": (), "in the middle": (10, 30, 150, 300, 700, 720)}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("way", [SNAT, DNAT], ids=lambda way: way.name)
def test_how_a_stream_is_cut(lab, firewall, way, cuts):
    """Messages come whole and translated, whether a segment has a part of one or several."""
    with call(lab, way, "TCP") as talking:
        own = next(_ports)
        asked = [talking.asking("OPTIONS"), talking.asking("INVITE", own), talking.asking("UPDATE", own)]
        stream = b"".join(asked)
        ends = list(itertools.accumulate(map(len, asked))) if cuts is None else [*cuts, len(stream)]
        for start, stop in itertools.pairwise([0, *ends]):
            talking.caller.say(stream[start:stop])
        read = [talking.called.hear() for _ in asked]
        media = {own: announced(read[1])} if way.ns == "client" else {}
        outside = names(signalling(firewall, talking.port), media)
        read_back = {seen: name for name, seen in outside.items()}
        assert read == [renamed(message, outside if way.ns == "client" else read_back) for message in asked]
        talking.request = read[2]
        assert talking.answer("200 OK").startswith(b"SIP/2.0 200 OK\r\n")
        assert len(waiting(firewall)) == 2


@pytest.mark.parametrize(("transport", "octets"), [("UDP", 3000), ("TCP", 30000)])
def test_long_messages(lab, firewall, transport, octets):
    """What comes in fragments or in many segments is translated as a whole, even if it grows."""
    with call(lab, SNAT, transport) as talking:
        filling = b"".join(b"X-Line: %0190d\r\n" % number for number in range(octets // 200))
        asked = talking.asking("INVITE", own := next(_ports)).replace(b"Contact:", filling + b"Contact:")
        talking.caller.say(asked)
        talking.request = read = talking.called.hear()
        assert len(read) > octets
        assert read == renamed(asked, names(signalling(firewall, talking.port), {own: announced(read)}))
        assert talking.answer("200 OK", next(_ports))
        assert len(waiting(firewall)) == 4


def test_a_connection_that_only_one_end_remembers(lab, firewall):
    """It answers the SYN of the next one with a number of the old (RFC 5961, 4.2); both sides are read all the same."""
    with call(lab, DNAT, "TCP") as old:
        old.ask("OPTIONS")
        old.caller.vanish()
        clear(firewall)
        with call(lab, DNAT, "TCP", old.port) as talking, sound(lab, DNAT) as media:
            seen = agree(talking, media)
            exchange(media.outside["rtp"], media.inside["rtp"], (PUBLIC, seen))


# Who is let in


@contextmanager
def gateway(**sip: object) -> Iterator[tuple[Lab, Firewall]]:
    """Another lab, whose firewall has these settings for SIP."""
    config = CONFIG | {"settings": {"alg": {"sip": sip}, **IN_ORDER}}
    with Lab(client_addresses=[HIDDEN], server_addresses=[STRANGER]) as lab, lab.firewall(config) as firewall:
        yield lab, firewall


def assert_refused(
    firewall: Firewall, control: Control, caller: socket.socket, to: tuple[str, int], receiver: socket.socket
) -> None:
    """A datagram that policy denies and nobody receives, while others cross."""
    before = denials(firewall)
    with control.around(firewall):
        caller.sendto(b"sound", to)
    assert denials(firewall) == before + 1
    assert not select.select([receiver], [], [], 0)[0]


def denials(firewall: Firewall) -> int:
    """First packets that no rule allows; what comes for an address of the pool may count as coming for the firewall."""
    counted = counters(firewall)
    return counted["flow_policy_deny"] + counted["flow_host_service_deny"]


def test_without_the_gateway():
    """With it off messages pass byte for byte, inside address and all, and media do not pass."""
    with gateway(enabled=False) as (lab, firewall), call(lab, SNAT) as talking, sound(lab, SNAT) as media:
        asked = talking.asking("INVITE", media.own)
        talking.caller.say(asked)
        assert talking.called.hear() == asked
        assert not waiting(firewall)
        control = Control(lab)
        assert_refused(firewall, control, media.outside["rtp"], (POOL, media.own), media.inside["rtp"])
        assert_refused(firewall, control, media.inside["rtp"], (SERVER, media.other), media.outside["rtp"])


def test_pinholes_only():
    """Without rewriting the way is opened, and a message passes byte for byte even where addresses are translated."""
    with gateway(rewrite=False) as (lab, firewall):
        for way, transport in itertools.product((PLAIN, SNAT), ("UDP", "TCP")):
            with call(lab, way, transport) as talking, sound(lab, way) as media:
                asked = talking.asking("INVITE", media.own)
                talking.caller.say(asked)
                assert talking.called.hear() == asked
                assert len(waiting(firewall)) == 2
                if way is PLAIN:
                    exchange(media.outside["rtp"], media.inside["rtp"], (CLIENT, media.own))
                clear(firewall)


def test_media_from_anybody():
    """If so set, somebody else in the zone may send to a port that was opened for a call."""
    with gateway(**{"media-from": "any"}) as (lab, _), call(lab, SNAT) as talking, sound(lab, SNAT) as media:
        stranger = lab.udp("server", next(_ports), STRANGER)
        assert exchange(stranger, media.inside["rtp"], (POOL, agree(talking, media))) == stranger.getsockname()


def test_media_from_a_stranger(lab, firewall, control):
    """By default he may not; the phone that is expected may, before and after he has tried."""
    with call(lab, SNAT) as talking, sound(lab, SNAT) as media, lab.udp("server", next(_ports), STRANGER) as stranger:
        seen = agree(talking, media)
        assert_refused(firewall, control, stranger, (POOL, seen), media.inside["rtp"])
        assert exchange(media.outside["rtp"], media.inside["rtp"], (POOL, seen)) == (SERVER, media.other)
        assert_refused(firewall, control, stranger, (POOL, seen + 1), media.inside["rtcp"])
        assert exchange(media.outside["rtcp"], media.inside["rtcp"], (POOL, seen + 1)) == (SERVER, media.other + 1)


@both_transports
def test_media_of_a_third(lab, firewall, control, transport):
    """A description that names somebody else passes unchanged and opens nothing, whoever sends it."""
    with call(lab, SNAT, transport) as talking, sound(lab, SNAT) as media:
        asked = talking.ask("INVITE", media.own, NEIGHBOUR)
        assert asked.endswith(b"\r\n\r\n" + description(NEIGHBOUR, media.own).encode())
        assert not waiting(firewall)
        assert_refused(firewall, control, media.outside["rtp"], (POOL, media.own), media.inside["rtp"])
        answered = talking.answer("200 OK", media.other, STRANGER)
        assert answered.endswith(b"\r\n\r\n" + description(STRANGER, media.other).encode())
        assert not waiting(firewall)
        with lab.udp("server", media.other, STRANGER) as stranger:
            assert_refused(firewall, control, media.inside["rtp"], (STRANGER, media.other), stranger)
        agree(talking, media)
        assert len(waiting(firewall)) == 4


def test_slipstreaming(lab, firewall):
    """A page that posts to port 5060 may make any segment look like a message: none is read."""
    with call(lab, SNAT, "TCP") as talking:
        head = b"POST / HTTP/1.1\r\nHost: 10.2.0.2:5060\r\nContent-Length: 3000\r\n\r\n"
        before = counters(firewall)["alg_given_up"]
        for text in (head, *registrations(talking)):
            talking.caller.say(text)
            assert talking.called.take() == text
        assert not waiting(firewall)
        assert counters(firewall)["alg_given_up"] == before + 1
    with call(lab, SNAT, "TCP") as talking:
        for text in registrations(talking):
            talking.caller.say(text)
            assert talking.called.hear() != text
        assert len(waiting(firewall)) == 3


def registrations(talking: Call) -> list[bytes]:
    """What would open a port of signalling, and two of media."""
    return [talking.registering(8080), talking.asking("INVITE", next(_ports))]


# What an operator sees


def test_show_alg(lab, firewall):
    """The line of the gateway counts the sessions that are read, and what they have announced and has not come."""
    with call(lab, SNAT) as talking, sound(lab, SNAT) as media:
        seen = agree(talking, media)
        (row,) = [row for row in ask(firewall, "show alg") if row["application"] == "sip"]
        assert (row["enabled"], set(row["ports"]), row["sessions"], row["predictions"]) == (True, {SIP}, 1, 4)
        exchange(media.outside["rtp"], media.inside["rtp"], (POOL, seen))
        shown = firewall.cli("show", "alg").stdout
        assert re.search(r"(?m)^sip +yes +5060\S* +1 +3$", shown), shown
