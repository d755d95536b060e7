"""`cli`: the same commands at a prompt."""

import os
from pathlib import Path

import click

from dataplane.cli.base import runtime_dir_option


@click.command("cli")
@runtime_dir_option
@click.pass_context
def shell(ctx: click.Context, runtime_dir: Path) -> None:
    """Type commands at a prompt, with completion and `?`.

    Words may be cut short while they mean one thing (`sh sess all`), `?` shows what may follow, Tab completes it.
    `| match`, `except`, `count`, `last`, `json` and `no-more` change what is printed; `watch` repeats a command.
    Lines that do not come from a terminal are obeyed one after the other; the exit code is that of the last command
    that failed.
    """
    from dataplane.shell import run

    program = ctx.find_root().command
    assert isinstance(program, click.Group), "the shell is one of the program's commands"
    os.environ["DATAPLANE_RUNTIME_DIR"] = str(runtime_dir)  # where every command of the shell looks
    ctx.exit(run(program))
