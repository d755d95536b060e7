"""What a firewall goes through in its worst minutes: a slow path that does not answer, a process that stands still, a
flood of new flows, a full table, a disk that takes no more.

Established sessions must not notice; new ones wait, or are refused and counted, and never arrive late.
"""

import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP

from tests.lab.disks import small_disk
from tests.lab.firewall import Firewall
from tests.lab.frozen import frozen, python_threads
from tests.lab.lab import CLIENT, SERVER, Lab, poll
from tests.lab.witness import (
    DENIED_PORT,
    SHORT_TIMEOUTS,
    Controls,
    Established,
    arrives,
    config,
    drain,
    drop_counters,
    queues,
    stopped,
)

WORKERS, SLOW_QUEUE = 2, 2
LATE = 1.2  # seconds; what has waited for that long must not be delivered any more
FLOOD_PORT, OTHER_PORT = 9, 10


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        # The flood's datagrams would each be answered with an ICMP error.
        ports = f"{FLOOD_PORT}:{OTHER_PORT}"
        made.run("server", ["iptables", "-A", "INPUT", "-p", "udp", "--dport", ports, "-j", "DROP"], check=True)
        yield made


@pytest.fixture(scope="module")
def controls(lab: Lab) -> Controls:
    return Controls(lab)


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(two_workers()) as made:
        yield made


@pytest.fixture
def established(lab: Lab, firewall: Firewall) -> Iterator[Established]:
    made = Established(lab)
    yield made
    made.close()


def two_workers() -> dict[str, Any]:
    """Whatever the number of processors; Python decides all."""
    made = config(SHORT_TIMEOUTS)
    made["settings"]["queue"] = {"workers": WORKERS}
    made["settings"]["dispatch-cache"] = False  # every new flow goes through the slow path
    return made


@contextmanager
def blocked_python(firewall: Firewall) -> Iterator[None]:
    """Every thread of the daemon but its hot workers stands still."""
    with frozen(python_threads(firewall.pid, WORKERS)):
        yield


def exchange_for(established: Established, seconds: float) -> int:
    """Rounds of every established session in this time; TimeoutError if one of them does not come back."""
    rounds, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        established.exchange()
        rounds += 1
    return rounds


def flood(first: int, count: int, to: int = FLOOD_PORT) -> list[bytes]:
    """Datagrams of so many new flows, by source port."""
    header = bytes(IP(src=CLIENT, dst=SERVER, len=32) / UDP())[:20]
    return [header + struct.pack("!HHHH", port, to, 12, 0) + b"data" for port in range(first, first + count)]


# Python does not answer


def test_established_sessions_do_not_wait_for_python(lab, firewall, controls, established):
    """While Python stands still for two seconds a stream, a UDP ping-pong and a ping go on as if nothing were."""
    with controls.unharmed(firewall):
        before = firewall.counter("pkt_punt")
        with blocked_python(firewall):
            assert exchange_for(established, 2) > 50
        assert firewall.counter("pkt_punt") == before


def test_a_first_packet_that_waited_too_long_is_not_delivered(lab, firewall, controls, established):
    """It is dropped and counted; a packet that waited for less than a second is decided and delivered."""
    old, young, server = lab.udp("client"), lab.udp("client"), lab.udp("server")
    address = SERVER, server.getsockname()[1]
    with controls.unharmed(firewall):
        before = firewall.counter("flow_queued_too_long")
        with blocked_python(firewall):
            old.sendto(b"old", address)
            exchange_for(established, LATE)
            young.sendto(b"young", address)
            poll(lambda: queues(lab)[SLOW_QUEUE].waiting == 2, 1, "both to wait for the slow path")
        assert server.recv(100) == b"young"
        poll(lambda: firewall.counter("flow_queued_too_long") == before + 1, 3, "the old one to be counted")
        assert drain(server) == []
        assert arrives(old, server)


def test_a_stopped_daemon_delivers_nothing_late(lab, firewall, controls, established):
    """Packets of established sessions that waited for longer than a second are dropped and counted, too."""
    with controls.unharmed(firewall):
        before = firewall.counter("flow_queued_too_long")
        with stopped(firewall):
            for number in range(100):
                established.datagrams.send(b"%d" % number)
            time.sleep(LATE)  # the condition is time itself: nothing can be polled for
        poll(lambda: firewall.counter("flow_queued_too_long") == before + 100, 3, "all of them to be counted")
        assert drain(established.answers) == []
        established.exchange()


def test_a_stopped_daemon_is_survived_by_a_stream(firewall, controls, established):
    """What the daemon dropped is sent again by the endpoint; nothing is lost, the session is the same."""
    with controls.unharmed(firewall):
        with stopped(firewall):
            established.client.sendall(b"sent while nobody looked")
            time.sleep(LATE)  # as above
        assert established.server.recv(100) == b"sent while nobody looked"
        established.exchange()


# More new flows than Python can decide


def test_a_flood_of_new_flows_delays_nobody_who_is_there(lab, firewall, controls, established):
    """The slow queue overflows in the kernel, which counts; no packet of an established session is lost, and the next
    new flow is decided at once."""
    with controls.unharmed(firewall):
        before, counted = queues(lab), firewall.counter("flow_queue_full")
        for first in range(1024, 61024, 2000):  # faster than Python decides; half of what a hot queue holds
            lab.inject("client", *flood(first, 2000))
            established.exchange()
            poll(lambda: all(queues(lab)[hot].waiting < 1000 for hot in range(WORKERS)), 3, "the hot queues to drain")
        after = queues(lab)
        lost = after[SLOW_QUEUE].dropped - before[SLOW_QUEUE].dropped
        assert lost > 0
        assert [after[number].dropped for number in range(WORKERS)] == [before[n].dropped for n in range(WORKERS)]
    poll(lambda: firewall.counter("flow_queue_full") == counted + lost, 3, "the kernel's drops to be counted")


def test_a_full_slow_queue_is_empty_again_at_once(lab, firewall, controls, established):
    """What overflowed while Python stood still is gone; what it decides next is new."""
    with controls.unharmed(firewall):
        before = queues(lab)[SLOW_QUEUE].dropped
        with blocked_python(firewall):
            for first in range(42000, 50000, 500):  # no flow of the flood before goes on
                lab.inject("client", *flood(first, 500, OTHER_PORT))
                established.exchange()
            poll(lambda: queues(lab)[SLOW_QUEUE].dropped > before, 3, "the queue to overflow")
            assert exchange_for(established, LATE) > 30
        poll(lambda: queues(lab)[SLOW_QUEUE].waiting == 0, 1, "the queue to empty")


def test_commands_are_answered_during_a_flood(lab, firewall, established):
    """An operator can look while new flows pour in."""
    lab.inject("client", *flood(52000, 4000))
    assert firewall.json("show", "session", "info")["num_udp"] >= 1
    established.exchange()


# A full table


class TestFullTable:
    """A table of a hundred slots."""

    SLOTS = 100

    @pytest.fixture
    def firewall(self, firewall: Firewall) -> Iterator[Firewall]:
        """In a lab of its own, as the module's daemon is there already."""
        with Lab() as lab:
            self.lab = lab
            self.controls = Controls(lab)
            with lab.firewall(config({**SHORT_TIMEOUTS, "udp": 5, "icmp": 5}, max_sessions=self.SLOTS)) as made:
                yield made

    def test_no_session_is_ended_to_make_room(self, firewall):
        """New sessions are refused and counted, established ones go on; once one ends there is room."""
        self.controls.assert_pass()
        poll(lambda: firewall.json("show", "session", "info")["num_active"] == 0, 10, "the controls' sessions to end")
        established = Established(self.lab)
        self.lab.inject("client", *flood(2000, 3 * self.SLOTS))
        poll(lambda: firewall.counter("session_alloc_failure") >= 2 * self.SLOTS, 3, "refusals")
        assert firewall.json("show", "session", "info")["num_active"] == self.SLOTS
        established.exchange()
        refused, server = self.lab.udp("client"), self.lab.udp("server")
        assert not arrives(refused, server, 0.2)
        poll(lambda: not firewall.sessions(destination_port=FLOOD_PORT), 10, "the flood's sessions to expire")
        self.controls.assert_pass()
        established.exchange_stream()

    def test_denied_flows_make_room(self, firewall):
        """DISCARD sessions hold no place that an allowed one needs; workers at once may go past the share."""
        denied = [packet[:22] + struct.pack("!H", DENIED_PORT) + packet[24:] for packet in flood(2000, 3 * self.SLOTS)]
        self.controls.assert_pass()
        self.lab.inject("client", *denied)
        poll(lambda: firewall.counter("flow_policy_deny") == len(denied), 3, "every one to be denied")
        assert firewall.json("show", "session", "info")["num_discard"] < self.SLOTS // 10 + WORKERS
        assert firewall.counter("session_alloc_failure") == 0
        self.controls.assert_pass()


# A disk that takes no more


def test_a_full_disk_costs_records_and_no_packet():
    """Lost records are counted; when there is room again whole records follow whole records."""
    with Lab() as lab, small_disk(lab.directory / "disk", 1 << 20) as disk:
        controls = Controls(lab)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(1_000_000))  # what is left is too little for the flood, the whole is enough
        with lab.firewall(config(SHORT_TIMEOUTS), f"--log-dir={disk}") as firewall, controls.unharmed(firewall):
            established = Established(lab)
            lab.inject("client", *flood(2000, 200))
            poll(lambda: firewall.counter("log_record_lost") > 0, 5, "a record to be lost")
            established.exchange()
            controls.assert_pass()
            ballast.unlink()
            client, server = lab.udp("client", 3333), lab.udp("server")
            assert arrives(client, server)
            poll(lambda: b'"sport":3333' in (disk / "traffic.json").read_bytes(), 5, "a record of the new session")
            lines = (disk / "traffic.json").read_text().splitlines()
        assert all(json.loads(line)["session_id"] for line in lines)


def test_a_log_that_cannot_be_opened_stops_nothing():
    """traffic.json is a directory: no record, but traffic, and the daemon ends as it should."""
    with Lab() as lab:
        controls = Controls(lab)
        logs = lab.directory / "logs"
        (logs / "traffic.json").mkdir(parents=True)
        with lab.firewall(config(SHORT_TIMEOUTS), f"--log-dir={logs}") as firewall, controls.unharmed(firewall):
            poll(lambda: firewall.counter("log_record_lost") > 0, 5, "a record to be lost")


def test_a_disk_that_hangs_does_not_hold_the_daemon():
    """traffic.json is a pipe that nobody reads, as a dead NFS server is: packets pass, and the daemon still stops."""
    with Lab() as lab:
        controls = Controls(lab)
        logs = lab.directory / "logs"
        logs.mkdir()
        os.mkfifo(logs / "traffic.json")
        with lab.firewall(config(SHORT_TIMEOUTS), f"--log-dir={logs}") as firewall, controls.unharmed(firewall):
            Established(lab).exchange()


def test_a_client_that_reads_nothing_holds_nobody(lab, firewall, established):
    """A `show` whose output nobody takes costs the daemon a thread, and no packet anything."""
    lab.inject("client", *flood(50000, 2000))
    with socket.socket(socket.AF_UNIX) as control:
        control.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        control.connect(str(firewall.directory / "runtime" / "control.sock"))
        control.sendall(b'{"command": "show session all", "arguments": {}}\n')
        assert exchange_for(established, 0.5) > 10
        assert firewall.json("show", "session", "info")
    assert drop_counters(firewall)["flow_slowpath_error"] == 0
