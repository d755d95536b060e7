"""`clear`: end what the running firewall holds."""

from pathlib import Path

import click

from dataplane import filters
from dataplane.cli import statistics
from dataplane.cli.base import runtime_dir_option
from dataplane.cli.output import emit_cleared
from dataplane.cli.words import filter_words
from dataplane.client import request
from dataplane.errors import UsageError


@click.group()
def clear() -> None:
    """End what the running firewall holds."""


@clear.group("session")
def clear_session() -> None:
    """Sessions."""


@clear_session.command("all")
@click.argument("words", nargs=-1, metavar="[filter KEY VALUE ...]")
@runtime_dir_option
def clear_session_all(words: tuple[str, ...], runtime_dir: Path) -> None:
    """End every session, or those that the filter means."""
    selection = filter_words(words)
    for key in ("start-at", "count"):
        if key in selection:
            raise UsageError(f"{key}: only a list of sessions takes it")
    filters.parse_filter(selection)
    emit_cleared(request(runtime_dir, "clear session all", {"filter": selection}))


@clear_session.command("id")
@click.argument("number", type=click.IntRange(0, 2**32 - 1), metavar="ID")
@runtime_dir_option
def clear_session_id(number: int, runtime_dir: Path) -> None:
    """End one session."""
    emit_cleared(request(runtime_dir, "clear session id", {"id": number}))


clear.add_command(statistics.clear_rule_hit_count)
