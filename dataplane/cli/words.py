"""The words of a command line: KEY VALUE pairs, and `filter` before them."""

from collections.abc import Sequence

from dataplane import filters
from dataplane.errors import UsageError


def session_selection(words: Sequence[str]) -> dict[str, object]:
    """The arguments of `show session all`; `start-at` and `count` may also stand before `filter`."""
    before, after = split_filter(words)
    refuse_other(before, "start-at", "count")
    selection = pairs([*before, *after])
    chosen = filters.parse_filter(selection)
    only = {key: word for key, word in selection.items() if key not in ("start-at", "count")}
    return {"filter": only, "start_at": chosen.start_at, "count": chosen.count}


def filter_words(words: Sequence[str]) -> dict[str, str]:
    """The pairs of a command that takes nothing but a filter."""
    before, after = split_filter(words)
    refuse_other(before)
    return pairs(after)


def match_arguments(words: Sequence[str], *, application: bool) -> dict[str, object]:
    """The arguments of a `test ...-match`."""
    typed = pairs(words)
    match = filters.parse_match(typed, application=application)
    arguments: dict[str, object] = {key: typed[key] for key in ("from", "to", "source", "destination")}
    arguments |= {"destination_port": match.destination_port, "protocol": match.protocol}
    return arguments | ({"application": match.application} if application else {})


def split_filter(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The words before and after `filter`, which stands where a key would and is said once."""
    said = [index for index in range(0, len(words), 2) if words[index] == "filter"]
    if not said:
        return words, ()
    after = words[said[0] + 1 :]
    if not after:
        raise UsageError("filter: KEY VALUE pairs must follow")
    if "filter" in after[::2]:
        raise UsageError("filter: said twice")
    return words[: said[0]], after


def refuse_other(words: Sequence[str], *known: str) -> None:
    """UsageError when a word that stands where a key would is not known there."""
    for word in words[::2]:
        if word not in known:
            raise UsageError(f"unexpected word {word!r}")


def pairs(words: Sequence[str]) -> dict[str, str]:
    """KEY VALUE words as a mapping; UsageError for a key that lacks its value or is said twice."""
    if len(words) % 2:
        raise UsageError(f"{words[-1]}: a value must follow")
    typed: dict[str, str] = {}
    for key, value in zip(words[::2], words[1::2], strict=True):
        if key in typed:
            raise UsageError(f"{key}: said twice")
        typed[key] = value
    return typed
