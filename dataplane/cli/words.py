"""The words of a command line, as the arguments of a request."""

from collections.abc import Sequence

from dataplane import filters
from dataplane.filters import COUNTER_KEYS, COUNTER_NAME, MATCH_KEYS, SESSION_KEYS
from dataplane.grammar import Grammar

LISTING = ("start-at", "count")  # about the list, not about the sessions in it
MATCH_NEEDS = ("from", "to", "source", "destination", "protocol")

SESSION_LIST = Grammar({key: SESSION_KEYS[key] for key in LISTING}, filter=SESSION_KEYS)
SESSION_FILTER = Grammar(filter={key: kind for key, kind in SESSION_KEYS.items() if key not in LISTING})
COUNTER_LIST = Grammar({"name": COUNTER_NAME}, filter=COUNTER_KEYS)
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
