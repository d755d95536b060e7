"""`completion`: the same commands in the operator's own shell.

The script that is printed asks this program at each Tab, by an environment variable, and click answers from the same
tree as everywhere. zsh and fish quote what they insert; bash does not, and a rule's name may hold anything: a command
in `$(...)` as well, which must not run because somebody has completed a name.
"""

import os
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ZshComplete,
    add_completion_class,
    get_completion_class,
)

COMPLETE_VARIABLE = "_DATAPLANE_COMPLETE"
WORD_VARIABLE = f"{COMPLETE_VARIABLE}_WORD"

BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD="$COMP_CWORD" \\
        %(complete_var)s_WORD="${COMP_WORDS[COMP_CWORD]}" %(complete_var)s=bash_complete "$1")
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""
"""click's own takes backslashes out of names, and lets bash look for files that match them."""

INSIDE: Mapping[str, Callable[[str], str]] = {
    "": shlex.quote,
    "'": lambda word: word.replace("'", r"'\''"),
    '"': lambda word: re.sub(r'([\\"$`])', r"\\\1", word).replace("!", "\"'!'\""),  # which recalls a command
    "$'": lambda word: re.sub(r"([\\'])", r"\\\1", word),
}
"""How a name is written behind a quote of bash that is open. Bash closes it."""


class Bash(BashComplete):
    """Names are inserted as the one word that they are."""

    source_template = BASH

    def format_completion(self, item: CompletionItem[Any]) -> str:
        return f"{item.type},{INSIDE[open_quote(os.environ[WORD_VARIABLE])](str(item.value))}"


class Zsh(ZshComplete):
    """Where a word has a description beside it, a backslash is zsh's own."""

    def format_completion(self, item: CompletionItem[Any]) -> str:
        word = str(item.value).replace("\\", r"\\") if item.help else item.value
        return super().format_completion(CompletionItem(word, item.type, item.help))


add_completion_class(Bash)
add_completion_class(Zsh)


def open_quote(word: str) -> str:
    """The quote that is open at the end of a word as bash reads it; empty if there is none."""
    quote, before = "", ""
    for sign in word:
        if before == "\\" and quote != "'":
            sign = ""  # it stands for itself, and so does what follows it
        elif quote:
            quote = "" if sign == quote[-1] else quote
        elif sign in ("'", '"'):
            quote = "$'" if before + sign == "$'" else sign
        before = sign
    return quote


@click.command()
@click.argument("name", type=click.Choice(["bash", "zsh", "fish"]), metavar="bash|zsh|fish")
@click.pass_context
def completion(ctx: click.Context, name: str) -> None:
    """Print a completion script for your shell.

    It completes commands, keys, and the names that the running daemon knows.

    \b
    bash:  dataplane completion bash > /etc/bash_completion.d/dataplane
    zsh:   dataplane completion zsh > "${fpath[1]}/_dataplane"
    fish:  dataplane completion fish > ~/.config/fish/completions/dataplane.fish
    """
    made = get_completion_class(name)
    assert made is not None, "click knows these shells"
    click.echo(made(ctx.find_root().command, {}, "dataplane", COMPLETE_VARIABLE).source(), nl=False)
