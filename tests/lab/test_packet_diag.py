"""Packet diagnosis between real hosts: what tshark reads in the captures, what the flow log tells, and that sessions
which are watched leave the offload and come back to it.
"""

import os
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from dataplane.errors import DataplaneError
from tests.lab.console import ask, attempt, counters, port, rule, session_of, sessions, zones
from tests.lab.disks import small_disk
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, CLIENT6, IN0, OUT0, SERVER, Lab, poll
from tests.lab.offloaded import (
    HIDDEN,
    PLAIN,
    PUBLIC,
    V4,
    V6,
    VIRTUAL,
    Net,
    assert_stream,
    config,
    connection,
    datagrams,
)
from tests.lab.witness import stopped

DENIED, RESET, IPERF = 81, 82, 5201  # ports
PACKET_DIAG = "debug dataplane packet-diag"
STAGES = ("receive", "firewall", "transmit", "drop")
FIELDS = ("frame.comment", "frame.interface_name", "frame.verdict.hw", "frame.len", "frame.cap_len", "ip.src", "ip.dst")
LATE = 1.3  # seconds; a packet may wait for one
MUCH = 64000  # bytes that one send() hands to the device
STRANGER = "10.2.0.77"  # an address of the other side


def denying() -> dict[str, Any]:
    """Trust may go out, but not to DENIED and RESET; TFTP is read."""
    made = config()
    made["services"] |= {"denied": port(DENIED), "reset": port(RESET)}
    out: dict[str, Any] = {"from_": ["trust"], "to": ["untrust"]}
    made["security-rules"] = [
        rule("no denied", "deny", service=["denied"], **out),
        rule("no reset", "reset-client", service=["reset"], **out),
        *made["security-rules"],
    ]
    return made


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(denying()) as running:
        yield running


@pytest.fixture
def firewall(daemon: Firewall) -> Iterator[Firewall]:
    yield daemon
    diag(daemon, "clear", what="all")


@pytest.fixture(params=(V4, V6), ids=("ipv4", "ipv6"))
def net(request: pytest.FixtureRequest) -> Net:
    chosen: Net = request.param
    return chosen


# ---- the operator ----


def diag(firewall: Firewall, command: str, **arguments: object) -> list[Any]:
    return ask(firewall, f"{PACKET_DIAG} {command}", **arguments)


def watch(firewall: Firewall, **match: object) -> None:
    """A filter, and on."""
    words = {key.replace("_", "-"): str(value) for key, value in match.items()}
    diag(firewall, "set filter", match=words)
    diag(firewall, "set filter", on=True)


def capture(firewall: Firewall, *stages: str, file: str = "all.pcapng", **settings: object) -> None:
    words = {key.replace("_", "-"): str(value) for key, value in settings.items()}
    for stage in stages or STAGES:
        diag(firewall, "set capture", stage=stage, settings={"file": file, **words})
    diag(firewall, "set capture", on=True)


def trace(firewall: Firewall) -> None:
    diag(firewall, "set log", feature="flow basic")
    diag(firewall, "set log", on=True)


def stories(firewall: Firewall, path: str) -> list[list[str]]:
    return [row["steps"] for row in diag(firewall, "show log") if row["path"] == path]


def setting(firewall: Firewall) -> Any:
    return diag(firewall, "show setting")[0]


def stage_of(firewall: Firewall, name: str) -> Any:
    return next(row for row in setting(firewall)["capture"]["stages"] if row["stage"] == name)


def watched(firewall: Firewall) -> dict[str, int]:
    """Counters of the packets that are meant."""
    rows = ask(firewall, "show counter global", filter={"packet-filter": "yes", "value": "non-zero"})
    return {row["name"]: row["value"] for row in rows}


class Seen(dict[str, str]):
    """One packet as tshark shows it; the words of its comment, too."""

    def __init__(self, line: str) -> None:
        values = dict(zip(FIELDS, line.split("\t"), strict=True))
        words = dict(word.split("=", 1) for word in values["frame.comment"].split() if "=" in word)
        super().__init__(values | words)

    @property
    def verdict(self) -> str:
        return bytes.fromhex(self["frame.verdict.hw"].replace(":", "")).decode()


def path_of(firewall: Firewall, file: str = "all.pcapng") -> Path:
    return firewall.directory / "log" / "packet-diag" / file


def tshark(path: Path, display: str = "") -> list[Seen]:
    """What tshark reads in the file, which it must take for whole."""
    fields = [word for field in FIELDS for word in ("-e", field)]
    command = [
        "tshark",
        "-n",
        "-r",
        str(path),
        "-T",
        "fields",
        "-E",
        "occurrence=f",
        *fields,
        *(["-Y", display] if display else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [Seen(line) for line in done.stdout.splitlines()]


def captured(firewall: Firewall, display: str = "") -> list[Seen]:
    """Capture goes off, and the file is read."""
    diag(firewall, "set capture", on=False)
    return tshark(path_of(firewall), display)


# ---- captures ----


def test_a_translated_exchange_at_every_stage(lab, firewall):
    """Question and answer, each as it came, with its session, and as it left: tshark prints the comments."""
    with datagrams(lab, firewall, V4) as talk:
        watch(firewall, source=CLIENT, destination=SERVER)
        capture(firewall)
        before = counters(firewall)
        talk.exchange()
        number = str(talk.session()["id"])
        assert [counters(firewall)[name] - before[name] for name in ("pkt_recv", "pkt_sent")] == [2, 2]
    seen = captured(firewall)
    assert [(p["stage"], p["direction"], p["frame.interface_name"], p["ip.src"], p["ip.dst"]) for p in seen] == [
        ("receive", "c2s", "in0", CLIENT, SERVER),
        ("firewall", "c2s", "in0", CLIENT, SERVER),
        ("transmit", "c2s", "out0", OUT0, SERVER),
        ("receive", "s2c", "out0", SERVER, OUT0),
        ("firewall", "s2c", "out0", SERVER, OUT0),
        ("transmit", "s2c", "in0", SERVER, CLIENT),
    ]
    assert {(p["session"], p["rule"], p["nat-rule"]) for p in seen} == {(number, "out", "hidden-4")}
    assert [p.verdict for p in seen] == ["", "accept", "accept"] * 2
    assert stat.S_IMODE(path_of(firewall).stat().st_mode) == 0o600


def test_ipv6(lab, firewall):
    """The same addresses for both families' filters, and NAT66."""
    with datagrams(lab, firewall, V6) as talk:
        watch(firewall, source=f"{CLIENT6}/64")
        capture(firewall)
        talk.exchange()
    seen = captured(firewall, "ipv6")
    assert [p["stage"] for p in seen] == ["receive", "firewall", "transmit"] * 2
    assert {p["nat-rule"] for p in seen} == {"hidden-6"}


def test_a_first_packet_that_is_denied(lab, firewall):
    """Received in the fast path, dropped in the slow one, with the rule that said so."""
    watch(firewall, destination_port=DENIED)
    capture(firewall)
    with attempt(lab, (SERVER, DENIED), socket.SOCK_STREAM):
        poll(lambda: stage_of(firewall, "drop")["packets"], 5, "the drop")
    received, dropped = captured(firewall, "tcp")[:2]
    assert received["stage"] == "receive"
    assert (dropped["stage"], dropped["path"], dropped["verdict"]) == ("drop", "slow", "drop")
    assert dropped["reason"] == "flow_policy_deny"
    assert 'rule="no denied"' in dropped["frame.comment"]
    assert dropped.verdict == "drop"


def test_a_repeated_first_packet_dies_in_the_fast_path(lab, firewall):
    """Of the session that the first one has left behind."""
    watch(firewall, destination_port=DENIED)
    capture(firewall, "drop")
    syn = IP(src=CLIENT, dst=SERVER) / TCP(sport=4444, dport=DENIED, flags="S")
    lab.inject("client", syn)
    poll(lambda: stage_of(firewall, "drop")["packets"] == 1, 5, "the first drop")
    lab.inject("client", syn)
    poll(lambda: stage_of(firewall, "drop")["packets"] == 2, 5, "the second")
    first, second = captured(firewall)
    assert (first["reason"], second["reason"]) == ("flow_policy_deny", "flow_discard_hit")
    assert first["session"] == second["session"]


@pytest.mark.parametrize(
    ("reason", "packet"),
    [
        ("flow_ip_spoof", IP(src=STRANGER, dst=SERVER) / UDP(sport=1, dport=2)),
        ("flow_tcp_non_syn_drop", IP(src=CLIENT, dst=SERVER) / TCP(sport=1, dport=2, flags="A")),
        ("flow_parse_l4_cksm", IP(src=CLIENT, dst=SERVER) / UDP(sport=1, dport=2, chksum=1) / b"x"),
        ("flow_fwd_l3_noroute", IP(src=CLIENT, dst="203.0.113.9") / UDP(sport=1, dport=2)),
        ("flow_host_service_deny", IP(src=CLIENT, dst=IN0) / UDP(sport=1, dport=2)),
        ("tcp_flag_zero", IP(src=CLIENT, dst=SERVER) / TCP(sport=1, dport=2, flags="")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_dropped_packet_has_its_reason(lab, firewall, reason, packet):
    """Whichever path it was dropped in; the counters of what is meant agree."""
    watch(firewall, ingress_interface="in0")
    capture(firewall, "drop")
    lab.inject("client", packet)
    poll(lambda: stage_of(firewall, "drop")["packets"], 5, "the drop")
    assert watched(firewall)[reason] == 1
    (dropped,) = captured(firewall, "ip")
    assert (dropped["reason"], dropped["frame.interface_name"]) == (reason, "in0")


def test_a_packet_that_waited_too_long(lab, firewall):
    """It is dropped unread, and yet its session is known."""
    with datagrams(lab, firewall, V4) as talk:
        watch(firewall, source=CLIENT)
        capture(firewall, "drop")
        number = str(talk.session()["id"])
        with stopped(firewall):
            talk.client.send(b"old")
            time.sleep(LATE)  # the condition is time itself: nothing can be polled for
        poll(lambda: stage_of(firewall, "drop")["packets"], 5, "the drop")
    (dropped,) = captured(firewall)
    assert (dropped["reason"], dropped["session"]) == ("flow_queued_too_long", number)


def test_an_error_about_a_watched_session(lab, firewall):
    """The firewall's own kernel tells the client that the time to live is over: translated, and seen."""
    with datagrams(lab, firewall, V4) as talk:
        watch(firewall, source=CLIENT, destination_port=HIDDEN)
        capture(firewall)
        lab.inject("client", talk.datagram(ttl=1) / b"last hop")
        poll(lambda: watched(firewall).get("pkt_icmp_error"), 5, "the error")
    transmitted = captured(firewall, "icmp.type == 11")[-1]
    assert (transmitted["stage"], transmitted["direction"], transmitted["ip.dst"]) == ("transmit", "s2c", CLIENT)


def test_super_packets_are_captured_as_one(lab, firewall):
    """As the kernel hands them over, and said so; a copy that is cut knows how much is missing."""
    with connection(lab, firewall, V4) as (client, server):
        watch(firewall, source=CLIENT, destination_port=HIDDEN)
        capture(firewall, "firewall", snaplen=100)
        for _ in range(4):
            client.sendall(bytes(MUCH))
            left = MUCH
            while left:
                left -= len(server.recv(left))
        large = captured(firewall, "frame.len > 3000")
    assert large
    for packet in large:
        assert packet["super-packet"] == f'"{packet["frame.len"]}'
        assert (packet["frame.cap_len"], packet["cut"]) == ("100", '"100')


# ---- filters ----


@pytest.mark.parametrize(
    "match",
    [
        {"source": CLIENT},
        {"source": "10.1.0.0/24", "destination": "10.2.0.0/24"},
        {"destination": SERVER},
        {"destination-port": str(PLAIN)},
        {"protocol": "17"},
        {"ingress-interface": "in0"},
        {"source": SERVER},
        {"source-port": str(PLAIN)},
        {"ingress-interface": "out0"},
    ],
    ids=lambda match: " ".join(match),
)
def test_each_field_means_the_session_in_both_directions(lab, firewall, match):
    """Whichever side of it the filter names; a filter that differs in that field means none of it."""
    with datagrams(lab, firewall, V4, PLAIN) as talk:
        diag(firewall, "set filter", match=match)
        diag(firewall, "set filter", on=True)
        before = watched(firewall).get("pkt_recv", 0)
        talk.exchange()
        assert watched(firewall)["pkt_recv"] - before == 2
        assert talk.session()["offload_reason"] == "packet-diag"
        others = {"source": "10.1.0.99", "destination": "10.2.0.99", "source-port": "9", "destination-port": "9"}
        others |= {"protocol": "6", "ingress-interface": "lo"}
        diag(firewall, "set filter", index=1, match={key: others[key] for key in match})
        talk.exchange()
        assert talk.session()["offload_reason"] != "packet-diag"


def test_the_source_port_of_a_client(lab, firewall):
    """And only his."""
    with datagrams(lab, firewall, V4) as talk, datagrams(lab, firewall, V4, PLAIN) as other:
        watch(firewall, source_port=talk.client.getsockname()[1])
        assert talk.session()["offload_reason"] == "packet-diag"
        assert other.session()["offload"]


def test_four_filters_are_alternatives(lab, firewall):
    """Each means its own."""
    with datagrams(lab, firewall, V4) as one, datagrams(lab, firewall, V6, PLAIN) as two:
        for number in (1, 2, HIDDEN, PLAIN):
            diag(firewall, "set filter", match={"destination-port": str(number)})
        diag(firewall, "set filter", on=True)
        for talk in (one, two):
            talk.exchange()
            assert talk.session()["offload_reason"] == "packet-diag"


# ---- offload ----


def test_a_watched_session_comes_back_to_the_offload(lab, firewall, net):
    """Taken off when the filter means it, kept off while it does, offloaded again afterwards; nothing is lost."""
    with datagrams(lab, firewall, net) as talk:
        assert talk.session()["offload"]
        watch(firewall, protocol=17)
        for _ in range(10):
            talk.exchange()
            assert not talk.session()["offload"]
        assert talk.session()["offload_reason"] == "packet-diag"
        diag(firewall, "set filter", on=False)
        talk.offloaded()
        assert talk.session()["packets_c2s"] == talk.exchanges


def test_a_new_session_is_watched_from_its_first_packet(lab, firewall):
    """It is never offloaded while the filter is on, whoever has begun it."""
    watch(firewall, source=CLIENT)
    with lab.listener("server", HIDDEN) as listening:
        client = lab.connect("client", (SERVER, HIDDEN))
        server, _ = listening.accept()
    with client, server:
        server.settimeout(3)
        for _ in range(20):
            assert_stream(client, server)
        assert session_of(firewall, client)["offload_reason"] == "packet-diag"


def test_a_connection_survives_being_watched(lab, firewall):
    """Its numbers are right on both ways between kernel and queues."""
    with connection(lab, firewall, V4, PUBLIC) as (client, server):
        for _ in range(3):
            watch(firewall, destination=VIRTUAL)
            for _ in range(5):
                assert_stream(client, server)
            assert session_of(firewall, client)["offload_reason"] == "packet-diag"
            diag(firewall, "clear", what="all")

            def is_offloaded() -> bool:
                assert_stream(client, server)
                return bool(session_of(firewall, client)["offload"])

            poll(is_offloaded, 5, "the connection to be offloaded")


# ---- bounds ----


@contextmanager
def stream(lab: Lab, seconds: int) -> Iterator[Any]:
    """iperf3 through the firewall; its exit code can be waited for."""
    lab.serve("server", ["iperf3", "-s", "-1"], IPERF)
    client = ["iperf3", "-c", SERVER, "-t", str(seconds), "-b", "300M"]
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(lab.run, "client", client, timeout=30)


def test_a_bound_under_load(lab, firewall):
    """Exactly so many packets, and then the capture ends by itself while the stream goes on."""
    watch(firewall, destination_port=IPERF)
    capture(firewall, "receive", "transmit", packet_count=500, snaplen=96)
    with stream(lab, 2) as running:
        poll(lambda: not setting(firewall)["capture"]["enabled"], 15, "the end of the capture")
        assert not running.done()
        assert running.result().returncode == 0
    for stage in ("receive", "transmit"):
        assert (stage_of(firewall, stage)["packets"], stage_of(firewall, stage)["complete"]) == (500, True)
    assert len(tshark(path_of(firewall))) == 1000


def test_everything_is_switched_while_a_stream_runs(lab, firewall):
    """Filter, capture and log on and off as fast as they can be: the stream and the daemon do not mind."""
    before = counters(firewall)
    with stream(lab, 3) as running:
        rounds = 0
        while not running.done():
            watch(firewall, destination_port=IPERF)
            capture(firewall, packet_count=100)
            trace(firewall)
            diag(firewall, "set capture", on=False)
            diag(firewall, "clear", what="all")
            rounds += 1
        assert running.result().returncode == 0
    assert rounds > 5
    after = counters(firewall)
    wrong = [
        name for name in ("tcp_drop_out_of_wnd", "tcp_drop_state", "flow_marked_miss") if after[name] > before[name]
    ]
    assert wrong == []


def test_a_full_disk_ends_the_capture_and_nothing_else():
    """The error is in the settings, the file is whole, the stream never noticed; there is no room for another one."""
    with (
        Lab() as lab,
        small_disk(lab.directory / "disk", 1 << 18) as disk,
        lab.firewall(denying(), f"--log-dir={disk}") as firewall,
    ):
        watch(firewall, destination_port=IPERF)
        capture(firewall, "receive")
        with stream(lab, 2) as running:
            poll(lambda: not setting(firewall)["capture"]["enabled"], 15, "the end of the capture")
            assert running.result().returncode == 0
        assert "No space left on device" in stage_of(firewall, "receive")["error"]
        tshark(disk / "packet-diag" / "all.pcapng")
        (disk / "ballast").write_bytes(bytes(disk_left(disk)))
        with pytest.raises(DataplaneError, match="No space left"):
            capture(firewall, "receive", file="another.pcapng")


def disk_left(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def test_what_a_killed_daemon_has_captured_can_be_read():
    """Blocks are written whole."""
    with Lab() as lab, lab.firewall(denying()) as firewall:
        with datagrams(lab, firewall, V4) as talk:
            watch(firewall, source=CLIENT)
            capture(firewall)
            talk.exchange()
            poll(lambda: path_of(firewall).stat().st_size > 1000, 5, "the file")
            firewall.kill()
        assert len(tshark(path_of(firewall))) == 6
        firewall.start()
        assert setting(firewall)["filter"]["filters"] == []


def test_a_capture_under_way_ends_with_the_daemon():
    """It stops as if nothing were watched, and the file is whole."""
    with Lab() as lab, lab.firewall(denying()) as firewall:
        with datagrams(lab, firewall, V4) as talk:
            watch(firewall, source=CLIENT)
            trace(firewall)
            capture(firewall)
            talk.exchange()
        firewall.stop()
        assert len(tshark(path_of(firewall))) == 6
        firewall.start()


# ---- the flow log ----


def test_the_story_of_a_translated_first_packet(lab, firewall):
    """Each step in its order, in the slow path and around it."""
    watch(firewall, destination_port=HIDDEN)
    trace(firewall)
    with lab.udp("server", HIDDEN) as server, lab.udp("client") as client:
        client.connect((SERVER, HIDDEN))
        client.send(b"question")
        _, (_, outside) = server.recvfrom(100)
        own = client.getsockname()[1]
        number = session_of(firewall, client)["id"]
    way, out = f"{CLIENT}:{own} -> {SERVER}:{HIDDEN}", f"{OUT0}:{outside} -> {SERVER}:{HIDDEN}"
    (told,) = stories(firewall, "slow")
    assert told == [
        "Packet received in the slow path: interface in0, zone trust, filter 1",
        f"Packet info: len 36, ttl 64, {way}, UDP",
        "Predict lookup: nobody has announced this flow",
        f"Forwarding lookup: {SERVER} is routed to out0 (zone untrust)",
        f"Source check, from zone trust: {CLIENT} is routed to in0 (zone trust)",
        "NAT policy lookup: from trust to untrust, matched rule 'hidden-4' (index 4)",
        "Policy lookup: from trust to untrust, application unknown-udp, matched rule 'out' (index 3), action allow",
        f"Translation: {way} becomes {out}",
        f"Allocated session {number}: egress out0, zone untrust, rule 'out', NAT rule 'hidden-4'",
        "Verdict: sent round to the fast path",
    ]
    first, second = stories(firewall, "fast")
    assert first[2:] == ["Flow lookup: no session found", "Verdict: handed to the slow path"]
    assert second[0] == "Packet received in the fast path again: interface in0, zone trust, filter 1"
    assert second[-1] == "Verdict: accept, rewritten, leaves by out0"


def test_the_story_of_a_destination_that_is_translated(lab, firewall):
    """A second route lookup, for the address that it becomes."""
    watch(firewall, destination=VIRTUAL)
    trace(firewall)
    with lab.udp("server", PUBLIC) as server, lab.udp("client") as client:
        client.sendto(b"question", (VIRTUAL, PUBLIC))
        server.recvfrom(100)
    (told,) = stories(firewall, "slow")
    assert f"Forwarding lookup: {VIRTUAL} is local on out0 (zone untrust)" in told
    assert f"Forwarding lookup of the translated destination: {SERVER} is routed to out0 (zone untrust)" in told


def test_the_story_of_a_session_that_a_worker_begins():
    """Its class is decided: the slow path is not asked, and the first packet passes every stage at once."""
    with Lab() as lab, lab.firewall(config(**{"dispatch-cache": True, "queue": {}})) as firewall:
        watch(firewall, destination_port=HIDDEN)
        with lab.udp("server", HIDDEN) as server, lab.udp("client") as first, lab.udp("client") as second:
            first.sendto(b"question", (SERVER, HIDDEN))
            server.recvfrom(100)
            trace(firewall)
            capture(firewall)
            second.sendto(b"question", (SERVER, HIDDEN))
            server.recvfrom(100)
            number = session_of(firewall, second, destination_port=HIDDEN)["id"]
        assert stories(firewall, "slow") == []
        (told,) = stories(firewall, "fast")
        begun = f"session {number} begun by rule 'out', NAT rule 'hidden-4'"
        assert f"Dispatch cache: its class is decided, {begun}" in told
        assert [packet["stage"] for packet in captured(firewall)] == ["receive", "firewall", "transmit"]


@pytest.mark.parametrize(
    ("packet", "steps", "reason"),
    [
        (
            IP(src=CLIENT, dst=SERVER) / TCP(sport=4445, dport=DENIED, flags="S"),
            ["matched rule 'no denied' (index 1), action deny", "Allocated discard session"],
            "flow_policy_deny",
        ),
        (
            IP(src=STRANGER, dst=SERVER) / UDP(sport=4445, dport=53),
            [f"Source check, from zone trust: {STRANGER} is routed to out0 (zone untrust)"],
            "flow_ip_spoof",
        ),
        (
            IP(src=CLIENT, dst="203.0.113.9") / UDP(sport=4445, dport=53),
            ["Forwarding lookup: 203.0.113.9 has no route"],
            "flow_fwd_l3_noroute",
        ),
        (
            IP(src=CLIENT, dst=IN0) / TCP(sport=4445, dport=22, flags="S"),
            [f"Forwarding lookup: {IN0} is local", "Host inbound of zone trust: protocol 6 port 22 is not open"],
            "flow_host_service_deny",
        ),
    ],
    ids=["denied", "spoofed", "no route", "the firewall itself"],
)
def test_the_story_of_a_packet_that_is_refused(lab, firewall, packet, steps, reason):
    """It ends with what was found wrong."""
    watch(firewall, ingress_interface="in0")
    trace(firewall)
    lab.inject("client", packet)
    (told,) = poll(lambda: stories(firewall, "slow"), 5, "a story")
    for step in steps:
        assert any(step in line for line in told), told
    assert told[-1].startswith(f"Verdict: dropped, {reason} (")


def test_the_story_of_a_connection(lab, firewall):
    """Tracked from state to state, in both directions."""
    watch(firewall, destination_port=PLAIN)
    trace(firewall)
    with lab.listener("server", PLAIN) as listening:
        client = lab.connect("client", (SERVER, PLAIN))
        server, _ = listening.accept()
        client.close()
        assert server.recv(1) == b""
        server.close()

    def steps() -> list[str]:
        return [line for told in stories(firewall, "fast") for line in told if line.startswith("TCP: ")]

    poll(lambda: "TCP: half-closed -> time-wait, inside the window" in steps(), 5, "the end")
    assert steps()[:4] == [
        "TCP: new -> syn-sent, inside the window",
        "TCP: syn-sent -> syn-received, inside the window",
        "TCP: syn-received -> established, inside the window",
        "TCP: established -> half-closed, inside the window",
    ]


def test_the_story_of_a_predicted_flow(lab, firewall):
    """What a TFTP server sends from another port was announced."""
    watch(firewall, protocol=17)
    trace(firewall)
    with lab.udp("server", 69) as server, lab.udp("server", 7000) as data, lab.udp("client") as client:
        client.sendto(b"\0\x01file\0octet\0", (SERVER, 69))
        _, peer = server.recvfrom(100)
        number = sessions(firewall, destination_port=69)[0]["id"]
        data.sendto(b"\0\x03\0\x01x", peer)
        assert client.recv(100)
    asked, read, told = stories(firewall, "slow")
    assert f"Allocated session {number}: egress out0, zone untrust, rule 'out', NAT rule 'hidden-4'" in asked
    assert f"Inspection: session {number}, read by an application layer gateway" in read
    assert f"Predict lookup: announced by session {number}" in told


def test_the_story_of_a_reset(lab, firewall):
    """The refusal is told; the answer is the firewall's own."""
    watch(firewall, destination_port=RESET)
    trace(firewall)
    with attempt(lab, (SERVER, RESET), socket.SOCK_STREAM):
        (told,) = poll(lambda: stories(firewall, "slow"), 5, "a story")
    assert any("action reset-client" in line for line in told)


def test_what_the_firewall_itself_sends(lab, firewall):
    """It needs no rule, and no interface brought it in."""
    watch(firewall, source=OUT0, protocol=1)
    trace(firewall)
    capture(firewall)
    assert lab.run("firewall", ["ping", "-c", "1", "-W", "3", SERVER]).returncode == 0
    (told,) = stories(firewall, "slow")
    assert told[0] == "Packet received in the slow path: sent by the firewall itself, filter 1"
    assert "Policy lookup: none, the firewall itself sends it" in told
    received = captured(firewall, "icmp.type == 8")[0]
    assert (received["stage"], received["frame.interface_name"]) == ("receive", "firewall")


def test_the_words_of_the_command_line(lab, firewall):
    """As one types them, and as they are printed."""

    def say(words: str) -> str:
        done = firewall.cli(*PACKET_DIAG.split(), *words.split())
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    assert say("set filter match source 10.1.0.0/24 protocol 1") == "index 1\n"
    for words in ("set filter on", "set capture stage receive file ping.pcapng", "set log feature flow basic"):
        assert say(words) == ""
    say("set capture on")
    say("set log on")
    assert lab.run("client", ["ping", "-c", "1", "-W", "3", SERVER]).returncode == 0
    assert "Verdict: accept" in say("show log")
    assert "  Index 1: 10.1.0.0/24[0]->any[0], proto 1" in say("show setting")
    say("clear all")
    (echo, reply) = tshark(path_of(firewall, "ping.pcapng"))
    assert (echo["ip.src"], reply["ip.src"]) == (CLIENT, SERVER)


# ---- virtual wires ----


def test_over_a_virtual_wire():
    """Ports of the wire are the interfaces; nothing is routed, and the story says so."""
    policy = {
        "zones": zones(),
        "virtual-wires": [{"name": "vw0", "interfaces": ["in0", "out0"]}],
        "security-rules": [rule("out", from_=["trust"], to=["untrust"])],
    }
    with Lab(bridge=True) as lab, lab.firewall(policy) as firewall:
        watch(firewall, source=CLIENT, protocol=1)
        capture(firewall)
        trace(firewall)
        assert lab.run("client", ["ping", "-c", "1", "-W", "3", SERVER]).returncode == 0
        seen = [(p["stage"], p["frame.interface_name"]) for p in captured(firewall, "icmp")]
        assert seen == [
            *(("receive", "in0"), ("firewall", "in0"), ("transmit", "out0")),
            *(("receive", "out0"), ("firewall", "out0"), ("transmit", "in0")),
        ]
        (told,) = stories(firewall, "slow")
        assert "Forwarding lookup: none, the virtual wire ends at out0 (zone untrust)" in told
        packet = IP(src=CLIENT, dst=SERVER) / ICMP(type=13) / Raw(bytes(12))
        lab.inject("client", packet)
        poll(lambda: len(stories(firewall, "slow")) == 2, 5, "another story")
