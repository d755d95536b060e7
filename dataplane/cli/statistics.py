"""What counts: top talkers, queues, resources, rules' hits. show.py and clear.py register these commands."""

import json
from pathlib import Path
from typing import cast

import click

from dataplane import filters, text
from dataplane.cli.base import json_option, runtime_dir_option
from dataplane.cli.output import emit, emit_list, json_list, only_row
from dataplane.cli.words import CLEARED_HITS, HIT_COUNTS, LAST_SAMPLES, TOP, refuse_listing
from dataplane.client import request
from dataplane.errors import UsageError
from dataplane.grammar import Grammar, WordsCommand, words

GROUPS = ("source", "destination", "rule", "application", "zone")
PERIODS = {"second": 60, "minute": 60, "hour": 24, "day": 7, "week": 13}  # the most that `last` takes


@click.command("top", cls=WordsCommand)
@click.argument("what", type=click.Choice(GROUPS))
@words(TOP)
@json_option
@runtime_dir_option
def session_top(what: str, words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """Sum up sessions by what they share, the largest sums first.

    `by rate` measures for a second; every other sum is over the sessions' lives.
    """
    said, selection = TOP.parts(words)
    order, last = TOP.value(said, "by", "bytes"), TOP.value(said, "last", 10)
    refuse_listing(selection)
    filters.parse_filter(selection)
    asked = {"what": what, "by": order, "last": last, "filter": selection}
    answer = request(runtime_dir, "show session top", asked)
    rows = cast(list[text.Json], list(answer))
    emit(json_list(map(json.dumps, rows)) if as_json else text.top(rows, what, order, answer.done))


@click.command("queue")
@json_option
@runtime_dir_option
def counter_queue(as_json: bool, runtime_dir: Path) -> None:
    """List what waits in each queue and what was lost."""
    emit_list(request(runtime_dir, "show counter queue", {}), text.queues, as_json)


@click.command("resource-monitor", cls=WordsCommand)
@click.argument("period", type=click.Choice(list(PERIODS)), required=False)
@words(LAST_SAMPLES)
@json_option
@runtime_dir_option
def resource_monitor(period: str | None, words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """Show how busy threads, table, queues and pools were."""
    asked: dict[str, object] = {} if period is None else {"period": period}
    last = LAST_SAMPLES.value(LAST_SAMPLES.pairs(words), "last", None)
    if last is not None:
        if last > PERIODS[period or "second"]:
            raise UsageError(f"last: at most {PERIODS[period or 'second']} are kept")
        asked["last"] = last
    emit_list(request(runtime_dir, "show running resource-monitor", asked), text.resource_monitor, as_json)


@click.command("rule-hit-count", cls=WordsCommand)
@words(HIT_COUNTS)
@json_option
@runtime_dir_option
def rule_hit_count(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """List how often each rule decided and when."""
    asked = _base(HIT_COUNTS, HIT_COUNTS.pairs(words))
    emit_list(request(runtime_dir, "show rule-hit-count", asked), text.rule_hit_count, as_json)


@click.command("rule-hit-count", cls=WordsCommand)
@words(CLEARED_HITS)
@runtime_dir_option
def clear_rule_hit_count(words: tuple[str, ...], runtime_dir: Path) -> None:
    """Count the hits of every rule, or of one, anew."""
    said = CLEARED_HITS.pairs(words)
    asked = _base(CLEARED_HITS, said) | ({"rule": said["rule"]} if "rule" in said else {})
    cleared = only_row(request(runtime_dir, "clear rule-hit-count", asked))
    emit([f"rules cleared: {cleared}"])


def _base(grammar: Grammar, said: dict[str, str]) -> dict[str, object]:
    return {"rule_base": grammar.value(said, "rule-base", "security")}
