"""`run` and `check`: the commands that need no daemon. They import their part of the product when they are called."""

from pathlib import Path

import click

from dataplane.cli.base import runtime_dir_option

LOGS = "Where the traffic log and the system log are written."
COMMITTED = "Where committed configurations are kept."


@click.command()
@click.option("--config", type=click.Path(path_type=Path), required=True, help="The configuration to start with.")
@runtime_dir_option
@click.option("--log-dir", type=click.Path(path_type=Path), default="/var/log/dataplane", show_default=True, help=LOGS)
@click.option(
    "--state-dir", type=click.Path(path_type=Path), default="/var/lib/dataplane", show_default=True, help=COMMITTED
)
@click.pass_context
def run(ctx: click.Context, config: Path, runtime_dir: Path, log_dir: Path, state_dir: Path) -> None:
    """Run the firewall in the foreground.

    It works in the network namespace it is started in, until SIGTERM, and leaves nothing behind.
    """
    from dataplane import stopping

    stopping.listen()
    from dataplane import daemon

    ctx.exit(daemon.run(config, runtime_dir, log_dir, state_dir))


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Validate a configuration file.

    Every error is named with its file, line and path; exit code 3. Neither root nor a daemon is needed.
    """
    from dataplane.policy.load import load

    load(file)
    click.echo(f"{file}: valid")
