"""`completion`: the same commands in the operator's own shell.

The script that is printed asks this program at each Tab, by an environment variable, and click answers from the same
tree as everywhere. zsh and fish quote what they insert; bash does not, and a rule's name may hold anything.
"""

import os
import shlex
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

COMPLETE_VARIABLE = "_DATAPLANE_COMPLETE"


class Bash(BashComplete):
    """Names are inserted as the one word that they are."""

    def format_completion(self, item: CompletionItem[Any]) -> str:
        quoted = os.environ["COMP_WORDS"].rpartition("\n")[2].startswith(("'", '"'))
        word = str(item.value)
        return f"{item.type},{word if quoted else shlex.quote(word)}"


add_completion_class(Bash)


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
