"""Every kind of source translation on real traffic, judged by what each server sees: the mapping behaviour of RFC 4787.

The client speaks from many addresses, the server answers on several (numbers are the last part of an address):

    client side                                         server side
      30 - 34  persistent, one outside address and port   100, 101  of their pool, ports 20000-20099
      40, 41   share ports by oversubscription            110, 111  of their pool, not neighbours; ports 3000-3009
      50 - 53  dynamic-ip, one address each               120, 121  of their pool: two sources find none
      60, 61   dynamic-ip with a fallback                 130       the only address; else the interface's
      70       static, to the firewall's own address      1         the interface
      80, 81   call their own side's public addresses     161, 162  become client 31 (source translated too) and 90
      64 - 67  called by a range                          140 - 143
      10.2.0.77 has an address of the server's subnet
      fd00:3::/64, fd00:30::/48 by prefix                 fd00:98::/64, fd00:99::/48
      everybody else: the interface's address             2, 11, 12 answer
"""

import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from tests.lab.calls import Address, called_by, connect, exchange, pool_row, port_of
from tests.lab.firewall import Firewall
from tests.lab.lab import MACS, OUT0, SERVER, SERVER6, Lab, poll

SERVERS = (SERVER, "10.2.0.11", "10.2.0.12")
SERVERS6 = (SERVER6, "fd00:2::11")
INSIDERS = (
    "10.1.0.3",
    *(f"10.1.0.{n}" for n in (*range(30, 34), 40, 41, *range(50, 54), 60, 61, *range(64, 68), 70, 80)),
)
INSIDERS6 = tuple(f"fd00:1::{n}" for n in (30, 40, 50, 51, 52))
STRANGER = "10.2.0.77"
PHANTOMS = ("10.1.0.81", "10.1.0.90", "10.1.0.34", "fd00:1::81", "fd00:1::90")
HELD = 4001  # a port of the firewall's own sockets
SLOTS = 400
BRIEF = 7100  # a UDP port whose sessions end after two seconds
HOST6, HOST48 = "fd00:3::5", "fd00:30:0:1::1234"


def rule(name: str, *sources: str, **more: Any) -> dict[str, Any]:
    base = {"name": name, "from": ["trust"], "to": "untrust"} | ({"source": list(sources)} if sources else {})
    return base | {key.replace("_", "-"): value for key, value in more.items()}


def drawn(kind: str, *addresses: str, **more: Any) -> dict[str, Any]:
    given = {"addresses": list(addresses)} if addresses else {"interface": "out0"}
    return {"type": kind} | given | {key.replace("_", "-"): value for key, value in more.items()}


DIPP, PERSISTENT, DYNAMIC = "dynamic-ip-and-port", "persistent-dynamic-ip-and-port", "dynamic-ip"
NAT_RULES = [
    rule(
        "hairpin",
        destination=["10.2.0.161"],
        source_translation=drawn(DIPP),
        destination_translation={"address": "10.1.0.31"},
    ),
    rule("turn", destination=["10.2.0.162"], destination_translation={"address": "10.1.0.90"}),
    rule(
        "kept",
        "10.1.0.30-10.1.0.34",
        source_translation=drawn(PERSISTENT, "10.2.0.100-10.2.0.101", port_range="20000-20099"),
    ),
    rule(
        "shared",
        "10.1.0.40-10.1.0.41",
        source_translation=drawn(DIPP, "10.2.0.110", port_range="3000-3009"),
    ),
    rule("whole", "10.1.0.50-10.1.0.53", source_translation=drawn(DYNAMIC, "10.2.0.120", "10.2.0.121")),
    rule(
        "falling",
        "10.1.0.60-10.1.0.61",
        source_translation=drawn(DYNAMIC, "10.2.0.130", fallback={"interface": "out0"}),
    ),
    rule("own", "10.1.0.70", source_translation=drawn("static-ip", OUT0)),
    {
        "name": "range",
        "from": ["untrust"],
        "to": "untrust",
        "destination": ["10.2.0.140-10.2.0.143"],
        "destination-translation": {"address": "10.1.0.64-10.1.0.67"},
    },
    {
        "name": "hairpin-in",
        "from": ["untrust"],
        "to": "untrust",
        "destination": ["10.2.0.161"],
        "destination-translation": {"address": "10.1.0.31"},
    },
    rule("rest", source_translation=drawn(DIPP)),
    rule(
        "prefix",
        "fd00:3::/64",
        nat_type="nptv6",
        source_translation=drawn("static-ip", "fd00:98::/64", bi_directional=True),
    ),
    rule(
        "site",
        "fd00:30::/48",
        nat_type="nptv6",
        source_translation=drawn("static-ip", "fd00:99::/48", bi_directional=True),
    ),
    rule("turn6", nat_type="ipv6", destination=["fd00:2::162"], destination_translation={"address": "fd00:1::90"}),
    rule(
        "kept6",
        "fd00:1::30",
        nat_type="ipv6",
        source_translation=drawn(PERSISTENT, "fd00:2::100", port_range="2000-2009"),
    ),
    rule(
        "shared6", "fd00:1::40", nat_type="ipv6", source_translation=drawn(DIPP, "fd00:2::110", port_range="3000-3003")
    ),
    rule(
        "whole6", "fd00:1::50-fd00:1::53", nat_type="ipv6", source_translation=drawn(DYNAMIC, "fd00:2::120-fd00:2::121")
    ),
]
CONFIG = {
    "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
    "applications": {"brief": {"default-ports": [f"udp/{BRIEF}"], "udp-timeout": 2}},
    "security-rules": [{"name": "all", "from": ["trust", "untrust"], "to": ["trust", "untrust"], "action": "allow"}],
    "nat-rules": NAT_RULES,
    "host-inbound": {"trust": ["ping"], "untrust": ["ping"]},
    "settings": {
        "session": {"max-sessions": SLOTS, "accelerated-aging": {"enabled": False}, "timeouts": {"udp": 300}},
        "nat": {"oversubscription": 2},
    },
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """All addresses of the table above; one host of the inside has an address of the outside's subnet."""
    clients, servers = (*INSIDERS, *INSIDERS6), (*SERVERS[1:], *SERVERS6[1:])
    with Lab(client_addresses=clients, server_addresses=servers, client_phantoms=PHANTOMS) as made:
        for address in (f"{STRANGER}/32", f"{HOST6}/128", f"{HOST48}/128"):
            made.run("client", ["ip", "address", "add", address, "dev", "eth0", *nodad(address)], check=True)
        for address in (STRANGER, HOST6, HOST48):
            reach(made, address, address, "in0", MACS["client", "eth0"])
        for prefix in ("fd00:3::/64", "fd00:30::/48"):
            made.run("firewall", ["ip", "-6", "route", "add", prefix, "dev", "in0"], check=True)
        for prefix in ("fd00:98::/64", "fd00:99::/48"):
            made.run("firewall", ["ip", "-6", "route", "add", prefix, "dev", "out0"], check=True)
        made.sysctl("firewall", {f"ipv4/conf/{which}/send_redirects": "1" for which in ("all", "in0")})
        made.udp("firewall", HELD)
        made.listener("firewall", HELD)
        yield made


def nodad(address: str) -> list[str]:
    return ["nodad"] if ":" in address else []


def reach(lab: Lab, address: str, prefix: str, device: str, mac: str) -> None:
    """The firewall finds the address on a device."""
    lab.run("firewall", ["ip", "route", "add", prefix, "dev", device], check=True)
    entry = [address, "lladdr", mac, "nud", "permanent", "dev", device]
    lab.run("firewall", ["ip", "neighbour", "replace", *entry], check=True)


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(CONFIG) as running:
        yield running


@pytest.fixture
def firewall(daemon: Firewall) -> Iterator[Firewall]:
    """Without a session of the test before."""
    yield daemon
    daemon.cli("clear", "session", "all")
    poll(lambda: not daemon.sessions(), 5, "the sessions to be gone")


def answering(lab: Lab, address: str = SERVER, port: int = 0) -> socket.socket:
    return lab.udp("server", port, address)


def seen(lab: Lab, caller: socket.socket, *servers: socket.socket) -> list[Address]:
    """As whom each of the servers sees the caller."""
    return [exchange(caller, server, server.getsockname()[:2]) for server in servers]


REDIRECTS = "icmp[0] == 5 or icmp6[0] == 137"
FAMILIES = [(IP, "10.1.0.", "10.2.0."), (IPv6, "fd00:1::", "fd00:2::")]


@pytest.mark.parametrize(("layer", "lan"), [family[:2] for family in FAMILIES])
def test_a_plain_router_redirects(lab: Lab, layer: Any, lan: str) -> None:
    """The control of the tests that expect no redirect: before the daemon starts, the kernel sends one."""
    with lab.capture("client", "eth0", REDIRECTS) as redirects:
        lab.inject("client", layer(src=f"{lan}81", dst=f"{lan}90") / UDP(sport=4600, dport=53) / Raw(b"question"))
        redirects.wait(1)


# Mapping (RFC 4787 REQ-1, RFC 5382 REQ-1)


def test_a_persistent_mapping_is_endpoint_independent(lab: Lab, firewall: Firewall) -> None:
    """One source port is one outside address and port, whatever it calls; so it is in TCP, with a port of its own."""
    first, other, again = answering(lab), answering(lab, SERVERS[1]), answering(lab)
    caller = lab.udp("client", 4242, "10.1.0.30")
    mapped = seen(lab, caller, first, other, again)
    assert len(set(mapped)) == 1
    assert mapped[0][0] in ("10.2.0.100", "10.2.0.101")
    assert pool_row(firewall, "kept")["used"] == 1
    assert pool_row(firewall, "kept")["used"] + pool_row(firewall, "kept")["available"] == 200
    with lab.listener("server", 0, SERVER) as here, lab.listener("server", 0, SERVERS[1]) as there:
        calls = [connect(lab, ("10.1.0.30", 4243), listening.getsockname()[:2]) for listening in (here, there)]
        assert len({called_by(listening, call) for listening, call in zip((here, there), calls, strict=True)}) == 1
        for call in calls:
            call.close()


def test_dynamic_ip_and_port_maps_by_destination(lab: Lab, firewall: Firewall) -> None:
    """RFC 4787 REQ-1, as PAN-OS chooses: each session of a source port draws a port of its own. Documented, not EIM."""
    caller = lab.udp("client", 4242, "10.1.0.3")
    mapped = seen(lab, caller, answering(lab), answering(lab, SERVERS[1]), answering(lab))
    assert {address for address, _ in mapped} == {OUT0}
    assert len(set(mapped)) == 3


def test_a_persistent_mapping_lasts_as_long_as_its_last_session(lab: Lab, firewall: Firewall) -> None:
    """A session that ended early takes nothing along; the last one gives the port back."""
    caller = lab.udp("client", 0, "10.1.0.31")
    with answering(lab, SERVER, BRIEF) as brief, answering(lab, SERVERS[1]) as lasting:
        mapped = seen(lab, caller, brief, lasting)
        poll(lambda: len(firewall.sessions(source="10.1.0.31")) == 1, 5, "the first session to end")
        assert seen(lab, caller, answering(lab, SERVERS[2]), lasting) == mapped
        assert pool_row(firewall, "kept")["used"] == 1
        firewall.cli("clear", "session", "all", "filter", "source", "10.1.0.31")
        poll(lambda: pool_row(firewall, "kept")["used"] == 0, 5, "the port to come back")


def test_persistent_mappings_are_never_shared(lab: Lab, firewall: Firewall) -> None:
    """RFC 4787 REQ-3, RFC 5382 REQ-7: two hosts with one source port, to one destination and to two."""
    one, other = (lab.udp("client", 5060, f"10.1.0.{n}") for n in (32, 33))
    server, elsewhere = answering(lab), answering(lab, SERVERS[1])
    assert seen(lab, one, server)[0] != seen(lab, other, server)[0]
    assert seen(lab, one, server)[0] != seen(lab, other, elsewhere)[0]


@pytest.mark.parametrize("source", ["10.1.0.3", "10.1.0.30"])
def test_parity_of_the_source_port_is_kept(lab: Lab, firewall: Firewall, source: str) -> None:
    """RFC 4787 REQ-4: even stays even and odd stays odd, of a drawn port and of a kept one."""
    server = answering(lab)
    for port in range(6000, 6010):
        with lab.udp("client", port, source) as caller:
            assert seen(lab, caller, server)[0][1] % 2 == port % 2


# Filtering (RFC 4787 REQ-8, RFC 5382 REQ-3)


@pytest.mark.parametrize("source", ["10.1.0.3", "10.1.0.32"])
def test_only_who_was_called_may_answer(lab: Lab, firewall: Firewall, source: str) -> None:
    """Address- and port-dependent filtering, of either kind of mapping: other ports and addresses find nobody."""
    server, caller = answering(lab), lab.udp("client", 0, source)
    (mapped,) = seen(lab, caller, server)
    for intruder in (answering(lab), answering(lab, SERVERS[1]), answering(lab, SERVERS[1], port_of(server))):
        intruder.sendto(b"uninvited", mapped)
    server.sendto(b"invited", mapped)
    assert caller.recvfrom(100) == (b"invited", server.getsockname()[:2])
    assert seen(lab, caller, server) == [mapped]


# Determinism (RFC 4787 REQ-11)


def fill(lab: Lab, firewall: Firewall, source: str, count: int) -> None:
    """So many sessions of one host, each from another port."""
    ports = random.sample(range(10000, 60000), count)
    lab.inject("client", *(IP(src=source, dst=SERVER) / UDP(sport=port, dport=9) / Raw(b"fill") for port in ports))
    poll(lambda: len(firewall.sessions(source=source)) >= count, 10, f"{count} sessions of {source}")


@pytest.mark.parametrize(("others", "own"), [(0.1, 10), (0.95, 95)])
def test_behaviour_does_not_depend_on_how_full_it_is(lab: Lab, firewall: Firewall, others: float, own: int) -> None:
    """The table 10 and 95 % full, and up to 95 of 100 ports of an address: mapping and filtering stay as they are."""
    fill(lab, firewall, "10.1.0.34", own)
    if rest := int(SLOTS * others) - own:
        fill(lab, firewall, "10.1.0.81", rest)
    server, other = answering(lab), answering(lab, SERVERS[1])
    for port in (4300, 4301):
        with lab.udp("client", port, "10.1.0.30") as caller:
            mapped = seen(lab, caller, server, other)
            assert len(set(mapped)) == 1
            answering(lab, SERVERS[2]).sendto(b"uninvited", mapped[0])
            server.sendto(b"invited", mapped[0])
            assert caller.recv(100) == b"invited"
            if own < 50:
                assert mapped[0][1] % 2 == port % 2
    caller = lab.udp("client", 0, "10.1.0.3")
    assert len(set(seen(lab, caller, server, other))) == 2


# Oversubscription


def test_a_port_serves_two_destinations_and_never_one_twice(lab: Lab, firewall: Firewall) -> None:
    """Ten ports, factor 2: ten sessions to one server and ten to another fit; the next to either is refused."""
    servers = [answering(lab), answering(lab, SERVERS[1])]
    mapped: dict[socket.socket, list[Address]] = {server: [] for server in servers}
    callers = [[lab.udp("client", 0, "10.1.0.40") for _ in range(10)] for _ in servers]
    for own in zip(*callers, strict=True):
        for caller, server in zip(own, servers, strict=True):
            mapped[server] += seen(lab, caller, server)
    for server in servers:
        assert sorted(mapped[server]) == [("10.2.0.110", port) for port in range(3000, 3010)]
    row = pool_row(firewall, "shared")
    assert (row["used"], row["available"], row["ratio"]) == (20, 0, 2)
    refused = firewall.counter("nat_dipp_alloc_failure")
    for server in servers:
        lab.udp("client", 0, "10.1.0.41").sendto(b"one too many", server.getsockname()[:2])
    poll(lambda: firewall.counter("nat_dipp_alloc_failure") == refused + 2, 3, "both refusals to be counted")
    for group, server in zip(callers, servers, strict=True):  # RFC 6888 REQ-11: nobody was evicted
        assert [seen(lab, caller, server)[0] for caller in group] == mapped[server]


# Dynamic IP


def test_each_source_has_an_address_and_all_its_ports(lab: Lab, firewall: Firewall) -> None:
    """One to one; a pool without a free address refuses the new source and keeps the old ones (RFC 6888 REQ-3, 11)."""
    server, listening = answering(lab), lab.listener("server", 0)
    callers = [lab.udp("client", 4500, f"10.1.0.{n}") for n in (50, 51, 52)]
    mapped = [seen(lab, caller, server)[0] for caller in callers[:2]]
    assert sorted(mapped) == [("10.2.0.120", 4500), ("10.2.0.121", 4500)]
    with connect(lab, ("10.1.0.50", 4501), (SERVER, port_of(listening))) as call:
        assert called_by(listening, call) == (mapped[0][0], 4501)
    refused = firewall.counter("nat_dip_alloc_failure")
    callers[2].sendto(b"one too many", server.getsockname())
    poll(lambda: firewall.counter("nat_dip_alloc_failure") == refused + 1, 3, "the refusal to be counted")
    poll(lambda: firewall.traffic_log(src="10.1.0.52", session_end_reason="resources-unavailable"), 3, "its record")
    assert [seen(lab, caller, server)[0] for caller in callers[:2]] == mapped
    assert (pool_row(firewall, "whole")["used"], pool_row(firewall, "whole")["available"]) == (2, 0)
    firewall.cli("clear", "session", "all", "filter", "source", "10.1.0.50")
    poll(lambda: pool_row(firewall, "whole")["used"] == 1, 5, "the address to come back")
    assert seen(lab, callers[2], server) == [mapped[0]]


def test_a_source_without_an_address_falls_back_to_ports(lab: Lab, firewall: Firewall) -> None:
    """Two sources, one address: the second shares the interface's."""
    server = answering(lab)
    one, other = (lab.udp("client", 4502, f"10.1.0.{n}") for n in (60, 61))
    assert seen(lab, one, server) == [("10.2.0.130", 4502)]
    assert seen(lab, other, server)[0][0] == OUT0
    assert seen(lab, one, server) == [("10.2.0.130", 4502)]


# The firewall's own address and sockets


def test_no_source_port_shadows_a_socket_of_the_firewall(lab: Lab, firewall: Firewall) -> None:
    """Static translation to the firewall's own address keeps ports, but not those of its sockets, in UDP and TCP."""
    server, listening = answering(lab), lab.listener("server", 0)
    assert seen(lab, lab.udp("client", 4003, "10.1.0.70"), server) == [(OUT0, 4003)]
    ((address, port),) = seen(lab, lab.udp("client", HELD, "10.1.0.70"), server)
    assert address == OUT0
    assert port not in (HELD, 4003)
    with connect(lab, ("10.1.0.70", HELD), (SERVER, port_of(listening))) as call:
        assert called_by(listening, call)[1] != HELD
    assert firewall.counter("nat_port_reallocated") >= 2


def test_an_inside_address_of_the_outside_subnet(lab: Lab, firewall: Firewall) -> None:
    """RFC 4787 REQ-7: zones keep the two apart, and the translated source is not the conflicting one."""
    caller = lab.udp("client", 0, STRANGER)
    assert seen(lab, caller, answering(lab))[0][0] == OUT0
    (session,) = firewall.sessions(source=STRANGER)
    assert (session["c2s"]["source_zone"], session["s2c"]["source_zone"]) == ("trust", "untrust")


# Destination translation


def test_a_range_of_destinations_maps_in_order(lab: Lab, firewall: Firewall) -> None:
    """The nth public address is the nth host, and the caller sees whom it called."""
    for number in range(4):
        called = lab.udp("client", 0, f"10.1.0.{64 + number}")
        caller = answering(lab)
        assert exchange(caller, called, (f"10.2.0.{140 + number}", port_of(called))) == (SERVER, port_of(caller))


def test_hairpin_with_both_translations(lab: Lab, firewall: Firewall) -> None:
    """RFC 4787 REQ-9, 9a, 5382 REQ-8: a host calls its neighbour's public address; each sees only public addresses."""
    called, listening = lab.udp("client", 0, "10.1.0.31"), lab.listener("client", 0, "10.1.0.31")
    caller = lab.udp("client", 0, "10.1.0.80")
    with lab.capture("client", "eth0", REDIRECTS) as redirects:
        assert exchange(caller, called, ("10.2.0.161", port_of(called)))[0] == OUT0
        with connect(lab, ("10.1.0.80", 0), ("10.2.0.161", port_of(listening))) as call:
            assert called_by(listening, call)[0] == OUT0
        outside = answering(lab)
        assert exchange(outside, called, ("10.2.0.161", port_of(called)))[0] == SERVER
        assert redirects.received() == []
    (session,) = firewall.sessions(source="10.1.0.80", protocol=17)
    assert (session["flags"], session["ingress_interface"], session["egress_interface"]) == ("NB", "in0", "in0")


@pytest.mark.parametrize(("layer", "lan", "wan"), FAMILIES)
def test_turning_round_without_source_translation(lab: Lab, firewall: Firewall, layer: Any, lan: str, wan: str) -> None:
    """Within one zone: the neighbour sees the caller, its answer is undone if it comes back here, and no redirect."""
    caller, called, public = f"{lan}81", f"{lan}90", f"{wan}162"
    question = layer(src=caller, dst=public) / UDP(sport=4600, dport=53) / Raw(b"question")
    reply = layer(src=called, dst=caller) / UDP(sport=53, dport=4600) / Raw(b"answer")
    from_us = f"(udp or {REDIRECTS}) and ether src {MACS['firewall', 'in0']}"
    with lab.capture("client", "eth0", from_us) as seen_inside:
        lab.inject("client", question)
        seen_inside.wait(1)
        lab.inject("client", reply)
        packets = [frame.packet for frame in seen_inside.wait(2)]
    ends = [(packet[layer].src, packet[UDP].sport, packet[layer].dst, packet[UDP].dport) for packet in packets]
    assert ends == [(caller, 4600, called, 53), (public, 53, caller, 4600)]


# IPv6


@pytest.mark.parametrize(("host", "outside"), [(HOST6, "fd00:98::"), (HOST48, "fd00:99:0:")], ids=["64", "48"])
def test_a_prefix_is_translated_both_ways(lab: Lab, firewall: Firewall, host: str, outside: str) -> None:
    """NPTv6: every port kept, checksums that no NAT had to touch, and the host can be called from outside."""
    server, caller = answering(lab, SERVER6), lab.udp("client", 0, host)
    with lab.capture("server", "eth0", "udp") as at_server:
        public, port = exchange(caller, server, (SERVER6, port_of(server)))
        at_server.wait(2)
    assert port == port_of(caller)
    assert public.startswith(outside)
    assert at_server.wrong_checksums() == []
    stranger = lab.udp("server", 0, SERVERS6[1])
    assert exchange(stranger, caller, (public, port))[0] == SERVERS6[1]
    listening = lab.listener("client", 0, host)
    with lab.connect("server", (public, port_of(listening))) as call:
        assert called_by(listening, call)[0] in SERVERS6


def test_a_prefix_translation_leaves_the_transport_alone(lab: Lab, firewall: Firewall) -> None:
    """What the server gets behind the IPv6 header is byte for byte what was sent, its checksum included."""
    packet = IPv6(src=HOST6, dst=SERVER6) / UDP(sport=4700, dport=9) / Raw(b"neutral")
    with lab.capture("server", "eth0", "udp port 9") as at_server:
        lab.inject("client", packet)
        (frame,) = at_server.wait(1)
    assert bytes(frame.packet[UDP]) == bytes(IPv6(bytes(packet))[UDP])
    assert frame.source != HOST6


def test_pools_of_ipv6_are_pools(lab: Lab, firewall: Firewall) -> None:
    """NAT66: a kept mapping, shared ports and an address of one's own."""
    one, other = (lab.udp("server", 0, address) for address in SERVERS6)
    kept = seen(lab, lab.udp("client", 4800, "fd00:1::30"), one, other)
    assert len(set(kept)) == 1
    assert kept[0][0] == "fd00:2::100"
    for server in (one, other):
        ports = [seen(lab, lab.udp("client", 0, "fd00:1::40"), server)[0] for _ in range(4)]
        assert sorted(ports) == [("fd00:2::110", port) for port in range(3000, 3004)]
    whole = [seen(lab, lab.udp("client", 4801, f"fd00:1::{n}"), one)[0] for n in (50, 51)]
    assert sorted(whole) == [("fd00:2::120", 4801), ("fd00:2::121", 4801)]
