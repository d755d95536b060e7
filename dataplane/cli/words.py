"""The words of a command line, as the arguments of a request."""

from collections.abc import Mapping, Sequence

from dataplane import filters
from dataplane.errors import UsageError
from dataplane.filters import (
    COUNTER_KEYS,
    COUNTER_NAME,
    LOG_KEYS,
    MATCH_KEYS,
    PACKET_KEYS,
    SESSION_KEYS,
    STAGE_KEYS,
    Parser,
    choice,
    named,
    number,
)
from dataplane.grammar import Grammar

LISTING = ("start-at", "count")  # about the list, not about the sessions in it
MATCH_NEEDS = ("from", "to", "source", "destination", "protocol")

SESSION_LIST = Grammar({key: SESSION_KEYS[key] for key in LISTING}, filter=SESSION_KEYS)
SESSION_FILTER = Grammar(filter={key: kind for key, kind in SESSION_KEYS.items() if key not in LISTING})
COUNTER_LIST = Grammar({"name": COUNTER_NAME}, filter=COUNTER_KEYS)
RULE_BASE: dict[str, Parser] = {"rule-base": choice("security", "nat", about="which rules; security unless it is said")}
HIT_COUNTS = Grammar(RULE_BASE)
CLEARED_HITS = Grammar({**RULE_BASE, "rule": named("rule", "the one rule that is meant")})
TOP = Grammar(
    {
        "by": choice("sessions", "bytes", "packets", "rate", about="what is summed up; bytes unless it is said"),
        "last": number(1, 1000, "the largest so many; 10 unless it is said"),
    },
    filter=SESSION_FILTER.filter,
)
LAST_RECORDS = number(1, 1_000_000, "the newest so many records; 20 unless it is said")
TRAFFIC_LOG = Grammar({"last": LAST_RECORDS}, filter={**LOG_KEYS, "last": LAST_RECORDS})
SYSTEM_LOG = Grammar({"last": LAST_RECORDS})
SWITCH = {"on": "from now on", "off": "no more"}
PACKET_FILTER = Grammar({"index": number(1, 4, "the filter's place")}, filter=PACKET_KEYS, lead="match", alone=SWITCH)
STAGE = choice("receive", "firewall", "transmit", "drop", about="where on its way a packet is captured")
CAPTURE = Grammar({"stage": STAGE, **STAGE_KEYS}, needed=("stage", "file"), alone=SWITCH)
LAST_SAMPLES = Grammar({"last": number(1, 60, "the newest so many samples")})
SECURITY_MATCH = Grammar(MATCH_KEYS, needed=MATCH_NEEDS)
NAT_MATCH = Grammar({key: kind for key, kind in MATCH_KEYS.items() if key != "application"}, needed=MATCH_NEEDS)


def session_selection(words: Sequence[str]) -> dict[str, object]:
    """The arguments of `show session all`; `start-at` and `count` may also stand before `filter`."""
    selection = SESSION_LIST.pairs(words)
    chosen = filters.parse_filter(selection)
    only = {key: word for key, word in selection.items() if key not in LISTING}
    return {"filter": only, "start_at": chosen.start_at, "count": chosen.count}


def match_arguments(words: Sequence[str], *, application: bool) -> dict[str, object]:
    """The arguments of a `test ...-match`."""
    typed = (SECURITY_MATCH if application else NAT_MATCH).pairs(words)
    match = filters.parse_match(typed, application=application)
    arguments: dict[str, object] = {key: typed[key] for key in ("from", "to", "source", "destination")}
    arguments |= {"destination_port": match.destination_port, "protocol": match.protocol}
    return arguments | ({"application": match.application} if application else {})


def refuse_listing(selection: Mapping[str, str]) -> None:
    """UsageError for words that are about a list of sessions, where none is asked for."""
    for key in LISTING:
        if key in selection:
            raise UsageError(f"{key}: only a list of sessions takes it")
