"""The commands, in the words of PAN-OS.

A command that asks the daemon imports nothing beyond click and the client, so that it answers at once.
"""

import click

from dataplane.cli.base import Program
from dataplane.cli.clear import clear
from dataplane.cli.commit import commit, rollback, show_config
from dataplane.cli.completion import completion
from dataplane.cli.debug import debug
from dataplane.cli.doctor import doctor
from dataplane.cli.interactive import shell
from dataplane.cli.match import test_group
from dataplane.cli.service import check, run
from dataplane.cli.show import show


@click.group(cls=Program)
@click.version_option(package_name="dataplane")
def main() -> None:
    """A session firewall: zones, security and NAT policy in the manner of PAN-OS.

    `dataplane run` is the daemon; the other commands ask or change the one that runs. `dataplane cli` takes the same
    commands at a prompt. Every `show` and `test` prints JSON with `--json`.
    """


show.add_command(show_config)
for command in (run, check, commit, rollback, show, clear, test_group, doctor, shell, completion, debug):
    main.add_command(command)
