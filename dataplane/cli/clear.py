"""`clear`: end what the running firewall holds."""

from pathlib import Path

import click

from dataplane import filters
from dataplane.cli import statistics
from dataplane.cli.base import runtime_dir_option
from dataplane.cli.output import emit_cleared
from dataplane.cli.words import LISTING, SESSION_FILTER
from dataplane.client import request
from dataplane.errors import UsageError
from dataplane.grammar import WordsCommand, live_names, words


@click.group()
def clear() -> None:
    """End what the running firewall holds."""


@clear.group("session")
def clear_session() -> None:
    """End sessions: all, some or one."""


@clear_session.command("all", cls=WordsCommand)
@words(SESSION_FILTER)
@runtime_dir_option
def clear_session_all(words: tuple[str, ...], runtime_dir: Path) -> None:
    """End every session, or those that the filter means.

    What still comes for an ended session is judged as a first packet.
    """
    selection = SESSION_FILTER.pairs(words)
    for key in LISTING:
        if key in selection:
            raise UsageError(f"{key}: only a list of sessions takes it")
    filters.parse_filter(selection)
    emit_cleared(request(runtime_dir, "clear session all", {"filter": selection}))


@clear_session.command("id")
@click.argument("number", type=click.IntRange(0, 2**32 - 1), metavar="ID", shell_complete=live_names("session"))
@runtime_dir_option
def clear_session_id(number: int, runtime_dir: Path) -> None:
    """End one session."""
    emit_cleared(request(runtime_dir, "clear session id", {"id": number}))


clear.add_command(statistics.clear_rule_hit_count)
