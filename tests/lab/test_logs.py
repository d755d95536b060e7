"""The traffic log beside what really happened: captures, sockets and the clock of the test."""

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP

from tests.lab.capture import Capture
from tests.lab.console import (
    CONTROL_PORT,
    IN_ORDER,
    Control,
    ask,
    attempt,
    counters,
    port,
    record,
    rule,
    session_of,
    sessions,
    zones,
)
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, CLIENT6, IN0, OUT0, SERVER, SERVER6, Lab, poll
from tests.samples import LOG_KEYS

DENY, DROP, RESET, QUIET_DENY, EARLY_DENY = 8100, 8101, 8102, 8103, 8104
NO_START, NO_END, ONE_PORT, UNMATCHED = 8105, 8106, 8107, 8108
WITHIN = 2.0  # seconds in which a record is written
TIME_WAIT, UDP_IDLE = 1, 1
DATA = 300_000  # bytes: some super-packets


def udp_services(*numbers: int) -> dict[str, Any]:
    return {f"u{number}": port(number, "udp") for number in numbers}


def config(*, traffic: bool = True) -> dict[str, Any]:
    """Source translation for all; rules that log in every combination."""
    snat = {"from": ["trust"], "to": "untrust"}
    scarce = {"type": "dynamic-ip-and-port", "interface": "out0", "port-range": "40000-40000"}
    return {
        "zones": zones(),
        "services": udp_services(
            CONTROL_PORT, DENY, DROP, QUIET_DENY, EARLY_DENY, NO_START, NO_END, ONE_PORT, UNMATCHED
        )
        | {"reset": port(RESET)},
        "security-rules": [
            rule("control", service=[f"u{CONTROL_PORT}"], log_end=False),
            rule("deny", "deny", service=[f"u{DENY}"]),
            rule("drop", "drop", service=[f"u{DROP}"]),
            rule("reset", "reset-both", service=["reset"]),
            rule("quiet", "deny", service=[f"u{QUIET_DENY}"], log_end=False),
            rule("early", "deny", service=[f"u{EARLY_DENY}"], log_end=False, log_start=True),
            rule("no-start", service=[f"u{NO_START}"]),
            rule("no-end", service=[f"u{NO_END}"], log_start=True, log_end=False),
            rule("unmatched", "deny", service=[f"u{UNMATCHED}"], disabled=True),
            rule("out", log_start=True, from_=["trust"], to=["untrust"]),
        ],
        "nat-rules": [
            {"name": "scarce", **snat, "service": f"u{ONE_PORT}", "source-translation": scarce},
            {"name": "snat", **snat, "source-translation": {"type": "dynamic-ip-and-port", "interface": "out0"}},
        ],
        "host-inbound": {"trust": ["any"], "untrust": []},
        "settings": IN_ORDER
        | {"session": {"timeouts": {"tcp-time-wait": TIME_WAIT, "udp": UDP_IDLE, "icmp": 1, "tcp-unverified-rst": 1}}},
        "log": {"traffic": traffic},
    }


@dataclass
class Net:
    """A lab with the firewall in it."""

    lab: Lab
    firewall: Firewall
    control: Control


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def control(lab: Lab) -> Control:
    return Control(lab)


@pytest.fixture(scope="class")
def net(lab: Lab, control: Control) -> Iterator[Net]:
    with lab.firewall(config()) as firewall:
        yield Net(lab, firewall, control)


def moment(made: dict[str, Any], key: str = "time") -> float:
    """A time of a record in seconds since 1970."""
    return datetime.fromisoformat(made[key]).timestamp()


def carried(capture: Capture, source: str) -> tuple[int, int]:
    """IP bytes and packets that came from an address; a super-packet is one."""
    lengths = [frame.packet[IP].len for frame in capture.frames() if frame.source == source]
    return sum(lengths), len(lengths)


def read(sock: socket.socket, length: int) -> None:
    while length:
        length -= len(sock.recv(length))


def reset(sock: socket.socket) -> None:
    """Close with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class TestRecords:
    def test_a_whole_connection(self, net: Net) -> None:
        """Start and end, with the bytes and packets that the client's wire carried and both views of the addresses."""
        lab, firewall = net.lab, net.firewall
        with lab.listener("server", 9200) as listening, lab.capture("client", "eth0", "tcp port 9200") as wire:
            before = time.time()
            client = lab.connect("client", (SERVER, 9200))
            accepted, (address, nat_port) = listening.accept()
            made = record(firewall, event="start", dport=9200)
            assert time.time() - before < WITHIN
            accepted.settimeout(3)
            client.sendall(bytes(DATA // 3))
            read(accepted, DATA // 3)
            for _ in range(3):
                accepted.sendall(bytes(DATA // 3))
                read(client, DATA // 3)
            (number,) = {session["id"] for session in sessions(firewall, destination_port=9200)}
            client.close()
            accepted.close()
            closed = time.time()
            end = record(firewall, event="end", dport=9200)
            assert time.time() - closed < TIME_WAIT + 1 + WITHIN
        assert TIME_WAIT <= moment(end) - closed + 0.1 <= TIME_WAIT + 1.1
        assert made.keys() == end.keys() == set(LOG_KEYS.split())
        assert (end["bytes_sent"], end["packets_sent"]) == carried(wire, CLIENT)
        assert (end["bytes_received"], end["packets_received"]) == carried(wire, SERVER)
        expected = {
            "session_id": number,
            "rule": "out",
            "nat_rule": "snat",
            "application": "unknown-tcp",
            "from": "trust",
            "to": "untrust",
            "src": CLIENT,
            "dst": SERVER,
            "sport": made["sport"],
            "dport": 9200,
            "proto": 6,
            "nat_src": OUT0,
            "nat_dst": SERVER,
            "nat_sport": nat_port,
            "nat_dport": 9200,
            "start": made["start"],
            "action": "allow",
            "parent_session_id": None,
            "ingress_interface": "in0",
            "egress_interface": "out0",
            "flags": "NS",
            "via": "slow",
        }
        assert expected.items() <= made.items()
        assert expected.items() <= end.items()
        assert address == OUT0
        assert (made["session_end_reason"], end["session_end_reason"]) == (None, "tcp-fin")
        assert (made["elapsed"], made["bytes_received"], made["packets_received"]) == (0, 0, 0)
        assert -1 <= before - moment(made, "start") <= 1
        assert moment(end) - moment(end, "start") - 2 <= end["elapsed"] <= moment(end) - moment(end, "start") + 1

    def test_a_reset_names_its_side(self, net: Net) -> None:
        """By the client and by the server."""
        lab, firewall = net.lab, net.firewall
        for number, by_client in ((9210, True), (9211, False)):
            with lab.listener("server", number) as listening:
                client = lab.connect("client", (SERVER, number))
                accepted, _ = listening.accept()
                first, second = (client, accepted) if by_client else (accepted, client)
                reset(first)
                second.close()
        assert record(firewall, event="end", dport=9210)["session_end_reason"] == "tcp-rst-from-client"
        assert record(firewall, event="end", dport=9211)["session_end_reason"] == "tcp-rst-from-server"

    def test_a_refused_connection_ends_by_the_servers_reset(self, net: Net) -> None:
        """Nobody listens there."""
        with pytest.raises(ConnectionRefusedError):
            net.lab.connect("client", (SERVER, 9220))
        end = record(net.firewall, event="end", dport=9220)
        assert (end["session_end_reason"], end["packets_sent"], end["packets_received"]) == (
            "tcp-rst-from-server",
            1,
            1,
        )
        assert (end["bytes_sent"], end["bytes_received"]) == (60, 40)

    @pytest.mark.parametrize(("client", "server", "header"), [(CLIENT, SERVER, 28), (CLIENT6, SERVER6, 48)])
    def test_datagrams_age_out(self, net: Net, client: str, server: str, header: int) -> None:
        """One question, two answers; IPv6 is not translated by a rule for IPv4."""
        any_address = "::" if ":" in server else "0.0.0.0"
        number = 9230 + header
        answering, asking = net.lab.udp("server", number, any_address), net.lab.udp("client", 0, any_address)
        with answering, asking:
            asking.sendto(b"question", (server, number))
            _, peer = answering.recvfrom(100)
            for _ in range(2):
                answering.sendto(b"answer", peer)
                asking.recv(100)
            sport = asking.getsockname()[1]
        end = record(net.firewall, event="end", dport=number)
        assert (end["src"], end["sport"], end["session_end_reason"]) == (client, sport, "aged-out")
        assert (end["bytes_sent"], end["packets_sent"]) == (header + 8, 1)
        assert (end["bytes_received"], end["packets_received"]) == (2 * (header + 6), 2)
        assert (end["nat_src"], end["nat_rule"], end["flags"]) == (
            (OUT0, "snat", "NS") if header == 28 else (client, None, "")
        )

    def test_a_ping_has_its_identifier_for_a_port(self, net: Net) -> None:
        """In the client's port, 0 in the server's, which is never translated to one."""
        with net.lab.capture("client", "eth0", "icmp[icmptype] == icmp-echo") as wire:
            done = net.lab.run("client", ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "3", SERVER])
        assert done.returncode == 0
        end = record(net.firewall, event="end", proto=1)
        assert (end["sport"], end["dport"], end["application"]) == (wire.packets()[0]["ICMP"].id, 0, "ping")
        assert (end["packets_sent"], end["packets_received"], end["bytes_sent"]) == (2, 2, 168)

    def test_a_cleared_session_ends_for_reasons_unknown(self, net: Net) -> None:
        """And it ends at once."""
        with net.lab.listener("server", 9240) as listening, net.lab.connect("client", (SERVER, 9240)) as client:
            accepted, _ = listening.accept()
            session = session_of(net.firewall, client)
            assert ask(net.firewall, "clear session id", id=session["id"]) == [1]
            end = record(net.firewall, WITHIN, event="end", dport=9240)
            reset(client)
            reset(accepted)
        assert (end["session_end_reason"], end["session_id"]) == ("unknown", session["id"])


class TestRefusals:
    @pytest.mark.parametrize(
        ("number", "event", "action"), [(DENY, "deny", "deny"), (DROP, "drop", "drop"), (EARLY_DENY, "deny", "deny")]
    )
    def test_a_denied_flow_has_one_record(self, net: Net, number: int, event: str, action: str) -> None:
        """Of the first packet; what is sent into the DISCARD session and its end add none."""
        before = time.time()
        with attempt(net.lab, (SERVER, number), socket.SOCK_DGRAM) as sock:
            net.control()
            made = record(net.firewall, WITHIN, dport=number)
            sock.send(b"again")
            net.control()
            session = session_of(net.firewall, sock)
            assert session["packets_c2s"] == 2
        assert time.time() - before < WITHIN + 1
        assert (made["event"], made["action"], made["session_end_reason"]) == (event, action, "policy-deny")
        assert (made["session_id"], made["packets_sent"], made["bytes_sent"]) == (session["id"], 1, 36)
        assert (made["nat_src"], made["nat_sport"], made["flags"]) == (CLIENT, made["sport"], "")
        assert (made["packets_received"], made["to"], made["egress_interface"]) == (0, "untrust", "out0")
        ask(net.firewall, "clear session id", id=session["id"])
        poll(lambda: sessions(net.firewall, destination_port=number) == [], 3, "the DISCARD session to be gone")
        net.control()
        assert len(net.firewall.traffic_log(dport=number)) == 1

    def test_a_reset_is_a_denial(self, net: Net) -> None:
        """With the rule's own action."""
        with pytest.raises(ConnectionRefusedError):
            net.lab.connect("client", (SERVER, RESET))
        made = record(net.firewall, dport=RESET)
        assert (made["event"], made["action"], made["rule"]) == ("deny", "reset-both", "reset")

    def test_a_session_without_a_port_is_refused(self, net: Net) -> None:
        """The pool has one port: the first flow gets it, the second is dropped for want of resources and logged."""
        with net.control.around(net.firewall):
            receiver, first, second = net.lab.udp("server", ONE_PORT), net.lab.udp("client"), net.lab.udp("client")
            with receiver, first, second:
                first.sendto(b"first", (SERVER, ONE_PORT))
                assert receiver.recvfrom(100) == (b"first", (OUT0, 40000))
                refused = counters(net.firewall)["nat_dipp_alloc_failure"]
                second.sendto(b"second", (SERVER, ONE_PORT))
                made = record(net.firewall, WITHIN, event="drop", dport=ONE_PORT)
                assert made["sport"] == second.getsockname()[1]
                first.sendto(b"again", (SERVER, ONE_PORT))
                assert receiver.recv(100) == b"again"
        assert (made["rule"], made["session_end_reason"]) == ("out", "resources-unavailable")
        assert counters(net.firewall)["nat_dipp_alloc_failure"] == refused + 1


class TestSilence:
    def test_rules_log_what_they_say(self, net: Net) -> None:
        """No start, no end, nothing of a quiet denial, nothing of the defaults, nothing of the firewall's own."""
        receiver = net.lab.udp("server", NO_START)
        for number in (NO_START, NO_END, QUIET_DENY):
            attempt(net.lab, (SERVER, number), socket.SOCK_DGRAM).close()
        with net.lab.udp("server") as stranger, net.lab.udp("firewall") as own, net.lab.udp("client") as guest:
            stranger.sendto(b"unasked", (CLIENT, UNMATCHED))
            own.sendto(b"own", (SERVER, NO_START))
            guest.sendto(b"inbound", (IN0, UNMATCHED))
            net.control()
            poll(lambda: sessions(net.firewall, destination_port=NO_END) == [], 5, "the last of them to end")
        receiver.close()
        end = record(net.firewall, event="end", rule="no-start")
        start = record(net.firewall, event="start", rule="no-end")
        assert net.firewall.traffic_log(rule="no-start") == [end]
        assert net.firewall.traffic_log(rule="no-end") == [start]
        for name in ("quiet", "control", "interzone-default", "host-inbound", None):
            assert net.firewall.traffic_log(rule=name) == []

    def test_a_disk_that_refuses_stops_no_packet(self, net: Net) -> None:
        """A directory lies where the file was: records are lost and counted, traffic passes; then it is mended."""
        path = net.firewall.directory / "log" / "traffic.json"
        aside = Path(f"{path}.aside")
        with net.control.around(net.firewall):
            path.rename(aside)
            path.mkdir()
            lost = counters(net.firewall)["log_record_lost"]
            with net.lab.udp("server", 9250) as receiver, net.lab.udp("client") as sender:
                sender.sendto(b"unlogged", (SERVER, 9250))
                assert receiver.recv(100) == b"unlogged"
                poll(lambda: counters(net.firewall)["log_record_lost"] > lost, 5, "a record to be lost")
                net.control()
                path.rmdir()
                sender.sendto(b"logged", (SERVER, 9250))
                assert receiver.recv(100) == b"logged"
                end = record(net.firewall, 5, event="end", dport=9250)
        assert end["packets_sent"] == 2
        assert [line for line in aside.read_text().splitlines() if '"dport":9250' in line] == []


def test_sessions_alive_at_the_stop_end_for_reasons_unknown(lab: Lab, control: Control) -> None:
    """Each has its end record when the daemon has gone."""
    with lab.firewall(config()) as firewall, lab.udp("server", 9261) as receiver, lab.udp("client") as sender:
        control()
        sender.sendto(b"last", (SERVER, 9261))
        assert receiver.recv(100) == b"last"
    ends = firewall.traffic_log(event="end")
    assert [(end["dport"], end["session_end_reason"], end["packets_sent"]) for end in ends] == [(9261, "unknown", 1)]


def test_the_traffic_log_is_switched_off(lab: Lab, control: Control) -> None:
    """Nothing is written; what the daemon says about itself still is."""
    with lab.firewall(config(traffic=False)) as firewall, control.around(firewall):
        with lab.udp("server", 9270) as receiver, lab.udp("client") as sender:
            sender.sendto(b"unlogged", (SERVER, 9270))
            assert receiver.recv(100) == b"unlogged"
        with attempt(lab, (SERVER, DENY), socket.SOCK_DGRAM) as sock:
            control()
            assert session_of(firewall, sock)["rule"] == "deny"
    assert firewall.traffic_log() == []
    assert "ready" in (firewall.directory / "log" / "system.json").read_text()
