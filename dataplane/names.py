"""What the numbers inside sessions are called.

Sessions hold small numbers for rules, NAT rules and applications, and outlive the policy that gave them. A number is
therefore never given to another thing: one that comes back gets the number that it had. A rule is known by its id, so
that it keeps its number when it is renamed, and another rule of that name gets one of its own.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from dataplane.errors import DataplaneError


class Numbering:
    """Names to numbers from 0 on, for as long as the daemon lives. At most `limit` names; DataplaneError beyond."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self._limit = limit
        self._numbers: dict[str, int] = {}  # by id, which is the name itself where there is no other
        self._latest: dict[str, int] = {}  # by the name that a thing has now, or had last
        self._names: list[str] = []
        self._ids: list[str] = []

    def number(self, name: str, id: str = "") -> int:
        """The number of what has this id, new if it was never seen; it is called `name` from now on."""
        number = self._numbers.get(id or name)
        if number is None:
            self.demand_room([id or name])
            number = self._numbers[id or name] = len(self._names)
            self._names.append(name)
            self._ids.append(id or name)
        self._names[number] = name
        self._latest[name] = number
        return number

    def demand_room(self, ids: Iterable[str]) -> None:
        """DataplaneError unless all of these can have numbers; none is given."""
        if len(self._names) + sum(id not in self._numbers for id in ids) > self._limit:
            raise DataplaneError(f"more than {self._limit} names have been used; a restart forgets those that are gone")

    def find_id(self, id: str) -> int | None:
        """The number of what has this id, or None if nothing ever had."""
        return self._numbers.get(id)

    def id(self, number: int) -> str:
        return self._ids[number]

    def name(self, number: int) -> str:
        return self._names[number]

    def names(self) -> tuple[str, ...]:
        """Every name so far, by its number."""
        return tuple(self._names)

    def find(self, name: str) -> int | None:
        """The number of what is called so, or was last; None if nothing ever was."""
        return self._latest.get(name)

    def numbers(self, names: Iterable[str], ids: Mapping[str, str] = MappingProxyType({})) -> tuple[int, ...]:
        """The same for many; `ids` by name."""
        return tuple(self.number(name, ids.get(name, "")) for name in names)


class Names:
    """Every kind of number that a session holds."""

    def __init__(self, max_applications: int, host_zone: int) -> None:
        self.rules = Numbering()
        self.nat_rules = Numbering()
        self.applications = Numbering(max_applications)
        self._zones: dict[int, str] = {0: "", host_zone: "host"}
        self._interfaces: dict[int, str] = {0: ""}

    def set_zones(self, zones: Mapping[str, int]) -> None:
        self._zones |= {number: name for name, number in zones.items()}

    def set_interfaces(self, interfaces: Mapping[int, str]) -> None:
        """Names by index; one that is gone keeps its name for the sessions that remember it."""
        self._interfaces |= interfaces

    def zone(self, number: int) -> str:
        return self._zones.get(number, str(number))

    def zone_id(self, name: str) -> int | None:
        return next((number for number, zone in self._zones.items() if zone == name), None)

    def interfaces(self) -> dict[int, str]:
        """Names by index, of all that were ever known."""
        return dict(self._interfaces)

    def interface(self, index: int) -> str:
        return self._interfaces.get(index, str(index))

    def interface_index(self, name: str) -> int | None:
        """The index that an interface of this name had last."""
        return next((index for index, known in reversed(self._interfaces.items()) if known == name), None)
