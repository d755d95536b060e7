"""What every command shares: how a failure ends, and where the daemon is."""

import codecs
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from dataplane.errors import DataplaneError
from dataplane.text import printable

INTERRUPTED = 130  # 128 + SIGINT, what a shell expects
SPELLED = "dataplane-spelled"


def spell(error: UnicodeError) -> tuple[str, int]:
    """What the terminal's own character set lacks, spelled as text.printable() spells: JSON stays the same JSON."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(SPELLED, spell)


class Program(click.Group):
    """Ends a command that fails with the failure's reason on standard error and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors=SPELLED)
        try:
            return super().invoke(ctx)
        except DataplaneError as error:
            for line in str(error).splitlines():
                click.echo(printable(line), err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush complains
            ctx.exit(0)  # `| head` has seen what it wanted


def caller() -> str:
    """Who has a `delta` of his own: a user at one terminal, or all of his scripts together."""
    for stream in (0, 1, 2):
        try:
            return f"{os.getuid()} {os.ttyname(stream)}"
        except OSError:
            continue
    return str(os.getuid())


runtime_dir_option = click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path),
    envvar="DATAPLANE_RUNTIME_DIR",
    default="/run/dataplane",
    show_default=True,
    show_envvar=True,
    help="Where the daemon's control socket is.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
