"""What one configuration changes in another, and which rule is which."""

from itertools import combinations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dataplane.policy.changes import LISTS, NAT, NO_IDS, SECURITY, TABLES, TREES, changes, identify
from dataplane.policy.model import Config

BASE: dict[str, Any] = {
    "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
    "addresses": {"lan": "10.1.0.0/24"},
    "security-rules": [{"name": name, "action": "allow", "service": [name]} for name in ("dns", "web", "mail")],
    "services": {name: {"protocol": "tcp", "destination-port": n} for n, name in enumerate(("dns", "web", "mail"), 1)},
    "settings": {"session": {"timeouts": {"tcp": 3600}}},
}


def config(**sections: object) -> Config:
    return Config.model_validate(BASE | {name.replace("_", "-"): section for name, section in sections.items()})


def rules(*names: str, **changed: dict[str, object]) -> list[dict[str, object]]:
    return [{"name": name, "action": "allow", "service": [name], **changed.get(name, {})} for name in names]


def differences(before: Config, after: Config) -> list[str]:
    ids = identify(before)
    return [str(change) for change in changes(before, after, (ids, identify(after, before, ids)))]


def test_nothing():
    """A configuration that says the same says it in no other way."""
    assert differences(config(), config()) == []


def test_every_kind_of_change():
    """In the order of the file, each named by what it is about."""
    after = config(
        zones=[{"name": "trust", "interfaces": ["in0", "in1"]}, {"name": "untrust", "interfaces": ["out0"]}],
        addresses={"office": "10.1.0.0/24"},
        security_rules=[*rules("new", "mail", "dns"), {"name": "www", "action": "allow", "service": ["web"]}],
        services=BASE["services"] | {"new": {"protocol": "udp", "destination-port": 9}},
        settings={"session": {"timeouts": {"tcp": 600}}},
    )
    assert differences(config(), after) == [
        "zones: changed trust (interfaces)",
        "addresses: removed lan",
        "addresses: added office",
        "services: added new",
        "security-rules: added new (at 1)",
        "security-rules: moved mail (from 3 to 2)",
        "security-rules: renamed www (from web)",
        "settings: changed session.timeouts.tcp (3600 -> 600)",
    ]


def test_settings_are_told_as_the_file_says_them():
    """A server is known by where it is; no value is spelled as Python spells it."""
    before = config(log={"traffic": True, "syslog": [{"to": "udp://192.0.2.9"}, {"to": "unix:///dev/log"}]})
    after = config(
        settings={"offload": False, "alg": {"ftp": {"ports": [21, 2121]}}},
        log={"traffic": True, "syslog": [{"to": "tcp://192.0.2.9"}, {"to": "unix:///dev/log", "format": "csv"}]},
        metrics={"listen": "127.0.0.1:9184"},
    )
    assert differences(before, after) == [
        "settings: changed alg.ftp.ports (none -> [21, 2121])",
        "settings: changed offload (true -> false)",
        "log: removed syslog udp://192.0.2.9",
        "log: added syslog tcp://192.0.2.9",
        "log: changed syslog unix:///dev/log (format)",
        "metrics: changed listen (none -> 127.0.0.1:9184)",
    ]


def test_no_section_is_forgotten():
    """What can be written can be told."""
    sections = {field.alias or name for name, field in Config.model_fields.items()}
    assert sections == {*LISTS, *TABLES, *TREES, SECURITY, NAT}


def test_a_changed_rule_names_its_fields():
    """The action of one, the service of another."""
    after = config(security_rules=rules("dns", "web", "mail", web={"action": "deny"}, mail={"service": ["dns"]}))
    assert differences(config(), after) == [
        "security-rules: changed web (action)",
        "security-rules: changed mail (service)",
    ]


def test_a_rule_that_is_renamed_and_edited_is_another_one():
    """Nothing says which of the old ones it might be."""
    after = config(security_rules=[*rules("dns", "web"), {"name": "post", "action": "deny", "service": ["mail"]}])
    assert differences(config(), after) == ["security-rules: removed mail", "security-rules: added post (at 3)"]


def test_the_predefined_rules_are_always_the_same():
    """Their ids are their names."""
    own = [*rules("dns"), {"name": "interzone-default", "action": "drop"}]
    assert identify(config(security_rules=own), None, NO_IDS).security["interzone-default"] == "interzone-default"


@given(st.permutations(("a", "b", "c", "d", "e")), st.permutations(("a", "b", "c", "d", "e")))
def test_moves_are_as_few_as_they_can_be(old, new):
    """Putting the moved ones elsewhere makes the old order the new one; the others stay as they stood."""
    services = {name: {"protocol": "tcp", "destination-port": n} for n, name in enumerate(old, 1)}
    before = config(security_rules=rules(*old), services=services)
    after = config(security_rules=rules(*new), services=services)
    moved = {change.split()[2] for change in differences(before, after)}
    assert [name for name in old if name not in moved] == [name for name in new if name not in moved]
    longest = max(
        (size for size in range(6) for run in combinations(old, size) if list(run) == [n for n in new if n in run]),
        default=0,
    )
    assert len(moved) == 5 - longest
