"""The real daemon and a socket that plays systemd (sd_notify(3)): it says that it lives only while traffic can."""

import socket
from collections.abc import Iterator

import pytest

from dataplane.slowpath import STOP_LATENCY
from tests.lab.firewall import Firewall
from tests.lab.frozen import frozen, polling_thread
from tests.lab.lab import Lab, poll
from tests.lab.witness import SHORT_TIMEOUTS, Controls, Established, config

PATIENCE = 800_000  # µs that this systemd waits for a ping
PING = "WATCHDOG=1"


class Systemd:
    """Remembers what it was told."""

    def __init__(self, ear: socket.socket) -> None:
        self._ear = ear

    def hears(self, word: str) -> bool:
        """Whether that is among what was said since the last question."""
        said = []
        try:
            while True:
                said.append(self._ear.recv(1000).decode())
        except BlockingIOError:
            return word in said


@pytest.fixture
def systemd(lab: Lab, monkeypatch) -> Iterator[Systemd]:
    path = lab.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(path))
        ear.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", str(PATIENCE))
        yield Systemd(ear)


def test_it_says_when_it_is_ready_that_it_lives_and_when_it_stops(lab, systemd):
    """READY once traffic can cross, pings as long as it can, STOPPING before anything is taken back."""
    controls, firewall = Controls(lab), Firewall(lab, config(SHORT_TIMEOUTS))
    firewall.start()
    poll(lambda: systemd.hears("READY=1"), 5, "READY=1")
    controls.assert_pass()
    for _ in range(3):
        poll(lambda: systemd.hears(PING), 5, "a ping")
    firewall.stop()
    assert systemd.hears("STOPPING=1")


def test_a_slow_path_that_stands_still_ends_the_pings(lab, systemd):
    """The daemon answers and established traffic flows, but no new session can begin: that is no life."""
    firewall = Firewall(lab, config(SHORT_TIMEOUTS))
    firewall.start()
    established = Established(lab)
    poll(lambda: systemd.hears(PING), 5, "a ping")
    with frozen([polling_thread(firewall.pid, int(STOP_LATENCY * 1000))]):
        poll(lambda: "no progress of slowpath" in firewall.log(), 5, "the thread to be missed")
        systemd.hears(PING)
        established.exchange()
        assert firewall.json("show", "session", "info")["num_active"] >= 3
        assert not systemd.hears(PING)
    poll(lambda: systemd.hears(PING), 5, "a ping from the revived")
    assert "every thread moves again" in firewall.log()
    established.close()
    firewall.stop()


def test_a_process_that_stands_still_says_nothing(lab, systemd):
    """The main thread is the one that pings: it need not look at itself."""
    with lab.firewall(config(SHORT_TIMEOUTS)) as firewall:
        poll(lambda: systemd.hears(PING), 5, "a ping")
        main = [firewall.pid]
        with frozen(main):
            systemd.hears(PING)
            firewall.json("show", "session", "info")
            assert not systemd.hears(PING)
        poll(lambda: systemd.hears(PING), 5, "a ping from the revived")
