"""Link-state pass-through without links: what a pair of ports does when one of them loses its own."""

from collections.abc import Iterator

import pytest

from dataplane import wires
from dataplane.routes import Link, Links
from dataplane.wires import Pair
from tests.lab.polling import poll

LEFT, RIGHT = "eth1", "eth2"


class Bench:
    """A pair whose links are what the test says, and what it has set up or down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, str]] = []
        self._links = Links()
        monkeypatch.setattr(Pair, "_set", lambda pair, end, state: self.done.append((pair._ports[end], state)))
        self.pair = Pair((LEFT, RIGHT))

    def links(self, left: bool, right: bool) -> list[tuple[str, str]]:
        """What is done when the links are so."""
        self.done.clear()
        self._links.replace([Link(LEFT, 1, left, 1500, (), ()), Link(RIGHT, 2, right, 1500, (), ())])
        self.pair.follow(self._links)
        return self.done


@pytest.fixture
def bench(monkeypatch) -> Iterator[Bench]:
    made = Bench(monkeypatch)
    yield made
    made.pair.stop()


def test_a_lost_link_takes_the_other_end_down_until_it_is_back(bench):
    """And nothing more is done while it is away."""
    assert bench.links(True, True) == []
    assert bench.links(False, True) == [(RIGHT, "down")]
    assert bench.links(False, False) == []
    assert bench.links(True, False) == [(RIGHT, "up")]
    assert bench.links(True, True) == []


def test_a_held_port_that_somebody_sets_up_goes_down_again(bench):
    """The other end has still no link."""
    bench.links(True, True)
    bench.links(True, False)
    assert bench.links(True, False) == [(LEFT, "down")]


def test_a_link_that_is_being_negotiated_is_not_lost(bench):
    """Otherwise each port would take the other down for as long as it needs to come up, for ever."""
    bench.links(True, True)
    bench.links(False, True)
    bench.links(True, False)
    assert bench.links(True, False) == []
    assert bench.links(True, True) == []
    assert bench.links(True, False) == [(LEFT, "down")]


def test_a_link_that_never_comes_is_lost_when_grace_is_over(monkeypatch):
    """No event tells that: a timer does."""
    monkeypatch.setattr(wires, "GRACE", 0.05)
    bench = Bench(monkeypatch)
    bench.links(True, False)
    poll(lambda: bench.done == [(LEFT, "down")], 3, "the left port to be taken down")
    bench.pair.stop()


def test_two_dead_links_are_left_alone(bench):
    """Neither neighbour believes in the wire."""
    bench.links(True, True)
    assert bench.links(False, False) == []
    assert bench.links(False, True) == [(RIGHT, "down")]
