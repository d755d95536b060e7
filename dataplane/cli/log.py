"""`show log`: the logs read back, the newest record first."""

from collections.abc import Sequence
from pathlib import Path

import click

from dataplane import filters, text
from dataplane.cli.base import json_option, runtime_dir_option
from dataplane.cli.output import emit_list
from dataplane.cli.words import SYSTEM_LOG, TRAFFIC_LOG
from dataplane.client import request
from dataplane.grammar import WordsCommand, words


@click.group("log")
def show_log() -> None:
    """Read the logs back, the newest record first."""


@show_log.command("traffic", cls=WordsCommand)
@words(TRAFFIC_LOG)
@json_option
@runtime_dir_option
def show_log_traffic(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """List records of the traffic log."""
    arguments = log_selection(words)
    rows = request(runtime_dir, "show log traffic", arguments)
    emit_list(rows, text.traffic_log, as_json)
    tell_if_incomplete(rows.done)


@show_log.command("system", cls=WordsCommand)
@words(SYSTEM_LOG)
@json_option
@runtime_dir_option
def show_log_system(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """List what the firewall has said about itself."""
    last = SYSTEM_LOG.value(SYSTEM_LOG.pairs(words), "last", filters.LAST)
    rows = request(runtime_dir, "show log system", {"last": last})
    emit_list(rows, text.system_log, as_json)


@show_log.command("status")
@json_option
@runtime_dir_option
def show_log_status(as_json: bool, runtime_dir: Path) -> None:
    """Show where the logs go and what was lost on the way."""
    emit_list(request(runtime_dir, "show log status", {}), text.log_status, as_json)


def log_selection(words: Sequence[str]) -> dict[str, object]:
    """The arguments of `show log traffic`; `last` may stand before `filter` or among its pairs."""
    selection = TRAFFIC_LOG.pairs(words)
    last = TRAFFIC_LOG.value(selection, "last", filters.LAST)
    only = {key: word for key, word in selection.items() if key != "last"}
    filters.parse_log_filter(only)
    return {"filter": only, "last": last}


def tell_if_incomplete(done: dict[str, object]) -> None:
    """An answer that has an end for want of time says so."""
    if not done.get("complete", True):
        click.echo("older records were not looked at", err=True)
