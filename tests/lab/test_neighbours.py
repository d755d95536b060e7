"""The kernel's neighbour table as the offload knows it, when there are more events than its socket has room for."""

from collections.abc import Iterator

import pytest

from dataplane import neighbours
from dataplane.neighbours import Neighbours
from dataplane.routes import address_from_text
from tests.lab.lab import Lab

HOST, MAC, OTHER_MAC = "10.2.0.77", "02:00:00:00:07:07", "02:00:00:00:07:08"
CROWD = 300  # neighbours whose events fill the socket
BUFFER = 4096  # bytes


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def table(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Neighbours]:
    monkeypatch.setattr(neighbours, "BUFFER", BUFFER)
    with lab.inside("firewall"):
        made = Neighbours()
    yield made
    made.close()


def batch(lab: Lab, *lines: str) -> None:
    path = lab.directory / "neighbours"
    path.write_text("".join(f"neighbour {line}\n" for line in lines))
    lab.run("firewall", ["ip", "-batch", str(path)], check=True)


def replace(host: str, mac: str) -> str:
    return f"replace {host} dev out0 nud permanent lladdr {mac}"


def crowd(mac: str) -> list[str]:
    return [replace(f"10.2.{1 + n // 250}.{1 + n % 250}", mac) for n in range(CROWD)]


def known(lab: Lab, table: Neighbours) -> str | None:
    ifindex = int(lab.run("firewall", ["cat", "/sys/class/net/out0/ifindex"], check=True).stdout)
    mac = table.mac(ifindex, address_from_text(HOST))
    return None if mac is None else mac.hex(":")


def test_a_neighbour_whose_end_was_lost_is_gone(lab, table):
    """What still waits in the socket when it overruns says less than the table as it is then."""
    batch(lab, replace(HOST, MAC), *crowd(MAC), f"del {HOST} dev out0")
    table.follow()
    assert known(lab, table) is None


def test_an_overrun_amid_the_answer_is_made_good(lab, table, monkeypatch):
    """More is lost while the table is read: it is read again in the next turn."""
    batch(lab, replace(HOST, MAC))
    table.follow()
    assert known(lab, table) == MAC
    send = Neighbours._send

    def send_and_change(self: Neighbours, kind: int, flags: int, body: bytes) -> None:
        send(self, kind, flags, body)
        monkeypatch.undo()
        batch(lab, *crowd(MAC), replace(HOST, OTHER_MAC))

    monkeypatch.setattr(Neighbours, "_send", send_and_change)
    batch(lab, *crowd(OTHER_MAC))
    table.follow()
    table.follow()
    assert known(lab, table) == OTHER_MAC
