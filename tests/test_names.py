"""Numbers that outlive the policy that gave them."""

import pytest

from dataplane.errors import DataplaneError
from dataplane.names import Names, Numbering


def test_a_number_is_never_given_to_another_name():
    """A name that comes back after a commit has the number that old sessions hold."""
    rules = Numbering()
    assert rules.numbers(["a", "b"]) == (0, 1)
    assert rules.numbers(["c", "b"]) == (2, 1)
    assert [rules.name(number) for number in (0, 1, 2)] == ["a", "b", "c"]


def test_looking_for_a_name_gives_it_no_number():
    """A filter on a rule that never was must not use numbers up."""
    rules = Numbering(limit=1)
    assert rules.find("a") is None
    assert rules.number("a") == 0
    assert rules.find("a") == 0


def test_numbers_run_out():
    """Rather than name two applications alike."""
    applications = Numbering(limit=2)
    applications.numbers(["a", "b"])
    with pytest.raises(DataplaneError):
        applications.number("c")
    assert applications.number("a") == 0


def test_too_many_at_once_use_no_numbers_up():
    """What is refused whole leaves room for less."""
    applications = Numbering(limit=2)
    with pytest.raises(DataplaneError):
        applications.demand_room(["a", "b", "c"])
    assert applications.numbers(["d", "e"]) == (0, 1)
    applications.demand_room(["d", "e"])


def test_zones_include_the_firewall_itself_and_none():
    """A number without a name shows itself."""
    names = Names(4, 255)
    names.set_zones({"trust": 1})
    assert [names.zone(number) for number in (0, 1, 255, 9)] == ["", "trust", "host", "9"]
    assert (names.zone_id("trust"), names.zone_id("host"), names.zone_id("dmz")) == (1, 255, None)


def test_an_interface_that_is_gone_keeps_its_name():
    """For the sessions that remember it; the name itself means the newest index."""
    names = Names(4, 255)
    names.set_interfaces({1: "lo", 2: "in0"})
    names.set_interfaces({1: "lo", 7: "in0"})
    assert (names.interface(2), names.interface(7), names.interface(8)) == ("in0", "in0", "8")
    assert (names.interface_index("in0"), names.interface_index("out0")) == (7, None)
