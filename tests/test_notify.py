"""What a supervisor is told, and when it is told nothing: conversations with a socket that plays systemd."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.notify import Watchdog, notify, patience, reloading


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch) -> Iterator[socket.socket]:
    """Hears what the daemon says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield ear


def heard(ear: socket.socket) -> list[str]:
    """Everything said since the last time."""
    said = []
    while True:
        try:
            said.append(ear.recv(1000).decode())
        except BlockingIOError:
            return said


def test_whoever_runs_without_a_supervisor_tells_nobody(monkeypatch):
    """A daemon in a terminal has nobody to tell, and pings nobody."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notify("READY=1")
    assert patience() is None


def test_a_socket_without_a_name_in_the_file_system(monkeypatch):
    """systemd writes @ for the zero byte of an abstract address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(f"\0dataplane-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@dataplane-test-{os.getpid()}")
        notify("READY=1", "STATUS=2 zones")
        assert ear.recv(100) == b"READY=1\nSTATUS=2 zones"


def test_a_supervisor_that_is_gone_does_not_matter(tmp_path, monkeypatch):
    """It is logged, and the firewall goes on."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")


def test_a_reload_that_fails_is_over_too(systemd):
    """Or systemd would wait for its end until it loses patience."""
    with pytest.raises(ValueError, match="garbage"), reloading():
        raise ValueError("garbage")
    began, ended = heard(systemd)
    assert began.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert ended == "READY=1"


@pytest.mark.parametrize(("microseconds", "pid", "seconds"), [
    ("30000000", "", 30.0), ("30000000", "self", 30.0), ("30000000", "1", None), ("0", "", None), ("soon", "", None),
])  # fmt: skip
def test_patience(microseconds, pid, seconds, monkeypatch):
    """What was meant for another process is not for us."""
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid)
    assert patience() == seconds


def test_a_thread_that_stands_still_ends_the_pings(systemd, monkeypatch, caplog):
    """It is named once; the pings are back as soon as it moves."""
    monkeypatch.setenv("WATCHDOG_USEC", "1")  # so that one is always due
    turns = {"worker-0": 1, "slowpath": 1}
    watchdog = Watchdog(lambda: dict(turns))
    turns["worker-0"] = 2
    for _ in range(3):
        watchdog.look()
    assert heard(systemd) == []
    assert [record.message for record in caplog.records] == [
        "no progress of slowpath: systemd is not told that the daemon lives"
    ]
    turns["slowpath"] = 2
    watchdog.look()
    assert heard(systemd) == ["WATCHDOG=1"]


def test_no_more_pings_than_are_due(systemd, monkeypatch):
    """A look before its time says nothing, whoever has moved."""
    monkeypatch.setenv("WATCHDOG_USEC", "3600000000")
    turns = iter(range(100))
    watchdog = Watchdog(lambda: {"slowpath": next(turns)})
    watchdog.look()
    assert heard(systemd) == []
