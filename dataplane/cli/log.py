"""`show log`: the logs read back, the newest record first."""

from collections.abc import Sequence
from pathlib import Path

import click

from dataplane import filters, text
from dataplane.cli.base import json_option, runtime_dir_option
from dataplane.cli.output import emit_list
from dataplane.cli.words import pairs, refuse_other, split_filter
from dataplane.client import request
from dataplane.errors import UsageError

MAX_LAST = 1_000_000


@click.group("log")
def show_log() -> None:
    """The logs, the newest record first."""


@show_log.command("traffic")
@click.argument("words", nargs=-1, metavar="[last N] [filter KEY VALUE ...]")
@json_option
@runtime_dir_option
def show_log_traffic(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """List records of the traffic log.

    Filter keys: src, dst (an address or a prefix), sport, dport, proto, app, rule, nat-rule, from, to, action, event,
    session-end-reason, session-id, since (seconds).
    """
    arguments = log_selection(words)
    rows = request(runtime_dir, "show log traffic", arguments)
    emit_list(rows, text.traffic_log, as_json)
    tell_if_incomplete(rows.done)


@show_log.command("system")
@click.argument("words", nargs=-1, metavar="[last N]")
@json_option
@runtime_dir_option
def show_log_system(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """List what the firewall has said about itself."""
    refuse_other(words, "last")
    rows = request(runtime_dir, "show log system", {"last": last_of(pairs(words))})
    emit_list(rows, text.system_log, as_json)


@show_log.command("status")
@json_option
@runtime_dir_option
def show_log_status(as_json: bool, runtime_dir: Path) -> None:
    """Show where the logs are written to, and how many records were lost on the way."""
    emit_list(request(runtime_dir, "show log status", {}), text.log_status, as_json)


def log_selection(words: Sequence[str]) -> dict[str, object]:
    """The arguments of `show log traffic`; `last` may stand before `filter` or among its pairs."""
    before, after = split_filter(words)
    refuse_other(before, "last")
    selection = pairs([*before, *after])
    last = last_of(selection)
    only = {key: word for key, word in selection.items() if key != "last"}
    filters.parse_log_filter(only)
    return {"filter": only, "last": last}


def last_of(selection: dict[str, str]) -> int:
    """How many records are wanted."""
    try:
        return filters.number(1, MAX_LAST)(selection.get("last", str(filters.LAST)))
    except ValueError as error:
        raise UsageError(f"last: {error}") from None


def tell_if_incomplete(done: dict[str, object]) -> None:
    """An answer that has an end for want of time says so."""
    if not done.get("complete", True):
        click.echo("older records were not looked at", err=True)
