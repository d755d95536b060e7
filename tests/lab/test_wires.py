"""Virtual wires: the firewall is a cable with a policy between two hosts that take each other for neighbours.

      client                     firewall                      server
    +--------+         +---------------------------+         +--------+
    |   eth0 |---------| in0  left | vw0 | right out0|-------| eth0   |      one subnet: lab.py, bridge=True
    |   eth1 |- - - - -| in1                     out1|- - - -| eth1   |      only where a test adds them
    +--------+         +---------------------------+         +--------+

Frames are made by scapy and read from packet sockets: nobody but the bridge and the daemon has touched them.
"""

import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from scapy.layers.igmp import IGMP
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6ND_NA, IPv6
from scapy.layers.l2 import ARP, LLC, STP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw

from dataplane.wires import GRACE
from tests.lab.capture import ETH_P_ALL, Capture, Frame
from tests.lab.console import IN_ORDER, counters, record, rule, session_of, sessions
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, CLIENT6, IN0, MACS, SERVER, SERVER6, Lab, LabError, poll
from tests.lab.witness import SHORT_TIMEOUTS, Controls, Established, drain, receive

DENIED, RESET, LAST = 23, 24, 65000  # ports
POOL, VIRTUAL = "10.9.0.10", "10.8.0.1"  # a translated source, and a destination that is the server in truth
FIREWALL = "10.4.0.1"  # an address that the firewall has elsewhere
HERE, THERE = MACS["client", "eth0"], MACS["server", "eth0"]
MADE = "02:00:00:00:09:09"  # the source of frames that a test makes: no kernel sends any in its name
PATIENCE = GRACE + 3  # seconds: a link that is lost while the firewall still waits for it
E = Ether(src=MADE, dst=THERE)
GROUP = "01:00:5e:00:00:fb"


def config(**wire: object) -> dict[str, Any]:
    """Left may go right but for two ports, right may come left to port 80; `wire`: further keys of vw0."""
    out: dict[str, Any] = {"from_": ["left"], "to": ["right"]}
    ports = {"denied": DENIED, "reset": RESET, "http": 80}
    services = {
        f"{name}-{protocol}": {"protocol": protocol, "destination-port": number}
        for name, number in ports.items()
        for protocol in ("tcp", "udp")
    }
    return {
        "zones": [{"name": "left", "interfaces": ["in0"]}, {"name": "right", "interfaces": ["out0"]}],
        "virtual-wires": [{"name": "vw0", "interfaces": ["in0", "out0"], **wire}],
        "services": services,
        "security-rules": [
            rule("denied", "deny", service=["denied-tcp", "denied-udp"], **out),
            rule("reset", "reset-client", service=["reset-tcp"], **out),
            rule("out", log_start=True, **out),
            rule("in", from_=["right"], to=["left"], service=["http-tcp"]),
        ],
        "settings": {"session": {"timeouts": SHORT_TIMEOUTS}, **IN_ORDER},
    }


def with_nat() -> dict[str, Any]:
    """The client appears as POOL, and VIRTUAL is the server."""
    pool = {"type": "dynamic-ip-and-port", "addresses": [POOL]}
    zones = {"from": ["left"], "to": "right"}
    return config() | {
        "nat-rules": [
            {"name": "both", **zones, "destination": [VIRTUAL], "source-translation": pool,
             "destination-translation": {"address": SERVER}},
            {"name": "pool", **zones, "source-translation": pool},
        ]
    }  # fmt: skip


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Client and server in one subnet, two unconnected ports between them."""
    with Lab(bridge=True) as made:
        yield made


def ip(lab: Lab, ns: str, *words: str) -> None:
    lab.run(ns, ["ip", *words], check=True)


def add_second_pair(lab: Lab) -> None:
    """eth1 of both endpoints and in1, out1 between them, without addresses."""
    for end, port in (("client", "in1"), ("server", "out1")):
        ip(lab, "firewall", "link", "add", port, "up", "type", "veth", "peer", "name", "eth1", "netns", lab.names[end])
        ip(lab, end, "link", "set", "eth1", "up")
        await_link(lab, "firewall", port)


def has_carrier(lab: Lab, ns: str, interface: str) -> bool:
    return "LOWER_UP" in lab.run(ns, ["ip", "link", "show", interface]).stdout.partition(">")[0]


def await_link(lab: Lab, ns: str, interface: str = "eth0", *, lost: bool = False) -> None:
    what = f"{interface} of {ns} to {'lose' if lost else 'have'} its link"
    poll(lambda: has_carrier(lab, ns, interface) != lost, PATIENCE, what)


def ping(lab: Lab, to: str, *options: str) -> str:
    return lab.run("client", ["ping", "-n", "-c", "1", "-W", "2", *options, to]).stdout


def put(lab: Lab, ns: str, *frames: Packet, interface: str = "eth0") -> None:
    """Send whole Ethernet frames from an endpoint."""
    with lab.inside(ns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
        out.bind((interface, ETH_P_ALL))
        for frame in frames:
            out.send(bytes(frame))


def across(lab: Lab, *frames: Packet) -> list[Frame]:
    """Which of the frames put on the client's end come out at the server's.

    One worker keeps the order of new flows, so one that follows them says that all are decided.
    """
    last = E / datagram(LAST, LAST)
    with lab.capture("server") as capture:
        put(lab, "client", *frames, last)
        poll(lambda: any(frame.data == bytes(last) for frame in capture.received()), 3, "the last frame")
        return [frame for frame in capture.received() if is_made(frame) and frame.data != bytes(last)]


def is_made(frame: Frame) -> bool:
    return frame.data[6:12] == bytes.fromhex(MADE.replace(":", ""))


def has_made(capture: Capture) -> bool:
    return any(map(is_made, capture.received()))


def datagram(sport: int, dport: int = 9, to: str = SERVER) -> Packet:
    return IP(src=CLIENT, dst=to) / UDP(sport=sport, dport=dport) / b"over the wire"


# Policy


def test_ping_tcp_and_udp_cross_as_the_policy_says(lab):
    """Allowed sessions of both families name the ports; nothing crosses before the daemon joins them."""
    assert "0 received" in ping(lab, SERVER, "-W", "0.3")
    controls = Controls(lab)
    with lab.firewall(config()) as firewall:
        with controls.unharmed(firewall):
            assert "1 received" in ping(lab, SERVER6)
            established = Established(lab)
            established.exchange()
            shown = session_of(firewall, established.client)
        assert (shown["ingress_interface"], shown["egress_interface"]) == ("in0", "out0")
        assert (shown["c2s"]["source_zone"], shown["s2c"]["source_zone"]) == ("left", "right")
        assert not shown["terminated_on_host"]
        started = record(firewall, event="start", src=CLIENT, sport=established.client.getsockname()[1], proto=6)
        assert (started["ingress_interface"], started["egress_interface"]) == ("in0", "out0")
        established.close()


@pytest.mark.parametrize(("address", "server"), [("0.0.0.0", SERVER), ("::", SERVER6)])
def test_a_denied_flow_leaves_a_discard_session(lab, address, server):
    """The second datagram dies in C, and the server sees neither."""
    listening, control = lab.udp("server", DENIED, address), lab.udp("server", 9, address)
    with lab.firewall(config()) as firewall:
        client = lab.udp("client", 0, address)
        for _ in range(2):
            client.sendto(b"?", (server, DENIED))
        client.sendto(b"after", (server, 9))
        assert control.recv(10) == b"after"
        (shown,) = sessions(firewall, destination_port=DENIED)
        assert (shown["state"], shown["rule"]) == ("DISCARD", "denied")
        assert counters(firewall)["flow_discard_hit"] == 1
        assert drain(listening) == []


def test_right_reaches_left_only_where_a_rule_says_so(lab):
    """Each direction is a pair of zones of its own."""
    web, other = lab.listener("client", 80), lab.listener("client", 81)
    with lab.firewall(config()):
        lab.connect("server", (CLIENT, 80)).close()
        web.accept()[0].close()
        with pytest.raises(TimeoutError):
            lab.connect("server", (CLIENT, 81), timeout=0.7)
        other.settimeout(0)
        with pytest.raises(BlockingIOError):
            other.accept()


@pytest.mark.parametrize("server", [SERVER, SERVER6])
def test_a_reset_goes_back_over_the_wire(lab, server):
    """The firewall has no route to the client, and answers its MAC address."""
    listening = lab.listener("server", RESET, "::" if ":" in server else "0.0.0.0")
    with lab.firewall(config()), lab.capture("client", "eth0", "tcp or ip6") as capture:
        with pytest.raises(ConnectionRefusedError):
            lab.connect("client", (server, RESET))
        assert capture.wrong_checksums() == []
    listening.settimeout(0)
    with pytest.raises(BlockingIOError):
        listening.accept()


@pytest.mark.parametrize(("layer", "client", "server"), [(IP, CLIENT, SERVER), (IPv6, CLIENT6, SERVER6)])
def test_a_stray_segment_is_reset_over_the_wire(lab, layer, client, server):
    """`non-syn: reset`: the RST goes back to the MAC address that the segment came from, under the port's own so that
    no switch learns a wrong place of the server, and the server hears nothing."""
    answering = config()
    answering["zones"][0]["non-syn"] = "reset"
    stray = E / layer(src=client, dst=server) / TCP(sport=4000, dport=80, flags="A", seq=100, ack=7000)
    with lab.firewall(answering) as firewall, lab.capture("client", "eth0", "tcp") as capture:
        assert across(lab, stray) == []
        (frame,) = poll(capture.received, 3, "the RST")
        assert counters(firewall)["flow_action_reset"] == 1
    reset = frame.packet
    assert (reset.src, reset.dst, frame.tag) == (MACS["firewall", "in0"], MADE, None)
    assert (reset[layer].src, reset[layer].dst) == (server, client)
    assert (reset[TCP].sport, reset[TCP].dport, str(reset[TCP].flags), reset[TCP].seq) == (80, 4000, "R", 7000)
    assert frame.wrong_checksums() == []


def test_an_end_without_the_option_is_silent(lab):
    """Each port is a zone of its own: what strays in from the right is dropped, and nobody hears of it."""
    answering = config()
    answering["zones"][0]["non-syn"] = "reset"
    stray = Ether(src=MADE, dst=HERE) / IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=4000, flags="A", ack=7000)
    with lab.firewall(answering) as firewall, lab.capture("server", "eth0", "tcp") as capture:
        put(lab, "server", stray)
        poll(lambda: counters(firewall)["flow_tcp_non_syn_drop"] == 1, 3, "the segment to be dropped")
        assert across(lab, E / datagram(1)) != []
        assert (capture.received(), counters(firewall)["flow_action_reset"]) == ([], 0)


def test_a_tcp_stream_crosses_at_full_length(lab):
    """Super-packets pass the bridge whole."""
    lab.serve("server", ["iperf3", "-s", "-1"], 5201)
    with lab.firewall(config()):
        lab.run("client", ["iperf3", "-c", SERVER, "-t", "1"], check=True)


def test_tcp_is_tracked(lab):
    """A packet without a session begins none unless it is a SYN."""
    with lab.firewall(config()) as firewall:
        stray = E / IP(src=CLIENT, dst=SERVER) / TCP(sport=4000, dport=80, flags="A")
        assert across(lab, stray) == []
        assert counters(firewall)["flow_tcp_non_syn_drop"] == 1


def test_time_to_live_is_left_alone(lab):
    """A wire is no hop: even a packet at the end of its life crosses."""
    with lab.firewall(config()):
        frames = [E / IP(src=CLIENT, dst=SERVER, ttl=ttl) / UDP(sport=ttl, dport=9) for ttl in (1, 7)]
        assert sorted(frame.packet[IP].ttl for frame in across(lab, *frames)) == [1, 7]


@pytest.mark.parametrize("server", [SERVER, SERVER6])
def test_fragments_are_judged_whole_and_cross_in_pieces(lab, server):
    """Nothing longer than the links can carry leaves, and the far side puts it together."""
    with lab.firewall(config()), lab.capture("server", "eth0", "ip or ip6") as capture:
        assert " 0 received" not in ping(lab, server, "-s", "4000", "-c", "3", "-i", "0.2")
        crossed = [frame for frame in capture.received() if frame.source in (CLIENT, CLIENT6)]
        assert len(crossed) >= 3
        assert max(len(frame.data) for frame in crossed) <= 1514


def test_a_denied_datagram_leaks_no_fragment(lab):
    """The port stands in the first one only."""
    with lab.firewall(config()):
        denied = IP(src=CLIENT, dst=SERVER, id=77) / UDP(sport=1, dport=DENIED) / Raw(b"x" * 3000)
        pieces = [E / piece for piece in fragment(denied, 1400)]
        assert across(lab, *pieces) == []


# Translation


def test_a_pool_that_the_neighbour_routes_here(lab):
    """Source and destination are translated both ways, in streams, datagrams, fragments and ICMP errors."""
    ip(lab, "server", "neighbour", "replace", POOL, "lladdr", HERE, "dev", "eth0", "nud", "permanent")
    ip(lab, "client", "neighbour", "replace", VIRTUAL, "lladdr", THERE, "dev", "eth0", "nud", "permanent")
    with lab.firewall(with_nat()) as firewall, lab.capture("server", "eth0", "ip") as capture:
        for target in (SERVER, VIRTUAL):
            listening = lab.listener("server", 0)
            client = lab.connect("client", (target, listening.getsockname()[1]))
            accepted, peer = listening.accept()
            assert peer[0] == POOL
            accepted.sendall(b"x" * 100_000)
            assert receive(client, 100_000) == b"x" * 100_000
            assert session_of(firewall, client)["flags"] == ("NB" if target == VIRTUAL else "NS")
            assert "1 received" in ping(lab, target, "-s", "4000")
            refused = lab.udp("client")
            refused.connect((target, 9))
            refused.send(b"nobody listens")
            with pytest.raises(ConnectionRefusedError):
                refused.recv(10)
        assert {frame.source for frame in capture.received()} == {POOL}
        assert capture.wrong_checksums() == []


# Tags


def test_only_untagged_frames_pass_by_default(lab):
    """A tag of priority alone is none; another one is not allowed, whatever is behind it."""
    with lab.firewall(config()):
        frames = across(
            lab,
            E / datagram(1),
            E / Dot1Q(prio=5, vlan=0) / datagram(2),
            E / Dot1Q(vlan=5) / datagram(3),
            E / Dot1Q(vlan=5) / ARP(psrc=CLIENT, pdst=SERVER),
        )
        assert [(frame.tag, frame.packet[UDP].sport) for frame in frames] == [(None, 1), (5 << 13, 2)]


def test_a_tagged_frame_passes_policy_with_its_tag(lab):
    """An allowed tag stays, a denied port stays denied behind it, and a second tag hides nothing."""
    with lab.firewall(config(**{"tag-allowed": [0, "5-7"]})):
        tagged = E / Dot1Q(vlan=6)
        frames = across(
            lab,
            tagged / datagram(1),
            E / Dot1Q(vlan=8) / datagram(2),
            tagged / datagram(3, DENIED),
            tagged / Dot1Q(vlan=6) / datagram(4, DENIED),
            tagged / Dot1AD(vlan=6) / datagram(5, DENIED),
            E / Dot1AD(vlan=6) / datagram(6, DENIED),
            E / Dot1AD(vlan=6) / Dot1Q(vlan=6) / datagram(7, DENIED),
            Ether(src=MADE, dst=THERE, type=0x9100) / b"\x00\x06\x08\x00" / datagram(8, DENIED),
            E / Dot1Q(vlan=0) / Dot1Q(vlan=6) / datagram(9, DENIED),
            E / Dot1Q(vlan=0) / datagram(10, DENIED),
            tagged / IPv6(src=CLIENT6, dst=SERVER6) / UDP(sport=11, dport=DENIED),
            tagged / ARP(psrc=CLIENT, pdst=SERVER),
            tagged / IPv6(src=CLIENT6, dst=SERVER6) / UDP(sport=12, dport=9),
        )
        assert [frame.tag for frame in frames] == [6, 6, 6]
        assert sorted(frame.packet[UDP].sport for frame in frames if UDP in frame.packet) == [1, 12]
        assert [frame.packet[ARP].pdst for frame in frames if ARP in frame.packet] == [SERVER]


def test_untagged_frames_stay_out_where_only_tags_are_allowed(lab):
    """0 stands for no tag and is not in the list."""
    with lab.firewall(config(**{"tag-allowed": [6]})) as firewall, lab.capture("server") as capture:
        put(lab, "client", E / datagram(1), E / ARP(psrc=CLIENT, pdst=SERVER), E / Dot1Q(vlan=6) / datagram(2))
        poll(lambda: [frame for frame in capture.received() if frame.source == CLIENT], 3, "the tagged datagram")
        (frame,) = [frame for frame in capture.received() if is_made(frame)]
        assert (frame.tag, frame.packet[UDP].sport) == (6, 2)
        assert counters(firewall)["pkt_punt"] == 1


def test_tagged_fragments_keep_their_tag(lab):
    """Reassembled, judged and cut again."""
    with lab.firewall(config(**{"tag-allowed": ["1-4094"]})), lab.capture("server", "eth0") as capture:
        whole = IP(src=CLIENT, dst=SERVER, id=78) / UDP(sport=1, dport=9) / Raw(b"x" * 3000)
        put(lab, "client", *(E / Dot1Q(vlan=6) / piece for piece in fragment(whole, 1400)))
        frames = [frame for frame in capture.wait(3) if is_made(frame)]
        assert {frame.tag for frame in frames} == {6}


# What is not for one host, or no IP


def test_frames_that_are_no_ip_pass_unchanged(lab):
    """Spanning tree, link discovery, link aggregation, PPPoE and what nobody knows; no session is made."""
    frames = [
        Dot3(src=MADE, dst="01:80:c2:00:00:00") / LLC() / STP(),
        Ether(src=MADE, dst="01:80:c2:00:00:0e", type=0x88CC) / (b"\0" * 46),
        Ether(src=MADE, dst="01:80:c2:00:00:02", type=0x8809) / (b"\0" * 46),
        Ether(src=MADE, dst=THERE, type=0x8863) / b"\x11\x09\0\0\0\x04\x01\x01\0\0",
        Ether(src=MADE, dst=THERE, type=0x8864) / b"\x11\0\0\x01\0\x16\0\x21" / datagram(1, DENIED),
        Ether(src=MADE, dst=THERE, type=0x88B6) / b"unknown",
    ]
    with lab.firewall(config()) as firewall:
        assert [frame.data for frame in across(lab, *frames)] == [bytes(frame) for frame in frames]
        assert counters(firewall)["pkt_punt"] == 1  # the last frame


def test_neighbours_find_each_other(lab):
    """ARP and neighbour discovery, whose answers are for one host."""
    for end in ("client", "server"):
        ip(lab, end, "neighbour", "flush", "nud", "permanent", "dev", "eth0")
        ip(lab, end, "-6", "neighbour", "flush", "nud", "permanent", "dev", "eth0")
    with lab.firewall(config()):
        assert "1 received" in ping(lab, SERVER)
        assert "1 received" in ping(lab, SERVER6)


def test_multicast_and_broadcast_flow_without_policy(lab):
    """Even to a denied port; a frame for everybody that is meant for one host gets no such favour."""
    everybody = "ff:ff:ff:ff:ff:ff"
    with lab.firewall(config()) as firewall:
        frames = across(
            lab,
            Ether(src=MADE, dst=GROUP) / datagram(1, DENIED, "224.0.0.251"),
            Ether(src=MADE, dst=GROUP) / IP(src=CLIENT, dst="224.0.0.251", ttl=1) / IGMP(type=0x16),
            Ether(src=MADE, dst=everybody) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67),
            Ether(src=MADE, dst="33:33:00:00:00:fb") / IPv6(src=CLIENT6, dst="ff02::fb") / UDP(dport=DENIED),
            Ether(src=MADE, dst=everybody) / datagram(6, DENIED),
        )  # fmt: skip
        assert [frame.destination for frame in frames] == ["224.0.0.251", "224.0.0.251", "255.255.255.255", "ff02::fb"]
        assert {shown["c2s"]["dst"] for shown in sessions(firewall)} == {SERVER}


def test_an_advertisement_in_anothers_name_is_still_discovery(lab):
    """Both ends are on one link, so it may be for any of its addresses."""
    advertisement = IPv6(src=CLIENT6, dst=SERVER6, hlim=255) / ICMPv6ND_NA(tgt=CLIENT6)
    with lab.firewall(config()):
        assert len(across(lab, E / advertisement)) == 1


# Links


def test_a_lost_link_is_lost_on_both_sides_and_comes_back(lab):
    """Whoever hangs on one end learns of the other's loss; either end, by its cable or by its operator."""
    with lab.firewall(config()):
        for ns, interface, witness in (
            ("client", "eth0", "server"),
            ("server", "eth0", "client"),
            ("firewall", "in0", "server"),
        ):
            ip(lab, ns, "link", "set", interface, "down")
            await_link(lab, witness, lost=True)
            ip(lab, ns, "link", "set", interface, "up")
            await_link(lab, "client")
            await_link(lab, "server")
            poll(lambda: "1 received" in ping(lab, SERVER), PATIENCE, "the wire to carry again")


def test_the_firewall_has_nothing_to_say_on_a_wire(lab):
    """No address of its own, so no discovery, no group membership, no router solicitation."""
    with lab.firewall(config()):
        shown = lab.run("firewall", ["ip", "-o", "address", "show", "up"]).stdout.splitlines()
        assert {line.split()[1] for line in shown} == {"lo"}


def test_a_port_without_a_link_at_the_start_takes_its_peer_down(lab):
    """Not at once: a link that is being made takes seconds."""
    ip(lab, "client", "link", "set", "eth0", "down")
    await_link(lab, "firewall", "in0", lost=True)
    firewall = Firewall(lab, config())
    firewall.start()
    assert has_carrier(lab, "server", "eth0")
    await_link(lab, "server", lost=True)
    ip(lab, "client", "link", "set", "eth0", "up")
    await_link(lab, "server")
    firewall._daemon.terminate()
    assert firewall._daemon.wait(10) == 0


# More than one wire, and routes beside it


def two_wires() -> dict[str, Any]:
    made = config()
    made["zones"] += [{"name": "left2", "interfaces": ["in1"]}, {"name": "right2", "interfaces": ["out1"]}]
    made["virtual-wires"].append({"name": "vw1", "interfaces": ["in1", "out1"]})
    made["security-rules"].append(rule("out2", from_=["left2"], to=["right2"]))
    return made


def test_two_wires_may_carry_the_same_addresses(lab):
    """One five-tuple on both is two sessions, and each answer finds its own; wires do not mix."""
    add_second_pair(lab)
    asked, answered = datagram(4000, 4001), IP(src=SERVER, dst=CLIENT) / UDP(sport=4001, dport=4000) / b"back"
    with (
        lab.firewall(two_wires()) as firewall,
        lab.capture("server", "eth0") as right,
        lab.capture("server", "eth1") as right2,
        lab.capture("client", "eth0") as left,
        lab.capture("client", "eth1") as left2,
    ):
        for interface, capture in (("eth1", right2), ("eth0", right)):
            put(lab, "client", E / asked, interface=interface)
            poll(partial(has_made, capture), 3, f"the question on {interface}")
        assert sorted(shown["ingress_interface"] for shown in sessions(firewall, source_port=4000)) == ["in0", "in1"]
        put(lab, "server", Ether(src=MADE, dst=HERE) / answered, interface="eth1")
        poll(partial(has_made, left2), 3, "the answer")
        (shown,) = sessions(firewall, source_port=4000, ingress_interface="in1")
        assert (shown["packets_c2s"], shown["packets_s2c"], shown["egress_interface"]) == (1, 1, "out1")
        assert not has_made(left)
        assert [sum(map(is_made, capture.received())) for capture in (right, right2)] == [1, 1]


def mixed() -> dict[str, Any]:
    """The ordinary lab, with a wire on in1 and out1."""
    made = two_wires()
    del made["virtual-wires"][0]
    made["host-inbound"] = {"left": ["ping"]}
    return made


def test_routed_and_wired_interfaces_live_in_one_daemon():
    """Both carry traffic, each by its own zones; over the wire nobody reaches the firewall itself, nor is routed."""
    with Lab() as lab:
        add_second_pair(lab)
        ip(lab, "client", "address", "add", "10.3.0.2/24", "dev", "eth1")
        ip(lab, "server", "address", "add", "10.3.0.1/24", "dev", "eth1")
        port = lab.run("firewall", ["cat", "/sys/class/net/in1/address"]).stdout.strip()
        server = lab.udp("server", 9)
        with lab.firewall(mixed()) as firewall:
            assert "1 received" in ping(lab, SERVER)
            assert "1 received" in ping(lab, "10.3.0.1")
            ends = {(shown["ingress_interface"], shown["egress_interface"]) for shown in sessions(firewall)}
            assert ends == {("in0", "out0"), ("in1", "out1")}
            to_port = Ether(src=MADE, dst=port)
            with lab.capture("client", "eth0", f"icmp and src {IN0}") as capture:
                put(lab, "client", to_port / IP(src=CLIENT, dst=IN0) / ICMP(id=9), interface="eth1")
                put(lab, "client", to_port / IP(src=CLIENT, dst=SERVER) / UDP(dport=9), interface="eth1")
                assert "1 received" in ping(lab, "10.3.0.1")
                assert "1 received" in ping(lab, IN0)
                assert [frame.packet[ICMP].id for frame in capture.received() if frame.packet[ICMP].id == 9] == []
            assert drain(server) == []


# Start, stop and what may be in the way


def test_a_port_is_what_it_was_before(lab):
    """Down before, down again."""
    ip(lab, "firewall", "link", "set", "in0", "down")
    with lab.firewall(config()):
        await_link(lab, "client")


def test_a_killed_daemon_leaves_the_wire_shut_and_its_successor_takes_over(lab):
    """The bridge is not taken apart in between, so that nothing crosses unseen; the last stop leaves nothing."""
    controls, firewall = Controls(lab), Firewall(lab, config())
    firewall.start()
    controls.assert_pass()
    index = lab.run("firewall", ["cat", "/sys/class/net/vw0/ifindex"]).stdout
    firewall.kill()
    controls.assert_shut()
    firewall.start()
    controls.assert_pass()
    assert lab.run("firewall", ["cat", "/sys/class/net/vw0/ifindex"]).stdout == index
    firewall.stop()


def test_a_successor_without_the_wire_removes_it(lab):
    """What a killed daemon has joined is parted, and the ports are their owner's again."""
    firewall = Firewall(lab, config())
    firewall.start()
    firewall.kill()
    without = config()
    del without["virtual-wires"]
    firewall.config = firewall.write_config(without)
    firewall.start()
    assert "vw0" not in lab.run("firewall", ["ip", "link"]).stdout
    firewall.stop()


@pytest.mark.parametrize(
    ("before", "problem"),
    [
        ("link delete in0", "virtual wire vw0: there is no interface in0"),
        ("link add br9 type bridge; link set in0 master br9", "virtual wire vw0: in0 belongs to another bridge"),
        ("link add vw0 type bridge", "virtual wire vw0: an interface of that name exists already"),
        (f"address add {FIREWALL}/24 dev in0", "virtual wire vw0: in0 has an address"),
    ],
)
def test_what_is_not_free_is_refused_and_left_alone(lab, before, problem):
    """The operator reads what is in the way, and everything is as it was."""
    for command in before.split("; "):
        ip(lab, "firewall", *command.split())
    firewall = Firewall(lab, config())
    links = lab.run("firewall", ["ip", "-o", "link"]).stdout
    with pytest.raises(LabError):
        firewall.start()
    assert problem in firewall.log()
    assert lab.run("firewall", ["ip", "-o", "link"]).stdout == links
    assert "dataplane" not in lab.run("firewall", ["sh", "-c", "nft list ruleset; iptables-save"]).stdout.lower()
