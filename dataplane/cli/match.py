"""`test`: which rule would match."""

from pathlib import Path

import click

from dataplane import text
from dataplane.cli.base import json_option, runtime_dir_option
from dataplane.cli.output import emit_match
from dataplane.cli.words import NAT_MATCH, SECURITY_MATCH, match_arguments
from dataplane.client import request
from dataplane.grammar import WordsCommand, words


@click.group("test")
def test_group() -> None:
    """Ask which rule would match a packet that is not sent."""


@test_group.command("security-policy-match", cls=WordsCommand)
@words(SECURITY_MATCH)
@json_option
@runtime_dir_option
def test_security_policy_match(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """Show the security rule that would match.

    Zones are the packet's own and, for `to`, that of the translated destination; addresses are untranslated.
    """
    arguments = match_arguments(words, application=True)
    emit_match(request(runtime_dir, "test security-policy-match", arguments), text.security_match, as_json)


@test_group.command("nat-policy-match", cls=WordsCommand)
@words(NAT_MATCH)
@json_option
@runtime_dir_option
def test_nat_policy_match(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """Show the NAT rule that would match.

    Zones and addresses are those of the packet before any translation.
    """
    arguments = match_arguments(words, application=False)
    emit_match(request(runtime_dir, "test nat-policy-match", arguments), text.nat_match, as_json)
