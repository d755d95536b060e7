"""What one configuration changes in another, and which rule of one is which of the other.

A rule is known by an id that stays with it while it is edited, moved or renamed: a rule of the same name is the same
rule; one whose name is gone is the same as a new one that says just the same under another name. An id is never given
twice, so what was remembered of a rule that was removed (sessions, hits) is not taken for another's.
"""

import json
import uuid
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dataplane.change import Change
from dataplane.policy.model import DEFAULT_RULES, Config, NatRule, SecurityRule

SECURITY, NAT = "security-rules", "nat-rules"
LISTS = ("zones", "virtual-wires")
TABLES = (
    "interfaces", "addresses", "address-groups", "services", "service-groups", "applications", "host-inbound",
)  # fmt: skip
TREES = ("settings", "log", "metrics")

Rule = SecurityRule | NatRule


class RuleIds(NamedTuple):
    """Ids by the names of rules."""

    security: Mapping[str, str] = {}
    nat: Mapping[str, str] = {}


NO_IDS = RuleIds()


def identify(after: Config, before: Config | None = None, known: RuleIds = NO_IDS) -> RuleIds:
    """The ids of a configuration's rules, `known` being those of the one before it."""
    return RuleIds(
        _identify(after.security_rules, before.security_rules if before else (), known.security),
        _identify(after.nat_rules, before.nat_rules if before else (), known.nat),
    )


def _identify(after: Sequence[Rule], before: Sequence[Rule], known: Mapping[str, str]) -> dict[str, str]:
    names = {rule.name for rule in after}
    gone = {_meaning(rule): known[rule.name] for rule in before if rule.name not in names and rule.name in known}
    return {rule.name: known.get(rule.name) or gone.pop(_meaning(rule), None) or _new_id(rule) for rule in after}


def _meaning(rule: Rule) -> str:
    """What it says, whatever its name."""
    return rule.model_dump_json(exclude={"name"})


def _new_id(rule: Rule) -> str:
    """The two predefined rules are always the same ones."""
    return rule.name if rule.name in DEFAULT_RULES else str(uuid.uuid4())


def changes(before: Config, after: Config, ids: tuple[RuleIds, RuleIds]) -> list[Change]:
    """Everything that differs, in the order of the file; `ids` are those of both."""
    old, new = _plain(before), _plain(after)
    return [
        *(change for name in LISTS for change in _entries(name, _by_name(old[name]), _by_name(new[name]))),
        *(change for name in TABLES for change in _entries(name, old[name], new[name])),
        *_rules(SECURITY, before.security_rules, after.security_rules, (ids[0].security, ids[1].security)),
        *_rules(NAT, before.nat_rules, after.nat_rules, (ids[0].nat, ids[1].nat)),
        *(change for name in TREES for change in _leaves(name, "", old[name], new[name])),
    ]


def _plain(config: Config) -> dict[str, Any]:
    return config.model_dump(by_alias=True, mode="json")


def _by_name(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {entry["name"]: entry for entry in entries}


def _entries(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Of things that are known by their names."""
    yield from (Change(section, "removed", name) for name in old if name not in new)
    for name, entry in new.items():
        if name not in old:
            yield Change(section, "added", name)
        elif entry != old[name]:
            yield Change(section, "changed", name, _fields(old[name], entry))


def _fields(old: Any, new: Any) -> str:
    """Which fields differ, where both have fields."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return ""
    return ", ".join(key for key in {**new, **old} if old.get(key) != new.get(key))


def _leaves(section: str, path: str, old: Any, new: Any) -> Iterator[Change]:
    """Of a tree of settings, value by value."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**new, **old}:
            yield from _leaves(section, f"{path}.{key}" if path else key, old.get(key), new.get(key))
    elif any(isinstance(each, Mapping) for each in (*_list(old), *_list(new))):
        yield from _entries(section, *({f"{path} {each['to']}": each for each in _list(side)} for side in (old, new)))
    elif old != new:
        yield Change(section, "changed", path, f"{_written(old)} -> {_written(new)}")


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _written(value: Any) -> str:
    """As in the file; what it does not say is none."""
    if value is None or isinstance(value, str):
        return value or "none"
    return json.dumps(value, ensure_ascii=False)


def _rules(
    section: str, old: Sequence[Rule], new: Sequence[Rule], ids: tuple[Mapping[str, str], Mapping[str, str]]
) -> Iterator[Change]:
    known = {ids[0][rule.name]: rule for rule in old}
    places = {ids[0][rule.name]: place for place, rule in enumerate(old)}
    own = [ids[1][rule.name] for rule in new]
    stay, kept = _in_order([places[id] for id in own if id in places]), {*own}
    yield from (Change(section, "removed", rule.name) for id, rule in known.items() if id not in kept)
    for place, (id, rule) in enumerate(zip(own, new, strict=True), 1):
        if id not in known:
            yield Change(section, "added", rule.name, f"at {place}")
            continue
        if rule.name != known[id].name:
            yield Change(section, "renamed", rule.name, f"from {known[id].name}")
        if _meaning(rule) != _meaning(known[id]):
            was, now = (each.model_dump(by_alias=True, mode="json", exclude={"name"}) for each in (known[id], rule))
            yield Change(section, "changed", rule.name, _fields(was, now))
        if places[id] not in stay:
            yield Change(section, "moved", rule.name, f"from {places[id] + 1} to {place}")


def _in_order(places: Sequence[int]) -> set[int]:
    """The longest run of places that ascend: the fewest others have moved (patience sorting)."""
    tops: list[int] = []
    behind: dict[int, int | None] = {}
    for place in places:
        pile = bisect_left(tops, place)
        behind[place] = tops[pile - 1] if pile else None
        tops[pile : pile + 1] = [place]
    run: set[int] = set()
    last = tops[-1] if tops else None
    while last is not None:
        run.add(last)
        last = behind[last]
    return run
