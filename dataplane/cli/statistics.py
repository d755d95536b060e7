"""What counts: top talkers, queues, resources, rules' hits. show.py and clear.py register these commands."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import cast

import click

from dataplane import filters, text
from dataplane.cli.base import json_option, runtime_dir_option
from dataplane.cli.output import emit, emit_list, json_list, only_row
from dataplane.client import request
from dataplane.errors import UsageError
from dataplane.grammar import pairs, refuse_other, split_filter

TOP = ("source", "destination", "rule", "application", "zone")
ORDERS = ("sessions", "bytes", "packets", "rate")
PERIODS = {"second": 60, "minute": 60, "hour": 24, "day": 7, "week": 13}  # the most that `last` takes
BASES = ("security", "nat")
MOST_ROWS = 1000


@click.command("top")
@click.argument("what", type=click.Choice(TOP))
@click.argument("words", nargs=-1, metavar="[by sessions|bytes|packets|rate] [last N] [filter KEY VALUE ...]")
@json_option
@runtime_dir_option
def session_top(what: str, words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """Sum up the sessions by something they have in common, and list the largest sums.

    `by rate` measures for a second; every other sum is over the sessions' lives.
    """
    before, after = split_filter(words)
    refuse_other(before, "by", "last")
    said, selection = pairs(before), pairs(after)
    order = _choice("by", said.get("by", "bytes"), ORDERS)
    last = _number("last", said.get("last", "10"), MOST_ROWS)
    if filters.parse_filter(selection).count:
        raise UsageError("count: only a list of sessions takes it")
    asked = {"what": what, "by": order, "last": last, "filter": selection}
    answer = request(runtime_dir, "show session top", asked)
    rows = cast(list[text.Json], list(answer))
    emit(json_list(map(json.dumps, rows)) if as_json else text.top(rows, what, order, answer.done))


@click.command("queue")
@json_option
@runtime_dir_option
def counter_queue(as_json: bool, runtime_dir: Path) -> None:
    """List the queues between kernel and firewall: what waits in each, and what was lost."""
    emit_list(request(runtime_dir, "show counter queue", {}), text.queues, as_json)


@click.command("resource-monitor")
@click.argument("words", nargs=-1, metavar="[second|minute|hour|day|week [last N]]")
@json_option
@runtime_dir_option
def resource_monitor(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """Show how busy threads, session table, queues and NAT pools are and were, in percent."""
    asked: dict[str, object] = {}
    if words:
        asked["period"] = period = _choice("period", words[0], PERIODS)
        refuse_other(words[1:], "last")
        said = pairs(words[1:])
        if "last" in said:
            asked["last"] = _number("last", said["last"], PERIODS[period])
    emit_list(request(runtime_dir, "show running resource-monitor", asked), text.resource_monitor, as_json)


@click.command("rule-hit-count")
@click.argument("words", nargs=-1, metavar="[rule-base security|nat]")
@json_option
@runtime_dir_option
def rule_hit_count(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """List how often each rule decided and when."""
    refuse_other(words, "rule-base")
    emit_list(request(runtime_dir, "show rule-hit-count", _base(pairs(words))), text.rule_hit_count, as_json)


@click.command("rule-hit-count")
@click.argument("words", nargs=-1, metavar="[rule-base security|nat] [rule NAME]")
@runtime_dir_option
def clear_rule_hit_count(words: tuple[str, ...], runtime_dir: Path) -> None:
    """Count the hits of every rule, or of one, anew."""
    refuse_other(words, "rule-base", "rule")
    said = pairs(words)
    asked = _base(said) | ({"rule": said["rule"]} if "rule" in said else {})
    cleared = only_row(request(runtime_dir, "clear rule-hit-count", asked))
    emit([f"rules cleared: {cleared}"])


def _base(said: dict[str, str]) -> dict[str, object]:
    return {"rule_base": _choice("rule-base", said.get("rule-base", "security"), BASES)}


def _choice(what: str, word: str, known: Collection[str]) -> str:
    if word not in known:
        raise UsageError(f"{what}: {word!r} is none of {' '.join(known)}")
    return word


def _number(what: str, word: str, most: int) -> int:
    try:
        return cast(int, filters.number(1, most)(word))
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None
