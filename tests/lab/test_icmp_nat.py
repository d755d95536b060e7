"""Every ICMP error under every kind of translation, from hosts and from routers, through two forwarders: this firewall,
and as the oracle the kernel's own conntrack and NAT with the same rules.

    .200 client --- in0 [forwarder] out0 --- .200 server (asked as itself, as VIP .60, as VIP .61), .210 plain
    .201 router                              .201 router

    asked as      source becomes    destination becomes
    plain .210    .                 .
    server .200   out0's address    .
    VIP .60       .                 server
    VIP .61       out0's address    server

All of them are phantoms: scapy makes what they say and knows what they must hear.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import ICMP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_Redirect,
    ICMPv6NDOptRedirectedHdr,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6ExtHdrDestOpt,
)
from scapy.packet import Packet, Raw

from tests.lab.capture import ETHERNET, Frame, ones_complement
from tests.lab.console import counters
from tests.lab.errors import BOTH, V4, V6, Net, Talk, arriving, error, hop, quoted, talk
from tests.lab.firewall import Firewall
from tests.lab.lab import Lab, poll

PROTOCOLS = ("udp", "tcp", "echo")
QUOTE = 128  # bytes that precede an extension (RFC 4884 section 5.1)


@dataclass(frozen=True)
class Kind:
    """A kind of translation; the last group of the addresses that ask for it and that answer."""

    name: str
    asked: int
    server: int
    snat: bool = False
    dnat: bool = False

    def to(self, net: Net) -> str:
        return address(net, self.asked)

    def real(self, net: Net) -> str:
        return address(net, self.server)


KINDS = (
    Kind("plain", 210, 210),
    Kind("snat", 200, 200, snat=True),
    Kind("dnat", 60, 200, dnat=True),
    Kind("both", 61, 200, snat=True, dnat=True),
)


def address(net: Net, last: int) -> str:
    """On the server's side."""
    return net.phantom_server.removesuffix("200") + str(last)


def rule(net: Net, kind: Kind) -> dict[str, Any]:
    made: dict[str, Any] = {"name": f"{kind.name}-{net.family}", "nat-type": net.family, "to": "untrust"}
    made |= {"from": ["trust"], "destination": [kind.to(net)]}
    if kind.snat:
        made["source-translation"] = {"type": "dynamic-ip-and-port", "interface": "out0"}
    if kind.dnat:
        made["destination-translation"] = {"address": kind.real(net)}
    return made


CONFIG = {
    "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
    "security-rules": [{"name": "out", "from": ["trust"], "to": ["untrust"], "action": "allow"}],
    "nat-rules": [rule(net, kind) for net in BOTH for kind in KINDS],
    "settings": {"session": {"timeouts": {"udp": 30, "icmp": 30, "tcp-init": 30, "tcp-handshake": 30}}},
}


def kernel_rules(net: Net) -> str:
    """The same translation in the words of nftables."""
    family = {V4: "ip", V6: "ip6"}[net]
    dnat = [f"{family} daddr {kind.to(net)} dnat to {kind.real(net)}" for kind in KINDS if kind.dnat]
    snat = [f"ct original {family} daddr {kind.to(net)} snat to {net.outside}" for kind in KINDS if kind.snat]
    return f"""table {family} oracle {{
        chain before {{ type nat hook prerouting priority dstnat; {"; ".join(dnat)}; }}
        chain after {{ type nat hook postrouting priority srcnat; {"; ".join(snat)}; }}
    }}"""


@pytest.fixture(scope="module", params=["ours", "kernel"])
def forwarder(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, Firewall | None]]:
    """The lab, and the daemon in it unless the kernel does its work."""
    clients = [net.phantom_client for net in BOTH]
    servers = [address(net, last) for net in BOTH for last in (200, 210)]
    with Lab(client_phantoms=clients, server_phantoms=servers) as lab:
        if request.param == "ours":
            with lab.firewall(CONFIG) as firewall:
                yield lab, firewall
            return
        for net in BOTH:
            lab.run("firewall", ["nft", kernel_rules(net)], check=True)
        yield lab, None


@pytest.fixture
def lab(forwarder: tuple[Lab, Firewall | None]) -> Lab:
    return forwarder[0]


@pytest.fixture
def firewall(forwarder: tuple[Lab, Firewall | None]) -> Firewall:
    """For what only counters can tell."""
    assert forwarder[1] is not None
    return forwarder[1]


@pytest.fixture(params=BOTH, ids=lambda net: net.family)
def net(request: pytest.FixtureRequest) -> Net:
    chosen: Net = request.param
    return chosen


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


def messages(net: Net) -> list[Packet]:
    """Every type and code that a host or router sends, redirects aside."""
    if net is V4:
        unreachable = [ICMP(type=3, code=code, nexthopmtu=1300 if code == 4 else 0) for code in range(16)]
        others = [(4, 0), (11, 0), (11, 1), (12, 0), (12, 1), (12, 2)]
        return unreachable + [ICMP(type=number, code=code) for number, code in others]
    return [
        *(ICMPv6DestUnreach(code=code) for code in range(8)),
        ICMPv6PacketTooBig(mtu=1300),
        *(ICMPv6TimeExceeded(code=code) for code in (0, 1)),
        *(ICMPv6ParamProblem(code=code, ptr=6) for code in (0, 1, 2)),
    ]


def heads(net: Net, packets: list[bytes]) -> list[bytes]:
    """Type, code and the word behind the checksum: what an error says besides its quote."""
    at = net.header
    return sorted(packet[at : at + 2] + packet[at + 4 : at + 8] for packet in packets)


def asked(lab: Lab, net: Net, kind: Kind, protocol: str, port: int) -> Talk:
    return talk(lab, net, protocol, port, kind.to(net), kind.real(net))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_from_outside_are_in_the_clients_view(lab, net, kind, protocol):
    """Quoted is byte for byte what the client sent, one hop later; a translated server and the routers before it bear
    the address that was asked, other routers their own."""
    flow = asked(lab, net, kind, protocol, 6401)
    sources = (kind.real(net), net.far_router)
    told = net.ip_of(flow.outer).src
    errors = [error(net, source, told, message, flow.outer) for source in sources for message in messages(net)]
    with arriving(lab, net, "client") as at_client:
        lab.inject("server", *errors)
        frames = at_client.wait(len(errors))
    expected = {kind.to(net)} if kind.dnat else set(sources)
    assert {frame.source for frame in frames} == expected
    assert {quoted(net, frame) for frame in frames} == {hop(net, flow.inner)}
    assert heads(net, [frame.data[ETHERNET:] for frame in frames]) == heads(net, [bytes(e) for e in errors])
    assert at_client.wrong_checksums() == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_from_inside_are_in_the_servers_view(lab, net, kind, protocol):
    """Quoted is byte for byte what the server sent; behind a translated source nothing inside shows."""
    flow = asked(lab, net, kind, protocol, 6402)
    sources = (net.phantom_client, net.near_router)
    told = net.ip_of(flow.answered).src
    errors = [error(net, source, told, message, flow.answered) for source in sources for message in messages(net)]
    with arriving(lab, net, "server", kind.real(net)) as at_server:
        lab.inject("client", *errors)
        frames = at_server.wait(len(errors))
    assert {frame.source for frame in frames} == ({net.outside} if kind.snat else set(sources))
    assert {quoted(net, frame) for frame in frames} == {hop(net, flow.answer)}
    assert heads(net, [frame.data[ETHERNET:] for frame in frames]) == heads(net, [bytes(e) for e in errors])
    assert at_server.wrong_checksums() == []


# Quotes of every shape


def with_options(net: Net, packet: bytes) -> bytes:
    """The packet with eight bytes of options, or an extension header, before its transport header."""
    whole = net.ip_of(packet)
    if net is V4:
        whole.options = [IPOption_NOP()] * 8
        del whole.ihl, whole.len, whole.chksum
        return bytes(whole)
    options = bytes(IPv6ExtHdrDestOpt(nh=whole.nh))
    return packet[:4] + struct.pack("!HB", whole.plen + len(options), 60) + packet[7:40] + options + packet[40:]


def extended(net: Net, packet: bytes) -> bytes:
    """Padded to QUOTE bytes, with an extension structure of one MPLS object behind it (RFC 4884, RFC 4950)."""
    mpls = struct.pack("!HBBI", 8, 1, 1, 0x12345140)
    structure = b"\x20\0\0\0" + mpls
    checksum = ~ones_complement(structure) & 0xFFFF
    return packet.ljust(QUOTE, b"\0") + structure[:2] + struct.pack("!H", checksum) + mpls


def cut(net: Net, packet: bytes) -> bytes:
    """The least that RFC 792 asks for."""
    return packet[: net.header + 8]


SHAPES: dict[str, Callable[[Net, bytes], bytes]] = {"options": with_options, "extended": extended, "cut": cut}


def time_exceeded(net: Net, shape: str) -> Packet:
    """Its length field says where the extension begins: words of 32 bits in IPv4, of 64 in IPv6."""
    if net is V4:
        return ICMP(type=11, length=QUOTE // 4 if shape == "extended" else 0)
    return ICMPv6TimeExceeded(length=QUOTE // 8 if shape == "extended" else 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_quote_of_any_shape_is_restored(lab, net, kind, protocol, shape):
    """RFC 5508 REQ-3: options are walked; padding, extension with its checksum, length field and absent bytes stay."""
    flow = asked(lab, net, kind, protocol, 6403)
    told = net.ip_of(flow.outer).src
    shaped = SHAPES[shape]
    sent = error(net, net.far_router, told, time_exceeded(net, shape), shaped(net, flow.outer))
    with arriving(lab, net, "client") as at_client:
        lab.inject("server", sent)
        (frame,) = at_client.wait(1)
    assert quoted(net, frame) == shaped(net, hop(net, flow.inner))
    assert heads(net, [frame.data[ETHERNET:]]) == heads(net, [bytes(sent)])
    assert at_client.wrong_checksums() == []


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_the_quoted_transport_checksum_is_not_judged(lab, net, kind, protocol):
    """RFC 5508 REQ-3c: a router may quote what it has changed. The difference that was there stays."""
    flow = asked(lab, net, kind, protocol, 6404)
    at = net.header + {"udp": 6, "tcp": 16}[protocol]

    def off_by_one(packet: bytes) -> bytes:
        (check,) = struct.unpack_from("!H", packet, at)
        return packet[:at] + struct.pack("!H", check ^ 1) + packet[at + 2 :]

    told = net.ip_of(flow.outer).src
    with arriving(lab, net, "client") as at_client:
        lab.inject("server", error(net, net.far_router, told, messages(net)[0], off_by_one(flow.outer)))
        (frame,) = at_client.wait(1)
    found, right = quoted(net, frame), hop(net, flow.inner)
    assert (found[:at], found[at + 2 :]) == (right[:at], right[at + 2 :])
    assert found[at : at + 2] != right[at : at + 2]
    assert at_client.wrong_checksums() == []


# What must not arrive


@pytest.mark.parametrize("forwarder", ["ours"], indirect=True)
def test_what_quotes_nothing_of_ours_is_dropped_and_counted(lab, firewall, net, kind):
    """A stranger's tuple, the wrong direction, an error about an error, too little, too much spoilt; a right one before
    and after passes, and the session neither ends nor lives longer."""
    flow = asked(lab, net, kind, "udp", 6405)
    told, message = net.ip_of(flow.outer).src, messages(net)[0]

    def about(quote: bytes) -> bytes:
        return bytes(error(net, net.far_router, told, message, quote))

    right = about(flow.outer)
    spoilt = bytearray(right)
    spoilt[net.header + 2] ^= 0xFF
    stranger = bytes(net.ip(told, kind.real(net)) / UDP(sport=9, dport=9))
    nested = bytes(net.ip(told, kind.real(net)) / message / Raw(flow.answered))
    broken = flow.outer[:10] + b"\xff\xff" + flow.outer[12:] if net is V4 else b"\x50" + flow.outer[1:]
    wrong = {
        "flow_icmp_error_no_session": [about(stranger), about(flow.answer)],
        "flow_parse_icmp_quote": [about(nested), about(flow.outer[: net.header + 7]), about(broken)],
        "flow_parse_l4_cksm": [bytes(spoilt)],
    }
    before, sessions_before = counters(firewall), firewall.sessions(source_port=6405)
    with arriving(lab, net, "client") as at_client:
        lab.inject("server", right, *[packet for packets in wrong.values() for packet in packets], right)
        at_client.wait(2)

        def counted() -> dict[str, int]:
            now = counters(firewall)
            return {name: now[name] - before[name] for name in wrong}

        expected = {name: len(packets) for name, packets in wrong.items()}
        poll(lambda: counted() == expected, 3, f"{expected}, not {counted()}")
    assert [quoted(net, frame) for frame in at_client.frames()] == [hop(net, flow.inner)] * 2
    sessions_after = firewall.sessions(source_port=6405)
    assert [s["id"] for s in sessions_after] == [s["id"] for s in sessions_before]
    assert all(s["time_to_live"] <= t["time_to_live"] for s, t in zip(sessions_after, sessions_before, strict=True))


# Redirects


def redirect(net: Net, told: str, kind: Kind, quote: bytes) -> Packet:
    """A router's advice to go to its neighbour instead; IPv6 quotes in an option (RFC 4861 section 4.5)."""
    neighbour = address(net, 202)
    if net is V4:
        return error(net, net.far_router, told, ICMP(type=5, code=1, gw=neighbour), quote)
    advice = ICMPv6ND_Redirect(tgt=neighbour, dst=kind.real(net)) / ICMPv6NDOptRedirectedHdr(pkt=quote)
    packet = net.ip(net.far_router, told) / advice
    packet.hlim = 255
    return packet


def advised(lab: Lab, net: Net, kind: Kind, port: int) -> list[Frame]:
    """What arrives of a redirect about a flow of the client's, sent between two errors that do arrive."""
    flow = asked(lab, net, kind, "udp", port)
    told = net.ip_of(flow.outer).src
    right = error(net, net.far_router, told, messages(net)[0], flow.outer)

    def is_error(frame: Frame) -> bool:
        return heads(net, [frame.data[ETHERNET:]]) == heads(net, [bytes(right)])

    with arriving(lab, net, "client") as at_client:
        lab.inject("server", right, redirect(net, told, kind, flow.outer), right)
        poll(lambda: sum(map(is_error, at_client.frames())) == 2, 3, "both errors")
    return [frame for frame in at_client.frames() if not is_error(frame)]


@pytest.mark.parametrize("net", [V4], ids=["ipv4"])
def test_a_redirect_may_not_lead_past_a_translation(lab, net, kind):
    """It passes as it came where nothing is translated; else the client would go to the neighbour untranslated."""
    found = advised(lab, net, kind, 6406)
    assert [(frame.source, frame.packet[ICMP].gw) for frame in found] == (
        [(net.far_router, address(net, 202))] if kind.name == "plain" else []
    )


@pytest.mark.parametrize("forwarder", ["ours"], indirect=True)
def test_a_redirect_that_is_dropped_is_counted(lab, firewall, net, kind):
    """One of IPv6 always is: it is for its own link (RFC 4861 section 8.1), and quotes where no other error does."""
    before = counters(firewall)
    found = advised(lab, net, kind, 6407)
    name = "flow_icmp_redirect"
    poll(lambda: counters(firewall)[name] - before[name] == 1 - len(found), 3, f"{name} to be counted")
    assert len(found) == (net is V4 and kind.name == "plain")


@pytest.mark.parametrize("forwarder", ["kernel"], indirect=True)
def test_an_ipv6_redirect_is_void_behind_a_router(lab):
    """The control: plain forwarding takes away the hop limit that makes it valid."""
    (frame,) = advised(lab, V6, KINDS[0], 6408)
    assert frame.packet.hlim == 254
