"""`cli` and `completion`: the same commands at a prompt, and in the operator's own shell."""

import os
from pathlib import Path

import click

from dataplane.cli.base import runtime_dir_option


@click.command("cli")
@runtime_dir_option
@click.pass_context
def shell(ctx: click.Context, runtime_dir: Path) -> None:
    """Type commands at a prompt, with completion, `?` for help, pipes and pages.

    Lines that do not come from a terminal are obeyed one after the other; the exit code is that of the last command
    that failed.
    """
    from dataplane.shell import run

    program = ctx.find_root().command
    assert isinstance(program, click.Group), "the shell is one of the program's commands"
    os.environ["DATAPLANE_RUNTIME_DIR"] = str(runtime_dir)  # where every command of the shell looks
    ctx.exit(run(program))


@click.command()
@click.argument("name", type=click.Choice(["bash", "zsh", "fish"]), metavar="bash|zsh|fish")
@click.pass_context
def completion(ctx: click.Context, name: str) -> None:
    """Print what a shell needs to complete commands, keys and live names.

    \b
    bash:  dataplane completion bash > /etc/bash_completion.d/dataplane
    zsh:   dataplane completion zsh > "${fpath[1]}/_dataplane"
    fish:  dataplane completion fish > ~/.config/fish/completions/dataplane.fish
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(name)
    assert made is not None, "click knows these shells"
    click.echo(made(ctx.find_root().command, {}, "dataplane", COMPLETE_VARIABLE).source(), nl=False)


COMPLETE_VARIABLE = "_DATAPLANE_COMPLETE"  # by which a completion script asks the program
